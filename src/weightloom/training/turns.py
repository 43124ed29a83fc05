"""Turns: whose loss is differentiated in a step, the parameters that move then, and the settings of their optimiser."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from weightloom.errors import ConfigError, nearest
from weightloom.hypernets import HyperNetwork
from weightloom.losses import TaskLoss
from weightloom.params import Selector, parameters_by_name, select
from weightloom.training.options import (
    HasBlocks,
    Schedule,
    TrainOptions,
    check_counts,
    check_settings,
)
from weightloom.training.sources import Source

TurnLoss = Callable[[nn.Module, Any, str], Tensor]
"""The model, a batch and the name of the turn, to one loss or several, of which the mean is
differentiated."""

Part = nn.Module | nn.Parameter | Selector
"""A part of a model: a module, a parameter, or a glob, kind of module or predicate over
``named_parameters()``."""


@dataclass(frozen=True)
class Turn:
    """A turn of training: a player's loss, the parameters that it moves, and an optimiser of its own.

    While a turn lasts, nothing but its parameters moves: those of others have no gradient,
    momentum, weight decay or clipping in it. Its optimiser's state rests while others have their
    turns.

    With ``generates`` a turn moves a player that a hypernetwork writes. Of the own parameters that
    write the base, it moves those rows that write these names and no others
    (`weightloom.hypernets.HyperNetwork.written_by`); all that has a part in every name, such as a
    trunk, moves if ``parameters`` has it. Through a trunk that moves, what is generated for the
    resting player changes too, though its rows are still; ``probe`` of `train` logs by how much.

    Raises:
        ConfigError: If a setting is out of its range.

    Example:
        >>> Turn("critic", generates="critic.*", steps=5, betas=(0.0, 0.99)).steps
        5
    """

    name: str
    """Name in the log, in checkpoints and in messages; the loss is told."""
    loss: TurnLoss | None = None
    """Called with model, batch and name. None: the model's ``forward``, called with the batch,
    gives the losses."""
    parameters: Part | Iterable[Part] = "*"
    """Parameters that move, by one part of the model or several; those that want no gradient never
    do."""
    generates: str | Sequence[str] = ()
    """Globs over names of the base of a hypernetwork: the player that moves, as in
    ``"generator.*"``. Default: all."""
    steps: int = 1
    """Steps in a row before it is the next one's turn."""
    source: Source | None = None
    """Batches of this turn. Default: those of the run."""
    outer_lr: float | None = None
    """Peak learning rate. Default: that of `TrainOptions`, as for all that follows but
    ``betas``."""
    warmup_steps: int | None = None
    """Steps of the run, those of other turns included, until the peak."""
    schedule: Schedule | None = None
    """``"cosine"`` or ``"constant"``."""
    weight_decay: float | None = None
    """Decoupled weight decay of matrices and kernels."""
    clip_norm: float | None = None
    """Largest norm of the gradient of what this turn moves."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay per step of Adam's running means of the gradient and of its square."""

    def __post_init__(self) -> None:
        owner = f" of turn `{self.name}`"
        check_counts(owner, steps=self.steps)
        check_settings(
            owner,
            self.outer_lr,
            self.warmup_steps,
            self.weight_decay,
            self.clip_norm,
            self.schedule,
        )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(
                f"`betas={self.betas}`{owner} are no decays. Each is the share of a running mean "
                "that a step leaves, from 0 to below 1. Pass two such numbers, as in `(0.9, "
                "0.999)`."
            )
        if not isinstance(self.parameters, nn.Module | Tensor | str | type) and not callable(
            self.parameters
        ):
            object.__setattr__(
                self, "parameters", tuple(self.parameters)
            )  # an iterator would be spent at first sight
        if isinstance(self.generates, str):
            object.__setattr__(self, "generates", (self.generates,))

    def settings(self, options: TrainOptions) -> TrainOptions:
        """Return the options of a run with those that this turn has of its own."""
        names = ("outer_lr", "warmup_steps", "schedule", "weight_decay", "clip_norm")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        try:
            return replace(options, **own)
        except ConfigError as error:
            raise ConfigError(f"Turn `{self.name}`: {error}") from error


