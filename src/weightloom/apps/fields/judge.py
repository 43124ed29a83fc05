"""Evaluation of surrogates: the same functions for every method, controls, and the grid's error.

In:   models, a problem.
Out:  rows of the table, curves of the validation error.
Knows nothing of a method's insides.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from weightloom.apps.app import Contender
from weightloom.apps.experiment import method_folder
from weightloom.apps.fields.config import FieldsOptions
from weightloom.apps.fields.problem import FieldErrors, FieldProblem
from weightloom.runs.metrics import read_rows
from weightloom.runs.record import Role, Row, failed_row, row_of, summary

SCORE = "relative_error"
"""Name of the score: |predicted - true| / |true| over a function's grid."""
GRID = "grid"
"""Name of the row of the solver's own error."""
CPU = "cpu_s"
"""Name in the metrics of the processor time of training, without evaluations, in seconds."""


def judge_fields(
    contenders: Sequence[Contender[Any]],
    problem: FieldProblem,
    curves: Mapping[str, Sequence[Sequence[float]]],
) -> list[Row]:
    """Judge every contender in every setting, with its controls, beside the error of the grid.

    Args:
        contenders: Models to judge, the run's method first.
        problem: Test functions.
        curves: Steps, processor seconds and validation error during training, by method.
    """
    shortest = fewest_steps(curves)
    rows: list[Row] = []
    for setting in problem.settings:
        judged = _JudgedSetting(problem, setting)
        for contender in contenders:
            judged.add(contender)
        for contender in contenders:
            judged.add_controls(contender)
        judged.add_grid()
        rows += judged.rows
    for row in rows:
        curve = curves.get(row["method"])
        if curve and "role" not in row:
            row["also"]["validation error at equal steps"] = {
                "mean": error_at(curve, shortest),
                "ci95": None,
            }
    return rows


class _JudgedSetting:
    """The rows of one setting.

    Args:
        problem: Test functions.
        setting: Name of the setting.
    """

    def __init__(self, problem: FieldProblem, setting: str) -> None:
        self.problem, self.setting = problem, setting
        self.fields = problem.settings[setting]
        self.rows: list[Row] = []
        self.ours: Tensor | None = None
        self.trained: dict[str, Tensor] = {}

    def add(self, contender: Contender[Any]) -> None:
        """Add the row of a contender."""
        if contender.model is None:
            self.rows.append(failed_row(contender.name, self.setting, SCORE, "lower"))
            return
        contender.model.eval()
        found = self.problem.errors(contender.model, self.fields)
        self._add(contender.name, found, contender.role)

    def add_controls(self, contender: Contender[Any]) -> None:
        """Add rows of a method with the condition of another function, and with the mean one."""
        if contender.role != "method" or contender.model is None or not contender.model.reads:
            return
        for name, condition in self.problem.controls(self.fields).items():
            found = self.problem.errors(contender.model, self.fields, condition)
            self._add(f"{contender.name}, {name} condition", found, "control")

    def add_grid(self) -> None:
        """Add the error of the solutions themselves."""
        errors = self.problem.grid_errors(self.fields)
        self.rows.append(row_of(GRID, self.setting, SCORE, errors, "lower", "ceiling"))

    def _add(self, name: str, found: FieldErrors, role: Role) -> None:
        values = found.errors
        row = row_of(name, self.setting, SCORE, values, "lower", role)
        row["per_context"] = values.tolist()
        row["also"] = {"median_error": {"mean": values.median().item(), "ci95": None}}
        row["adapt_time_s"] = found.time_s
        if self.ours is not None:
            row["ours_ahead"] = summary(self.ours - values)
        if role == "untrained" and name in self.trained:
            row["trained_ahead"] = summary(self.trained[name] - values)
        self.ours = values if self.ours is None else self.ours
        if role == "method":
            self.trained[name] = values
        self.rows.append(row)


def curves_of(folder: Path, config: FieldsOptions) -> dict[str, list[list[float]]]:
    """Return the curve of each trained method: steps, processor seconds and validation error.

    Args:
        folder: The run's folder.
        config: Options of the run.
    """
    found: dict[str, list[list[float]]] = {}
    for method in config.methods:
        rows = [its for its in read_rows(method_folder(folder, method, config)) if CPU in its]
        if rows:
            found[method] = [
                [float(its["step"]), its[CPU], its["validation_score"]] for its in rows
            ]
    return found


def fewest_steps(curves: Mapping[str, Sequence[Sequence[float]]]) -> int:
    """Return the steps of the method that took the fewest; 0 without curves."""
    return int(min((curve[-1][0] for curve in curves.values()), default=0))


def error_at(curve: Sequence[Sequence[float]], steps: int) -> float:
    """Return the validation error after so many steps, interpolated between evaluations.

    Example:
        >>> error_at([[10, 0.1, 0.5], [20, 0.2, 0.3]], 15)
        0.4
    """
    earlier = [point for point in curve if point[0] <= steps] or [curve[0]]
    later = [point for point in curve if point[0] >= steps] or [curve[-1]]
    (start, _, first), (end, _, last) = earlier[-1], later[0]
    share = (steps - start) / (end - start) if end > start else 0.0
    return float(first + share * (last - first))
