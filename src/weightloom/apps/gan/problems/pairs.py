"""Pairs of players for pictures and sounds, by the name of the method.

In:   sizes.
Out:  an `AdversarialPair`, newly initialised.
Knows nothing of data and scores.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.adversarial import (
    AdversarialPair,
    ConcatenatedPlayer,
    FunctionGenerator,
    GeneratedPair,
    GeneratedPlayer,
)
from weightloom.forms import FiLM, Form, LowRank
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import FourierFeatures, FunctionNet, mlp

SMALLEST = 1024
"""Points of a sample from which players are convolutional networks, slow on a CPU."""
RANK = 4
"""Rank of generated changes."""
FEATURES = 2
"""Features of a position, in units of the width."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a pair, and the settings that all methods share."""

    shape: tuple[int, ...]
    """Shape of a sample: channels, then the points along each axis."""
    condition_dim: int
    """Width of a condition."""
    noise_dim: int
    """Width of the noise."""
    width: int
    """Width of hidden layers."""
    spread: float = 4.0
    """Standard deviation of the frequencies of functions, in radians per unit; a sample is two
    units wide."""
    cell: int = 1
    """Positions along each axis of a cell of a function, as in `FunctionGenerator`."""


def build_pair(method: str, sizes: Sizes) -> AdversarialPair:
    """Build the pair of a method, one of `BUILDERS`, from torch's current seed."""
    return BUILDERS[method](sizes)


def generated(sizes: Sizes, packing: int = 1, **more: Any) -> AdversarialPair:
    """Functions whose last layer is written; the discriminator changes at low rank by condition."""
    channels, *size = sizes.shape
    base = Bounded(FunctionNet(len(size), channels, FEATURES * sizes.width, sizes.spread))
    hidden = (sizes.width, sizes.width)
    width = sizes.condition_dim + sizes.noise_dim
    hyper = MLPHyperNetwork(base, width, "*.head.*", hidden, init="hyperfan-in")
    made = FunctionGenerator(base, hyper, size, sizes.cell)
    judge = written(discriminator(sizes, packing), sizes, LowRank(RANK))
    return AdversarialPair(made, judge, sizes.noise_dim, packing=packing, **more)


def function_changed(sizes: Sizes, form: Form) -> AdversarialPair:
    """Functions whose hidden layers are changed by condition and noise."""
    base = coordinate_network(sizes)
    width = sizes.condition_dim + sizes.noise_dim
    layers = {"*.1.*": form, "*.3.*": form}
    hyper = MLPHyperNetwork(base, width, layers, hidden=(sizes.width,), init="hyperfan-in")
    made = FunctionGenerator(base, hyper, sizes.shape[1:], sizes.cell)
    judge = written(discriminator(sizes), sizes, LowRank(RANK))
    return AdversarialPair(made, judge, sizes.noise_dim)


def function_concat(sizes: Sizes) -> AdversarialPair:
    """Functions by one network, which reads position, condition and noise.

    Condition and noise reach the first layer by a matrix: they add to its bias.
    """
    base = coordinate_network(sizes)
    width = sizes.condition_dim + sizes.noise_dim
    hyper = MLPHyperNetwork(base, width, "*.1.bias", hidden=())
    nn.init.normal_(hyper.head.weight, std=width**-0.5)
    made = FunctionGenerator(base, hyper, sizes.shape[1:], sizes.cell)
    judge = concatenated(sizes)
    return AdversarialPair(made, judge, sizes.noise_dim)


