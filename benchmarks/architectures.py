"""One adapter generator on networks of ten architectures that it was not trained on.

    python benchmarks/architectures.py --record benchmarks/records/transfer-architectures.json

Multilayer perceptrons of many widths and depths are trained on scikit-learn's digits and frozen. A
task changes the pictures: their contrast, down to negatives, or their angle. `AdapterHyperNetwork`
learns on the training networks to write an adapter from the description of a task; then it serves
the ten others. Beside it on each of these: the frozen network, one adapter trained on that network
for all tasks, the generator's adapter for the mean description, and for another task's.
"""

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from weightloom import AdapterHyperNetwork, LowRank, mlp, per_task
from weightloom.forms import Factored
from weightloom.losses import cross_entropy_per_task
from weightloom.params import Params
from weightloom.runs.record import environment, summary, summary_over_seeds, write_record
from weightloom.tasks.data import load_digit_images
from weightloom.tasks.domains import warps

UNSEEN = (
    *((20,), (56,), (160,), (24, 48), (80, 40), (112, 112)),
    *((28, 28, 28), (72, 36, 72), (96, 48, 24), (40, 40, 40, 40)),
)
"""Hidden widths of the networks that the generator is not trained on."""
SEEN_WIDTHS, SEEN_DEPTHS = (16, 32, 48, 64, 96, 128), (1, 2, 3)
RANK, TASKS, PICTURES = 8, 8, 64
TEST_TASKS = 200


class Family(NamedTuple):
    """A family of changes of pictures."""

    draw: Callable[[int, torch.Generator], Tensor]
    """Descriptions of tasks, (tasks, condition_dim)."""
    take: Callable[[Tensor, Tensor], Tensor]
    """Descriptions and flat pictures, (tasks, pictures, 64), to changed pictures."""
    about: str


def draw_contrast(tasks: int, generator: torch.Generator) -> Tensor:
    """Draw a gain between -1.5 and 1.5, at least .3 from 0."""
    size = 0.3 + 1.2 * torch.rand(tasks, 1, generator=generator)
    return size * (torch.randint(2, (tasks, 1), generator=generator) * 2 - 1)


def draw_angle(tasks: int, generator: torch.Generator) -> Tensor:
    """Draw an angle, as its cosine and sine."""
    angle = 2 * math.pi * torch.rand(tasks, generator=generator)
    return torch.stack([angle.cos(), angle.sin()], 1)


def turn(told: Tensor, pictures: Tensor) -> Tensor:
    """Turn pictures by the angle of each task."""
    angle = torch.atan2(told[:, 1], told[:, 0])
    one, none = torch.ones_like(angle), torch.zeros_like(angle)
    return pictures @ warps(angle, one, one, none, none, 8).flatten(2)


FAMILIES = {
    "contrast": Family(
        draw_contrast,
        lambda told, pictures: pictures * told[:, :, None],
        "centred pictures times a gain of .3 to 1.5 or its negative",
    ),
    "turned": Family(draw_angle, turn, "pictures turned by any angle"),
}


