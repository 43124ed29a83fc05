"""Your own regression tasks: a CSV file with a column that says which task a row is of.

In:   a path, the name of the target column.
Out:  `TableTasks`: the points of every task as they stand in the file, what was skipped and why; and the same scaled.
"""

import csv
import gzip
import io
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from weightloom.errors import ConfigError, DataError, nearest
from weightloom.tasks.points import PointPool
from weightloom.tasks.tasks import Skipped

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
        """Measure the points of all tasks of a pool; for the tasks of meta-training, that nothing else leaks in."""
        there = torch.arange(pool.x.shape[1]) < pool.counts[:, None]
        x, y = pool.x[there].double(), pool.y[there].double()
        stds = [values.std(0, correction=0) for values in (x, y)]
        x_std, y_std = (torch.where(std > 0, std, 1.0) for std in stds)
        return cls(x.mean(0), x_std, y.mean(0), y_std)

    def apply(self, pool: PointPool) -> PointPool:
        """Return the pool with every point scaled; what lies behind a task's last stays zero."""
        there = (torch.arange(pool.x.shape[1]) < pool.counts[:, None])[..., None]
        x, y = (pool.x - self.x_mean) / self.x_std, (pool.y - self.y_mean) / self.y_std
        return pool._replace(x=(x * there).float(), y=(y * there).float())

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
                f"`validation={validation}` and `test={test}` leave none of the {tasks} tasks to meta-train on. "
                "Each part needs tasks of its own. Pass smaller shares, or a file with more tasks."
            )
        order = torch.randperm(tasks, generator=torch.Generator().manual_seed(seed))
        train = self.pool.take(order[sum(sizes) :])
        scale = Scale.of(train)
        held_out = [self.pool.take(part) for part in order[: sum(sizes)].split(sizes)]
        return scale.apply(train), scale.apply(held_out[0]), scale.apply(held_out[1])


def load_table(path: str | Path, target: str | None = None, fewest_points: int = 4) -> TableTasks:
    """Read regression tasks from a CSV file, gzipped or not, with a header; a row is a point of the task it names.

    Every column but ``task`` and the target is a feature and holds numbers. Columns are separated by commas,
    semicolons or tabs, as the header shows; numbers have a decimal point.

    Args:
        path: The file.
        target: Name of the column to predict. None takes ``y``, or the last where there is none of that name.
        fewest_points: Tasks with fewer rows are skipped, and listed.

    Raises:
        ConfigError: If a column is missing or stands there twice, or ``target`` is the task column.
        DataError: If the file is not there, is no text, a row has too many or too few cells, a cell is no finite
            number, or no task is long enough.
    """
    header, rows = _read(Path(path).expanduser())
    target = target or ("y" if "y" in header else "".join(header[-1:]))
    _check_header(header, target, path)
    features = tuple(name for name in header if name not in (TASK, target))
    where = [header.index(name) for name in (*features, target)]
    points: dict[str, list[list[float]]] = {}
    for line, cells in rows:
        numbers = [_number(cells[column], line, header[column], path) for column in where]
        points.setdefault(cells[header.index(TASK)].strip(), []).append(numbers)
    skipped = tuple(
        Skipped(task, f"has {len(its)} rows, fewer than `fewest_points={fewest_points}`")
        for task, its in points.items()
        if len(its) < fewest_points
    )
    kept = [torch.tensor(its, dtype=torch.float64) for its in points.values() if len(its) >= fewest_points]
    if not kept:
        raise DataError(
            f"`{path}` holds {len(points)} tasks, none with {fewest_points} rows or more. A task needs points to adapt "
            f"on and others to be judged on. Check the column `{TASK}`, or pass a smaller `fewest_points`."
        )
    padded = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True)
    counts = torch.tensor([len(its) for its in kept])
    names = tuple(task for task, its in points.items() if len(its) >= fewest_points)
    pool = PointPool(padded[..., :-1], padded[..., -1:], counts, names, torch.zeros(len(kept), dtype=torch.long))
    return TableTasks(pool, features, target, skipped)


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and every row with the number of its line."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, cells) for cells in reader if cells]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise DataError(
            f"`{path}` cannot be read ({error}). A CSV file in UTF-8 with a header is expected, gzipped if it ends in "
            "`.gz`. Check the path, or save the table as CSV."
        ) from error
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"Line {line} of `{path}` has {len(cells)} cells, but the header names {len(header)} columns. Every "
                "row has one cell for each. Complete the line, or quote cells that hold a separator."
            )
    return header, rows


def _check_header(header: list[str], target: str, path: str | Path) -> None:
    for name, what in ((TASK, "says which task a row is of"), (target, "is the target")):
        if header.count(name) != 1:
            raise ConfigError(
                f"`{path}` has {header.count(name) or 'no'} columns named `{name}`. One such column {what}. "
                f"{nearest(name, header)} Rename it, or add it to the header."
            )
    if target == TASK or len(header) < 3:
        raise ConfigError(
            f"`{path}` has the columns {', '.join(f'`{name}`' for name in header)}, with `{target}` as the target. A "
            f"column `{TASK}`, at least one feature and a target are needed. Pass the name of the target column."
        )
    for name in header:
        if header.count(name) > 1 or not name:
            raise ConfigError(
                f"`{path}` has {header.count(name)} columns named `{name}`. A feature is known by its name. "
                "Give every column a name of its own."
            )


def _number(cell: str, line: int, column: str, path: str | Path) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"Line {line} of `{path}` has {cell!r} in the column `{column}`. Features and targets are finite numbers "
            "with a decimal point. Fill the cell, turn words into numbers, or leave the row or the column out."
        )
    return number
