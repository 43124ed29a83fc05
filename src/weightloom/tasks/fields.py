"""Fields of physics: solutions of partial differential equations on a circle, as functions.

In:   a family by name, a ``torch.Generator``.
Out:  `Fields`: the inputs of each equation (coefficients and initial state) and its solution.
Knows nothing of networks. Start at `make_fields`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from weightloom.errors import ConfigError, ShapeError, nearest

MODES = 4
"""Fourier modes of an initial state."""
COEFFICIENTS = 2
"""Coefficients of an equation: its speed, and the logarithm of its viscosity."""
SIZE = 1 / math.sqrt(sum(1 / mode**2 for mode in range(1, MODES + 1)))
"""Standard deviation of the first mode: the mean square of an initial state is 1 on average."""
CHUNK = 500
"""Solutions computed at once: few enough to stay in a processor's cache."""


class Fields(NamedTuple):
    """Solutions on one grid, with the inputs of each equation."""

    inputs: Tensor
    """Speed, logarithm of the viscosity, four cosine and four sine coefficients of the initial
    state, (fields, 10), float32."""
    values: Tensor
    """u(x, t) of each solution, (fields, times, points), float32."""
    x: Tensor
    """Positions on the circle, (points,), from 0 to 2π without the end."""
    t: Tensor
    """Times, (times,), from 0 to the end."""


class FieldPoints(NamedTuple):
    """Points of some solutions, each turned by a random angle."""

    inputs: Tensor
    """Inputs of the turned equations, (fields, 10)."""
    at: Tensor
    """Positions and times, (fields, points, 2)."""
    values: Tensor
    """u(x, t) there, (fields, points, 1)."""


