"""Functions from a few of their values: closed-form regression around a generated prior mean."""

from collections.abc import Mapping
from copy import copy

import torch
from torch import Tensor, nn

from weightloom.base import apply_per_task, apply_shared
from weightloom.errors import ConfigError
from weightloom.hypernets import MLPHyperNetwork
from weightloom.hypernets.head import full_precision
from weightloom.hypernets.solve import solve_symmetric
from weightloom.learners.learner import Learner, Support
from weightloom.learners.trunks import head_of, misfit, split, trunk_of
from weightloom.networks.coordinates import FourierTrunk as FourierTrunk
from weightloom.networks.coordinates import FunctionNet as FunctionNet
from weightloom.params import Params, sub


class GaussianFunction(nn.Module):
    """Function ``head(trunk(x))`` whose head has a standard normal prior around a known mean.

    Args:
        trunk: Features of a position, (batch, x_dim) to (batch, features), scaled so that the
            numbers of a head are independent and of variance one over tasks.
        mean: Mean of the head over tasks, (y_dim, features); its own value.
        noise: Variance of the noise on a value. It becomes a parameter ``log_noise``, (1,), which
            `HyperFunction` generates for each task.

    Example:
        >>> mean = torch.tensor([[1.0, 2.0]])
        >>> GaussianFunction(nn.Identity(), mean, noise=0.1)(torch.ones(1, 2)).tolist()
        [[3.0]]

    Source:
        Rasmussen and Williams, "Gaussian processes for machine learning" (2006), section 2.1.
    """

    def __init__(self, trunk: nn.Module, mean: Tensor, noise: float) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(mean.shape[1], len(mean))
        with torch.no_grad():
            self.head.weight.copy_(mean)
            self.head.bias.zero_()
        self.log_noise = nn.Parameter(torch.tensor([noise]).log())

    def forward(self, x: Tensor) -> Tensor:
        """Values of the function, (batch, x_dim) to (batch, y_dim)."""
        outputs: Tensor = self.head(self.trunk(x))
        return outputs


class HyperFunction(Learner):
    """Generate a prior mean for the head of a function, and correct it by closed-form regression.

    The head is a Gaussian process whose kernel is the trunk's features: given a prior mean, its
    posterior mean is known in closed form. The first prior mean is the head shared by all tasks. A
    hypernetwork reads the resulting head and an encoding of the support set, and writes a better
    prior mean, from which the head is computed again. The change written by the hypernetwork starts
    at zero: at step 0 this is ridge regression on the features, then on its residuals. The prior of
    a `GaussianFunction` is known instead: the change is added to its own mean, and at step 0 this
    is the posterior mean under that prior.

    Args:
        base: The function, as `split` takes it: the trunk is shared, the linear head, which must
            have a bias, is generated. The squares of the features should sum to about one. A method
            ``bounded``, as in `FunctionNet`, is applied to the outputs. With a
            `GaussianFunction` the noise is generated for each task, too.
        encoder: ``(support_x, support_y, support_mask)`` to a condition of width ``condition_dim``,
            an attribute of it; such as `GridEncoder`.
        hidden: Widths of the hypernetwork's hidden layers.
        noise: Variance of the noise on a value at step 0; learned. A `GaussianFunction` has
            its own.

    Raises:
        ConfigError: If ``base`` has no such parts, or ``encoder`` has no ``condition_dim``.

    Source:
        A learned kernel and one prior for all tasks: Harrison et al., "Meta-learning priors for
        efficient online Bayesian regression" (2018). The generated prior mean per task is new here.
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
            fits = "The generated head has a bias."
            raise misfit(base, fits, "a network that ends in `nn.Linear(features, y_dim)`")
        width = getattr(encoder, "condition_dim", None)
        if not isinstance(width, int):
            raise ConfigError(
                f"`encoder` is a {type(encoder).__name__} without `condition_dim`. A hypernetwork "
                "is built for the width of its condition. Set `condition_dim` of the encoder, as "
                "in `DeepSets` and `GridEncoder`."
            )
        width += head_of(self.base).get_parameter("weight").numel()
        self.known = isinstance(self.base, GaussianFunction)
        generate = ["head.*", "log_noise"] if self.known else ["head.*"]
        if not self.known:
            self.log_noise = nn.Parameter(torch.tensor(noise).log())
        self.hyper = MLPHyperNetwork(self.base, width, generate=generate, hidden=hidden)

    def condition(self, support: Support) -> Tensor:
        """Encoding of the support set, (tasks, condition_dim)."""
        condition: Tensor = self.encoder(support.x, support.y, support.mask)
        return condition

    def adapt(self, support: Support) -> Params:
        """Generate the prior mean of the head, and compute the head from it."""
        own, bias = (head_of(self.base).get_parameter(name) for name in ("weight", "bias"))
        points = self._points(support)
        with full_precision(support.x):
            first = points.fit(support.y - points.at(own.expand(support.x.shape[0], -1, -1)) - bias)
        params = self.hyper(torch.cat([self.condition(support), 4 * first.flatten(1)], dim=1))
        with full_precision(support.x):
            mean, bias = (params[name].to(first.dtype) for name in ("head.weight", "head.bias"))
            if self.known:
                points = points.under(_variance(params["log_noise"].to(first.dtype)))
            else:
                mean = mean + first
            weight = mean + points.fit(support.y - points.at(mean) - bias[:, None])
            return Params({"head.weight": weight, "head.bias": bias})

    def _points(self, support: Support) -> "_Points | _PointsWrittenOut":
        holder = self.base if self.known else self
        noise = _variance(holder.get_parameter("log_noise").reshape(1, 1))
        if torch.compiler.is_exporting():  # the number of distinct positions is not known there
            return _PointsWrittenOut(
                apply_shared(trunk_of(self.base), support.x), support.mask, noise
            )
        positions, number = _distinct(support.x)
        features = trunk_of(self.base)(positions).to(support.y.dtype)
        with full_precision(support.x):
            return _Points(features, number, support.mask, noise)

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run the trunk, then each task's head.

        The trunk runs once if ``x`` was expanded from the positions of one task.
        """
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
    """Closed-form regression of a head on the features of each task's support points.

    With the features of a task's points as rows of F, the change of the head that best explains the
    residual is Fᵀ(F Fᵀ + noise)⁻¹ residual. The Cholesky factor is computed without gradient; one
    refinement step, which keeps the value, adds the gradient (implicit function theorem). Positions
    shared by tasks are computed once.

    Args:
        features: Features of the distinct positions, (positions, features).
        number: Number of each point's position, (tasks, shots).
        mask: True for real points, False for padding, (tasks, shots).
        noise: Variance of the noise on a value, (1 or tasks, 1, 1).
    """

    def __init__(self, features: Tensor, number: Tensor, mask: Tensor, noise: Tensor) -> None:
        self.features, self.number, self.noise = features, number[..., None], noise
        self.there = mask[..., None].to(features.dtype)
        with torch.no_grad():
            gram = _gram(features, number) * self.there * self.there.mT
            gram.diagonal(dim1=1, dim2=2).add_(noise[..., 0])
            self.factor = torch.linalg.cholesky(gram)

    def under(self, noise: Tensor) -> "_Points":
        """Return the same points under another noise."""
        return _Points(self.features, self.number[..., 0], self.there[..., 0] > 0, noise)

    def at(self, head: Tensor) -> Tensor:
        """Values of a head, (tasks, out, features), at the points, (tasks, shots, out)."""
        values = (head @ self.features.mT).mT
        return values.gather(1, self.number.expand(-1, -1, values.shape[2])) * self.there

    def back(self, weights: Tensor) -> Tensor:
        """Sum of the points' features, weighted by (tasks, shots, out): (tasks, out, features)."""
        spread = weights.new_zeros(len(weights), len(self.features), weights.shape[2])
        where = self.number.expand_as(weights)
        return spread.scatter_add(1, where, weights * self.there).mT @ self.features

    def fit(self, miss: Tensor) -> Tensor:
        """Change of the head that best explains the residual ``miss``, (tasks, shots, out)."""
        miss = miss * self.there
        weights = torch.cholesky_solve(miss.detach(), self.factor)
        left = miss - self.at(self.back(weights)) - self.noise * weights
        return self.back(weights + torch.cholesky_solve(left, self.factor))


