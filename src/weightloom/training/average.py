"""A running average of the parameters of a model, which is often better than any of the models it is an average of."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """A running average of the parameters of a model, or nothing where the decay is 0.

    Early on it follows more closely, so that it forgets where the model began. Buffers are the
    model's own: after training those of batch normalisation are statistics of the last parameters,
    which averaged ones may not have. With ``buffers`` real ones are averaged with the parameters.

    Args:
        model: The model, on its device.
        decay: Share of the average that a step leaves.
        buffers: Average buffers of real numbers too.
    """

    def __init__(self, model: nn.Module, decay: float, buffers: bool = False) -> None:
        self.decay = decay
        self.own: dict[str, Tensor] = dict(model.named_parameters()) if decay else {}
        if decay and buffers:
            self.own |= {
                name: its for name, its in model.named_buffers() if its.is_floating_point()
            }
        self.values = [value.detach().clone() for value in self.own.values()]

    def update(self, step: int) -> None:
        """Take in the parameters after a step, counted from 0."""
        if self.values:
            weight = 1 - min(self.decay, (step + 1) / (step + 20))
            torch._foreach_lerp_(
                self.values, [value.detach() for value in self.own.values()], weight
            )

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
        """Take the averages from a checkpoint.

        Where it has none they are the model's own values.
        """
        for name, value in zip(self.own, self.values, strict=True):
            value.copy_(tensors.get(f"average/{name}", self.own[name].detach()))


@torch.no_grad()
def _copy(own: dict[str, Tensor], values: list[Tensor]) -> None:
    for its, value in zip(own.values(), values, strict=True):
        its.copy_(value)
