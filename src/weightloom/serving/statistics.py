"""Learners that read a support set only by sums: means, class statistics, ridge regression.

In:   the features and labels of examples.
Out:  sums over them, free of rounding errors; the parameters that follow from the sums.
Knows nothing of customers.

Sums are held as integers, so that a removed example leaves no trace: the same examples give the
same sums, bit for bit, in any order and after any additions and removals.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weightloom.conditions import DeepSets
from weightloom.conditions.classes import ClassStatistics
from weightloom.learners.centroid import NearestCentroid
from weightloom.learners.generated import GeneratedLearner
from weightloom.learners.heads import HyperHead, scaled_prototypes
from weightloom.learners.polynomial import RidgePolynomial
from weightloom.learners.protonet import ProtoNet
from weightloom.params import Params
from weightloom.tasks import Examples

LARGEST = 2.0**40
"""Bound on the absolute value of a feature, or of the product of two."""
UNITS = (2.0**-2, 2.0**-44, 2.0**-86)
"""Units of the three integers of a number. Each has up to 42 bits, so 2²¹ of them fit in 64."""


class Moments(NamedTuple):
    """Sums over the examples of each task, float64."""

    counts: Tensor
    """Examples per class, (tasks, ways)."""
    sums: Tensor
    """Sum of the features f per class, (tasks, ways, width)."""
    products: Tensor | None
    """Sum of f fᵀ over all examples, (tasks, width, width); None unless `Statistics.products`."""
    single: Examples | None = None
    """Features of single examples, with labels and a mask; None unless `Statistics.singly`."""

    def to(self, device: torch.device | None) -> "Moments":
        """Return the sums on another device."""
        counts, sums, products, single = self
        moved = None if products is None else products.to(device)
        each = None if single is None else Examples(*(its.to(device) for its in single))
        return Moments(counts.to(device), sums.to(device), moved, each)

    @property
    def mean(self) -> Tensor:
        """Mean of each class, (tasks, ways, width); zero for a class without examples."""
        return self.sums / self.counts.clamp(min=1)[..., None]


class Statistics(nn.Module, ABC):
    """Interface of a learner that reads a support set only by sums over its examples.

    With it, `Server` adds and removes an example at a cost independent of the number of examples.
    Inherit from it for a learner of your own.
    """

    by_class: bool = False
    """True if targets are labels, and features are summed per class; else one class holds all."""
    products: bool = False
    """True if the sum of f fᵀ is needed."""
    singly: bool = False
    """True if features of single examples are needed too, as for a temperature by leave-one-out.
    Adding and removing cost the same; the next use costs more the more examples there are."""
    ways: int | None = None
    """Number of classes; None: one more than the largest label."""

    @abstractmethod
    def features(self, x: Any, y: Any) -> Tensor:
        """Features of examples, (examples, width), of each alone: (examples, *event) in."""

    @abstractmethod
    def params(self, moments: Moments) -> Params:
        """Parameters of each task from the sums over its examples."""


class MeanStatistics(Statistics):
    """Condition that is the mean of encoded examples, and a hypernetwork that reads it.

    Args:
        encode: Inputs (examples, *event) to features (examples, condition_dim), row by row.
        hyper: A condition, (tasks, condition_dim), to Params, such as `MLPHyperNetwork`.

    Example:
        >>> from weightloom import MLPHyperNetwork, Server
        >>> base = nn.Linear(3, 2)
        >>> learner = MeanStatistics(nn.Linear(5, 4), MLPHyperNetwork(base, condition_dim=4))
        >>> server = Server(base, learner)
        >>> server["ann"] = torch.randn(7, 5)
        >>> server["ann"].add(torch.randn(5))
        >>> server(["ann", "ann"], torch.randn(2, 3)).shape
        torch.Size([2, 2])
    """

    def __init__(
        self, encode: Callable[[Tensor], Tensor], hyper: Callable[[Tensor], Params]
    ) -> None:
        super().__init__()
        self.encode, self.hyper = encode, hyper

    def features(self, x: Any, y: Any) -> Tensor:
        """Encode the inputs; targets are not read."""
        return self.encode(x)

    def params(self, moments: Moments) -> Params:
        """Generate from the mean."""
        return self.hyper(moments.mean[:, 0].to(_dtype(self)))


class DeepSetsStatistics(Statistics):
    """Sums for a `GeneratedLearner` whose encoder is `DeepSets`.

    Args:
        learner: The learner.
    """

    def __init__(self, learner: GeneratedLearner) -> None:
        super().__init__()
        self.learner = learner

    def features(self, x: Any, y: Any) -> Tensor:
        """Encode each point."""
        encoder = self.learner.encoder
        assert isinstance(encoder, DeepSets)
        points: Tensor = encoder.point(torch.cat([x, y], dim=1))
        return points

    def params(self, moments: Moments) -> Params:
        """Generate from the mean and the number of points."""
        encoder = self.learner.encoder
        assert isinstance(encoder, DeepSets)
        known = torch.cat([moments.mean[:, 0], 1 / (1 + moments.counts)], dim=1)
        params: Params = self.learner.hyper(encoder.pool(known.to(_dtype(encoder))))
        return params


class PrototypeStatistics(Statistics):
    """Class means for `ProtoNet`.

    Args:
        learner: The learner.
    """

    by_class = True

    def __init__(self, learner: ProtoNet) -> None:
        super().__init__()
        self.learner, self.ways = learner, learner.ways

    def features(self, x: Any, y: Any) -> Tensor:
        """Features of the trunk."""
        return self.learner.features(x[None])[0]

    def params(self, moments: Moments) -> Params:
        """Head from the class means."""
        mean = moments.mean.to(_dtype(self.learner))
        statistics = ClassStatistics(mean, torch.zeros_like(mean[:, 0]), moments.counts.to(mean))
        return scaled_prototypes(statistics, self.learner.scale)


class CentroidStatistics(Statistics):
    """Raw inputs for `NearestCentroid`, whose temperature depends on single examples.

    Args:
        learner: The learner.
    """

    by_class = singly = True

    def __init__(self, learner: NearestCentroid) -> None:
        super().__init__()
        self.learner, self.ways = learner, learner.ways

    def features(self, x: Any, y: Any) -> Tensor:
        """The inputs as rows of numbers."""
        raw: Tensor = x.flatten(1)
        return raw

    def params(self, moments: Moments) -> Params:
        """Adapt to the examples."""
        assert moments.single is not None
        return self.learner.adapt(moments.single)


class HeadStatistics(Statistics):
    """Features for `HyperHead`, whose temperature depends on single examples.

    Args:
        learner: The learner.
    """

    by_class = singly = True

    def __init__(self, learner: HyperHead) -> None:
        super().__init__()
        self.learner, self.ways = learner, learner.ways

    def features(self, x: Any, y: Any) -> Tensor:
        """Features of the trunk."""
        return self.learner.features(x[None])[0]

    def params(self, moments: Moments) -> Params:
        """Generate the head from features that the trunk computed when examples were added."""
        assert moments.single is not None
        features, labels, mask = moments.single
        ways = moments.counts.shape[1]
        params: Params = self.learner.hyper(features, labels, mask, ways)
        return params


class RidgeStatistics(Statistics):
    """Normal equations for `RidgePolynomial`.

    Args:
        learner: The learner.
    """

    products = True

    def __init__(self, learner: RidgePolynomial) -> None:
        super().__init__()
        self.learner = learner

    def features(self, x: Any, y: Any) -> Tensor:
        """Powers of the inputs, and the targets, in double precision."""
        return torch.cat([self.learner.base.powers(x.double()), y.double()], dim=1)

    def params(self, moments: Moments) -> Params:
        """Solve the normal equations of every task."""
        assert moments.products is not None
        base = self.learner.base
        out = len(base.weight)
        terms = moments.products.shape[1] - out
        penalty = torch.full((terms,), self.learner.ridge, dtype=torch.float64)
        penalty[0] = 1e-9
        normal, right = moments.products[:, :terms].split([terms, out], dim=2)
        weight = _solved(normal + torch.diag(penalty), right).mT
        return Params({"weight": weight.to(base.weight.dtype)})


def statistics_of(learner: object) -> Statistics | None:
    """Return the sums that a learner reads, or None if it reads examples in another way.

    Known are `GeneratedLearner` with `DeepSets`, `ProtoNet`, `NearestCentroid`, `HyperHead` and
    `RidgePolynomial`, unless a norm sees all examples of a task together.
    """
    if isinstance(learner, Statistics):
        return learner
    if not isinstance(learner, nn.Module) or any(map(_mixes, learner.modules())):
        return None
    if isinstance(learner, GeneratedLearner):
        return DeepSetsStatistics(learner) if type(learner.encoder) is DeepSets else None
    for kind, statistics in _KNOWN:
        if type(learner) is kind:
            return statistics(learner)
    return None


_KNOWN: tuple[tuple[type, Callable[[Any], Statistics]], ...] = (
    (ProtoNet, PrototypeStatistics),
    (NearestCentroid, CentroidStatistics),
    (HyperHead, HeadStatistics),
    (RidgePolynomial, RidgeStatistics),
)


def _mixes(module: nn.Module) -> bool:
    """True for a norm by the statistics of its batch, also in eval mode."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None


