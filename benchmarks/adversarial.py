"""Speed of generated players and of many generators, relative to the same arithmetic by hand.

    python -m benchmarks.adversarial --record benchmarks/records/gan-speed.json

A step is the turns of both players, forward and backward, with the penalty of R1 and R2 in the
discriminator's; no optimiser. Contenders take turns in one process, and times are processor seconds
of one thread. Before they are timed, losses and gradients are compared.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.race.timing import alternate, ratio
from weightloom import FiLM, Form, Full, LowRank, MLPHyperNetwork, mlp, per_task
from weightloom.adversarial import AdversarialBatch, GeneratedPair
from weightloom.adversarial.pair import DISCRIMINATOR, GENERATOR, PlayersOfConditions
from weightloom.networks import fourier_features
from weightloom.runs.record import environment, write_record

CLASSES, NOISE, PIXELS = 10, 16, 64
"""Conditions of a step, and widths of noise and samples."""
IMAGES = 1000
"""Generators, each of one image."""
Row = dict[str, Any]
BARS = {
    "a step, 12 samples a class, 128 wide, full": 1.15,
    "a step, 12 samples a class, 128 wide, FiLM": 1.15,
    "a step, 32 samples a class, 256 wide, FiLM": 1.15,
    "1,000 images, 8 x 8 coordinates, FiLM": 1.5,
    "1,000 images, 8 x 8 coordinates, rank 4": 1.75,
    "1,000 images, 28 x 28 coordinates, FiLM": 1.5,
    "1,000 images, 28 x 28 coordinates, rank 4": 1.75,
    "1,000 images, MLP 32-256-256-784, FiLM": 2.0,
}
"""Largest ratio aimed at, by setting."""


class ByHand(GeneratedPair):
    """The same pair, with the players written as products over the classes.

    Args:
        base: Both players.
        hyper: The hypernetwork of the other pair.
        form: Form of all generated parameters, `Full` or `FiLM`.
    """

    def __init__(self, base: nn.ModuleDict, hyper: MLPHyperNetwork, form: Form) -> None:
        super().__init__(base, hyper, NOISE)
        self.writer, self.own, self.is_full = (
            hyper,
            dict(base.named_parameters()),
            isinstance(form, Full),
        )
        rows = hyper.generated.slices()
        self.names, self.sizes = list(rows), [its.stop - its.start for its in rows.values()]

    def players(self, condition: Tensor) -> PlayersOfConditions:
        """Compute all numbers in one product, and cut them up."""
        head, start = self.writer.head, self.writer.generated.start()
        flat = linear(self.writer.trunk(condition), head.weight, head.bias + start)
        numbers = dict(zip(self.names, flat.split(self.sizes, dim=1), strict=True))
        return PlayersOfConditions(
            lambda noise: self._run(numbers, noise, GENERATOR),
            lambda samples: self._run(numbers, samples, DISCRIMINATOR),
        )

    def _run(self, numbers: Mapping[str, Tensor], x: Tensor, name: str) -> Tensor:
        for layer in (0, 2, 4):
            own = self.own[f"{name}.{layer}.weight"]
            shift = numbers[f"{name}.{layer}.bias"][:, None]
            factors = numbers[f"{name}.{layer}.weight"]
            if self.is_full:
                x = torch.baddbmm(shift, x, factors.unflatten(1, own.shape).mT)
            else:
                x = torch.addcmul(shift, linear(x, own), 1 + factors[:, None])
            x = x if layer == 4 else x.relu()
        return x


def step_ratio(form: Form, count: int, width: int, rounds: int) -> Row:
    """Return the time of a step of both turns, relative to the products by hand.

    Args:
        form: Form of all generated parameters.
        count: Samples of each class.
        width: Width of the players' two hidden layers.
        rounds: Timed steps of each contender.
    """
    torch.manual_seed(0)
    players = {
        GENERATOR: mlp([NOISE, width, width, PIXELS]),
        DISCRIMINATOR: mlp([PIXELS, width, width, 1]),
    }
    base = nn.ModuleDict(players)
    hyper = MLPHyperNetwork(base, CLASSES, form=form)
    nn.init.normal_(hyper.head.weight, std=0.01)
    pair, hand = GeneratedPair(base, hyper, NOISE), ByHand(base, hyper, form)
    noise, real = torch.randn(CLASSES, count, NOISE), torch.randn(CLASSES, count, PIXELS)
    batch = AdversarialBatch(torch.eye(CLASSES), real, noise, penalty=1.0)

    def step(model: GeneratedPair) -> list[Tensor]:
        model.zero_grad()
        for turn in (DISCRIMINATOR, GENERATOR):
            model(batch, turn).mean().backward()
        return [its.grad.clone() for its in hyper.parameters() if its.grad is not None]

    for ours, theirs in zip(step(pair), step(hand), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    calls: dict[str, Callable[[], object]] = {
        "generated pair": lambda: step(pair),
        "products by hand": lambda: step(hand),
    }
    times = alternate(calls, rounds, clock=time.process_time)
    return timed_row(times, "generated pair", "products by hand")


def image_ratio(
    base: nn.Module, form: Form, inputs: Callable[[Tensor], Tensor], pieces: tuple[int, ...]
) -> Row:
    """Return the time of 1,000 generators of an image each, relative to one generator of 1,000.

    The one generator is the base with its own parameters, without noise where it reads coordinates:
    the least that any generator must compute. Both sides draw in pieces, each of the size that
    suits it best, since large activations leave the cache.

    Args:
        base: The generator.
        form: Form of all generated parameters.
        inputs: Function of the noise of a piece, (images, 32), to inputs, (images, rows, width).
        pieces: Numbers of images drawn at once.
    """
    torch.manual_seed(0)
    hyper = MLPHyperNetwork(base, 32, form=form)
    nn.init.normal_(hyper.head.weight, std=0.02)
    run, noise = per_task(base), torch.randn(IMAGES, 32)

    def many(piece: int) -> Callable[[], Tensor]:
        parts = noise.split(piece)
        return lambda: torch.cat([run(hyper(part), inputs(part)) for part in parts])

    def one(piece: int) -> Callable[[], Tensor]:
        parts = noise.split(piece)
        return lambda: torch.cat([base(inputs(part).flatten(0, 1)) for part in parts])

    kinds = {"generators": many, "one generator": one}
    calls = {f"{name}, {piece}": its(piece) for name, its in kinds.items() for piece in pieces}
    with torch.no_grad():
        times = alternate(calls, rounds=9, warmup=2, clock=time.process_time)
    best = [
        min((key for key in times if key.startswith(f"{name}, ")), key=lambda key: sum(times[key]))
        for name in kinds
    ]
    return timed_row(times, *best)


def timed_row(times: Mapping[str, list[float]], of: str, against: str) -> Row:
    """Return the ratio of two contenders, with its quartiles over rounds, and their medians."""
    found = ratio(times, of=of, against=against)
    return {
        "mean": found["median"],
        "quartiles": [found["low"], found["high"]],
        "ms": {name: 1e3 * median(times[name]) for name in (of, against)},
    }


def spread(features: Tensor, part: Tensor) -> Tensor:
    """Return the features of all points for each image, (images, points, width), without a copy."""
    return features.expand(len(part), -1, -1)


def measured(rounds: int) -> dict[str, Row]:
    """Measure all settings."""
    steps = ((Full(), "full", 12, 128), (FiLM(), "FiLM", 12, 128), (FiLM(), "FiLM", 32, 256))
    rows = {
        f"a step, {count} samples a class, {width} wide, {name}": step_ratio(
            form, count, width, rounds
        )
        for form, name, count, width in steps
    }
    forms = {"FiLM": FiLM(), "rank 4": LowRank(4)}
    for size, pieces in ((8, (100, 250)), (28, (10, 20))):
        axis = torch.linspace(-1, 1, size)
        grid = torch.cartesian_prod(axis, axis)
        features = fourier_features(grid, 4 * torch.randn(2, 32))  # once, for all images
        base = mlp([64, 64, 64, 1])
        for name, form in forms.items():
            setting = f"1,000 images, {size} x {size} coordinates, {name}"
            rows[setting] = image_ratio(base, form, partial(spread, features), pieces)
    rows["1,000 images, MLP 32-256-256-784, FiLM"] = image_ratio(
        mlp([32, 256, 256, 784]), FiLM(), lambda part: part[:, None], (250, 1000)
    )
    return rows


def main(record: Path, rounds: int) -> None:
    """Measure all settings and write the record."""
    torch.set_num_threads(1)
    rows = measured(rounds)
    for name, row in rows.items():
        print(f"{name}: {row['mean']:.2f}, at most {BARS[name]} aimed at; {row['ms']}")
    scores = [
        {
            "method": "weightloom",
            "setting": name,
            "name": "ratio of times",
            "better": "lower",
            "ci95": None,
            "tasks": 1,
            "bar": BARS[name],
            **row,
        }
        for name, row in rows.items()
    ]
    write_record(
        record,
        {
            "command": shlex.join(["python", "-m", "benchmarks.adversarial", *sys.argv[1:]]),
            "config": {"rounds": rounds},
            "scores": scores,
            "cost": environment(),
            "notes": "Times are processor seconds of one thread. A ratio is of medians. A step has "
            f"{CLASSES} classes and players of three layers, against the same products written by "
            "hand. Images: a hypernetwork with a hidden layer "
            "of 64, against the base alone, without noise where it reads coordinates, each in the "
            "pieces that suit it best; features of the coordinates are computed once on both "
            "sides. The many generators multiply the features by their common weight once; the one "
            "generator does so for each image, as it must with noise joined to its inputs.",
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=31, help="timed steps of each contender")
    chosen = parser.parse_args()
    main(chosen.record, chosen.rounds)
