"""Support sets of a user's own task, read from Python objects or files.

In:   a mapping from class names to examples, inputs and targets, or a path of a folder, .csv,
      .jsonl or .npz.
Out:  `Given`: inputs in the form of `Inputs.encode`, and a class name or targets for each.
Knows nothing of models.
"""

import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from weightloom.apps.fewshot.inputs import Inputs, Targets
from weightloom.errors import DataError, listed
from weightloom.limits import (
    FREE_BYTES,
    MOST_ARRAYS,
    MOST_ASKED,
    MOST_FILE_BYTES,
    MOST_SHOWN,
    MOST_UNPACKED,
)
from weightloom.tasks.lines import check_file, csv_rows, text_lines
from weightloom.texts import home, kind_of, parse_json

TABLES = (".csv", ".jsonl", ".npz")
LABEL, TARGET, TASK = "label", "y", "task"
FORMS = (
    "a mapping from class names to examples; (x, y); or a path: a folder with a folder for each "
    "class, a .csv or .jsonl file with a column `label`, or a .npz file with `support_x` and "
    "`support_y`"
)
POINTS = (
    "(x, y), or the path of a .csv or .jsonl file with a column `y`, or of a .npz with "
    "`support_x` and `support_y`"
)
Kind = Literal["classification", "regression"]


class Given(NamedTuple):
    """Labelled examples of one task."""

    x: list[Any]
    """Inputs."""
    y: list[Any]
    """Class or targets of each input; None for inputs without labels."""
    names: list[str]
    """Names of the inputs in messages and tables."""


def read_support(support: Any, inputs: Inputs, kind: Kind, targets: Targets | None = None) -> Given:
    """Read the support set of one task.

    Args:
        support: A mapping from class names to examples; a tuple of inputs and targets; or the path
            of a folder, .csv, .jsonl or .npz.
        inputs: Preprocessing, which defines the form of an example.
        kind: Kind of the task.
        targets: Targets of a regression, whose names may be columns of a table.

    Raises:
        DataError: If ``support`` has another form, a file cannot be read, a class has no example, a
            label is neither a text nor a whole number, or there are more than 10,000 examples.
    """
    return _checked(_read_support(support, inputs, kind, targets), kind)


def _read_support(support: Any, inputs: Inputs, kind: Kind, targets: Targets | None) -> Given:
    classes = kind == "classification"
    if isinstance(support, str | Path):
        path = home(support)
        if kind_of(path) == "folder" and classes:
            return _of_classes({folder.name: folder for folder in _class_folders(path)}, inputs)
        return _of_file(path, inputs, kind, targets)
    if isinstance(support, Mapping) and classes:
        return _of_classes(support, inputs)
    if isinstance(support, tuple) and len(support) == 2:
        return _of_pair(*support, inputs)
    raise DataError(
        f"A support set cannot be a {type(support).__name__} here. It is "
        f"{FORMS if classes else POINTS}. Pass one of these."
    )


def _of_pair(x: Any, y: Any, inputs: Inputs) -> Given:
    """Return inputs and their targets; ``y`` None stands for no targets."""
    items, names = read_inputs(x, inputs)
    targets = [None] * len(items) if y is None else _plain(y)
    if len(items) != len(targets):
        raise DataError(
            f"There are {len(items)} inputs and {len(targets)} targets. Each input has one. Pass "
            "as many."
        )
    return Given(items, targets, names)


def _checked(given: Given, kind: Kind) -> Given:
    """Return the examples, checked, with labels that are texts or whole numbers."""
    if len(given.x) > MOST_SHOWN:
        raise DataError(
            f"The support set holds {len(given.x):,} examples. A method adapts to all of them "
            f"together, and up to {MOST_SHOWN:,} fit. Give fewer."
        )
    if kind == "regression":
        return given
    y = [
        int(label) if isinstance(label, float) and label.is_integer() else label
        for label in given.y
    ]
    for label, name in zip(y, given.names, strict=True):
        if not isinstance(label, str | int) or label == "":
            raise DataError(
                f"The label of `{name}` is {str(label)[:60]!r}, a {type(label).__name__}. A label "
                "is the name of a class or its number, a whole one. Turn labels into text, or into "
                "whole numbers with `y.astype(int)`."
            )
    return given._replace(y=y)


def read_inputs(given: Any, inputs: Inputs) -> tuple[list[Any], list[str]]:
    """Read inputs without labels.

    Args:
        given: One input or several: objects or paths. A folder, or a .csv, .jsonl or .npz file,
            stands for all inputs in it.
        inputs: Preprocessing, which defines the form of an input.

    Returns:
        The inputs, and a name for each.

    Raises:
        DataError: If ``given`` is no input and cannot be iterated over, a file cannot be read, or
            there are more than 100,000 inputs.
    """
    items, names = list[Any](), list[str]()
    alone = isinstance(given, str | Path) or hasattr(given, "convert")
    if not alone and not isinstance(given, Iterable):
        raise DataError(
            f"Inputs were given as a {type(given).__name__}. They are {inputs.takes}. Give a list "
            "of these."
        )
    for number, item in enumerate([given] if alone else given):
        found, found_names = _inputs_in(item, number, inputs)
        items += found
        names += found_names
        if len(items) > MOST_ASKED:
            raise DataError(
                f"There are more than {MOST_ASKED:,} inputs. They are answered together. Give "
                "fewer."
            )
    return items, names


