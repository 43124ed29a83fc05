"""Ranking of source models for a target, before any transfer, and its rank correlation.

In:   outputs or features of each source on a target's labelled examples; later its true transfer.
Out:  a score per source, higher for a better one; Kendall's tau.
Knows nothing of how sources are adapted.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from weightloom.errors import ShapeError

ROUNDS = 100
"""Maximum number of rounds in which the evidence is maximised."""
TOLERANCE = 1e-3
"""Change of the ratio of both precisions, as a share, at which the rounds end."""


def leep(
    probabilities: Float[Tensor, "sources examples known"], labels: Int[Tensor, "sources examples"]
) -> Float[Tensor, " sources"]:
    """LEEP: mean log-likelihood of the labels under the source's own labels, read as features.

    The classifier is the empirical one: P(y | z) is the share of label y in the probability that
    the source gives to its label z; each example scores log Σ_z P(y | z) θ(x)_z. At most 0.

    Args:
        probabilities: Each source's probabilities of its own labels for a target's examples.
        labels: Labels of the target.

    Example:
        >>> certain = torch.eye(2)[[0, 0, 1, 1]][None]
        >>> leep(certain, torch.tensor([[1, 1, 0, 0]])), leep(certain, torch.tensor([[0, 1, 0, 1]]))
        (tensor([0.]), tensor([-0.6931]))

    Source:
        Nguyen et al., "LEEP: a new measure to evaluate transferability of learned representations"
        (2020), equations 1 and 2.
    """
    member = one_hot(labels).to(probabilities)
    joint = member.mT @ probabilities
    given = joint / joint.sum(1, keepdim=True).clamp(min=torch.finfo(joint.dtype).tiny)
    likelihood = (probabilities @ given.mT).gather(2, labels[..., None])[..., 0]
    return likelihood.clamp(min=torch.finfo(joint.dtype).tiny).log().mean(1)


def logme(
    features: Float[Tensor, "sources examples width"], labels: Int[Tensor, "sources examples"]
) -> Float[Tensor, " sources"]:
    """LogME: largest evidence of a Bayesian linear model of the labels on a source's features.

    For each class, one-hot labels y ~ N(F w, 1/β) with w ~ N(0, 1/α); log p(y) is maximised over α
    and β by MacKay's fixed point, divided by the number of examples and averaged over classes.

    Args:
        features: Each source's features of a target's examples.
        labels: Labels of the target.

    Source:
        You et al., "LogME: practical assessment of pre-trained models for transfer learning"
        (2021), equation 2 and algorithm 1, here over all classes at once.
    """
    features, member = features.double(), one_hot(labels).double()
    left, sizes, _ = torch.linalg.svd(features, full_matrices=False)
    squares, count, width = sizes.square()[..., None], features.shape[1], features.shape[2]
    along = (left.mT @ member).square()  # (sources, directions, classes)
    outside = (member.square().sum(1, keepdim=True) - along.sum(1, keepdim=True)).clamp(min=0)
    alpha = torch.ones_like(outside)
    beta, was = torch.ones_like(outside), torch.zeros_like(outside)
    for _ in range(ROUNDS):
        ratio = alpha / beta
        if bool(((ratio - was).abs() <= TOLERANCE * ratio).all()):
            break
        was = ratio
        free = (squares / (squares + ratio)).sum(1, keepdim=True)
        weights = (squares / (squares + ratio).square() * along).sum(1, keepdim=True)
        error = _error(squares, ratio, along, outside)
        alpha, beta = free / weights.clamp(min=1e-12), (count - free) / error.clamp(min=1e-12)
    ratio = alpha / beta
    weights = (squares / (squares + ratio).square() * along).sum(1, keepdim=True)
    error = _error(squares, ratio, along, outside)
    precision = (alpha + beta * squares).log().sum(1, keepdim=True)
    precision = precision + (width - squares.shape[1]) * alpha.log()
    evidence = count * beta.log() + width * alpha.log() - precision - beta * error - alpha * weights
    evidence = evidence - count * torch.log(torch.tensor(2 * torch.pi))
    return (evidence / (2 * count)).mean((1, 2))


def closeness(
    features: Float[Tensor, "sources examples width"],
    mean: Float[Tensor, "sources width"],
    spread: Float[Tensor, "sources width"],
) -> Float[Tensor, " sources"]:
    """Negative distance between features of a target and those of each source's own training data.

    The root mean square, over features, of the difference of means and of standard deviations, both
    in units of the source's standard deviation. Labels are not read.

    Args:
        features: Each source's features of a target's examples.
        mean: Mean of each feature over the source's training data.
        spread: Standard deviation of each feature over them.

    Example:
        >>> features = torch.tensor([[[0.0], [2.0]]])  # mean 1, standard deviation 1
        >>> closeness(features, torch.tensor([[1.0]]), torch.tensor([[1.0]])).item()
        -0.0
    """
    unit = spread.clamp(min=1e-3 * spread.mean(1, keepdim=True).clamp(min=1e-12))
    means = (features.mean(1) - mean) / unit
    spreads = (features.std(1, correction=0) - spread) / unit
    return -(means.square() + spreads.square()).mean(1).sqrt()


def kendall(
    scores: Float[Tensor, "targets sources"], transfer: Float[Tensor, "targets sources"]
) -> Float[Tensor, " targets"]:
    """Kendall's tau-b between scores and true transfer, per target.

    1 if all pairs of sources are ordered alike, -1 if all are reversed, near 0 for a ranking that
    says nothing. Ties are corrected for; NaN if all sources of a target are tied.

    Args:
        scores: Score of each source for each target.
        transfer: True score of each source after the transfer.

    Raises:
        ShapeError: If there are fewer than two sources, or the shapes differ.

    Example:
        >>> kendall(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 3.0, 2.0, 4.0]]))
        tensor([0.6667])

    Source:
        Kendall, "The treatment of ties in ranking problems" (1945).
    """
    if scores.shape != transfer.shape or scores.shape[1] < 2:
        raise ShapeError(
            f"`scores` has shape {tuple(scores.shape)} and `transfer` {tuple(transfer.shape)}. A "
            "rank correlation is one of two rankings of at least two sources. Pass two tensors of "
            "one shape, (targets, sources)."
        )
    one, other = ((its[:, :, None] - its[:, None]).sign() for its in (scores, transfer))
    untied = (one.abs().sum((1, 2)) * other.abs().sum((1, 2))).sqrt()
    return (one * other).sum((1, 2)) / untied


def _error(squares: Tensor, ratio: Tensor, along: Tensor, outside: Tensor) -> Tensor:
    """Squared error of the posterior mean, per class."""
    return ((ratio / (squares + ratio)).square() * along).sum(1, keepdim=True) + outside
