"""The head hypernetwork: a linear classifier from the features of a labelled support set."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from weightloom.conditions import class_statistics
from weightloom.hypernets.solve import solve_symmetric
from weightloom.params import Params

Head = tuple[Float[Tensor, "tasks ways features"], Float[Tensor, "tasks ways"]]
"""Weight and bias of a linear head per task."""


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Context without autocast, for closed-form solutions, in which sums nearly cancel."""
    if torch.compiler.is_exporting():  # exported programs have no autocast; ONNX cannot express it
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def prototype_head(mean: Float[Tensor, "tasks ways features"]) -> Head:
    """Linear head that scores a point by its negative squared distance to each class mean.

    -|f - c|² = 2 cᵀf - |c|², up to a term that is equal for all classes.

    Args:
        mean: Class means c.

    Returns:
        Weight and bias.

    Source:
        Snell, Swersky and Zemel, "Prototypical networks" (2017), section 2.4.
    """
    return 2 * mean, -mean.square().sum(-1)


def ridge_head(
    features: Float[Tensor, "tasks support features"],
    labels: Int[Tensor, "tasks support"],
    mask: Bool[Tensor, "tasks support"],
    ways: int,
    ridge: Float[Tensor, " tasks"],
) -> Head:
    """Linear head by ridge regression on centred one-hot labels.

    Solved in the space of support points (by their Gram matrix), since these are usually fewer than
    the features.

    Args:
        features: Features of the support points.
        labels: Labels of the support points, from 0 to ``ways - 1``.
        mask: True for points to use, False for padding.
        ways: Classes per task.
        ridge: Penalty on the squared weight, positive, in units of the mean squared length of a
            centred feature vector.

    Returns:
        Weight and bias.

    Source:
        Bertinetto et al., "Meta-learning with differentiable closed-form solvers" (2019), equation
        6.
    """
    features = features.masked_fill(~mask[..., None], 0.0)
    there = mask[..., None].to(features.dtype)
    middle = (features * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
    centred = (features - middle) * there
    target = (one_hot(labels, ways).to(features.dtype) - 1 / ways) * there
    gram = centred @ centred.mT
    length = gram.diagonal(dim1=1, dim2=2).sum(1) / there.sum((1, 2)).clamp(min=1)
    penalty = torch.diag_embed((ridge * length + 1e-6)[:, None].expand(labels.shape))
    weight = solve_symmetric(gram + penalty, target).mT @ centred
    return weight, -(weight @ middle.mT)[..., 0]


class HeadHyperNetwork(nn.Module):
    """Hypernetwork that generates a linear head from support features.

    The numbers of classes, shots and features may differ from call to call, and the order of the
    support points does not matter.

    The head is a mixture of two closed-form heads: class means, best for one shot per class, and
    ridge regression, best for several. A small network reads three statistics of the task (shots,
    ways, and the spread within classes relative to the total) and writes the mixing coefficient,
    the penalty and a scale for each head. Its last layer starts at zero, so at step 0 the mixture
    depends on the shots alone.

    Args:
        name: Name of the head, a linear layer, in the base network.
        hidden: Width of the small network.
        start_scale: Scale of the class-mean head's scores at step 0, per feature.

    Example:
        >>> hyper = HeadHyperNetwork()
        >>> labels = torch.tensor([[0, 0, 1, 1, 2, 2]]).expand(5, -1)
        >>> params = hyper(torch.randn(5, 6, 8), labels)
        >>> {name: tuple(value.shape) for name, value in params.items()}
        {'head.weight': (5, 3, 8), 'head.bias': (5, 3)}

    Source:
        The two heads: Snell et al. (2017); Bertinetto et al. (2019). Generating the coefficients
        of the mixture for each task is ours.
    """

    def __init__(self, name: str = "head", hidden: int = 16, start_scale: float = 1.0) -> None:
        super().__init__()
        self.name = name
        last = nn.Linear(hidden, 4)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.generator = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), last)
        self.log_scale = nn.Parameter(torch.tensor(start_scale).log())

    def forward(
        self,
        features: Float[Tensor, "tasks support features"],
        labels: Int[Tensor, "tasks support"],
        mask: Bool[Tensor, "tasks support"] | None = None,
        ways: int | None = None,
    ) -> Params:
        """Generate ``weight`` (tasks, ways, features) and ``bias`` (tasks, ways) of the head.

        Args:
            features: Features of the support points.
            labels: Labels of the support points, from 0 to ``ways - 1``.
            mask: True for points to use, False for padding. None uses all points.
            ways: Classes per task. Default: the largest label plus 1.

        Returns:
            The two parameters under their names in the base.

        Raises:
            ShapeError: If a label is outside 0 to ``ways - 1``.
        """
        mask = labels.new_ones(labels.shape, dtype=torch.bool) if mask is None else mask
        labels = labels.masked_fill(~mask, 0)
        with full_precision(features):
            return self._head(features, labels, mask, ways)

    def _head(self, features: Tensor, labels: Tensor, mask: Tensor, ways: int | None) -> Params:
        mean, spread, shots = class_statistics(features, labels, mask, ways)
        scale, ridge_scale, ridge = self.mixture(mean, spread, shots)
        return self.mixed(
            (scale, prototype_head(mean)),
            (ridge_scale, ridge_head(features, labels, mask, mean.shape[1], ridge)),
        )

    def mixture(
        self,
        mean: Float[Tensor, "tasks ways features"],
        spread: Float[Tensor, "tasks features"],
        shots: Float[Tensor, "tasks ways"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scale of the class-mean head, (tasks, 1), scale of the ridge head, and ridge penalty.

        Arguments as in `ClassStatistics`.
        """
        rarity = 1 / shots.mean(1).clamp(min=1)
        apart = (mean - mean.mean(1, keepdim=True)).square().mean((1, 2))
        within = spread.mean(1) / (spread.mean(1) + apart + 1e-6)
        known = torch.stack([rarity, torch.full_like(rarity, 1 / mean.shape[1]), within], dim=1)
        mix, log_ridge, sharp_mean, sharp_ridge = self.generator(known).unbind(1)
        # share of the ridge head, at step 0: 0.004 for one shot, 0.71 for five
        share = torch.sigmoid(2.5 - 8 * rarity + mix)[:, None]
        scale = (self.log_scale + sharp_mean).exp()[:, None] / mean.shape[2] * (1 - share)
        return scale, sharp_ridge.exp()[:, None] * share, 0.5 * log_ridge.exp()

    def mixed(self, means: tuple[Tensor, Head], ridge: tuple[Tensor, Head]) -> Params:
        """Sum of two heads, each with its scale, (tasks, 1), under their names in the base."""
        (scale, (weight, bias)), (its_scale, (its_weight, its_bias)) = means, ridge
        weight = scale[..., None] * weight + its_scale[..., None] * its_weight
        return Params(
            {
                f"{self.name}.weight": weight,
                f"{self.name}.bias": scale * bias + its_scale * its_bias,
            }
        )
