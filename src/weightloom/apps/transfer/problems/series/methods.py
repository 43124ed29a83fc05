"""Methods that forecast a family's series: plain, tuned on the family, shared, or generated.

In:   the condition of each family, its windows with known values, and windows to forecast.
Out:  quantiles.
Knows nothing of the split of families and of scores.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weightloom.adapt import descend
from weightloom.apps.transfer.problems.series.model import ForecastHead, Reader
from weightloom.apps.transfer.problems.series.pool import CANDIDATES, LEAST, Pool, losses
from weightloom.base.apply import per_task
from weightloom.forms import LowRank
from weightloom.forms.factored import built
from weightloom.hypernets.mlp import MLPHyperNetwork
from weightloom.learners.shared import SharedChanges
from weightloom.params import Params

PLACES = (
    "summary_proj.weight",
    "decoder_ffns.0.up.weight",
    "decoder_ffns.0.down.weight",
    "out_proj.weight",
)
"""Weights of the head that get a low-rank change: all of its matrices."""
PARTS = 5
"""Weights of `Blend` are multiples of 1/PARTS."""
FARTHEST = 4.0
"""Standardised conditions are cut at this many standard deviations."""


class Given(NamedTuple):
    """Families to adapt to, and the windows to forecast."""

    condition: Tensor
    """Condition of each family, (tasks, condition_dim)."""
    support: Pool
    """Windows with known values."""
    query: Pool
    """Windows to forecast."""


class Forecaster(nn.Module, ABC):
    """Method that forecasts the series of a family; a final class."""

    trained = False
    """True if it is trained on the training families."""
    reads = False
    """True if it reads a condition."""
    alone = False
    """True if it is fitted to the support of each family."""

    @abstractmethod
    def adapt(self, condition: Tensor, support: Pool) -> Any:
        """Adapt to families; the result is passed to `predict`."""

    @abstractmethod
    def predict(self, state: Any, query: Pool) -> Tensor:
        """Forecast windows, (tasks, windows, HORIZON, levels)."""

    def change(self, state: Any) -> Mapping[str, Tensor]:
        """Return the relative change of each weight, (tasks,); none here."""
        return {}

    def forward(self, given: Given) -> Tensor:
        """Return the logarithm of each family's loss relative to the source model's, (tasks,)."""
        query = given.query
        found = self.predict(self.adapt(given.condition, given.support), query)
        ours = losses(found, query.y, query.there).mean(1)
        source = losses(query.candidates[:, :, 0], query.y, query.there).mean(1)
        return (ours.clamp_min(LEAST) / source.clamp_min(LEAST)).log()


class Plain(Forecaster):
    """A candidate, unchanged: the source model, or a forecast that learns nothing.

    Args:
        name: One of `CANDIDATES`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.number = CANDIDATES.index(name)

    def adapt(self, condition: Tensor, support: Pool) -> None:
        """Do nothing."""

    def predict(self, state: None, query: Pool) -> Tensor:
        """Return the candidate's forecasts."""
        return query.candidates[:, :, self.number]


class Blend(Forecaster):
    """Weighted mean of all candidates, with the weights of lowest loss on the support.

    Weights are searched on a grid; nothing is learned from other families.
    """

    alone = True

    def adapt(self, condition: Tensor, support: Pool) -> Tensor:
        """Return weights per family, (tasks, candidates)."""
        points = grid(len(CANDIDATES)).to(support.y)
        found = [
            losses(_mixed(point.expand(len(support.y), -1), support), support.y, support.there)
            for point in points
        ]
        return points[torch.stack([loss.mean(1) for loss in found]).argmin(0)]

    def predict(self, state: Tensor, query: Pool) -> Tensor:
        """Return the blend."""
        return _mixed(state, query)


class GeneratedWeights(Forecaster):
    """Weighted mean of all candidates, with weights generated from the condition.

    The logarithms of the weights start at a prior minus a learned factor times the logarithm of the
    candidate's loss relative to the source model's; a network that starts at zero adds to them.

    Args:
        mean: Mean condition of the training families, (condition_dim,).
        deviation: Its standard deviation over them.
        width: Width of the network.
    """

    trained = reads = True

    def __init__(self, mean: Tensor, deviation: Tensor, width: int) -> None:
        super().__init__()
        self.condition = Standard(mean, deviation)
        candidates = len(CANDIDATES)
        written = nn.Linear(width, candidates)
        nn.init.zeros_(written.weight)
        nn.init.zeros_(written.bias)
        self.network = nn.Sequential(nn.Linear(len(mean), width), nn.ReLU(), written)
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        self.prior = nn.Parameter(torch.tensor([1.0] + [0.0] * (candidates - 1)))

    def adapt(self, condition: Tensor, support: Pool) -> Tensor:
        """Return weights per family, (tasks, candidates)."""
        ratios = nn.functional.pad(condition[:, : len(CANDIDATES) - 1], (1, 0))
        added = self.network(self.condition(condition))
        return (self.prior - self.sharpness * ratios + added).softmax(1)

    def predict(self, state: Tensor, query: Pool) -> Tensor:
        """Return the blend."""
        return _mixed(state, query)


