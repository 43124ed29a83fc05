"""Extract a plain network for one task, to export, ship and serve."""

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from weightloom.base.check import check_names
from weightloom.errors import ConfigError
from weightloom.forms.factored import built
from weightloom.networks.recurrent import original_recurrent
from weightloom.params import count_tasks, parameters_by_name


def specialise(base: nn.Module, params: Mapping[str, Tensor], task: int = 0) -> nn.Module:
    """Copy ``base`` with the generated parameters of one task, as a plain module.

    The copy holds no classes of this library (recurrent drop-ins become torch's own layers again),
    so it can be exported, copied, shipped and trained further like any module. Send other people
    its ``state_dict``: a pickle of a module, or a program of ``torch.export``, can run code when it
    is loaded. Tied parameters stay tied. A linear layer is resized if its generated weight has
    another number of rows than the base's.

    Args:
        base: The base network; it stays unchanged.
        params: Generated parameters, each ``(tasks, *shape)``.
        task: Index of the task, from ``-tasks`` to ``tasks - 1``.

    Returns:
        A module of the class of ``base``; its generated parameters are new leaf parameters.

    Raises:
        ConfigError: If ``params`` names a parameter that ``base`` does not have, or ``task`` is out
            of range.

    Example:
        >>> import torch
        >>> net = specialise(nn.Linear(3, 2), {"bias": torch.ones(5, 2)}, task=4)
        >>> net.bias
        Parameter containing:
        tensor([1., 1.], requires_grad=True)
    """
    check_names(base, params)
    tasks = count_tasks(params) or 1
    if not -tasks <= task < tasks:
        raise ConfigError(
            f"`task={task}` is out of range. `params` holds {tasks} tasks. Pass a task from 0 to "
            f"{tasks - 1}."
        )
    net = original_recurrent(copy.deepcopy(base))
    aliases = list(parameters_by_name(net).items())
    for name, value in params.items():
        old = net.get_parameter(name)
        new = nn.Parameter(built(value[task]).detach().clone(), requires_grad=True)
        for alias, parameter in aliases:
            if parameter is old:
                owner, _, leaf = alias.rpartition(".")
                module = net.get_submodule(owner)
                setattr(module, leaf, new)
                if isinstance(module, nn.Linear) and leaf == "weight":
                    module.out_features, module.in_features = new.shape
    return net
