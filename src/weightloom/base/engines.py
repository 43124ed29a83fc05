"""Engines: run tasks at once under ``vmap``, in a loop, or folded into the batch.

In:   a checked call.
Out:  its result: outputs with a tasks axis, and the attributes that `forward` assigned.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap

from weightloom.base.aligned import Aligned, fold, unfold
from weightloom.base.call import Call, Result, Tensors
from weightloom.base.check import refused_by_vmap
from weightloom.base.pieces import join
from weightloom.base.sequential import is_hooked_everywhere, run_sequential
from weightloom.base.state import Carried, Where, is_gone, of_one_task, refuse_different
from weightloom.base.torch_workarounds import (
    convolutions_in_one_precision,
    padding_unlearned,
    second_derivatives,
    unfused_attention,
)
from weightloom.errors import BatchingError, RecomputeError
from weightloom.forms.factored import Factored, InUse, built
from weightloom.replica import Contents
from weightloom.replica.hot import no_type_check
from weightloom.replica.replica import Replica
from weightloom.replica.tree import Opened, is_plain, open_tree

Engine = Literal["auto", "vmap", "aligned", "loop"]


def run_vmap(call: Call) -> Result:
    """Run all tasks in one pass, the tasks axis hidden from the base by ``vmap``.

    Raises:
        BatchingError: If the base uses an operation that ``vmap`` refuses.
        RecomputeError: If the base packs tensors for the backward pass, as checkpoints do.
    """
    generated = {
        name: value.factors if isinstance(value, Factored) else value
        for name, value in call.params.items()
    }
    gone, opened = _opened(call.state)
    state = {where: [leaf.tensor for leaf in its.leaves] for where, its in opened.items()}
    found: list[Any] = []

    @no_type_check
    def apply_one(factors: Any, buffers: Tensors, rows: Sequence[Tensor], held: Any) -> Any:
        params = {
            name: call._one(name, _rebuilt(call.params[name], its)) for name, its in factors.items()
        }
        mine = {where: opened[where].build(its) for where, its in held.items()}
        outputs, written = call.run({**params, **buffers}, rows, {**gone, **mine})
        tensors, found[:] = _taken_apart(outputs, written)
        return tensors

    run = vmap(apply_one, randomness=call.randomness, chunk_size=call.chunk_size)
    level = torch._C._functorch.maybe_current_level() or 0
    try:
        with (
            unfused_attention(),
            padding_unlearned(call.target.module),
            convolutions_in_one_precision(call.params),
            second_derivatives(level),
            no_recomputing(call),
        ):
            leaves = run(generated, call.buffers, list(call.rows), state)
    except RuntimeError as error:
        if refused := refused_by_vmap(call.target.name, call.target.module, error):
            raise refused from error
        raise
    its, assigned, alone = found
    return Result(its.build(leaves), _carried(call, assigned, leaves[len(its.leaves) :], alone))


@no_type_check
def _taken_apart(outputs: Any, written: Sequence[tuple[int, str, Any]]) -> tuple[list[Tensor], Any]:
    """Split one task's result into its tensors, all that ``vmap`` returns, and the rest.

    The rest: opened outputs, opened attributes, and their tensors that are the same for all tasks.
    """
    its = open_tree(outputs)
    assigned = [(number, name, open_tree(value, name)) for number, name, value in written]
    kept = [leaf.tensor for _, _, value in assigned for leaf in value.leaves]
    tensors = [built(tensor) for tensor in (*(leaf.tensor for leaf in its.leaves), *kept)]
    return tensors, (its, assigned, [_alone(tensor) for tensor in kept])


def _opened(state: Mapping[Where, Any]) -> tuple[dict[Where, Any], dict[Where, Opened]]:
    """Split state into values that cannot be used in this call, and opened trees of the others."""
    gone = {where: its for where, its in state.items() if is_gone(its)}
    return gone, {where: open_tree(its) for where, its in state.items() if where not in gone}


def _carried(
    call: Call,
    assigned: Sequence[tuple[int, str, Opened]],
    leaves: Sequence[Tensor],
    alone: Sequence[Tensor | None],
) -> list[Carried]:
    """Put assigned attributes together from the results of ``vmap``.

    Args:
        call: The call.
        assigned: Number of the module, name and opened value of each attribute.
        leaves: Tensors of all these values in turn, with a tasks axis.
        alone: The same tensors without one, if they are the same for all tasks; else None.
    """
    carried, start = [], 0
    for number, name, value in assigned:
        its = slice(start, start + len(value.leaves))
        start = its.stop
        is_buffer = call.scan is not None and name in call.scan.modules[number]._buffers
        for_all = not value.leaves or (is_buffer and all(x is not None for x in alone[its]))
        tensors = alone[its] if for_all else leaves[its]
        carried.append(Carried(number, name, value.build(tensors), not for_all))
    return carried


def _rebuilt(value: Tensor, its: Any) -> Tensor:
    """Return one task's value: its factors in their form, or the tensor itself."""
    return InUse(value.form, value.own, its, value.shared) if isinstance(value, Factored) else its


