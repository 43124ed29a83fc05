"""Surrogates of a family of equations that train nothing: known solutions, interpolated.

In:   conditions of known solutions, (fields, condition_dim), and their values on a grid.
Out:  `GridField`, from a condition and positions to values.
Knows nothing of training. Start at `fit_kernel`; `grid_of` takes the symmetries out.
"""

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor, nn

from weightloom.apps.fields.symmetry import canonical
from weightloom.errors import MissingExtraError, ShapeError
from weightloom.tasks.fields import FieldFamily, Fields

KEPT = 1 - 1e-8
"""Share of the variance that the principal components keep: their own error is 0.01 %."""
SEARCHED = 1000
"""Known solutions among which settings are searched; the fit is to all."""
FACTORS = (2.0, 2.0, 1.4)
"""Factor of a length in each round of the search."""
CHUNK = 16
"""Fields interpolated at once, so that the memory does not grow with their number."""


class KnownFields(NamedTuple):
    """Solutions on one grid, by their conditions."""

    condition: Tensor
    """(fields, condition_dim)."""
    values: Tensor
    """(fields, times, points)."""


class Components(nn.Module):
    """Principal components of known solutions on one grid.

    Args:
        values: Known solutions, (fields, times, points).
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.grid = values.shape[1:]
        flat = values.double().flatten(1)
        self.register_buffer("mean", flat.mean(0))
        flat = flat - self.mean
        size, axes = torch.linalg.eigh(flat.T @ flat)
        share = size.flip(0).clamp(min=0).cumsum(0) / size.clamp(min=0).sum()
        kept = int((share < KEPT).sum()) + 1
        self.register_buffer("basis", axes.flip(1)[:, :kept].contiguous())

    def scores(self, values: Tensor) -> Tensor:
        """Coordinates of solutions, (fields, components)."""
        return (values.double().flatten(1) - self.mean) @ self.basis

    def forward(self, scores: Tensor) -> Tensor:
        """Solutions from coordinates, (fields, times, points)."""
        return (scores @ self.basis.T + self.mean).unflatten(1, self.grid)


class RivalSettings(NamedTuple):
    """Settings of both methods; each reads its own."""

    lengths: Tensor
    """Unit of each input, (condition_dim,)."""
    smoothness: float = 1.5
    """Order of the Matérn kernel: 1.5, 2.5 or infinity, a Gaussian."""
    ridge: float = 1e-7
    """Number added to the kernel's diagonal, which is 1."""
    neighbours: int = 48
    """Nearest solutions to interpolate."""


class KernelScores(nn.Module):
    """Kernel ridge regression. The kernel is a Matérn kernel, each input in its own unit.

    Args:
        condition: Conditions of known solutions, (fields, condition_dim).
        scores: Their coordinates, (fields, components).
        settings: Lengths, smoothness and ridge.
    """

    centres: Tensor
    lengths: Tensor
    weights: Tensor

    def __init__(self, condition: Tensor, scores: Tensor, settings: RivalSettings) -> None:
        super().__init__()
        self.smoothness = settings.smoothness
        self.register_buffer("lengths", settings.lengths)
        self.register_buffer("centres", condition.double() / settings.lengths)
        kernel = matern(_distances(self.centres, self.centres), self.smoothness)
        self.register_buffer("weights", _solved(kernel, scores, settings.ridge))

    def forward(self, condition: Tensor) -> Tensor:
        """Predicted scores, (fields, components); differentiable by the condition."""
        distance = _distances(condition.double() / self.lengths, self.centres)
        return matern(distance, self.smoothness) @ self.weights


class NearestScores(nn.Module):
    """Interpolation between the nearest known solutions: radial cubes and a linear function.

    Args:
        condition: Conditions of known solutions, (fields, condition_dim).
        scores: Their coordinates, (fields, components).
        settings: Lengths, which say how near a solution is, and neighbours.
    """

    lengths: Tensor

    def __init__(self, condition: Tensor, scores: Tensor, settings: RivalSettings) -> None:
        super().__init__()
        try:
            rule = import_module("scipy.interpolate").RBFInterpolator
        except ImportError as error:
            raise MissingExtraError(
                "`nearest` needs scipy, which is not installed. Its interpolation is scipy's. "
                "Type `pip install 'weightloom[digits]'`."
            ) from error
        self.register_buffer("lengths", settings.lengths)
        # Linear functions need one solution more than inputs, also where fewer are asked for.
        least = min(condition.shape[1] + 1, len(condition))
        self.rule = rule(
            (condition.double() / settings.lengths).numpy(),
            scores.numpy(),
            neighbors=max(least, min(settings.neighbours, len(condition))),
            kernel="cubic",
        )

    def forward(self, condition: Tensor) -> Tensor:
        """Predicted scores, (fields, components); not differentiable."""
        at = (condition.detach().double() / self.lengths).numpy()
        found: Tensor = torch.from_numpy(self.rule(at))
        return found


