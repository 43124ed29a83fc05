"""The operations that forms answer, with a tasks axis or without one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPED_BELOW = 4_000_000
"""Multiplications per task under which one grouped convolution beats a convolution per task (measured on a CPU)."""


@dataclass(frozen=True)
class Conv:
    """One convolution, or transposed convolution, that the base asks for: all of it but input, kernel and bias.

    Called with inputs (*lead, batch, in, *space) and kernels (*lead, *kernel), or kernels (*kernel) that all tasks
    share, it returns (*lead, batch, out, *space).
    """

    function: Callable[..., Tensor]
    """One of ``F.conv1d`` … ``F.conv_transpose3d``."""
    options: tuple[tuple[str, Any], ...]
    """Its keyword arguments: stride, padding, dilation, and output_padding for a transposed one."""
    groups: int = 1

    @property
    def transposed(self) -> bool:
        """Whether kernels are (in, out / groups, *window) instead of (out, in / groups, *window)."""
        return self.function in TRANSPOSED

    def __call__(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Convolve; every task with its own kernel where the kernels carry a leading axis."""
        window = WINDOW[self.function]
        lead = x.ndim - window - 2
        if lead == 0:
            return self.run(x, kernel, self.groups)
        if kernel.ndim == window + 2:
            return self.run(x.flatten(0, 1), kernel, self.groups).unflatten(0, x.shape[:2])
        tasks, batch = x.shape[:2]
        if tasks == 1:
            return self.run(x[0], kernel[0], self.groups)[None]
        multiplications = batch * kernel[0].numel() * x.shape[3:].numel()
        if multiplications >= GROUPED_BELOW and x.device.type == "cpu":
            rows = zip(x.unbind(), kernel.unbind(), strict=True)
            return torch.stack([self.run(one, its, self.groups) for one, its in rows])
        wide = x.transpose(0, 1).flatten(1, 2)  # (batch, tasks * in, *space)
        y = self.run(wide, kernel.flatten(0, 1), tasks * self.groups)
        return y.unflatten(1, (tasks, y.shape[1] // tasks)).transpose(0, 1)

    def run(self, x: Tensor, kernel: Tensor, groups: int, **changes: Any) -> Tensor:
        """Convolve (batch, in, *space) with one kernel, some options changed."""
        y: Tensor = self.function(x, kernel, None, groups=groups, **{**dict(self.options), **changes})
        return y

    def plain(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Convolve with a window of one point, as a product over channels: kernel (*lead, out, in)."""
        y = kernel[..., None, :, :] @ x.flatten(-WINDOW[self.function])
        return y.unflatten(-1, x.shape[-WINDOW[self.function] :])


WINDOW = {
    F.conv1d: 1,
    F.conv2d: 2,
    F.conv3d: 3,
    F.conv_transpose1d: 1,
    F.conv_transpose2d: 2,
    F.conv_transpose3d: 3,
}
TRANSPOSED = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


def shared_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer whose weight all tasks share: x (*lead, rows, in), bias (out,) or (*lead, 1, out)."""
    if bias is None or bias.ndim == 1:
        return F.linear(x, weight, bias)
    return F.linear(x, weight) + bias


def look_up(ids: Tensor, table: Tensor) -> Tensor:
    """Look up rows: ids (*lead, *some), table (*lead, rows, width) or (rows, width); gives (*lead, *some, width)."""
    if table.ndim == 2:
        return F.embedding(ids, table)
    tasks, rows = table.shape[:2]
    first = torch.arange(tasks, device=ids.device).view(-1, *[1] * (ids.ndim - 1)) * rows
    return F.embedding(ids + first, table.flatten(0, 1))
