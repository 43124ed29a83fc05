"""Pairs of players for spectrograms, by the name of the method.

In:   sizes.
Out:  an `AdversarialPair`, newly initialised.
Knows nothing of sounds and scores.
"""

import math
from collections.abc import Callable, Mapping

from torch import nn

from weightloom.adversarial import (
    AdversarialPair,
    ConcatenatedPlayer,
    FunctionGenerator,
    GeneratedPlayer,
)
from weightloom.apps.gan.problems.pairs import RANK, Sizes
from weightloom.forms import FiLM, Full, LowRank
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import FourierFeatures, mlp

SLOPE = 0.2
"""Slope of activations below 0."""


def build_sound_pair(method: str, sizes: Sizes) -> AdversarialPair:
    """Build the pair of a method, one of `SOUND_BUILDERS`, from torch's current seed."""
    generator, judge = SOUND_BUILDERS[method]
    return AdversarialPair(generator(sizes), judge(sizes), sizes.noise_dim)


def function(sizes: Sizes) -> nn.Module:
    """Functions of time and frequency whose last layer is written from condition and noise."""
    base = nn.Sequential(_features(sizes), nn.Linear(sizes.width, sizes.shape[0]))
    width = sizes.condition_dim + sizes.noise_dim
    hyper = MLPHyperNetwork(base, width, "1.*", hidden=(sizes.width, sizes.width))
    return FunctionGenerator(base, hyper, sizes.shape[1:], sizes.cell)


def function_concat(sizes: Sizes) -> nn.Module:
    """Functions by one network, which reads position, condition and noise.

    Condition and noise reach its first layer by a matrix: they add to its bias. It is a quarter as
    wide as that of `function`, which runs for each position once, not for each position and sample.
    """
    width = sizes.width // 4
    features = FourierFeatures(2, width, sizes.spread)
    base = nn.Sequential(features, *mlp([2 * width, width, width, sizes.shape[0]]))
    inputs = sizes.condition_dim + sizes.noise_dim
    hyper = MLPHyperNetwork(base, inputs, "1.bias", hidden=())
    nn.init.normal_(hyper.head.weight, std=inputs**-0.5)
    return FunctionGenerator(base, hyper, sizes.shape[1:], sizes.cell)


def picture_written(sizes: Sizes) -> nn.Module:
    """Pictures from noise, by a network whose layers the condition changes at low rank."""
    base = picture_network(sizes, sizes.noise_dim)
    hyper = MLPHyperNetwork(base, sizes.condition_dim, form=LowRank(RANK), hidden=())
    return GeneratedPlayer(base, hyper)


def picture_concat(sizes: Sizes) -> nn.Module:
    """Pictures from noise and condition, side by side."""
    return ConcatenatedPlayer(picture_network(sizes, sizes.noise_dim + sizes.condition_dim))


def picture_network(sizes: Sizes, inputs: int) -> nn.Sequential:
    """Build a network of transposed convolutions, (batch, inputs) to (batch, *shape)."""
    channels, *size = sizes.shape
    width = sizes.width // 16
    start = (4 * width, *(-(-points // 8) for points in size))
    return nn.Sequential(
        nn.Linear(inputs, math.prod(start)),
        nn.Unflatten(1, start),
        nn.LeakyReLU(SLOPE),
        nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1),
        nn.LeakyReLU(SLOPE),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
        nn.LeakyReLU(SLOPE),
        nn.ConvTranspose2d(width, channels, 4, 2, 1),
    )


def written_judge(sizes: Sizes) -> nn.Module:
    """Discriminator whose last layer is written from the condition, and a convolution scaled."""
    base = judge_network(sizes, sizes.shape[0])
    changed = {"2.weight": FiLM(), f"{len(base) - 1}.*": Full()}
    return GeneratedPlayer(base, MLPHyperNetwork(base, sizes.condition_dim, changed))


def reading_judge(sizes: Sizes) -> nn.Module:
    """Discriminator that reads the condition as further channels."""
    return ConcatenatedPlayer(judge_network(sizes, sizes.shape[0] + sizes.condition_dim))


def judge_network(sizes: Sizes, channels: int) -> nn.Sequential:
    """Build a network of patches of 4 x 4 points, (batch, channels, *size) to (batch, 1)."""
    width = sizes.width // 8
    left = math.prod(-(-(points // 4) // 2) for points in sizes.shape[1:])
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, 4),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(width, 2 * width, 3, 2, 1),
        nn.LeakyReLU(SLOPE),
        nn.Flatten(),
        nn.Linear(2 * width * left, sizes.width // 2),
        nn.LeakyReLU(SLOPE),
        nn.Linear(sizes.width // 2, 1),
    )


SOUND_BUILDERS: Mapping[str, tuple[Callable[[Sizes], nn.Module], Callable[[Sizes], nn.Module]]] = {
    "generated": (function, written_judge),
    "function-concat": (function_concat, reading_judge),
    "picture-generated": (picture_written, written_judge),
    "generated-discriminator": (picture_concat, written_judge),
    "picture-concat": (picture_concat, reading_judge),
}
"""Builders of generator and discriminator, by the name of the method."""


def _features(sizes: Sizes) -> nn.Module:
    """Features of a position that all samples share, (points, 2) to (points, width)."""
    known = FourierFeatures(2, sizes.width // 2, sizes.spread)
    return nn.Sequential(known, *mlp([sizes.width] * 3), nn.ReLU())
