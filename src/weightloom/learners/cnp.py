"""Conditional neural processes: the condition goes into the network as an input, not into its parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightloom.base import apply_per_task
from weightloom.learners.learner import Learner, Support
from weightloom.learners.trunks import misfit
from weightloom.networks import mlp
from weightloom.params import Params


class Conditioned(nn.Module):
    """Linear layers that read an input and, beside it, ``condition``, which is the same for all inputs of a task.

    Args:
        x_dim: Width of an input.
        y_dim: Width of an output.
        condition_dim: Width of the condition; as a parameter of this module it is zero and not
            trained.
        hidden: Widths of the layers between.

    Example:
        >>> Conditioned(1, 1, condition_dim=4)(torch.rand(7, 1)).shape
        torch.Size([7, 1])
    """

    def __init__(
        self, x_dim: int, y_dim: int, condition_dim: int, hidden: tuple[int, ...] = (40, 40)
    ) -> None:
        super().__init__()
        self.condition = nn.Parameter(torch.zeros(condition_dim), requires_grad=False)
        self.net = mlp([x_dim + condition_dim, *hidden, y_dim])

    def forward(self, x: Tensor) -> Tensor:
        """Predict, (batch, x_dim) to (batch, y_dim)."""
        outputs: Tensor = self.net(torch.cat([x, self.condition.expand(x.shape[0], -1)], dim=1))
        return outputs


class ConditionalNeuralProcess(Learner):
    """Encode the support set, and let one network that all tasks share read the code beside every input.

    Args:
        encoder: ``(support_x, support_y, support_mask)`` to a condition (tasks, condition_dim),
            such as `DeepSets`, which is the encoder of the paper.
        base: The shared network, which has a parameter ``condition``, (condition_dim,).

    Raises:
        ConfigError: If it has none.

    Source:
        Garnelo et al., "Conditional neural processes" (2018); the mean is predicted, the variance
        left out.
    """

    def __init__(self, encoder: nn.Module, base: nn.Module) -> None:
        super().__init__()
        if "condition" not in dict(base.named_parameters()):
            fits = "The code of a task goes into the network as its parameter `condition`."
            raise misfit(
                base,
                fits,
                "`Conditioned(x_dim, y_dim, condition_dim)`, or a module with such a parameter",
            )
        self.encoder, self.base = encoder, base

    def condition(self, support: Support) -> Tensor:
        """Encode the support set, (tasks, condition_dim)."""
        condition: Tensor = self.encoder(support.x, support.y, support.mask)
        return condition

    def adapt(self, support: Support) -> Params:
        """The code is all that is of the task."""
        return Params({"condition": self.condition(support)})

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run the shared network on each input and the code of its task."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs
