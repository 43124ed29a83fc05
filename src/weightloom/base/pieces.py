"""Some tasks at a time, and what several runs returned as one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from weightloom.base.call import Call, Result
from weightloom.base.state import of_one_task
from weightloom.errors import BatchingError
from weightloom.forms.factored import built
from weightloom.replica.tree import is_plain, open_tree


def in_pieces(run: Callable[[Call], Result], call: Call) -> Result:
    """Run some tasks at a time and join the outputs."""
    size = call.chunk_size
    if size is None or size >= call.tasks:
        return run(call)
    random = torch.get_rng_state() if call.randomness == "same" else None
    results = []
    for start in range(0, call.tasks, size):
        if random is not None:
            torch.set_rng_state(random)
        part = slice(start, start + size)
        results.append(
            run(
                call._replace(
                    params={name: value[part] for name, value in call.params.items()},
                    rows=[x[part] for x in call.rows],
                    buffers={name: value[part] for name, value in call.buffers.items()},
                    state={where: of_one_task(its, part) for where, its in call.state.items()},
                    tasks=min(size, call.tasks - start),
                    chunk_size=None,
                )
            )
        )
    outputs = join([result.outputs for result in results], torch.cat, call.target.name)
    written = []
    for several in zip(*(result.written for result in results), strict=True):
        first = several[0]
        value = (
            join([its.value for its in several], torch.cat, first.name)
            if first.of_tasks
            else several[-1].value
        )
        written.append(first._replace(value=value))
    return Result(outputs, written)


def join(trees: Sequence[Any], how: Callable[[list[Tensor]], Tensor], name: str) -> Any:
    """Join what several runs returned, tensor by tensor.

    Raises:
        BatchingError: If they differ in structure, in shapes, or in something that is no tensor.
    """
    if all(is_plain(tree) for tree in trees):
        return _joined(list(trees), how, name)
    opened = [open_tree(tree) for tree in trees]
    first = opened[0]
    if any(its.key != first.key for its in opened):
        raise BatchingError(
            f"What {name} returns differs from task to task in something that is no tensor: a "
            "number, a text, or the structure. Only tensors get a tasks axis. Return a tensor in "
            "its place, as in `torch.tensor(number)`."
        )
    columns = zip(*([leaf.tensor for leaf in its.leaves] for its in opened), strict=True)
    return first.build([_joined(list(column), how, name) for column in columns])


def _joined(tensors: list[Tensor], how: Callable[[list[Tensor]], Tensor], name: str) -> Tensor:
    tensors = [built(tensor) for tensor in tensors]
    if len({(tensor.shape[how is torch.cat :], tensor.dtype) for tensor in tensors}) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:3])
        raise BatchingError(
            f"{name} returns tensors of different shapes or dtypes for different tasks ({shapes}). "
            "All tasks are returned as one tensor, which has one shape. Pad them, or run these "
            "tasks apart."
        )
    return how(tensors)
