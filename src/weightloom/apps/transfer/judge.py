"""Evaluation of transfer methods: the same targets for every method, and the check on the support.

In:   models, a problem.
Out:  rows of the table.
Knows nothing of a single problem.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from weightloom.apps.app import Contender
from weightloom.apps.transfer.problems.problem import Condition, Outputs, Setting, TransferProblem
from weightloom.learners.check import SHARPNESS, Check, check_on_support
from weightloom.runs.record import Role, Row, failed_row, row_of, summary

CHECKED = "checked"
"""Name of the row of all methods, weighed by the check."""
LEAST = 0.01
"""Smallest score that a change is relative to, as a share of the mean over families."""
CONTROLS: tuple[Condition, ...] = ("shuffled", "mean")
"""Conditions of the controls."""


def score_all(
    contenders: Sequence[Contender[nn.Module]], problem: TransferProblem, check: bool
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
        problem: TransferProblem,
        setting: Setting,
        check: bool,
    ) -> None:
        self.problem, self.setting = problem, setting
        self.rows: list[Row] = []
        self.ours: Tensor | None = None
        self.trained: dict[str, Tensor] = {}
        self.kept: dict[str, Outputs] = {}
        methods = [its for its in contenders if its.role == "method"]
        for contender in methods:
            self._judge(contender)
        if check:
            self._check()
        for contender in contenders:
            if contender.role != "method":
                self._judge(contender)
        for contender in methods:
            self._add_controls(contender)

    def _judge(self, contender: Contender[nn.Module]) -> None:
        """Add the row of a contender."""
        if contender.model is None:
            title, problem = self.setting.title, self.problem
            self.rows.append(failed_row(contender.name, title, problem.score, problem.better))
            return
        found = self._outputs(contender.model)
        self._add(contender.name, found, contender.role)
        if contender.role == "method":
            self.kept[contender.name] = found

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
        if model is None or not model.reads:
            return
        for condition in CONTROLS:
            name = f"{contender.name}, {condition} condition"
            self._add(name, self._outputs(model, condition), "control")

    def _check(self) -> None:
        """Add the row of all methods, blended by their losses on the support."""
        source, kept = self.problem.unadapted, self.kept
        if source not in kept or kept[source].support is None:
            return
        check = self._checked(kept)
        chosen = {name: kept[name] for name in check.names}
        query = check.blend({name: its.query for name, its in chosen.items()})
        time_s = sum(its.time_s for its in chosen.values())
        blended = Outputs(query, None, time_s, {})
        values = self._add(CHECKED, blended, "method")
        row = self.rows[-1]
        row["check"] = {
            "weights": weights_of(check),
            "families": self._by_family(values, self.trained[source]),
        }

    def _checked(self, kept: Mapping[str, Outputs]) -> Check:
        """Weigh the methods with outputs for the support."""
        problem, setting = self.problem, self.setting
        supports = {name: its.support for name, its in kept.items()}
        losses = {
            name: problem.support_loss(setting, support)
            for name, support in supports.items()
            if support is not None
        }
        prior = {name: its for name, its in problem.prior.items() if name in losses}
        sharpness = SHARPNESS if problem.sharpness is None else problem.sharpness
        return check_on_support(losses, problem.unadapted, prior, sharpness)

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
    families = row["check"]["families"]
    least = LEAST * sum(abs(source) for _, source in families.values()) / len(families)
    changes = {
        family: sign * (checked - source) / max(abs(source), least, LEAST)
        for family, (checked, source) in families.items()
    }
    worst = max(changes, key=lambda family: changes[family])
    return worst, changes[worst]