class GridField(nn.Module):
    """Surrogate that predicts whole solutions on the grid of the known ones.

    Args:
        predictor: Condition to coordinates of principal components.
        components: Principal components.
        end: Time at which solutions end.
    """

    def __init__(self, predictor: nn.Module, components: Components, end: float) -> None:
        super().__init__()
        self.predictor, self.components, self.end = predictor, components, end

    def on_grid(self, condition: Tensor) -> Tensor:
        """Predict solutions on the grid of the known ones, (fields, times, points), float64."""
        solutions: Tensor = self.components(self.predictor(condition))
        return solutions

    def forward(self, condition: Tensor, at: Tensor) -> Tensor:
        """Values of fields, (fields, points): `interpolated` from the grid.

        Args:
            condition: (fields, condition_dim).
            at: Positions and times, (fields, points, 2).
        """
        parts = zip(condition.split(CHUNK), at.split(CHUNK), strict=True)
        return torch.cat(
            [interpolated(self.on_grid(some), where, self.end) for some, where in parts]
        ).to(at)


Method = type[KernelScores] | type[NearestScores]
Move = Callable[[RivalSettings, float], RivalSettings]


def fit_kernel(known: KnownFields, validation: KnownFields, *, end: float = 1.0) -> GridField:
    """Fit kernel ridge regression from conditions to principal components of solutions.

    The length of each input, the smoothness of the kernel and the ridge are searched, among 1,000
    of the known solutions, for the least validation error. Then the fit is to all.

    Args:
        known: Known solutions.
        validation: Solutions for the search, on the same grid.
        end: Time at which solutions end.

    Raises:
        ShapeError: If the shapes disagree.

    Source:
        Batlle et al., "Kernel methods are competitive for operator learning" (2024), section 2;
        here with one length per input.
    """
    start = RivalSettings(torch.full((known.condition.shape[-1],), 6.0, dtype=torch.float64))
    moves = [
        *[_of_order(order) for order in (2.5, math.inf)],
        *_length_moves(known.condition.shape[-1]),
        *[_times_ridge(factor) for factor in (0.1, 10.0)],
        _of_order(1.5),
    ]
    return _fit(KernelScores, known, validation, start, moves, end)


def fit_nearest(known: KnownFields, validation: KnownFields, *, end: float = 1.0) -> GridField:
    """Fit cubic interpolation between the nearest known solutions.

    The number of neighbours and the unit of each input are searched as in `fit_kernel`.

    Args:
        known: Known solutions.
        validation: Solutions for the search, on the same grid.
        end: Time at which solutions end.

    Raises:
        ShapeError: If the shapes disagree.
        MissingExtraError: If scipy is not installed.

    Source:
        Fasshauer, "Meshfree Approximation Methods with MATLAB" (2007), chapter 8.
    """
    start = RivalSettings(torch.full((known.condition.shape[-1],), 6.0, dtype=torch.float64))
    moves = [
        *[_of_neighbours(number) for number in (24, 96, 192)],
        *_length_moves(known.condition.shape[-1]),
    ]
    return _fit(NearestScores, known, validation, start, moves, end)


def grid_of(family: FieldFamily, fields: Fields) -> KnownFields:
    """Return the representatives of solutions: their conditions, and their values on the grid.

    Args:
        family: Form of the equations.
        fields: Solutions.
    """
    its = canonical(family, fields.inputs.double())
    values = turned(fields.values.double(), its.shift, its.sign) / its.scale[:, None, None]
    return KnownFields(its.condition, values)


