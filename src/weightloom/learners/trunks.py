"""How methods run a network on the images of several tasks: what its norms may see together, and its parts by name."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import vmap

from weightloom.base import apply_per_task, apply_shared


def run_shared(trunk: nn.Module, x: Tensor) -> Tensor:
    """Run a network that all tasks share, (tasks, batch, *event) to (tasks, batch, features); not in half precision.

    Where its norms go by the images that they see together, those are the images of one task.
    """
    if sees_a_task_together(trunk):
        return single(vmap(trunk, randomness="different")(x))
    return single(apply_shared(trunk, x))


def run_per_task(base: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run a network with each task's parameters, (tasks, batch, *event) to (tasks, batch, *out).

    Norms with running statistics go by the images of all tasks in training; those without by the images of one task.
    """
    outputs: Tensor = apply_per_task(base, params, x, statistics="task" if sees_a_task_together(base) else "shared")
    return outputs


def single(x: Tensor) -> Tensor:
    """Bring half precision to single; what is finer stays so."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sees_a_task_together(base: nn.Module) -> bool:
    """Whether norms go by the images that they see together, in eval mode too: those of one task, then."""
    return any(isinstance(part, nn.BatchNorm2d) and not part.track_running_stats for part in base.modules())


def trunk_of(base: nn.Module) -> nn.Module:
    """The part of ``head(trunk(x))`` before the head."""
    return cast("nn.Module", base.trunk)


def head_of(base: nn.Module) -> nn.Module:
    """The head of ``head(trunk(x))``."""
    return cast("nn.Module", base.head)


def features_of(base: nn.Module) -> int:
    """How many numbers stand between trunk and head."""
    return int(cast("Any", trunk_of(base)).features)
