"""What changed in the base network for two tasks side by side.

Bars per parameter, and the largest matrices as maps.
"""

from html import escape
from typing import Any

from torch import Tensor

from weightloom.report.figures import BLUE, GREY, ORANGE, Figure, Key, as_json, plain_layout
from weightloom.report.run import Facts, Run

ROWS_DRAWN = 40
"""Parameters that have bars, those that changed most."""
NAME_LENGTH = 20
"""Longer class names are cut."""
TITLE_LENGTH = 90


def change_bars(run: Run) -> list[Figure]:
    """Plot the relative change of each parameter for two tasks, and the difference between the two."""
    changes = run.facts.get("changes")
    if not changes:
        return []
    import plotly.graph_objects as go

    rows = sorted(changes["rows"], key=lambda row: -max(row["relative"] or [row["apart"]]))[
        :ROWS_DRAWN
    ]
    rows = [row for row in changes["rows"] if row in rows]
    names = [escape(row["name"]) for row in rows]
    kinds = [
        (
            "own value to task 1",
            [row["relative"][0] if row["relative"] else None for row in rows],
            BLUE,
        ),
        (
            "own value to task 2",
            [row["relative"][1] if row["relative"] else None for row in rows],
            ORANGE,
        ),
        ("task 1 to task 2", [row["apart"] for row in rows], GREY),
    ]
    bars = [
        go.Bar(
            y=names,
            x=values,
            name=kind,
            orientation="h",
            marker_color=colour,
            hovertemplate="%{y}: %{x:.3g}",
        )
        for kind, values, colour in kinds
    ]
    layout = plain_layout("relative change", None) | {"barmode": "group"}
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False}
    left = len(changes["rows"]) - len(rows)
    caption = "A change of 1 is as large as the parameter's own value, in root mean square."
    if any(row["relative"] is None for row in rows):
        caption += (
            " What has a grey bar only is written anew for every task, without an own value to be "
            "held against; there 1 is as large as what was written."
        )
    caption += f" The {left} parameters that changed least are left out." if left else ""
    alt = "Relative change: " + "; ".join(_words(row) for row in rows)
    height = 70 + 44 * len(rows)
    return [
        Figure(
            as_json(go.Figure(bars, layout)),
            alt,
            caption,
            height,
            tuple(Key(k, "■", c) for k, _, c in kinds),
        )
    ]


def task_titles(run: Run) -> str:
    """Say which two tasks are held against each other."""
    titles = (run.facts.get("changes") or {}).get("tasks", [])
    return "; ".join(
        f"task {index + 1} is {_cut(title, TITLE_LENGTH)}" for index, title in enumerate(titles)
    )


def change_maps(run: Run) -> list[list[Figure]]:
    """Draw the largest matrices: what was written, or changed, for each of two tasks, and the difference."""
    changes = run.facts.get("changes") or {}
    return [
        _map_row(run.tensors[f"changed_{index}"], about, changes)
        for index, about in enumerate(changes.get("maps", []))
    ]


def _map_row(matrices: Tensor, about: Facts, changes: Facts) -> list[Figure]:
    largest = float(matrices.abs().max()) or 1.0
    what = "change for" if about["own"] else "written for"
    rows, columns = about["shape"]
    cut = matrices.shape[1] < rows or matrices.shape[2] < columns
    caption = f"{rows}x{columns}{f', the first {matrices.shape[1]}x{matrices.shape[2]} shown' if cut else ''}"
    names = changes.get("class_names") if about["by_class"] else None
    titles = [f"{about['name']}, {what} task {task + 1}" for task in range(2)] + [
        f"{about['name']}, difference"
    ]
    values = [*matrices, matrices[0] - matrices[1]]
    labels = [names[0], names[1], None] if names else [None, None, None]
    return [
        _heat_map(value, title, caption, largest, label)
        for value, title, label in zip(values, titles, labels, strict=True)
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
    alt = f"Heat map of {title}, {caption}, values from {float(value.min()):.3g} to {float(value.max()):.3g}"
    return Figure(drawn, alt, caption, 220, (), title)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _words(row: Facts) -> str:
    own = (
        ", ".join(f"{value:.3g}" for value in row["relative"])
        if row["relative"]
        else "no own value"
    )
    return f"{row['name']} {own}, between tasks {row['apart']:.3g}"
