"""Steps of a training: differentiate the loss of a turn, check its gradient, move its parameters.

In:   the model, its players and their optimisers; a batch and the player of each step.
Out:  moved parameters; loss, norm of the gradient, and the signal that ended the run.
Knows nothing of logs, evaluations and checkpoints.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError, NonFiniteError
from weightloom.losses import TaskLoss, loss_of_those_there
from weightloom.tasks import Tasks
from weightloom.training.agreement import Agreement
from weightloom.training.optimiser import build_optimiser
from weightloom.training.processes import Processes
from weightloom.training.sources import spoilt
from weightloom.training.turns import Player, Turn


@dataclass(frozen=True)
class Gradient:
    """Outcome of a forward and backward pass; the gradient itself is in the parameters."""

    loss: float
    """Loss of this process, a mean over its tasks."""
    norm: float
    """Norm of the gradient, before clipping."""
    heard: Signals | None
    """Signal that any process had caught by then; None with one process."""


class Stepper:
    """Forward, backward and update of each step, by the player whose turn it is.

    Args:
        model: The model, on its device.
        players: Players of its turns.
        optimisers: Optimiser of each player, in the same order.
        fabric: Devices and processes.
        loss_per_task: Outputs and ``query_y`` to one loss per task. None: the model or the turn
            returns the losses.
        named: Name the turn in messages.
    """

    def __init__(
        self,
        model: nn.Module,
        players: Sequence[Player],
        optimisers: Sequence[torch.optim.Optimizer],
        fabric: Processes,
        loss_per_task: TaskLoss | None,
        named: bool,
    ) -> None:
        self.players, self.fabric, self.loss_per_task = players, fabric, loss_per_task
        self.owners = [f" of turn `{player.turn.name}`" if named else "" for player in players]
        self.model, self.named, self.parameters = model, named, list(model.parameters())
        self.agreement = Agreement(fabric) if fabric.world_size > 1 else None
        self.optimisers = optimisers
        self.engine: nn.Module
        self.engine, *self._wrapped = fabric.setup(_Unconverted(model, self.agreement), *optimisers)

    def differentiate(
        self, number: int, batch: Any, caught: Sequence[Signals], step: int, kept: Path | None
    ) -> Gradient:
        """Compute the loss of a batch and the clipped gradient of a player's parameters.

        Args:
            number: Number of the player.
            batch: Batch of the step, on the device.
            caught: Signals that this process caught.
            step: Number of the step, from 0, for messages.
            kept: Last checkpoint, for messages.

        Raises:
            NonFiniteError: If a loss of any process, or the gradient, is NaN or infinite.
            ConfigError: If the loss depends on none of the player's parameters.
        """
        player, owner = self.players[number], self.owners[number]
        losses = self._losses(player, batch)
        loss = losses.mean()
        value = loss.item()
        for parameter in self.parameters:
            parameter.grad = None
        is_finite, heard = self._backward(player, loss, math.isfinite(value), caught)
        if not is_finite:
            bad = _bad_loss(losses, value, batch, owner)
            raise NonFiniteError(_not_finite(bad, step, kept, owner))
        player.take_gradients()
        is_idle = self.named and all(leaf.grad is None for leaf in player.leaves)
        if is_idle or not loss.requires_grad:
            raise ConfigError(_idle(owner))
        norm = nn.utils.clip_grad_norm_(player.leaves, player.settings.clip_norm).item()
        if not math.isfinite(norm):
            bad = f"norm of the gradient{owner} is {norm}"
            raise NonFiniteError(_not_finite(bad, step, kept, owner))
        return Gradient(value, norm, heard)

    def run(self, number: int, batch: Any) -> None:
        """Run the model on a player's batch in this process alone, in single precision.

        Gradients stay possible, for losses that differentiate; none is computed here.
        """
        _Unconverted(self.model, None)(_Held(batch, self.players[number].turn))

    def update(self, number: int, step: int) -> float:
        """Move the parameters of a player along their gradient; return the learning rate."""
        rate = self.players[number].settings.learning_rate(step)
        for group in self.optimisers[number].param_groups:
            group["lr"] = rate
        self._wrapped[number].step()
        return rate

    def stop(
        self, heard: Signals | None, caught: Sequence[Signals], is_last: bool
    ) -> Signals | None:
        """Signal after which every process stops now, or None.

        Args:
            heard: As in `Gradient`.
            caught: Signals that this process caught.
            is_last: No step follows whose backward pass would exchange them.
        """
        if self.agreement is None:
            return next(iter(caught), None)
        return self.agreement.settle(caught) if is_last else heard

    def _losses(self, player: Player, batch: Any) -> Tensor:
        """Losses of a batch, (tasks,), or as the model or the turn returns them."""
        outputs: Tensor = self.engine(_Held(batch, player.turn))
        if self.loss_per_task is None:
            return outputs
        return loss_of_those_there(self.loss_per_task, outputs, batch.query_y, batch.query_mask)

    def _backward(
        self, player: Player, loss: Tensor, is_finite: bool, caught: Sequence[Signals]
    ) -> tuple[bool, Signals | None]:
        """Differentiate a loss; tell if it is finite in every process, and the signal heard.

        One process stops before the backward pass of a loss that is not finite. Several exchange
        the fact in it, so that none waits for one that stopped.
        """
        if self.agreement is not None:
            whole = loss if player.moves_all else loss + _touched(self.parameters)
            self.fabric.backward(whole + self.agreement.tell(is_finite, caught))
            return self.agreement.heard()
        if is_finite and loss.requires_grad:
            self.fabric.backward(loss, **player.inputs)
        return is_finite, None


def optimiser_of(player: Player) -> torch.optim.Optimizer:
    """Build the optimiser of a player, with the settings of its turn."""
    settings = player.settings
    optimiser = build_optimiser(
        player.leaves, settings.outer_lr, settings.weight_decay, settings.optimiser
    )
    for group in optimiser.param_groups:
        group["betas"] = player.turn.betas
    return optimiser


def _touched(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Zero that depends on every parameter: processes wait for the gradient of each."""
    every = [
        torch.view_as_real(its) if its.is_complex() else its
        for its in parameters
        if its.requires_grad
    ]
    return 0 * torch.stack([its.sum() for its in every]).sum()