def _inputs_in(item: Any, number: int, inputs: Inputs) -> tuple[list[Any], list[str]]:
    """Return the inputs that an item stands for, and their names: a file's, a folder's, or one."""
    if not isinstance(item, str | Path):
        return [item], [f"example {number}"]
    path = home(item)
    if path.suffix.lower() in TABLES:
        found = _of_file(path, inputs, None)
        return found.x, found.names
    if inputs.files and kind_of(path) == "folder":
        files = [str(file) for file in _visible(path)]
        return files, files
    return [item], [str(item)]


def _of_classes(classes: Mapping[Any, Any], inputs: Inputs) -> Given:
    x, y, names = list[Any](), list[Any](), list[str]()
    for name, given in classes.items():
        items, its = read_inputs(given, inputs)
        if not items:
            where = f" (`{given}`)" if isinstance(given, Path) else ""
            raise DataError(
                f"The class `{name}`{where} is empty. A class has an example or more. Add some, or "
                "drop it."
            )
        x, y = x + items, y + [name] * len(items)
        named = zip(items, its, strict=True)
        names += [
            its_name if isinstance(item, str | Path) else f"{name}, {its_name}"
            for item, its_name in named
        ]
    return Given(x, y, names)


def _class_folders(root: Path) -> list[Path]:
    folders = [entry for entry in _visible(root) if entry.is_dir()]
    if len(folders) < 2:
        raise DataError(
            f"`{root}` has {len(folders)} folders in it. A task in a folder has a folder for each "
            "of its classes, two or more, named after them. Sort the examples into such folders."
        )
    return folders


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"`{folder}` cannot be read ({error.strerror}). It is a folder of examples. Give "
            "yourself the right to read it."
        ) from error


def _of_file(
    path: Path, inputs: Inputs, kind: Kind | None, targets: Targets | None = None
) -> Given:
    """Read a file of examples, without their labels if ``kind`` is None."""
    if path.suffix.lower() not in TABLES:
        raise _not_a_table(path, kind)
    check_file(path, f"A {path.suffix} file")
    if path.suffix.lower() == ".npz":
        return _of_arrays(path, labelled=kind is not None)
    return _of_rows(_rows(path), str(path), path.parent, inputs, kind, targets)


def read_rows(
    rows: Sequence[Mapping[str, Any]],
    name: str,
    folder: Path,
    inputs: Inputs,
    kind: Kind,
    targets: Targets | None = None,
) -> Given:
    """Read a support set from rows in memory, as of a .jsonl file.

    Args:
        rows: Cells by column; the label stands in `label`, a regression's target in `y`.
        name: Name of the support set in messages.
        folder: Folder that paths are relative to.
        inputs: As for `read_support`.
        kind: As for `read_support`.
        targets: As for `read_support`.

    Raises:
        DataError: As by `read_support`.
    """
    named = ((f"example {number} of {name}", dict(row)) for number, row in enumerate(rows))
    return _checked(_of_rows(named, name, folder, inputs, kind, targets), kind)


def _of_rows(
    rows: Iterable[tuple[str, dict[str, Any]]],
    source: str,
    folder: Path,
    inputs: Inputs,
    kind: Kind | None,
    targets: Targets | None,
) -> Given:
    """Read rows, each with its name in messages."""
    x, y, names = list[Any](), list[Any](), list[str]()
    for where, row in rows:
        names.append(where)
        if len(names) > MOST_ASKED:
            raise DataError(
                f"`{source}` holds more than {MOST_ASKED:,} rows. They are read together. Give "
                "fewer."
            )
        cells, label = _split_row(row, where, kind, targets)
        x.append(inputs.of_row(cells, where, folder))
        y.append(_floats(label, where) if kind == "regression" else label)
    if not names:
        raise DataError(f"`{source}` holds no rows. Each row is an example. Add some.")
    return Given(x, y, names)


def _not_a_table(path: Path, kind: Kind | None) -> DataError:
    """Return the error of a support set that is a folder, missing or a file of another kind."""
    folder = kind_of(path) == "folder"
    if not folder:
        check_file(path, "A folder, or a .csv, .jsonl or .npz file")
    found = "is a folder" if folder else "is of an unknown kind"
    forms = POINTS if kind == "regression" else FORMS
    return DataError(f"`{path}` {found}. A support set is {forms}. Check the path.")


def _split_row(
    row: dict[str, Any], where: str, kind: Kind | None, targets: Targets | None
) -> tuple[dict[str, Any], Any]:
    """Split a row into cells of the input and its label, targets, or None without a ``kind``."""
    cells = {name: cell for name, cell in row.items() if name != TASK}
    wanted = _label_columns(cells, kind, targets)
    label = [cells.pop(name) for name in wanted if name in cells]
    if kind is None:
        return cells, None
    if len(label) < len(wanted):
        raise DataError(
            f"{where} has no column `{wanted[0]}` but {listed(row)}. It holds the label or target "
            "to learn. Name that column so."
        )
    return cells, label[0] if kind == "classification" else label