class Digits:
    """Pictures around the mean picture, flat, in training and test parts."""

    def __init__(self) -> None:
        images, labels = load_digit_images()
        x = images.flatten(1).float() / 255
        self.x, self.y = x - x[:1400].mean(0), labels
        self.train, self.test = torch.arange(1400), torch.arange(1400, 1797)

    def batch(self, tasks: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw training pictures and labels of each task."""
        rows = self.train[torch.randint(1400, (tasks, PICTURES), generator=generator)]
        return self.x[rows], self.y[rows]


def trained_network(hidden: tuple[int, ...], digits: Digits, seed: int) -> nn.Sequential:
    """Train a network on unchanged digits."""
    torch.manual_seed(seed)
    net = mlp([64, *hidden, 10])
    optimiser = torch.optim.AdamW(net.parameters(), 5e-3, weight_decay=1e-2)
    for _ in range(300):
        rows = digits.train[torch.randint(1400, (128,))]
        loss = cross_entropy(net(digits.x[rows]), digits.y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.requires_grad_(False).eval()


def train_generator(
    hypers: list[AdapterHyperNetwork], family: Family, digits: Digits, steps: int, rate: float
) -> None:
    """Train the shared generator, on one network a step."""
    parameters = hypers[0].generator.parameters()
    generator = torch.Generator().manual_seed(1)

    def losses() -> Iterator[Tensor]:
        while True:
            hyper = hypers[int(torch.randint(len(hypers), (), generator=generator))]
            yield adapted_loss(hyper, hyper.base, family, digits, generator)

    descend(parameters, losses(), steps, rate)


def adapted_loss(
    hyper: nn.Module, net: nn.Module, family: Family, digits: Digits, generator: torch.Generator
) -> Tensor:
    """Return the mean loss of a network with the adapters of drawn tasks."""
    told = family.draw(TASKS, generator)
    x, y = digits.batch(TASKS, generator)
    return cross_entropy_per_task(per_task(net)(hyper(told), family.take(told, x)), y).mean()


def descend(parameters: Any, losses: Iterator[Tensor], steps: int, rate: float) -> None:
    """Take Adam steps with a rate that falls to zero along a cosine."""
    optimiser = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _, loss in zip(range(steps), losses, strict=False):
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


class Shared(nn.Module):
    """One low-rank adapter of a network for all tasks, as LoRA starts it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.owns = {name: its for name, its in net.named_parameters() if name.endswith("weight")}
        self.ups = nn.ParameterList(torch.zeros(len(its), RANK) for its in self.owns.values())
        self.downs = nn.ParameterList(
            torch.randn(RANK, its.shape[1]) / its.shape[1] ** 0.5 for its in self.owns.values()
        )

    def forward(self, told: Tensor) -> Params:
        """Return the same adapter for every task."""
        values: dict[str, Tensor] = {}
        for (name, own), up, down in zip(self.owns.items(), self.ups, self.downs, strict=True):
            factors = {"up": up.expand(len(told), -1, -1), "down": down.expand(len(told), -1, -1)}
            values[name] = Factored(LowRank(RANK), own, factors)
        return Params(values)


@torch.no_grad()
def accuracy(params: Any, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the accuracy of each task, (tasks,)."""
    outputs = net(x) if params is None else per_task(net)(params, x)
    return (outputs.argmax(-1) == y).float().mean(1)


def judge(
    hyper: AdapterHyperNetwork, shared: Shared, family: Family, digits: Digits
) -> dict[str, Tensor]:
    """Return the accuracy of every method on the test tasks of one network."""
    generator = torch.Generator().manual_seed(7)
    told = family.draw(TEST_TASKS, generator)
    many = family.draw(10_000, generator)
    rows = digits.test[torch.randint(len(digits.test), (TEST_TASKS, 100), generator=generator)]
    x, y, net = family.take(told, digits.x[rows]), digits.y[rows], hyper.base
    mean = many.mean(0).expand_as(told)
    return {
        "generated": accuracy(hyper(told), net, x, y),
        "shared": accuracy(shared(told), net, x, y),
        "frozen": accuracy(None, net, x, y),
        "shuffled condition": accuracy(hyper(told.roll(1, 0)), net, x, y),
        "mean condition": accuracy(hyper(mean), net, x, y),
        "unchanged pictures": accuracy(None, net, digits.x[rows], y),
    }


def run(name: str, seed: int, steps: int, rates: tuple[float, float]) -> dict[str, Any]:
    """Train a generator and the shared adapters, and judge both on every unseen network."""
    family, digits, start = FAMILIES[name], Digits(), time.process_time()
    seen = [
        (width,) * depth for width in SEEN_WIDTHS for depth in SEEN_DEPTHS
    ]
    nets = [
        trained_network(hidden, digits, 1000 * seed + number)
        for number, hidden in enumerate([*seen, *UNSEEN])
    ]
    torch.manual_seed(seed)
    first = AdapterHyperNetwork(
        nets[0],
        condition_dim=family.draw(1, torch.Generator()).shape[1],
        generate="*.weight",
        form=LowRank(RANK),
    )
    hypers = [first, *(first.on(net) for net in nets[1:])]
    train_generator(hypers[: len(seen)], family, digits, steps, rates[0])
    scores = {}
    for hidden, hyper in zip(UNSEEN, hypers[len(seen) :], strict=True):
        shared = Shared(hyper.base)
        generator = torch.Generator().manual_seed(2)
        losses = (
            adapted_loss(shared, hyper.base, family, digits, generator) for _ in range(steps)
        )
        descend(shared.parameters(), losses, steps // 4, rates[1])
        title = "-".join(map(str, hidden))
        scores[title] = judge(hyper, shared, family, digits)
    return {"scores": scores, "process_time_s": round(time.process_time() - start, 1)}
