"""The base network, once per task: Params and inputs in, outputs out.

In:   a base network (any module), Params, inputs whose first axis is tasks.
Out:  outputs whose first axis is tasks; or, from `specialise`, a plain module for one task.
Knows nothing of where the parameters came from.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map

from weightloom.errors import BatchingError, ConfigError, ShapeError, nearest
from weightloom.params import Params, count_tasks

Engine = Literal["vmap", "loop"]


def apply_per_task(
    base: nn.Module, params: Params, *inputs: Tensor, engine: Engine = "vmap", chunk_size: int | None = None
) -> Any:
    """Run ``base`` once per task, each time with that task's own parameters.

    Equal to a Python loop over tasks. No weight is written into the base; only with ``engine="loop"`` a BatchNorm in
    train mode updates its running statistics, task after task, as it always does.

    Args:
        base: Any module. What ``params`` lacks stays its own and is shared by all tasks.
        params: Generated parameters per task, as returned by a hypernetwork, each ``(tasks, *shape)``.
        *inputs: What ``base.forward`` takes, each ``(tasks, batch, *event)``. ``tasks`` is kept even when it is 1.
        engine: ``"vmap"`` runs all tasks in one pass; ``"loop"`` is the slow, obvious reference.
        chunk_size: With ``"vmap"``: how many tasks run at once, to bound memory. None means all.

    Returns:
        What ``base`` returns, every tensor with a leading tasks axis.

    Raises:
        ShapeError: If ``params`` and ``inputs`` disagree on the number of tasks, or a value has an axis too few.
        ConfigError: If ``params`` names a parameter that ``base`` does not have, or ``engine`` is unknown.
        BatchingError: If ``base`` holds a BatchNorm, or an InstanceNorm with running statistics, in train mode,
            or does something else that ``vmap`` cannot run.

    Example:
        >>> params = {"weight": torch.zeros(5, 2, 3), "bias": torch.ones(5, 2)}
        >>> apply_per_task(nn.Linear(3, 2), params, torch.randn(5, 7, 3)).shape
        torch.Size([5, 7, 2])

    Source:
        Ha, Dai and Le, "HyperNetworks" (2017), section 3.
    """
    tasks = _check(base, params, inputs)

    def apply_one(one_params: Params, *one_inputs: Tensor) -> Any:
        return functional_call(base, one_params, one_inputs)

    if engine == "vmap":
        _refuse_batchnorm_in_training(base)
        try:
            with _no_fused_attention():
                return vmap(apply_one, randomness="different", chunk_size=chunk_size)(params, *inputs)
        except RuntimeError as error:
            if refused := _refused_by_vmap(base, error):
                raise refused from error
            raise
    if engine == "loop":
        rows = [
            apply_one({name: value[task] for name, value in params.items()}, *(x[task] for x in inputs))
            for task in range(tasks)
        ]
        return tree_map(lambda *leaves: torch.stack(leaves), *rows)
    raise ConfigError(
        f"`engine={engine!r}` is unknown. An engine says how tasks are run. {nearest(str(engine), ['vmap', 'loop'])}"
    )


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


def specialise(base: nn.Module, params: Params, task: int = 0) -> nn.Module:
    """Return a plain module for one task: a copy of ``base`` with that task's parameters in their places.

    Nothing of this library is left inside, so it can be exported, pickled, shipped and trained on like any module.
    Tied parameters stay tied. A linear layer whose generated head has other rows than the base's is resized.

    Args:
        base: The base network; it is left alone.
        params: Generated parameters, each ``(tasks, *shape)``.
        task: Which task.

    Raises:
        ConfigError: If ``params`` names a parameter that ``base`` does not have, or ``task`` is out of range.

    Example:
        >>> net = specialise(nn.Linear(3, 2), {"bias": torch.ones(5, 2)}, task=4)
        >>> net.bias
        Parameter containing:
        tensor([1., 1.], requires_grad=True)
    """
    _check_names(base, params)
    tasks = count_tasks(params) or 1
    if not -tasks <= task < tasks:
        raise ConfigError(
            f"`task={task}` is out of range. `params` holds {tasks} tasks. Pass a task from 0 to {tasks - 1}."
        )
    net = copy.deepcopy(base)
    aliases = list(net.named_parameters(remove_duplicate=False))
    for name, value in params.items():
        old = net.get_parameter(name)
        new = nn.Parameter(value[task].detach().clone(), requires_grad=True)
        for alias, parameter in aliases:
            if parameter is old:
                owner, _, leaf = alias.rpartition(".")
                module = net.get_submodule(owner)
                setattr(module, leaf, new)
                if isinstance(module, nn.Linear) and leaf == "weight":
                    module.out_features, module.in_features = new.shape
    return net


def _check(base: nn.Module, params: Params, inputs: Sequence[Tensor]) -> int:
    """Check names and task counts by hand, where annotations cannot see; return the number of tasks."""
    _check_names(base, params)
    tasks = count_tasks(params)
    if not inputs:
        raise ShapeError(
            "`apply_per_task` was given no inputs. The base needs something to run on. Pass `x` of shape (tasks, ...)."
        )
    first = f"params[{next(iter(params))!r}]" if params else "inputs[0]"
    for position, x in enumerate(inputs):
        name = "x" if len(inputs) == 1 else f"inputs[{position}]"
        if x.ndim == 0:
            raise ShapeError(
                f"`{name}` is a scalar. Each task needs its own inputs, on axis 0. Pass `{name}[None]` for one task."
            )
        if tasks is None:
            tasks = x.shape[0]
        if x.shape[0] != tasks:
            raise ShapeError(
                f"`{name}` holds {x.shape[0]} tasks but `{first}` holds {tasks}. "
                "Each task needs its own parameters and its own inputs, on axis 0. "
                f"To give every task the same inputs, pass `{name}[:1].expand({tasks}, *{name}.shape[1:])`."
            )
    assert tasks is not None
    return tasks


def _check_names(base: nn.Module, params: Params) -> None:
    own = dict(base.named_parameters(remove_duplicate=False))
    for name, value in params.items():
        if name not in own:
            raise ConfigError(
                f"`params` names {name!r}, which {type(base).__name__} does not have. "
                f"Keys are those of `base.named_parameters()`. {nearest(name, own)}"
            )
        if value.ndim != own[name].ndim + 1:
            raise ShapeError(
                f"`params[{name!r}]` has shape {tuple(value.shape)}; the base's own is {tuple(own[name].shape)}. "
                "A generated parameter has one axis more, tasks, in front. "
                f"For one task, pass `value[None]`."
            )


def _refused_by_vmap(base: nn.Module, error: RuntimeError) -> BatchingError | None:
    """Say in our words what ``vmap`` refuses; None for any other error, which is the base's own."""
    text = str(error)
    if "vmap" not in text and "Batching rule" not in text:
        return None
    return BatchingError(
        f"{type(base).__name__} does something that cannot run for all tasks at once ({text.splitlines()[0]}). "
        "`vmap` runs the base once, with the tasks axis hidden from it, which recurrent layers and branches on values "
        'do not allow. Pass `engine="loop"`.'
    )


def _refuse_batchnorm_in_training(base: nn.Module) -> None:
    for name, module in base.named_modules():
        if isinstance(module, _NormBase) and module.training and module.track_running_stats:
            raise BatchingError(
                f"`{name or 'base'}` is a `{type(module).__name__}` in train mode. It would write one set of running "
                "statistics for all tasks at once, which `vmap` refuses. Use nn.GroupNorm instead, build it with "
                '`track_running_stats=False`, call `base.eval()`, or pass `engine="loop"`.'
            )


@contextmanager
def _no_fused_attention() -> Iterator[None]:
    """Keep attention in eval mode off its fused path, which under `vmap` is a loop that has no derivative."""
    if torch.compiler.is_compiling():  # which cannot trace the switch
        yield
        return
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
