"""Lines and CSV rows of a text file, one at a time, within the limits of `weightloom.limits`.

In:   the path of a text file, gzipped or not.
Out:  lines, or the cells of a CSV file.
Independent of the meaning of the cells.
"""

import csv
import gzip
import io
import itertools
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weightloom.errors import DataError
from weightloom.limits import (
    FREE_BYTES,
    MOST_BLANK_LINES,
    MOST_COLUMNS,
    MOST_FILE_BYTES,
    MOST_LINE,
    MOST_NAME,
    MOST_UNPACKED,
)


def check_file(path: Path, kind: str, most: int = MOST_FILE_BYTES) -> None:
    """Raise a `DataError` unless ``path`` is a regular file of at most ``most`` bytes.

    Args:
        path: The file.
        kind: Expected kind of file, as in "A CSV file"; it starts a sentence of the message.
        most: Maximum size in bytes.

    Raises:
        DataError: If the file does not exist, is not a regular file, or is too large.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"`{path}` cannot be read ({reason}). {kind} is expected. Check the path."
        ) from error
    if not stat.S_ISREG(found.st_mode):
        other = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise DataError(
            f"`{path}` cannot be read (it is {other}). {kind} is expected. Check the path."
        )
    if found.st_size > most:
        raise DataError(
            f"`{path}` has {found.st_size / 1e6:,.0f} MB. {kind} of up to {most / 1e6:,.0f} MB is "
            "read. Leave some of it out, or give the data as tensors in Python."
        )


def text_lines(path: Path) -> Iterator[str]:
    """Iterate over the lines of a UTF-8 text file, gzipped if its name ends in ``.gz``.

    Raises:
        ValueError: If the file is damaged or not text, a line is too long, or the uncompressed text
            is too large.
        OSError: If the file cannot be read.
        EOFError: If the compressed data ends early.
    """
    with path.open("rb") as packed:
        plain: Any = gzip.GzipFile(fileobj=packed) if path.suffix == ".gz" else packed
        text = io.TextIOWrapper(plain, encoding="utf-8-sig", newline="")
        unpacked = 0
        try:
            for line in _bounded(text):
                unpacked += len(line)
                if (
                    unpacked > MOST_FILE_BYTES
                    or unpacked > FREE_BYTES + MOST_UNPACKED * packed.tell()
                ):
                    raise ValueError(
                        f"it unpacks to more than {MOST_UNPACKED} times its size, or to more than "
                        f"{MOST_FILE_BYTES / 1e9:.0f} GB; if it should, unpack it with `gunzip`"
                    )
                yield line
        except zlib.error as error:
            raise ValueError(str(error)) from error


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Iterate over the rows of a CSV file, header first, each with its line number.

    The separator is the most frequent of comma, semicolon and tab in the first line. Blank lines
    are left out.

    Args:
        path: File in UTF-8, gzipped if its name ends in ``.gz``.

    Raises:
        DataError: If the file cannot be read, the number of cells of a row differs from the
            header's, or a limit is exceeded.
    """
    check_file(path, "A CSV file in UTF-8 with a header")
    letters = 0

    def counted() -> Iterator[str]:
        nonlocal letters
        for line in itertools.chain([first], lines):
            letters += len(line)
            if letters > MOST_LINE:  # a quoted cell goes on over many lines
                raise ValueError(f"it has a row of more than {MOST_LINE:,} letters")
            yield line

    try:
        lines = text_lines(path)
        first = next(lines, "")
        reader = csv.reader(counted(), delimiter=max(",;\t", key=first.count), strict=True)
        header = [name.strip() for name in next(reader, [])]
        _check_columns(header, path)
        yield reader.line_num, header
        blank = 0
        for cells in reader:
            letters = 0
            if len(cells) == len(header):
                yield reader.line_num, cells
            elif not cells:
                blank += 1
                if blank > MOST_BLANK_LINES:
                    raise ValueError(f"more than {MOST_BLANK_LINES:,} of its lines are blank")
            else:
                _refuse_row(reader.line_num, len(cells), len(header), path)
    except (OSError, EOFError, ValueError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"`{path}` cannot be read ({error}). A CSV file in UTF-8 with a header is expected, "
            "gzipped if it ends in `.gz`. Check the path, or save the table as CSV."
        ) from error


def _bounded(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(MOST_LINE + 1):
        if len(line) > MOST_LINE:
            raise ValueError(f"it has a line of more than {MOST_LINE:,} letters")
        yield line


def _check_columns(header: list[str], path: Path) -> None:
    if len(header) > MOST_COLUMNS:
        raise DataError(
            f"`{path}` has {len(header):,} columns. Tables of up to {MOST_COLUMNS:,} are read. "
            "Leave some out, or give the data as tensors in Python."
        )
    longest = max(map(len, header), default=0)
    if longest > MOST_NAME:
        raise DataError(
            f"`{path}` has a column whose name has {longest:,} letters. Names have up to "
            f"{MOST_NAME}. Begin the file "
            "with a line of names, separated by commas, semicolons or tabs."
        )


def _refuse_row(line: int, cells: int, columns: int, path: Path) -> None:
    raise DataError(
        f"Line {line} of `{path}` has {cells} cells, but the header names {columns} columns. Every "
        "row has one cell for each. Complete the line, or quote cells that hold a separator."
    )
