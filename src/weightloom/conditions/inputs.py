"""Statistics of each input in a labelled support set, for `EquivariantHyperNetwork`."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from weightloom.errors import ConfigError, ShapeError

RELATIONS = 2
"""Number of relations between inputs in `InputStatistics.relations`."""


class InputStatistics(NamedTuple):
    """Statistics of each input of a support set, such as a sensor, and their correlations."""

    tokens: Float[Tensor, "tasks inputs statistics"]
    """Statistics of each standardised input; their number is `statistics_of`."""
    relations: Float[Tensor, "tasks relations inputs inputs"]
    """Squared and signed correlations, each row divided by the sum of its absolute values."""
    mean: Float[Tensor, "tasks inputs"]
    """Mean of each input; zero for an empty support set."""
    scale: Float[Tensor, "tasks inputs"]
    """Standard deviation of each input, with a positive lower bound."""

    def standardise(
        self, x: Float[Tensor, "tasks batch inputs"]
    ) -> Float[Tensor, "tasks batch inputs"]:
        """Standardise inputs: (x - mean) / scale, per input."""
        return (x - self.mean[:, None]) / self.scale[:, None]


def statistics_of(classes: int, quantiles: int = 8) -> int:
    """Number of statistics per input: the ``condition_dim`` of a hypernetwork that reads them.

    Example:
        >>> statistics_of(classes=10)
        30
    """
    return 2 * classes + quantiles + 2


def input_statistics(
    support_x: Float[Tensor, "tasks support inputs"],
    support_y: Int[Tensor, "tasks support"],
    support_mask: Bool[Tensor, "tasks support"] | None = None,
    *,
    classes: int,
    quantiles: int = 8,
    least_spread: float = 0.1,
) -> InputStatistics:
    """Standardise every input by the support set; return its statistics and correlations.

    The statistics of an input: its mean in each class, a flag per class for presence in the support
    set, the logarithm of its spread over the median spread, ``quantiles`` of its values from the
    smallest to the largest, and 1 / shots. The result is equivariant to permutations of the inputs
    and independent of the order of the support points. A gain or offset of an input changes only
    its spread, ``mean`` and ``scale``.

    Args:
        support_x: Inputs.
        support_y: Labels, from 0 to ``classes - 1``; negative for an unknown label.
        support_mask: True for real points, False for padding. None: all are real.
        classes: Number of classes over all tasks.
        quantiles: Number of order statistics of each input.
        least_spread: Lower bound of a spread, as a share of the median spread: an input that is
            constant in the support set may vary in the query set.

    Raises:
        ShapeError: If a label is not below ``classes``, or shapes do not fit together.
        ConfigError: If ``classes`` or ``quantiles`` is below 1, or ``least_spread`` is not
            positive.

    Example:
        >>> labels = torch.arange(20).expand(5, -1) % 10
        >>> known = input_statistics(torch.randn(5, 20, 64), labels, classes=10)
        >>> known.tokens.shape, known.relations.shape, known.scale.shape
        (torch.Size([5, 64, 30]), torch.Size([5, 2, 64, 64]), torch.Size([5, 64]))
    """
    _check(support_x, support_y, support_mask, classes, quantiles, least_spread)
    there = torch.ones_like(support_y, dtype=torch.bool) if support_mask is None else support_mask
    weight = there[..., None].to(support_x.dtype)
    support_x = support_x.masked_fill(~there[..., None], 0.0)
    shots = weight.sum(1)
    mean = support_x.sum(1) / shots.clamp(min=1)
    centred = (support_x - mean[:, None]) * weight
    spread = (centred.square().sum(1) / shots.clamp(min=1)).sqrt()
    middle = _median(spread)
    middle = torch.where(middle > 0, middle, spread.mean(1, keepdim=True))
    middle = torch.where(middle > 0, middle, 1.0)  # every input is constant
    scale = (spread.square() + (least_spread * middle).square()).sqrt()
    values = centred / scale[:, None]

    known = there & (support_y >= 0)
    member = one_hot(support_y.clamp(min=0), classes).to(values.dtype) * known[..., None]
    count = member.sum(1)
    class_mean = values.mT @ member / count.clamp(min=1)[:, None]
    tasks, _, inputs = values.shape
    tokens = [
        class_mean,
        (count > 0).to(values.dtype)[:, None].expand(-1, inputs, -1),
        (spread / middle + 1e-3).log()[..., None],
        _order_statistics(values, there, quantiles),
        (1 / shots.clamp(min=1))[:, None].expand(tasks, inputs, 1),
    ]
    correlation = values.mT @ values / shots.clamp(min=1)[..., None]
    relations = torch.stack([correlation.square(), correlation], dim=1)
    relations = relations / (relations.abs().sum(3, keepdim=True) + 1e-3)
    return InputStatistics(torch.cat(tokens, dim=2), relations, mean, scale)


def _median(x: Tensor) -> Tensor:
    """Median over inputs, the lower one of two, (tasks, 1)."""
    if torch.compiler.is_exporting():  # ONNX has no median
        return x.sort(1).values[:, (x.shape[1] - 1) // 2, None]
    return x.median(1, keepdim=True).values


def _order_statistics(values: Tensor, there: Tensor, count: int) -> Tensor:
    """Quantiles of each input at equal steps from minimum to maximum, (tasks, inputs, count)."""
    ordered = values.masked_fill(~there[..., None], torch.inf).sort(1).values
    last = (there.sum(1, keepdim=True) - 1).clamp(min=0)
    place = torch.linspace(0, 1, count, dtype=values.dtype, device=values.device) * last
    low = place.floor().long()
    high = (low + 1).minimum(last)
    picked = [
        ordered.gather(1, at[..., None].expand(-1, -1, values.shape[2])) for at in (low, high)
    ]
    quantiles = picked[0].lerp(picked[1], (place - low)[..., None])
    return quantiles.masked_fill(~there.any(1)[:, None, None], 0.0).mT


def _check(
    x: Tensor, y: Tensor, mask: Tensor | None, classes: int, quantiles: int, least_spread: float
) -> None:
    if classes < 1 or quantiles < 1 or not least_spread > 0:
        raise ConfigError(
            f"`classes={classes}`, `quantiles={quantiles}`, `least_spread={least_spread}`. The "
            "first two are counts, the third is a divisor. Pass 1 or more of each, and a positive "
            "share as in 0.1."
        )
    if x.ndim != 3 or x.shape[:2] != y.shape or (mask is not None and mask.shape != y.shape):
        of_mask = "" if mask is None else f", `support_mask` {tuple(mask.shape)}"
        raise ShapeError(
            f"`support_x` has shape {tuple(x.shape)}, `support_y` {tuple(y.shape)}{of_mask}. They "
            "are (tasks, support, inputs) and (tasks, support). Flatten inputs with more axes by "
            "`x.flatten(2)`."
        )
    if not torch.compiler.is_exporting():  # an exported program checks no labels
        _check_labels(y, classes)


def _check_labels(y: Tensor, classes: int) -> None:
    if y.numel() and int(y.max()) >= classes:
        raise ShapeError(
            f"A label is {int(y.max())} but `classes={classes}`. Labels are numbers from 0 to "
            f"classes - 1, or negative if unknown. Pass `classes={int(y.max()) + 1}`, or relabel."
        )
