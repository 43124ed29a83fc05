"""Encode a set of unlabelled examples as a condition: statistics of features over the set.

For domain adaptation: the examples come from the target, and no label is read.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.errors import ShapeError


def set_statistics(
    features: Float[Tensor, "tasks examples width"],
) -> Float[Tensor, "tasks double"]:
    """Mean and standard deviation of each feature over the examples of a task.

    Args:
        features: Features of each example.

    Returns:
        All means, then all standard deviations, (tasks, 2 · width). Independent of the order of the
        examples.

    Raises:
        ShapeError: If a set holds fewer than two examples, or ``features`` is not (tasks, examples,
            width).

    Example:
        >>> set_statistics(torch.tensor([[[1.0, 5.0], [3.0, 5.0]]]))
        tensor([[2., 5., 1., 0.]])
    """
    if features.ndim != 3:
        raise ShapeError(
            f"`features` has shape {tuple(features.shape)}. Statistics are taken over the examples "
            "of each task. Pass (tasks, examples, width), as in `features[None]` for one task."
        )
    if features.shape[1] < 2:
        raise ShapeError(
            f"A set of unlabelled examples holds {features.shape[1]}. Its condition is the mean "
            "and the spread of its features, and fewer than two examples have no spread. Pass two "
            "or more examples of the target; 16 or more describe it well."
        )
    mean = features.mean(1)
    variance = (features - mean[:, None]).square().mean(1)
    # A constant feature has a spread of zero, where the root has no derivative.
    spread = torch.where(variance > 0, variance, 1.0).sqrt() * (variance > 0)
    return torch.cat([mean, spread], dim=1)


class SetStatistics(nn.Module):
    """Condition from unlabelled examples: `set_statistics` of features, then a two-layer network.

    Means and standard deviations are normalised apart, so that neither hides the other.

    Args:
        features: Network of one example, (batch, *event) to (batch, width). It is trained, unless
            it has no parameter that requires a gradient: then it stays in eval mode.
        width: Width of the features.
        condition_dim: Width of the condition.
        hidden: Width of the hidden layer.

    Example:
        >>> encode = SetStatistics(nn.Flatten(), width=64, condition_dim=16)
        >>> encode(torch.rand(5, 20, 1, 8, 8)).shape
        torch.Size([5, 16])

    Source:
        Statistics of features as the description of a domain: Li et al., "Revisiting batch
        normalization for practical domain adaptation" (2017), there put in place of the norm's own;
        Edwards and Storkey, "Towards a neural statistician" (2017).
    """

    def __init__(
        self, features: nn.Module, width: int, condition_dim: int, hidden: int = 128
    ) -> None:
        super().__init__()
        self.features, self.condition_dim = features, condition_dim
        self.is_frozen = not any(its.requires_grad for its in features.parameters())
        self.means, self.spreads = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read = nn.Sequential(
            nn.Linear(2 * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, condition_dim),
        )

    def train(self, mode: bool = True) -> "SetStatistics":
        """Set the mode; frozen features stay in eval mode."""
        super().train(mode)
        if self.is_frozen:
            self.features.eval()
        return self

    def forward(
        self, x: Float[Tensor, "tasks examples *event"]
    ) -> Float[Tensor, "tasks condition_dim"]:
        """Encode one set per task.

        Args:
            x: Unlabelled examples.

        Raises:
            ShapeError: If a set holds fewer than two examples.
        """
        features: Tensor = self.features(x.flatten(0, 1))
        means, spreads = set_statistics(features.unflatten(0, x.shape[:2])).chunk(2, dim=1)
        known = torch.cat([self.means(means), self.spreads(spreads)], dim=1)
        condition: Tensor = self.read(known)
        return condition
