"""Check that options, base, Params and inputs of a call fit each other.

In:   options, or a call.
Out:  the number of tasks; or an error that names the fix.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from weightloom.base.arguments import positions
from weightloom.base.buffers import (
    check_buffers,
    norms_that_write,
    refuse_apart,
    refuse_shared_statistics,
    task_buffers,
)
from weightloom.base.call import Call
from weightloom.base.target import Target
from weightloom.errors import BatchingError, ConfigError, ShapeError, WeightloomError, nearest
from weightloom.networks.keras import is_keras
from weightloom.params import count_tasks, parameters_by_name

ENGINES = ("auto", "vmap", "aligned", "loop")
DRAWS = ("different", "same")


def check_options(
    engine: str, randomness: str, statistics: str | None, chunk_size: int | None
) -> None:
    """Raise `ConfigError` unless every option is known and ``chunk_size`` is at least 1."""
    if (
        engine in ENGINES
        and randomness in DRAWS
        and statistics in (None, "task", "shared")
        and chunk_size is None
    ):
        return
    said = {
        "engine": (engine, [*ENGINES], "An engine runs the tasks."),
        "randomness": (
            randomness,
            [*DRAWS],
            "It sets the random numbers of dropout for each task.",
        ),
        "statistics": (
            statistics or "task",
            ["task", "shared"],
            "It sets the statistics by which BatchNorm normalises.",
        ),
    }
    for name, (value, known, why) in said.items():
        if value not in known:
            raise ConfigError(f"`{name}={value!r}` is unknown. {why} {nearest(str(value), known)}")
    if chunk_size is not None and chunk_size < 1:
        raise ConfigError(
            f"`chunk_size={chunk_size}` is below 1. At least one task runs at a time. Pass 1 or "
            "more."
        )


def check_shared(
    target: Target, shared: Collection[str | int] | None
) -> frozenset[str | int] | None:
    """Return ``shared`` as a set of names and positions.

    Raises:
        ConfigError: If it is a text, or names no argument of the base.
    """
    if shared is None:
        return None
    if isinstance(shared, str):
        raise ConfigError(
            f"`shared={shared!r}` is a single text. It lists arguments that all tasks share. Pass "
            f"`shared={{{shared!r}}}`."
        )
    known = target.arguments
    for name in shared:
        if known is not None and not known[1] and isinstance(name, str) and name not in known[0]:
            raise ConfigError(
                f"`shared` names {name!r}, which {target.name} does not take. It lists the "
                f"arguments of the base that all tasks share. {nearest(name, known[0])}"
            )
    return frozenset(shared)


def check_all(call: Call, engine: str, statistics: str | None) -> Call:
    """Check a call in full; return it with its number of tasks and its buffers per task.

    Raises:
        ShapeError: If tensors disagree on the number of tasks, or a shape is wrong.
        ConfigError: If names, devices, dtypes or options do not fit the base.
        BatchingError: If a norm in train mode would write statistics that all tasks share.
    """
    tasks = check_call(call.target, call.params, call.rows, call.paths or positions(len(call.rows)))
    buffers, base = call.buffers, call.target.module
    if base is None:
        return call._replace(tasks=tasks)
    check_buffers(base, buffers, tasks)
    if statistics == "task":
        buffers = {**task_buffers(base, tasks), **buffers}
    call = call._replace(tasks=tasks, buffers=buffers)
    if statistics == "shared":
        _refuse_apart(call, engine)
    elif engine != "loop":
        refuse_shared_statistics(base, buffers)
    return call


def _refuse_apart(call: Call, engine: str) -> None:
    """Raise if ``statistics="shared"`` cannot run all tasks as one batch."""
    assert call.target.module is not None
    if not norms_that_write(call.target.module):
        return
    if engine not in ("auto", "aligned"):
        raise refuse_apart(engine)
    if call.chunk_size is not None and call.chunk_size < call.tasks:
        raise ConfigError(
            f'`statistics="shared"` does not work with `chunk_size={call.chunk_size}` for '
            f"{call.tasks} tasks. All tasks are normalised together, so all of them run at once. "
            'Leave `chunk_size` out, or pass `statistics="task"`.'
        )


def check_call(
    target: Target, params: Mapping[str, Tensor], rows: Sequence[Tensor], paths: Sequence[str]
) -> int:
    """Check names, numbers of tasks, devices and dtypes; return the number of tasks.

    Args:
        target: The base.
        params: Generated parameters, each ``(tasks, *shape)``.
        rows: Inputs with a tasks axis.
        paths: Name of each input, for messages.

    Raises:
        ShapeError: If tensors disagree on the number of tasks, or it is 0 or unknown.
        ConfigError: If names, devices or dtypes do not fit the base, or it has no `forward`.
    """
    base = target.module
    if base is not None:
        check_names(base, params)
        _check_forward(base, target.method)
    named = dict(zip(paths, rows, strict=True))
    tasks = _count_tasks(params, named)
    if base is not None:
        _check_kind(base, params, named)
    return tasks


def _check_forward(base: nn.Module, method: str | None) -> None:
    """Raise if a base that is to be called defines no `forward`."""
    if method is not None or "forward" in base.__dict__:
        return
    if type(base).forward is nn.Module.forward:
        networks = ", ".join(f"`{name}`" for name, _ in base.named_children()) or "none"
        raise ConfigError(
            f"{type(base).__name__} has no `forward`: it holds networks ({networks}) and does "
            "not say how they are run. Run them one by one: `apply_per_task(base[name], "
            "weightloom.sub(params, name), x)`."
        )


def _count_tasks(params: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> int:
    """Count the tasks of parameters and inputs; raise unless all agree on at least one."""
    tasks = count_tasks(params)
    if not inputs and tasks is None:
        raise ShapeError(
            "No parameters and no inputs with a tasks axis were passed, so the number of tasks is "
            "unknown. The base runs once for each task. Pass params, or `x` of shape (tasks, ...)."
        )
    first = f"params[{next(iter(params))!r}]" if params else next(iter(inputs))
    for name, x in inputs.items():
        if x.ndim == 0:
            raise ShapeError(
                f"`{name}` is a scalar. Each task needs its own inputs, on axis 0. Pass "
                f"`{name}[None]` for one task, or `Shared({name})` where all tasks share it."
            )
        if tasks is None:
            tasks = x.shape[0]
        if x.shape[0] != tasks:
            raise ShapeError(
                f"`{name}` holds {x.shape[0]} tasks but `{first}` holds {tasks}. "
                "Each task needs its own parameters and its own inputs, on axis 0. "
                f"To give every task the same inputs, pass `Shared({name}[0])`."
            )
    if tasks is None or tasks == 0:
        raise ShapeError(
            f"`{first}` holds 0 tasks. No task is left to run, and the shape of the outputs is not "
            "known. Leave out the call where no task is left."
        )
    return tasks


def check_compiled(base: nn.Module | None) -> None:
    """Raise if `torch.compile` would compile a fused path that has no derivative.

    Raises:
        BatchingError: If the base holds an `nn.TransformerEncoderLayer` in eval mode, gradients are
            on and torch's fused path is enabled. Eager mode avoids that path by itself.
    """
    if base is None or not torch.is_grad_enabled() or not torch.backends.mha.get_fastpath_enabled():
        return
    for module in base.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and not module.training:
            raise BatchingError(
                "The base holds an `nn.TransformerEncoderLayer` in eval mode, which takes a fused "
                "path without a derivative where it is compiled. Gradients reach generated "
                "parameters only on the unfused path. Type "
                "`torch.backends.mha.set_fastpath_enabled(False)` before, or run under "
                "`torch.no_grad()`."
            )


def check_names(base: nn.Module, params: Mapping[str, Tensor]) -> None:
    """Raise unless ``params`` holds parameters of the base by name, with a tasks axis in front.

    Raises:
        ConfigError: If the base has no parameter of a name, two names are tied to one parameter but
            hold two values, or the base holds a Keras model.
        ShapeError: If a value does not have one axis more than the base's own.
    """
    inside = next(
        ((name, module) for name, module in base.named_modules() if is_keras(module)), None
    )
    if inside is not None:
        name, module = inside
        raise ConfigError(
            f"`{f'base.{name}' if name else 'base'}` is a Keras model, {type(module).__name__}. "
            "Keras would silently run with its own weights instead of the generated ones. Wrap it: "
            "`weightloom.KerasBase(model)`."
        )
    own = parameters_by_name(base)
    for name, value in params.items():
        if name not in own:
            raise ConfigError(
                f"`params` names {name!r}, which {type(base).__name__} does not have. "
                f"Keys are those of `base.named_parameters()`. {nearest(name, own)}"
            )
        if value.ndim != own[name].ndim + 1:
            raise ShapeError(
                f"`params[{name!r}]` has shape {tuple(value.shape)}; the base's own is "
                f"{tuple(own[name].shape)}. "
                "A generated parameter has one axis more, tasks, in front. "
                f"For one task, pass `value[None]`."
            )
    _check_ties(own, params)


def _check_ties(own: Mapping[str, nn.Parameter], params: Mapping[str, Tensor]) -> None:
    """Raise if two names of one tied parameter hold two values."""
    first: dict[int, str] = {}
    for name, value in params.items():
        other = first.setdefault(id(own[name]), name)
        if value is not params[other]:
            raise ConfigError(
                f"`{other}` and `{name}` are one parameter of the base, tied, but `params` holds a "
                f"value for each. Tied parameters stay tied, so they can have one value only. Pass "
                f"`{other}` alone, or untie them in the base."
            )


def _check_kind(
    base: nn.Module, params: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> None:
    """Raise if generated and shared parameters and real inputs differ in device or dtype.

    A base whose own parameters differ from each other may mix dtypes, and its own parameters are
    not compared.
    """
    own = parameters_by_name(base)
    is_mixed = len({(value.device, value.dtype) for value in own.values()}) > 1
    generated = {f"params[{name!r}]": value for name, value in params.items()}
    real = {name: x for name, x in inputs.items() if x.is_floating_point()}
    shared = {} if is_mixed else _shared(own, params)
    _check_together({**generated, **real, **shared}, shared.keys(), is_mixed)


def _check_together(values: Mapping[str, Tensor], shared: Collection[str], is_mixed: bool) -> None:
    """Raise unless all values are on one device, and of one dtype unless dtypes may be mixed."""
    first = next(iter(values), None)
    if first is None:
        return
    device, dtype = values[first].device, values[first].dtype
    for name, value in values.items():
        it = "the base" if name in shared else "it"
        if value.device != device:
            raise ConfigError(
                f"`{name}` is on {value.device} but `{first}` is on {device}. Parameters and "
                f"inputs meet in one computation, on one device. Move {it}: `.to({str(device)!r})`."
            )
        if value.dtype != dtype and not is_mixed and not _is_autocast(value.device.type):
            raise ConfigError(
                f"`{name}` is {value.dtype} but `{first}` is {dtype}. Parameters and inputs meet "
                f"in one computation, in one dtype. Convert {it}: `.to({dtype})`, or run under "
                "`torch.autocast`."
            )


def _shared(own: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Own parameters of the base that are not generated, by name in messages."""
    replaced = {id(own[name]) for name in params}
    return {f"base.{name}": value for name, value in own.items() if id(value) not in replaced}


def _is_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def refused_by_vmap(name: str, base: nn.Module | None, error: RuntimeError) -> BatchingError | None:
    """Translate an error of ``vmap`` into one that advises; None for other errors of the base."""
    text = str(error)
    if isinstance(error, WeightloomError):
        return None
    if "vmap" not in text and "Batching rule" not in text:
        return None
    recurrent = base is not None and any(
        isinstance(m, nn.RNNBase | nn.RNNCellBase) and type(m).__module__ == nn.LSTM.__module__
        for m in base.modules()
    )
    drop_in = (
        " or give recurrent layers a batch: `base = weightloom.replace_recurrent(base)`"
        if recurrent
        else ""
    )
    return BatchingError(
        f"{name} uses an operation that cannot run for all tasks at once ({text.splitlines()[0]}). "
        "`vmap` runs the base once, with the tasks axis hidden from it, which torch's recurrent "
        f'layers and branches on values do not allow. Pass `engine="loop"`{drop_in}; or '
        '`engine="aligned"` where the base treats the rows of a batch one by one.'
    )
