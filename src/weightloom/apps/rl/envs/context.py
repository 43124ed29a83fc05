"""Context parameters of a family of environments: names, training ranges and held-out ranges."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.errors import ConfigError, nearest

Range = tuple[float, float]
"""Lower and upper end."""


@dataclass(frozen=True)
class Varied:
    """One context parameter of an environment, with its ranges.

    Raises:
        ConfigError: If a range is empty or infinite, or the two ranges overlap.
    """

    name: str
    """Name in the environment."""
    train: Range
    """Range of training contexts, drawn uniformly."""
    held_out: Range | None = None
    """Range of held-out contexts, without a training context; None for no held-out range."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for kind, limits in (("train", self.train), ("held_out", self.held_out)):
            if limits is not None and not (-float("inf") < limits[0] < limits[1] < float("inf")):
                raise ConfigError(
                    f"The range {limits} of `{self.name}` ({kind}) is empty or infinite. A range "
                    f"goes from low to high. Pass it in that order, e.g. `{self.name}=0.5:1.5`."
                )
        beyond = self.held_out
        if beyond is not None and max(beyond[0], self.train[0]) < min(beyond[1], self.train[1]):
            raise ConfigError(
                f"The held-out range {beyond} of `{self.name}` overlaps the training range "
                f"{self.train}. Held-out contexts are never used in training. Let one range begin "
                "where the other ends."
            )


@dataclass(frozen=True)
class ContextFamily:
    """Distribution of contexts: the parameters that vary, each uniform over its range.

    Example:
        >>> mass, length = Varied("mass", (1.0, 2.0), (2.0, 3.0)), Varied("length", (0.5, 1.0))
        >>> family = ContextFamily((mass, length))
        >>> context = family.sample(3, torch.Generator().manual_seed(0), held_out=True)
        >>> family.names, context.shape, bool((context[:, 0] >= 2.0).all())
        (('mass', 'length'), torch.Size([3, 2]), True)
    """

    varied: tuple[Varied, ...]
    """Parameters, in the order of a context's numbers."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of a context's numbers."""
        return tuple(one.name for one in self.varied)

    @property
    def has_held_out(self) -> bool:
        """True if any parameter has a held-out range."""
        return any(one.held_out for one in self.varied)

    def sample(
        self, contexts: int, generator: torch.Generator, held_out: bool = False
    ) -> Float[Tensor, "contexts parameters"]:
        """Draw contexts, uniformly and independently.

        Args:
            contexts: Number of contexts.
            generator: Random generator.
            held_out: Draw one parameter of each context from its held-out range, the others from
                their training ranges. Parameters with a held-out range take turns.

        Raises:
            ConfigError: If ``held_out`` and no parameter has a held-out range.
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
                f"Held-out contexts need one. Pass it, e.g. `--held-out "
                f"{self.names[0]}=2:3`."
            )
        for row in range(contexts):  # the numbers drawn above are reused in the held-out range
            number = beyond[row % len(beyond)]
            limits = self.varied[number].held_out
            assert limits
            drawn[row, number] = limits[0] + (limits[1] - limits[0]) * unit[row, number]
        return drawn

    def normalise(
        self, context: Float[Tensor, "*rows parameters"]
    ) -> Float[Tensor, "*rows parameters"]:
        """Map contexts so that training ranges become [-1, 1]; held-out values lie outside."""
        low, high = (context.new_tensor([one.train[end] for one in self.varied]) for end in (0, 1))
        return 2 * (context - low) / (high - low) - 1

    def restore(
        self, normal: Float[Tensor, "*rows parameters"]
    ) -> Float[Tensor, "*rows parameters"]:
        """Map normalised contexts back to the environment's units; the inverse of `normalise`."""
        low, high = (normal.new_tensor([one.train[end] for one in self.varied]) for end in (0, 1))
        return low + (high - low) * (normal + 1) / 2

    def grid(
        self, points: int
    ) -> tuple[list[float], list[float], Float[Tensor, "contexts parameters"]]:
        """Return a grid over the first two parameters, with the others in mid-range.

        An axis spans training and held-out range.

        Args:
            points: Points per axis.

        Returns:
            Values of the first parameter, values of the second (empty for a single parameter), and
            the contexts, the first parameter varying fastest.
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
    """Build a family from preset and typed ranges.

    Args:
        known: Preset parameters of the environment.
        train: Typed training ranges, e.g. ``"gravity=8:12"``. Only these parameters then vary,
            unless ``complete``.
        held_out: Typed held-out ranges, likewise, of parameters that vary.
        allowed: Names of all parameters of the environment.
        complete: Keep every preset parameter, in its order.

    Raises:
        ConfigError: If a range cannot be read, a name is no parameter of the environment, or none
            varies.
    """
    usual = {one.name: one for one in known}
    typed = dict(_read(text, "vary") for text in train)
    beyond = dict(_read(text, "held-out") for text in held_out)
    for name in typed:
        if name not in allowed:
            raise ConfigError(
                f"`--vary {name}` names no parameter of this environment. A context consists of "
                f"parameters of the environment. {nearest(name, allowed)}"
            )
    names = list(usual) if complete else list(typed) or list(usual)
    _check_names(names, beyond)
    return ContextFamily(
        tuple(
            Varied(name, typed[name], beyond.get(name))
            if name in typed
            else Varied(name, usual[name].train, beyond.get(name, usual[name].held_out))
            for name in names
        )
    )


def _check_names(names: Sequence[str], held_out: Iterable[str]) -> None:
    """Raise a `ConfigError` unless a parameter varies, and each held-out one does."""
    for name in held_out:
        if name not in names:
            raise ConfigError(
                f"`--held-out {name}` does not vary. A held-out range lies outside a training "
                f"range. {nearest(name, names)} Or add it, e.g. `--vary {name}=0.5:1.5`."
            )
    if not names:
        raise ConfigError(
            "No parameter varies in this environment. A family of environments needs at least one "
            "with a range. Pass one, e.g. `--vary gravity=8:12 --held-out gravity=12:14`."
        )


def _read(text: str, flag: str) -> tuple[str, Range]:
    """Parse ``name=low:high``."""
    name, _, limits = text.partition("=")
    low, _, high = limits.partition(":")
    try:
        return name, (float(low), float(high))
    except ValueError as error:
        raise ConfigError(
            f"`--{flag} {text}` cannot be read. It is a name and a range. Type it like `--{flag} "
            "gravity=8:12`."
        ) from error
