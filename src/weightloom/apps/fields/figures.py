"""Report sections of fields: error against processor time, maps of solutions, finer grids.

In:   trained models and a problem; later, a run.
Out:  tensors and facts to draw from; the sections.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from weightloom.apps.app import Shown
from weightloom.apps.fields.problem import IN_RANGE, FieldProblem, predict_grid
from weightloom.report.figures import Figure, Key, as_json, mark, plain_layout
from weightloom.report.run import Facts, Run
from weightloom.report.section import Section, with_shared
from weightloom.runs.record import competes
from weightloom.tasks.fields import Fields

MAPPED = 2
"""Functions of each setting drawn as maps: the first, and that of the smallest viscosity."""
FINER = 4
"""Positions and times per one of the training grid, in the drawing at a finer resolution."""
SCALE: dict[str, Any] = {"colorscale": "RdBu", "reversescale": True}
PERCENT = 100


def shown(models: Mapping[str, Any], problem: FieldProblem, early: bool) -> Shown:
    """Return solutions and predictions to draw.

    Args:
        models: Models by method, the run's method first.
        problem: The solutions.
        early: Use validation functions.
    """
    settings = {IN_RANGE: problem.validation} if early else problem.settings
    tensors: dict[str, Tensor] = {}
    for setting, fields in settings.items():
        tensors[f"inputs, {setting}"] = fields.inputs.clone()
        chosen = sorted({0, int(fields.inputs[:, 1].argmin())})[:MAPPED]
        tensors[f"truth, {setting}"] = fields.values[chosen]
        for name, model in models.items():
            predicted = predict_grid(model, fields.inputs[chosen], fields.x, fields.t)
            tensors[f"{name}, {setting}"] = predicted.contiguous()
    tensors |= _finer(next(iter(models.values())), problem, settings[IN_RANGE])
    grid = {"x": float(problem.validation.x[-1]), "t": float(problem.validation.t[-1])}
    return tensors, {"mapped": list(settings), "models": list(models), "grid": grid}


def _finer(model: Any, problem: FieldProblem, fields: Fields) -> dict[str, Tensor]:
    """Return the function of the smallest viscosity on a finer grid, true and predicted."""
    hardest = int(fields.inputs[:, 1].argmin())
    inputs = fields.inputs[hardest : hardest + 1]
    times, points = (FINER * (len(fields.t) - 1) + 1, FINER * len(fields.x))
    exact = problem.family.solve(inputs.double(), points=512, steps=3 * (times - 1), times=times)
    x = torch.arange(points) * (2 * math.pi / points)
    t = torch.linspace(0, float(fields.t[-1]), times)
    found = predict_grid(model, inputs, x, t)[0]
    return {"finer truth": exact[0, :, :: 512 // points].float().contiguous(), "finer": found}


def sections(run: Run) -> list[Section]:
    """Return the sections of the report, those without data left out."""
    curves = (run.record.get("facts") or {}).get("curves") or {}
    made = {
        "curves": Section(
            "Error against processor time",
            "Relative error on validation functions, a line per trained method. The first plot is "
            "by processor seconds of training, the second by its steps.",
            curve_figures(curves),
        ),
        "maps": Section(
            "Solutions, predictions and their difference",
            "Time runs upwards, the circle from left to right. The functions are the first of each "
            "setting, and that of the smallest viscosity.",
            rows=map_rows(run),
        ),
        "finer": Section(
            "Finer than the training grid",
            f"A network of positions is asked at {FINER} times as many positions and times as it "
            "was trained on.",
            rows=finer_rows(run),
        ),
        "coefficient": Section(
            "Error against the viscosity",
            "Each mark is a function.",
            coefficient_figures(run),
        ),
    }
    return with_shared(run, made)


def curve_figures(curves: Mapping[str, Sequence[Sequence[float]]]) -> list[Figure]:
    """Plot the validation error of every method against processor seconds, and against steps."""
    if not curves:
        return []
    return [
        _lines(curves, column, axis) for column, axis in ((1, "processor seconds"), (0, "steps"))
    ]


def _lines(curves: Mapping[str, Sequence[Sequence[float]]], column: int, axis: str) -> Figure:
    import plotly.graph_objects as go

    drawn, keys, words = [], [], []
    for number, (name, points) in enumerate(curves.items()):
        colour, symbol, sign = mark(number)
        across = [point[column] for point in points]
        up = [PERCENT * point[2] for point in points]
        style: dict[str, Any] = {
            "line": {"color": colour, "width": 2},
            "marker": {"symbol": symbol, "size": 6},
        }
        drawn.append(go.Scatter(x=across, y=up, mode="lines+markers", name=escape(name), **style))
        keys.append(Key(name, sign, colour))
        words.append(f"{name} {up[-1]:.2f} % after {across[-1]:,.0f}")
    layout = plain_layout(axis, "relative error, %", log_y=True)
    alt = f"Relative error against {axis}: {'; '.join(words)}"
    return Figure(as_json(go.Figure(drawn, layout)), alt, f"{'; '.join(words)}.", 320, tuple(keys))


def map_rows(run: Run) -> list[list[Figure]]:
    """Draw maps: a row of truth and predictions, and one of differences, for each function."""
    rows = []
    for setting in run.facts.get("mapped") or []:
        truth = run.tensors[f"truth, {setting}"]
        for number, true in enumerate(truth):
            found = {
                name: run.tensors[f"{name}, {setting}"][number] for name in run.facts["models"]
            }
            rows += _map_rows(run.facts["grid"], setting, true, found)
    return rows


def _map_rows(
    grid: Facts, setting: str, truth: Tensor, found: Mapping[str, Tensor]
) -> list[list[Figure]]:
    largest = float(truth.abs().max()) or 1.0
    off = {name: values - truth for name, values in found.items()}
    widest = max(float(its.abs().max()) for its in off.values()) or 1.0
    values = [_map(grid, truth, f"truth, {setting}", largest)]
    values += [_map(grid, its, name, largest) for name, its in found.items()]
    size = truth.square().sum().sqrt()
    differences = [
        _map(
            grid, its, f"{name}: {PERCENT * float(its.square().sum().sqrt() / size):.2f} %", widest
        )
        for name, its in off.items()
    ]
    return [values, differences]


def finer_rows(run: Run) -> list[list[Figure]]:
    """Draw a function on a finer grid: truth, prediction and difference."""
    if "finer" not in run.tensors:
        return []
    truth, found = run.tensors["finer truth"], run.tensors["finer"]
    largest = float(truth.abs().max()) or 1.0
    off = found - truth
    share = PERCENT * float(off.square().sum().sqrt() / truth.square().sum().sqrt())
    grid = run.facts["grid"]
    return [
        [
            _map(grid, truth, "truth", largest),
            _map(grid, found, run.facts["models"][0], largest),
            _map(grid, off, f"difference: {share:.2f} %", float(off.abs().max()) or 1.0),
        ]
    ]


def _map(grid: Facts, values: Tensor, title: str, largest: float) -> Figure:
    import plotly.graph_objects as go

    times, points = values.shape
    heat = go.Heatmap(
        x=[grid["x"] * place / (points - 1) for place in range(points)],
        y=[grid["t"] * place / (times - 1) for place in range(times)],
        z=[[round(cell, 4) for cell in row] for row in values.tolist()],
        zmin=-largest,
        zmax=largest,
        colorbar={"thickness": 8, "outlinewidth": 0},
        **SCALE,
    )
    alt = f"Heat map of {title}, values from {float(values.min()):.3g} to {float(values.max()):.3g}"
    layout = plain_layout("x", "t")
    layout["margin"] = {"l": 30, "r": 4, "t": 4, "b": 24}
    for axis in ("xaxis", "yaxis"):
        layout[axis] |= {"showgrid": False, "nticks": 4}
    return Figure(as_json(go.Figure([heat], layout)), alt, "", 200, (), title)


def coefficient_figures(run: Run) -> list[Figure]:
    """Plot the error of each function against its viscosity, a plot per setting."""
    return [
        _scatter(run.tensors[f"inputs, {setting}"][:, 1].exp().tolist(), found, setting)
        for setting in run.facts.get("mapped") or []
        if (found := _errors_of(run, setting))
    ]


def _errors_of(run: Run, setting: str) -> dict[str, list[float]]:
    """Return the error of each function by method, where the run kept them."""
    rows = filter(competes, run.record.get("scores") or [])
    count = len(run.tensors[f"inputs, {setting}"])
    return {
        row["method"]: row["per_context"]
        for row in rows
        if row["setting"] == setting and len(row.get("per_context") or []) == count
    }


def _scatter(viscosity: list[float], found: Mapping[str, list[float]], setting: str) -> Figure:
    import plotly.graph_objects as go

    drawn, keys = [], []
    for number, (name, errors) in enumerate(found.items()):
        colour, symbol, sign = mark(number)
        style = {"color": colour, "symbol": symbol, "size": 5, "opacity": 0.7}
        up = [PERCENT * error for error in errors]
        drawn.append(go.Scatter(x=viscosity, y=up, mode="markers", name=escape(name), marker=style))
        keys.append(Key(name, sign, colour))
    layout = plain_layout("viscosity", "relative error, %", log_y=True)
    layout["xaxis"] |= {"type": "log", "tickformat": "~g"}
    alt = f"Relative error of each function against its viscosity, {setting}"
    caption = "Both axes are logarithmic."
    return Figure(as_json(go.Figure(drawn, layout)), alt, caption, 340, tuple(keys), setting)
