"""Rows of several tasks in one batch: each row a task of its own, or laid out by task.

In:   a call whose tensors have rows, and the task of each row.
Out:  a call whose tensors have tasks; or the places of rows in a grid of tasks.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightloom.base.call import Call
from weightloom.errors import BatchingError, ConfigError, ShapeError
from weightloom.forms.factored import Factored


def check_rows(task_of_row: Tensor, tasks: int, rows: Sequence[Tensor]) -> None:
    """Raise unless every row has a task that is there, and every tensor a row for each."""
    count = len(task_of_row)
    if count and not (int(task_of_row.min()) >= 0 and int(task_of_row.max()) < tasks):
        raise ConfigError(
            f"`task_of_row` holds tasks from {int(task_of_row.min())} to {int(task_of_row.max())}. "
            f"`params` holds {tasks} tasks, numbered from 0. Pass numbers from 0 to {tasks - 1}."
        )
    if count == 0:
        raise ShapeError(
            "`task_of_row` is empty. There is nothing to run, and no way to tell what would come "
            "out. Leave out the call where there are no rows."
        )
    for x in rows:
        if not x.ndim or len(x) != count:
            raise ShapeError(
                f"A tensor of shape {tuple(x.shape)} was passed for {count} rows. Every tensor has "
                "a row for each of `task_of_row`, on axis 0, unless all share it. Pass as many "
                "rows, or wrap it: `Shared(x)`."
            )


def row_by_row(call: Call, task_of_row: Tensor, rows: int | None = None) -> Call:
    """The same with every row, or the first few, as a task of its own: a batch of one."""
    its = call.params
    if rows is not None or not _is_each_once(task_of_row, call.params):
        its = {name: value[task_of_row[:rows]] for name, value in call.params.items()}
    return call._replace(params=its, rows=[x[:rows, None] for x in call.rows])


def _is_each_once(task_of_row: Tensor, params: Mapping[str, Tensor]) -> bool:
    """Whether every task has one row, in order, so that nothing is to be taken."""
    tasks = len(next(iter(params.values()))) if params else -1
    return len(task_of_row) == tasks and bool(
        (task_of_row == torch.arange(tasks, device=task_of_row.device)).all()
    )


def grid(
    task_of_row: Tensor, params: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Lay rows out by task, where parameters are built and so not copied for every row.

    Returns:
        Tasks that are there; the row at each place, (tasks, places), some of them twice; the task
        and the place of each row. None where all are held as factors, or the places would be more
        than twice the rows.
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
    rows = order[starts][:, None].repeat(
        1, places
    )  # the first of each task, where there are no more
    rows[task, place] = torch.arange(len(task), device=task.device)
    return present, rows, task, place


def without_batch(y: Tensor, name: str) -> Tensor:
    """Take the batch axis of one row away."""
    if y.ndim < 2 or y.shape[1] != 1:
        raise BatchingError(
            f"{name} returns a tensor of shape {tuple(y.shape[1:])} for one row. By rows, each is "
            "a batch of one, so what is returned has one row too. Return a row for each row of the "
            "batch."
        )
    return y[:, 0]
