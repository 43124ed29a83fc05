"""Metrics of a run: a row per logged step, one JSON object a line.

In:   rows, a folder.
Out:  ``metrics.jsonl``, and the rows in it.
Knows nothing of what is logged.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightloom.errors import CheckpointError
from weightloom.files import write_atomically

Row = dict[str, Any]
NAME = "metrics.jsonl"


def read_rows(run: Path) -> list[Row]:
    """Read the rows of a run; a line that is torn or damaged is passed over."""
    return _read(run)[0]


def rows_up_to(run: Path, step: int) -> list[Row]:
    """Read the rows that a resumed run keeps, and warn of damaged lines.

    The last one of a killed run may be torn.

    Args:
        run: The folder.
        step: That of the checkpoint.
    """
    rows, damaged = _read(run)
    if damaged:
        warnings.warn(
            f"`{run / NAME}` holds {damaged} damaged line{'s' * (damaged > 1)}. The {len(rows)} "
            "rows around are kept, and the run goes on; its curves lack what stood there. Put back "
            "a copy of the file before you resume, or leave it.",
            stacklevel=2,
        )
    return [row for row in rows if row["step"] <= step]


def _read(run: Path) -> tuple[list[Row], int]:
    """Return the rows and the number of damaged lines, without a last one that was not written to its end."""
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
            damaged += line.endswith("\n")  # a live run is writing the others, or a killed one was
    return rows, damaged


def write_rows(run: Path, rows: Sequence[Row]) -> None:
    """Begin the file anew, with the rows of before; the folder must exist."""
    write_atomically(run / NAME, "".join(json.dumps(row) + "\n" for row in rows))


def append_row(run: Path, row: Row) -> None:
    """Add a row.

    Raises:
        CheckpointError: If it cannot be written, as on a full disk. Checkpoints of before stay.
    """
    try:
        with (run / NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"`{run / NAME}` could not be added to ({error.strerror or error}). A run logs its "
            "steps there; its last checkpoint is still whole. Make room, and go on with `--resume`."
        ) from error
