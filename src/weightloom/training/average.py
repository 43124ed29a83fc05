"""Running average of a model's parameters, often more accurate than the parameters of any step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

STATISTICS_BATCHES = 10
"""Number of training batches from which statistics of batch normalisation are measured again."""
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class Average:
    """Running average of the parameters of a model; empty if the decay is 0.

    The decay is smaller in the first steps, so that the initial parameters lose their weight.
    Running statistics of batch normalisation belong to the model's own parameters and do not fit
    the averaged ones: `measure` finds those that do. Other buffers keep the model's own values.
    With ``buffers``, floating-point buffers are averaged instead.

    Args:
        model: The model, on its device.
        decay: Share of the average kept per step, from 0 to below 1.
        buffers: Also average floating-point buffers.
    """

    def __init__(self, model: nn.Module, decay: float, buffers: bool = False) -> None:
        self.decay = decay
        self.own: dict[str, Tensor] = dict(model.named_parameters()) if decay else {}
        self.buffers = dict(model.named_buffers())
        self.norms: dict[str, BatchNorm] = {}
        if decay and buffers:
            self.own |= {name: its for name, its in self.buffers.items() if its.is_floating_point()}
        elif decay:
            self.norms = _norms_of(model)
        self.values = [value.detach().clone() for value in self.own.values()]
        self.statistics: dict[str, Tensor] = {}
        self.measured_at = 0

    def update(self, step: int) -> None:
        """Add the parameters after a step, counted from 0."""
        if self.values:
            weight = 1 - min(self.decay, (step + 1) / (step + 20))
            torch._foreach_lerp_(
                self.values, [value.detach() for value in self.own.values()], weight
            )

    def measure(self, step: int, rerun: Callable[[int], None]) -> None:
        """Measure the statistics of batch normalisation that belong to the averaged parameters.

        They are means over batches, weighted by the momentum of each layer as in training, without
        a trace of the statistics before. The model itself is left as it was. A layer that is not
        run in train mode keeps its own.

        Args:
            step: Number of steps done; kept as ``measured_at``.
            rerun: Runs the model in train mode on a few batches; called with ``step``.
        """
        self.measured_at = step
        if not self.norms:
            return
        self.statistics = {}
        live = [its.clone() for its in self.buffers.values()]
        with self.in_place():
            for norm in self.norms.values():
                for name in ("running_mean", "running_var", "num_batches_tracked"):
                    norm.get_buffer(name).zero_()
            rerun(step)
            for prefix, norm in self.norms.items():
                self.statistics |= _unbiased(prefix, norm)
        _copy(list(self.buffers.values()), live)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the averages into the model for the duration of a ``with`` block."""
        places = self._places()
        own = [its.detach().clone() for its in places]
        self.settle()
        try:
            yield
        finally:
            _copy(places, own)

    def settle(self) -> None:
        """Copy the averages into the model."""
        _copy(self._places(), [*self.values, *self.statistics.values()])

    def _places(self) -> list[Tensor]:
        return [*self.own.values(), *(self.buffers[name] for name in self.statistics)]

    def kept(self) -> dict[str, Tensor]:
        """Averages as tensors of a checkpoint, under ``average/`` and their name."""
        averages = dict(zip(self.own, self.values, strict=True)) | self.statistics
        return {f"average/{name}": value for name, value in averages.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Read the averages from a checkpoint; missing ones become the model's own values."""
        for name, value in zip(self.own, self.values, strict=True):
            value.copy_(tensors.get(f"average/{name}", self.own[name].detach()))
        names = [f"{norm}{part}" for norm in self.norms for part in ("running_mean", "running_var")]
        self.statistics = {
            name: tensors[f"average/{name}"].to(self.buffers[name])
            for name in names
            if f"average/{name}" in tensors
        }


def _norms_of(model: nn.Module) -> dict[str, BatchNorm]:
    """Batch normalisation layers with running statistics, by the prefix of their buffers."""
    return {
        f"{name}." if name else "": norm
        for name, norm in model.named_modules()
        if isinstance(norm, BatchNorm) and norm.running_mean is not None
    }


def _unbiased(prefix: str, norm: BatchNorm) -> dict[str, Tensor]:
    """Statistics of a layer that started from zeros, divided by the sum of their weights.

    As the bias correction of Adam: after n batches of momentum m the weights sum to 1 - (1 - m)^n.
    """
    count, momentum = int(norm.get_buffer("num_batches_tracked")), norm.momentum
    if not count:
        return {}
    total = 1.0 if momentum is None else 1 - (1 - momentum) ** count
    parts = ("running_mean", "running_var")
    return {f"{prefix}{part}": norm.get_buffer(part) / total for part in parts}


@torch.no_grad()
def _copy(places: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for place, value in zip(places, values, strict=True):
        place.copy_(value)
