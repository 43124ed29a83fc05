"""The optimiser of a training: AdamW, in one pass over all numbers where the device can."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

FUSED_DEVICES = ("cpu", "cuda", "mps")
"""Kinds of devices on which torch has AdamW as one kernel."""


class _AdamW(torch.optim.AdamW):
    """AdamW, without the wrappers by which torch keeps its compiler out of an optimiser.

    They do nothing unless a whole step is compiled, but import the compiler, which takes longer
    than torch itself.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    _plain_step = staticmethod(inspect.unwrap(torch.optim.AdamW.step))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        return self._plain_step(self, closure)


def build_optimiser(
    parameters: Sequence[nn.Parameter], rate: float, decay: float
) -> torch.optim.Optimizer:
    """Build AdamW over what is trained; vectors and numbers do not decay.

    Args:
        parameters: All that is trained, where it will be trained.
        rate: Learning rate.
        decay: Decoupled weight decay of matrices and kernels.
    """
    vectors, matrices = (
        [p for p in parameters if (p.ndim < 2) == plain] for plain in (True, False)
    )
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": decay}]
    if (
        not decay
    ):  # one group takes one pass; its order, which numbers the state in checkpoints, is the same
        groups = [{"params": vectors + matrices, "weight_decay": 0.0}]
    fused = all(p.is_floating_point() and p.device.type in FUSED_DEVICES for p in parameters)
    return _AdamW([group for group in groups if group["params"]], lr=rate, fused=fused or None)
