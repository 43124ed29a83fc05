"""A check on the support: candidates weighed by their own loss on the examples of a task.

In:   held-out losses of each candidate on a task's labelled examples.
Out:  `Check`: a weight per task and candidate, blended outputs, and the reason in words.
Knows nothing of the candidates beyond their names, losses and outputs.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.errors import ConfigError, ShapeError, nearest

SHARPNESS = 10.0
"""Default power of a candidate's loss, relative to the unadapted model's, in its weight."""


class Check(NamedTuple):
    """Weights of candidates for each task."""

    names: tuple[str, ...]
    """Names of the candidates."""
    losses: Float[Tensor, "tasks candidates"]
    """Held-out loss of each candidate on each task's support."""
    weights: Float[Tensor, "tasks candidates"]
    """Weight of each candidate, at least 0, with a sum of 1 per task."""
    unadapted: str
    """Name of the model that was left as it is."""

    def blend(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted mean of all candidates' outputs.

        Args:
            outputs: Probabilities, quantiles or values of each candidate, (tasks, ...). A blend of
                logits would be none of their probabilities.

        Raises:
            ConfigError: If a candidate has no outputs.
        """
        if missing := [name for name in self.names if name not in outputs]:
            raise ConfigError(
                f"`outputs` lacks {', '.join(map(repr, missing))}. Every candidate that was "
                f"weighed is blended. It has {', '.join(map(repr, outputs))}. Add the others."
            )
        parts = [outputs[name] for name in self.names]
        stacked = torch.stack(parts, 1)
        weights = self.weights.to(stacked).view(*self.weights.shape, *[1] * (stacked.ndim - 2))
        # a weight of 0 also removes a candidate whose outputs are NaN
        return (stacked.where(weights > 0, 0) * weights).sum(1)

    def chosen(self, task: int = 0) -> str:
        """Return the name of the candidate with the largest weight for a task."""
        return self.names[int(self.weights[task].argmax())]

    def reason(self, task: int = 0) -> str:
        """Return one sentence with the largest weights of a task and the losses behind them.

        Example:
            >>> losses = {"source": torch.tensor([0.8]), "generated": torch.tensor([0.4])}
            >>> check_on_support(losses, unadapted="source").reason()
            'generated 99.9 % (loss 0.4), source 0.1 % (loss 0.8, unadapted).'
        """
        order = self.weights[task].argsort(descending=True, stable=True)[:3].tolist()
        return ", ".join(self._in_words(task, number) for number in order) + "."

    def _in_words(self, task: int, number: int) -> str:
        name, weight = self.names[number], float(self.weights[task, number])
        note = ", unadapted" if name == self.unadapted else ""
        return f"{name} {100 * weight:.1f} % (loss {float(self.losses[task, number]):.3g}{note})"


def check_on_support(
    losses: Mapping[str, Tensor],
    unadapted: str,
    prior: Mapping[str, float] | None = None,
    sharpness: float = SHARPNESS,
) -> Check:
    """Weigh candidates for each task by their losses on its support set.

    The weight of a candidate is its prior, times (its loss / the unadapted model's loss) to the
    power of minus ``sharpness``, divided by the sum over candidates: a candidate with the loss of
    the unadapted model keeps its prior, a worse one loses it. Every loss must come from outputs
    for examples that the candidate was not adapted to. A candidate with a NaN or infinite loss gets
    the weight 0; where no loss of a task is finite, the unadapted model is taken.

    Args:
        losses: Loss of each candidate, above 0: (tasks,), or (tasks, examples), which is averaged.
            Log loss, quantile loss and squared error do; accuracy does not.
        unadapted: Name of the unadapted model among the candidates.
        prior: Prior weight of candidates, above 0; 1 for those that it does not name.
        sharpness: 0 keeps the prior; infinity chooses the candidate with the lowest loss.

    Raises:
        ConfigError: If ``unadapted`` or a name in ``prior`` is no candidate, ``sharpness`` is below
            0, or a prior is not above 0.
        ShapeError: If candidates have losses of different numbers of tasks.

    Example:
        >>> losses = {"source": torch.tensor([0.8, 0.8]), "generated": torch.tensor([0.4, 1.6])}
        >>> check_on_support(losses, unadapted="source", sharpness=1.0).weights
        tensor([[0.3333, 0.6667],
                [0.6667, 0.3333]], dtype=torch.float64)

    Source:
        Exponential weights: Vovk, "Aggregating strategies" (1990), here by the logarithm of a ratio
        of losses, which has no unit.
    """
    names, prior = tuple(losses), dict(prior or {})
    _check_names(names, unadapted, prior, sharpness)
    means = _means(losses)
    tiny = torch.finfo(means.dtype).tiny
    reference = means[:, names.index(unadapted), None]
    # an unadapted model that failed has no ratio: the others are compared among themselves
    reference = reference.where(reference.isfinite(), 1.0).clamp_min(tiny)
    ratio = (means.clamp_min(tiny) / reference).log()
    if sharpness == float("inf"):
        lowest = ratio.nan_to_num(torch.inf).amin(1, keepdim=True)
        score = torch.zeros_like(ratio).where(ratio == lowest, -torch.inf)
    else:
        score = -sharpness * ratio
    start = torch.tensor([prior.get(name, 1.0) for name in names], dtype=means.dtype).log()
    score = (score + start.to(means.device)).where(means.isfinite(), -torch.inf)
    alone = torch.full_like(score, -torch.inf)
    alone[:, names.index(unadapted)] = 0.0
    score = score.where(means.isfinite().any(1, keepdim=True), alone)
    return Check(names, means, score.softmax(1), unadapted)


def _means(losses: Mapping[str, Tensor]) -> Float[Tensor, "tasks candidates"]:
    """Return the mean loss of each task and candidate, in float64."""
    means = {
        name: loss.double().flatten(1).mean(1) if loss.ndim > 1 else loss.double()
        for name, loss in losses.items()
    }
    if len(shapes := {name: tuple(mean.shape) for name, mean in means.items()}) and (
        len({*shapes.values()}) > 1 or () in shapes.values()
    ):
        raise ShapeError(
            f"`losses` have the shapes {shapes}. Each candidate has one loss per task. Pass "
            "tensors of shape (tasks,) or (tasks, examples)."
        )
    return torch.stack([*means.values()], 1)


def _check_names(
    names: tuple[str, ...], unadapted: str, prior: Mapping[str, float], sharpness: float
) -> None:
    for name in (unadapted, *prior):
        if name not in names:
            raise ConfigError(
                f"{name!r} is no candidate of this check. {nearest(name, names)} Pass a name in "
                "`losses`."
            )
    if not sharpness >= 0:
        raise ConfigError(
            f"`sharpness={sharpness}` would prefer larger losses. It is a power of the loss from 0 "
            f"to infinity. Pass `sharpness={SHARPNESS:g}`."
        )
    if wrong := {name: its for name, its in prior.items() if not 0 < its < float("inf")}:
        raise ConfigError(
            f"`prior={wrong}` holds no weights. A prior weight is a number above 0; a candidate "
            "that shall not count is left out of `losses`. Pass e.g. `0.1`."
        )
