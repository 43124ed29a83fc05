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


def train_shared(
    shared: "Shared", net: nn.Module, family: Family, digits: Digits, steps: int, rate: float
) -> None:
    """Train the adapter that all tasks of one network share."""
    generator = torch.Generator().manual_seed(2)
    losses = (adapted_loss(shared, net, family, digits, generator) for _ in range(steps))
    descend(shared.parameters(), losses, steps, rate)


def descend(parameters: Any, losses: Iterator[Tensor], steps: int, rate: float) -> None:
    """Take Adam steps with a rate that falls to zero along a cosine."""
    parameters = list(parameters)
    optimiser = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _, loss in zip(range(steps), losses, strict=False):
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
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
    hyper: AdapterHyperNetwork, shared: Shared | None, family: Family, digits: Digits
) -> dict[str, Tensor]:
    """Return the accuracy of every method on the test tasks of one network.

    Args:
        hyper: Hypernetwork on this network.
        shared: Adapter for all tasks. None: that row is left out.
        family: The tasks.
        digits: The pictures.
    """
    generator = torch.Generator().manual_seed(7)
    told = family.draw(TEST_TASKS, generator)
    many = family.draw(10_000, generator)
    rows = digits.test[torch.randint(len(digits.test), (TEST_TASKS, 100), generator=generator)]
    x, y, net = family.take(told, digits.x[rows]), digits.y[rows], hyper.base
    mean = many.mean(0).expand_as(told)
    both = {"generated": hyper} if shared is None else {"generated": hyper, "shared": shared}
    return {
        **{name: accuracy(adapter(told), net, x, y) for name, adapter in both.items()},
        "frozen": accuracy(None, net, x, y),
        "shuffled condition": accuracy(hyper(told.roll(1, 0)), net, x, y),
        "mean condition": accuracy(hyper(mean), net, x, y),
        "unchanged pictures": accuracy(None, net, digits.x[rows], y),
    }


def run(name: str, seed: int, steps: int, rates: tuple[float, float]) -> dict[str, Any]:
    """Train a generator and the shared adapters, and judge both on every unseen network.

    Args:
        name: Name of the family.
        seed: Seed of networks and generator.
        steps: Steps of the generator, over all training networks; a quarter of them for the shared
            adapter of each unseen network.
        rates: Peak learning rates of the generator and of the shared adapters.
    """
    family, digits, start = FAMILIES[name], Digits(), time.process_time()
    seen = [(width,) * depth for width in SEEN_WIDTHS for depth in SEEN_DEPTHS]
    nets = [
        trained_network(hidden, digits, 1000 * seed + number)
        for number, hidden in enumerate([*seen, *UNSEEN])
    ]
    torch.manual_seed(seed)
    told = family.draw(1, torch.Generator())
    first = AdapterHyperNetwork(
        nets[0], condition_dim=told.shape[1], generate="*.weight", form=LowRank(RANK)
    )
    hypers = [first, *(first.on(net) for net in nets[1:])]
    train_generator(hypers[: len(seen)], family, digits, steps, rates[0])
    scores = {}
    for hidden, hyper in zip(UNSEEN, hypers[len(seen) :], strict=True):
        shared = Shared(hyper.base)
        train_shared(shared, hyper.base, family, digits, steps // 4, rates[1])
        scores["-".join(map(str, hidden))] = judge(hyper, shared, family, digits)
    known = [
        judge(hyper, None, family, digits)["generated"].mean().item()
        for hyper in hypers[: len(seen)]
    ]
    return {
        "scores": scores,
        "seen": fmean(known),
        "process_time_s": round(time.process_time() - start, 1),
    }


def rows_of(name: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each method: its mean accuracy over unseen networks, by seed."""
    methods = list(next(iter(runs[0]["scores"].values())))
    rows = []
    for method in methods:
        means = [
            fmean(found[method].mean().item() for found in one["scores"].values()) for one in runs
        ]
        role = {} if method in ("generated", "shared") else {"role": "control"}
        if method == "unchanged pictures":
            role = {"role": "ceiling"}
        row = {"method": method, "setting": name, "name": "accuracy", "better": "higher"}
        rows.append({**row, **role, "tasks": TEST_TASKS * len(UNSEEN), **over(means)})
    known = {"method": "generated, training networks", "role": "ceiling", "setting": name}
    known |= {"name": "accuracy", "better": "higher", "tasks": TEST_TASKS}
    return [*rows, {**known, **over([one["seen"] for one in runs])}]


def by_network(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the accuracy of each method on each unseen network, and the lead over the shared."""
    table: dict[str, Any] = {}
    for title in runs[0]["scores"]:
        found = [one["scores"][title] for one in runs]
        table[title] = {
            method: round(fmean(its[method].mean().item() for its in found), 4)
            for method in found[0]
        }
        gaps = [its["generated"] - its["shared"] for its in found]
        table[title]["ahead of shared, over tasks"] = summary(torch.stack(gaps).mean(0))
    return table


def over(values: list[float]) -> dict[str, Any]:
    """Return mean and interval over seeds; without an interval for one seed."""
    if len(values) > 1:
        return summary_over_seeds(values)
    return {"per_seed": values, "mean": values[0], "ci95": None}


def run_all(known: argparse.Namespace) -> None:
    """Run every family and seed, print the means, and write the record."""
    scores, networks, seconds = [], {}, {}
    for name in known.families:
        rates = (known.rate, known.shared_rate)
        runs = [run(name, seed, known.steps, rates) for seed in known.seeds]
        scores += rows_of(name, runs)
        networks[name] = by_network(runs)
        seconds[name] = [one["process_time_s"] for one in runs]
        for row in scores[-7:]:
            print(f"{name}: {row['method']} {row['mean']:.3f}", flush=True)
    if known.record is None:
        return
    config = {
        "families": {name: FAMILIES[name].about for name in known.families},
        "seen": [[width] * depth for width in SEEN_WIDTHS for depth in SEEN_DEPTHS],
        "unseen": [list(hidden) for hidden in UNSEEN],
        "rank": RANK,
        "steps": known.steps,
        "rates": {"generated": known.rate, "shared": known.shared_rate},
        "seeds": known.seeds,
    }
    record = {
        "command": shlex.join(["python", "benchmarks/architectures.py", *sys.argv[1:]]),
        "config": config,
        "scores": scores,
        "networks": networks,
        "cost": {"process_time_s": seconds, **environment()},
        "notes": known.notes,
    }
    write_record(known.record, record)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, default=None)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--shared-rate", type=float, default=1e-2)
    parser.add_argument("--notes", default="")
    run_all(parser.parse_args())
