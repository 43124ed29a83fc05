"""Generated parameters of two tasks, compared: bars per parameter, and the largest matrices.

In:   a run that holds ``changes``.
Out:  figures.
Knows nothing of how the parameters were made.
"""

from html import escape
from typing import Any

from torch import Tensor

from weightloom.report.figures import BLUE, GREY, ORANGE, Figure, Key, as_json, plain_layout
from weightloom.report.run import Facts, Run

ROWS_DRAWN = 40
"""Maximum number of parameters with bars; those that changed most are kept."""
NAME_LENGTH = 20
"""Maximum length of a class name; longer ones are cut."""
TITLE_LENGTH = 90
"""Maximum length of the title of a task; longer ones are cut."""
CHANGE = "A change of 1 is as large as the parameter's own value, in root mean square."
WRITTEN = (
    "Parameters with a grey bar only are generated for each task without an own value to compare "
    "with; there, 1 is as large as the generated value."
)


def change_bars(run: Run) -> list[Figure]:
    """Plot the relative change of each parameter for two tasks, and their difference."""
    changes = run.facts.get("changes")
    if not changes:
        return []
    import plotly.graph_objects as go

    rows = _most_changed(changes["rows"])
    names = [escape(row["name"]) for row in rows]
    series = _series(rows)
    style: dict[str, Any] = {"orientation": "h", "hovertemplate": "%{y}: %{x:.3g}"}
    bars = [
        go.Bar(y=names, x=values, name=key.name, marker_color=key.colour, **style)
        for key, values in series
    ]
    layout = plain_layout("relative change", None) | {"barmode": "group"}
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False}
    return [
        Figure(
            as_json(go.Figure(bars, layout)),
            "Relative change: " + "; ".join(_words(row) for row in rows),
            _bars_caption(rows, len(changes["rows"]) - len(rows)),
            70 + 44 * len(rows),
            tuple(key for key, _ in series),
        )
    ]


def task_titles(run: Run) -> str:
    """Return the titles of the two tasks compared, as in "task 1 is a; task 2 is b"."""
    titles = (run.facts.get("changes") or {}).get("tasks", [])
    return "; ".join(
        f"task {index + 1} is {_cut(title, TITLE_LENGTH)}" for index, title in enumerate(titles)
    )


def change_maps(run: Run) -> list[list[Figure]]:
    """Draw the largest generated matrices of two tasks as heat maps.

    Returns:
        A row for each matrix that the run kept (none without generated matrices): task 1, task 2
        and their difference.
    """
    changes = run.facts.get("changes") or {}
    return [
        _map_row(run.tensors[f"changed_{index}"], about, changes)
        for index, about in enumerate(changes.get("maps", []))
    ]


def _most_changed(rows: list[Facts]) -> list[Facts]:
    """Return the `ROWS_DRAWN` parameters that changed most, in the order of the network."""
    by_change = sorted(rows, key=lambda row: -max(row["relative"] or [row["apart"]]))
    kept = by_change[:ROWS_DRAWN]
    return [row for row in rows if row in kept]


def _series(rows: list[Facts]) -> list[tuple[Key, list[float | None]]]:
    """Return the bars of each colour; changes from the own values only if there are own values."""
    series: list[tuple[Key, list[float | None]]] = []
    if any(row["relative"] for row in rows):
        for task, colour in enumerate((BLUE, ORANGE)):
            values = [row["relative"][task] if row["relative"] else None for row in rows]
            series.append((Key(f"own value to task {task + 1}", "■", colour), values))
    series.append((Key("task 1 to task 2", "■", GREY), [row["apart"] for row in rows]))
    return series


def _bars_caption(rows: list[Facts], left: int) -> str:
    """Explain the unit of the bars, and name the number of parameters left out."""
    has_own = {row["relative"] is not None for row in rows}
    parts = [CHANGE] * (True in has_own) + [WRITTEN] * (False in has_own)
    if left:
        parts.append(f"The {left} parameters that changed least are left out.")
    return " ".join(parts)


def _map_row(matrices: Tensor, about: Facts, changes: Facts) -> list[Figure]:
    largest = float(matrices.abs().max()) or 1.0
    kind = "change for" if about["own"] else "written for"
    rows, columns = about["shape"]
    height, width = matrices.shape[1:]
    caption = f"{rows}x{columns}"
    if (height, width) != (rows, columns):
        caption += f", the first {height}x{width} shown"
    first, second = (changes.get("class_names") if about["by_class"] else None) or (None, None)
    drawn = (
        (matrices[0], f"{kind} task 1", first),
        (matrices[1], f"{kind} task 2", second),
        (matrices[0] - matrices[1], "difference", None),
    )
    return [
        _heat_map(value, f"{about['name']}, {title}", caption, largest, labels)
        for value, title, labels in drawn
    ]


def _heat_map(
    value: Tensor, title: str, caption: str, largest: float, labels: list[str] | None
) -> Figure:
    import plotly.graph_objects as go

    cells = [[float(f"{cell:.3g}") for cell in row] for row in value.tolist()]
    scale: dict[str, Any] = {
        "colorscale": "RdBu",
        "zmin": -largest,
        "zmax": largest,
        "reversescale": True,
    }
    bar = {"thickness": 8, "outlinewidth": 0, "nticks": 5}
    layout = plain_layout(None, None)
    layout["margin"] = {"l": 30, "r": 4, "t": 4, "b": 24}
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False, "nticks": 6}
    layout["xaxis"] |= {"showgrid": False, "nticks": 6}
    if labels:
        text = [escape(_cut(name, NAME_LENGTH)) for name in labels]
        layout["yaxis"] |= {"tickvals": list(range(len(cells))), "ticktext": text[: len(cells)]}
    drawn = as_json(go.Figure([go.Heatmap(z=cells, colorbar=bar, **scale)], layout))
    alt = (
        f"Heat map of {title}, {caption}, values from {float(value.min()):.3g} to "
        f"{float(value.max()):.3g}"
    )
    return Figure(drawn, alt, caption, 220, (), title)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _words(row: Facts) -> str:
    """Write the changes of one parameter for the text alternative."""
    own = ", ".join(f"{value:.3g}" for value in row["relative"] or ()) or "no own value"
    return f"{row['name']} {own}, between tasks {row['apart']:.3g}"
