"""Three ways to run tasks: all at once under ``vmap``, one after the other, or folded into the batch."""

from collections.abc import Iterator, Sequence
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
from weightloom.base.state import Carried, is_gone, of_one_task, refuse_different
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
from weightloom.replica.tree import is_plain, open_tree

Engine = Literal["auto", "vmap", "aligned", "loop"]


def run_vmap(call: Call) -> Result:
    """All tasks in one pass, the tasks axis hidden from the base."""
    generated = {
        name: value.factors if isinstance(value, Factored) else value
        for name, value in call.params.items()
    }
    gone = {where: its for where, its in call.state.items() if is_gone(its)}
    opened = {where: open_tree(its) for where, its in call.state.items() if where not in gone}
    state = {where: [leaf.tensor for leaf in its.leaves] for where, its in opened.items()}
    found: list[Any] = []

    @no_type_check
    def apply_one(factors: Any, buffers: Tensors, rows: Sequence[Tensor], held: Any) -> Any:
        params = {
            name: call._one(name, _rebuilt(call.params[name], its)) for name, its in factors.items()
        }
        mine = {where: opened[where].build(its) for where, its in held.items()}
        outputs, written = call.run({**params, **buffers}, rows, {**gone, **mine})
        its = open_tree(outputs)
        assigned = [(number, name, open_tree(value, name)) for number, name, value in written]
        found[:] = [
            its,
            assigned,
            [_alone(leaf.tensor) for _, _, o in assigned for leaf in o.leaves],
        ]
        leaves = [*its.leaves, *(leaf for _, _, o in assigned for leaf in o.leaves)]
        return [built(leaf.tensor) for leaf in leaves]  # vmap passes on nothing else

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
    count = len(its.leaves)
    written = []
    for number, name, opened_value in assigned:
        many = leaves[count : count + len(opened_value.leaves)]
        same = alone[count - len(its.leaves) :][: len(many)]
        count += len(many)
        is_buffer = call.scan is not None and name in call.scan.modules[number]._buffers
        if not many or (is_buffer and all(x is not None for x in same)):  # one for all tasks
            written.append(Carried(number, name, opened_value.build(same), False))
        else:
            written.append(Carried(number, name, opened_value.build(many), True))
    return Result(its.build(leaves), written)


def _rebuilt(value: Tensor, its: Any) -> Tensor:
    return InUse(value.form, value.own, its, value.shared) if isinstance(value, Factored) else its


def _alone(tensor: Tensor) -> Tensor | None:
    """A tensor that no task has changed; None for one that ``vmap`` holds."""
    return (
        None
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or isinstance(tensor, Factored)
        else tensor
    )


def run_loop(call: Call) -> Result:
    """One task after the other: slow and obvious, the reference for the others."""
    params = {name: value.unbind() for name, value in call.params.items()}
    rows = [x.unbind() for x in call.rows]
    random = torch.get_rng_state() if call.randomness == "same" else None
    contents = Contents(call.scan.mutable) if call.scan is not None and call.scan.mutable else None
    several: list[Any] = []
    assigned: list[list[tuple[int, str, Any]]] = []
    replica: Replica | None = None
    with second_derivatives(torch._C._functorch.maybe_current_level() or 0):
        for task in range(call.tasks):
            if random is not None:
                torch.set_rng_state(random)
            if contents is not None and task:
                contents.restore()  # as if each task had a copy of its own
            its = {name: call._one(name, row[task]) for name, row in params.items()}
            tensors = {**its, **{name: value[task] for name, value in call.buffers.items()}}
            state = {where: of_one_task(value, task) for where, value in call.state.items()}
            replica = _next(call, replica, tensors, state)
            outputs, written = call.run(tensors, [row[task] for row in rows], state, replica)
            several.append(outputs)
            assigned.append(written)
    return Result(join(several, torch.stack, call.target.name), _gathered(call, assigned))


def _next(call: Call, replica: Replica | None, tensors: Tensors, state: Any) -> Replica | None:
    """A replica for the next task: the last one with other values, where nobody holds it."""
    if call.scan is None:
        return None
    if replica is not None and not state and replica.refill(call.places, {**call.extra, **tensors}):
        return replica
    made = call.replica(tensors, state)
    made.count_references()
    return made


