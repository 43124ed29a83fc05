"""Metrics of a run: a row per logged step, one JSON object a line.

In:   rows, a folder.
Out:  ``metrics.jsonl``, and the rows in it.
Knows nothing of what is logged.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightloom.files import write_atomically

Row = dict[str, Any]
NAME = "metrics.jsonl"


def read_rows(run: Path) -> list[Row]:
    """Read the rows of a run; a last line that was torn by a crash is left out."""
    path, rows = run / NAME, []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_rows(run: Path, rows: Sequence[Row]) -> None:
    """Begin the file anew, with the rows of before; the folder must exist."""
    write_atomically(run / NAME, "".join(json.dumps(row) + "\n" for row in rows))


def append_row(run: Path, row: Row) -> None:
    """Add a row."""
    with (run / NAME).open("a") as file:
        file.write(json.dumps(row) + "\n")
