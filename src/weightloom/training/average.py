"""A running average of the parameters of a model, which is often better than any of the models it is an average of."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """A running average of the parameters of a model, or nothing where the decay is 0.

    Early on it follows more closely, so that it forgets where the model began. Buffers are the model's own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.own = dict(model.named_parameters()) if decay else {}
        self.values = [parameter.detach().clone() for parameter in self.own.values()]

    def update(self, step: int) -> None:
        """Take in the parameters after a step, counted from 0."""
        if self.values:
            weight = 1 - min(self.decay, (step + 1) / (step + 20))
            torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self.own.values()], weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averages, then its own values back."""
        own = [parameter.detach().clone() for parameter in self.own.values()]
        self.settle()
        try:
            yield
        finally:
            _copy(self.own, own)

    def settle(self) -> None:
        """Give the model the averages for good."""
        _copy(self.own, self.values)

    def kept(self) -> dict[str, Tensor]:
        """Return the averages for a checkpoint."""
        return {f"average/{name}": value for name, value in zip(self.own, self.values, strict=True)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take the averages from a checkpoint; where it has none they are the model's own values."""
        for name, value in zip(self.own, self.values, strict=True):
            value.copy_(tensors.get(f"average/{name}", self.own[name].detach()))


@torch.no_grad()
def _copy(parameters: dict[str, nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters.values(), values, strict=True):
        parameter.copy_(value)
