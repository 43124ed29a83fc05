"""Where steps run: in this process alone, or in several that Lightning Fabric has launched.

Fabric is imported by those who launch several processes or compute in mixed precision, never here:
its import alone takes longer than many a training.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from weightloom.tasks import Tasks


@runtime_checkable
class Processes(Protocol):
    """What training asks of devices and processes: a part of what Lightning's ``Fabric`` has."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    @property
    def world_size(self) -> int:
        """Processes in all."""
        ...

    @property
    def global_rank(self) -> int:
        """The number of this process, from 0."""
        ...

    def launch(self) -> Any:
        """Start the others; training takes what is launched."""
        ...

    def setup(self, module: nn.Module, *optimizers: torch.optim.Optimizer) -> Any:
        """Return module and optimiser as they take part in a step.

        Gradients are those of all processes.
        """
        ...

    def to_device(self, obj: Any) -> Any:
        """Move a batch, any tree of tensors, to the device."""
        ...

    def backward(self, tensor: Tensor, **how: Any) -> None:
        """Differentiate, as ``Tensor.backward`` does."""
        ...

    def all_reduce(self, data: Any, group: Any = None, reduce_op: str | None = "mean") -> Any:
        """Return the mean, sum, largest or smallest of what the processes have."""
        ...

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return what one process has."""
        ...

    def barrier(self, name: str | None = None) -> None:
        """Wait for the others."""
        ...


class OneProcess:
    """One process on one device, which shares nothing.

    There is nobody to wait for and nothing to convert.

    Args:
        device: Where it computes.
    """

    world_size = 1
    global_rank = 0

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def launch(self) -> None:
        """Start nobody."""

    def setup(self, module: nn.Module, *optimizers: torch.optim.Optimizer) -> Sequence[Any]:
        """Return them as they are."""
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
        """Return what this process has."""
        return data

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return what this process has."""
        return obj

    def barrier(self, name: str | None = None) -> None:
        """Wait for nobody."""


def seed_chance(seed: int, device: torch.device) -> None:
    """Seed what draws without being given a generator, such as dropout, on the CPU and on the device.

    The numbers are those after ``torch.manual_seed``, which also visits every accelerator there is.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
