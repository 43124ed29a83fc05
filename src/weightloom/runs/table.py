"""The results table of a run: a row per method and setting, or a column per setting.

In:   rows of a record.
Out:  lines on the terminal.
Knows nothing of any application.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from textwrap import fill
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weightloom.runs.record import competes, label
from weightloom.runs.words import (
    best_of,
    by_setting,
    score_text,
    time_text,
    unchanged_by_training,
)

HEADING = 11
"""Maximum length of a line of a heading."""
NAMED = 28
"""Most columns that the longest word of a method's name is given in a wide table."""
BLOCKS = 2
"""Maximum number of settings printed one below the other; more of them are columns."""
Row = dict[str, Any]
"""A row of a record."""


def print_table(scores: list[Row], unseen: str, columns: Sequence[str] = ()) -> None:
    """Print the score of every method in every setting, with its 95 % interval.

    A sentence below it names each method whose training changed nothing that the tasks can show.

    Args:
        scores: Rows of a record.
        unseen: End of the title, after the number of tasks, as in "tasks never seen in training".
        columns: Names of further scores; each has a column if any row holds it.
    """
    if len(by_setting(scores)) > BLOCKS:
        _print_wide(scores, unseen)
    else:
        _print_long(scores, unseen, columns)
    for sentence in unchanged_by_training(scores):
        Console(markup=False, highlight=False).print(sentence)


