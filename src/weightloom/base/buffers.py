"""Buffers per task, such as running statistics of norms, and checks of norms in train mode.

In:   a base network, the number of tasks.
Out:  buffers by name, each ``(tasks, *shape)``; errors about buffers that tasks would share.
"""

from collections.abc import Collection, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from weightloom.errors import BatchingError, ConfigError, ShapeError, nearest
from weightloom.params import modules_by_name


def task_buffers(
    base: nn.Module, tasks: int, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Copy buffers of the base for every task, such as the running statistics of its norms.

    Args:
        base: The base network.
        tasks: Number of tasks.
        names: Names of the buffers, as in `base.named_buffers()`. Default: all buffers of torch's
            norms that keep running statistics.

    Returns:
        Buffers by name, each ``(tasks, *shape)``, to pass as ``apply_per_task(…, buffers=…)``,
        which updates them in place if the base is in train mode.

    Raises:
        ConfigError: If ``names`` holds a name that is no buffer of the base.

    Example:
        >>> buffers = task_buffers(nn.BatchNorm1d(4), tasks=3)
        >>> {name: tuple(value.shape) for name, value in buffers.items()}
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
    """Buffers by name; one that has several names stands under each."""
    return {
        f"{name}.{leaf}" if name else leaf: buffer
        for name, module in modules_by_name(base).items()
        for leaf, buffer in module._buffers.items()
        if buffer is not None
    }


def check_buffers(base: nn.Module, buffers: Mapping[str, Tensor], tasks: int) -> None:
    """Raise unless ``buffers`` holds buffers of the base by name, each ``(tasks, *shape)``.

    Raises:
        ConfigError: If the base has no buffer of a name.
        ShapeError: If a shape is not that of the base's buffer with a tasks axis in front.
    """
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
    """Raise if a norm in train mode would write one set of running statistics for all tasks.

    Raises:
        BatchingError: If such a norm has no running mean in ``buffers``.
    """
    for name, module in norms_that_write(base):
        if (f"{name}.running_mean" if name else "running_mean") not in buffers:
            raise BatchingError(
                f"`{name or 'base'}` is a `{type(module).__name__}` in train mode. It would write "
                "one set of running statistics for all tasks at once: say which is meant. Pass "
                '`statistics="task"` to normalise every task by its own batch, '
                '`statistics="shared"` to normalise all tasks together, or '
                "`buffers=task_buffers(base, tasks)` to keep statistics per task; or use "
                "nn.GroupNorm instead, build it with `track_running_stats=False`, call "
                '`base.eval()`, or pass `engine="loop"`.'
            )


def norms_that_write(base: nn.Module) -> list[tuple[str, nn.Module]]:
    """Norms in train mode that keep running statistics, by name."""
    return [
        (name, module)
        for name, module in base.named_modules()
        if isinstance(module, _NormBase) and module.training and module.track_running_stats
    ]


def refuse_apart(engine: str) -> ConfigError:
    """Error for ``statistics="shared"`` with an engine that does not run all tasks as one batch."""
    return ConfigError(
        f'`statistics="shared"` does not work with `engine={engine!r}`. All tasks are normalised '
        'together only where they are one batch. Pass `engine="aligned"`, or leave the engine to '
        '"auto".'
    )


def refuse_written(base: str, names: Collection[str]) -> BatchingError:
    """Error for buffers that `forward` writes, other than running statistics of torch's norms."""
    listed = ", ".join(f'"{name}"' for name in names)
    return BatchingError(
        f"`forward` of {base} writes its buffers {listed}. One set of them cannot serve all tasks "
        'at once: say which is meant. Pass `statistics="task"` to give every task its own for this '
        "call, leaving the base's alone, "
        f"`buffers=task_buffers(base, tasks, [{listed}])` to keep them per task, or "
        '`statistics="shared"` to run all tasks as one batch; or call `base.eval()`.'
    )
