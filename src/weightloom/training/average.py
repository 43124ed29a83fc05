"""Running average of a model's parameters, often more accurate than the parameters of any step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Running average of the parameters of a model; empty if the decay is 0.

    The decay is smaller in the first steps, so that the initial parameters lose their weight.
    Buffers keep the model's own values: after training, the statistics of batch normalisation are
    those of the last parameters and may not fit the averaged ones. With ``buffers``, floating-point
    buffers are averaged too.

    Args:
        model: The model, on its device.
        decay: Share of the average kept per step, from 0 to below 1.
        buffers: Also average floating-point buffers.
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
        """Add the parameters after a step, counted from 0."""
        if self.values:
            weight = 1 - min(self.decay, (step + 1) / (step + 20))
            torch._foreach_lerp_(
                self.values, [value.detach() for value in self.own.values()], weight
            )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the averages into the model for the duration of a ``with`` block."""
        own = [parameter.detach().clone() for parameter in self.own.values()]
        self.settle()
        try:
            yield
        finally:
            _copy(self.own, own)

    def settle(self) -> None:
        """Copy the averages into the model."""
        _copy(self.own, self.values)

    def kept(self) -> dict[str, Tensor]:
        """Averages as tensors of a checkpoint, under ``average/`` and their name."""
        return {f"average/{name}": value for name, value in zip(self.own, self.values, strict=True)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Read the averages from a checkpoint; missing ones become the model's own values."""
        for name, value in zip(self.own, self.values, strict=True):
            value.copy_(tensors.get(f"average/{name}", self.own[name].detach()))


@torch.no_grad()
def _copy(own: dict[str, Tensor], values: list[Tensor]) -> None:
    for its, value in zip(own.values(), values, strict=True):
        its.copy_(value)
