"""What annotations cannot see: that base, Params and inputs fit each other."""

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
    """Raise unless every option is known."""
    if (
        engine in ENGINES
        and randomness in DRAWS
        and statistics in (None, "task", "shared")
        and chunk_size is None
    ):
        return
    said = {
        "engine": (engine, [*ENGINES], "An engine says how tasks are run."),
        "randomness": (randomness, [*DRAWS], "It says what dropout draws for each task."),
        "statistics": (
            statistics or "task",
            ["task", "shared"],
            "It says what BatchNorm normalises by.",
        ),
    }
    for name, (value, known, what) in said.items():
        if value not in known:
            raise ConfigError(f"`{name}={value!r}` is unknown. {what} {nearest(str(value), known)}")
    if chunk_size is not None and chunk_size < 1:
        raise ConfigError(
            f"`chunk_size={chunk_size}` is below 1. At least one task runs at a time. Pass 1 or "
            "more."
        )


def check_shared(
    target: Target, shared: Collection[str | int] | None
) -> frozenset[str | int] | None:
    """Raise unless ``shared`` names arguments of the base; return it as a set."""
    if shared is None:
        return None
    if isinstance(shared, str):
        raise ConfigError(
            f"`shared={shared!r}` is one text. It lists arguments that all tasks share. Pass "
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
    """Check everything there is to check.

    Return the call with its tasks counted and its buffers there.
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
    assert call.target.module is not None
    if not norms_that_write(call.target.module):
        return
    if engine not in ("auto", "aligned"):
        raise refuse_apart(engine)
    if call.chunk_size is not None and call.chunk_size < call.tasks:
        raise ConfigError(
            f'`statistics="shared"` cannot be had with `chunk_size={call.chunk_size}` for {call.tasks} tasks. All '
            "tasks are normalised together, so all of them run at once. Leave `chunk_size` out, or "
            "pass "
            '`statistics="task"`.'
        )


def check_call(
    target: Target, params: Mapping[str, Tensor], rows: Sequence[Tensor], paths: Sequence[str]
) -> int:
    """Check names, task counts, devices and dtypes; return the number of tasks."""
    base = target.module
    if base is not None:
        check_names(base, params)
        if (
            target.method is None
            and type(base).forward is nn.Module.forward
            and "forward" not in base.__dict__
        ):
            networks = ", ".join(f"`{name}`" for name, _ in base.named_children()) or "none"
            raise ConfigError(
                f"{type(base).__name__} has no `forward`: it holds networks ({networks}) and does "
                "not say how they are run. Run them one by one: `apply_per_task(base[name], "
                "weightloom.sub(params, name), x)`."
            )
    tasks = count_tasks(params)
    named = dict(zip(paths, rows, strict=True))
    if not named and tasks is None:
        raise ShapeError(
            "There are no parameters and no inputs with a tasks axis, so nothing says how many "
            "tasks there are. The base runs once for each task. Pass params, or `x` of shape "
            "(tasks, ...)."
        )
    first = f"params[{next(iter(params))!r}]" if params else next(iter(named))
    for name, x in named.items():
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
    assert tasks is not None
    if tasks == 0:
        raise ShapeError(
            f"`{first}` holds 0 tasks. There is nothing to run, and no way to tell what would come "
            "out. Leave out the call where no task is left."
        )
    if base is not None:
        _check_kind(base, params, named)
    return tasks


def check_compiled(base: nn.Module | None) -> None:
    """Raise if `torch.compile` would take a fused path that has no derivative, and that only eager mode steps aside."""
    if base is None or not torch.is_grad_enabled() or not torch.backends.mha.get_fastpath_enabled():
        return
    for module in base.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and not module.training:
            raise BatchingError(
                "The base holds an `nn.TransformerEncoderLayer` in eval mode, which takes a fused "
                "path without a derivative where it is compiled. Gradients reach generated "
                "parameters only on the other one. Type "
                "`torch.backends.mha.set_fastpath_enabled(False)` before, or run under "
                "`torch.no_grad()`."
            )


def check_names(base: nn.Module, params: Mapping[str, Tensor]) -> None:
    """Raise unless ``params`` names parameters of the base, each once, with one axis more than they have."""
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
    """Raise if two names of one tied parameter are given two values."""
    first: dict[int, str] = {}
    for name, value in params.items():
        other = first.setdefault(id(own[name]), name)
        if value is not params[other]:
            raise ConfigError(
                f"`{other}` and `{name}` are one parameter of the base, tied, but `params` holds a "
                f"value for each. Tied parameters stay tied, so they can have one value only. Pass "
                f"`{other}` alone, or untie them in "
                "the base."
            )


def _check_kind(
    base: nn.Module, params: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> None:
    """Raise if what meets in one computation (generated, shared and real-valued inputs) differs in device or dtype.

    A base whose own parameters differ among each other is taken to know what it does.
    """
    own = parameters_by_name(base)
    is_mixed = len({(value.device, value.dtype) for value in own.values()}) > 1
    replaced = {id(own[name]) for name in params}
    generated = {f"params[{name!r}]": value for name, value in params.items()}
    shared = {
        f"base.{name}": value
        for name, value in own.items()
        if id(value) not in replaced and not is_mixed
    }
    real = {name: x for name, x in inputs.items() if x.is_floating_point()}
    first: tuple[str, Tensor] | None = None
    for name, value in {**generated, **real, **shared}.items():
        if first is None:
            first = name, value
        if value.device != first[1].device:
            raise ConfigError(
                f"`{name}` is on {value.device} but `{first[0]}` is on {first[1].device}. "
                f"Parameters and inputs meet in one computation, on one device. Move "
                f"{_what(name, shared)}: `.to({str(first[1].device)!r})`."
            )
        kind = value.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        if value.dtype != first[1].dtype and not autocast and not is_mixed:
            raise ConfigError(
                f"`{name}` is {value.dtype} but `{first[0]}` is {first[1].dtype}. Parameters and "
                f"inputs meet in one computation, in one dtype. Convert {_what(name, shared)}: "
                f"`.to({first[1].dtype})`, or run under "
                "`torch.autocast`."
            )


def _what(name: str, shared: Mapping[str, Tensor]) -> str:
    return "the base" if name in shared else "it"


def refused_by_vmap(name: str, base: nn.Module | None, error: RuntimeError) -> BatchingError | None:
    """Say in our words what ``vmap`` refuses; None for any other error, which is the base's own."""
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
        f"{name} does something that cannot run for all tasks at once ({text.splitlines()[0]}). "
        "`vmap` runs the base once, with the tasks axis hidden from it, which torch's recurrent "
        "layers and branches on "
        f'values do not allow. Pass `engine="loop"`{drop_in}; or `engine="aligned"` where the base treats the rows of '
        "a batch one by one."
    )