def _print_long(scores: list[Row], unseen: str, columns: Sequence[str]) -> None:
    """Print one row per method and setting, setting by setting."""
    digits, shown = _digits(scores), _columns(scores, columns)
    table = Table(title=f"{scores[0]['tasks']:,} {unseen}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("setting", min_width=8)  # words wrap on a narrow terminal, numbers never do
    table.add_column("method", min_width=14)
    table.add_column(f"{scores[0]['name']} ± 95 %", justify="right", no_wrap=True)
    for heading, _ in shown:
        lines = fill(heading, HEADING - 2, break_long_words=False)
        table.add_column(lines, justify="right", no_wrap=True)
    settings = [row["setting"] for row in scores]
    for row, before, after in zip(scores, [None, *settings], [*settings[1:], None], strict=False):
        table.add_row(
            "" if row["setting"] == before else row["setting"],
            label(row),
            _score(row, digits),
            *(cell(row) for _, cell in shown),
            end_section=row["setting"] != after,
        )
    Console(markup=False).print(table)  # names of users may hold [ ]


def _columns(scores: list[Row], columns: Sequence[str]) -> list[tuple[str, Callable[[Row], str]]]:
    """Return heading and cell function of each column behind the score."""
    shown: list[tuple[str, Callable[[Row], str]]] = [
        (name.replace("_", " "), partial(_also, name))
        for name in columns
        if any(name in (row.get("also") or {}) for row in scores)
    ]
    if any("calibration" in row for row in scores):
        shown.append(("ece", _calibration))
    if _has_times(scores):
        shown.append(("adapts in", _time))
    return shown


def _also(name: str, row: Row) -> str:
    also = row.get("also") or {}
    return _number(also[name]["mean"]) if name in also else ""


def _calibration(row: Row) -> str:
    return f"{row['calibration']['ece']:.3f}" if "calibration" in row else ""


def _time(row: Row) -> str:
    return time_text(row.get("adapt_time_s"))


def _has_times(scores: list[Row]) -> bool:
    return any(row.get("adapt_time_s") for row in scores)


def _digits(scores: list[Row]) -> int:
    return 4 if scores[0]["better"] == "lower" else 3


def _print_wide(scores: list[Row], unseen: str) -> None:
    """Print one row per method and one column per setting.

    The best score of a setting is bold; rows that do not compete come last. Settings that do not
    fit into the terminal are printed in further tables below.
    """
    methods, others = _names(scores)
    rows: dict[str, dict[str, Row]] = {name: {} for name in [*methods, *others]}
    for row in scores:
        rows[label(row)][row["setting"]] = row
    title: str | None = f"{scores[0]['name']} over {scores[0]['tasks']:,} {unseen}, ± 95 %"
    console, digits = Console(markup=False), _digits(scores)  # names of users may hold [ ]
    for settings in _blocks(list(by_setting(scores)), rows, digits, console.width):
        there = [name for name in methods if _only(settings, rows[name])]
        table = Table(title=title, box=SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column("method", min_width=_least_width(rows))
        _add_settings(table, settings, rows, digits, there[-1] if there and others else None)
        console.print(table)
        title = None


def _blocks(
    settings: list[str], rows: dict[str, dict[str, Row]], digits: int, width: int
) -> list[list[str]]:
    """Divide settings into blocks that fit into a terminal beside the names of methods."""
    timed = _has_times([row for its in rows.values() for row in its.values()])
    room = width - _least_width(rows) - HEADING * timed
    blocks: list[list[str]] = [[]]
    left = room
    for setting in settings:
        texts = [_wide_text(its[setting], digits) for its in rows.values() if setting in its]
        needed = 1 + max(len(text) for text in [*texts, *fill(setting, HEADING).splitlines()])
        if needed > left and blocks[-1]:
            blocks.append([])
            left = room
        blocks[-1].append(setting)
        left -= needed
    return blocks


def _least_width(names: Iterable[str]) -> int:
    """Return the width at which names are wrapped between words only."""
    return min(max(len(word) for name in names for word in name.split()), NAMED)


def _add_settings(
    table: Table,
    settings: list[str],
    rows: dict[str, dict[str, Row]],
    digits: int,
    last: str | None,
) -> None:
    """Add a column per setting, one of times, and the row of each method that has a score there."""
    shown = {name: found for name, its in rows.items() if (found := _only(settings, its))}
    timed = any(_has_times(list(its.values())) for its in shown.values())
    best = {setting: _best_in(setting, rows) for setting in settings}
    for column in (*settings, *(["adapts in"] * timed)):
        table.add_column(fill(column, HEADING), justify="right", no_wrap=True)
    for name, its in shown.items():
        cells = [_wide_cell(its.get(setting), best[setting], digits) for setting in settings]
        times = [_time(row) for row in list(its.values())[:1]] if timed else []
        table.add_row(name, *cells, *times, end_section=name == last)


def _only(settings: list[str], its: dict[str, Row]) -> dict[str, Row]:
    return {setting: its[setting] for setting in settings if setting in its}


def _best_in(setting: str, rows: dict[str, dict[str, Row]]) -> Row:
    return best_of([its[setting] for its in rows.values() if setting in its])


def _names(scores: list[Row]) -> tuple[list[str], list[str]]:
    """Return the names of the rows that compete, and of all others, in the order of the record."""
    rivals = dict.fromkeys(label(row) for row in scores if competes(row))
    return list(rivals), list(dict.fromkeys(label(row) for row in scores if not competes(row)))


def _wide_cell(row: Row | None, best: Row, digits: int) -> Text | str:
    if row is None:
        return ""
    return Text(_wide_text(row, digits), style="bold" if row is best else "")


def _wide_text(row: Row, digits: int) -> str:
    return _score(row, digits).replace("± 0.", "±.")


def _score(row: Row, digits: int) -> str:
    """Return a score with a fixed number of decimals, or more if it would round to 0."""
    mean, half = row["mean"], row["ci95"]
    if mean is None or math.isnan(mean):
        return "failed"
    has_interval = half is not None and math.isfinite(half)
    if row["name"] not in ("accuracy", "mse"):
        return f"{mean:.4g} ± {half:.2g}" if has_interval else f"{mean:.4g}"
    if not has_interval or half < mean < 0.5 * 10**-digits:
        return score_text(row)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if 0.001 <= abs(value) < 10:
        return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"
    return f"{value:.3g}"


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of words and numbers as a table, a column for each key of the first row."""
    if not rows:
        return
    table = Table(*rows[0], box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for row in rows:
        table.add_row(
            *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
        )
    Console(markup=False).print(table)  # names of users may hold [ ]
