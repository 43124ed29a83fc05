"""Plots of diagnostics in the style of the report. Plotly is imported when one is drawn."""

from typing import Any

from weightloom.diagnostics.rank import EffectiveRank
from weightloom.diagnostics.response import LayerResponse
from weightloom.diagnostics.scale import HIGHEST, LOWEST, ScaleCheck
from weightloom.diagnostics.use import ConditionUse

RATIOS_SHOWN = (1e-6, 1e6)
"""Bounds of plotted ratios; values beyond them, such as zero and infinity, lie on the edge."""


def plot_condition_use(found: ConditionUse) -> Any:
    """Plot the loss with right, shuffled and averaged conditions, with 95 % intervals."""
    from weightloom.report.figures import BLUE, GREY

    arms = {"right": found.right, "shuffled": found.shuffled, "averaged": found.averaged}
    bars = {
        "type": "data",
        "array": [arm.ci95 for arm in arms.values()],
        "thickness": 1.5,
        "width": 5,
    }
    points = {
        "x": list(arms),
        "y": [arm.mean for arm in arms.values()],
        "error_y": bars,
        "mode": "markers",
    }
    marker = {"color": [BLUE, GREY, GREY], "size": 10}
    return _figure(
        [points | {"marker": marker}], "condition", f"loss over {found.tasks} tasks", found.verdict
    )


def plot_response(found: LayerResponse) -> Any:
    """Plot each parameter's relative spread over tasks and its relative step, in plotly."""
    from weightloom.report.figures import BLUE, ORANGE

    names = [row.name for row in found.rows]
    kinds = [
        (
            "spread over tasks",
            [row.response for row in found.rows],
            {"color": BLUE, "symbol": "circle"},
        ),
        (
            "step per unit of condition",
            [row.sensitivity for row in found.rows],
            {"color": ORANGE, "symbol": "diamond"},
        ),
    ]
    data = [
        {
            "x": list(map(_shown, values)),
            "y": names,
            "name": name,
            "mode": "markers",
            "marker": marker | {"size": 10},
        }
        for name, values, marker in kinds
    ]
    figure = _figure(data, "relative to the parameter's size", None, "Response to the condition")
    figure.update_xaxes(type="log", tickformat="~g")
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.25})


def plot_rank(found: EffectiveRank) -> Any:
    """Plot the cumulative share of the variance over principal components, in plotly."""
    from weightloom.report.figures import BLUE, GREY

    data = []
    for row in (*found.rows, found.all):
        held = [sum(row.shares[: count + 1]) for count in range(len(row.shares))]
        line = {"color": BLUE, "width": 3} if row is found.all else {"color": GREY, "width": 1.5}
        place = {
            "x": list(range(1, len(held) + 1)),
            "y": held,
            "name": f"{row.name}: rank {row.rank:.1f}",
        }
        data.append(place | {"mode": "lines+markers", "line": line, "marker": {"size": 4}})
    return _figure(
        data, "components", "share of the variance", f"Effective rank {found.all.rank:.1f} over all"
    )


def plot_scale(found: ScaleCheck) -> Any:
    """Plot the ratio of every layer's scale to the base's own, a point per task, in plotly."""
    from weightloom.report.figures import BLUE, GREY

    layers = [row.layer for row in found.rows for _ in row.ratios]
    ratios = [_shown(ratio) for row in found.rows for ratio in row.ratios]
    points = {
        "x": layers,
        "y": ratios,
        "mode": "markers",
        "marker": {"color": BLUE, "size": 7, "opacity": 0.6},
    }
    figure = _figure([points], "layer", "scale relative to the base's own", "Activation scale")
    figure.update_yaxes(type="log", tickformat="~g")
    for bound in (LOWEST, HIGHEST):
        figure.add_hline(bound, line_color=GREY, line_dash="dash", line_width=1)
    return figure


def _figure(data: list[dict[str, Any]], x_title: str, y_title: str | None, title: str) -> Any:
    import plotly.graph_objects as go

    from weightloom.report.figures import plain_layout

    layout = plain_layout(x_title, y_title) | {"title": {"text": title, "font": {"size": 14}}}
    layout["margin"] = layout["margin"] | {"t": 44}
    return go.Figure([go.Scatter(**points) for points in data], layout)


def _shown(ratio: float) -> float:
    return min(max(ratio, RATIOS_SHOWN[0]), RATIOS_SHOWN[1])
