"""Shared changes: the same numbers as a hypernetwork generates, but learned for all tasks together.

A control: it tells how much of a gain is due to generating for each task.
"""

import torch
from torch import Tensor, nn

from weightloom.forms.choose import Generate
from weightloom.hypernets.generated import Generated
from weightloom.params import Params


class SharedChanges(nn.Module):
    """Changes of a base's parameters that are learned and the same for every task.

    Places, forms and start are those of `weightloom.hypernets.MLPHyperNetwork`.

    Args:
        base: The base network.
        generate: Changed parameters, and their forms.

    Example:
        >>> changes = SharedChanges(nn.Linear(3, 2), "weight")
        >>> changes(torch.zeros(5, 7))["weight"].shape
        torch.Size([5, 2, 3])
    """

    def __init__(self, base: nn.Module, generate: Generate = "*") -> None:
        super().__init__()
        self.generated = Generated(base, generate)
        self.change = nn.Parameter(torch.zeros(self.generated.size))

    def forward(self, condition: Tensor) -> Params:
        """Changed parameters by name, each (tasks, *shape).

        Args:
            condition: (tasks, condition_dim); only the number of tasks is read.
        """
        flat = self.generated.start() + self.change
        return self.generated.forward(flat.expand(len(condition), -1))