def matched(sizes: Sizes) -> AdversarialPair:
    """As `function_concat`, with the parameters of `generated` at least."""
    state = torch.get_rng_state()
    goal = _count(generated(sizes))
    width = sizes.width
    while _count(function_concat(replace(sizes, width=width))) < goal:
        width += max(1, sizes.width // 32)
    torch.set_rng_state(state)
    return function_concat(replace(sizes, width=width))


def picture_written(sizes: Sizes, form: Form) -> AdversarialPair:
    """Both players written by one hypernetwork from the condition; samples of one size."""
    base = nn.ModuleDict({"generator": generator(sizes), "discriminator": discriminator(sizes)})
    hyper = MLPHyperNetwork(base, sizes.condition_dim, form=form, hidden=())
    return GeneratedPair(base, hyper, sizes.noise_dim)


def picture_concat(sizes: Sizes) -> AdversarialPair:
    """Both players read the condition beside their input; samples of one size."""
    return AdversarialPair(
        ConcatenatedPlayer(generator(sizes, beside=sizes.condition_dim)),
        concatenated(sizes),
        sizes.noise_dim,
    )


BUILDERS: Mapping[str, Callable[[Sizes], AdversarialPair]] = {
    "generated": generated,
    "function-film": lambda sizes: function_changed(sizes, FiLM()),
    "function-lowrank": lambda sizes: function_changed(sizes, LowRank(RANK)),
    "function-concat": function_concat,
    "picture-generated": lambda sizes: picture_written(sizes, LowRank(RANK)),
    "picture-film": lambda sizes: picture_written(sizes, FiLM()),
    "picture-concat": picture_concat,
    "matched": matched,
    "r1": lambda sizes: generated(sizes, loss="non-saturating", penalised=("real",)),
    "packed": lambda sizes: generated(sizes, packing=2),
}
"""Builders by the name of the method."""


def written(base: nn.Module, sizes: Sizes, form: Form) -> GeneratedPlayer:
    """Build a player whose parameters change with the condition."""
    return GeneratedPlayer(base, MLPHyperNetwork(base, sizes.condition_dim, form=form, hidden=()))


def concatenated(sizes: Sizes) -> nn.Module:
    """Build a discriminator that reads the condition beside its input."""
    if math.prod(sizes.shape[1:]) < SMALLEST:
        return FlatPlayer(_mlp(math.prod(sizes.shape) + sizes.condition_dim, sizes, 1))
    return ConcatenatedPlayer(discriminator(sizes, beside=sizes.condition_dim))


class FlatPlayer(nn.Module):
    """Player that reads the condition once beside all numbers of its input.

    Args:
        base: Network from (batch, numbers + condition_dim) to outputs.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.player = ConcatenatedPlayer(base)

    def forward(self, condition: Tensor, inputs: Tensor) -> Tensor:
        """Outputs, (tasks, count, *out), for inputs (tasks, count, *shape)."""
        outputs: Tensor = self.player(condition, inputs.flatten(2))
        return outputs


class Bounded(nn.Module):
    """Network whose outputs are squashed to (0, 1).

    Args:
        net: From inputs to outputs of any size.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, (batch, *shape)."""
        return torch.sigmoid(self.net(x))


def coordinate_network(sizes: Sizes) -> nn.Module:
    """Build an MLP on random Fourier features of a position, (points, axes) to (points, channels).

    Layers 1 and 3 of ``net`` are hidden, of half the width: each runs at every point of a sample.
    """
    channels, *size = sizes.shape
    width = sizes.width // 2
    features = FourierFeatures(len(size), sizes.width // 2, sizes.spread)
    return Bounded(nn.Sequential(features, *mlp([features.features, width, width, channels])))


def generator(sizes: Sizes, beside: int = 0) -> nn.Module:
    """Build a generator of samples of one size, from noise, (batch, noise_dim + beside)."""
    if math.prod(sizes.shape[1:]) >= SMALLEST:
        return Bounded(ConvGenerator(sizes.shape, sizes.noise_dim + beside, sizes.width // 4))
    layers = _mlp(sizes.noise_dim + beside, sizes, math.prod(sizes.shape))
    return Bounded(nn.Sequential(*layers, nn.Unflatten(1, sizes.shape)))


def discriminator(sizes: Sizes, packing: int = 1, beside: int = 0) -> nn.Module:
    """Build a discriminator, from samples, ``(batch, channels, *size)``."""
    channels, *size = sizes.shape
    channels = channels * packing + beside
    if math.prod(size) < SMALLEST:
        return nn.Sequential(nn.Flatten(), *_mlp(channels * math.prod(size), sizes, 1))
    conv = nn.Conv2d if len(size) == 2 else nn.Conv1d
    width = sizes.width // 4
    left = math.prod(-(-points // 4) for points in size)
    return nn.Sequential(
        conv(channels, width, 5, 2, 2),
        nn.LeakyReLU(),
        conv(width, 2 * width, 5, 2, 2),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * left, sizes.width),
        nn.LeakyReLU(),
        nn.Linear(sizes.width, 1),
    )


class ConvGenerator(nn.Module):
    """Convolutional generator: twice doubled from a quarter of the size, then cropped.

    Args:
        shape: Shape of a sample, (channels, *size).
        inputs: Width of the input.
        width: Channels at half the size; twice as many at a quarter.
    """

    def __init__(self, shape: tuple[int, ...], inputs: int, width: int) -> None:
        super().__init__()
        channels, *self.size = shape
        conv = nn.ConvTranspose2d if len(self.size) == 2 else nn.ConvTranspose1d
        start = (2 * width, *(-(-points // 4) for points in self.size))
        self.net = nn.Sequential(
            nn.Linear(inputs, math.prod(start)),
            nn.LeakyReLU(),
            nn.Unflatten(1, start),
            conv(2 * width, width, 4, 2, 1),
            nn.LeakyReLU(),
            conv(width, channels, 4, 2, 1),
        )

    def forward(self, noise: Tensor) -> Tensor:
        """Samples, (batch, channels, *size)."""
        made: Tensor = self.net(noise)
        for axis, points in enumerate(self.size, 2):
            made = made.narrow(axis, 0, points)
        return made


def _mlp(inputs: int, sizes: Sizes, outputs: int) -> nn.Sequential:
    return mlp([inputs, sizes.width, sizes.width, outputs], nn.LeakyReLU)


def _count(model: nn.Module) -> int:
    return sum(its.numel() for its in model.parameters() if its.requires_grad)
