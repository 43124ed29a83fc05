"""A function from a few of its values.

Closed-form regression around a prior that a hypernetwork generates.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightloom.base import apply_per_task, apply_shared
from weightloom.errors import ConfigError
from weightloom.hypernets import MLPHyperNetwork
from weightloom.hypernets.head import full_precision
from weightloom.hypernets.solve import solve_symmetric
from weightloom.learners.learner import Learner, Support
from weightloom.learners.trunks import head_of, misfit, split, trunk_of
from weightloom.params import Params, sub


class FourierTrunk(nn.Module):
    """Sines and cosines of a position, then two linear layers.

    Smooth features that all functions share.

    Args:
        x_dim: Width of a position, whose range is about [-1, 1].
        features: How many.
        frequencies: Directions in which positions are read.
        spread: Standard deviation of the frequencies, in radians per unit.

    Source:
        Tancik et al., "Fourier features let networks learn high frequency functions in low
        dimensional domains" (2020).
    """

    frequencies: Tensor

    def __init__(
        self, x_dim: int, features: int = 256, frequencies: int = 128, spread: float = 4.0
    ) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("frequencies", spread * torch.randn(x_dim, frequencies))
        self.mix = nn.Sequential(
            nn.Linear(2 * frequencies, features), nn.ReLU(), nn.Linear(features, features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features of mean square about one in sum, (batch, x_dim) to (batch, features)."""
        angle = x @ self.frequencies
        features: Tensor = (
            self.mix(torch.cat([angle.sin(), angle.cos()], dim=-1)) / self.features**0.5
        )
        return features


class FunctionNet(nn.Module):
    """A function of a position: ``head(trunk(x))``; it can be drawn at any resolution.

    Args:
        x_dim: Width of a position.
        y_dim: Width of a value.
        features: Features of a position.
        spread: How fast features vary; a function can vary about as fast.
        bounds: What values are known to lie between. Outside of training they are clamped to it; in
            training a value beyond would have no gradient that brings it back.

    Example:
        >>> FunctionNet(2, 1)(torch.rand(7, 2)).shape
        torch.Size([7, 1])
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        features: int = 256,
        spread: float = 4.0,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.bounds = bounds
        self.trunk = FourierTrunk(x_dim, features, spread=spread)
        self.head = nn.Linear(features, y_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate it, (batch, x_dim) to (batch, y_dim)."""
        return self.bounded(self.head(self.trunk(x)))

    def bounded(self, values: Tensor) -> Tensor:
        """Clamp values to the bounds, outside of training."""
        return values if self.training or self.bounds is None else values.clamp(*self.bounds)


class HyperFunction(Learner):
    """Generate the head of a function, and let the observed values correct what is generated, exactly.

    A head is a Gaussian process with the trunk's features for a kernel: given a prior mean, its
    best value is known in closed form. First the head of all tasks is the mean; a hypernetwork
    reads the head found so and what an encoder says of the support set, and writes a better mean;
    around that the head is found once more. The change that the hypernetwork writes starts at zero:
    at step 0 this is ridge regression on the features, and then on what it missed.

    Args:
        base: The function, as `split` takes it: its trunk is shared, its linear head, which has a
            bias, generated. Features are best of mean square about one in sum. A method
            ``bounded``, as `FunctionNet` has it, is the last thing done to an answer.
        encoder: ``(support_x, support_y, support_mask)`` to a condition, such as `GridEncoder`; its
            ``condition_dim`` says how wide that is.
        hidden: Widths of the hypernetwork's layers.
        noise: Variance of the noise on a value at step 0; learned.

    Raises:
        ConfigError: If ``base`` has no such parts, or ``encoder`` does not say how wide a condition
            is.

    Source:
        A learned kernel and one prior for all tasks: Harrison et al., "Meta-learning priors for
        efficient online Bayesian regression" (2018). That a network generates the prior mean of
        each task is ours.
    """

    def __init__(
        self,
        base: nn.Module,
        encoder: nn.Module,
        hidden: tuple[int, ...] = (512, 512),
        noise: float = 0.002,
    ) -> None:
        super().__init__()
        self.base, self.encoder = split(base, type(self).__name__), encoder
        if getattr(head_of(self.base), "bias", None) is None:
            fits = "The head that is generated here has a bias."
            raise misfit(base, fits, "a network that ends in `nn.Linear(features, y_dim)`")
        width = getattr(encoder, "condition_dim", None)
        if not isinstance(width, int):
            raise ConfigError(
                f"`encoder` is a {type(encoder).__name__} without `condition_dim`. A hypernetwork "
                "is built for the width of what it says. Set `condition_dim` of the encoder, as "
                "`DeepSets` and `GridEncoder` have it."
            )
        width += head_of(self.base).get_parameter("weight").numel()
        self.hyper = MLPHyperNetwork(self.base, width, generate="head.*", hidden=hidden)
        self.log_noise = nn.Parameter(torch.tensor(noise).log())

    def condition(self, support: Support) -> Tensor:
        """What the encoder says of the support set, (tasks, condition_dim)."""
        condition: Tensor = self.encoder(support.x, support.y, support.mask)
        return condition

    def adapt(self, support: Support) -> Params:
        """Generate the prior mean of the head, and find the head."""
        own, bias = (head_of(self.base).get_parameter(name) for name in ("weight", "bias"))
        points = self._points(support)
        with full_precision(support.x):
            first = points.fit(support.y - points.at(own.expand(support.x.shape[0], -1, -1)) - bias)
        params = self.hyper(torch.cat([self.condition(support), 4 * first.flatten(1)], dim=1))
        with full_precision(support.x):
            mean, bias = params["head.weight"] + first, params["head.bias"].to(first.dtype)
            weight = mean + points.fit(support.y - points.at(mean) - bias[:, None])
            return Params({"head.weight": weight, "head.bias": bias})

    def _points(self, support: Support) -> "_Points | _PointsWrittenOut":
        if torch.compiler.is_exporting():  # how many positions differ is not known there
            return _PointsWrittenOut(
                apply_shared(trunk_of(self.base), support.x), support.mask, self._noise()
            )
        positions, number = _distinct(support.x)
        features = trunk_of(self.base)(positions).to(support.y.dtype)
        with full_precision(support.x):
            return _Points(features, number, support.mask, self._noise())

    def _noise(self) -> Tensor:
        return self.log_noise.exp() + 1e-5

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run the trunk, once where all tasks are asked at the same positions, then each task's head."""
        if not torch.compiler.is_exporting() and x.stride(0) == 0:
            features = trunk_of(self.base)(x[0]).to(x.dtype)
            with full_precision(x):
                return self._bounded(
                    (params["head.weight"] @ features.mT).mT + params["head.bias"][:, None]
                )
        outputs: Tensor = apply_per_task(
            head_of(self.base), sub(params, "head"), apply_shared(trunk_of(self.base), x)
        )
        return self._bounded(outputs)

    def _bounded(self, values: Tensor) -> Tensor:
        bounded = getattr(self.base, "bounded", None)
        return values if bounded is None else bounded(values)


