"""Exact symmetries of the equations, taken out: many solutions, one representative.

In:   inputs of equations, as `weightloom.tasks.fields` lays them out.
Out:  `Canonical`: the condition of the representative, and the way there and back.
Knows nothing of networks.

Each solution is u(x, t) = scale · v(sign · (x - shift), t), with v the solution for other inputs.
All trained methods learn v.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from weightloom.tasks.fields import (
    COEFFICIENTS,
    MODES,
    AdvectionDiffusionFields,
    BurgersFields,
    FieldFamily,
    rolled,
)


class Canonical(NamedTuple):
    """Representatives of some equations, and the way to their solutions."""

    condition: Tensor
    """Inputs of the representative as networks read them, (fields, condition_dim); without those
    that are the same for all."""
    shift: Tensor
    """Angle, (fields,)."""
    sign: Tensor
    """1, or -1 for a mirror image, (fields,)."""
    scale: Tensor
    """Factor of the values, (fields,); of any sign."""

    def take(self, which: Tensor) -> "Canonical":
        """Select fields by number."""
        return Canonical(*(each[which] for each in self))

    def inward(self, at: Tensor) -> Tensor:
        """Turn positions and times of u into those of v, (fields, points, 2)."""
        x, t = at.unbind(-1)
        return torch.stack([self.sign[:, None] * (x - self.shift[:, None]), t], -1)

    def outward(self, values: Tensor) -> Tensor:
        """Turn values of v into values of u, (fields, points)."""
        return self.scale[:, None] * values


def canonical(family: FieldFamily, inputs: Tensor) -> Canonical:
    """Take the symmetries out of equations.

    Every equation of a family is the same everywhere on the circle, so the first mode of the
    initial state is turned into a sine. Burgers' equation also keeps its form under u → b u, which
    leaves a speed of 1, and under the mirror image x → -x, u → -u. Advection-diffusion is linear:
    the initial state gets the size 1, and either sign. The flow x → x - c t would also take out
    the speed of advection, and leave the heat equation; it is not used.

    Args:
        family: Form of the equations.
        inputs: Inputs, (fields, 10).
    """
    speed, viscosity, state = inputs.split([1, 1, 2 * MODES], 1)
    shift = torch.atan2(-state[:, 0], state[:, MODES])
    ones = torch.ones_like(shift)
    if isinstance(family, BurgersFields):
        turned = _turned(torch.cat([ones[:, None], viscosity, speed * state], 1), shift)
        sign = _sign_of_second(turned)
        a, b = turned[:, COEFFICIENTS:].split(MODES, 1)
        found = torch.cat([turned[:, :COEFFICIENTS], sign[:, None] * a, b], 1)
        return Canonical(_read(family, found, 1), shift, sign, sign / speed[:, 0])
    if isinstance(family, AdvectionDiffusionFields):
        size = state.square().sum(1, keepdim=True).div(2).sqrt()  # root mean square
        turned = _turned(torch.cat([speed, viscosity, state / size], 1), shift)
        half = _sign_of_second(turned) < 0  # -u is turned by half a circle more
        shift, scale = shift + math.pi * half.to(shift), torch.where(half, -size[:, 0], size[:, 0])
        scaled = torch.cat([speed, viscosity, state / scale[:, None]], 1)
        return Canonical(_read(family, _turned(scaled, shift), 0), shift, ones, scale)
    return Canonical(_read(family, _turned(inputs, shift), 0), shift, ones, ones)


def _turned(inputs: Tensor, shift: Tensor) -> Tensor:
    return rolled(inputs, -shift)


def _sign_of_second(inputs: Tensor) -> Tensor:
    """Sign of the cosine of the second mode; 1 for 0."""
    second = inputs[:, COEFFICIENTS + 1]
    return torch.where(second < 0, -1.0, 1.0).to(inputs)


def _read(family: FieldFamily, inputs: Tensor, first: int) -> Tensor:
    """Normalise inputs, without the cosine of the first mode, and from column ``first`` on."""
    known = family.normalised(inputs)
    return torch.cat([known[:, first:COEFFICIENTS], known[:, COEFFICIENTS + 1 :]], 1)
