"""Given of a user's own task, in any of the forms that people have them in.

In:   a mapping from class names to examples, inputs and targets, or a path of a folder, .csv, .jsonl or .npz.
Out:  `Given`: inputs as `Inputs.encode` takes them, and a class name or numbers for each.
Knows nothing of models.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from weightloom.apps.fewshot.inputs import Inputs, Targets
from weightloom.errors import DataError
from weightloom.texts import home, kind_of, parse_json

TABLES = (".csv", ".jsonl", ".npz")
LABEL, TARGET, TASK = "label", "y", "task"
FORMS = (
    "a mapping from class names to examples; (x, y); or a path: a folder with a folder for each class, a .csv or "
    ".jsonl file with a column `label`, or a .npz file with `support_x` and `support_y`"
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
    support: Any, inputs: Inputs, kind: Literal["classification", "regression"], targets: Targets | None = None
) -> Given:
    """Read the support set of one task.

    Args:
        support: A mapping from class names to examples; inputs and targets; or a path.
        inputs: Kind of the inputs.
        kind: Kind of the task.
        targets: Of a regression.

    Raises:
        DataError: If it is none of these, a file cannot be read, or a class has no example.
    """
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
            raise DataError(f"There are {len(x)} inputs and {len(y)} targets. Each input has one. Pass as many.")
        return Given(x, y, names)
    forms = FORMS if kind == "classification" else POINTS
    raise DataError(f"A support set cannot be a {type(support).__name__} here. It is {forms}. Pass one of these.")


def read_inputs(given: Any, inputs: Inputs) -> tuple[list[Any], list[str]]:
    """Read inputs without labels, and name each.

    Args:
        given: Given, or paths; a folder, or a .csv, .jsonl or .npz file, stands for all that it holds.
        inputs: Kind of the inputs.

    Raises:
        DataError: If a file cannot be read.
    """
    items, names = list[Any](), list[str]()
    alone = isinstance(given, str | Path) or hasattr(given, "convert")
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
    return items, names


def _of_classes(classes: Mapping[Any, Any], inputs: Inputs) -> Given:
    x, y, names = list[Any](), list[Any](), list[str]()
    for name, given in classes.items():
        items, its = read_inputs(given, inputs)
        if not items:
            where = f" (`{given}`)" if isinstance(given, Path) else ""
            raise DataError(
                f"The class `{name}`{where} is empty. A class has an example or more. Add some, or drop it."
            )
        x, y = x + items, y + [name] * len(items)
        named = zip(items, its, strict=True)
        names += [its_name if isinstance(item, str | Path) else f"{name}, {its_name}" for item, its_name in named]
    return Given(x, y, names)


def _class_folders(root: Path) -> list[Path]:
    folders = [entry for entry in _visible(root) if entry.is_dir()]
    if len(folders) < 2:
        raise DataError(
            f"`{root}` has {len(folders)} folders in it. A task in a folder has a folder for each of its classes, two "
            "or more, named after them. Sort the examples into such folders."
        )
    return folders


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _of_file(
    path: Path,
    inputs: Inputs,
    kind: Literal["classification", "regression"] | None,
    targets: Targets | None = None,
) -> Given:
    """Read a file of examples; ``kind`` None: without their labels."""
    if path.suffix.lower() not in TABLES:
        what = {"nothing": "is not there", "folder": "is a folder"}.get(kind_of(path), "is of no kind known")
        forms = POINTS if kind == "regression" else FORMS
        raise DataError(f"`{path}` {what}. A support set is {forms}. Check the path.")
    if path.suffix.lower() == ".npz":
        return _of_arrays(path, labelled=kind is not None)
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"`{path}` holds no rows. Each row is an example. Add some.")
    x, y = list[Any](), list[Any]()
    for where, row in rows:
        left = {name: cell for name, cell in row.items() if name != TASK}
        wanted = _label_columns(left, kind or "regression", targets)
        label = [left.pop(name) for name in wanted if name in left]
        if kind is not None and len(label) < len(wanted):
            raise DataError(
                f"{where} has no column `{wanted[0]}` but {', '.join(f'`{name}`' for name in row)}. It holds what is "
                "to be learned. Name that column so."
            )
        x.append(inputs.of_row(left, where, path.parent))
        y.append(label[0] if kind == "classification" else _floats(label, where) if kind else None)
    return Given(x, y, [where for where, _ in rows])


def _label_columns(row: Mapping[str, Any], kind: str, targets: Targets | None) -> tuple[str, ...]:
    if kind == "classification":
        return (LABEL,)
    if targets and all(name in row for name in targets.names):
        return targets.names
    return (TARGET,)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Go through the rows of a table, each with its place in words."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    row = parse_json(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is no object")
                    yield f"line {number} of {path}", row
            return
        separator = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, restkey="", strict=True)
        for cells in reader:
            if "" in cells or None in cells.values():
                raise ValueError(f"line {reader.line_num} has not as many cells as the header")
            yield f"line {reader.line_num} of {path}", {name.strip(): cell.strip() for name, cell in cells.items()}
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"`{path}` cannot be read ({error}). A .csv file has a header and a row for each example, a .jsonl file an "
            "object a line, both in UTF-8. Check the path, or save it anew."
        ) from error


def _of_arrays(path: Path, labelled: bool) -> Given:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # numpy, zipfile and zlib raise a dozen types for the one thing that is wrong
        raise DataError(
            f"`{path}` cannot be read ({str(error) or type(error).__name__}). A .npz file of plain arrays, without "
            "pickles, is expected. Write it with `numpy.savez`."
        ) from error
    named = next((name for name in ("support_x", "x") if name in arrays), "")
    if not named or (labelled and "support_y" not in arrays):
        raise DataError(
            f"`{path}` holds {', '.join(f'`{name}`' for name in arrays) or 'nothing'}. A support set is `support_x` "
            "(examples, ...) and `support_y`, a label or numbers for each; inputs alone are `x`. Name the arrays so."
        )
    x = list(arrays[named])
    y = _plain(arrays["support_y"]) if labelled else [None] * len(x)
    if len(x) != len(y):
        raise DataError(f"`{path}` holds {len(x)} inputs and {len(y)} targets. Each input has one. Write as many.")
    return Given(x, y, [f"example {number} of {path}" for number in range(len(x))])


def _plain(values: Any) -> list[Any]:
    """Turn labels or targets, in an array, a tensor or a list, into a list of plain values."""
    listed = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values).tolist()
    return [listed] if not isinstance(listed, list) else listed


def _floats(cells: Sequence[Any], where: str) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} has a target that is no number ({error}). Fill the cell, or drop the row.") from error