def _label_columns(
    row: Mapping[str, Any], kind: Kind | None, targets: Targets | None
) -> tuple[str, ...]:
    if kind == "classification":
        return (LABEL,)
    if targets and all(name in row for name in targets.names):
        return targets.names
    return (TARGET,)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a table, each with its file and line in words."""
    read = _json_rows if path.suffix.lower() == ".jsonl" else _csv_rows
    try:
        for number, row in read(path):
            yield f"line {number} of {path}", row
    except (OSError, EOFError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"`{path}` cannot be read ({error}). A .csv file has a header and a row for each "
            "example, a .jsonl file an object a line, both in UTF-8. Check the path, or save it "
            "anew."
        ) from error


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a .jsonl file with their line numbers."""
    for number, line in enumerate(text_lines(path), 1):
        if line.strip():
            row = parse_json(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object")
            _check_columns([*row])
            yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a .csv file by column, with their line numbers."""
    rows = csv_rows(path)
    _, header = next(rows)
    _check_columns(header)
    for number, cells in rows:
        yield number, dict(zip(header, (cell.strip() for cell in cells), strict=True))


def _check_columns(names: Sequence[str]) -> None:
    """Raise a `ValueError` if a column has no name, or the name of another."""
    if len(set(names)) < len(names) or "" in names:
        raise ValueError("a column has no name, or two have the same")


def _of_arrays(path: Path, labelled: bool) -> Given:
    """Read a .npz file of inputs, and their labels or targets if ``labelled``."""
    x, *others = _read_arrays(path, labelled)
    y = _plain(others[0]) if labelled else [None] * len(x)
    if len(x) != len(y) or not len(x):
        raise DataError(
            f"`{path}` holds {len(x)} inputs and {len(y)} targets. It must hold one input or more, "
            "and one target for each. Write as many."
        )
    return Given(list(x), y, [f"example {number} of {path}" for number in range(len(x))])


def _read_arrays(path: Path, labelled: bool) -> list[NDArray[Any]]:
    """Return ``support_x`` or ``x`` of a .npz file, then ``support_y`` if ``labelled``."""
    try:
        with zipfile.ZipFile(path) as file:
            members = _members(file)
            x = "support_x" if "support_x" in members else "x"
            wanted = [x, "support_y"] if labelled else [x]
            complete = members.keys() >= {*wanted}
            arrays = [_array(file, members[name], path) for name in wanted] if complete else []
    except Exception as error:  # numpy, zipfile and zlib raise many types for a damaged file
        raise DataError(
            f"`{path}` cannot be read ({str(error)[:200] or type(error).__name__}). A .npz file of "
            "plain arrays, without pickles, is expected. Write it with `numpy.savez`."
        ) from error
    if not arrays:
        raise DataError(
            f"`{path}` holds {listed(members) or 'no array'}. A support set is "
            "`support_x` (examples, ...) and `support_y`, a label or numbers for each; inputs "
            "alone are `x`. Name the arrays so."
        )
    return arrays


def _members(file: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the arrays of a .npz file by name.

    Raises:
        ValueError: If there are more than `MOST_ARRAYS`, or two have the same name.
    """
    members = file.infolist()[: MOST_ARRAYS + 1]
    named = {member.filename.removesuffix(".npy"): member for member in members}
    if len(members) > MOST_ARRAYS or len(named) < len(members):
        raise ValueError(f"it has more than {MOST_ARRAYS:,} arrays, or two of one name")
    return named


def _array(file: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    """Read one array, after checking its declared type and size against the file.

    Raises:
        ValueError: If the array holds objects, has too many rows, or declares more bytes than the
            file holds or than may be read.
    """
    with file.open(member) as opened:
        version = npy.read_magic(opened)
        headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        shape, _, dtype = headers[version](opened)
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "biufU":
        raise ValueError(f"`{member.filename}` is of {dtype}, not of numbers or text")
    if not shape or shape[0] > MOST_ASKED:
        raise ValueError(
            f"`{member.filename}` has the shape {shape}; it has a row for each of up to "
            f"{MOST_ASKED:,}"
        )
    if size > member.file_size or size > min(
        MOST_FILE_BYTES, FREE_BYTES + MOST_UNPACKED * path.stat().st_size
    ):
        raise ValueError(
            f"`{member.filename}` says it has {size:,} bytes, more than it holds or than are read"
        )
    with file.open(member) as opened:
        return npy.read_array(opened, allow_pickle=False)


def _plain(values: Any) -> list[Any]:
    """Convert labels or targets from an array, a tensor or a list to a list of plain values."""
    listed = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values).tolist()
    return [listed] if not isinstance(listed, list) else listed


def _floats(cells: Sequence[Any], where: str) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{where} has a target that is no number ({str(error)[:100]}). Fill the cell, or drop "
            "the row."
        ) from error
