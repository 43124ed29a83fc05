"""Compare the outputs of two runs, and perturb a parameter for such a comparison.

In:   outputs or results of two runs, or a parameter.
Out:  True where they are equal but for rounding; the parameter, moved a little.
"""

from typing import Any

import torch
from torch import Tensor

from weightloom.base.call import Result
from weightloom.forms.factored import Factored
from weightloom.replica.tree import open_tree


def moved(value: Tensor) -> Tensor:
    """Perturb a value, detached, by normal noise of a tenth of its root mean square plus 0.01."""
    if isinstance(value, Factored):
        return value.map(moved)
    value = value.detach()
    return value + torch.randn_like(value) * (0.1 * value.abs().square().mean().sqrt() + 0.01)


def same_outputs(few: Any, whole: Any) -> bool:
    """Compare outputs of a few tasks with those of the same tasks in a larger run.

    Numbers may differ by rounding; structures, shapes and all other values must be equal.
    """
    few, whole = open_tree(few), open_tree(whole)
    return few.key == whole.key and all(
        _close(a.tensor.detach(), b.tensor[: len(a.tensor)].detach())
        for a, b in zip(few.leaves, whole.leaves, strict=True)
    )


def ran_alike(few: Result | None, whole: Result | None) -> bool:
    """Compare the outputs of two runs as `same_outputs` does; False where a run failed (None)."""
    if few is None or whole is None:
        return False
    return same_outputs(few.outputs, whole.outputs)


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
    # NaN and infinity have no size; `allclose` compares them by themselves.
    scale = a.abs().nan_to_num(nan=0.0, posinf=0.0).max() if a.numel() else 0.0
    return bool(
        torch.allclose(
            a, b.to(a.dtype), rtol=tolerance, atol=tolerance * float(scale) + 1e-30, equal_nan=True
        )
    )
