"""Run the base once per task: check the call, choose an engine, run it."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from weightloom.base.buffers import check_buffers, norms_that_write, refuse_shared_statistics, task_buffers
from weightloom.base.check import check_call
from weightloom.base.engines import Call, Randomness, in_pieces, run_aligned, run_loop, run_vmap
from weightloom.base.rows import WatchRows
from weightloom.errors import BatchingError, ConfigError, nearest
from weightloom.forms.calls import GROUPED_BELOW
from weightloom.params import Params

Engine = Literal["auto", "vmap", "aligned", "loop"]
Statistics = Literal["task", "shared"]

ENGINES = {"vmap": run_vmap, "aligned": run_aligned, "loop": run_loop}


@dataclass(frozen=True)
class Choice:
    """What ``engine="auto"`` chose, and why."""

    engine: Engine
    reason: str

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
    kwargs = kwargs or {}
    _check_options(engine, randomness, statistics, chunk_size)
    tasks = check_call(base, params, inputs, kwargs)
    check_buffers(base, buffers or {}, tasks)
    call = Call(base, params, inputs, kwargs, tasks, buffers or {}, randomness, chunk_size)
    if (statistics == "task" and engine != "loop") or statistics == "task":
        call = replace(call, buffers={**task_buffers(base, tasks), **call.buffers})
    if statistics == "shared":
        engine = _engine_of_shared_statistics(base, engine)
    elif engine != "loop":
        refuse_shared_statistics(base, call.buffers)
    if engine == "auto":
        choice, outputs = _choose(call)
    else:
        choice, outputs = Choice(engine, "as asked for"), None
    if explain:
        print(f"{type(base).__name__} runs with engine {choice}")
    if outputs is not None:
        return outputs
    if choice.engine == "vmap":
        return run_vmap(call)
    return in_pieces(ENGINES[choice.engine], call)


def choose_engine(base: nn.Module, params: Params, *inputs: Tensor, kwargs: Mapping[str, Any] | None = None) -> Choice:
    """Say which engine ``engine="auto"`` runs, and why.

    The rules, in this order: the aligned engine where every function that the base calls treats rows one by one, which
    is proved by watching one run of it, and where the outputs of that run are equal; the loop where the base cannot
    run under ``vmap``, or where it convolves with generated kernels that are large; else ``vmap``. The proof is made
    once for a base and shapes, in the first call.

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
    kwargs = kwargs or {}
    tasks = check_call(base, params, inputs, kwargs)
    refuse_shared_statistics(base, {})
    return _choose(Call(base, params, inputs, kwargs, tasks))[0]


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


def _engine_of_shared_statistics(base: nn.Module, engine: Engine) -> Engine:
    if engine == "auto":
        return "aligned" if norms_that_write(base) else "auto"
    if engine != "aligned" and norms_that_write(base):
        raise ConfigError(
            f'`statistics="shared"` cannot be had with `engine={engine!r}`. All tasks are normalised together where '
            'they are one batch. Pass `engine="aligned"`, or leave the engine to "auto".'
        )
    return engine


_choices: "weakref.WeakKeyDictionary[nn.Module, dict[Any, Choice]]" = weakref.WeakKeyDictionary()


def _choose(call: Call) -> tuple[Choice, Any]:
    """Choose an engine; where that took a run of the base, return its outputs too."""
    if torch.compiler.is_compiling():
        return Choice("vmap", "the base is being compiled, so it cannot be watched"), None
    known = _choices.setdefault(call.base, {})
    key = _signature(call)
    if key in known:
        return known[key], None
    few = call if call.chunk_size is None else replace(call.rows(0, call.chunk_size), randomness=call.randomness)
    watch = WatchRows()
    try:
        outputs = _run_watched(few, watch)
    except BatchingError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        known[key] = Choice("loop", f"`vmap` refuses the base ({str(error.__cause__).splitlines()[0]})")
        return known[key], None
    known[key] = _judge(few, watch, outputs)
    return known[key], outputs if few is call else None


def _judge(call: Call, watch: WatchRows, outputs: Any) -> Choice:
    reason = watch.mixes
    if reason is None and (call.buffers or call.randomness == "same"):
        reason = "what is kept or drawn per task"
    if reason is None and not (watch.random or _equal_when_folded(call, outputs)):
        reason = "outputs that differ when tasks are folded into the batch"
    if reason is None:
        return Choice("aligned", "every row of a batch is treated by itself, so tasks are folded into the batch")
    if watch.work >= GROUPED_BELOW and not torch.accelerator.is_available():
        return Choice("loop", f"{reason} may mix rows, and large generated kernels convolve quicker one by one")
    return Choice("vmap", f"{reason} may mix the rows of a batch, so tasks are not folded into it")


def _run_watched(call: Call, watch: WatchRows) -> Any:
    """Run under vmap, with every function that the base calls seen by ``watch``."""
    base = call.base

    class Watched(nn.Module):
        def forward(self, *inputs: Tensor, **kwargs: Any) -> Any:
            generated = [p for name, p in base.named_parameters(remove_duplicate=False) if name in call.params]
            tensors = [value for value in kwargs.values() if isinstance(value, Tensor)]
            watch.start([*inputs, *tensors], generated)
            with watch:
                outputs = base(*inputs, **kwargs)
            watch.finish(outputs)
            return outputs

    watched = Watched()
    watched.base = base
    prefixed = {f"base.{name}": value for name, value in call.params.items()}
    buffers = {f"base.{name}": value for name, value in call.buffers.items()}
    return run_vmap(replace(call, base=watched, params=prefixed, buffers=buffers))


def _equal_when_folded(call: Call, outputs: Any) -> bool:
    """Compare with the aligned engine once, without gradients: a last check on what watching cannot see."""
    try:
        with torch.no_grad():
            folded = run_aligned(call)
    except (BatchingError, RuntimeError):
        return False
    pairs = zip(tree_leaves(outputs), tree_leaves(folded), strict=True)
    return all(_close(a.detach(), b) for a, b in pairs if isinstance(a, Tensor))


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    tolerance = 100 * torch.finfo(a.dtype).eps ** 0.75
    scale = a.abs().max() if a.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * float(scale) + 1e-30, equal_nan=True))


def _signature(call: Call) -> Any:
    """What a choice holds for: the base as it stands, and the shapes of everything."""
    tensors = {**call.params, **call.tensors, **{str(i): x for i, x in enumerate(call.inputs)}}
    return (
        tuple((id(module), module.training) for module in call.base.modules()),
        tuple((name, value.shape[1:], value.dtype, getattr(value, "form", None)) for name, value in tensors.items()),
        tuple(sorted((name, repr(value)) for name, value in call.constants.items())),
        frozenset(call.buffers),
        call.randomness,
        torch.is_autocast_enabled("cpu"),
    )