def _alone(tensor: Tensor) -> Tensor | None:
    """Return a tensor that is the same for all tasks; None for one that ``vmap`` wraps."""
    return (
        None
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or isinstance(tensor, Factored)
        else tensor
    )


def run_loop(call: Call) -> Result:
    """Run one task after the other: the slow, obvious reference for the other engines.

    Lists, dicts and objects that the base keeps are restored between tasks.

    Raises:
        BatchingError: If tasks assign different attributes, or other values than tensors to them.
    """
    params = {name: value.unbind() for name, value in call.params.items()}
    rows = [x.unbind() for x in call.rows]
    random = torch.get_rng_state() if call.randomness == "same" else None
    contents = _contents(call)
    several: list[Any] = []
    assigned: list[list[tuple[int, str, Any]]] = []
    replica: Replica | None = None
    with second_derivatives(torch._C._functorch.maybe_current_level() or 0):
        for task in range(call.tasks):
            if random is not None:
                torch.set_rng_state(random)
            if contents is not None and task:
                contents.restore()  # as if each task had its own copy
            tensors, state = _of_task(call, params, task)
            replica = _next(call, replica, tensors, state)
            outputs, written = call.run(tensors, [row[task] for row in rows], state, replica)
            several.append(outputs)
            assigned.append(written)
    return Result(join(several, torch.stack, call.target.name), _gathered(call, assigned))


def _contents(call: Call) -> Contents | None:
    """Contents, as they are now, of the lists, dicts and objects that the base keeps."""
    return Contents(call.scan.mutable) if call.scan is not None and call.scan.mutable else None


def _of_task(
    call: Call, params: Mapping[str, Sequence[Tensor]], task: int
) -> tuple[dict[str, Tensor], dict[Where, Any]]:
    """Return parameters with buffers, and state, of one task."""
    its = {name: call._one(name, row[task]) for name, row in params.items()}
    tensors = {**its, **{name: value[task] for name, value in call.buffers.items()}}
    return tensors, {where: of_one_task(value, task) for where, value in call.state.items()}


def _next(call: Call, replica: Replica | None, tensors: Tensors, state: Any) -> Replica | None:
    """Return a replica for the next task: the last one, refilled, unless it is still in use."""
    if call.scan is None:
        return None
    if replica is not None and not state and replica.refill(call.places, {**call.extra, **tensors}):
        return replica
    made = call.replica(tensors, state)
    made.count_references()
    return made


def _gathered(call: Call, assigned: list[list[tuple[int, str, Any]]]) -> list[Carried]:
    """Stack the values that every task assigned to an attribute."""
    by_place: dict[tuple[int, str], list[Any]] = {}
    for written in assigned:
        for number, name, value in written:
            by_place.setdefault((number, name), []).append(value)
    return [_stacked(call, *place, values) for place, values in by_place.items()]


def _stacked(call: Call, number: int, name: str, values: list[Any]) -> Carried:
    """Stack an attribute's values; one for all tasks if it has no tensor, or is an equal buffer."""
    if len(values) != call.tasks:
        raise refuse_different(
            call.scan, number, name, "is assigned for some tasks and not for others"
        )
    opened = [open_tree(value, name) for value in values]
    if any(its.key != opened[0].key for its in opened):
        raise refuse_different(
            call.scan, number, name, "differs from task to task and is no tensor"
        )
    is_buffer = call.scan is not None and name in call.scan.modules[number]._buffers
    if not opened[0].leaves or (is_buffer and all(torch.equal(values[0], v) for v in values)):
        return Carried(number, name, values[-1], False)
    return Carried(number, name, join(values, torch.stack, name), True)


