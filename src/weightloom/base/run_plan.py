"""Run a call by its plan, and assign to the base the attributes that `forward` assigned.

In:   a call, and the caller's options: engine, statistics, tuning.
Out:  outputs of all tasks.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from weightloom.base.branch_paths import Ways
from weightloom.base.buffers import task_buffers
from weightloom.base.call import Call, Result
from weightloom.base.engines import RUN, Engine, run_aligned, run_loop, run_vmap
from weightloom.base.pieces import in_pieces
from weightloom.base.plan import Choice, Plan, Statistics
from weightloom.base.plan_cache import kind_of, plan_of
from weightloom.base.state import carry_back, unusable
from weightloom.base.trials import guarded, random_states
from weightloom.base.tuning import Tuning, active
from weightloom.base.watch_rows import WatchRows
from weightloom.base.watch_sizes import plain
from weightloom.errors import BatchingError, WeightloomError
from weightloom.forms.factored import built
from weightloom.replica import Contents, Scan
from weightloom.replica.tree import open_tree


def run_planned(
    call: Call, engine: Engine, statistics: Statistics | None, tuning: Tuning | None
) -> Any:
    """Run a call for all tasks, carry assigned attributes back to the base, return the outputs.

    Args:
        call: The call; its base is scanned here.
        engine: Engine that the caller asked for.
        statistics: Statistics option that the caller asked for.
        tuning: Chooses the engine by measured time; None takes the active tuning, if any.

    Raises:
        WeightloomError: If the call does not fit the base, or cannot run as asked for.
    """
    call = call.scanned()
    plan = plan_of(call, engine, statistics)
    tasks, buffers = _count(call), call.buffers
    if call.scan is not None and (statistics == "task" or plan.buffers):
        buffers = {
            **task_buffers(call.scan.base, tasks),
            **task_buffers(call.scan.base, tasks, plan.buffers),
            **buffers,
        }
    call.buffers = buffers
    result = _chosen(call, plan, choice_of(call, plan, engine, statistics, tuning), engine)
    if call.scan is not None and result.written:
        _carry(call, call.scan, result, statistics)
    return result.outputs


def choice_of(
    call: Call, plan: Plan, engine: Engine, statistics: Statistics | None, tuning: Tuning | None
) -> Choice:
    """Choice for a call: by counted bytes, or by measured time under a `Tuning`.

    Arguments as for `run_planned`.
    """
    call.tasks, call.places, call.dense = _count(call), plan.places, plan.dense
    choice, tuning = plan.choice.of_size(call), tuning or active()
    if tuning is None or engine != "auto" or statistics is not None:
        return choice
    return _tuned(call, plan, choice, tuning)


def _count(call: Call) -> int:
    first = next(iter(call.params.values()), None)
    return len(first) if first is not None else len(call.rows[0])


def _chosen(call: Call, plan: Plan, choice: Choice, engine: Engine) -> Result:
    call.layers = plan.layers if choice.engine == "aligned" else None
    call.batch_major = choice.batch_major
    call.chunk_size = call.chunk_size or choice.at_once
    if choice.engine == "loop" and plan.kernels:
        call.params = {
            name: built(value) if name in plan.kernels else value
            for name, value in call.params.items()
        }
    return _by(call, plan, choice.engine, engine)


def _tuned(call: Call, plan: Plan, choice: Choice, tuning: Tuning) -> Choice:
    """Fastest of the safe choices for this kind of call, timed once."""
    if not plan.is_free or call.scan is None or call.buffers or call.state:
        return choice
    choices = plan.safe(choice, call.tasks if call.chunk_size is None else 1)
    try:
        plan_of(call._replace(), "vmap", None)
    except WeightloomError:
        choices.pop("vmap", None)
    run = partial(_forward_and_backward, call, call.scan.base, plan)
    contents = Contents(call.scan.mutable)
    way = tuning.way(kind_of(call), {name: partial(run, its) for name, its in choices.items()})
    contents.restore()
    return choices[way]


def _forward_and_backward(call: Call, base: nn.Module, plan: Plan, choice: Choice) -> None:
    """Run a copy of a call, and its backward pass if gradients are on."""
    with random_states(call):
        apart = call.apart()
        leaves = [*apart.leaves(), *(p for p in base.parameters() if p.requires_grad)]
        outputs = open_tree(_chosen(apart, plan, choice, "auto").outputs)
        total = sum(leaf.tensor.sum() for leaf in outputs.leaves if leaf.tensor.requires_grad)
        if isinstance(total, Tensor) and leaves:  # `backward` would leave gradients in the base
            torch.autograd.grad(total, leaves, allow_unused=True)


def _by(call: Call, plan: Plan, engine: Engine, asked: Engine) -> Result:
    if engine == "aligned" and call.scan is not None:
        if call.state:
            call = call._replace(state=unusable(call.state, call.scan, call.tasks, "aligned"))
        if plan.ways is not None:
            return in_pieces(partial(_along, plan.ways), call)
        if not plan.proven:
            return _proven(call, asked)
    if plan.reads and call.scan is not None:
        with guarded(call):
            return in_pieces(run_loop, call)
    return _vmap_or_loop(call, asked) if engine == "vmap" else in_pieces(RUN[engine], call)


def _vmap_or_loop(call: Call, asked: Engine) -> Result:
    """Run under ``vmap``; if that fails and the engine is free, run the loop."""
    if (
        asked != "auto"
        or call.scan is None
        or torch._C._functorch.maybe_current_level() is not None
    ):
        return run_vmap(call)
    random = torch.get_rng_state()
    try:
        return run_vmap(call)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # not seen while watching; the loop raises the base's own error, if any
        torch.set_rng_state(random)
        return in_pieces(run_loop, call)


def _along(ways: Ways, call: Call) -> Result:
    """Run folded along proved paths; in the loop if no path is left to prove."""
    result = ways.run(call)
    if result is not None:
        return result
    with guarded(call):
        return run_loop(call)


def _proven(call: Call, asked: Engine) -> Result:
    """Run folded while watching that no rows mix.

    If they may mix, discard the result and run under ``vmap``, then in the loop.

    Raises:
        BatchingError: If rows may mix and the caller asked for the aligned engine.
    """
    random = torch.get_rng_state()
    watch = WatchRows()
    try:
        result = run_aligned(call._replace(watch=watch, chunk_size=None))
    except (BatchingError, RuntimeError, ValueError, TypeError):
        if asked == "aligned":
            raise
        watch.mixes = "an error"
    if not watch.mixes and not watch.sizes:
        written = [its._replace(value=tree_map(plain, its.value)) for its in result.written]
        return Result(tree_map(plain, result.outputs), written)
    if asked == "aligned":
        raise BatchingError(
            f"{call.target.name} calls {watch.mixes or 'for the size of a batch'}, which may mix "
            "the rows of different tasks. The aligned engine is right only where every row of a "
            "batch is treated by itself. "
            'Pass `engine="vmap"` or `engine="loop"`.'
        )
    torch.set_rng_state(random)
    try:
        return run_vmap(call)
    except BatchingError:
        torch.set_rng_state(random)
        return in_pieces(run_loop, call)


def _carry(call: Call, scan: Scan, result: Result, statistics: Statistics | None) -> None:
    """Copy the values that `forward` assigned to buffers per task, or assign them to the base.

    Raises:
        BatchingError: If `forward` assigns a buffer of the base a value per task, without buffers
            per task.
    """
    of_tasks = _buffers_by_place(call)
    rest = []
    for its in result.written:
        name = of_tasks.get((its.number, its.name))
        is_buffer = its.name in scan.modules[its.number]._buffers
        if name is not None:
            value = its.value if its.of_tasks else its.value.expand_as(call.buffers[name])
            call.buffers[name].copy_(value.detach())
        elif statistics == "task" and is_buffer:
            continue  # the base's own buffers stay unchanged
        elif its.of_tasks and is_buffer:
            raise BatchingError(
                f"`forward` of {call.target.name} assigns its buffer {its.name!r} for each task. "
                "One base has one buffer, so the call has to say which tasks share it. "
                'Pass `statistics="task"`, or `buffers=task_buffers(base, tasks, '
                f'["{its.name}"])` to keep one per task.'
            )
        else:
            rest.append(its)
    carry_back(scan, rest, call.tasks)


def _buffers_by_place(call: Call) -> dict[tuple[int, str], str]:
    """Name of each buffer per task, by number of its module and its name there."""
    return {
        (number, leaf): name
        for name, its in call.places
        if name in call.buffers
        for number, _, leaf in its
    }
