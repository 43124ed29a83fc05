"""Function completion by kernel regression: a weighted mean of known functions on one grid."""

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from weightloom.base import apply_per_task
from weightloom.errors import ConfigError, ShapeError
from weightloom.hypernets.head import full_precision
from weightloom.learners.interpolation import Picture
from weightloom.learners.learner import Learner, Support
from weightloom.params import Params
from weightloom.tasks import Tasks

HALVINGS = 14
"""Halvings of the largest temperature that `tuned_kernel` tries, from the variance of functions."""


class GridFunction(nn.Module):
    """Function known at fixed positions; elsewhere it has the value of the nearest one.

    Args:
        positions: Positions of the values, (positions, x_dim).
        y_dim: Width of a value.

    Example:
        >>> GridFunction(torch.rand(7, 2), 1)(torch.rand(5, 2)).shape
        torch.Size([5, 1])
    """

    positions: Tensor

    def __init__(self, positions: Tensor, y_dim: int = 1) -> None:
        super().__init__()
        self.register_buffer("positions", positions)
        self.values = nn.Parameter(torch.zeros(len(positions), y_dim), requires_grad=False)

    def place(self, x: Tensor) -> Tensor:
        """Number of the nearest position, (..., x_dim) to (...)."""
        return (x[..., None, :] - self.positions).square().sum(-1).argmin(-1)

    def params(self, values: Tensor) -> Params:
        """Params of functions from their values at the positions, (tasks, positions, y_dim)."""
        return Params({"values": values})

    def forward(self, x: Tensor) -> Tensor:
        """Values of the function, (batch, x_dim) to (batch, y_dim)."""
        return self.values[self.place(x)]


class KernelRegression(Learner):
    """Nadaraya-Watson regression over known functions, by distance at the observed points.

    A new function is the mean of the known ones, weighted by exp(-d / (2 temperature)), where d is
    the mean squared distance to the observed values. Where the function was observed, the result
    has the observed value (the mean of several). Near temperature 0 it is the nearest known
    function, at an infinite one their mean. At temperature v / n it is the posterior mean from n
    values with Gaussian noise of variance v, if the function is one of the known ones.

    Args:
        base: Positions of the grid: a `GridFunction`, or a `Picture` for images.
        functions: Values of the known functions, (functions, positions, y_dim).
        temperature: One for any number of observed points; or one per number of points, as in
            ``{40: 0.003, 160: 0.002}``: in between it is interpolated on logarithmic scales, beyond
            it is constant.

    Raises:
        ShapeError: If ``functions`` has another shape.
        ConfigError: If a temperature or a number of points is not above 0.

    Example:
        >>> line = GridFunction(torch.tensor([[0.0], [1.0]]))
        >>> known = torch.tensor([[0.0, 5.0], [1.0, 7.0]])[..., None]  # two functions, two points
        >>> support = Support.of(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 0.5))
        >>> learner = KernelRegression(line, known, temperature=0.1)
        >>> learner.adapt(support)["values"].flatten().tolist()
        [0.5, 6.0]

    Source:
        Nadaraya, "On estimating regression" (1964), and Watson, "Smooth regression analysis"
        (1964), with functions in the place of numbers; that observed values are kept is new here.
    """

    base: GridFunction | Picture
    trained = False
    functions: Tensor
    counts: Tensor
    temperatures: Tensor

    def __init__(
        self,
        base: GridFunction | Picture,
        functions: Tensor,
        temperature: float | Mapping[int, float],
    ) -> None:
        super().__init__()
        positions, _, y_dim = _sizes(base)
        if functions.shape[1:] != (positions, y_dim) or not len(functions):
            raise ShapeError(
                f"`functions` has shape {tuple(functions.shape)}. It holds the values of known "
                f"functions at the {positions} positions of `base`, {y_dim} wide. Pass `functions` "
                f"as (functions, {positions}, {y_dim}), one function at least."
            )
        known = temperature if isinstance(temperature, Mapping) else {1: temperature}
        if not known or not all(count > 0 and value > 0 for count, value in known.items()):
            raise ConfigError(
                f"`temperature={temperature}`. It divides a squared distance, and is looked up by "
                "the number of observed points. Pass numbers above 0."
            )
        self.base = base
        self.register_buffer("functions", functions)
        counts = sorted(known)
        self.register_buffer("counts", torch.tensor(counts, dtype=torch.float64))
        values = torch.tensor([known[count] for count in counts], dtype=torch.float64)
        self.register_buffer("temperatures", values)

    def adapt(self, support: Support) -> Params:
        """Weight the known functions, and put the observed values back.

        Raises:
            ShapeError: If positions or values have another width than those of the grid.
        """
        self._check(support)
        with full_precision(support.x):
            count, total = self._observed(support)
            temperature = self.temperature(count.sum(1).clamp(min=1))
            values = self._completed(count, total, self._gaps(count, total), temperature)
        return self.base.params(values.to(support.y.dtype))

    def temperature(self, points: Tensor) -> Tensor:
        """Temperature by number of observed points, of the same shape."""
        place, known = points.to(self.counts.dtype).log(), self.counts.log()
        left = (torch.searchsorted(known, place) - 1).clamp(0, max(len(known) - 2, 0))
        right = (left + 1).clamp(max=len(known) - 1)
        width = (known[right] - known[left]).clamp(min=1e-9)
        share = ((place - known[left]) / width).clamp(0, 1)
        first, last = self.temperatures[left], self.temperatures[right]
        return (first ** (1 - share) * last**share).to(points.dtype)

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Evaluate each task's function."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs

    def _observed(self, support: Support) -> tuple[Tensor, Tensor]:
        """Number of observed values at each position, and their sums, (tasks, positions, ...)."""
        known = self.functions
        there = support.mask[..., None].to(known.dtype)
        place = self.base.place(support.x)[..., None]
        count = known.new_zeros(len(place), known.shape[1], 1).scatter_add(1, place, there)
        values = support.y.to(known.dtype).masked_fill(~support.mask[..., None], 0.0)
        total = known.new_zeros(len(place), *known.shape[1:])
        return count, total.scatter_add(1, place.expand_as(values), values)

    def _gaps(self, count: Tensor, total: Tensor) -> Tensor:
        """Mean squared distance of each function, less that of the nearest, (tasks, functions)."""
        flat = self.functions.flatten(1)
        # The square of the observed values is left out: it is equal for all functions.
        distance = count.expand_as(total).flatten(1) @ flat.square().mT
        distance -= 2 * total.flatten(1) @ flat.mT
        return (distance - distance.amin(1, keepdim=True)) / count.sum(1).clamp(min=1)

    def _completed(
        self, count: Tensor, total: Tensor, gaps: Tensor, temperature: Tensor | float
    ) -> Tensor:
        """Weighted mean of the functions, or the observed value, at each position."""
        weights = torch.softmax(-gaps / (2 * temperature), dim=1)
        mean = (weights @ self.functions.flatten(1)).view_as(total)
        return torch.where(count > 0, total / count.clamp(min=1), mean)

    def _check(self, support: Support) -> None:
        given, fits = (support.x.shape[2], support.y.shape[2]), _sizes(self.base)[1:]
        if given != fits:
            raise ShapeError(
                f"`support.x` is {given[0]} wide and `support.y` {given[1]}. The grid has "
                f"positions of width {fits[0]} and values of width {fits[1]}. Pass tasks on that "
                "grid, such as `FunctionTasks` draws."
            )


