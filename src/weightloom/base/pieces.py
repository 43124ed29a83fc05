"""Run some tasks at a time, and join the results of several runs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from weightloom.base.call import Call, Result
from weightloom.base.state import Carried, of_one_task
from weightloom.errors import BatchingError
from weightloom.forms.factored import built
from weightloom.replica.tree import is_plain, open_tree


def in_pieces(run: Callable[[Call], Result], call: Call) -> Result:
    """Run ``call.chunk_size`` tasks at a time and join the results; None runs all at once.

    With ``randomness="same"``, every piece starts from the same state of torch's random numbers.

    Raises:
        BatchingError: If outputs of the pieces cannot be joined; see `join`.
    """
    size = call.chunk_size
    if size is None or size >= call.tasks:
        return run(call)
    random = torch.get_rng_state() if call.randomness == "same" else None
    results = []
    for start in range(0, call.tasks, size):
        if random is not None:
            torch.set_rng_state(random)
        results.append(run(_piece(call, start, size)))
    outputs = join([result.outputs for result in results], torch.cat, call.target.name)
    written = zip(*(result.written for result in results), strict=True)
    return Result(outputs, [_join_written(several) for several in written])


def _piece(call: Call, start: int, size: int) -> Call:
    """The part of a call for ``size`` tasks from ``start``; buffers stay views of the call's."""
    part = slice(start, start + size)
    return call._replace(
        params={name: value[part] for name, value in call.params.items()},
        rows=[x[part] for x in call.rows],
        buffers={name: value[part] for name, value in call.buffers.items()},
        state={where: of_one_task(its, part) for where, its in call.state.items()},
        tasks=min(size, call.tasks - start),
        chunk_size=None,
    )


def _join_written(several: Sequence[Carried]) -> Carried:
    """Join the values that `forward` assigned to one attribute, one value per piece."""
    first = several[0]
    if not first.of_tasks:
        return first._replace(value=several[-1].value)
    return first._replace(value=join([its.value for its in several], torch.cat, first.name))


def join(trees: Sequence[Any], how: Callable[[list[Tensor]], Tensor], name: str) -> Any:
    """Join the outputs of several runs, tensor by tensor.

    Args:
        trees: One output per run: a tensor, or anything that `open_tree` opens.
        how: `torch.stack` for runs of one task each, `torch.cat` for runs of several.
        name: Name of the base, for messages.

    Raises:
        BatchingError: If the outputs differ in structure, in shape or dtype, or in a value other
            than a tensor.
    """
    if all(is_plain(tree) for tree in trees):
        return _joined(list(trees), how, name)
    opened = [open_tree(tree) for tree in trees]
    first = opened[0]
    if any(its.key != first.key for its in opened):
        raise BatchingError(
            f"The output of {name} differs from task to task in a value that is no tensor: a "
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
            "The outputs of all tasks form one tensor, which has one shape. Pad them, or run these "
            "tasks apart."
        )
    return how(tensors)
