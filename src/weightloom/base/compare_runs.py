"""Compare what two runs gave, and make numbers for them to be compared with.

In:   outputs of two runs, or a parameter.
Out:  yes or no; a parameter near by.
"""

from typing import Any

import torch
from torch import Tensor

from weightloom.forms.factored import Factored
from weightloom.replica.tree import open_tree


def moved(value: Tensor) -> Tensor:
    """A generic value near this one."""
    if isinstance(value, Factored):
        return value.map(moved)
    value = value.detach()
    return value + torch.randn_like(value) * (0.1 * value.abs().square().mean().sqrt() + 0.01)


def same_outputs(few: Any, whole: Any) -> bool:
    """Whether outputs of a few tasks are those of the first of all tasks, but for rounding."""
    few, whole = open_tree(few), open_tree(whole)
    return few.key == whole.key and all(
        _close(a.tensor.detach(), b.tensor[: len(a.tensor)].detach())
        for a, b in zip(few.leaves, whole.leaves, strict=True)
    )


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point() and not a.is_complex():
        return torch.equal(a, b)
    kind = a.device.type
    halved = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    tolerance = (
        0.1 if halved or a.dtype != b.dtype else min(0.1, 100 * torch.finfo(a.dtype).eps ** 0.75)
    )
    scale = a.abs().max() if a.numel() else 0.0
    return bool(
        torch.allclose(
            a, b.to(a.dtype), rtol=tolerance, atol=tolerance * float(scale) + 1e-30, equal_nan=True
        )
    )