def _sizes(base: GridFunction | Picture) -> tuple[int, int, int]:
    """Number of positions of a grid, width of a position, width of a value."""
    if isinstance(base, Picture):
        return base.pixels.numel(), 2, 1
    return *base.positions.shape, base.values.shape[1]


def shared_grid(tasks: Tasks) -> tuple[Tensor, Tensor] | None:
    """Return positions and values if the points of every task are at the same positions.

    Support and query points count alike; one position may hold several points of a task, of which
    one is kept. Positions are (positions, x_dim), values (tasks, positions, out). None for other
    tasks.

    Example:
        >>> x = torch.tensor([[[1.0], [2.0]], [[2.0], [1.0]]])
        >>> [part.tolist() for part in shared_grid(Tasks.of(x[:, :1], 3 * x[:, :1], x, 3 * x))]
        [[[1.0], [2.0]], [[[3.0], [6.0]], [[3.0], [6.0]]]]
    """
    sides = (tasks.support, tasks.query)
    x, y, mask = (torch.cat(parts, 1) for parts in zip(*sides, strict=True))
    positions, place = x[mask].unique(dim=0, return_inverse=True)
    task = torch.arange(len(x), device=x.device)[:, None].expand_as(mask)[mask]
    cell, cells = task * len(positions) + place, len(x) * len(positions)
    if len(cell.unique()) < cells:
        return None
    values = y.new_zeros(cells, y.shape[2])
    values[cell] = y[mask]
    return positions, values.unflatten(0, (len(x), len(positions)))


@torch.no_grad()
def tuned_kernel(
    base: GridFunction | Picture, functions: Tensor, drawn: Sequence[Tasks]
) -> KernelRegression:
    """Build a `KernelRegression` with the best temperature for each of some batches of tasks.

    Tried are the mean variance of the functions at a position, divided by powers of four up to
    16,384; then values around the best, by factors of 2, 1.41 and 1.19.

    Args:
        base: Positions of the grid.
        functions: Values of the known functions, (functions, positions, y_dim).
        drawn: Validation tasks, a batch per number of support points. Their largest number of
            points, masked ones left out, is the key of the temperature.
    """
    largest = max(functions.var(0, correction=0).mean().item(), 1e-12)
    learner = KernelRegression(base, functions, largest)
    chosen: dict[int, float] = {}
    for tasks in drawn:
        best = _best_halvings(learner, tasks, largest)
        chosen[int(tasks.support_mask.sum(1).max())] = largest * 2.0**-best
    return KernelRegression(base, functions, chosen)


def _best_halvings(learner: KernelRegression, tasks: Tasks, largest: float) -> float:
    """Return the number of halvings of ``largest`` with the smallest loss on the queries."""
    count, total = learner._observed(tasks.support)
    gaps = learner._gaps(count, total)

    @cache
    def error(halvings: float) -> float:
        values = learner._completed(count, total, gaps, largest * 2.0**-halvings)
        outputs = learner.predict(learner.base.params(values), tasks.query_x)
        return learner.loss_of(outputs, tasks.query).mean().item()

    best = min(map(float, range(0, HALVINGS + 1, 2)), key=error)
    for step in (1.0, 0.5, 0.25):
        best = min((best, best - step, best + step), key=error)
    return best


def kernel_of_images(images: Tensor, drawn: Sequence[Tasks]) -> KernelRegression:
    """Build a `KernelRegression` over images, with temperatures by `tuned_kernel`.

    Args:
        images: Known images, (images, height, width): uint8 in 0 to 255, or float.
        drawn: Validation tasks, such as `FunctionTasks` draws, a batch per number of pixels.
    """
    values = images.float() / 255 if images.dtype == torch.uint8 else images
    return tuned_kernel(Picture(*images.shape[1:]), values.flatten(1)[..., None], drawn)
