"""The table that a run of reinforcement learning prints."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from weightloom.runs.record import label

SHOWN = ("explained_variance", "gain_error", "value_error", "first_trial", "last_trial")
"""Measures beside the return that have a column; the record holds them all."""


def print_table(scores: list[dict[str, Any]]) -> None:
    """Print one row per method and setting: the return with its 95 % interval, and what was measured beside it.

    Args:
        scores: As in a record.
    """
    there = [name for name in SHOWN if any(name in row["also"] for row in scores)]
    title = f"{scores[0]['tasks']:,} contexts never met in training"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("contexts", "method"):
        table.add_column(column, no_wrap=True)
    for column in ("return ± 95 %", *(name.replace("_", " ") for name in there)):
        table.add_column(column, justify="right", no_wrap=column.startswith("return"))
    for number, row in enumerate(scores):
        new = number == 0 or row["setting"] != scores[number - 1]["setting"]
        table.add_row(
            row["setting"].removesuffix(" contexts") if new else "",
            label(row),
            f"{row['mean']:.4g} ± {row['ci95']:.2g}",
            *(f"{row['also'][name]['mean']:.3g}" if name in row["also"] else "" for name in there),
            end_section=number + 1 == len(scores) or scores[number + 1]["setting"] != row["setting"],
        )
    Console().print(table)