class _Held:
    """Batch and turn, hidden from precision plug-ins, which convert the tensors of an input."""

    def __init__(self, batch: Any, turn: Turn) -> None:
        self.batch, self.turn = batch, turn


class _Unconverted(nn.Module):
    """Model that receives its batch in the dtypes of the source, also in half precision."""

    def __init__(self, model: nn.Module, agreement: nn.Module | None) -> None:
        super().__init__()
        self.model, self.agreement = model, agreement

    def forward(self, held: _Held) -> Tensor:
        turn = held.turn
        losses: Tensor = (
            self.model(held.batch)
            if turn.loss is None
            else turn.loss(self.model, held.batch, turn.name)
        )
        return losses


def _bad_loss(losses: Tensor, value: float, batch: Any, owner: str) -> str:
    """Name the tasks whose loss is not finite, and the data that are not finite."""
    if math.isfinite(value):
        return "loss of another process is not finite"
    bad = (~losses.isfinite()).nonzero().flatten().tolist() if losses.ndim == 1 else []
    which = f" for tasks {bad}" if isinstance(batch, Tasks) else f" at {bad}"
    data = (
        f", and the data hold NaN or infinity in {', '.join(places)}"
        if (places := spoilt(batch))
        else ""
    )
    return f"loss{owner} is {value}{which if bad else ''}{data}"


def _not_finite(bad: str, step: int, kept: Path | None, owner: str) -> str:
    back = f"The last good checkpoint is `{kept}`." if kept else "No checkpoint was written yet."
    return (
        f"At step {step + 1} the {bad}. Such a step would spoil every parameter, so the run "
        f"stopped before it. {back} Look for NaN in the data, or lower `outer_lr` or "
        f"`clip_norm`{owner}."
    )


def _idle(owner: str) -> str:
    return (
        f"The loss{owner} depends on none of the parameters that it should train, so no step would "
        "change them. The loss must use them without detaching them. Look for `detach()`, "
        "`no_grad()` or `.item()` on the way, or name the parameters that the loss does depend on."
    )
