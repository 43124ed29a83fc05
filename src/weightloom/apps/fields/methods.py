"""Surrogates of a family of equations: generated coordinate networks, and their trained rivals.

In:   conditions of representatives, (fields, condition_dim), and positions, (fields, points, 2).
Out:  values, (fields, points).
Knows nothing of the data and the table.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from weightloom.apps.fields.symmetry import Canonical, canonical
from weightloom.base import apply_shared, per_task
from weightloom.forms import FiLM, Form, LowRank
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks.coordinates import fourier_features
from weightloom.networks.periodic import PeriodicNet
from weightloom.params import Params
from weightloom.tasks.fields import FieldFamily

BASE = (32, 32, 32)
"""Widths of the generated coordinate network."""
WIDE, RANK = (64, 64, 64), 8
"""Widths of the base whose change has a low rank, and this rank."""
MODULATED = (128, 128, 128)
"""Widths of the base with generated gains and shifts."""
HEAD_SCALE = 0.3
"""Factor of the head's input. Adam moves a head whose input is s times smaller s times as fast."""
LAYERS = 2
"""Hidden layers of the trunk of a hypernetwork."""
PRODUCTS, BRANCH, FEATURES = 128, (128, 128, 128), (128, 128, 128)
"""Width of the product of a DeepONet, and widths of its two networks."""
SHARED_POINTS = 256
"""Points of a step of a DeepONet, the same for all functions: its trunk runs once for all."""
CONCAT = (64, 64, 64, 64)
"""Widths of the network that reads condition and position."""
FINEST_MODE = 4
"""Largest wave number of the first layer of every method."""
TINY = 1e-8
"""Squared relative error below which the gradient of the loss vanishes."""


class FieldBatch(NamedTuple):
    """Points of some solutions, as training reads them: those of the representatives."""

    condition: Tensor
    """(fields, condition_dim)."""
    at: Tensor
    """Positions and times, (fields, points, 2), or the same for all fields, (1, points, 2)."""
    values: Tensor
    """v there, (fields, points)."""
    power: Tensor
    """Mean square of v over its grid, (fields,)."""


class Surrogate(nn.Module):
    """A trained method: the network of the representatives, and the symmetries around it.

    Args:
        family: Form of the equations.
        net: Condition and positions, (fields, condition_dim) and (fields, points, 2), to values,
            (fields, points).
    """

    trained = reads = True

    def __init__(self, family: FieldFamily, net: nn.Module) -> None:
        super().__init__()
        self.family, self.net = family, net

    def forward(self, batch: FieldBatch) -> Tensor:
        """Relative error of each field on its points, (fields,)."""
        values = self.net(batch.condition, batch.at)
        share = (values - batch.values).square().mean(1) / batch.power
        return (share + TINY).sqrt()

    def predict(self, inputs: Tensor, at: Tensor, condition: Tensor | None = None) -> Tensor:
        """Values of solutions, (fields, points).

        Args:
            inputs: Inputs of the equations, (fields, 10).
            at: Positions and times, (fields, points, 2).
            condition: Condition to read in place of that of the inputs, for controls,
                (fields, condition_dim).
        """
        known = canonical(self.family, inputs)
        condition = known.condition if condition is None else condition
        outward: Tensor = known.outward(self.net(condition, known.inward(at)))
        return outward


class GeneratedField(nn.Module):
    """Coordinate network whose parameters a hypernetwork writes from the condition.

    Args:
        condition_dim: Width of a condition.
        width: Width of the hypernetwork.
        base: Coordinate network.
        form: Form of the generated parameters. Default: in full.
    """

    def __init__(
        self, condition_dim: int, width: int, base: PeriodicNet, form: Form | None = None
    ) -> None:
        super().__init__()
        self.trunk = plain([condition_dim, *[width] * LAYERS])
        self.hyper = MLPHyperNetwork(base, width, hidden=(), form=form)
        self.run = per_task(self.hyper.base)

    def params(self, condition: Tensor) -> Params:
        """Parameters of the network of each field."""
        features = nn.functional.gelu(self.trunk(condition))
        return self.hyper.forward(HEAD_SCALE * features)

    def forward(self, condition: Tensor, at: Tensor) -> Tensor:
        """Values, (fields, points)."""
        values: Tensor = self.run(self.params(condition), at)
        return values[..., 0]


