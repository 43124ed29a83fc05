"""What processes tell each other in a step, so that none waits for one that gave up and all stop after the same one."""

import signal
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weightloom.runs.signals import SIGNALS
from weightloom.training.processes import Processes


class Agreement(nn.Module):
    """Facts that travel with the gradients.

    A step has one exchange, and processes wait for each other once.

    They are the gradient of a parameter that is never changed. It is a part of the module that
    processes share, so that their gradients of it are averaged with those of the model.

    Args:
        processes: Those that take part.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self.processes = processes
        self.said = nn.Parameter(torch.zeros(1 + len(SIGNALS), device=processes.device))

    def tell(self, well: bool, caught: Sequence[signal.Signals]) -> Tensor:
        """Return zero, to be added to the loss; its gradient is what this process has to say.

        Args:
            well: Whether the loss is finite.
            caught: Signals that came.
        """
        self.said.grad = None
        return self.said @ self._facts(well, caught)

    def heard(self) -> tuple[bool, signal.Signals | None]:
        """Say, after the backward pass, whether all is well with every process, and which signal any has caught."""
        assert self.said.grad is not None
        return _read(self.said.grad)

    def settle(self, caught: Sequence[signal.Signals]) -> signal.Signals | None:
        """Exchange what was caught since, where no further step would."""
        return _read(self.processes.all_reduce(self._facts(True, caught), reduce_op="max"))[1]

    def _facts(self, well: bool, caught: Sequence[signal.Signals]) -> Tensor:
        return self.said.new_tensor([not well, *(number in caught for number in SIGNALS)])


def _read(facts: Tensor) -> tuple[bool, signal.Signals | None]:
    bad, *caught = facts.tolist()
    return not bad, next(
        (number for number, share in zip(SIGNALS, caught, strict=True) if share), None
    )
