"""The loop: a batch is drawn, the loss of whose turn it is differentiated, a step taken, and what must survive kept."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError, NonFiniteError
from weightloom.forms.arithmetic import distance
from weightloom.losses import TaskLoss, loss_of_those_there
from weightloom.runs.metrics import Row
from weightloom.runs.progress import TrainingProgress
from weightloom.runs.signals import collected_signals
from weightloom.tasks import Tasks
from weightloom.training.agreement import Agreement
from weightloom.training.average import Average
from weightloom.training.keep import History, Keeper, resume_run
from weightloom.training.optimiser import build_optimiser
from weightloom.training.options import TrainOptions
from weightloom.training.processes import OneProcess, Processes
from weightloom.training.sources import Batches, Source, check_source, spoilt
from weightloom.training.turns import Order, Player, Turn, check_turns, turns_of_blocks

Probe = Callable[[], Mapping[str, Tensor]]
"""Returns parameters that are generated for conditions which stay the same."""


def train(
    model: nn.Module,
    source: Source | None,
    loss_per_task: TaskLoss | None,
    options: TrainOptions,
    *,
    turns: Sequence[Turn] = (),
    run: Path | None = None,
    resume: bool = False,
    evaluate: Callable[[int], Row] | None = None,
    probe: Probe | None = None,
    fabric: Processes | None = None,
    quiet: bool = True,
    log_every: int = 10,
    identity: str = "",
) -> History:
    """Train ``model``: one loss through hypernetwork and base, or a loss for each of several players in turn.

    Args:
        model: Without ``turns`` its ``forward`` takes a batch, such as `Tasks`, and gives outputs,
            (tasks, queries,
            ...), or losses, (tasks,).
        source: Where the batch of each step comes from: a `TaskSource`, a function of the step,
            counted from 0, and a ``torch.Generator``, or a list or ``DataLoader`` of batches, which
            is gone through again and again. A batch is any tree of tensors that the loss takes.
            None where every turn has a source of its own.
        loss_per_task: Outputs and ``query_y`` to one loss per task. None: ``forward`` gives the
            losses itself.
        options: Steps, learning rate and so on.
        turns: Players, from the first step on one after the other. None trains everything by one
            loss.
        run: A folder for ``metrics.jsonl`` and ``checkpoints/last.safetensors``. None keeps
            nothing.
        resume: Go on from the checkpoint in ``run``. A list or loader is gone through up to there.
        evaluate: Called with the number of steps done, on the first process only; the row it
            returns is logged.
        probe: Returns generated parameters, by the names that ``generates`` of a turn selects from.
            Called in eval mode before and after each logged step of such a turn; the row then says
            by which share of their norm those of the turn moved, ``moved``, and those that rest,
            through a trunk that all share, ``resting_moved``.
        fabric: Devices and processes: a launched ``Fabric``, or `OneProcess`. None means one
            process on the CPU.
        quiet: Show no progress.
        log_every: Steps between rows of the history, counted for each turn by itself.
        identity: Digest of the run, kept in checkpoints; a checkpoint of another run is refused.

    Returns:
        The history; `History.stopped_by` is set when Ctrl-C or SIGTERM ended the run, after a
        checkpoint was written.

    Raises:
        NonFiniteError: If a loss or the gradient is NaN or infinite. No parameter was changed by
            that step.
        CheckpointError: If a checkpoint cannot be written, or ``resume`` finds none that fits.
        ConfigError: If the tasks of a step cannot be dealt out evenly over the processes, a model
            without blocks is to be trained in turns, a source cannot be wound back though ``run``
            is given, or nothing would be trained.
    """
    fabric = fabric or OneProcess()
    world, rank = fabric.world_size, fabric.global_rank
    check_turns(turns, options, loss_per_task)
    sources = [source if turn.source is None else turn.source for turn in turns] or [source]
    for its in sources:
        check_source(its, options.tasks, world, run is not None)
    model.to(fabric.device)  # before anything is made that has to lie beside its parameters
    players = [Player(turn, model, options) for turn in turns or turns_of_blocks(model, options)]
    order = Order([player.turn for player in players])
    optimisers = {player.turn.name: _optimiser_of(player) for player in players}
    average = Average(model, options.average, options.average_buffers)
    history, first = History(), 0
    if resume:
        if run is None:
            raise ConfigError(
                "`resume=True` without `run`. There is no folder to go on from. Pass "
                "`run=Path(...)`."
            )
        history, first = resume_run(run, model, optimisers, average, identity)
    parameters = list(model.parameters())
    agreement = Agreement(fabric) if world > 1 else None
    engine, *fabric_optimisers = fabric.setup(_Unconverted(model, agreement), *optimisers.values())
    batches = Batches(
        sources, (lambda step: order.at(step)[0]) if turns else lambda step: 0, options, fabric
    )
    batches.wind(first)
    engine.train()
    keeper = Keeper(run if rank == 0 else None, model, optimisers, history, average, identity)
    before_s, start_s = history.wall_time_s, time.monotonic()

    with (
        collected_signals() as caught,
        TrainingProgress(options.steps, first, quiet or rank > 0) as progress,
    ):
        for step in range(first, options.steps):
            (number, taken), done = order.at(step), step + 1
            player = players[number]
            owner = f" of turn `{player.turn.name}`" if turns else ""
            batch = fabric.to_device(batches.at(step))
            losses = engine(_Held(batch, player.turn))
            if loss_per_task is not None:
                losses = loss_of_those_there(loss_per_task, losses, batch.query_y, batch.query_mask)
            loss = losses.mean()
            value = loss.item()
            well, stop = math.isfinite(value), None
            for parameter in parameters:
                parameter.grad = None
            if agreement:
                whole = loss if player.moves_all else loss + _touched(parameters)
                fabric.backward(whole + agreement.tell(well, caught))
                well, stop = agreement.heard()
            if not well:
                raise NonFiniteError(
                    _not_finite(_bad_loss(losses, value, batch, owner), step, keeper.kept, owner)
                )
            if not loss.requires_grad:
                raise ConfigError(_idle(owner))
            if not agreement:
                fabric.backward(loss, **player.inputs)
            player.take_gradients()
            if turns and all(leaf.grad is None for leaf in player.leaves):
                raise ConfigError(_idle(owner))
            norm = nn.utils.clip_grad_norm_(player.leaves, player.settings.clip_norm).item()
            if not math.isfinite(norm):
                what = f"norm of the gradient{owner} is {norm}"
                raise NonFiniteError(_not_finite(what, step, keeper.kept, owner))
            is_logged = taken % log_every == 0 or done == options.steps
            watch = probe if is_logged and player.turn.generates else None
            seen = _look(watch, engine) if watch else {}
            rate = player.settings.learning_rate(step)
            for group in optimisers[player.turn.name].param_groups:
                group["lr"] = rate
            fabric_optimisers[number].step()
            average.update(step)

            history.wall_time_s = before_s + time.monotonic() - start_s
            progress.step(done, value)
            if is_logged:
                whose = {"turn": player.turn.name} if len(players) > 1 or turns else {}
                row = {
                    "step": done,
                    **whose,
                    "loss": value,
                    "outer_lr": rate,
                    "gradient_norm": norm,
                }
                keeper.log(row | _moved(player, seen, _look(watch, engine)) if watch else row)
            if (
                evaluate
                and rank == 0
                and (done % options.evaluate_every == 0 or done == options.steps)
            ):
                with average.in_place():
                    scores = evaluate(done)
                if scores:
                    if "validation_score" in scores:
                        progress.evaluated(
                            scores.get("score_name", "score"), scores["validation_score"]
                        )
                    keeper.log({"step": done, **scores})
                engine.train()
            if not agreement:
                stop = caught[0] if caught else None
            elif done == options.steps:
                stop = agreement.settle(caught)
            history.stopped_by = stop
            if history.stopped_by or done % options.checkpoint_every == 0 or done == options.steps:
                keeper.keep(done)
            if history.stopped_by:
                break
    if not history.stopped_by:
        average.settle()
    return history


def _optimiser_of(player: Player) -> torch.optim.Optimizer:
    """Build the optimiser of a turn."""
    optimiser = build_optimiser(
        player.leaves, player.settings.outer_lr, player.settings.weight_decay
    )
    for group in optimiser.param_groups:
        group["betas"] = player.turn.betas
    return optimiser


def _touched(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return zero, of which every parameter is a part: processes wait for the gradient of each."""
    every = [
        torch.view_as_real(its) if its.is_complex() else its
        for its in parameters
        if its.requires_grad
    ]
    return 0 * torch.stack([its.sum() for its in every]).sum()


