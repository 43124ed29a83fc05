"""Run the base once per task: check the call, choose an engine, run it."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from weightloom.base.buffers import check_buffers, norms_that_write, refuse_shared_statistics, task_buffers
from weightloom.base.check import check_call
from weightloom.base.engines import Call, Randomness, in_pieces, run_aligned, run_loop, run_vmap
from weightloom.base.rows import WatchRows, WithoutDropout
from weightloom.base.sequential import Layer, layers_of
from weightloom.base.slots import Places, Slots
from weightloom.errors import BatchingError, ConfigError, nearest
from weightloom.forms.calls import GROUPED_BELOW
from weightloom.forms.factored import NO_SUBCLASS, Factored
from weightloom.params import Params

Engine = Literal["auto", "vmap", "aligned", "loop"]
Statistics = Literal["task", "shared"]

ENGINES = {"vmap": run_vmap, "aligned": run_aligned, "loop": run_loop}


@dataclass(frozen=True)
class Choice:
    """What ``engine="auto"`` chose, and why."""

    engine: Engine
    reason: str
    batch_major: bool = False
    """Whether the aligned engine folds so that the task changes from row to row, as grouped convolutions like it."""

    def __str__(self) -> str:
        return f"{self.engine}: {self.reason}"


def apply_per_task(
    base: nn.Module,
    params: Params,
    *inputs: Tensor,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    chunk_size: int | None = None,
    randomness: Randomness = "different",
    statistics: Statistics | None = None,
    buffers: Params | None = None,
    explain: bool = False,
) -> Any:
    """Run ``base`` once per task, each time with that task's own parameters.

    Equal to a Python loop over tasks. No weight is written into the base. Running statistics of BatchNorm are written
    only where that is asked for: by ``statistics="shared"``, or by ``engine="loop"``, task after task.

    Args:
        base: Any module. What ``params`` lacks stays its own and is shared by all tasks.
        params: Generated parameters per task, as returned by a hypernetwork, each ``(tasks, *shape)``.
        *inputs: What ``base.forward`` takes, each ``(tasks, batch, *event)``. ``tasks`` is kept even when it is 1.
        kwargs: What ``base.forward`` takes by name: tensors as ``inputs``; what is no tensor goes to every task.
        engine: How tasks are run. ``"vmap"``: in one pass, the tasks axis hidden from the base. ``"aligned"``: folded
            into the batch, right where the base treats rows one by one. ``"loop"``: one after the other, the slow and
            obvious reference. ``"auto"``: the quickest that is safe, by the rules in `choose_engine`.
        chunk_size: How many tasks run at once, to bound memory; None means all. See `in_chunks` for bounding what is
            generated too.
        randomness: Whether dropout draws ``"different"`` numbers for each task or the ``"same"``.
        statistics: What a BatchNorm in train mode normalises by: each ``"task"`` its own batch, leaving running
            statistics alone, or all tasks together, ``"shared"``, which updates the base's.
        buffers: Buffers per task by name, each ``(tasks, *shape)``, as from `task_buffers`. A norm in train mode
            updates them in place.
        explain: Print which engine was chosen and why.

    Returns:
        What ``base`` returns, every tensor with a leading tasks axis.

    Raises:
        ShapeError: If ``params`` and ``inputs`` disagree on the number of tasks, or a value has an axis too few.
        ConfigError: If ``params`` names a parameter that ``base`` does not have, an option is unknown, or devices or
            dtypes are mixed.
        BatchingError: If ``base`` holds a BatchNorm, or an InstanceNorm with running statistics, in train mode and
            ``statistics`` does not say what is meant, or if it does something that the engine cannot run.

    Example:
        >>> params = {"weight": torch.zeros(5, 2, 3), "bias": torch.ones(5, 2)}
        >>> apply_per_task(nn.Linear(3, 2), params, torch.randn(5, 7, 3)).shape
        torch.Size([5, 7, 2])

    Source:
        Ha, Dai and Le, "HyperNetworks" (2017), section 3.
    """
    kwargs, buffers = kwargs or {}, buffers or {}
    slots = None if torch.compiler.is_compiling() else Slots(base)
    call = Call(base, params, inputs, kwargs, 0, buffers, randomness, chunk_size, slots)
    if slots is None:
        call = _checked(call, engine, statistics)
        return run_vmap(call) if engine == "auto" else in_pieces(ENGINES[engine], call)
    plan = _plan(call, engine, statistics)
    choice = plan.choice
    if explain:
        print(f"{type(base).__name__} runs with engine {choice}")
    if statistics == "task":
        buffers = {**task_buffers(base, plan.tasks), **buffers}
    found = (plan.places, choice.batch_major, plan.layers)
    call = Call(base, params, inputs, kwargs, plan.tasks, buffers, randomness, chunk_size, slots, *found)
    return run_vmap(call) if choice.engine == "vmap" else in_pieces(ENGINES[choice.engine], call)


def choose_engine(base: nn.Module, params: Params, *inputs: Tensor, kwargs: Mapping[str, Any] | None = None) -> Choice:
    """Say which engine ``engine="auto"`` runs, and why.

    The rules, in this order: the loop where the base cannot run under ``vmap``, or where, on a CPU, it convolves with
    generated kernels that are large; the aligned engine where every function that the base calls treats rows one by
    one, which is proved by watching it run for two tasks, and where what it computes is equal then; else ``vmap``.
    The proof is made in the first call, once for a base, its modes and the shapes of everything.

    Args:
        base: The base network.
        params: As for `apply_per_task`.
        *inputs: As for `apply_per_task`.
        kwargs: As for `apply_per_task`.

    Example:
        >>> params = {"weight": torch.zeros(5, 2, 3)}
        >>> print(choose_engine(nn.Linear(3, 2), params, torch.randn(5, 7, 3)))
        aligned: every row of a batch is treated by itself, so tasks are folded into the batch
    """
    call = Call(base, params, inputs, kwargs or {}, 0, {}, slots=Slots(base))
    return _plan(call, "auto", None).choice


def apply_shared(module: nn.Module, x: Tensor) -> Tensor:
    """Run a module that is the same for all tasks, by folding the tasks into the batch: the quickest way there is.

    Args:
        module: Any module that maps (batch, *event) to (batch, *out).
        x: (tasks, batch, *event).

    Returns:
        (tasks, batch, *out).

    Example:
        >>> apply_shared(nn.Linear(3, 2), torch.randn(5, 7, 3)).shape
        torch.Size([5, 7, 2])
    """
    outputs: Tensor = module(x.flatten(0, 1))
    return outputs.view(*x.shape[:2], *outputs.shape[1:])


def _check_options(engine: str, randomness: str, statistics: str | None, chunk_size: int | None) -> None:
    said = {
        "engine": (engine, ["auto", *ENGINES], "An engine says how tasks are run."),
        "randomness": (randomness, ["different", "same"], "It says what dropout draws for each task."),
        "statistics": (statistics or "task", ["task", "shared"], "It says what BatchNorm normalises by."),
    }
    for name, (value, known, what) in said.items():
        if value not in known:
            raise ConfigError(f"`{name}={value!r}` is unknown. {what} {nearest(str(value), known)}")
    if chunk_size is not None and chunk_size < 1:
        raise ConfigError(f"`chunk_size={chunk_size}` is below 1. At least one task runs at a time. Pass 1 or more.")


def _refuse_apart(call: Call, engine: Engine) -> None:
    if not norms_that_write(call.base):
        return
    if engine not in ("auto", "aligned"):
        raise ConfigError(
            f'`statistics="shared"` cannot be had with `engine={engine!r}`. All tasks are normalised together where '
            'they are one batch. Pass `engine="aligned"`, or leave the engine to "auto".'
        )
    if call.chunk_size is not None and call.chunk_size < call.tasks:
        raise ConfigError(
            f'`statistics="shared"` cannot be had with `chunk_size={call.chunk_size}` for {call.tasks} tasks. All '
            "tasks are normalised together, so all of them run at once. Leave `chunk_size` out, or pass "
            '`statistics="task"`.'
        )


@dataclass(frozen=True)
class _Plan:
    """What was found out about a call, and holds for every call of the same shapes."""

    choice: Choice
    tasks: int
    places: Places
    layers: list[Layer] | None


_plans: "weakref.WeakKeyDictionary[nn.Module, dict[Any, _Plan]]" = weakref.WeakKeyDictionary()
_PLANS_KEPT = 100


def _plan(call: Call, engine: Engine, statistics: Statistics | None) -> _Plan:
    """Check a call and choose its engine; once for every base and shapes."""
    key = _signature(call, engine, statistics)
    known = _plans.setdefault(call.base, {})
    if key not in known:
        call = _checked(call, engine, statistics)
        assert call.slots is not None
        places = call.slots.places([*call.params, *call.buffers])
        if statistics == "shared" and norms_that_write(call.base):
            choice = Choice("aligned", "all tasks are normalised together, as one batch")
        elif engine == "auto":
            choice = _choose(call._replace(places=places))
        else:
            choice = Choice(engine, "as asked for")
        if len(known) >= _PLANS_KEPT:
            known.clear()
        layers = None
        if choice.engine == "aligned":
            layers = layers_of(call.slots, places, call.params, call.inputs, choice.batch_major)
        known[key] = _Plan(choice, call.tasks, places, layers)
    return known[key]


def _checked(call: Call, engine: Engine, statistics: Statistics | None) -> Call:
    """Check everything there is to check; return the call with its tasks counted and its buffers there."""
    _check_options(engine, call.randomness, statistics, call.chunk_size)
    tasks = check_call(call.base, call.params, call.inputs, call.kwargs)
    check_buffers(call.base, call.buffers, tasks)
    buffers = call.buffers
    if statistics == "task":
        buffers = {**task_buffers(call.base, tasks), **buffers}
    call = call._replace(tasks=tasks, buffers=buffers)
    if statistics == "shared":
        _refuse_apart(call, engine)
    elif engine != "loop":
        refuse_shared_statistics(call.base, buffers)
    return call


def _choose(call: Call) -> Choice:
    """Choose an engine by watching the base run for two tasks; it is left, and random states are, as they were."""
    assert call.slots is not None
    few = call.first(2)
    own = {name: buffer.clone() for name, buffer in call.base.named_buffers() if name not in call.buffers}
    with_gradients = torch.is_grad_enabled()
    devices = {x.device for x in few.inputs if x.device.type == "cuda"}
    with (
        torch.no_grad(),  # nothing is kept for a backward pass, which checkpointing would count
        torch.random.fork_rng(devices=[device.index for device in devices]),
        WithoutDropout(),
        call.slots.filled(call.slots.places(own), own),
    ):
        try:
            watch = _watch(few)
        except BatchingError as error:
            if not isinstance(error.__cause__, RuntimeError):
                raise
            return Choice("loop", f"`vmap` refuses the base ({str(error.__cause__).splitlines()[0]})")
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            with torch.set_grad_enabled(with_gradients):
                run_loop(_with_copies(few))  # shows an error of the base's own as it is
            return Choice("loop", f"the base runs for one task but not under `vmap` ({str(error).splitlines()[0]})")
        return _judge(call, few, watch)


def _watch(few: Call) -> WatchRows:
    """Watch the base run; a batch of one row is shown twice, for of one row it cannot be told what is done with it."""
    for shown in (_with_two_rows(few), few):
        watch = WatchRows()
        try:
            run_vmap(_with_copies(shown)._replace(watch=watch))
        except (BatchingError, RuntimeError, ValueError, TypeError):
            if shown is few:
                raise
        else:
            break
    return watch


def _with_two_rows(call: Call) -> Call:
    if any(x.ndim < 2 or x.shape[1] != 1 for x in (*call.inputs, *call.tensors.values())):
        return call
    kwargs = {name: x.repeat_interleave(2, 1) if isinstance(x, Tensor) else x for name, x in call.kwargs.items()}
    return call._replace(inputs=[x.repeat_interleave(2, 1) for x in call.inputs], kwargs=kwargs)


def _judge(call: Call, few: Call, watch: WatchRows) -> Choice:
    if watch.work >= GROUPED_BELOW and few.inputs and few.inputs[0].device.type == "cpu":
        return Choice("loop", "large generated kernels convolve quickest one task after the other")
    reason = f"{watch.mixes} may mix the rows of a batch" if watch.mixes else ""
    if few.buffers or few.randomness == "same":
        reason = reason or "something is kept or drawn for each task"
    if not reason and not _equal_when_folded(call, few):
        reason = "outputs differ when tasks are folded into the batch"
    if reason:
        return Choice("vmap", f"{reason}, so tasks are not folded into it")
    why = "every row of a batch is treated by itself, so tasks are folded into the batch"
    return Choice("aligned", why, batch_major=watch.work > 0)


def _equal_when_folded(call: Call, few: Call) -> bool:
    """Compare a few tasks with all of them folded: a last check on what watching cannot see, as the size of the batch.

    It is done with parameters moved a little, for a layer that starts at zero would hide what stands before it, on
    copies of the inputs, without dropout and without gradients.
    """
    whole = call.first(call.chunk_size or call.tasks)
    whole = whole._replace(params={name: _moved(value) for name, value in whole.params.items()})
    few = few._replace(params={name: value[: few.tasks] for name, value in whole.params.items()})
    try:
        alone, folded = run_vmap(_with_copies(few)), run_aligned(_with_copies(whole))
    except (BatchingError, RuntimeError, ValueError):
        return False
    leaves, others = tree_leaves(alone), tree_leaves(folded)
    return len(leaves) == len(others) and all(_same(a, b) for a, b in zip(leaves, others, strict=True))


def _moved(value: Tensor) -> Tensor:
    """A generic value near this one."""
    if isinstance(value, Factored):
        return value.map(_moved)
    value = value.detach()
    return value + torch.randn_like(value) * (0.1 * value.square().mean().sqrt() + 0.01)


def _with_copies(call: Call) -> Call:
    kwargs = {name: x.clone() if isinstance(x, Tensor) else x for name, x in call.kwargs.items()}
    return call._replace(inputs=[x.clone() for x in call.inputs], kwargs=kwargs)


def _same(few: Any, whole: Any) -> bool:
    if isinstance(few, Tensor) and isinstance(whole, Tensor):
        return _close(few, whole[: len(few)])
    return bool(few == whole)


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    if a.shape != b.shape:
        return False
    kind = a.device.type
    halved = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    tolerance = 0.1 if halved or a.dtype != b.dtype else min(0.1, 100 * torch.finfo(a.dtype).eps ** 0.75)
    scale = a.abs().max() if a.numel() else 0.0
    return bool(torch.allclose(a, b.to(a.dtype), rtol=tolerance, atol=tolerance * float(scale) + 1e-30, equal_nan=True))


def _signature(call: Call, engine: Engine, statistics: Statistics | None) -> Any:
    """What a plan holds for: the base as it stands, the options, and the shapes of everything."""
    assert call.slots is not None
    return (
        call.slots.key(),
        (engine, statistics, call.randomness, call.chunk_size, _autocast()),
        tuple([(name, *_kind(value)) for name, value in call.params.items()]),
        tuple([_kind(x) for x in call.inputs]),
        tuple([(name, *_kind(value)) for name, value in call.kwargs.items()]) if call.kwargs else (),
        tuple([(name, *_kind(value)) for name, value in call.buffers.items()]) if call.buffers else (),
    )


def _autocast() -> tuple[bool, bool]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def _kind(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Factored):
        with NO_SUBCLASS():
            return value.shape, value.dtype, value.device, value.form
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else (repr(value),)
