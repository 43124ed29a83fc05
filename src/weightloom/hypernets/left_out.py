"""Left-out answers: each support point classified by a head fitted to all the others.

In:   features, labels and mask of the support points, or logits of points left out.
Out:  logits of each point left out, (tasks, support, ways), and a factor of the logits per task.
Knows nothing of how the head is used. No head is fitted again: the answers are in closed form.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

SPREAD = 0.7
"""Standard deviation of the normal prior on the logarithm of the temperature's factor."""
GRID, REACH = 33, 2.4
"""Number of points of the posterior's grid, and its ends in nats."""


def left_out_prototypes(
    features: Float[Tensor, "tasks support features"],
    labels: Int[Tensor, "tasks support"],
    mean: Float[Tensor, "tasks ways features"],
    shots: Float[Tensor, "tasks ways"],
) -> Float[Tensor, "tasks support ways"]:
    """Minus the squared distance of each point to the class means, as if it were a new one.

    The mean of the point's own class is too near, since the point is in it. Without one of n
    examples the squared distance from this one to it is (n / (n - 1))² times that to the mean of
    all. But the mean of n - 1 examples is farther from a new one than that of n: on average by the
    ratio of 1 + 1 / (n - 1) to 1 + 1 / n. Both together are (n + 1) / (n - 1): times this, the
    squared distance of an example has the expectation of that of a new one to the mean of all. An
    example that is alone in its class keeps its distance of zero, which is no answer.

    Args:
        features: Features of the support points, finite in masked ones too.
        labels: Their labels.
        mean: Class means.
        shots: Examples per class.

    Returns:
        Logits of each point left out.
    """
    own = one_hot(labels, mean.shape[1]).to(features.dtype)
    distance = (
        features.square().sum(2, keepdim=True)
        - 2 * features @ mean.mT
        + mean.square().sum(2)[:, None]
    )
    further = ((shots + 1) / (shots - 1).clamp(min=1))[:, None]
    return -distance * (1 + own * (further - 1))


def left_out_ridge(
    inverse: Float[Tensor, "tasks support support"],
    target: Float[Tensor, "tasks support ways"],
    penalty: Float[Tensor, " tasks"],
    there: Float[Tensor, "tasks support"],
) -> Float[Tensor, "tasks support ways"]:
    """Logits of each point under the ridge head of all other points, with the same penalty.

    With the hat matrix H = 11ᵀ/n + K A⁻¹ of centred features, K their Gram matrix and A = K + λ,
    the left-out residual of a regression with an intercept is (t - H t) / (1 - H_ii). A ridge head
    has no intercept: its scores are zero on the middle of its support points, so the mean target of
    the others is taken off.

    Args:
        inverse: A⁻¹.
        target: Targets t, zero in masked points.
        penalty: λ.
        there: 1 for points to use, 0 for padding.

    Returns:
        Logits of each point left out.

    Source:
        Allen, "The relationship between variable selection and data augmentation and a method for
        prediction" (1974): left-out residuals in closed form.
    """
    n, total = there.sum(1)[:, None, None], target.sum(1, keepdim=True)
    weight = penalty[:, None, None]
    residual = weight * (inverse @ target) - total / n
    left = weight * inverse.diagonal(dim1=1, dim2=2)[..., None] - 1 / n
    others = (total - target) / (n - 1).clamp(min=1)
    return target - residual / left.clamp(min=1e-6) - others


def temperature(
    logits: Float[Tensor, "tasks support ways"],
    labels: Int[Tensor, "tasks support"],
    there: Bool[Tensor, "tasks support"],
) -> Float[Tensor, " tasks"]:
    """Return the factor of the logits with which left-out points are predicted best.

    It is exp of the posterior mean of log β on a grid, where β multiplies the logits, and log β is
    normal with mean 0 and standard deviation 0.7 before the points are seen. Without any points it
    is 1.

    Args:
        logits: Logits of points left out.
        labels: Labels of the points.
        there: True for points to use.

    Returns:
        The factor of each task.

    Example:
        >>> logits = torch.tensor([0.0, 9.0]).expand(1, 40, 2)  # sure, and wrong once in two
        >>> labels, there = torch.arange(40)[None] % 2, torch.ones(1, 40, dtype=torch.bool)
        >>> temperature(logits, labels, there) < 0.2
        tensor([True])

    Source:
        Guo et al., "On calibration of modern neural networks" (2017), section 4.2, for one number
        on held-out points. Left-out points and the prior are ours.
    """
    behind = logits - logits.gather(2, labels[..., None])
    steps = torch.linspace(-REACH, REACH, GRID, dtype=logits.dtype, device=logits.device)
    fits = [-((beta * behind).logsumexp(2) * there).sum(1) for beta in steps.exp().unbind()]
    posterior = (torch.stack(fits, dim=1) - steps.square() / (2 * SPREAD**2)).softmax(1)
    return (posterior @ steps).exp()