@torch.no_grad()
def _look(probe: Probe, engine: nn.Module) -> Mapping[str, Tensor]:
    """Copy what is generated now: a step changes values that it may share memory with."""
    engine.eval()
    seen = copy.deepcopy(dict(probe()))
    engine.train()
    return seen


def _moved(player: Player, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Row:
    """Say how far a step moved what a turn generates and what rests, as shares of their norms, means over tasks."""
    pairs = zip(("moved", "resting_moved"), player.split(before), player.split(after), strict=True)
    return {key: distance(now, was, relative=True).mean().item() for key, was, now in pairs if was}


class _Held:
    """A batch, out of sight of a precision plug-in, which would convert whatever tensors it finds in an input."""

    def __init__(self, batch: Any, turn: Turn) -> None:
        self.batch, self.turn = batch, turn


class _Unconverted(nn.Module):
    """Give a model its batch as it is.

    Half precision is for what networks compute, not for what data say.
    """

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
    """Say which loss is not finite, and where the data are not."""
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


def _not_finite(what: str, step: int, kept: Path | None, owner: str) -> str:
    back = f"The last good checkpoint is `{kept}`." if kept else "No checkpoint was written yet."
    return (
        f"At step {step + 1} the {what}. A step like this would spoil every parameter, so the run "
        f"stopped before it. {back} Look for NaN in the data, or lower `outer_lr` or "
        f"`clip_norm`{owner}."
    )


def _idle(owner: str) -> str:
    return (
        f"The loss{owner} depends on nothing that is to move, so no step would train anything. "
        "What moves must be used by the loss, and not detached. Look for `detach()`, `no_grad()` "
        "or `.item()` on the way, or name the parameters that the loss does depend on."
    )
