"""Buffers per task: running statistics of norms that each task keeps for itself."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from weightloom.errors import BatchingError, ConfigError, ShapeError, nearest
from weightloom.params import modules_by_name


def task_buffers(
    base: nn.Module, tasks: int, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Give every task running statistics of its own, which start as the base's.

    Args:
        base: The base network.
        tasks: How many tasks.
        names: Which buffers, as in `base.named_buffers()`. None takes those of torch's norms.

    Returns:
        Buffers of the base's norms by name, each ``(tasks, *shape)``, to pass as
        ``apply_per_task(…, buffers=…)``, which updates them in place where the base is in train
        mode.

    Example:
        >>> {name: tuple(value.shape) for name, value in task_buffers(nn.BatchNorm1d(4), tasks=3).items()}
        {'running_mean': (3, 4), 'running_var': (3, 4), 'num_batches_tracked': (3,)}
    """
    if names is not None:
        own = buffers_by_name(base)
        for name in names:
            if name not in own:
                raise ConfigError(
                    f"`names` holds {name!r}, which is no buffer of {type(base).__name__}. Keys "
                    f"are those of `base.named_buffers()`. {nearest(name, own)}"
                )
        return {name: own[name].detach().expand(tasks, *own[name].shape).clone() for name in names}
    return {
        f"{name}.{leaf}" if name else leaf: value.detach().expand(tasks, *value.shape).clone()
        for name, module in base.named_modules()
        if isinstance(module, _NormBase) and module.track_running_stats
        for leaf, value in module.named_buffers(recurse=False)
    }


def buffers_by_name(base: nn.Module) -> dict[str, Tensor]:
    """Every buffer by every name it has."""
    return {
        f"{name}.{leaf}" if name else leaf: buffer
        for name, module in modules_by_name(base).items()
        for leaf, buffer in module._buffers.items()
        if buffer is not None
    }


def check_buffers(base: nn.Module, buffers: Mapping[str, Tensor], tasks: int) -> None:
    """Raise unless ``buffers`` names buffers of the base, with a row for each task."""
    own = buffers_by_name(base)
    for name, value in buffers.items():
        if name not in own:
            raise ConfigError(
                f"`buffers` names {name!r}, which {type(base).__name__} does not have. "
                f"Keys are those of `base.named_buffers()`. {nearest(name, own)}"
            )
        if value.shape != (tasks, *own[name].shape):
            raise ShapeError(
                f"`buffers[{name!r}]` has shape {tuple(value.shape)}; for {tasks} tasks it is "
                f"{(tasks, *own[name].shape)}. Every task keeps its own. Make them with "
                f"`task_buffers(base, {tasks})`."
            )


def refuse_shared_statistics(base: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Raise if a norm in train mode would write one set of running statistics for all tasks."""
    for name, module in norms_that_write(base):
        if (f"{name}.running_mean" if name else "running_mean") not in buffers:
            raise BatchingError(
                f"`{name or 'base'}` is a `{type(module).__name__}` in train mode. It would write "
                "one set of running "
                'statistics for all tasks at once: say which is meant. Pass `statistics="task"` to normalise every '
                'task by its own batch, `statistics="shared"` to normalise all tasks together, or `buffers='
                "task_buffers(base, tasks)` to keep statistics per task; or use nn.GroupNorm "
                "instead, build it with "
                '`track_running_stats=False`, call `base.eval()`, or pass `engine="loop"`.'
            )


def norms_that_write(base: nn.Module) -> list[tuple[str, nn.Module]]:
    """Norms in train mode that keep running statistics, by name."""
    return [
        (name, module)
        for name, module in base.named_modules()
        if isinstance(module, _NormBase) and module.training and module.track_running_stats
    ]


def refuse_apart(engine: str) -> ConfigError:
    """The error for an engine that cannot run all tasks as one batch."""
    return ConfigError(
        f'`statistics="shared"` cannot be had with `engine={engine!r}`. All tasks are normalised together where '
        'they are one batch. Pass `engine="aligned"`, or leave the engine to "auto".'
    )


def refuse_written(base: str, names: Collection[str]) -> BatchingError:
    """The error for buffers that `forward` writes, and that are not torch's norms'."""
    listed = ", ".join(f'"{name}"' for name in names)
    return BatchingError(
        f"`forward` of {base} writes its buffers {listed}. One set of them cannot serve all tasks "
        "at once: say what is "
        'meant. Pass `statistics="task"` to give every task its own for this call, leaving the base\'s alone, '
        f'`buffers=task_buffers(base, tasks, [{listed}])` to keep them per task, or `statistics="shared"` to run all '
        "tasks as one batch; or call `base.eval()`."
    )
