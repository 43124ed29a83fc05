"""Processes and devices of a training: this process alone, or several launched by Lightning Fabric.

Fabric is never imported here, only by callers that launch several processes or use mixed precision:
its import alone takes longer than a short training.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from weightloom.tasks import Tasks


@runtime_checkable
class Processes(Protocol):
    """Interface of training to devices and processes: the part of Lightning's ``Fabric`` in use."""

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    @property
    def global_rank(self) -> int:
        """Number of this process, from 0."""
        ...

    def launch(self) -> Any:
        """Start the other processes."""
        ...

    def setup(self, module: nn.Module, *optimizers: torch.optim.Optimizer) -> Any:
        """Module and optimisers wrapped for training; gradients are averaged over processes."""
        ...

    def to_device(self, obj: Any) -> Any:
        """Move a batch, any tree of tensors, to the device."""
        ...

    def backward(self, tensor: Tensor, **how: Any) -> None:
        """Differentiate, as ``Tensor.backward`` does."""
        ...

    def all_reduce(self, data: Any, group: Any = None, reduce_op: str | None = "mean") -> Any:
        """Mean, sum, largest or smallest of a value over all processes."""
        ...

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Value of process ``src``, in every process."""
        ...

    def barrier(self, name: str | None = None) -> None:
        """Wait until every process is here."""
        ...


class OneProcess:
    """One process on one device, without synchronisation or conversion of precision.

    Args:
        device: Device to compute on.
    """

    world_size = 1
    global_rank = 0

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def launch(self) -> None:
        """Do nothing: this process is the only one."""

    def setup(self, module: nn.Module, *optimizers: torch.optim.Optimizer) -> Sequence[Any]:
        """Module and optimisers, unchanged."""
        return (module, *optimizers)

    def to_device(self, obj: Any) -> Any:
        """Move a batch, any tree of tensors, to the device."""
        if isinstance(obj, Tasks | Tensor):
            return obj.to(self.device)
        return tree_map(
            lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, obj
        )

    def backward(self, tensor: Tensor, **how: Any) -> None:
        """Differentiate, as ``Tensor.backward`` does."""
        tensor.backward(**how)

    def all_reduce(self, data: Any, group: Any = None, reduce_op: str | None = "mean") -> Any:
        """``data``, unchanged."""
        return data

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """``obj``, unchanged."""
        return obj

    def barrier(self, name: str | None = None) -> None:
        """Return at once."""


def seed_chance(seed: int, device: torch.device) -> None:
    """Seed the default generators, as used by dropout, of the CPU and of one device.

    The numbers are those after ``torch.manual_seed``, which would seed every accelerator.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
