"""Metrics of a run: one row per logged step, one JSON object per line.

In:   rows, a folder.
Out:  ``metrics.jsonl``, and its rows.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightloom.errors import CheckpointError
from weightloom.files import write_atomically

Row = dict[str, Any]
"""Metrics by name; ``step`` is always one of them."""
NAME = "metrics.jsonl"


def read_rows(run: Path) -> list[Row]:
    """Read the rows of a run; incomplete and damaged lines are skipped."""
    return _read(run)[0]


def rows_up_to(run: Path, step: int) -> list[Row]:
    """Read the rows that a resumed run keeps, those up to a step.

    Warns of damaged lines, except an incomplete last one, which a killed run may leave.

    Args:
        run: The folder.
        step: Step of the checkpoint.
    """
    rows, damaged = _read(run)
    if damaged:
        warnings.warn(
            f"`{run / NAME}` holds {damaged} damaged line{'s' * (damaged > 1)}. The {len(rows)} "
            "other rows are kept, and the run goes on; its curves lack the damaged ones. Put back "
            "a copy of the file before you resume, or leave it.",
            stacklevel=2,
        )
    return [row for row in rows if row["step"] <= step]


def _read(run: Path) -> tuple[list[Row], int]:
    """Return the rows and the number of damaged lines; an incomplete last line is not counted."""
    path, rows, damaged = run / NAME, [], 0
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            damaged += line.endswith("\n")  # the others are still being written, or never were
    return rows, damaged


def write_rows(run: Path, rows: Sequence[Row]) -> None:
    """Replace the file by one with the given rows; the folder must exist."""
    write_atomically(run / NAME, "".join(json.dumps(row) + "\n" for row in rows))


def append_row(run: Path, row: Row) -> None:
    """Append a row to the file.

    Raises:
        CheckpointError: If it cannot be written, as on a full disk. Earlier checkpoints stay.
    """
    try:
        with (run / NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"`{run / NAME}` could not be appended to ({error.strerror or error}). A run logs its "
            "steps there; its last checkpoint is intact. Make room, and go on with `--resume`."
        ) from error