def _gathered(call: Call, assigned: list[list[tuple[int, str, Any]]]) -> list[Carried]:
    """Stack what every task assigned."""
    by_place: dict[tuple[int, str], list[Any]] = {}
    for written in assigned:
        for number, name, value in written:
            by_place.setdefault((number, name), []).append(value)
    carried = []
    for (number, name), values in by_place.items():
        if len(values) != call.tasks:
            raise refuse_different(
                call.scan, number, name, "is assigned for some tasks and not for others"
            )
        opened = [open_tree(value, name) for value in values]
        if any(its.key != opened[0].key for its in opened):
            raise refuse_different(
                call.scan, number, name, "differs from task to task and is no tensor"
            )
        module = call.scan.modules[number] if call.scan is not None else None
        same = (
            module is not None
            and name in module._buffers
            and all(torch.equal(values[0], v) for v in values)
        )
        if not opened[0].leaves or same:
            carried.append(Carried(number, name, values[-1], False))
        else:
            carried.append(Carried(number, name, join(values, torch.stack, name), True))
    return carried


def run_aligned(call: Call) -> Result:
    """Fold tasks into the batch; every generated parameter finds the rows of its task."""
    if call.layers is not None and call.scan is not None and not is_hooked_everywhere():
        return Result(run_sequential(call.scan.modules, call.layers, call.params, call.rows[0]), [])
    if call.buffers:
        raise BatchingError(
            'Buffers per task (`buffers`, or `statistics="task"`) cannot be had with the aligned engine. It folds all '
            'tasks into one batch, which a norm in train mode sees as a whole. Pass `engine="vmap"`.'
        )
    if call.randomness == "same":
        raise BatchingError(
            '`randomness="same"` was given with the aligned engine, which runs all tasks as one batch: it draws '
            'numbers for every row apart. Pass `engine="vmap"` or `engine="loop"`.'
        )
    batches = [x.shape[1] if x.ndim > 1 else 0 for x in call.rows]
    if not batches or 0 in batches or any(batch != batches[0] for batch in batches):
        raise BatchingError(
            f"The inputs have batches of {sorted({*batches})} rows. The aligned engine folds tasks "
            "and batch "
            'into one axis, the same for every input, each (tasks, batch, ...). Pass `engine="vmap"`.'
        )
    rows, batch_major = call.tasks * batches[0], call.batch_major
    params = {name: Aligned(value, rows, batch_major) for name, value in call.params.items()}
    inputs = [fold(x, batch_major) for x in call.rows]
    with second_derivatives(torch._C._functorch.maybe_current_level() or 0):
        outputs, written = call.run(params, inputs, call.state)

    @no_type_check
    def of_tasks(leaf: Tensor) -> Tensor:
        if isinstance(leaf, Aligned):
            return leaf.dense()
        if not leaf.ndim or leaf.shape[0] != rows:
            raise BatchingError(
                f"{call.target.name} returns a tensor of shape {tuple(leaf.shape)} for {rows} "
                "rows. The aligned engine runs all tasks as one batch, so what is returned needs a "
                "row for each. "
                'Pass `engine="vmap"` or `engine="loop"`.'
            )
        return unfold(leaf, call.tasks, batch_major)

    @no_type_check
    def unfolded(value: Any) -> tuple[Any, bool]:
        if is_plain(value):
            return of_tasks(value), True
        opened = open_tree(value)
        return opened.build([of_tasks(leaf.tensor) for leaf in opened.leaves]), bool(opened.leaves)

    modules = call.scan.modules if call.scan is not None else ()
    carried = [
        Carried(number, name, value, False)  # of all tasks, as one batch
        if name in modules[number]._buffers
        else Carried(number, name, *unfolded(value))
        for number, name, value in written
    ]
    return Result(unfolded(outputs)[0], carried)


RECOMPUTES = "weightloom: saved tensors are packed by hooks here"


@contextmanager
def no_recomputing(call: Call) -> Iterator[None]:
    """Refuse what packs tensors for the backward pass, as checkpoints do.

    It unpacks them where `vmap` has ended.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        yield
        return
    said = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
    torch._C._autograd._saved_tensors_hooks_disable(
        RECOMPUTES, False
    )  # those of a checkpoint around the call may stay
    try:
        yield
    except RuntimeError as error:
        if RECOMPUTES not in str(error):
            raise
        raise RecomputeError(
            f"{call.target.name} recomputes, or packs, what the backward pass needs, as "
            "`torch.utils.checkpoint` and `save_on_cpu` do. The backward pass runs when the tasks "
            "axis is no longer hidden, so `vmap` would give "
            'wrong gradients. Pass `engine="loop"`, or `engine="aligned"` where rows are treated one by one; or put '
            "the checkpoint around the call."
        ) from error
    finally:
        if said is None:
            torch._C._autograd._saved_tensors_hooks_enable()
        else:
            torch._C._autograd._saved_tensors_hooks_disable(said, False)


RUN = {"vmap": run_vmap, "aligned": run_aligned, "loop": run_loop}
"""How tasks are run, by the name of the engine."""
