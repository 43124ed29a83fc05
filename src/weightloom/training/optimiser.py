"""The optimiser of a training: AdamW, fused on devices that have such a kernel, or SGD."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from weightloom.training.options import Optimiser

FUSED_DEVICES = ("cpu", "cuda", "mps")
"""Device types with a fused AdamW kernel in torch."""


class _AdamW(torch.optim.AdamW):
    """AdamW without torch's wrappers that disable the compiler inside an optimiser.

    The wrappers matter only to a compiled training step, but they import the compiler, which takes
    longer than the import of torch itself.
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
    parameters: Sequence[nn.Parameter], rate: float, decay: float, kind: Optimiser = "adamw"
) -> torch.optim.Optimizer:
    """AdamW or SGD over ``parameters``; vectors and scalars have no weight decay.

    Args:
        parameters: The trained parameters, on the device where they are trained.
        rate: Learning rate.
        decay: Weight decay of matrices and kernels, decoupled in AdamW.
        kind: ``"adamw"``, or ``"sgd"`` with Nesterov's momentum of 0.9.
    """
    vectors, matrices = (
        [p for p in parameters if (p.ndim < 2) == plain] for plain in (True, False)
    )
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": decay}]
    if not decay:
        # One group is one kernel. The order numbers the state in checkpoints: as with two groups.
        groups = [{"params": vectors + matrices, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    fused = all(p.is_floating_point() and p.device.type in FUSED_DEVICES for p in parameters)
    return _AdamW(groups, lr=rate, fused=fused or None)
