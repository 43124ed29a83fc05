"""Convolutions with one kernel per task as matrix products, which export for any number of tasks.

In:   inputs of all tasks, one kernel per task, and the options of one of torch's convolutions.
Out:  the outputs of that convolution.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve_each(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    groups: int,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Tensor:
    """Convolve (tasks, batch, in, *space) with kernels (tasks, out, in / groups, *window).

    The bias is (tasks, out) or None. Each point of the window gives a shifted view of the input;
    the views are stacked, and one product per task and group multiplies them with the kernels.
    """
    window = kernel.shape[3:]
    strides, dilations = _each(stride, len(window)), _each(dilation, len(window))
    x = F.pad(x, _margins(padding, window, dilations))
    sides = [
        (size - d * (w - 1) - 1) // s + 1
        for size, w, s, d in zip(x.shape[3:], window, strides, dilations, strict=True)
    ]
    shifted = [
        _shifted(x, place, sides, strides, dilations) for place in product(*map(range, window))
    ]
    tasks, batch, channels = x.shape[:3]
    seen, places = torch.stack(shifted, dim=3), len(shifted)  # (tasks, batch, in, places, *sides)
    rows = seen.reshape(tasks, batch, groups, channels // groups * places, -1).permute(
        0, 2, 3, 1, 4
    )
    weight = kernel.reshape(tasks, groups, kernel.shape[1] // groups, channels // groups * places)
    y = weight @ rows.flatten(3)  # (tasks, groups, out / groups, batch * numbers)
    y = (
        y.unflatten(3, (batch, -1))
        .permute(0, 3, 1, 2, 4)
        .reshape(tasks, batch, kernel.shape[1], *sides)
    )
    return y if bias is None else y + bias[(slice(None), None, ..., *[None] * len(window))]


def transpose_convolve_each(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    groups: int,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
) -> Tensor:
    """Transposed convolution of (tasks, batch, in, *space) with (tasks, in, out / groups, *window).

    It spreads the inputs by zeros and convolves them with the flipped kernels.
    """
    window = kernel.shape[3:]
    axes = len(window)
    strides, dilations = _each(stride, axes), _each(dilation, axes)
    margins: list[int] = []
    for axis, (step, pad, more) in enumerate(
        zip(strides, _each(padding, axes), _each(output_padding, axes), strict=True)
    ):
        x = _spread(x, 3 + axis, step)
        around = dilations[axis] * (window[axis] - 1) - pad
        margins = [around, around + more, *margins]
    turned = (
        kernel.flip([*range(3, 3 + axes)]).unflatten(1, (groups, -1)).transpose(2, 3).flatten(1, 2)
    )
    return convolve_each(F.pad(x, margins), turned, bias, groups, 1, 0, dilation)


def _shifted(
    x: Tensor,
    place: Sequence[int],
    sides: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Tensor:
    for axis, (at, size, step, spacing) in enumerate(
        zip(place, sides, strides, dilations, strict=True)
    ):
        start = at * spacing
        x = x[(slice(None),) * (3 + axis) + (slice(start, start + (size - 1) * step + 1, step),)]
    return x


def _spread(x: Tensor, axis: int, step: int) -> Tensor:
    """Insert ``step - 1`` zeros between neighbours along an axis."""
    if step == 1:
        return x
    size = (x.shape[axis] - 1) * step + 1
    wide = F.pad(x.unsqueeze(axis + 1), [*[0, 0] * (x.ndim - axis - 1), 0, step - 1]).flatten(
        axis, axis + 1
    )
    return wide.narrow(axis, 0, size)


def _each(option: Any, axes: int) -> list[int]:
    return (
        [option] * axes
        if isinstance(option, int)
        else [*option] * (axes if len(option) == 1 else 1)
    )


def _margins(padding: Any, window: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Margins in the order of `F.pad`: the last axis first."""
    margins: list[int] = []
    for axis, (size, spacing) in enumerate(zip(window, dilations, strict=True)):
        if isinstance(padding, str):
            whole = spacing * (size - 1) if padding == "same" else 0
            before, after = whole // 2, whole - whole // 2
        else:
            before = after = _each(padding, len(window))[axis]
        margins = [before, after, *margins]
    return margins