class DeepONet(nn.Module):
    """Sum of products of features of the condition and of the position.

    The last layer of a coordinate network is generated, the others are shared.

    Args:
        condition_dim: Width of a condition.

    Source:
        Lu et al., "Learning nonlinear operators via DeepONet based on the universal approximation
        theorem of operators" (2021).
    """

    def __init__(self, condition_dim: int) -> None:
        super().__init__()
        self.branch = plain([condition_dim, *BRANCH, PRODUCTS + 1])
        self.trunk = PeriodicNet(FEATURES, FINEST_MODE, outputs=PRODUCTS)

    def forward(self, condition: Tensor, at: Tensor) -> Tensor:
        """Values, (fields, points)."""
        weight, bias = self.branch(condition).tensor_split([PRODUCTS], 1)
        features = apply_shared(self.trunk, at)
        if len(at) == 1:
            return torch.addmm(bias, weight, features[0].T)
        return torch.baddbmm(bias[..., None], features, weight[..., None])[..., 0]


class ConcatField(nn.Module):
    """One network that reads condition and position.

    Args:
        condition_dim: Width of a condition.
        hidden: Widths of its layers.

    Source:
        Seidman et al., "NOMAD: Nonlinear manifold decoders for operator learning" (2022), with
        sines and cosines of x here.
    """

    waves: Tensor

    def __init__(self, condition_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("waves", torch.arange(1.0, FINEST_MODE + 1)[None])
        self.net = plain([condition_dim + 2 * FINEST_MODE + 1, *hidden, 1])

    def forward(self, condition: Tensor, at: Tensor) -> Tensor:
        """Values, (fields, points)."""
        known = condition[:, None].expand(-1, at.shape[1], -1)
        waves = fourier_features(at[..., :1], self.waves)
        values: Tensor = self.net(torch.cat([known, waves, at[..., 1:]], -1))
        return values[..., 0]


def build_net(method: str, condition_dim: int, width: int) -> nn.Module:
    """Build the network of a trained method, newly initialised.

    Args:
        method: Name of the method, as in `weightloom list fields`.
        condition_dim: Width of a condition.
        width: Width of the hypernetwork.
    """
    if method == "deeponet":
        return DeepONet(condition_dim)
    if method == "concat":
        return ConcatField(condition_dim, CONCAT)
    if method == "concat-equal":
        return ConcatField(condition_dim, equal_widths(condition_dim, width))
    hidden, form = GENERATED[method]
    return GeneratedField(condition_dim, width, PeriodicNet(hidden, FINEST_MODE), form)


GENERATED: dict[str, tuple[tuple[int, ...], Form | None]] = {
    "generated": (BASE, None),
    "generated-film": (MODULATED, FiLM()),
    "generated-lowrank": (WIDE, LowRank(RANK)),
}
"""Widths of the base, and form of its generated parameters."""


def equal_widths(condition_dim: int, width: int) -> list[int]:
    """Return widths of `ConcatField` with as many parameters as `generated`, or just below."""
    goal = count(build_net("generated", condition_dim, width))
    inputs, layers = condition_dim + 2 * FINEST_MODE + 1, len(CONCAT)

    def numbers(wide: int) -> int:
        return sum((a + 1) * b for a, b in pairwise([inputs, *[wide] * layers, 1]))

    wide = int((goal / (layers - 1)) ** 0.5)
    while numbers(wide) > goal:
        wide -= 1
    return [wide] * layers


def plain(widths: Sequence[int]) -> nn.Sequential:
    """Build linear layers with GELUs between them."""
    layers: list[nn.Module] = []
    for inputs, units in pairwise(widths):
        layers += [nn.Linear(inputs, units), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def count(net: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(its.numel() for its in net.parameters() if its.requires_grad)


def batch_of(known: Canonical, at: Tensor, values: Tensor, power: Tensor) -> FieldBatch:
    """Turn points of solutions into those of their representatives.

    Args:
        known: Representatives.
        at: Positions and times, (fields, points, 2).
        values: u there, (fields, points).
        power: Mean square of u, (fields,).
    """
    scaled = values / known.scale[:, None]
    return FieldBatch(known.condition, known.inward(at), scaled, power / known.scale.square())