def run_aligned(call: Call) -> Result:
    """Run the base once, tasks folded into the batch, each generated parameter on its task's rows.

    Right only for a base that treats the rows of a batch one by one.

    Raises:
        BatchingError: If buffers per task or the same random numbers are asked for, the inputs
            differ in batch size, or an output has no row for each row of the batch.
    """
    if call.layers is not None and call.scan is not None and not is_hooked_everywhere():
        return Result(run_sequential(call.scan.modules, call.layers, call.params, call.rows[0]), [])
    rows, batch_major = call.tasks * _batch(call), call.batch_major
    params = {name: Aligned(value, rows, batch_major) for name, value in call.params.items()}
    inputs = [fold(x, batch_major) for x in call.rows]
    with second_derivatives(torch._C._functorch.maybe_current_level() or 0):
        outputs, written = call.run(params, inputs, call.state)
    modules = call.scan.modules if call.scan is not None else ()
    carried = [
        Carried(number, name, value, False)  # of all tasks, as one batch
        if name in modules[number]._buffers
        else Carried(number, name, *_unfolded(call, value, rows))
        for number, name, value in written
    ]
    return Result(_unfolded(call, outputs, rows)[0], carried)


@no_type_check
def _batch(call: Call) -> int:
    """Return the batch size of the inputs; raise if the aligned engine cannot fold them."""
    if call.buffers:
        raise BatchingError(
            'Buffers per task (`buffers`, or `statistics="task"`) do not work with the aligned '
            "engine. It folds all tasks into one batch, which a norm in train mode sees as a "
            'whole. Pass `engine="vmap"`.'
        )
    if call.randomness == "same":
        raise BatchingError(
            '`randomness="same"` was given with the aligned engine, which runs all tasks as one '
            "batch: it draws other numbers for every row. Pass "
            '`engine="vmap"` or `engine="loop"`.'
        )
    batches = [x.shape[1] if x.ndim > 1 else 0 for x in call.rows]
    if not batches or 0 in batches or any(batch != batches[0] for batch in batches):
        raise BatchingError(
            f"The inputs have batches of {sorted({*batches})} rows. The aligned engine folds tasks "
            "and batch into one axis, the same for every input, each (tasks, batch, ...). Pass "
            '`engine="vmap"`.'
        )
    return batches[0]


@no_type_check
def _unfolded(call: Call, value: Any, rows: int) -> tuple[Any, bool]:
    """Give every tensor of a value a tasks axis in place of rows; also True if it has a tensor."""
    if is_plain(value):
        return _of_tasks(call, value, rows), True
    opened = open_tree(value)
    leaves = [_of_tasks(call, leaf.tensor, rows) for leaf in opened.leaves]
    return opened.build(leaves), bool(leaves)


@no_type_check
def _of_tasks(call: Call, leaf: Tensor, rows: int) -> Tensor:
    if isinstance(leaf, Aligned):
        return leaf.dense()
    if not leaf.ndim or leaf.shape[0] != rows:
        raise BatchingError(
            f"{call.target.name} returns a tensor of shape {tuple(leaf.shape)} for {rows} rows. "
            "The aligned engine runs all tasks as one batch, so every output needs a row for each. "
            'Pass `engine="vmap"` or `engine="loop"`.'
        )
    return unfold(leaf, call.tasks, call.batch_major)


RECOMPUTES = "weightloom: saved tensors are packed by hooks here"
"""Message of the error that torch raises in `no_recomputing`, to recognise it by."""


@contextmanager
def no_recomputing(call: Call) -> Iterator[None]:
    """While active, refuse hooks that pack tensors for the backward pass, as checkpoints set.

    They unpack in the backward pass, after ``vmap`` has ended.

    Raises:
        RecomputeError: If the base sets such hooks.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        yield
        return
    said = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
    # False: hooks that are set already, by a checkpoint around the call, stay
    torch._C._autograd._saved_tensors_hooks_disable(RECOMPUTES, False)
    try:
        yield
    except RuntimeError as error:
        if RECOMPUTES not in str(error):
            raise
        raise RecomputeError(
            f"{call.target.name} recomputes, or packs, tensors for the backward pass, as "
            "`torch.utils.checkpoint` and `save_on_cpu` do. The backward pass runs when the tasks "
            "axis is no longer hidden, so `vmap` would give wrong gradients. Pass "
            '`engine="loop"`, or `engine="aligned"` where rows are treated one by one; or put the '
            "checkpoint around the call."
        ) from error
    finally:
        if said is None:
            torch._C._autograd._saved_tensors_hooks_enable()
        else:
            torch._C._autograd._saved_tensors_hooks_disable(said, False)


RUN = {"vmap": run_vmap, "aligned": run_aligned, "loop": run_loop}
"""Engine functions by name, without ``"auto"``."""
