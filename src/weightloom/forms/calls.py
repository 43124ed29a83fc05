"""The operations that forms answer, with a tasks axis or without one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.forms.windows import convolve_each, transpose_convolve_each

GROUPED_BYTES = 3_000_000
"""Bytes that a grouped convolution reads or writes for all its tasks, up to which it is quickest on
a CPU.

Beyond, memory is given back to the system and asked for again in every step, which takes longer
than the numbers.
"""
TURN_BYTES = 400_000
"""Bytes that a convolution reads or writes for a task, from which tasks are as quick in turn as
together."""


@dataclass(frozen=True)
class Conv:
    """One convolution, or transposed convolution, that the base asks for.

    All of it but input, kernel and bias.

    Called with inputs (*lead, batch, in, *space) and kernels (*lead, *kernel), or kernels (*kernel)
    that all tasks share, it returns (*lead, batch, out, *space).
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

    def __call__(self, x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve; every task with its own kernel where the kernels carry a leading axis.

        The bias is (out,), or (tasks, out) for inputs with a tasks axis.
        """
        window = WINDOW[self.function]
        if x.ndim == window + 2:
            return self.run(x, kernel, bias, self.groups)
        if kernel.ndim == window + 3 and torch.compiler.is_exporting():
            each = transpose_convolve_each if self.transposed else convolve_each
            shift = bias[None] if bias is not None and bias.ndim == 1 else bias
            return each(x, kernel, shift, self.groups, **dict(self.options))
        tasks = x.shape[0]
        if kernel.ndim == window + 2:
            inside = bias if bias is None or bias.ndim == 1 else None
            folded, back = foldable(x)
            y = back(self.run(folded, kernel, inside, self.groups))
            return y if bias is inside else y + bias[(slice(None), None, ..., *[None] * window)]  # type: ignore[index]
        if bias is not None and bias.ndim == 1:
            bias = bias.expand(tasks, -1)
        if tasks == 1 or (
            x.device.type == "cpu" and x.numel() * x.element_size() > 2 * GROUPED_BYTES
        ):
            biases = [None] * tasks if bias is None else bias.unbind()
            rows = zip(x.unbind(), kernel.unbind(), biases, strict=True)
            return torch.stack([self.run(one, its, shift, self.groups) for one, its, shift in rows])
        wide = x.transpose(0, 1).flatten(1, 2)  # (batch, tasks * in, *space)
        y = self.run(
            wide,
            kernel.flatten(0, 1),
            None if bias is None else bias.flatten(),
            tasks * self.groups,
        )
        return y.unflatten(1, (tasks, y.shape[1] // tasks)).transpose(0, 1)

    def run(self, x: Tensor, kernel: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """Convolve (batch, in, *space) with one kernel."""
        return self.function(x, kernel, bias, groups=groups, **dict(self.options))

    def plain(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Convolve with a window of one point, as a product over channels.

        Kernel (*lead, out, in).
        """
        y = kernel[..., None, :, :] @ x.flatten(-WINDOW[self.function])
        return y.unflatten(-1, x.shape[-WINDOW[self.function] :])


def read_conv(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> tuple[Any, Any, Any, Conv]:
    """Read a call of a convolution: its input, kernel and bias, and all the rest of it."""
    read = _transposed_arguments if func in TRANSPOSED else _arguments
    input, weight, bias, groups, options = read(*args, **kwargs)
    return input, weight, bias, Conv(func, tuple(options.items()), groups)


def _arguments(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, Any, Any, int, dict[str, Any]]:
    return input, weight, bias, groups, {"stride": stride, "padding": padding, "dilation": dilation}


def _transposed_arguments(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> tuple[Any, Any, Any, int, dict[str, Any]]:
    options = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "dilation": dilation,
    }
    return input, weight, bias, groups, options


WINDOW = {
    F.conv1d: 1,
    F.conv2d: 2,
    F.conv3d: 3,
    F.conv_transpose1d: 1,
    F.conv_transpose2d: 2,
    F.conv_transpose3d: 3,
}
TRANSPOSED = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


def prefers_built(function: Any, x: Tensor, kernel: Tensor) -> bool:
    """Whether one convolution with kernels built is quicker than several with their factors.

    On a CPU it is: factors cost passes over all that was convolved. Kernels are small beside it, or
    stay factors.

    Args:
        function: One of ``F.conv1d`` … ``F.conv_transpose3d``.
        x: Inputs of one task or of all, (*lead, batch, in, *space).
        kernel: The kernel of one task.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return kernel.numel() <= x.shape[-WINDOW[function] - 2 :].numel()


def foldable(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Fold (tasks, batch, ...) into (tasks * batch, ...) in the order that needs no copy, and say the way back."""
    tasks, batch = x.shape[:2]
    if not torch.compiler.is_exporting() and x.stride(0) < x.stride(1):
        return x.transpose(0, 1).flatten(0, 1), lambda y: y.unflatten(0, (batch, tasks)).transpose(
            0, 1
        )
    return x.flatten(0, 1), lambda y: y.unflatten(0, (tasks, batch))


def shared_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer whose weight all tasks share.

    X (*lead, rows, in), bias (out,) or (*lead, 1, out).
    """
    if bias is None or bias.ndim == 1:
        return F.linear(x, weight, bias)
    return F.linear(x, weight) + bias


def look_up(ids: Tensor, table: Tensor) -> Tensor:
    """Look up rows: ids (*lead, *some), table (*lead, rows, width) or (rows, width).

    Gives (*lead, *some, width).
    """
    if table.ndim == 2:
        return F.embedding(ids, table)
    tasks, rows = table.shape[:2]
    first = torch.arange(tasks, device=ids.device).view(-1, *[1] * (ids.ndim - 1)) * rows
    return F.embedding(ids + first, table.flatten(0, 1))
