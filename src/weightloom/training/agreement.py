"""Exchange between processes: all stop after the same step, and none waits for a failed one.

In:   per process, a finite loss or not, and the signals it caught.
Out:  the same facts joined over all processes.
"""

import signal
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weightloom.runs.signals import SIGNALS
from weightloom.training.processes import Processes


class Agreement(nn.Module):
    """Exchange of facts through the gradient reduction, at no extra synchronisation per step.

    The facts are the gradient of a parameter that never changes. It belongs to the module shared by
    the processes, so its gradients are averaged together with those of the model.

    Args:
        processes: The processes that take part.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self.processes = processes
        self.said = nn.Parameter(torch.zeros(1 + len(SIGNALS), device=processes.device))

    def tell(self, well: bool, caught: Sequence[signal.Signals]) -> Tensor:
        """Zero to add to the loss, with the facts of this process as its gradient.

        Args:
            well: True if the loss is finite.
            caught: Signals that this process caught.
        """
        self.said.grad = None
        return self.said @ self._facts(well, caught)

    def heard(self) -> tuple[bool, signal.Signals | None]:
        """Facts of all processes after a backward pass.

        Returns:
            True if every loss is finite, and a signal that any process caught, or None.
        """
        assert self.said.grad is not None
        return _read(self.said.grad)

    def settle(self, caught: Sequence[signal.Signals]) -> signal.Signals | None:
        """Signal that any process caught by the end of the last step, or None."""
        return _read(self.processes.all_reduce(self._facts(True, caught), reduce_op="max"))[1]

    def _facts(self, well: bool, caught: Sequence[signal.Signals]) -> Tensor:
        return self.said.new_tensor([not well, *(number in caught for number in SIGNALS)])


def _read(facts: Tensor) -> tuple[bool, signal.Signals | None]:
    bad, *caught = facts.tolist()
    return not bad, next(
        (number for number, share in zip(SIGNALS, caught, strict=True) if share), None
    )
