"""The table that a run prints: a row per method and setting, or a column per setting where there are many.

In:   rows of a record.
Out:  lines on the terminal.
Knows nothing of any application.
"""

import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from weightloom.runs.record import competes, label
from weightloom.runs.words import best_of, score_text, time_text

HEADING = 11
"""Letters of a line of a heading."""
MOST_BLOCKS = 2
"""Settings that are printed one below the other; more stand side by side."""


def print_table(scores: list[dict[str, Any]], unseen: str, columns: Sequence[str] = ()) -> None:
    """Print the score of every method in every setting with its 95 % interval.

    Args:
        scores: As in a record.
        unseen: Heading, behind the number of tasks, as in "tasks never seen in training".
        columns: Further scores that have a column, where any row has them.
    """
    if len({row["setting"] for row in scores}) > MOST_BLOCKS:
        _print_wide(scores, unseen)
        return
    name, digits = scores[0]["name"], 4 if scores[0]["better"] == "lower" else 3
    others = [other for other in columns if any(other in (row.get("also") or {}) for row in scores)]
    calibrated = any("calibration" in row for row in scores)
    timed = any(row.get("adapt_time_s") for row in scores)
    table = Table(title=f"{scores[0]['tasks']:,} {unseen}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(
        "setting", min_width=8
    )  # words wrap where a terminal is narrow, numbers never do
    table.add_column("method", min_width=14)
    heads = [f"{name} ± 95 %", *(other.replace("_", " ") for other in others)]
    for column in (*heads, *(["ece"] if calibrated else []), *(["adapts in"] if timed else [])):
        table.add_column(
            column if column == heads[0] else fill(column, HEADING - 2),
            justify="right",
            no_wrap=True,
        )
    for number, row in enumerate(scores):
        new = number == 0 or row["setting"] != scores[number - 1]["setting"]
        also = row.get("also") or {}
        table.add_row(
            row["setting"] if new else "",
            label(row),
            _score(row, digits),
            *(_number(also[other]["mean"]) if other in also else "" for other in others),
            *(
                [f"{row['calibration']['ece']:.3f}" if "calibration" in row else ""]
                if calibrated
                else []
            ),
            *([time_text(row.get("adapt_time_s"))] if timed else []),
            end_section=number + 1 == len(scores)
            or scores[number + 1]["setting"] != row["setting"],
        )
    Console().print(table)


def _print_wide(scores: list[dict[str, Any]], unseen: str) -> None:
    """Print one row per method and one column per setting.

    The best is bold, controls and ceilings come last.
    """
    digits = 4 if scores[0]["better"] == "lower" else 3
    settings = list(dict.fromkeys(row["setting"] for row in scores))
    names = dict.fromkeys(label(row) for row in scores)
    at = {(label(row), row["setting"]): row for row in scores}
    rivals = {label(row) for row in scores if competes(row)}
    best = {
        setting: best_of([at[name, setting] for name in names if (name, setting) in at])
        for setting in settings
    }
    timed = any(row.get("adapt_time_s") for row in scores)
    title = f"{scores[0]['name']} over {scores[0]['tasks']:,} {unseen}, ± 95 %"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("method")
    for column in (*settings, *(["adapts in"] if timed else [])):
        table.add_column(fill(column, HEADING), justify="right", no_wrap=True)
    ordered = [
        *(name for name in names if name in rivals),
        *(name for name in names if name not in rivals),
    ]
    for number, name in enumerate(ordered):
        cells = []
        for setting in settings:
            row = at.get((name, setting))
            text = "" if row is None else _score(row, digits).replace("± 0.", "±.")
            cells.append(f"[bold]{text}[/bold]" if row is best[setting] else text)
        times = [
            time_text(at[name, setting].get("adapt_time_s"))
            for setting in settings
            if (name, setting) in at
        ]
        last = number + 1 < len(ordered) and name in rivals and ordered[number + 1] not in rivals
        table.add_row(name, *cells, *(times[:1] if timed else []), end_section=last)
    Console().print(table)


def _score(row: dict[str, Any], digits: int) -> str:
    """Write a score with a fixed number of digits, or with more where these would leave nothing of it."""
    mean, half = row["mean"], row["ci95"]
    if mean is None or math.isnan(mean):
        return "failed"
    if row["name"] not in ("accuracy", "mse"):
        return f"{mean:.4g} ± {half:.2g}" if half is not None else f"{mean:.4g}"
    if half is None or math.isnan(half) or half < mean < 0.5 * 10**-digits:
        return score_text(row)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def _number(value: float | None) -> str:
    return (
        ""
        if value is None
        else f"{value:.3g}"
        if abs(value) >= 10 or abs(value) < 0.001
        else f"{value:.3f}"
    )


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of words and numbers, a column for each key of the first."""
    if not rows:
        return
    table = Table(*rows[0], box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for row in rows:
        table.add_row(
            *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
        )
    Console().print(table)
