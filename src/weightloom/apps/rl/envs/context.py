"""What varies in a family of environments: names, ranges for training, and ranges held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.errors import ConfigError, nearest

Range = tuple[float, float]


@dataclass(frozen=True)
class Varied:
    """One parameter of an environment's physics."""

    name: str
    """As the environment knows it."""
    train: Range
    """Where contexts of training are drawn from, uniformly."""
    held_out: Range | None = None
    """Where no context of training lies; None where none is held out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for what, limits in (("train", self.train), ("held_out", self.held_out)):
            if limits is not None and not (-float("inf") < limits[0] < limits[1] < float("inf")):
                raise ConfigError(
                    f"The range {limits} of `{self.name}` ({what}) holds no numbers. It goes from "
                    f"low to high. Pass it in that order, as in `{self.name}=0.5:1.5`."
                )
        beyond = self.held_out
        if beyond is not None and max(beyond[0], self.train[0]) < min(beyond[1], self.train[1]):
            raise ConfigError(
                f"The range {beyond} of `{self.name}` is held out, but overlaps {self.train}, "
                "which training draws from. What is held out is never met in training. Let one "
                "begin where the other ends."
            )


@dataclass(frozen=True)
class ContextFamily:
    """Contexts of a family of environments: what varies, and where each parameter is drawn from.

    Example:
        >>> family = ContextFamily((Varied("mass", (1.0, 2.0), (2.0, 3.0)), Varied("length", (0.5, 1.0))))
        >>> context = family.sample(3, torch.Generator().manual_seed(0), held_out=True)
        >>> family.names, context.shape, bool((context[:, 0] >= 2.0).all())
        (('mass', 'length'), torch.Size([3, 2]), True)
    """

    varied: tuple[Varied, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what varies, in the order of a context's numbers."""
        return tuple(one.name for one in self.varied)

    @property
    def has_held_out(self) -> bool:
        """Whether any range is held out."""
        return any(one.held_out for one in self.varied)

    def sample(
        self, contexts: int, generator: torch.Generator, held_out: bool = False
    ) -> Float[Tensor, "contexts parameters"]:
        """Draw contexts, uniformly and independently.

        Args:
            contexts: How many.
            generator: Where randomness comes from.
            held_out: Take in each context one parameter from the range held out, the others from
                those of training. Parameters take turns, so that each is beyond its training range
                equally often.

        Raises:
            ConfigError: If no range is held out.
        """
        low, high = (torch.tensor([one.train[end] for one in self.varied]) for end in (0, 1))
        unit = torch.rand(contexts, len(self.varied), generator=generator)
        drawn = low + (high - low) * unit
        if not held_out:
            return drawn
        beyond = [number for number, one in enumerate(self.varied) if one.held_out]
        if not beyond:
            raise ConfigError(
                f"No range of {', '.join(f'`{name}`' for name in self.names)} is held out. "
                f"Contexts beyond those of training need one. Pass it, as in `--held-out "
                f"{self.names[0]}=2:3`."
            )
        for row in range(contexts):
            number = beyond[row % len(beyond)]
            limits = self.varied[number].held_out
            assert limits
            drawn[row, number] = limits[0] + (limits[1] - limits[0]) * unit[row, number]
        return drawn

    def normalise(
        self, context: Float[Tensor, "*rows parameters"]
    ) -> Float[Tensor, "*rows parameters"]:
        """Map training ranges to [-1, 1].

        What is held out lands beyond, as nothing of it is known in training.
        """
        low, high = (context.new_tensor([one.train[end] for one in self.varied]) for end in (0, 1))
        return 2 * (context - low) / (high - low) - 1

    def restore(
        self, normal: Float[Tensor, "*rows parameters"]
    ) -> Float[Tensor, "*rows parameters"]:
        """Undo `normalise`."""
        low, high = (normal.new_tensor([one.train[end] for one in self.varied]) for end in (0, 1))
        return low + (high - low) * (normal + 1) / 2

    def grid(
        self, points: int
    ) -> tuple[list[float], list[float], Float[Tensor, "contexts parameters"]]:
        """Lay a grid over the first two parameters, training and held-out ranges together, the others at their middle.

        Returns:
            Values of the first parameter, of the second (empty where there is one parameter only),
            and the contexts, the first parameter running fastest.
        """
        axes = []
        for one in self.varied[:2]:
            ends = [*one.train, *(one.held_out or ())]
            axes.append(torch.linspace(min(ends), max(ends), points))
        middle = torch.tensor([sum(one.train) / 2 for one in self.varied])
        first = axes[0]
        second = axes[1] if len(axes) > 1 else None
        contexts = middle.repeat(points if second is None else points * points, 1)
        contexts[:, 0] = first.repeat(1 if second is None else points)
        if second is not None:
            contexts[:, 1] = second.repeat_interleave(points)
        return first.tolist(), [] if second is None else second.tolist(), contexts


def family_of(
    known: Sequence[Varied],
    train: Sequence[str],
    held_out: Sequence[str],
    allowed: Sequence[str],
    complete: bool = False,
) -> ContextFamily:
    """Build a family from what is usual for an environment and what was typed.

    Args:
        known: What varies where nothing was typed.
        train: Typed training ranges, as in ``"gravity=8:12"``; these parameters alone vary then,
            unless ``complete``.
        held_out: Typed held-out ranges, likewise, of parameters that vary.
        allowed: Names that the environment has.
        complete: Whether a context always holds all that is usual, in its order.

    Raises:
        ConfigError: If a range cannot be read, or a name is none of the environment's.
    """
    usual = {one.name: one for one in known}
    typed = dict(_read(text, "vary") for text in train)
    beyond = dict(_read(text, "held-out") for text in held_out)
    for name in typed:
        if name not in allowed:
            raise ConfigError(
                f"`--vary {name}` names no parameter of this environment. A context is made of "
                f"numbers that the environment has. {nearest(name, allowed)}"
            )
    names = list(usual) if complete else list(typed) or list(usual)
    for name in beyond:
        if name not in names:
            raise ConfigError(
                f"`--held-out {name}` does not vary. What is held out lies beyond a training "
                f"range. {nearest(name, names)} Or add it, as in `--vary {name}=0.5:1.5`."
            )
    if not names:
        raise ConfigError(
            "Nothing varies in this environment. A family of environments needs at least one "
            "parameter with a range. Pass one, as in `--vary gravity=8:12 --held-out "
            "gravity=12:14`."
        )
    made = []
    for name in names:
        train_range = typed.get(name) or usual[name].train
        kept = usual[name].held_out if name in usual and name not in typed else None
        made.append(Varied(name, train_range, beyond.get(name, kept)))
    return ContextFamily(tuple(made))


def _read(text: str, flag: str) -> tuple[str, Range]:
    name, _, limits = text.partition("=")
    low, _, high = limits.partition(":")
    try:
        return name, (float(low), float(high))
    except ValueError as error:
        raise ConfigError(
            f"`--{flag} {text}` cannot be read. It is a name and a range. Type it as in `--{flag} "
            "gravity=8:12`."
        ) from error