class Player:
    """What moves in a turn of one model.

    Args:
        turn: The turn.
        model: The model, on its device: rows that move share memory with its parameters.
        options: Those of the run.

    Raises:
        ConfigError: If nothing moves, or what the turn names is not there.
    """

    def __init__(self, turn: Turn, model: nn.Module, options: TrainOptions) -> None:
        self.turn, self.settings = turn, turn.settings(options)
        trained = [its for its in model.parameters() if its.requires_grad]
        chosen, rows = _chosen(turn, model), _rows(turn, model)
        self.parameters: list[nn.Parameter] = []
        """Parameters of the model of which something moves."""
        self.leaves: list[nn.Parameter] = []
        """What the optimiser steps: parameters, and rows of them."""
        self._rows: list[tuple[nn.Parameter, nn.Parameter, slice]] = []
        for parameter in trained:
            its = rows.get(id(parameter), [slice(None)]) if id(parameter) in chosen else []
            if its:
                self.parameters.append(parameter)
            for part in its:
                leaf = parameter if part == slice(None) else nn.Parameter(parameter.detach()[part])
                self.leaves.append(leaf)
                if leaf is not parameter:
                    self._rows.append((leaf, parameter, part))
        self.moves_all = len(self.parameters) == len(trained) and not self._rows
        self.inputs: dict[str, Any] = {} if self.moves_all else {"inputs": self.parameters}
        """What a backward pass is told, so that it computes no gradient of what rests."""
        if not self.leaves:
            raise ConfigError(
                f"Turn `{turn.name}` moves nothing: {type(model).__name__} has {len(trained)} "
                "parameters that want a gradient, and none of them is this turn's. A turn trains "
                "what `parameters` and `generates` name. Call `requires_grad_()` on it, or name "
                "something else."
            )

    def take_gradients(self) -> None:
        """Give rows the gradient of theirs; parameters that move whole have it already."""
        for leaf, parameter, part in self._rows:
            leaf.grad = None if parameter.grad is None else parameter.grad[part]

    def split(self, params: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Split generated parameters into those that this turn moves and those that rest."""
        moved = {
            name for name in params if any(fnmatchcase(name, glob) for glob in self.turn.generates)
        }
        return (
            {name: params[name] for name in params if name in moved},
            {name: params[name] for name in params if name not in moved},
        )


class Order:
    """Whose turn it is, by the number of a step alone, so that a run which goes on has the right one.

    Args:
        turns: One after the other, then again from the first.
    """

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.steps = [turn.steps for turn in turns]
        self.ends = list(accumulate(self.steps))

    def at(self, step: int) -> tuple[int, int]:
        """Return the number of the turn that a step, counted from 0, belongs to, and the steps it has taken with it."""
        rounds, place = divmod(step, self.ends[-1])
        number = bisect_right(self.ends, place)
        return number, (rounds + 1) * self.steps[number] + place - self.ends[number] + 1


def check_turns(
    turns: Sequence[Turn], options: TrainOptions, loss_per_task: TaskLoss | None
) -> None:
    """Raise a `ConfigError` if turns cannot be told apart, do not fit the run, or one of them would never come."""
    if not turns:
        return
    if loss_per_task is not None:
        raise ConfigError(
            "`loss_per_task` and `turns` were given. Each turn has a loss of its own. Pass None "
            "for the first, and `Turn(name, loss)` with a loss that takes model, batch and name."
        )
    names = [turn.name for turn in turns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"{names.count(twice[0])} turns are called `{twice[0]}`. Rows and checkpoints go by "
            "the name. Pass turns of different names; one that comes often has `steps`."
        )
    if options.mode != "joint":
        raise ConfigError(
            f"`mode={options.mode!r}` and `turns` were given. The mode makes turns of the blocks "
            "of the model. "
            'Leave out one of them, as in `mode="joint"`.'
        )
    before = sum(turn.steps for turn in turns[:-1])
    if before >= options.steps:
        raise ConfigError(
            f"`steps={options.steps}` are over before turn `{turns[-1].name}` comes: those before "
            f"it take {before}. Pass `TrainOptions(steps={before + turns[-1].steps})` or more."
        )


def turns_of_blocks(model: nn.Module, options: TrainOptions) -> list[Turn]:
    """Return the turns that a mode stands for.

    One over everything, or one for each block of the model.

    Raises:
        ConfigError: If blocks are to be trained in turn, and the model has none.
    """
    if options.mode == "joint":
        return [Turn("model")]
    if not isinstance(model, HasBlocks):
        raise ConfigError(
            f'`mode="alternating"` with {type(model).__name__}, which has no blocks. They are trained in turn. '
            'Give it a method `blocks()` that returns lists of parameters, or pass `mode="joint"`.'
        )
    blocks = [{id(its) for its in block if its.requires_grad} for block in model.blocks()]
    blocks = [block for block in blocks if block]
    if len(blocks) < 2:
        return [Turn("model")]
    every = set().union(*blocks)
    return [
        Turn(
            f"block {number}",
            parameters=[
                its for its in model.parameters() if id(its) in block or id(its) not in every
            ],
            steps=options.block_steps,
        )
        for number, block in enumerate(blocks, 1)
    ]


def _chosen(turn: Turn, model: nn.Module) -> set[int]:
    """Return the ``id`` of every parameter that a turn names."""
    parts = turn.parameters if isinstance(turn.parameters, tuple) else (turn.parameters,)
    named = parameters_by_name(model)
    own, chosen = {id(its) for its in named.values()}, set()
    for part in parts:
        if isinstance(part, Tensor):
            found = {id(part)}
        elif isinstance(part, nn.Module):
            found = {id(its) for its in part.parameters()}
        else:
            found = (
                {id(named[name]) for name in select(model, part, "parameters")} if named else set()
            )
        if found - own:
            raise ConfigError(
                f"Turn `{turn.name}` names {len(found - own)} parameters that are not in "
                f"{type(model).__name__}. Only "
                "those of the model are trained and kept. Make them a part of it, as in "
                "`model.critic = critic`."
            )
        chosen |= found
    return chosen


def _rows(turn: Turn, model: nn.Module) -> dict[int, list[slice]]:
    """Return the rows that move of each parameter that writes a base, by its ``id``.

    All is ``slice(None)``.
    """
    if not turn.generates:
        return {}
    rows: dict[int, list[slice]] = {}
    known: list[str] = []
    for hyper in [module for module in model.modules() if isinstance(module, HyperNetwork)]:
        for name, written in hyper.written_by().items():
            known.append(name)
            moves = any(fnmatchcase(name, glob) for glob in turn.generates)
            for parameter, part in written:
                its = rows.setdefault(id(parameter), [])
                if moves:
                    _join(its, part, parameter)
    for glob in turn.generates:
        if not any(fnmatchcase(name, glob) for name in known):
            raise ConfigError(
                f"`generates={glob!r}` of turn `{turn.name}` matches no parameter that a "
                f"hypernetwork in {type(model).__name__} writes. A glob is held against the names "
                f"in its base. {nearest(glob, known)}"
            )
    return rows


def _join(parts: list[slice], part: slice, parameter: Tensor) -> None:
    """Add rows to a list of rows, to the last of them where they follow it."""
    if slice(None) in parts:
        return
    if part != slice(None) and parts and parts[-1].stop == part.start:
        part = slice(parts.pop().start, part.stop)
    parts.append(slice(None) if part == slice(0, len(parameter) if parameter.ndim else 1) else part)
