"""Operations that forms compute from factors, with or without a tasks axis."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.forms.windows import convolve_each, transpose_convolve_each

GROUPED_BYTES = 3_000_000
"""Bytes that a grouped convolution reads or writes for all tasks, up to which it is the fastest
choice on a CPU.

Larger buffers are returned to the system and requested again in every step, which takes longer than
the arithmetic.
"""
TURN_BYTES = 400_000
"""Bytes that a convolution reads or writes per task, from which running tasks in turn is as fast as
batching them."""


@dataclass(frozen=True)
class Conv:
    """Options of one convolution or transposed convolution: all but input, kernel and bias.

    Call it with inputs (*lead, batch, in, *space) and kernels (*lead, *kernel), or with one kernel
    (*kernel) that all tasks share; it returns (*lead, batch, out, *space).
    """

    function: Callable[..., Tensor]
    """One of ``F.conv1d`` … ``F.conv_transpose3d``."""
    options: tuple[tuple[str, Any], ...]
    """Keyword arguments: stride, padding, dilation, and output_padding if transposed."""
    groups: int = 1
    """Channel groups."""

    @property
    def transposed(self) -> bool:
        """True if kernels are (in, out / groups, *window), not (out, in / groups, *window)."""
        return self.function in TRANSPOSED

    def __call__(self, x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve; each task with its own kernel if the kernels carry a leading axis.

        The bias is (out,), or (tasks, out) for inputs with a tasks axis.
        """
        window = WINDOW[self.function]
        if x.ndim == window + 2:
            return self.run(x, kernel, bias, self.groups)
        if kernel.ndim == window + 2:
            return self._shared(x, kernel, bias)
        if torch.compiler.is_exporting():
            return self._exported(x, kernel, bias)
        tasks = x.shape[0]
        if bias is not None and bias.ndim == 1:
            bias = bias.expand(tasks, -1)
        is_large = x.device.type == "cpu" and x.numel() * x.element_size() > 2 * GROUPED_BYTES
        if tasks == 1 or is_large:
            return self._in_turn(x, kernel, bias)
        return self._grouped(x, kernel, bias)

    def _shared(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve all tasks with one kernel."""
        folded, unfold = foldable(x)
        if bias is None or bias.ndim == 1:
            return unfold(self.run(folded, kernel, bias, self.groups))
        y = unfold(self.run(folded, kernel, None, self.groups))
        return y + bias[(slice(None), None, ..., *[None] * WINDOW[self.function])]

    def _exported(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve by matrix products, which export with a variable number of tasks."""
        each = transpose_convolve_each if self.transposed else convolve_each
        shift = bias[None] if bias is not None and bias.ndim == 1 else bias
        return each(x, kernel, shift, self.groups, **dict(self.options))

    def _in_turn(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve task by task; the bias is (tasks, out)."""
        biases = [None] * x.shape[0] if bias is None else bias.unbind()
        rows = zip(x.unbind(), kernel.unbind(), biases, strict=True)
        return torch.stack([self.run(one, its, shift, self.groups) for one, its, shift in rows])

    def _grouped(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve all tasks in one grouped convolution; the bias is (tasks, out)."""
        tasks = x.shape[0]
        wide = x.transpose(0, 1).flatten(1, 2)  # (batch, tasks * in, *space)
        y = self.run(
            wide,
            kernel.flatten(0, 1),
            None if bias is None else bias.flatten(),
            tasks * self.groups,
        )
        return y.unflatten(1, (tasks, y.shape[1] // tasks)).transpose(0, 1)

    def run(self, x: Tensor, kernel: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """Convolve inputs (batch, in, *space) with one kernel."""
        return self.function(x, kernel, bias, groups=groups, **dict(self.options))

    def plain(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Convolve with a one-point window, as a product over channels.

        The kernel is (*lead, out, in).
        """
        y = kernel[..., None, :, :] @ x.flatten(-WINDOW[self.function])
        return y.unflatten(-1, x.shape[-WINDOW[self.function] :])


def read_conv(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> tuple[Any, Any, Any, Conv]:
    """Split the arguments of a convolution call into input, kernel, bias and a `Conv`."""
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
    """True if one convolution with a built kernel is faster than several with its factors.

    That holds on a CPU, outside compilation, for kernels no larger than the inputs of one task:
    each factor costs one more pass over the convolved data.

    Args:
        function: One of ``F.conv1d`` … ``F.conv_transpose3d``.
        x: Inputs of one task or of all, (*lead, batch, in, *space).
        kernel: The kernel of one task.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return kernel.numel() <= x.shape[-WINDOW[function] - 2 :].numel()


def foldable(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Fold (tasks, batch, ...) into (tasks * batch, ...) in the order that avoids a copy.

    Returns:
        The folded tensor, and the function that unfolds a result of the same layout.
    """
    tasks, batch = x.shape[:2]
    if not torch.compiler.is_exporting() and x.stride(0) < x.stride(1):
        return x.transpose(0, 1).flatten(0, 1), lambda y: y.unflatten(0, (batch, tasks)).transpose(
            0, 1
        )
    return x.flatten(0, 1), lambda y: y.unflatten(0, (tasks, batch))


def shared_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Linear layer with a weight that all tasks share: (*lead, rows, in) -> (*lead, rows, out).

    The bias is (out,) or (*lead, 1, out).
    """
    if bias is None or bias.ndim == 1:
        return F.linear(x, weight, bias)
    return F.linear(x, weight) + bias


def has_one_input(x: Tensor) -> bool:
    """True if all tasks read one input: (rows, in), expanded along the tasks axis.

    Its product with a shared weight is then computed once, for coordinates of many functions.

    Example:
        >>> grid = torch.rand(64, 2)
        >>> has_one_input(grid.expand(100, -1, -1)), has_one_input(grid.repeat(100, 1, 1))
        (True, False)
    """
    return x.ndim == 3 and x.shape[0] > 1 and x.stride(0) == 0


def look_up(ids: Tensor, table: Tensor) -> Tensor:
    """Look up rows of a table by number.

    Args:
        ids: Row numbers, (*lead, *some).
        table: Rows per task, (*lead, rows, width), or shared, (rows, width).

    Returns:
        The rows, (*lead, *some, width).
    """
    if table.ndim == 2:
        return F.embedding(ids, table)
    tasks, rows = table.shape[:2]
    first = torch.arange(tasks, device=ids.device).view(-1, *[1] * (ids.ndim - 1)) * rows
    return F.embedding(ids + first, table.flatten(0, 1))
