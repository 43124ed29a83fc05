"""The head hypernetwork: a linear classifier from the features of a labelled support set."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from weightloom.conditions import class_statistics
from weightloom.hypernets.left_out import left_out_prototypes, left_out_ridge, temperature
from weightloom.hypernets.solve import solve_symmetric
from weightloom.params import Params

Head = tuple[Float[Tensor, "tasks ways features"], Float[Tensor, "tasks ways"]]
"""Weight and bias of a linear head per task."""

RIDGE_SCALE = 10.0
"""Scale of the ridge head's scores at step 0. They fit targets 0 and 1, so that their differences
are below 1, and the softmax of logits of that size is nearly uniform."""
GAIN = 10.0
"""Rate of learned log-scales, in units of the learning rate: 300 steps of Adam at 2e-4 move one by
up to 0.6. On validation tasks of digits 10 was better than 1 and than 30, which follows the harder,
augmented tasks of training too far."""


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
) -> tuple[Tensor, Tensor, Tensor]:
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
        Weight and bias, and the logits of each support point under the head of all other points,
        (tasks, support, ways).

    Source:
        Bertinetto et al., "Meta-learning with differentiable closed-form solvers" (2019), equation
        6.
    """
    features = features.masked_fill(~mask[..., None], 0.0)
    there = mask.to(features.dtype)
    member = there[..., None]
    middle = features.sum(1, keepdim=True) / member.sum(1, keepdim=True).clamp(min=1)
    centred = (features - middle) * member
    target = (one_hot(labels, ways).to(features.dtype) - 1 / ways) * member
    gram = centred @ centred.mT
    length = gram.diagonal(dim1=1, dim2=2).sum(1) / there.sum(1).clamp(min=1)
    penalty = ridge * length + 1e-6
    one = torch.diag_embed(torch.ones_like(there))
    inverse = solve_symmetric(gram + penalty[:, None, None] * one, one)
    weight = (inverse @ target).mT @ centred
    bias = -(weight @ middle.mT)[..., 0]
    return weight, bias, left_out_ridge(inverse, target, penalty, there)


class LearnedScale(nn.Module):
    """A positive scale that training moves ten times as fast as other parameters.

    It is ``start * exp(10 * x)`` with a learned x that starts at 0.

    Args:
        start: Scale at step 0.
        per_shots: Learn a value of x for 1, 2, 4, ... 64 shots, and interpolate linearly in the
            logarithm of the shots. False learns one for all.
    """

    def __init__(self, start: float, per_shots: bool = False) -> None:
        super().__init__()
        self.start = start
        self.moved = nn.Parameter(torch.zeros(7 if per_shots else 1))

    def forward(self, shots: Float[Tensor, " tasks"]) -> Float[Tensor, " tasks"]:
        """Scale of each task, by its mean number of shots per class."""
        last = len(self.moved) - 1
        place = shots.clamp(min=1).log2().clamp(max=last)[:, None]
        knots = torch.arange(last + 1, dtype=place.dtype, device=place.device)
        near = (1 - (place - knots).abs()).clamp(min=0)
        return self.start * (GAIN * near @ self.moved.to(near.dtype)).exp()


class HeadHyperNetwork(nn.Module):
    """Hypernetwork that generates a linear head from support features.

    The numbers of classes, shots and features may differ from call to call, and the order of the
    support points does not matter.

    The head is a mixture of two closed-form heads: class means, best for one shot per class, and
    ridge regression, best for several. A small network reads three statistics of the task (shots,
    ways, and the spread within classes relative to the total) and writes the mixing coefficient,
    the penalty and a factor of the scale of each head. Its last layer starts at zero, so at step 0
    the mixture depends on the shots alone. The scales themselves are learned per number of shots.

    From two shots of a class on, the head is then multiplied by a temperature of the task: the one
    with which its own support points, each left out in turn, are predicted best.

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
        self.mean_scale = LearnedScale(start_scale, per_shots=True)
        self.ridge_scale = LearnedScale(RIDGE_SCALE, per_shots=True)

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
        features = features.masked_fill(~mask[..., None], 0.0)
        mean, spread, shots = class_statistics(features, labels, mask, ways)
        ways, usual = mean.shape[1], shots.mean(1)
        rarity = 1 / usual.clamp(min=1)
        apart = (mean - mean.mean(1, keepdim=True)).square().mean((1, 2))
        within = spread.mean(1) / (spread.mean(1) + apart + 1e-6)
        known = torch.stack([rarity, torch.full_like(rarity, 1 / ways), within], dim=1)
        mix, log_ridge, sharp_mean, sharp_ridge = self.generator(known).unbind(1)
        # share of the ridge head, at step 0: 0.004 for one shot, 0.71 for five
        share = torch.sigmoid(2.5 - 8 * rarity + mix)
        mean_scale = self.mean_scale(usual) * sharp_mean.exp() / features.shape[2] * (1 - share)
        ridge_scale = self.ridge_scale(usual) * sharp_ridge.exp() * share

        def mixed(of_means: Tensor, of_ridge: Tensor) -> Tensor:
            parts = zip((mean_scale, ridge_scale), (of_means, of_ridge), strict=True)
            return sum(scale.view(-1, *[1] * (part.ndim - 1)) * part for scale, part in parts)

        ridge = ridge_head(features, labels, mask, ways, 0.5 * log_ridge.exp())
        left_out = mixed(left_out_prototypes(features, labels, mean, shots), ridge[2])
        factor = temperature(left_out, labels, mask & (shots.gather(1, labels) > 1))
        weight, bias = map(mixed, prototype_head(mean), ridge[:2])
        return Params(
            {
                f"{self.name}.weight": factor[:, None, None] * weight,
                f"{self.name}.bias": factor[:, None] * bias,
            }
        )
