"""Evaluation of transfer methods: the same targets for every method, and the check on the support.

In:   models, a problem.
Out:  rows of the table.
Knows nothing of a single problem.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from weightloom.apps.app import Contender
from weightloom.apps.transfer.problems.problem import Condition, Outputs, Problem, Setting
from weightloom.learners.check import SHARPNESS, Check, check_on_support
from weightloom.runs.record import Role, Row, failed_row, row_of, summary

CHECKED = "checked"
"""Name of the row of all methods, weighed by the check."""
CONTROLS: tuple[Condition, ...] = ("shuffled", "mean")
"""Conditions of the controls."""


def score_all(
    contenders: Sequence[Contender[nn.Module]], problem: Problem, check: bool
) -> list[Row]:
    """Judge every contender in every setting, with its controls, and the blend of the check.

    Args:
        contenders: Models to judge, the run's method first.
        problem: The targets.
        check: Add the row of the check, where targets have labels.
    """
    rows: list[Row] = []
    for setting in problem.settings():
        rows += _Judged(contenders, problem, setting, check).rows
    return rows


class _Judged:
    """The rows of one setting.

    Args:
        contenders: Models to judge, the run's method first.
        problem: The targets.
        setting: The setting.
        check: Add the row of the check.
    """

    def __init__(
        self,
        contenders: Sequence[Contender[nn.Module]],
        problem: Problem,
        setting: Setting,
        check: bool,
    ) -> None:
        self.problem, self.setting = problem, setting
        self.rows: list[Row] = []
        self.ours: Tensor | None = None
        self.trained: dict[str, Tensor] = {}
        kept: dict[str, Outputs] = {}
        for contender in contenders:
            if contender.model is None:
                title = setting.title
                failed = failed_row(contender.name, title, problem.score, problem.better)
                self.rows.append(failed)
                continue
            found = self._outputs(contender.model)
            self._add(contender.name, found, contender.role)
            if contender.role == "method":
                kept[contender.name] = found
        if check:
            self._check(kept)
        for contender in contenders:
            self._add_controls(contender)

    def _outputs(self, model: nn.Module, condition: Condition = "own") -> Outputs:
        model.eval()
        return self.problem.outputs(model, self.setting, condition)

    def _add(self, name: str, found: Outputs, role: Role) -> Tensor:
        """Add a row, and return its main score of each target."""
        scores = self.problem.scores(self.setting, found.query)
        main = next(iter(scores))
        values = scores[main]
        row = row_of(name, self.setting.title, main, values, self.problem.better, role)
        row["per_context"] = values.tolist()
        row["also"] = {name: summary(its) for name, its in scores.items() if name != main}
        row["also"] |= {f"change of {layer}": summary(its) for layer, its in found.change.items()}
        row["adapt_time_s"] = found.time_s
        if self.ours is not None:
            row["ours_ahead"] = summary(self.ours - values)
        if role == "untrained" and name in self.trained:
            row["trained_ahead"] = summary(self.trained[name] - values)
        self.ours = values if self.ours is None else self.ours
        if role == "method":
            self.trained[name] = values
        self.rows.append(row)
        return values

    def _add_controls(self, contender: Contender[nn.Module]) -> None:
        """Add rows of a method with the condition of another target, and with the mean one."""
        model = contender.model
        if model is None or contender.role != "method" or not model.reads:
            return
        for condition in CONTROLS:
            name = f"{contender.name}, {condition} condition"
            self._add(name, self._outputs(model, condition), "control")

    def _check(self, kept: Mapping[str, Outputs]) -> None:
        """Add the row of all methods, blended by their losses on the support."""
        losses = {
            name: self.problem.support_loss(self.setting, its.support)
            for name, its in kept.items()
            if its.support is not None
        }
        source = self.problem.unadapted
        if source not in losses or len(losses) < 2:
            return
        sharpness = SHARPNESS if self.problem.sharpness is None else self.problem.sharpness
        prior = {name: its for name, its in self.problem.prior.items() if name in losses}
        check = check_on_support(losses, source, prior, sharpness)
        outputs = {name: kept[name] for name in check.names}
        blended = Outputs(
            check.blend({name: its.query for name, its in outputs.items()}),
            None,
            sum(its.time_s for its in outputs.values()),
            {},
        )
        values = self._add(CHECKED, blended, "method")
        row = self.rows[-1]
        row["check"] = {
            "weights": weights_of(check),
            "families": self._by_family(values, self.trained[source]),
        }

    def _by_family(self, values: Tensor, source: Tensor) -> dict[str, list[float]]:
        """Return the mean score of each family, checked and unadapted."""
        families: dict[str, list[int]] = {}
        for number, family in enumerate(self.problem.families):
            families.setdefault(family, []).append(number)
        return {
            family: [values[numbers].mean().item(), source[numbers].mean().item()]
            for family, numbers in families.items()
        }


def weights_of(check: Check) -> dict[str, float]:
    """Return the mean weight of each candidate over targets, the largest first."""
    means = dict(zip(check.names, check.weights.mean(0).tolist(), strict=True))
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def worst_family(row: Row) -> tuple[str, float]:
    """Return the family that a check made worst, and its change relative to the unadapted score.

    The change is positive if the family became worse.

    Example:
        >>> families = {"arrows": [0.9, 0.8], "beetles": [0.4, 0.5]}
        >>> row = {"better": "higher", "check": {"families": families}}
        >>> worst_family(row)
        ('beetles', 0.1999...)
    """
    sign = 1 if row["better"] == "lower" else -1
    changes = {
        family: sign * (checked - source) / max(abs(source), torch.finfo(torch.float).tiny)
        for family, (checked, source) in row["check"]["families"].items()
    }
    worst = max(changes, key=lambda family: changes[family])
    return worst, changes[worst]
