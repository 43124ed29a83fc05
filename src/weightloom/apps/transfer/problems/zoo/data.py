"""A zoo of small source networks, and targets that turn and relabel the task of a source.

In:   digits, a split.
Out:  source networks; batches of targets, each with its source, labelled examples and queries.
Knows nothing of methods.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, one_hot

from weightloom.apps.transfer.recipe import pretrain
from weightloom.learners.learner import Support
from weightloom.networks import mlp
from weightloom.params import Params
from weightloom.tasks.data import load_digit_images

PIXELS, HIDDEN, WAYS = 64, 32, 10
"""Layers of a source network: pixels of a digit, hidden neurons, classes."""
SIDE = 8
"""Pixels along a side of a digit."""
TURNS = 72
"""Turns of the pictures, in steps of 5 degrees."""
FARTHEST = 9
"""Largest turn of a target against its source, either way, in steps of 5 degrees."""
PARTS = {"train": slice(0, 900), "validation": slice(900, 1200), "test": slice(1200, 1797)}
"""Digits of each part, after a shuffle: pictures of test targets are unseen, by writers of all
parts. With writers of their own for each part, the nearest of two examples per class, by pixels, is
right in .86 of the validation targets, and the sources, trained on other writers, in .77 even with
turn and labels put right by hand: no change of a source would be needed."""
SOURCES = {"train": 128, "validation": 32, "test": 48}
"""Source networks of each part. All are trained on digits of ``train``, under turns and labels of
their own."""
SOURCE_SHOTS, SOURCE_STEPS, SOURCE_RATE = 30, 100, 0.01
"""Digits per class, steps of Adam and learning rate of a source network."""
TARGETS_SEED = 10_000
"""Seed of the targets of a part, apart from those of the sources, 0 to 2, whose draws they would
repeat."""
FAMILIES = ("relabelled", "rotated", "both", "crossed")
"""Families of targets: the source's task with new labels; under a new turn; both; and one with all
pixels exchanged at random, to which no source is related and which is in no training."""
TRAINED_FAMILIES = FAMILIES[:3]
"""Families of training targets."""


class Batch(NamedTuple):
    """Targets, each with its source."""

    source: Params
    """Source network of each target."""
    support: Support
    """Labelled examples."""
    query: Support
    """Held-out examples."""
    trained: Params
    """Trained change of each target's ends, for reconstruction; empty if there is none."""


class Tasks(NamedTuple):
    """Tasks of classifying digits: each turns the pictures and names the classes in its own way."""

    turn: Tensor
    """Turn of the pictures, in steps of 5 degrees, (tasks,)."""
    labels: Tensor
    """Label of each digit, (tasks, 10)."""
    crossed: Tensor
    """Order of the pixels, (tasks, 64)."""

    def take(self, numbers: Tensor) -> "Tasks":
        """Return some of the tasks."""
        return Tasks(*(its[numbers] for its in self))


def turn_matrices() -> Tensor:
    """Return turns of a picture as matrices, (`TURNS`, 64, 64): a turned picture is x @ matrix."""
    single = torch.eye(PIXELS).view(PIXELS, 1, SIDE, SIDE)
    turned = []
    for turn in range(TURNS):
        angle = 2 * math.pi * turn / TURNS
        cos, sin = math.cos(angle), math.sin(angle)
        rotation = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(PIXELS, 2, 3)
        grid = affine_grid(rotation, [PIXELS, 1, SIDE, SIDE], align_corners=False)
        turned.append(grid_sample(single, grid, align_corners=False).view(PIXELS, PIXELS))
    return torch.stack(turned)


def draw_labels(tasks: int, generator: torch.Generator) -> Tensor:
    """Draw a label for each digit, (tasks, 10)."""
    return torch.rand(tasks, WAYS, generator=generator).argsort(1)


class Digits:
    """Pictures of digits by part and class, and draws of them.

    Args:
        split: Seed of the shuffle.
    """

    def __init__(self, split: int = 0) -> None:
        pixels, digits = load_digit_images()
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(split))
        self.pixels, self.digits = pixels[order].flatten(1) / 255, digits[order]
        self.turns = turn_matrices()
        self.places = {
            part: [(self.digits[its] == digit).nonzero()[:, 0] + its.start for digit in range(WAYS)]
            for part, its in PARTS.items()
        }

    def draw(self, part: str, tasks: Tasks, each: int, generator: torch.Generator) -> Support:
        """Draw pictures of each class, without repetition, as each task shows and names them.

        Returns:
            Pictures, (tasks, 10 · each, 64), and labels, example by example, all classes once, then
            all again.
        """
        count = len(tasks.turn)
        chosen = [
            places[torch.rand(count, len(places), generator=generator).argsort(1)[:, :each]]
            for places in self.places[part]
        ]
        numbers = torch.stack(chosen, 2).flatten(1)
        x = self.pixels[numbers] @ self.turns[tasks.turn]
        x = x.gather(2, tasks.crossed[:, None].expand_as(x))
        y = tasks.labels.gather(1, self.digits[numbers])
        return Support(x, y, torch.ones_like(y, dtype=torch.bool))