@dataclass(frozen=True)
class FieldFamily(ABC):
    """Equations of one form on the circle 0 <= x < 2π; each has coefficients and an initial state.

    The inputs of an equation are ten numbers: the speed, uniform in its range; the logarithm of
    the viscosity, uniform in its own; and the coefficients a and b of the initial state
    u(x, 0) = Σ a_k cos kx + b_k sin kx, k from 1 to 4, normal with a standard deviation
    proportional to 1/k, so that the mean square of u(x, 0) is 1 on average.

    An equation of one's own inherits from it and writes `spectrum`.
    """

    speed: tuple[float, float] = (0.5, 1.5)
    """Range of the speed coefficient."""
    viscosity: tuple[float, float] = (0.03, 0.3)
    """Range of the viscosity."""
    end: float = 1.0
    """Time at which a solution ends."""

    def __post_init__(self) -> None:
        for name in ("speed", "viscosity"):
            low, high = getattr(self, name)
            if not 0 < low < high:
                raise ConfigError(
                    f"`{name}=({low}, {high})`. Both coefficients are positive and vary. Pass a "
                    f"smaller and a larger number above 0, as in `{name}=(0.5, 1.5)`."
                )

    @property
    def condition_dim(self) -> int:
        """Numbers that describe one equation."""
        return COEFFICIENTS + 2 * MODES

    @abstractmethod
    def spectrum(self, inputs: Tensor, points: int, steps: int, times: int) -> Tensor:
        """Return the Fourier coefficients of the solutions, as ``torch.fft.rfft`` orders them.

        Args:
            inputs: Inputs, (fields, 10), float64.
            points: Points of the circle's grid.
            steps: Time steps of equal length until `end`; a multiple of ``times - 1``.
            times: Times of the answer, from 0 to `end`.

        Returns:
            Complex coefficients, (fields, times, points / 2 + 1).
        """

    def draw(self, count: int, generator: torch.Generator, *, beyond: bool = False) -> Tensor:
        """Draw inputs.

        Args:
            count: Number of equations.
            generator: Source of randomness.
            beyond: Draw both coefficients outside of their ranges: speeds from half the smallest
                to the smallest or from the largest to 4/3 of it, viscosities from half the
                smallest or to double the largest. The initial states are drawn as always.

        Returns:
            Inputs, (count, 10), float64.

        Raises:
            ConfigError: If ``count`` is below 1.
        """
        if count < 1:
            raise ConfigError(
                f"`count={count}`. At least one equation is drawn. Pass a number from 1."
            )
        share = torch.rand(2, count, generator=generator, dtype=torch.float64)
        (slow, fast), (thin, thick) = self.speed, self.viscosity
        if beyond:
            speed = _outside(share[0], slow / 2, slow, fast, fast * 4 / 3)
            logs = [math.log(edge) for edge in (thin / 2, thin, thick, 2 * thick)]
            viscosity = _outside(share[1], *logs)
        else:
            speed = slow + (fast - slow) * share[0]
            viscosity = math.log(thin) + math.log(thick / thin) * share[1]
        state = torch.randn(count, 2 * MODES, generator=generator, dtype=torch.float64)
        return torch.cat([speed[:, None], viscosity[:, None], state * _sizes()], 1)

    def normalised(self, inputs: Tensor) -> Tensor:
        """Return inputs as networks read them: mean 0 and variance 1 over the family.

        Args:
            inputs: Raw inputs, (fields, 10).
        """
        middle, scale = self._middle_and_scale(inputs)
        return (inputs - middle) / scale

    def from_normalised(self, read: Tensor) -> Tensor:
        """Return raw inputs from normalised ones, (fields, 10); the coefficients' ends are ±√3."""
        middle, scale = self._middle_and_scale(read)
        return middle + scale * read

    def _middle_and_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        ranges = self.speed, (math.log(self.viscosity[0]), math.log(self.viscosity[1]))
        middle = [(low + high) / 2 for low, high in ranges] + [0.0] * 2 * MODES
        spread = [(high - low) / math.sqrt(12) for low, high in ranges]
        return like.new_tensor(middle), like.new_tensor(spread + _sizes().tolist())

    def initial(self, inputs: Tensor, x: Tensor) -> Tensor:
        """Return the initial states, (fields, points).

        Args:
            inputs: Inputs, (fields, 10).
            x: Positions, (points,), or each field's own, (fields, points).
        """
        angles = x[..., None] * torch.arange(1, MODES + 1, device=x.device)
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        return (waves * inputs[:, None, COEFFICIENTS:]).sum(-1)

    def solve(
        self, inputs: Tensor, *, points: int = 256, steps: int = 192, times: int = 33
    ) -> Tensor:
        """Solve the equations; differentiable by the inputs.

        Args:
            inputs: Inputs, (fields, 10).
            points: Points of the circle's grid.
            steps: Time steps.
            times: Times of the answer, from 0 to `end`.

        Returns:
            u(x, t), (fields, times, points), float64.

        Raises:
            ConfigError: If ``steps`` is no multiple of ``times - 1``, or the grid is too coarse
                for the initial states.
        """
        if times < 2 or steps < 1 or steps % (times - 1):
            raise ConfigError(
                f"`steps={steps}` with `times={times}`. A solution is kept at equal distances, so "
                f"the steps are a multiple of `times - 1`. Pass `steps={6 * max(times - 1, 1)}`, "
                "with `times` from 2."
            )
        if points < 3 * MODES + 2 or points % 2:
            raise ConfigError(
                f"`points={points}`. The grid holds the {MODES} modes of an initial state and "
                "their products, and an even number of points. Pass an even number from "
                f"{3 * MODES + 2}, as in `points=256`."
            )
        _check_inputs(inputs)
        return torch.fft.irfft(self.spectrum(inputs.double(), points, steps, times), n=points)


