"""The table that a few-shot run prints."""

from typing import Any

from rich.console import Console
from rich.table import Table

from weightloom.report.scores import time_text


def print_table(scores: list[dict[str, Any]]) -> None:
    """Print one row per method and setting: score with its 95 % interval, and the time to adapt to one new task.

    Args:
        scores: As in a record.
    """
    name = scores[0]["name"]
    others = list(scores[0]["also"])
    table = Table(title=f"{scores[0]['tasks']:,} tasks never seen in training")
    for column in ("setting", "method", f"{name} ± 95 %", *others, "adapts in"):
        table.add_column(column.replace("_", " "), justify="left" if column in ("setting", "method") else "right")
    for number, row in enumerate(scores):
        new = number == 0 or row["setting"] != scores[number - 1]["setting"]
        table.add_row(
            row["setting"] if new else "",
            row["method"],
            f"{row['mean']:.4f} ± {row['ci95']:.4f}",
            *(f"{row['also'][other]['mean']:.4f}" for other in others),
            time_text(row["adapt_time_s"]),
            end_section=number + 1 == len(scores) or scores[number + 1]["setting"] != row["setting"],
        )
    Console().print(table)
