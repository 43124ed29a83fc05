"""Batches whose rows belong to several tasks: each row run as one task, or rows grouped by task.

In:   a call whose tensors have rows, and the task of each row.
Out:  a call whose tensors have a tasks axis; or the places of rows in a grid of tasks.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightloom.base.call import Call
from weightloom.errors import BatchingError, ConfigError, ShapeError
from weightloom.forms.factored import Factored


def check_rows(task_of_row: Tensor, tasks: int, rows: Sequence[Tensor]) -> None:
    """Raise unless ``task_of_row`` holds numbers of tasks, and every tensor has as many rows.

    Raises:
        ConfigError: If a number is below 0, or not below ``tasks``.
        ShapeError: If ``task_of_row`` is empty, or a tensor has another number of rows.
    """
    count = len(task_of_row)
    if count and not (int(task_of_row.min()) >= 0 and int(task_of_row.max()) < tasks):
        raise ConfigError(
            f"`task_of_row` holds tasks from {int(task_of_row.min())} to {int(task_of_row.max())}. "
            f"`params` holds {tasks} tasks, numbered from 0. Pass numbers from 0 to {tasks - 1}."
        )
    if count == 0:
        raise ShapeError(
            "`task_of_row` is empty. No row is left to run, and the shape of the outputs is not "
            "known. Leave out the call where there are no rows."
        )
    for x in rows:
        if not x.ndim or len(x) != count:
            raise ShapeError(
                f"A tensor of shape {tuple(x.shape)} was passed for {count} rows. Every tensor has "
                "a row for each of `task_of_row`, on axis 0, unless all share it. Pass as many "
                "rows, or wrap it: `Shared(x)`."
            )


def row_by_row(call: Call, task_of_row: Tensor, rows: int | None = None) -> Call:
    """Turn every row, or the first ``rows``, into one task with a batch of one."""
    its = call.params
    if rows is not None or not _is_each_once(task_of_row, call.params):
        its = {name: value[task_of_row[:rows]] for name, value in call.params.items()}
    return call._replace(params=its, rows=[x[:rows, None] for x in call.rows])


def _is_each_once(task_of_row: Tensor, params: Mapping[str, Tensor]) -> bool:
    """Return True if every task has exactly one row, in order."""
    tasks = len(next(iter(params.values()))) if params else -1
    return len(task_of_row) == tasks and bool(
        (task_of_row == torch.arange(tasks, device=task_of_row.device)).all()
    )


def grid(
    task_of_row: Tensor, params: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Lay rows out in a grid by task, so that built parameters need not be copied for every row.

    Returns:
        Numbers of the tasks that have rows; the row at each place of the grid, ``(tasks, places)``,
        with a task's first row repeated where it has no more; the grid's task and place of each
        row. None if all parameters are held as factors, no task has two rows, or the grid would
        have more than twice as many places as rows.
    """
    if all(isinstance(value, Factored) for value in params.values()):
        return None
    present, task, counts = task_of_row.unique(return_inverse=True, return_counts=True)
    places = int(counts.max())
    if places == 1 or len(present) * places > 2 * len(task_of_row):
        return None
    order = task.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(task)
    place[order] = torch.arange(len(task), device=task.device) - starts[task[order]]
    # the first row of each task fills the places that are left over
    rows = order[starts][:, None].repeat(1, places)
    rows[task, place] = torch.arange(len(task), device=task.device)
    return present, rows, task, place


def without_batch(y: Tensor, name: str) -> Tensor:
    """Remove the batch axis of size 1: (rows, 1, ...) -> (rows, ...).

    Raises:
        BatchingError: If the output has no such axis.
    """
    if y.ndim < 2 or y.shape[1] != 1:
        raise BatchingError(
            f"{name} returns a tensor of shape {tuple(y.shape[1:])} for one row. `by_row` runs "
            "each row as a batch of one, so every output has one row too. Return a row for each "
            "row of the batch."
        )
    return y[:, 0]