class _Points:
    """Regression of a head on the features of each task's support points, in closed form.

    With the features of a task's points as rows of F, the change of the head that best explains
    what it misses is Fᵀ(F Fᵀ + noise)⁻¹ miss. The matrix is decomposed without gradient; one step
    of refinement, which changes nothing, brings the gradient (implicit function theorem). Positions
    that tasks share are handled once.

    Args:
        features: Of the different positions, (positions, features).
        number: The position of each point, (tasks, shots).
        mask: True where a point is there, (tasks, shots).
        noise: Variance of the noise on a value.
    """

    def __init__(self, features: Tensor, number: Tensor, mask: Tensor, noise: Tensor) -> None:
        self.features, self.number, self.noise = features, number[..., None], noise
        self.there = mask[..., None].to(features.dtype)
        with torch.no_grad():
            gram = _gram(features, number) * self.there * self.there.mT
            gram.diagonal(dim1=1, dim2=2).add_(noise)
            self.factor = torch.linalg.cholesky(gram)

    def at(self, head: Tensor) -> Tensor:
        """What a head (tasks, out, features) says at the points, (tasks, shots, out)."""
        values = (head @ self.features.mT).mT
        return values.gather(1, self.number.expand(-1, -1, values.shape[2])) * self.there

    def back(self, weights: Tensor) -> Tensor:
        """The head that is the sum of the points' features, weighted by (tasks, shots, out)."""
        spread = weights.new_zeros(len(weights), len(self.features), weights.shape[2])
        where = self.number.expand_as(weights)
        return spread.scatter_add(1, where, weights * self.there).mT @ self.features

    def fit(self, miss: Tensor) -> Tensor:
        """The change of the head that explains ``miss``, (tasks, shots, out), the rest being noise."""
        miss = miss * self.there
        weights = torch.cholesky_solve(miss.detach(), self.factor)
        left = miss - self.at(self.back(weights)) - self.noise * weights
        return self.back(weights + torch.cholesky_solve(left, self.factor))


class _PointsWrittenOut:
    """The same where a program is written down: every point is handled by itself.

    Args:
        features: Of each task's points, (tasks, shots, features).
        mask: True where a point is there, (tasks, shots).
        noise: Variance of the noise on a value.
    """

    def __init__(self, features: Tensor, mask: Tensor, noise: Tensor) -> None:
        self.there = mask[..., None].to(features.dtype)
        self.rows = features * self.there
        place = torch.arange(mask.shape[1], device=mask.device)
        self.gram = self.rows @ self.rows.mT + noise * (place[:, None] == place)

    def at(self, head: Tensor) -> Tensor:
        """What a head (tasks, out, features) says at the points, (tasks, shots, out)."""
        return self.rows @ head.mT

    def fit(self, miss: Tensor) -> Tensor:
        """The change of the head that explains ``miss``, (tasks, shots, out), the rest being noise."""
        return solve_symmetric(self.gram, miss * self.there).mT @ self.rows


def _gram(features: Tensor, number: Tensor) -> Tensor:
    """Products of the features of each task's points, (tasks, shots, shots)."""
    positions, (tasks, shots) = len(features), number.shape
    if positions**2 > tasks * shots**2:
        rows = features[number]
        return rows @ rows.mT
    pairs = number[:, :, None] * positions + number[:, None]
    return (
        (features @ features.mT)
        .flatten()
        .index_select(0, pairs.flatten())
        .view(tasks, shots, shots)
    )


def _distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    """The different positions among (tasks, shots, x_dim), and the number of each point's."""
    flat = x.flatten(0, 1).contiguous()
    if (
        flat.dtype == torch.float32 and flat.shape[1] == 2
    ):  # one number of 64 bits sorts much quicker than two of 32
        keys, number = flat.view(torch.int64)[:, 0].unique(return_inverse=True)
        positions = keys[:, None].view(torch.float32)
    else:
        positions, number = flat.unique(dim=0, return_inverse=True)
    return positions, number.view(x.shape[:2])
