"""Conditional neural processes: the condition is an input of the network, not its parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightloom.base import apply_per_task
from weightloom.learners.learner import Learner, Support
from weightloom.learners.trunks import misfit
from weightloom.networks import mlp
from weightloom.params import Params


class Conditioned(nn.Module):
    """MLP that reads each input concatenated with ``condition``, a parameter set for each task.

    Args:
        x_dim: Width of an input.
        y_dim: Width of an output.
        condition_dim: Width of the condition. The module's own value is zero and not trained.
        hidden: Widths of the hidden layers.

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
        """Outputs for the inputs of one task, (batch, x_dim) to (batch, y_dim)."""
        outputs: Tensor = self.net(torch.cat([x, self.condition.expand(x.shape[0], -1)], dim=1))
        return outputs


class ConditionalNeuralProcess(Learner):
    """Conditional neural process: one shared network reads every input with a code of its task.

    Args:
        encoder: ``(support_x, support_y, support_mask)`` to a condition, (tasks, condition_dim),
            such as `DeepSets`, the encoder of the paper.
        base: The shared network, with a parameter ``condition``, (condition_dim,).

    Raises:
        ConfigError: If ``base`` has no such parameter.

    Source:
        Garnelo et al., "Conditional neural processes" (2018); here only the mean is predicted, not
        the variance.
    """

    def __init__(self, encoder: nn.Module, base: nn.Module) -> None:
        super().__init__()
        if "condition" not in dict(base.named_parameters()):
            fits = "The network reads the code of a task from its parameter `condition`."
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
        """Encode each support set, as the parameter ``condition``, (tasks, condition_dim)."""
        return Params({"condition": self.condition(support)})

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run the shared network on each input and the code of its task."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs
