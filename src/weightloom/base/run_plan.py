"""Run a call as it is planned, and give the base what `forward` assigned.

In:   a call, and what was asked for: engine, statistics, a choice by the clock.
Out:  outputs of all tasks.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
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
from weightloom.replica import Contents
from weightloom.replica.tree import open_tree


def run_planned(
    call: Call, engine: Engine, statistics: Statistics | None, tuning: Tuning | None
) -> Any:
    """Run a call for all tasks, and give the base what `forward` assigned; return the outputs.

    Args:
        call: Its parameters and tensors.
        engine: As asked for.
        statistics: As asked for.
        tuning: Chooses by the clock; None takes the one that is active, if any.
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
        _carry(call, result, statistics)
    return result.outputs


def choice_of(
    call: Call, plan: Plan, engine: Engine, statistics: Statistics | None, tuning: Tuning | None
) -> Choice:
    """By which engine a call runs: as was counted, or as was timed.

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
    """The quickest of all safe ways to run a call like this, timed once."""
    if not plan.is_free or call.scan is None or call.buffers or call.state:
        return choice
    choices = plan.safe(choice, call.tasks if call.chunk_size is None else 1)
    try:
        plan_of(call._replace(), "vmap", None)
    except WeightloomError:
        choices.pop("vmap", None)

    scanned = call.scan

    def run(choice: Choice) -> None:
        with random_states(call):
            apart = call.apart()
            leaves = [*apart.leaves(), *(p for p in scanned.base.parameters() if p.requires_grad)]
            outputs = open_tree(_chosen(apart, plan, choice, "auto").outputs)
            total = sum(leaf.tensor.sum() for leaf in outputs.leaves if leaf.tensor.requires_grad)
            if isinstance(total, Tensor) and leaves:  # `backward` would leave gradients in the base
                torch.autograd.grad(total, leaves, allow_unused=True)

    contents = Contents(call.scan.mutable)
    way = tuning.way(kind_of(call), {name: partial(run, its) for name, its in choices.items()})
    contents.restore()
    return choices[way]


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
    if engine != "vmap":
        return in_pieces(RUN[engine], call)
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
    except (
        RuntimeError
    ):  # something that was not seen when it was watched; the loop shows it as it is
        torch.set_rng_state(random)
        return in_pieces(run_loop, call)


def _along(ways: Ways, call: Call) -> Result:
    """Run folded along ways that are proved.

    One task after the other where there are none any more.
    """
    result = ways.run(call)
    if result is not None:
        return result
    with guarded(call):
        return run_loop(call)


def _proven(call: Call, asked: Engine) -> Result:
    """Run folded, and watch that every row is treated by itself.

    Else what was computed is thrown away.
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


def _carry(call: Call, result: Result, statistics: Statistics | None) -> None:
    """Give the base, and the buffers of each task, what `forward` assigned."""
    assert call.scan is not None
    own = {
        (number, leaf): name
        for name, its in call.places
        if name in call.buffers
        for number, _, leaf in its
    }
    rest = []
    for its in result.written:
        name = own.get((its.number, its.name))
        if name is not None:
            value = its.value if its.of_tasks else its.value.expand_as(call.buffers[name])
            call.buffers[name].copy_(value.detach())
        elif statistics == "task" and its.name in call.scan.modules[its.number]._buffers:
            continue  # the base's own are left alone
        elif its.of_tasks and its.name in call.scan.modules[its.number]._buffers:
            raise BatchingError(
                f"`forward` of {call.target.name} assigns its buffer {its.name!r} for each task. "
                "One base has one "
                'buffer: say what is meant. Pass `statistics="task"`, or `buffers=task_buffers(base, tasks, '
                f'["{its.name}"])` to keep one per task.'
            )
        else:
            rest.append(its)
    carry_back(call.scan, rest, call.tasks)
