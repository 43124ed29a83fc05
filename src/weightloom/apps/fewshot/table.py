"""The table that a few-shot run prints."""

import math
from textwrap import fill
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from weightloom.report.scores import best_of, by_setting, score_text, time_text
from weightloom.runs.record import competes, label

HEADING = 11
"""Letters of a line of a heading."""
MOST_BLOCKS = 2
"""Settings that are printed one below the other; more stand side by side."""


def print_table(scores: list[dict[str, Any]]) -> None:
    """Print one row per method and setting: score with its 95 % interval, calibration, time to adapt to one new task.

    Args:
        scores: As in a record.
    """
    if len({row["setting"] for row in scores}) > MOST_BLOCKS:
        _print_wide(scores)
        return
    name = scores[0]["name"]
    digits = 4 if name == "mse" else 3
    others = [other for other in scores[0]["also"] if other == "f1"]  # the record holds them all
    calibrated = "calibration" in scores[0]
    table = Table(title=f"{scores[0]['tasks']:,} tasks never seen in training", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("setting", "method"):
        table.add_column(column, no_wrap=True)
    for column in (f"{name} ± 95 %", *others, *(["ece"] if calibrated else []), "adapts in"):
        table.add_column(column, justify="right", no_wrap=True)
    for number, row in enumerate(scores):
        new = number == 0 or row["setting"] != scores[number - 1]["setting"]
        table.add_row(
            row["setting"] if new else "",
            label(row),
            _score(row, digits),
            *(f"{row['also'][other]['mean']:.{digits}f}" if other in row["also"] else "" for other in others),
            *([f"{row['calibration']['ece']:.{digits}f}" if "calibration" in row else ""] if calibrated else []),
            time_text(row["adapt_time_s"]),
            end_section=number + 1 == len(scores) or scores[number + 1]["setting"] != row["setting"],
        )
    Console().print(table)


def _print_wide(scores: list[dict[str, Any]]) -> None:
    """Print one row per method and one column per setting; the best is bold, controls and ceilings come last."""
    digits = 4 if scores[0]["name"] == "mse" else 3
    settings = by_setting(scores)
    at = {(label(row), row["setting"]): row for row in scores}
    competing = {label(row): competes(row) for row in scores}
    methods = list(competing)
    best = {setting: best_of(rows) for setting, rows in settings.items()}
    title = f"{scores[0]['name']} over {scores[0]['tasks']:,} tasks never seen in training, ± 95 %"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("method")  # the column that gives way on a narrow terminal
    for column in (*settings, "adapts in"):
        table.add_column(fill(column, HEADING), justify="right", no_wrap=True)
    for number, method in enumerate(methods):
        cells = []
        for setting in settings:
            row = at.get((method, setting))
            text = "" if row is None else _score(row, digits).replace("± 0.", "±.")
            cells.append(f"[bold]{text}[/bold]" if row is best[setting] else text)
        times = [at[method, setting]["adapt_time_s"] for setting in settings if (method, setting) in at]
        last = number + 1 < len(methods) and competing[method] and not competing[methods[number + 1]]
        table.add_row(method, *cells, time_text(times[0]), end_section=last)
    Console().print(table)


def _score(row: dict[str, Any], digits: int) -> str:
    """Write a score with a fixed number of digits, or with more where these would leave nothing of it."""
    if math.isnan(row["mean"]) or row["ci95"] < row["mean"] < 0.5 * 10**-digits:
        return score_text(row)
    return f"{row['mean']:.{digits}f} ± {row['ci95']:.{digits}f}"
