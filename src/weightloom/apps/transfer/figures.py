"""Report sections of transfer: score against steps, the check, and a problem's own lines."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from weightloom.apps.transfer.words import sentence, steps_of
from weightloom.report.figures import BLUE, GREY, Figure, Key, as_json, mark, plain_layout
from weightloom.report.run import Run
from weightloom.report.section import Section, with_shared
from weightloom.runs.record import competes

SHOTS = re.compile(r"(\d+)-shot")
"""Name of a setting of labelled examples."""
MOST_LINES = 8
"""Maximum number of lines in one plot."""


def sections(run: Run) -> list[Section]:
    """Return the sections of the report, those without data left out."""
    rows = run.record.get("scores") or []
    made = {
        "steps": Section(
            "Score against gradient steps",
            "Each line is one method: its score after gradient steps on the target, from the "
            "parameters that it starts with.",
            step_figures(rows),
        ),
        "shots": Section(
            "Score against labelled examples",
            "Each line is one method, by the labelled examples of each class that it is given.",
            shot_figures(rows),
        ),
        "check": Section(
            "The check on the support",
            "Mean weight of each method, from its own loss on the labelled examples of a target "
            "that it was not adapted to.",
            check_figures(rows),
        ),
        "layers": Section(
            "Size of the change",
            "Norm of the change of each layer, divided by the norm of its weights.",
            layer_figures(rows),
        ),
    }
    for number, plot in enumerate(run.facts.get("plots") or []):
        made[f"own {number}"] = Section(
            plot["heading"], plot["explanation"], [lines(plot["x"], plot["y"], plot["lines"])]
        )
    return with_shared(run, made)


def step_figures(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Plot the score of every method against steps, a figure for each setting that has steps."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in filter(competes, map(dict, rows)):
        setting, steps = steps_of(row["setting"])
        curves.setdefault(setting, {}).setdefault(row["method"], []).append(
            (float(steps), row["mean"])
        )
    return [
        lines("gradient steps", str(rows[0]["name"]), found, setting)
        for setting, found in curves.items()
        if any(len(points) > 1 for points in found.values())
    ]


def shot_figures(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Plot the score of every method against labelled examples, before gradient steps."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in filter(competes, map(dict, rows)):
        if shots := SHOTS.fullmatch(row["setting"]):
            found.setdefault(row["method"], []).append((float(shots[1]), row["mean"]))
    if not any(len(points) > 1 for points in found.values()):
        return []
    return [lines("labelled examples", str(rows[0]["name"]), found)]


def check_figures(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Draw the mean weights of each check as bars."""
    return [
        _bars(
            row["check"]["weights"],
            "weight",
            sentence(row),
            str(row["setting"]),
        )
        for row in rows
        if "check" in row
    ]


def layer_figures(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Draw the relative change of each layer, for the first setting of the first method."""
    found = {
        name.removeprefix("change of "): its["mean"]
        for row in rows[:1]
        for name, its in (row.get("also") or {}).items()
        if name.startswith("change of ")
    }
    if not found:
        return []
    words = f"{rows[0]['method']}, {rows[0]['setting']}."
    return [_bars(found, "change / norm", words, "")]


def lines(
    x: str, y: str, found: Mapping[str, Sequence[Sequence[float]]], title: str = ""
) -> Figure:
    """Plot lines through points.

    Args:
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
        found: Points of each line, (x, y), by its name; the first `MOST_LINES` are drawn.
        title: Title of the figure.
    """
    import plotly.graph_objects as go

    drawn, keys, words = [], [], []
    for number, (name, points) in enumerate(list(found.items())[:MOST_LINES]):
        colour, symbol, sign = mark(number)
        style: dict[str, Any] = {
            "line": {"color": colour, "width": 2},
            "marker": {"symbol": symbol, "size": 7},
        }
        across, up = zip(*sorted(map(tuple, points)), strict=True)
        drawn.append(go.Scatter(x=across, y=up, mode="lines+markers", name=escape(name), **style))
        keys.append(Key(name, sign, colour))
        words.append(f"{name} {up[0]:.3g} to {up[-1]:.3g}")
    left_out = len(found) - len(drawn)
    note = f" {left_out} more lines are in the record." if left_out > 0 else ""
    alt = f"{y} against {x}: {'; '.join(words)}"
    layout = plain_layout(x, y)
    caption = f"{'; '.join(words)}.{note}"
    return Figure(as_json(go.Figure(drawn, layout)), alt, caption, 320, tuple(keys), title)


def _bars(values: Mapping[str, float], axis: str, caption: str, title: str) -> Figure:
    import plotly.graph_objects as go

    names = list(values)[::-1]
    colours = [GREY if name == "source" else BLUE for name in names]
    drawn = go.Bar(
        x=[values[name] for name in names],
        y=[escape(name) for name in names],
        orientation="h",
        marker={"color": colours},
    )
    layout = plain_layout(axis, "")
    layout["margin"] = {"l": 120, "r": 6, "t": 6, "b": 36}
    alt = f"{axis}: " + ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    height = 80 + 24 * len(names)
    return Figure(as_json(go.Figure([drawn], layout)), alt, caption, height, (), title)
