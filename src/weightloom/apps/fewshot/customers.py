"""Customers of a trained method: a .jsonl file, each line a name and the examples of one.

In:   lines such as ``{"name": "ann", "examples": [{"text": "late again", "label": "bad"}, …]}``,
      where examples are rows as in the .jsonl file of a support set.
Out:  `CustomerWriter`, which adapts to batches of lines; labels are numbered per customer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from weightloom.apps.fewshot.adapted import Prepared, prepare
from weightloom.apps.fewshot.problems import Problem
from weightloom.apps.fewshot.support import read_rows
from weightloom.errors import DataError
from weightloom.learners.learner import Learner
from weightloom.serving import CustomerWriter, Given
from weightloom.tasks.lines import check_file, text_lines
from weightloom.texts import TextError, home, parse_json


class Customers:
    """Lines of a .jsonl file of customers, read one at a time; blank lines are left out.

    Args:
        path: The file, gzipped if its name ends in ``.gz``.

    Raises:
        DataError: If there is no such file; while it is read, if it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = home(path)
        check_file(self.path, "A .jsonl file of customers")
        self._count: int | None = None

    def __len__(self) -> int:
        if self._count is None:
            self._count = sum(1 for _ in self)
        return self._count

    def __iter__(self) -> Iterator[str]:
        try:
            for line in text_lines(self.path):
                if line.strip():
                    yield line.strip()
        except (OSError, EOFError, ValueError) as error:
            raise DataError(
                f"`{self.path}` cannot be read ({error}). A .jsonl file holds one customer a line, "
                "in UTF-8. Check the path, or save it anew."
            ) from error


def is_customers(path: Path) -> bool:
    """Return True if a .jsonl file begins with a customer: an object with a list of examples."""
    if not path.name.lower().removesuffix(".gz").endswith(".jsonl"):
        return False
    try:
        first = parse_json(next(iter(Customers(path)), ""))
    except (DataError, TextError):
        return False
    return isinstance(first, dict) and isinstance(first.get("examples"), list)


def writer_of(learner: Learner, problem: Problem, folder: Path, beside: Path) -> CustomerWriter:
    """Return a writer of the parameters of customers.

    Args:
        learner: The trained method.
        problem: The problem it was trained on, which defines the preprocessing.
        folder: Folder to write to.
        beside: Folder that paths in examples are relative to.
    """
    read = partial(read_customers, learner, problem, beside)
    return CustomerWriter(learner.base, learner, folder, read)


def read_customers(
    learner: Learner, problem: Problem, beside: Path, lines: Sequence[str]
) -> list[Given]:
    """Read the customers of some lines, and encode all their examples in one pass.

    Args:
        learner: The trained method.
        problem: The problem it was trained on.
        beside: Folder that paths in examples are relative to.
        lines: One customer each.

    Returns:
        Name, examples and classes of each customer.

    Raises:
        DataError: If a line is no customer, or an example cannot be read or has the wrong form.
        ConfigError: If the method cannot be adapted to the number of classes.
    """
    inputs, targets = problem.inputs(), problem.targets()
    names, shown = list[str](), list[Prepared]()
    for line in lines:
        name, rows = _parsed(line)
        given = read_rows(rows, f"`{name}`", beside, inputs, problem.kind, targets)
        names.append(name)
        shown.append(prepare(learner, problem, given, inputs, targets))
    items = [item for its in shown for item in its.items]
    its_names = [item_name for its in shown for item_name in its.names]
    x = problem.encode(inputs.encode(items, its_names)).split([len(its.items) for its in shown])
    return [
        Given(name, (part, its.y), _about(its))
        for name, part, its in zip(names, x, shown, strict=True)
    ]


def _about(task: Prepared) -> dict[str, Any]:
    if task.targets is not None:
        return {"targets": asdict(task.targets)}
    return {"classes": list(task.classes)}


def _parsed(line: str) -> tuple[str, list[dict[str, Any]]]:
    try:
        held = parse_json(line)
        name, rows = held["name"], held["examples"]
        if not isinstance(name, str) or not name:
            raise TextError(f"its name is {str(name)[:60]!r}")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise TextError("its examples are no list of objects")
    except (TextError, KeyError, TypeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise DataError(
            f"The line `{line[:60]}` is no customer ({reason}). A customer has a name, a text, and "
            'a list of examples. Write `{"name": "ann", "examples": [{"text": "late again", '
            '"label": "complaint"}, …]}`, with the columns of the run\'s data.'
        ) from error
    return name, rows