@dataclass(frozen=True)
class BurgersFields(FieldFamily):
    """Burgers' equation u_t + b u u_x = ν u_xx: fronts steepen, and the viscosity holds them.

    Solved in Fourier space by Runge-Kutta steps of order 4 with an integrating factor for the
    viscous part, and without the aliased third of the modes.

    Source:
        Burgers, "A mathematical model illustrating the theory of turbulence" (1948); Trefethen,
        "Spectral Methods in MATLAB" (2000), chapter 10; Orszag, "On the elimination of aliasing in
        finite-difference schemes by filtering high-wavenumber components" (1971).
    """

    def spectrum(self, inputs: Tensor, points: int, steps: int, times: int) -> Tensor:
        """Return the Fourier coefficients of the solutions; see `FieldFamily.spectrum`."""
        wave = _waves(points, inputs)
        step = self.end / steps
        half = torch.exp(-inputs[:, 1:2].exp() * wave**2 * step / 2)
        whole = half**2
        slope = -0.5j * step * inputs[:, :1] * wave * (wave < points / 3)

        def change(spectrum: Tensor) -> Tensor:
            return slope * torch.fft.rfft(torch.fft.irfft(spectrum, n=points) ** 2)

        now = _start(inputs, points)
        kept = [now]
        for number in range(1, steps + 1):
            first = change(now)
            second = change(half * (now + first / 2))
            third = change(half * now + second / 2)
            fourth = change(whole * now + half * third)
            now = whole * now + (whole * first + 2 * half * (second + third) + fourth) / 6
            if number % (steps // (times - 1)) == 0:
                kept.append(now)
        return torch.stack(kept, 1)


@dataclass(frozen=True)
class AdvectionDiffusionFields(FieldFamily):
    """u_t + c u_x = κ u_xx, exact in Fourier space: each mode turns and decays."""

    def spectrum(self, inputs: Tensor, points: int, steps: int, times: int) -> Tensor:
        """Return the Fourier coefficients of the solutions; see `FieldFamily.spectrum`."""
        wave = _waves(points, inputs)
        rate = -inputs[:, 1:2].exp() * wave**2 - 1j * inputs[:, :1] * wave
        t = torch.linspace(0, self.end, times, dtype=wave.dtype, device=wave.device)
        return _start(inputs, points)[:, None] * torch.exp(rate[:, None] * t[:, None])


FAMILIES: dict[str, FieldFamily] = {
    "burgers": BurgersFields(),
    "burgers-mild": BurgersFields(viscosity=(0.1, 0.3)),
    "advection-diffusion": AdvectionDiffusionFields(),
}
"""Families by name."""


def field_family(name: str) -> FieldFamily:
    """Return a family of equations by name.

    ``burgers``: viscosity from .03 to .3; ``burgers-mild``: from .1 to .3; ``advection-diffusion``:
    from .03 to .3. Speeds from .5 to 1.5, times from 0 to 1.

    Raises:
        ConfigError: If there is no family of that name.

    Example:
        >>> field_family("burgers").condition_dim
        10
    """
    if name not in FAMILIES:
        raise ConfigError(
            f"`{name}` is no family of fields. {nearest(name, FAMILIES)} For an equation of your "
            "own, inherit from `weightloom.tasks.FieldFamily`."
        )
    return FAMILIES[name]


def make_fields(
    family: FieldFamily,
    count: int,
    generator: torch.Generator,
    *,
    beyond: bool = False,
    times: int = 33,
    points: int = 64,
) -> Fields:
    """Draw equations and solve them on a grid of 256 points, with ``beyond`` of 512.

    The smallest viscosities of ``beyond`` need the finer grid. The mean relative error of the
    values is then below 0.01 % of `burgers` and 0.1 % beyond its range.

    Args:
        family: Form of the equations and ranges of their coefficients.
        count: Number of equations.
        generator: Source of randomness.
        beyond: Draw the coefficients outside of their ranges: `FieldFamily.draw`.
        times: Times that are kept, from 0 to the end.
        points: Points that are kept, a divisor of 256.

    Raises:
        ConfigError: If ``count`` is below 1, ``times`` below 2, or ``points`` does not divide 256.

    Example:
        >>> fields = make_fields(field_family("burgers"), 3, torch.Generator().manual_seed(0))
        >>> fields.inputs.shape, fields.values.shape
        (torch.Size([3, 10]), torch.Size([3, 33, 64]))
    """
    if points < 1 or 256 % points:
        raise ConfigError(
            f"`points={points}`. The equations are solved on 256 points, of which every n-th is "
            "kept. Pass a divisor, as in `points=64`."
        )
    fine = 512 if beyond else 256
    inputs = family.draw(count, generator, beyond=beyond)
    steps = max(times - 1, 1) * math.ceil(192 / max(times - 1, 1))
    with torch.no_grad():
        values = [
            family.solve(part, points=fine, steps=steps, times=times)[..., :: fine // points]
            .float()
            .contiguous()
            for part in inputs.split(CHUNK)
        ]
    x = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    t = torch.linspace(0, family.end, times, dtype=torch.float64)
    return Fields(inputs.float(), torch.cat(values), x.float(), t.float())


def rolled(inputs: Tensor, shift: Tensor) -> Tensor:
    """Return the inputs of the equations whose solutions are u(x - shift, t): all turned.

    Exact for any shift, because the equations are the same everywhere on the circle.

    Args:
        inputs: Inputs, (fields, 10).
        shift: Angle of each field, (fields,).

    Raises:
        ShapeError: If there is not one shift for each row of ``inputs``.
    """
    _check_inputs(inputs)
    if shift.shape != inputs.shape[:1]:
        raise ShapeError(
            f"`shift` has the shape {tuple(shift.shape)} but `inputs` holds {len(inputs)} fields. "
            f"Each field turns by its own angle. Pass a tensor of {len(inputs)} angles."
        )
    angle = shift[:, None] * torch.arange(1, MODES + 1, device=inputs.device)
    cos, sin = angle.cos().to(inputs), angle.sin().to(inputs)
    start, a, b = inputs.tensor_split([COEFFICIENTS, COEFFICIENTS + MODES], 1)
    return torch.cat([start, a * cos - b * sin, a * sin + b * cos], 1)


def draw_points(
    fields: Fields, which: Tensor, count: int, generator: torch.Generator, *, roll: bool = True
) -> FieldPoints:
    """Draw points of the grid at random, and turn each field by a random angle.

    Args:
        fields: Solutions on a grid.
        which: Numbers of the fields, (fields,).
        count: Points of each field.
        generator: Source of randomness.
        roll: Turn the fields: `rolled`. False: as they are.
    """
    times, points = fields.values.shape[1:]
    chosen = torch.randint(times * points, (len(which), count), generator=generator)
    shift = torch.zeros(len(which))
    if roll:
        shift = 2 * math.pi * torch.rand(len(which), generator=generator)
    values = fields.values[which].flatten(1).gather(1, chosen)
    x = (fields.x[chosen % points] + shift[:, None]) % (2 * math.pi)
    at = torch.stack([x, fields.t[chosen // points]], -1)
    return FieldPoints(rolled(fields.inputs[which], shift), at, values[..., None])


def relative_error(predicted: Tensor, values: Tensor) -> Tensor:
    """Return |predicted - values| / |values| of each field, over its whole grid, (fields,).

    Args:
        predicted: (fields, times, points), or any shape that starts with the fields.
        values: True values, of the same shape.
    """
    norm = torch.linalg.vector_norm
    return norm((predicted - values).flatten(1), dim=1) / norm(values.flatten(1), dim=1)


def _check_inputs(inputs: Tensor) -> None:
    if inputs.ndim != 2 or inputs.shape[1] != COEFFICIENTS + 2 * MODES:
        raise ShapeError(
            f"`inputs` has the shape {tuple(inputs.shape)}. Each row describes one equation by "
            f"{COEFFICIENTS} coefficients and {2 * MODES} numbers of its initial state. Pass "
            f"(fields, {COEFFICIENTS + 2 * MODES}), as `FieldFamily.draw` returns."
        )


def _outside(share: Tensor, least: float, low: float, high: float, most: float) -> Tensor:
    """Map uniform numbers onto ``least`` to ``low`` and ``high`` to ``most``."""
    below = low - least
    place = share * (below + most - high)
    return torch.where(place < below, least + place, high + place - below)


def _sizes() -> Tensor:
    size = SIZE / torch.arange(1, MODES + 1, dtype=torch.float64)
    return torch.cat([size, size])


def _waves(points: int, inputs: Tensor) -> Tensor:
    return torch.arange(points // 2 + 1, dtype=inputs.dtype, device=inputs.device)


def _start(inputs: Tensor, points: int) -> Tensor:
    _, a, b = inputs.tensor_split([COEFFICIENTS, COEFFICIENTS + MODES], 1)
    modes = torch.complex(a, -b) * (points / 2)
    return torch.nn.functional.pad(modes, (1, points // 2 - MODES))
