"""Plots of regression tasks: predicted curves and true ones, or predictions against the truth."""

import torch
from torch import Tensor

from weightloom.report.figures import BLUE, GREY, ORANGE, Figure, Key, as_json, mark, plain_layout
from weightloom.report.run import Run
from weightloom.report.section import CurveRow

TASKS_DRAWN = 4
"""Maximum number of regression tasks shown, one row each."""


def curve_rows(run: Run, prefix: str = "") -> list[CurveRow]:
    """Plot predicted curves against the truth: a row per task, a panel per shot count.

    Args:
        run: The run.
        prefix: Prefix of the tensors' names: ``"worst_"`` for the worst tasks.
    """
    if f"{prefix}curve_predicted" not in run.tensors:
        return []
    tensors = {
        name.removeprefix(prefix): value
        for name, value in run.tensors.items()
        if name.startswith(prefix)
    }
    tasks, shots = len(tensors["curve_predicted"]), run.facts[f"{prefix}shots"]
    tensors["curve_x"] = tensors["curve_x"].expand(tasks, -1)
    names = run.facts.get(f"{prefix}titles") or []
    rows = []
    for task in range(min(TASKS_DRAWN, tasks)):
        title = f"Task {task + 1}{f': {names[task]}' if names else ''}"
        if f"{prefix}scores" in run.tensors:
            title += f", error {float(tensors['scores'][task]):.3g}"
        its = {name: value[task] for name, value in tensors.items() if len(value) == tasks}
        rows.append(_curve_row(title, its, shots))
    return rows


def scatter(run: Run) -> list[Figure]:
    """Plot predictions against the truth for tasks with several inputs; else empty."""
    if "scatter_true" not in run.tensors:
        return []
    points = ("query points", run.tensors["scatter_true"], run.tensors["scatter_predicted"])
    title = f"Predicted from {run.facts['scatter_shots']} points against the truth"
    caption = (
        "Each mark is a query point of a task. On the grey line the prediction is exact; the "
        "distance from it is the error."
    )
    return [_scatter([points], title, caption)]


def worst_scatter(run: Run) -> list[Figure]:
    """Plot predictions against the truth for the tasks of largest error, if inputs are several."""
    if "worst_true" not in run.tensors:
        return []
    scores, names = run.tensors["worst_scores"].tolist(), run.facts["worst_titles"]
    labels = [f"{name}, error {score:.3g}" for name, score in zip(names, scores, strict=True)]
    groups = list(
        zip(labels, run.tensors["worst_true"], run.tensors["worst_predicted"], strict=True)
    )
    return [
        _scatter(
            groups,
            "Predicted against true values of the worst tasks",
            "Each mark is a query point.",
        )
    ]


def _curve_row(title: str, its: dict[str, Tensor], shots: list[int]) -> CurveRow:
    there = its.get("support_mask", torch.ones_like(its["support_y"], dtype=torch.bool))
    truth = its.get("curve_y", its.get("query_y"))
    assert truth is not None
    shown = torch.cat([truth, *its["curve_predicted"], its["support_y"][there]])
    margin = 0.08 * float(shown.max() - shown.min()) or 1.0
    heights = [float(shown.min()) - margin, float(shown.max()) + margin]
    panels = []
    for index, count in enumerate(shots):
        heading = f"{count} point{'s' if count > 1 else ''}"
        if "curve_y" in its and "scores" not in its:
            heading += (
                f" · error {float((its['curve_predicted'][index] - truth).square().mean()):.2g}"
            )
        panels.append((heading, _curve_panel(title, its, there, index, count, heights)))
    return CurveRow(title, panels)


def _curve_panel(
    title: str, its: dict[str, Tensor], there: Tensor, index: int, count: int, heights: list[float]
) -> Figure:
    import plotly.graph_objects as go

    x, predicted = its["curve_x"].tolist(), its["curve_predicted"][index].tolist()
    support_x, support_y = (
        its[name][:count][there[:count]].tolist() for name in ("support_x", "support_y")
    )
    if "curve_y" in its:
        style = {"color": GREY, "width": 6}
        truth = go.Scatter(
            x=x, y=its["curve_y"].tolist(), mode="lines", name="truth", line=style, opacity=0.55
        )
    else:
        points = {"color": GREY, "size": 8}
        query = [its[name].tolist() for name in ("query_x", "query_y")]
        truth = go.Scatter(x=query[0], y=query[1], mode="markers", name="truth", marker=points)
    lines = [
        truth,
        go.Scatter(
            x=x, y=predicted, mode="lines", name="predicted", line={"color": BLUE, "width": 2}
        ),
        go.Scatter(
            x=support_x,
            y=support_y,
            mode="markers",
            name="support",
            marker={"color": ORANGE, "size": 8},
        ),
    ]
    layout = plain_layout(None, None)
    layout["margin"] = {"l": 26, "r": 4, "t": 4, "b": 20}
    layout["yaxis"] |= {"range": heights, "nticks": 4}
    aside = 0.03 * (x[-1] - x[0])
    layout["xaxis"] |= {"range": [x[0] - aside, x[-1] + aside], "nticks": 4}
    layout["font"] = {"size": 10}
    alt = f"{title}: the truth and the curve predicted from {count} support points"
    return Figure(as_json(go.Figure(lines, layout)), alt, "", 150)


def _scatter(groups: list[tuple[str, Tensor, Tensor]], title: str, caption: str) -> Figure:
    import plotly.graph_objects as go

    truths = torch.cat([truth for _, truth, _ in groups])
    ends = [float(truths.min()), float(truths.max())]
    marks = [
        go.Scatter(x=ends, y=ends, mode="lines", line={"color": GREY, "width": 2}, hoverinfo="skip")
    ]
    keys = []
    for index, (name, truth, predicted) in enumerate(groups):
        colour, symbol, sign = mark(index)
        style = {"color": colour, "symbol": symbol, "size": 6, "opacity": 0.6}
        marks.append(
            go.Scatter(x=truth.tolist(), y=predicted.tolist(), mode="markers", marker=style)
        )
        keys.append(Key(name, sign, colour))
    drawn = as_json(go.Figure(marks, plain_layout("true value", "predicted value")))
    return Figure(drawn, title, caption, 360, tuple(keys) if len(keys) > 1 else (), title)