class _PointsWrittenOut:
    """`_Points` for exported programs: shared positions are not merged.

    Args:
        features: Features of each task's points, (tasks, shots, features).
        mask: True for real points, False for padding, (tasks, shots).
        noise: Variance of the noise on a value, (1 or tasks, 1, 1).
    """

    def __init__(self, features: Tensor, mask: Tensor, noise: Tensor) -> None:
        self.there = mask[..., None].to(features.dtype)
        self.rows = features * self.there
        place = torch.arange(mask.shape[1], device=mask.device)
        self.same = place[:, None] == place
        self.without = self.rows @ self.rows.mT
        self.gram = self.without + noise * self.same

    def under(self, noise: Tensor) -> "_PointsWrittenOut":
        """Return the same points under another noise."""
        points = copy(self)
        points.gram = self.without + noise * self.same
        return points

    def at(self, head: Tensor) -> Tensor:
        """Values of a head, (tasks, out, features), at the points, (tasks, shots, out)."""
        return self.rows @ head.mT

    def fit(self, miss: Tensor) -> Tensor:
        """Change of the head that best explains the residual ``miss``, (tasks, shots, out)."""
        return solve_symmetric(self.gram, miss * self.there).mT @ self.rows


def _variance(log_noise: Tensor) -> Tensor:
    """Variance of the noise, (tasks, 1) to (tasks, 1, 1)."""
    return log_noise.exp()[..., None] + 1e-5


def _gram(features: Tensor, number: Tensor) -> Tensor:
    """Gram matrix of the features of each task's points, (tasks, shots, shots)."""
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
    """Distinct positions in (tasks, shots, x_dim), and the number of each point's position."""
    flat = x.flatten(0, 1).contiguous()
    if flat.dtype == torch.float32 and flat.shape[1] == 2:
        # One 64-bit number sorts much faster than two of 32 bits.
        keys, number = flat.view(torch.int64)[:, 0].unique(return_inverse=True)
        positions = keys[:, None].view(torch.float32)
    else:
        positions, number = flat.unique(dim=0, return_inverse=True)
    return positions, number.view(x.shape[:2])