class ExactSums:
    """Sums over the examples of one task, without rounding errors.

    Args:
        width: Width of the features.
        products: Also sum f fᵀ.

    Example:
        >>> sums = ExactSums(1, products=False)
        >>> for value in (0.1, 1e9, 0.2):
        ...     sums.add(torch.tensor([[value]], dtype=torch.float64), [0])
        >>> sums.add(torch.tensor([[1e9]], dtype=torch.float64), [0], sign=-1)
        >>> sums.moments().sums.item() == 0.1 + 0.2
        True
    """

    def __init__(self, width: int, products: bool) -> None:
        self.counts: list[int] = []
        self._sums = torch.zeros(0, 3, width, dtype=torch.long)
        self._upper = torch.triu_indices(width, width) if products else None
        self._products = torch.zeros(3, 0 if self._upper is None else self._upper.shape[1]).long()

    def add(self, features: Tensor, labels: Sequence[int], sign: int = 1) -> None:
        """Add examples, or subtract them if ``sign`` is -1.

        Args:
            features: Their features, (examples, width), below 2⁴⁰.
            labels: Class of each, from 0.
            sign: 1 or -1.
        """
        exact = features.double().cpu()
        lacking = 1 + max(labels) - len(self.counts)
        if lacking > 0:
            self.counts += [0] * lacking
            empty = self._sums.new_zeros(lacking, *self._sums.shape[1:])
            self._sums = torch.cat([self._sums, empty])
        for label in labels:
            self.counts[label] += sign
        self._sums.index_add_(0, torch.tensor(labels), _integers(exact).mul_(sign))
        if self._upper is not None:
            first, second = self._upper
            products = _integers(exact[:, first] * exact[:, second])
            self._products += products.sum(0).mul_(sign)

    def moments(self, ways: int | None = None) -> Moments:
        """Sums as floats, with a tasks axis of 1.

        Args:
            ways: Number of classes. None: one more than the largest label.
        """
        ways = ways or max(label + 1 for label, count in enumerate(self.counts) if count)
        counts = torch.tensor(self.counts, dtype=torch.float64)
        sums = _floats(self._sums)
        lacking = max(ways - len(counts), 0)
        padded = (
            nn.functional.pad(counts, (0, lacking)),
            nn.functional.pad(sums, (0, 0, 0, lacking)),
        )
        counts, sums = (values[None, :ways] for values in padded)
        if self._upper is None:
            return Moments(counts, sums, None)
        first, second = self._upper
        products = sums.new_zeros(1, sums.shape[2], sums.shape[2])
        products[0, first, second] = products[0, second, first] = _floats(self._products[None])[0]
        return Moments(counts, sums, products)


def _integers(values: Tensor) -> Tensor:
    """Round float64 numbers (rows, width) to multiples of 2⁻⁸⁶: (rows, 3, width) of int64."""
    parts = []
    for unit in UNITS[:-1]:
        part = (values / unit).trunc()
        values = values - part * unit  # exact: the bits of a float that are left
        parts.append(part)
    return torch.stack([*parts, (values / UNITS[-1]).round()], dim=1).long()


def _floats(integers: Tensor) -> Tensor:
    """Float64 numbers (rows, width) of integers (rows, 3, width)."""
    high, middle, low = (
        part.double() * unit for part, unit in zip(integers.unbind(1), UNITS, strict=True)
    )
    return high + (middle + low)


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric positive definite systems, (tasks, rows, rows)."""
    return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))


def _dtype(module: nn.Module) -> torch.dtype:
    """Floating dtype of a module's parameters; torch's default without any."""
    found = (its.dtype for its in module.parameters() if its.is_floating_point())
    return next(found, torch.get_default_dtype())
