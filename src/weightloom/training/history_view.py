"""A history as a plot and as a table, for notebooks.

In:   the rows of a history.
Out:  a plotly figure; HTML.
Knows nothing of the model. Plotly is imported when a figure is drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from weightloom.errors import ConfigError
from weightloom.report.figures import BLUE, ORANGE, plain_layout
from weightloom.runs.metrics import Row
from weightloom.texts import html_table

COLOURS = (BLUE, ORANGE, "#15803d", "#9333ea", "#b91c1c")
"""Colours of turns, in the order of their first rows."""


def history_figure(rows: Sequence[Row]) -> Any:
    """Plot the loss against steps, and validation scores below it, as a plotly figure.

    Args:
        rows: Rows of a `History`. Each turn has a curve of its own.

    Raises:
        ConfigError: If no row holds a loss or a validation score.
    """
    from plotly.subplots import make_subplots

    losses, scores = curves(rows, "loss"), _scores(rows)
    if not losses and not scores:
        raise ConfigError(
            "The history has no row with a loss or a score. A training logs one every `log_every` "
            "steps. Plot the history that `train` returned."
        )
    count = 1 + len(scores)
    figure = make_subplots(rows=count, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for (name, points), colour in zip(losses.items(), COLOURS * len(losses), strict=False):
        figure.add_scatter(**points, name=name, line_color=colour, row=1, col=1)
    for number, (name, points) in enumerate(scores.items(), start=2):
        figure.add_scatter(**points, name=f"validation {name}", line_color=BLUE, row=number, col=1)
        figure.update_yaxes(title_text=f"validation {name}", row=number, col=1)
    scale = {"type": "log", "tickformat": "~g"} if _positive(losses) else {}
    figure.update_yaxes(title_text="loss", row=1, col=1, **scale)
    figure.update_xaxes(title_text="step", row=count, col=1)
    margin = plain_layout("step", "loss")["margin"]
    return figure.update_layout(showlegend=len(losses) > 1, margin=margin)


def _scores(rows: Sequence[Row]) -> dict[str, dict[str, list[Any]]]:
    """Return the curve of each validation score by its name."""
    scored = [row for row in rows if "validation_score" in row]
    by_name: dict[str, list[Row]] = {}
    for row in scored:
        by_name.setdefault(str(row.get("score_name", "score")), []).append(row)
    return {name: curves(its, "validation_score")[""] for name, its in by_name.items()}


def _positive(losses: Mapping[str, Mapping[str, list[Any]]]) -> bool:
    return bool(losses) and all(value > 0 for points in losses.values() for value in points["y"])


def curves(rows: Sequence[Row], metric: str) -> dict[str, dict[str, list[Any]]]:
    """Return steps ``x`` and values ``y`` of a metric by turn; without turns the name is empty.

    Example:
        >>> curves([{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}], "loss")
        {'': {'x': [10, 20], 'y': [2.0, 1.0]}}
    """
    found: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        if metric in row:
            points = found.setdefault(str(row.get("turn", "")), {"x": [], "y": []})
            points["x"].append(row["step"])
            points["y"].append(row[metric])
    return found


def history_table(rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    """Return an HTML table of the first, last and lowest value of every metric.

    Args:
        rows: Rows of a `History`.
        facts: Printed below the table, by name.
    """
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "wall_time_s") and isinstance(value, int | float):
                values.setdefault(f"{row['turn']}/{name}" if "turn" in row else name, []).append(
                    float(value)
                )
    cells = [
        (name, *(f"{value:.4g}" for value in (its[0], its[-1], min(its), max(its))))
        for name, its in values.items()
    ]
    below = ", ".join(f"{name} {value}" for name, value in facts.items())
    return html_table([("metric", "first", "last", "lowest", "highest"), *cells], below)
