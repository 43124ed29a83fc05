"""Regression tasks of a user: a CSV file with a column that names the task of each row.

In:   a path, the name of the target column.
Out:  `TableTasks`: the unscaled points of every task, and the skipped tasks with the reasons; from
      it, scaled pools for meta-training, validation and test.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weightloom.errors import ConfigError, DataError, listed, nearest
from weightloom.limits import MOST_TABLE_TASKS
from weightloom.tasks.lines import csv_rows
from weightloom.tasks.points import PointPool
from weightloom.tasks.tasks import Skipped
from weightloom.texts import home

TASK = "task"
"""Name of the column that names the task of a row."""


class Scale(NamedTuple):
    """Standardisation of features and target: their means and standard deviations."""

    x_mean: Tensor
    """Means of the features, (features,)."""
    x_std: Tensor
    """Standard deviations of the features, (features,); 1 for a constant feature."""
    y_mean: Tensor
    """Mean of the target, (1,)."""
    y_std: Tensor
    """Standard deviation of the target, (1,); 1 for a constant target."""

    @classmethod
    def of(cls, pool: PointPool) -> "Scale":
        """Compute the scale of all points in a pool.

        Pass the pool for meta-training, so that no information leaks from validation and test.
        """
        x, y = pool.x.double(), pool.y.double()
        stds = [values.std(0, correction=0) for values in (x, y)]
        x_std, y_std = (torch.where(std > 0, std, 1.0) for std in stds)
        return cls(x.mean(0), x_std, y.mean(0), y_std)

    def apply(self, pool: PointPool) -> PointPool:
        """Return the pool with all points standardised, float32."""
        x, y = (pool.x - self.x_mean) / self.x_std, (pool.y - self.y_mean) / self.y_std
        return pool._replace(x=x.float(), y=y.float())

    def unscaled(self, y: Tensor) -> Tensor:
        """Convert standardised predictions to the unit of the file."""
        return y * self.y_std + self.y_mean


class TableTasks(NamedTuple):
    """Regression tasks read from a table."""

    pool: PointPool
    """Unscaled points of every task, float64."""
    features: tuple[str, ...]
    """Names of the input columns."""
    target: str
    """Name of the target column."""
    skipped: tuple[Skipped, ...]
    """Tasks that were left out, with the reasons."""

    def split(
        self, validation: float = 0.2, test: float = 0.2, seed: int = 0
    ) -> tuple[PointPool, PointPool, PointPool]:
        """Split the tasks at random into pools for meta-training, validation and test, all scaled.

        All three are standardised by the means and standard deviations of the meta-training tasks.

        Args:
            validation: Fraction of the tasks for validation; at least one task.
            test: Fraction of the tasks for test; at least one task.
            seed: Seed of the split.

        Raises:
            ConfigError: If no task is left for meta-training.
        """
        tasks = len(self.pool.names)
        sizes = [max(1, round(share * tasks)) for share in (validation, test)]
        if tasks <= sum(sizes):
            raise ConfigError(
                f"`validation={validation}` and `test={test}` leave none of the {tasks} tasks to "
                "meta-train on. The three parts share no task. Pass smaller shares, or a file with "
                "more tasks."
            )
        order = torch.randperm(tasks, generator=torch.Generator().manual_seed(seed))
        train = self.pool.take(order[sum(sizes) :])
        scale = Scale.of(train)
        held_out = [self.pool.take(part) for part in order[: sum(sizes)].split(sizes)]
        return scale.apply(train), scale.apply(held_out[0]), scale.apply(held_out[1])


def load_table(path: str | Path, target: str | None = None, fewest_points: int = 4) -> TableTasks:
    """Read regression tasks from a CSV file with a header, a row per point.

    The column ``task`` names the task. All columns except ``task`` and the target are features, and
    contain numbers with a decimal point. The separator is the most frequent of comma, semicolon and
    tab in the header.

    Args:
        path: File in UTF-8, gzipped if its name ends in ``.gz``.
        target: Name of the column to predict. None: ``y``, or without such a column the last one.
        fewest_points: Minimum rows of a task; tasks with fewer are skipped.

    Raises:
        ConfigError: If a column is missing or repeated, or ``target`` is the task column.
        DataError: If the file cannot be read, a row has too many or too few cells, a cell is not a
            finite number, no task has enough rows, or a limit of `weightloom.limits` is exceeded.
    """
    path = home(path)
    rows = csv_rows(path)
    _, header = next(rows)
    target = target or ("y" if "y" in header else "".join(header[-1:]))
    _check_header(header, target, path)
    features = tuple(name for name in header if name not in (TASK, target))
    pool = _read(rows, header, [*features, target], path)
    long_enough = pool.counts >= fewest_points
    if not bool(long_enough.any()):
        raise DataError(
            f"`{path}` holds {len(pool.names)} tasks, none with {fewest_points} rows or more. A "
            f"task needs points to adapt on and others to be judged on. Check the column `{TASK}`, "
            "or pass a smaller `fewest_points`."
        )
    skipped = tuple(
        Skipped(task, f"has {count} rows, fewer than `fewest_points={fewest_points}`")
        for task, count in zip(pool.names, pool.counts.tolist(), strict=True)
        if count < fewest_points
    )
    return TableTasks(
        pool.take(long_enough.nonzero()[:, 0]) if skipped else pool, features, target, skipped
    )


def _read(
    rows: Iterator[tuple[int, list[str]]], header: list[str], columns: list[str], path: Path
) -> PointPool:
    """Read the points of all rows; the last of the columns is the target."""
    place = {name: column for column, name in enumerate(header)}
    task_column, where = place[TASK], [place[name] for name in columns]
    tasks, task_of, numbers = dict[str, int](), array("q"), array("d")
    for line, cells in rows:
        task_of.append(tasks.setdefault(cells[task_column].strip(), len(tasks)))
        numbers.extend(_numbers(cells, where, line, header, path))
        if len(tasks) > MOST_TABLE_TASKS:
            raise DataError(
                f"`{path}` has more than {MOST_TABLE_TASKS:,} tasks. A row belongs to the task "
                f"that the column `{TASK}` names, and tasks have several rows. Name them in that "
                "column, or leave some out."
            )
    points = torch.from_numpy(np.asarray(numbers)).reshape(-1, len(where))
    return _pool(tuple(tasks), torch.from_numpy(np.asarray(task_of)), points)


def _pool(names: tuple[str, ...], task_of: Tensor, points: Tensor) -> PointPool:
    """Gather the rows of each task, in the order of the file."""
    points = points[task_of.argsort(stable=True)]
    counts = torch.bincount(task_of, minlength=len(names))
    return PointPool(
        points[:, :-1], points[:, -1:], counts, names, torch.zeros(len(names), dtype=torch.long)
    )


def _check_header(header: list[str], target: str, path: str | Path) -> None:
    for name, use in ((TASK, "names the task of a row"), (target, "is the target")):
        if header.count(name) != 1:
            raise ConfigError(
                f"`{path}` has {header.count(name) or 'no'} columns named `{name}`. One such "
                f"column {use}. {nearest(name, dict.fromkeys(header))} Rename it, or add it to "
                "the header."
            )
    if target == TASK or len(header) < 3:
        raise ConfigError(
            f"`{path}` has the columns {listed(header)}, with `{target}` as the target. A "
            f"column `{TASK}`, at least one feature and a target are needed. Pass the name of the "
            "target column."
        )
    for name, count in Counter(header).items():
        if count > 1 or not name:
            raise ConfigError(
                f"`{path}` has {count} columns named `{name}`. A feature is known by its name. "
                "Give every column a different name."
            )


def _numbers(
    cells: list[str], where: list[int], line: int, header: list[str], path: Path
) -> list[float]:
    try:
        numbers = [float(cells[column]) for column in where]
    except ValueError:
        numbers = [math.nan]
    if all(map(math.isfinite, numbers)) and "_" not in "".join(cells[column] for column in where):
        return numbers
    return [_number(cells[column], line, header[column], path) for column in where]


def _number(cell: str, line: int, column: str, path: str | Path) -> float:
    try:
        number = math.nan if "_" in cell else float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"Line {line} of `{path}` has {cell[:60]!r} in the column `{column}`. Features and "
            "targets are finite numbers with a decimal point. Fill the cell, turn words into "
            "numbers, or leave the row or the column out."
        )
    return number