class Zoo(NamedTuple):
    """Source networks and their tasks."""

    networks: Params
    """Parameters, each (sources, *shape)."""
    tasks: Tasks
    """Turn and labels that each was trained with."""
    means: Tensor
    """Mean picture of each label in its training data, (sources, 10, 64)."""
    feature_mean: Tensor
    """Mean of each hidden neuron over its training data, (sources, hidden)."""
    feature_spread: Tensor
    """Standard deviation of the same."""

    def take(self, numbers: Tensor) -> "Zoo":
        """Return some of the sources."""
        rest = (its[numbers] for its in self[2:])
        return Zoo(self.networks.take(numbers), self.tasks.take(numbers), *rest)

    def relabelled(self, names: Tensor) -> "Zoo":
        """Rename the labels of each source: networks that were trained with these are the same.

        Args:
            names: New name of each label, (sources, 10).
        """
        old = names.argsort(1)
        networks = self.networks | {
            name: by_name(its, old) for name, its in self.networks.items() if name.startswith("2.")
        }
        tasks = self.tasks._replace(labels=names.gather(1, self.tasks.labels))
        return self._replace(networks=networks, tasks=tasks, means=by_name(self.means, old))


def by_name(values: Tensor, old: Tensor) -> Tensor:
    """Reorder values by label, (tasks, 10, ...), given the old name of each new one."""
    return values.gather(1, old.view(*old.shape, *[1] * (values.ndim - 2)).expand_as(values))


def plain_tasks(tasks: int, generator: torch.Generator) -> Tasks:
    """Draw tasks with a random turn and random labels, and pixels in order."""
    order = torch.arange(PIXELS).expand(tasks, -1)
    turn = torch.randint(TURNS, (tasks,), generator=generator)
    return Tasks(turn, draw_labels(tasks, generator), order)


def train_zoo(digits: Digits, sources: int, seed: int) -> Zoo:
    """Train source networks, all in one batched call, from one initialisation.

    Args:
        digits: Pictures.
        sources: Number of networks.
        seed: Seed of the tasks. The initialisation is the same for all seeds.
    """
    generator = torch.Generator().manual_seed(seed)
    tasks = plain_tasks(sources, generator)
    x, y, _ = digits.draw("train", tasks, SOURCE_SHOTS, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = mlp([PIXELS, HIDDEN, WAYS])
    networks = pretrain(base, x, y, SOURCE_STEPS, SOURCE_RATE)
    features = hidden_of(networks, x)
    means = one_hot(y, WAYS).to(x).mT @ x / SOURCE_SHOTS
    return Zoo(networks, tasks, means, features.mean(1), features.std(1, correction=0))


def hidden_of(networks: Params, x: Tensor) -> Tensor:
    """Return the hidden neurons of each network, (tasks, pictures, hidden)."""
    return torch.baddbmm(networks["0.bias"][:, None], x, networks["0.weight"].mT).relu()


def change_tasks(tasks: Tasks, family: Tensor, generator: torch.Generator) -> Tasks:
    """Draw a target for each source's task.

    Args:
        tasks: Tasks of the sources.
        family: Number of each target's family in `FAMILIES`, (tasks,).
        generator: Source of randomness.
    """
    by = torch.randint(-FARTHEST, FARTHEST + 1, (len(family),), generator=generator)
    labels = draw_labels(len(family), generator)
    crossed = torch.rand(len(family), PIXELS, generator=generator).argsort(1)
    turns, names = (family == 1) | (family == 2), (family == 0) | (family == 2)
    return Tasks(
        ((tasks.turn + by) % TURNS).where(turns, tasks.turn),
        labels.where(names[:, None], tasks.labels),
        crossed.where((family == 3)[:, None], tasks.crossed),
    )


class Targets(NamedTuple):
    """Targets of one part, fixed."""

    source: Params
    """Source network of each."""
    known: Support
    """Labelled examples, those of all classes for the first shot, then for the second, and so on.
    """
    query: Support
    """Pictures by which a target is judged."""
    family: Tensor
    """Number of its family in `FAMILIES`, (targets,)."""

    def shots(self, shots: int) -> Support:
        """Return the first labelled examples of each class."""
        return Support(*(its[:, : WAYS * shots] for its in self.known))


def draw_targets(
    digits: Digits, zoo: Zoo, part: str, count: int, shots: int, queries: int
) -> Targets:
    """Draw the targets of a part: the families in turn, each source once before any twice.

    Args:
        digits: Pictures.
        zoo: Sources of the part.
        part: ``"validation"`` or ``"test"``.
        count: Number of targets.
        shots: Labelled examples per class.
        queries: Held-out pictures per class.
    """
    generator = torch.Generator().manual_seed(TARGETS_SEED)
    family = torch.arange(count) % len(FAMILIES)
    chosen = zoo.take(torch.arange(count) % len(zoo.means))
    drawn = digits.draw(
        part, change_tasks(chosen.tasks, family, generator), shots + queries, generator
    )
    known, query = (
        Support(*(its[:, where] for its in drawn))
        for where in (slice(WAYS * shots), slice(WAYS * shots, None))
    )
    return Targets(chosen.networks, known, query, family)
