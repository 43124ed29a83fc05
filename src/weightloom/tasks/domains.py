"""Digits under domains: one task is a way of taking pictures, known from unlabelled pictures only.

In:   labelled pictures, the kinds of change that may be composed; a ``torch.Generator``.
Out:  `Tasks` whose support is unlabelled, with a few labelled pictures behind it if asked for.
Knows nothing of networks.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from weightloom.errors import ConfigError, nearest
from weightloom.tasks.tasks import ALL, Tasks, TaskSource

KINDS = ("turn", "mirror", "shift", "stretch", "blur", "contrast", "shade", "noise")
"""Kinds of change that a domain composes, in the order of their application."""
MOST_KINDS = 4
"""Maximum number of kinds in a domain."""
SHIFT, STRETCH = 1.5, 0.35
"""Ranges in pixels and in log scale per axis: U(-1.5, 1.5), exp U(-.35, .35)."""
BLUR, NOISE = (0.4, 1.0), (0.1, 0.35)
"""Ranges of the blur's standard deviation in pixels, and of the noise's in units of full ink."""
CONTRAST, SHADE = 1.1, 1.0
"""Ranges of the log power of ink, U(-1.1, 1.1), and of the shade at the edges, U(-1, 1) per
axis, in units of full ink."""
UNLABELLED = -1
"""Label of an unlabelled support picture."""

Pair = tuple[str, str]


class Domains(NamedTuple):
    """Ways of taking pictures: a picture x becomes (warp x)^power + shade + noise · normal."""

    warp: Float[Tensor, "tasks seen pixels"]
    """Turn, mirror, shift, stretch and blur, as one matrix between flat pictures."""
    power: Float[Tensor, " tasks"]
    """Exponent of ink: contrast."""
    shade: Float[Tensor, "tasks seen"]
    """Light that is added to every picture, linear across it."""
    noise: Float[Tensor, " tasks"]
    """Standard deviation of independent noise on every pixel."""

    def take(
        self, pictures: Float[Tensor, "tasks pictures height width"], generator: torch.Generator
    ) -> Float[Tensor, "tasks pictures height width"]:
        """Take pictures in each domain; the noise of each is drawn from ``generator``."""
        ink = (pictures.flatten(2) @ self.warp.mT).clamp(min=0) ** self.power[:, None, None]
        spread = torch.randn(ink.shape, generator=generator) * self.noise[:, None, None]
        return (ink + self.shade[:, None] + spread).view(pictures.shape)


def compositions(
    without: Iterable[Pair] = (), within: Iterable[Pair] = ()
) -> Bool[Tensor, "compositions kinds"]:
    """List the compositions of one to `MOST_KINDS` kinds that hold none of some pairs.

    Args:
        without: Pairs of kinds that no composition may hold.
        within: Pairs of which each composition holds at least one. Empty: no such condition.

    Returns:
        True for the kinds of each composition, in the order of `KINDS`.

    Raises:
        ConfigError: If a pair names an unknown kind, or no composition is left.

    Example:
        >>> len(compositions()), len(compositions(without=[("turn", "blur")]))
        (162, 140)
        >>> len(compositions(within=[("turn", "blur")]))
        22
    """
    refused, wanted = ([_columns(pair) for pair in pairs] for pairs in (without, within))
    rows = [
        torch.tensor([kind in chosen for kind in range(len(KINDS))])
        for size in range(1, MOST_KINDS + 1)
        for chosen in combinations(range(len(KINDS)), size)
    ]
    table = torch.stack(rows)
    kept = ~_holds_any(table, refused)
    if wanted:
        kept &= _holds_any(table, wanted)
    if not kept.any():
        raise ConfigError(
            f"No composition is left of those within {list(within)} and without {list(without)}. "
            "A pair that is wanted cannot be refused as well. Name other pairs in one of the two."
        )
    return table[kept]


def _holds_any(table: Tensor, pairs: list[list[int]]) -> Tensor:
    """True for rows of ``table`` with both kinds of any pair."""
    held = torch.zeros(len(table), dtype=torch.bool)
    for pair in pairs:
        held |= table[:, pair].all(1)
    return held


def _columns(pair: Pair) -> list[int]:
    for kind in pair:
        if kind not in KINDS:
            raise ConfigError(
                f"`{kind}` is no kind of change. A domain composes known kinds. "
                f"{nearest(kind, KINDS)}"
            )
    return [KINDS.index(kind) for kind in pair]


def sample_domains(
    kinds: Bool[Tensor, "tasks kinds"],
    size: int,
    generator: torch.Generator,
    share: slice = ALL,
) -> Domains:
    """Draw a domain for each composition of kinds.

    Turns have any angle. Values between pixels are bilinear, and there is no ink outside of a
    picture.

    Args:
        kinds: True for the kinds of each domain, in the order of `KINDS`.
        size: Height and width of a picture, in pixels.
        generator: Source of randomness.
        share: Slice of the domains to return. The random numbers of all are drawn.

    Example:
        >>> turned = torch.tensor([[True] + 7 * [False]])
        >>> domains = sample_domains(turned, 8, torch.Generator().manual_seed(0))
        >>> domains.warp.shape, domains.power, domains.noise
        (torch.Size([1, 64, 64]), tensor([1.]), tensor([0.]))
    """
    chance = torch.rand(len(kinds), 10, generator=generator)[share]
    has = dict(zip(KINDS, kinds[share].float().unbind(1), strict=True))
    even = (2 * chance - 1).unbind(1)  # U(-1, 1)
    angle = math.pi * even[0] * has["turn"]
    right, down = (2 * SHIFT / size * even[i] * has["shift"] for i in (1, 2))
    wide, high = ((STRETCH * even[i] * has["stretch"]).exp() for i in (3, 4))
    warp = warps(angle, (1 - 2 * has["mirror"]) * wide, high, right, down, size)
    warp = _blurred(warp, _between(BLUR, chance[:, 5]) * has["blur"]).flatten(2).mT
    edge = torch.linspace(-1, 1, size)
    across, along = (SHADE * (even[i] * has["shade"])[:, None] for i in (7, 8))
    shade = (across * edge)[:, None, :] + (along * edge)[:, :, None]
    power = (CONTRAST * even[6] * has["contrast"]).exp()
    noise = _between(NOISE, chance[:, 9]) * has["noise"]
    return Domains(warp, power, shade.flatten(1), noise)


def _between(ends: tuple[float, float], chance: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * chance


def warps(
    angle_rad: Float[Tensor, " tasks"],
    wide: Float[Tensor, " tasks"],
    high: Float[Tensor, " tasks"],
    right: Float[Tensor, " tasks"],
    down: Float[Tensor, " tasks"],
    size: int,
) -> Float[Tensor, "tasks pixels size size"]:
    """Warp the pictures of one pixel each: together, a linear map between pictures.

    Args:
        angle_rad: Turn, counter-clockwise.
        wide: Scale of the width; negative for a mirrored picture.
        high: Scale of the height.
        right: Shift to the right, as a share of half the width.
        down: Shift downward, as a share of half the height.
        size: Height and width, in pixels.

    Returns:
        For each domain and each pixel of the original, the picture that this pixel becomes.
    """
    cos, sin = angle_rad.cos(), angle_rad.sin()
    # From the place in the new picture back to that in the old one: shift, turn, stretch.
    back = torch.stack(
        [
            torch.stack([cos, -sin, -cos * right + sin * down], 1) / wide[:, None],
            torch.stack([sin, cos, -sin * right - cos * down], 1) / high[:, None],
        ],
        dim=1,
    )
    tasks, pixels = len(back), size * size
    grid = affine_grid(back, [tasks, 1, size, size], align_corners=False)
    single = torch.eye(pixels).view(1, pixels, size, size).expand(tasks, -1, -1, -1)
    return grid_sample(single, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _blurred(pictures: Tensor, spread: Tensor) -> Tensor:
    """Blur pictures, (tasks, pixels, size, size), by a Gaussian along each axis.

    Args:
        pictures: Pictures.
        spread: Standard deviation in pixels, (tasks,); 0 for no blur.
    """
    place = torch.arange(pictures.shape[-1])
    squares = (place[:, None] - place).square()
    near = (-squares / (2 * spread.clamp(min=0.05).square())[:, None, None]).softmax(-1)[:, None]
    return near @ pictures @ near.mT


@dataclass(frozen=True)
class DomainTasks(TaskSource):
    """Classification tasks of one domain each, with unlabelled pictures as support.

    Every batch draws fresh domains: first a composition of kinds, then its angles, shifts and so
    on. Support and query pictures of a task differ. Labels mean the same in every task.
    ``support_x`` and ``query_x`` are (tasks, pictures, 1, height, width).

    Example:
        >>> pool = torch.rand(200, 8, 8), torch.arange(200) % 10
        >>> source = DomainTasks(*pool, compositions(), examples=16, shots=1, queries=50)
        >>> tasks = source.sample(4, torch.Generator().manual_seed(0))
        >>> tasks.support_x.shape, tasks.query_x.shape
        (torch.Size([4, 26, 1, 8, 8]), torch.Size([4, 50, 1, 8, 8]))
        >>> tasks.support_y[0, 14:19]
        tensor([-1, -1,  0,  1,  2])
    """

    images: Tensor
    """(images, size, size): uint8 in 0 to 255, or float in 0 to 1."""
    labels: Int[Tensor, " images"]
    """Class of each image, from 0; every class has at least ``shots`` images."""
    compositions: Bool[Tensor, "compositions kinds"]
    """Compositions to draw from, as of `compositions`."""
    examples: int = 64
    """Unlabelled support pictures."""
    shots: int = 0
    """Labelled support pictures per class, behind the unlabelled ones, ordered by class."""
    queries: int = 64
    """Query pictures."""
    domains: Domains | None = None
    """Domains to take in turn, instead of new ones in every batch."""

    def __post_init__(self) -> None:
        counts = torch.bincount(self.labels)
        if not 0 <= self.shots <= int(counts.min()):
            raise ConfigError(
                f"`shots={self.shots}` but the rarest class has {int(counts.min())} pictures. None "
                f"is drawn twice for a task. Pass `shots` from 0 to {int(counts.min())}."
            )
        left = len(self.images) - self.shots * len(counts)
        if self.examples < 0 or self.queries < 1 or self.examples + self.queries > left:
            raise ConfigError(
                f"`examples={self.examples}` and `queries={self.queries}`, of {left} pictures that "
                "are not labelled support. None is drawn twice for a task. Pass numbers whose sum "
                f"is at most {left}, and at least one query."
            )

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Draw domains, then pictures, for all tasks at once.

        Args:
            tasks: Number of tasks to draw.
            generator: Source of randomness.
            share: Slice of the tasks to return.
        """
        domains = self._domains(tasks, generator)
        order = torch.rand(tasks, len(self.images), generator=generator)
        labelled = self._labelled(order)
        others = order.scatter(1, labelled, -1.0).topk(self.examples + self.queries).indices
        support, query = others.split([self.examples, self.queries], dim=1)
        rows = torch.cat([support, labelled, query], dim=1)
        pictures = self.images[rows]
        pictures = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
        seen = domains.take(pictures, generator)[:, :, None]
        support_x, query_x = seen.split([rows.shape[1] - self.queries, self.queries], dim=1)
        unknown = torch.full_like(support, UNLABELLED)
        support_y = torch.cat([unknown, self.labels[labelled]], dim=1)
        return Tasks.of(support_x, support_y, query_x, self.labels[query]).take(share)

    def _labelled(self, order: Tensor) -> Tensor:
        """Numbers of the labelled pictures of each task, class by class, (tasks, pictures)."""
        if not self.shots:
            return torch.empty(len(order), 0, dtype=torch.int64)
        of_class = self.labels == torch.arange(int(self.labels.max()) + 1)[:, None]
        return order[:, None].masked_fill(~of_class, -1.0).topk(self.shots).indices.flatten(1)

    def _domains(self, tasks: int, generator: torch.Generator) -> Domains:
        """Domains of a batch: fixed ones in turn, or new ones."""
        if self.domains is not None:
            number = torch.arange(tasks) % len(self.domains.noise)
            return Domains(*(values[number] for values in self.domains))
        drawn = torch.randint(len(self.compositions), (tasks,), generator=generator)
        return sample_domains(self.compositions[drawn], self.images.shape[-1], generator)
