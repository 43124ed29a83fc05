"""Evaluation of pairs: samples of every method against the same real ones.

In:   pairs, a problem.
Out:  rows of the table.
Knows nothing of a single problem.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from weightloom.adversarial import AdversarialPair
from weightloom.apps.app import Contender
from weightloom.apps.experiment import method_folder
from weightloom.apps.gan.config import GanOptions
from weightloom.apps.gan.problems.problem import GanProblem
from weightloom.runs.metrics import read_rows
from weightloom.runs.record import Role, Row, failed_row, row_of, summary

SHUFFLED = "shuffled condition"
"""End of the name of the control whose samples were drawn for other conditions."""

EQUAL = "validation score at equal steps"
"""Name of a further score: the seeds of a run average it, each at its own number of steps."""


def score_all(
    contenders: Sequence[Contender[AdversarialPair]],
    problem: GanProblem,
    config: GanOptions,
    folder: Path,
) -> list[Row]:
    """Judge every contender in every setting, with controls and ceilings.

    Args:
        contenders: Pairs to judge, the run's method first.
        problem: The real samples and the measures.
        config: Options.
        folder: The run's folder, for scores at equal steps.
    """
    equal = scores_at_equal_steps(contenders, config, folder)
    rows: list[Row] = []
    for setting in problem.settings():
        rows += _Judged(contenders, problem, setting, equal).rows
    norms = gradient_norms(contenders, config, folder)
    for row in rows:
        if row.get("role", "method") == "method" and row["setting"] == problem.settings()[0]:
            row["also"] |= norms.get(row["method"], {})
    return rows


def gradient_norms(
    contenders: Sequence[Contender[AdversarialPair]], config: GanOptions, folder: Path
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the norm of each player's gradient over the logged turns of a training.

    Returns:
        By method and name of the column: ``mean``, which is the median; ``largest``; and
        ``quarters``, the median in each quarter of the training.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for its in contenders:
        if its.role == "method" and its.model is not None:
            norms: dict[str, list[float]] = {}
            for row in read_rows(method_folder(folder, its.name, config)):
                if "turn" in row:
                    norms.setdefault(str(row["turn"]), []).append(float(row["gradient_norm"]))
            found[its.name] = {
                f"gradient norm of the {turn}": _course(values) for turn, values in norms.items()
            }
    return found


def _course(values: Sequence[float]) -> dict[str, Any]:
    """Summarise a series: its median, maximum, and the median of each quarter."""
    ends = [len(values) * part // 4 for part in range(5)]
    quarters = [values[start:end] or values for start, end in pairwise(ends)]
    return {
        "mean": median(values),
        "largest": max(values),
        "quarters": [median(its) for its in quarters],
    }


class _Judged:
    """The rows of one setting.

    Args:
        contenders: Pairs to judge, the run's method first.
        problem: The real samples and the measures.
        setting: The setting.
        equal: Scores of methods at equal steps, with the name of their column.
    """

    def __init__(
        self,
        contenders: Sequence[Contender[AdversarialPair]],
        problem: GanProblem,
        setting: str,
        equal: Mapping[str, tuple[str, float]],
    ) -> None:
        self.problem, self.setting = problem, setting
        self.rows: list[Row] = []
        self.ours: Tensor | None = None
        self.trained: dict[str, Tensor] = {}
        for its in contenders:
            self._judge(its)
        self._add_equal(equal)
        for its in contenders:
            if its.role == "method" and its.model is not None and problem.shuffles:
                shuffled = problem.samples(its.model, setting, shuffled=True)
                self._add(f"{its.name}, {SHUFFLED}", shuffled, "control")
        for name, samples in problem.ceilings(setting).items():
            self._add(name, samples, "ceiling")

    def _judge(self, contender: Contender[AdversarialPair]) -> None:
        """Add the row of a contender."""
        problem = self.problem
        if contender.model is None:
            self.rows.append(
                failed_row(contender.name, self.setting, problem.score, problem.better)
            )
            return
        contender.model.eval()
        self._add(contender.name, problem.samples(contender.model, self.setting), contender.role)

    def _add(self, name: str, samples: Tensor, role: Role) -> None:
        """Add a row of samples."""
        scores = self.problem.scores(self.setting, samples)
        main = next(iter(scores))
        values = scores[main]
        row = row_of(name, self.setting, main, values, self.problem.better, role)
        row["per_context"] = values.tolist()
        row["also"] = {name: summary(its) for name, its in scores.items() if name != main}
        if self.ours is not None:
            row["ours_ahead"] = summary(self.ours - values)
        if role == "untrained" and name in self.trained:
            row["trained_ahead"] = summary(self.trained[name] - values)
        self.ours = values if self.ours is None else self.ours
        if role == "method":
            self.trained[name] = values
        self.rows.append(row)

    def _add_equal(self, equal: Mapping[str, tuple[str, float]]) -> None:
        """Add the score at equal steps to the rows of methods, in the first setting."""
        if self.setting != self.problem.settings()[0]:
            return
        for row in self.rows:
            if row.get("role", "method") == "method" and row["method"] in equal:
                name, score = equal[row["method"]]
                row["also"] |= {name: {"mean": score}}


def scores_at_equal_steps(
    contenders: Sequence[Contender[AdversarialPair]], config: GanOptions, folder: Path
) -> dict[str, tuple[str, float]]:
    """Return the validation score of each method at the last step that all trainings evaluated.

    Returns:
        Name of the column and score, by method; empty unless trainings differ in steps.
    """
    curves = {
        its.name: _validation_curve(method_folder(folder, its.name, config))
        for its in contenders
        if its.role == "method" and its.model is not None
    }
    steps = [set(curve) for curve in curves.values()]
    common = set.intersection(*steps) if steps else set()
    if not common or all(its == common for its in steps):
        return {}
    step = max(common)
    return {name: (EQUAL, curve[step]) for name, curve in curves.items()}


def _validation_curve(folder: Path) -> dict[int, float]:
    """Return the logged validation scores of a method by step."""
    scores = ((row["step"], row.get("validation_score")) for row in read_rows(folder))
    return {step: its for step, its in scores if isinstance(its, int | float)}