class Changed(Forecaster):
    """The head with a low-rank change of all its matrices: generated, or one for all families.

    Args:
        mean: Mean condition of the training families, (condition_dim,).
        deviation: Its standard deviation over them.
        rank: Rank of the change.
        width: Width of the hypernetwork; 0 for one change for all families.
    """

    trained = True

    def __init__(self, mean: Tensor, deviation: Tensor, rank: int, width: int) -> None:
        super().__init__()
        head = Reader().head()
        self.condition = Standard(mean, deviation)
        forms = dict.fromkeys(PLACES, LowRank(rank))
        self.hyper: nn.Module = (
            MLPHyperNetwork(head, len(mean), forms, (width,))
            if width
            else SharedChanges(head, forms)
        )
        self.head, self.reads = head, width > 0

    def adapt(self, condition: Tensor, support: Pool) -> Params:
        """Generate the changed weights of each family."""
        params: Params = self.hyper(self.condition(condition))
        return params

    def predict(self, state: Params, query: Pool) -> Tensor:
        """Run the head with each family's weights."""
        return _run(self.head, state, query)

    def change(self, state: Params) -> dict[str, Tensor]:
        """Return the relative change of each weight."""
        return _changes(self.head, state)


class SharedHead(Forecaster):
    """The whole head, trained once for all families."""

    trained = True

    def __init__(self) -> None:
        super().__init__()
        self.head = Reader().head().requires_grad_()
        self.source = Reader().head()

    def adapt(self, condition: Tensor, support: Pool) -> int:
        """Return the number of families."""
        return len(condition)

    def predict(self, state: int, query: Pool) -> Tensor:
        """Run the head."""
        shape = query.y.shape[:2]
        found = self.head(query.summary.flatten(0, 1), query.future.flatten(0, 1))
        return found.unflatten(0, shape)

    def change(self, state: int) -> dict[str, Tensor]:
        """Return the relative change of each weight, the same for all families."""
        values = self.head.named_parameters()
        expanded = {name: its.detach().expand(state, *its.shape) for name, its in values}
        return _changes(self.source, expanded)


class Tuned(Forecaster):
    """The head, tuned on the support of each family: all of it, or a low-rank change.

    Args:
        rank: Rank of the change; 0 for all numbers of the head.
        rate: Learning rate of Adam.
        steps: Gradient steps.
    """

    alone = True

    def __init__(self, rank: int, rate: float, steps: int) -> None:
        super().__init__()
        self.head, self.rate, self.steps = Reader().head(), rate, steps
        self.start: SharedChanges | None = None
        if rank:
            forms = dict.fromkeys(PLACES, LowRank(rank))
            self.start = SharedChanges(self.head, forms).requires_grad_(False)

    def adapt(self, condition: Tensor, support: Pool) -> Params:
        """Take gradient steps on the support of each family."""
        tasks = len(support.y)
        if self.start is not None:
            start: Params = self.start(condition)
        else:
            values = self.head.named_parameters()
            start = Params({name: its.expand(tasks, *its.shape) for name, its in values})

        def loss(params: Params) -> Tensor:
            found = _run(self.head, params, support)
            return losses(found, support.y, support.there).mean(1) / scale

        source = losses(support.candidates[:, :, 0], support.y, support.there)
        scale = source.mean(1).clamp_min(LEAST)
        with torch.no_grad():
            return descend(start, loss, self.steps, self.rate, momentum=(0.9, 0.999))

    def predict(self, state: Params, query: Pool) -> Tensor:
        """Run the head with each family's numbers."""
        return _run(self.head, state, query)

    def change(self, state: Params) -> dict[str, Tensor]:
        """Return the relative change of each weight."""
        return _changes(self.head, state)


class Standard(nn.Module):
    """Conditions in standard deviations of the training families, cut at `FARTHEST`.

    Args:
        mean: (condition_dim,).
        deviation: (condition_dim,).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation.clamp_min(1e-3))

    def forward(self, condition: Tensor) -> Tensor:
        """Standardise, (tasks, condition_dim)."""
        return ((condition - self.mean) / self.deviation).clamp(-FARTHEST, FARTHEST)


def grid(candidates: int, parts: int = PARTS) -> Tensor:
    """Return all weights that are multiples of 1/parts and sum to 1, (points, candidates).

    Example:
        >>> grid(2, 2).tolist()
        [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    steps = torch.arange(parts + 1)
    points = torch.cartesian_prod(*[steps] * candidates).view(-1, candidates)
    return points[points.sum(1) == parts] / parts


def _mixed(weights: Tensor, windows: Pool) -> Tensor:
    """Weighted mean of the candidates, by weights (tasks, candidates)."""
    return torch.einsum("tc,twchq->twhq", weights, windows.candidates)


def _run(head: ForecastHead, params: Params, windows: Pool) -> Tensor:
    found: Tensor = per_task(head)(params, windows.summary, windows.future)
    return found


def _changes(head: nn.Module, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Norm of the change of each weight matrix divided by that of the weight, (tasks,)."""
    found: dict[str, Tensor] = {}
    for name in PLACES:
        own = head.get_parameter(name)
        found[name] = (built(params[name]) - own).flatten(1).norm(dim=1) / own.norm()
    return found
