"""Your own regression tasks: a CSV file with a column that says which task a row is of.

In:   a path, the name of the target column.
Out:  `TableTasks`: the points of every task as they stand in the file, what was skipped and why;
      and the same scaled.
"""

import math
from array import array
from collections import Counter
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


class Scale(NamedTuple):
    """Mean and standard deviation of every feature and of the target, by which they are brought to one size."""

    x_mean: Tensor
    """(features,)."""
    x_std: Tensor
    """(features,); one where a feature never changes."""
    y_mean: Tensor
    """(1,)."""
    y_std: Tensor
    """(1,)."""

    @classmethod
    def of(cls, pool: PointPool) -> "Scale":
        """Measure the points of all tasks of a pool.

        For the tasks of meta-training, that nothing else leaks in.
        """
        x, y = pool.x.double(), pool.y.double()
        stds = [values.std(0, correction=0) for values in (x, y)]
        x_std, y_std = (torch.where(std > 0, std, 1.0) for std in stds)
        return cls(x.mean(0), x_std, y.mean(0), y_std)

    def apply(self, pool: PointPool) -> PointPool:
        """Return the pool with every point scaled, float32."""
        x, y = (pool.x - self.x_mean) / self.x_std, (pool.y - self.y_mean) / self.y_std
        return pool._replace(x=x.float(), y=y.float())

    def unscaled(self, y: Tensor) -> Tensor:
        """Return predictions in the unit of the file."""
        return y * self.y_std + self.y_mean


class TableTasks(NamedTuple):
    """What was read from a file."""

    pool: PointPool
    """The points of every task as they stand in the file, float64."""
    features: tuple[str, ...]
    """Names of the input columns."""
    target: str
    """Name of the target column."""
    skipped: tuple[Skipped, ...]
    """Tasks that were left out."""

    def split(
        self, validation: float = 0.2, test: float = 0.2, seed: int = 0
    ) -> tuple[PointPool, PointPool, PointPool]:
        """Split the tasks at random to meta-train, validate and test on, all scaled by those of meta-training.

        Args:
            validation: Share of the tasks to validate on; at least one.
            test: Share of the tasks to test on; at least one.
            seed: Says which.

        Raises:
            ConfigError: If no task is left for one of the three.
        """
        tasks = len(self.pool.names)
        sizes = [max(1, round(share * tasks)) for share in (validation, test)]
        if tasks <= sum(sizes):
            raise ConfigError(
                f"`validation={validation}` and `test={test}` leave none of the {tasks} tasks to "
                "meta-train on. Each part needs tasks of its own. Pass smaller shares, or a file "
                "with more tasks."
            )
        order = torch.randperm(tasks, generator=torch.Generator().manual_seed(seed))
        train = self.pool.take(order[sum(sizes) :])
        scale = Scale.of(train)
        held_out = [self.pool.take(part) for part in order[: sum(sizes)].split(sizes)]
        return scale.apply(train), scale.apply(held_out[0]), scale.apply(held_out[1])


def load_table(path: str | Path, target: str | None = None, fewest_points: int = 4) -> TableTasks:
    """Read regression tasks from a CSV file, gzipped or not, with a header.

    A row is a point of the task it names.

    Every column but ``task`` and the target is a feature and holds numbers. Columns are separated
    by commas, semicolons or tabs, as the header shows; numbers have a decimal point.

    Args:
        path: The file.
        target: Name of the column to predict. None takes ``y``, or the last where there is none of
            that name.
        fewest_points: Tasks with fewer rows are skipped, and listed.

    Raises:
        ConfigError: If a column is missing or stands there twice, or ``target`` is the task column.
        DataError: If the file is not there, is no text, a row has too many or too few cells, a cell
            is no finite number, no task is long enough, or a limit of `weightloom.limits` is
            passed.
    """
    path = home(path)
    rows = csv_rows(path)
    _, header = next(rows)
    target = target or ("y" if "y" in header else "".join(header[-1:]))
    _check_header(header, target, path)
    features = tuple(name for name in header if name not in (TASK, target))
    place = {name: column for column, name in enumerate(header)}
    where = [place[name] for name in (*features, target)]
    tasks, task_of, numbers = dict[str, int](), array("q"), array("d")
    for line, cells in rows:
        task_of.append(tasks.setdefault(cells[place[TASK]].strip(), len(tasks)))
        numbers.extend(_numbers(cells, where, line, header, path))
        if len(tasks) > MOST_TABLE_TASKS:
            raise DataError(
                f"`{path}` has more than {MOST_TABLE_TASKS:,} tasks. A row belongs to the task "
                f"that the column `{TASK}` names, and tasks have several rows. Name them in that "
                "column, or leave some out."
            )
    points = torch.from_numpy(np.asarray(numbers)).reshape(-1, len(where))
    pool = _pool(tuple(tasks), torch.from_numpy(np.asarray(task_of)), points)
    long_enough = pool.counts >= fewest_points
    if not bool(long_enough.any()):
        raise DataError(
            f"`{path}` holds {len(tasks)} tasks, none with {fewest_points} rows or more. A task "
            f"needs points to adapt on and others to be judged on. Check the column `{TASK}`, or "
            "pass a smaller `fewest_points`."
        )
    skipped = tuple(
        Skipped(task, f"has {count} rows, fewer than `fewest_points={fewest_points}`")
        for task, count in zip(pool.names, pool.counts.tolist(), strict=True)
        if count < fewest_points
    )
    return TableTasks(
        pool.take(long_enough.nonzero()[:, 0]) if skipped else pool, features, target, skipped
    )


def _pool(names: tuple[str, ...], task_of: Tensor, points: Tensor) -> PointPool:
    """Gather rows by task, in the order of the file."""
    points = points[task_of.argsort(stable=True)]
    counts = torch.bincount(task_of, minlength=len(names))
    return PointPool(
        points[:, :-1], points[:, -1:], counts, names, torch.zeros(len(names), dtype=torch.long)
    )


def _check_header(header: list[str], target: str, path: str | Path) -> None:
    for name, what in ((TASK, "says which task a row is of"), (target, "is the target")):
        if header.count(name) != 1:
            raise ConfigError(
                f"`{path}` has {header.count(name) or 'no'} columns named `{name}`. One such "
                f"column {what}. {nearest(name, dict.fromkeys(header))} Rename it, or add it to "
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
                "Give every column a name of its own."
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
