"""Given of a user's own task, in any of the forms that people have them in.

In:   a mapping from class names to examples, inputs and targets, or a path of a folder, .csv,
      .jsonl or .npz.
Out:  `Given`: inputs as `Inputs.encode` takes them, and a class name or numbers for each.
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
POINTS = "(x, y), or the path of a .csv or .jsonl file with a column `y`, or of a .npz with `support_x` and `support_y`"


class Given(NamedTuple):
    """Labelled examples of one task."""

    x: list[Any]
    """Inputs."""
    y: list[Any]
    """The class of each, or its numbers."""
    names: list[str]
    """Names of the inputs in messages and tables."""


def read_support(
    support: Any,
    inputs: Inputs,
    kind: Literal["classification", "regression"],
    targets: Targets | None = None,
) -> Given:
    """Read the support set of one task.

    Args:
        support: A mapping from class names to examples; inputs and targets; or a path.
        inputs: Kind of the inputs.
        kind: Kind of the task.
        targets: Of a regression.

    Raises:
        DataError: If it is none of these, a file cannot be read, a class has no example, a label is
            no name, or there are more than 10,000 examples.
    """
    return _checked(_read_support(support, inputs, kind, targets), kind)


def _read_support(
    support: Any,
    inputs: Inputs,
    kind: Literal["classification", "regression"],
    targets: Targets | None,
) -> Given:
    if isinstance(support, str | Path):
        path = home(support)
        if kind_of(path) == "folder" and kind == "classification":
            return _of_classes({folder.name: folder for folder in _class_folders(path)}, inputs)
        return _of_file(path, inputs, kind, targets)
    if isinstance(support, Mapping) and kind == "classification":
        return _of_classes(support, inputs)
    if isinstance(support, tuple) and len(support) == 2:
        x, names = read_inputs(support[0], inputs)
        y = [None] * len(x) if support[1] is None else _plain(support[1])
        if len(x) != len(y):
            raise DataError(
                f"There are {len(x)} inputs and {len(y)} targets. Each input has one. Pass as many."
            )
        return Given(x, y, names)
    forms = FORMS if kind == "classification" else POINTS
    raise DataError(
        f"A support set cannot be a {type(support).__name__} here. It is {forms}. Pass one of "
        "these."
    )


def _checked(given: Given, kind: str) -> Given:
    """Return examples that are not too many; labels are names or whole numbers."""
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
    """Read inputs without labels, and name each.

    Args:
        given: Given, or paths; a folder, or a .csv, .jsonl or .npz file, stands for all that it
            holds.
        inputs: Kind of the inputs.

    Raises:
        DataError: If a file cannot be read, or there are more than 100,000 inputs.
    """
    items, names = list[Any](), list[str]()
    alone = isinstance(given, str | Path) or hasattr(given, "convert")
    if not alone and not isinstance(given, Iterable):
        raise DataError(
            f"Inputs were given as a {type(given).__name__}. They are {inputs.takes}. Give a list "
            "of such."
        )
    for number, item in enumerate([given] if alone else given):
        path = home(item) if isinstance(item, str | Path) else None
        if path is not None and path.suffix.lower() in TABLES:
            found = _of_file(path, inputs, None)
            items += found.x
            names += found.names
        elif path is not None and inputs.files and kind_of(path) == "folder":
            files = _visible(path)
            items += [str(file) for file in files]
            names += [str(file) for file in files]
        else:
            items.append(item)
            names.append(str(item) if isinstance(item, str | Path) else f"example {number}")
        if len(items) > MOST_ASKED:
            raise DataError(
                f"There are more than {MOST_ASKED:,} inputs. They are answered together. Give "
                "fewer."
            )
    return items, names


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
            f"`{folder}` cannot be read ({error.strerror}). It is a folder of examples. Allow "
            "yourself to read it."
        ) from error


def _of_file(
    path: Path,
    inputs: Inputs,
    kind: Literal["classification", "regression"] | None,
    targets: Targets | None = None,
) -> Given:
    """Read a file of examples; ``kind`` None: without their labels."""
    if path.suffix.lower() not in TABLES:
        if kind_of(path) != "folder":
            check_file(path, "A folder, or a .csv, .jsonl or .npz file")
        what = "is a folder" if kind_of(path) == "folder" else "is of no kind known"
        forms = POINTS if kind == "regression" else FORMS
        raise DataError(f"`{path}` {what}. A support set is {forms}. Check the path.")
    check_file(path, f"A {path.suffix} file")
    if path.suffix.lower() == ".npz":
        return _of_arrays(path, labelled=kind is not None)
    x, y, names = list[Any](), list[Any](), list[str]()
    for where, row in _rows(path):
        names.append(where)
        if len(names) > MOST_ASKED:
            raise DataError(
                f"`{path}` holds more than {MOST_ASKED:,} rows. They are read together. Give fewer."
            )
        left = {name: cell for name, cell in row.items() if name != TASK}
        wanted = _label_columns(left, kind or "regression", targets)
        label = [left.pop(name) for name in wanted if name in left]
        if kind is not None and len(label) < len(wanted):
            raise DataError(
                f"{where} has no column `{wanted[0]}` but {listed(row)}. It holds what is "
                "to be learned. Name that column so."
            )
        x.append(inputs.of_row(left, where, path.parent))
        y.append(label[0] if kind == "classification" else _floats(label, where) if kind else None)
    if not names:
        raise DataError(f"`{path}` holds no rows. Each row is an example. Add some.")
    return Given(x, y, names)


def _label_columns(row: Mapping[str, Any], kind: str, targets: Targets | None) -> tuple[str, ...]:
    if kind == "classification":
        return (LABEL,)
    if targets and all(name in row for name in targets.names):
        return targets.names
    return (TARGET,)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Go through the rows of a table, each with its place in words."""
    try:
        if path.suffix.lower() == ".jsonl":
            for number, line in enumerate(text_lines(path), 1):
                if line.strip():
                    row = parse_json(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is no object")
                    _once([*row.items()])
                    yield f"line {number} of {path}", row
            return
        rows = csv_rows(path)
        _, header = next(rows)
        _once([(name, "") for name in header])
        for number, cells in rows:
            yield (
                f"line {number} of {path}",
                dict(zip(header, (cell.strip() for cell in cells), strict=True)),
            )
    except (OSError, EOFError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"`{path}` cannot be read ({error}). A .csv file has a header and a row for each "
            "example, a .jsonl file an object a line, both in UTF-8. Check the path, or save it "
            "anew."
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of pairs that have names of their own."""
    named = dict(pairs)
    if len(named) < len(pairs) or "" in named:
        raise ValueError("a column has no name, or two have the same")
    return named


def _of_arrays(path: Path, labelled: bool) -> Given:
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            names = [member.filename.removesuffix(".npy") for member in members[: MOST_ARRAYS + 1]]
            if len(names) > MOST_ARRAYS or len(set(names)) < len(names):
                raise ValueError(f"it has more than {MOST_ARRAYS:,} arrays, or two of one name")
            named = next((name for name in ("support_x", "x") if name in names), "")
            wanted = [named, "support_y"] if labelled else [named]
            if set(wanted) <= set(names):
                x, *y = (_array(file, members[names.index(name)], path) for name in wanted)
    except (
        Exception
    ) as error:  # numpy, zipfile and zlib raise a dozen types for the one thing that is wrong
        raise DataError(
            f"`{path}` cannot be read ({str(error)[:200] or type(error).__name__}). A .npz file of "
            "plain arrays, without pickles, is expected. Write it with `numpy.savez`."
        ) from error
    if not set(wanted) <= set(names):
        raise DataError(
            f"`{path}` holds {listed(names) or 'nothing'}. A support set is "
            "`support_x` (examples, ...) and `support_y`, a label or numbers for each; inputs "
            "alone are `x`. Name the arrays so."
        )
    targets = _plain(y[0]) if labelled else [None] * len(x)
    if len(x) != len(targets) or not len(x):
        raise DataError(
            f"`{path}` holds {len(x)} inputs and {len(targets)} targets. There are some, and each "
            "input has one. Write as many."
        )
    return Given(list(x), targets, [f"example {number} of {path}" for number in range(len(x))])


def _array(file: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    """Read one array, of a size that the file bears out."""
    with file.open(member) as opened:
        version = npy.read_magic(opened)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[
            version
        ]
        shape, _, dtype = read_header(opened)
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
    """Turn labels or targets, in an array, a tensor or a list, into a list of plain values."""
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