def turned(values: Tensor, shift: Tensor, sign: Tensor) -> Tensor:
    """Turn fields on a grid of the circle: v(x) = u(shift + sign · x), by their Fourier modes.

    With ``-sign * shift`` and the same ``sign`` it turns them back.

    Args:
        values: u, (fields, times, points).
        shift: Angle, (fields,).
        sign: 1, or -1 for the mirror image, (fields,).
    """
    wave = torch.arange(values.shape[-1] // 2 + 1, device=values.device)
    spectrum = torch.fft.rfft(values) * torch.exp(1j * wave * shift[:, None, None])
    spectrum = torch.where(sign[:, None, None] < 0, spectrum.conj(), spectrum)
    return torch.fft.irfft(spectrum, n=values.shape[-1])


def matern(distance: Tensor, smoothness: float) -> Tensor:
    """Matérn kernel of distances in units of its length.

    Args:
        distance: Distances from 0.
        smoothness: 1.5, 2.5 or infinity, a Gaussian.

    Source:
        Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), section 4.2.1.
    """
    if smoothness == math.inf:
        return torch.exp(-distance.square() / 2)
    scaled = math.sqrt(2 * smoothness) * distance
    shape = 1 + scaled + (scaled.square() / 3 if smoothness == 2.5 else 0)
    return shape * torch.exp(-scaled)


def interpolated(values: Tensor, at: Tensor, end: float = 1.0) -> Tensor:
    """Interpolate fields on a grid: trigonometric in x, cubic in t between four nearest times.

    Differentiable by the values and the position.

    Args:
        values: (fields, times, points), at times from 0 to ``end``; at least four.
        at: Positions and times, (fields, points, 2).
        end: Last time of the grid.

    Raises:
        ShapeError: If there are fewer than four times, or other fields in ``at``.

    Returns:
        Values, (fields, points).
    """
    times, points = values.shape[1:]
    if times < 4 or at.shape[0] != values.shape[0]:
        raise ShapeError(
            f"`values` has the shape {tuple(values.shape)}, `at` {tuple(at.shape)}. Both hold the "
            "same fields, and four times are needed for a cubic. Pass values, (fields, times, "
            "points), and positions, (fields, points, 2)."
        )
    x, t = at.to(values).unbind(-1)
    place = t * ((times - 1) / end)
    first = (place.detach().floor().long() - 1).clamp(0, times - 4)
    near = torch.arange(4, device=at.device)
    offset = (place - first)[..., None] - near  # (fields, points, 4)
    weight = torch.stack(
        [
            offset[..., near != own].prod(-1) / math.prod(own - k for k in range(4) if k != own)
            for own in range(4)
        ],
        -1,
    )
    zeros = weight.new_zeros(*weight.shape[:2], times)
    rows = zeros.scatter(-1, first[..., None] + near, weight)  # (fields, points, times)
    spectrum = torch.fft.rfft(values) / points  # (fields, times, modes)
    wave = torch.arange(spectrum.shape[-1], device=at.device)
    # A mode between the mean and the highest stands for two, of either sign.
    double = torch.where((wave > 0) & (2 * wave < points), 2.0, 1.0).to(values)
    angle = wave * x[..., None]
    parts = (angle.cos() * (rows @ spectrum.real), angle.sin() * (rows @ spectrum.imag))
    return ((parts[0] - parts[1]) * double).sum(-1)


def _fit(
    method: Method,
    known: KnownFields,
    validation: KnownFields,
    start: RivalSettings,
    moves: Sequence[Move],
    end: float,
) -> GridField:
    _check(known, validation)
    components = Components(known.values)
    scores = components.scores(known.values)
    wanted = components.scores(validation.values)
    size = torch.linalg.vector_norm(validation.values.double().flatten(1), dim=1)
    some, some_scores = known.condition[:SEARCHED], scores[:SEARCHED]

    def error(settings: RivalSettings) -> float:
        found = method(some, some_scores, settings)(validation.condition)
        return float((torch.linalg.vector_norm(found - wanted, dim=1) / size).mean())

    best = _best(start, moves, error)
    return GridField(method(known.condition, scores, best), components, end)


def _best(
    start: RivalSettings, moves: Sequence[Move], error: Callable[[RivalSettings], float]
) -> RivalSettings:
    """Make each move in turn, and keep those that lower the error."""
    best, least = start, error(start)
    for factor in FACTORS:
        for move in moves:
            tried = move(best, factor)
            found = error(tried)
            if found < least:
                best, least = tried, found
    return best


def _length_moves(inputs: int) -> list[Move]:
    """Make all lengths, then each, larger or smaller by a factor."""
    rows = torch.cat([torch.ones(1, inputs), torch.eye(inputs)]).double()
    return [_times_length(sign * row) for row in rows for sign in (1, -1)]


def _times_length(power: Tensor) -> Move:
    return lambda its, factor: its._replace(lengths=its.lengths * factor**power)


def _times_ridge(by: float) -> Move:
    return lambda its, _: its._replace(ridge=its.ridge * by)


def _of_order(smoothness: float) -> Move:
    return lambda its, _: its._replace(smoothness=smoothness)


def _of_neighbours(number: int) -> Move:
    return lambda its, _: its._replace(neighbours=number)


def _solved(kernel: Tensor, scores: Tensor, ridge: float) -> Tensor:
    """Solve (kernel + ridge) weights = scores; a larger ridge where rounding needs it."""
    while True:
        factor, failed = torch.linalg.cholesky_ex(kernel + ridge * torch.eye(len(kernel)))
        if not failed:
            return torch.cholesky_solve(scores, factor)
        ridge *= 10


def _distances(one: Tensor, other: Tensor) -> Tensor:
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")


def _check(known: KnownFields, validation: KnownFields) -> None:
    for name, its in (("known", known), ("validation", validation)):
        if its.condition.ndim != 2 or its.values.ndim != 3 or len(its.condition) != len(its.values):
            raise ShapeError(
                f"`{name}` has conditions of the shape {tuple(its.condition.shape)} and values of "
                f"the shape {tuple(its.values.shape)}. Each solution has a condition and values on "
                "the grid. Pass (fields, condition_dim) and (fields, times, points)."
            )
    if known.values.shape[1:] != validation.values.shape[1:]:
        raise ShapeError(
            f"`known` lies on a grid of {tuple(known.values.shape[1:])} times and points, "
            f"`validation` on one of {tuple(validation.values.shape[1:])}. Settings are searched "
            "on the grid of the known solutions. Make both by the same `make_fields` options."
        )
