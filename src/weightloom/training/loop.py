"""The training loop: draw a batch, take a step, log, evaluate, write checkpoints."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError
from weightloom.forms.arithmetic import distance
from weightloom.losses import TaskLoss
from weightloom.runs.loggers import MetricLogger, check_loggers, finalised
from weightloom.runs.metrics import Row
from weightloom.runs.progress import TrainingProgress
from weightloom.runs.signals import collected_signals
from weightloom.training.average import STATISTICS_BATCHES, Average
from weightloom.training.keep import History, Keeper, resume_run
from weightloom.training.options import TrainOptions
from weightloom.training.processes import OneProcess, Processes
from weightloom.training.sources import Batches, Source, check_source
from weightloom.training.steps import Stepper, optimiser_of
from weightloom.training.turns import Order, Player, Turn, check_turns, turns_of_blocks

Probe = Callable[[], Mapping[str, Tensor]]
"""Function that returns the parameters generated for a fixed set of conditions, by name."""


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
    loggers: Sequence[MetricLogger] = (),
) -> History:
    """Train ``model`` by gradient descent, on one loss or on the losses of several players in turn.

    Args:
        model: Module to train, changed in place. Without ``turns``, its ``forward`` takes a batch,
            such as `Tasks`, and returns outputs, (tasks, queries, ...), or losses, (tasks,).
        source: Source of the batch of each step: a `TaskSource`; a function of the step, counted
            from 0, and a ``torch.Generator``; or a list or ``DataLoader`` of batches, repeated when
            it ends. A batch is any tree of tensors that the loss accepts. None: every turn has its
            own source.
        loss_per_task: Outputs and ``query_y`` to one loss per task. None: ``forward`` returns the
            losses.
        options: Steps, learning rate and so on.
        turns: Players that move in turn, starting with the first. Empty: one loss trains the whole
            model.
        run: Folder for ``metrics.jsonl`` and ``checkpoints/last.safetensors``. None: write no file.
        resume: Continue from the checkpoint in ``run``. A list or loader is read again up to there.
        evaluate: Called with the number of steps done, on the first process only, every
            ``options.evaluate_every`` steps and at the end; the row it returns is logged.
        probe: Returns generated parameters, by the names that ``generates`` of a turn selects from.
            It is called in eval mode before and after each logged step of such a turn. The row then
            holds ``moved``, the distance moved by the parameters of the turn as a share of their
            norm, and ``resting_moved``, the same for the others, which move through a shared trunk.
        fabric: Devices and processes: a launched ``Fabric``, or `OneProcess`. None: one process on
            the CPU.
        quiet: Show no progress.
        log_every: Steps between rows of the history, counted per turn.
        identity: Digest of the run, kept in checkpoints; a checkpoint of another run is refused.
        loggers: Objects with ``log_metrics(metrics, step)``, such as loggers of Lightning, which
            get the numbers of each row; on the first process only.

    Returns:
        The history; `History.stopped_by` is set if Ctrl-C or SIGTERM ended the run, after a
        checkpoint was written.

    Raises:
        NonFiniteError: If a loss or the gradient is NaN or infinite. That step changed no
            parameter.
        CheckpointError: If a checkpoint cannot be written, or ``resume`` finds none that fits.
        ConfigError: If the tasks of a step cannot be divided evenly among the processes, a model
            without blocks is to be trained in turns, ``run`` is given with a source that can be
            read only once, or no parameter would be trained.
    """
    fabric = fabric or OneProcess()
    rank = fabric.global_rank
    check_turns(turns, options, loss_per_task)
    check_loggers(loggers)
    sources = _checked_sources(source, turns, options.tasks, fabric.world_size, run is not None)
    model.to(fabric.device)  # before the optimisers, whose state lies on the parameters' device
    players = [Player(turn, model, options) for turn in turns or turns_of_blocks(model, options)]
    order = Order([player.turn for player in players])
    optimisers = {player.turn.name: optimiser_of(player) for player in players}
    average = Average(model, options.average, options.average_buffers)
    history, first = _begun(resume, run, model, optimisers, average, identity)
    stepper = Stepper(
        model, players, list(optimisers.values()), fabric, loss_per_task, named=bool(turns)
    )
    # The turns of blocks share the only source, so the number of a turn wraps around.
    batches = Batches(sources, lambda step: order.at(step)[0] % len(sources), options, fabric)
    batches.wind(first)
    stepper.engine.train()
    folder, loggers = (run, loggers) if rank == 0 else (None, ())
    keeper = Keeper(folder, model, optimisers, history, average, identity, loggers)
    with (
        finalised(loggers),
        collected_signals() as caught,
        TrainingProgress(options.steps, first, quiet or rank > 0) as progress,
    ):
        loop = _Loop(options, order, batches, stepper, average, keeper, progress, caught, log_every)
        loop.run(first, probe, evaluate if rank == 0 else None)
    if not history.stopped_by:
        average.settle()
    return history


def _checked_sources(
    source: Source | None, turns: Sequence[Turn], tasks: int, world: int, is_kept: bool
) -> list[Source | None]:
    """Source of each turn, or the one source of a run without turns."""
    sources = [source if turn.source is None else turn.source for turn in turns] or [source]
    for its in sources:
        check_source(its, tasks, world, is_kept)
    return sources


def _begun(
    resume: bool,
    run: Path | None,
    model: nn.Module,
    optimisers: Mapping[str, torch.optim.Optimizer],
    average: Average,
    identity: str,
) -> tuple[History, int]:
    """History and number of steps done: those of the checkpoint to resume from, else none."""
    if not resume:
        return History(), 0
    if run is None:
        raise ConfigError(
            "`resume=True` without `run`. There is no folder to go on from. Pass `run=Path(...)`."
        )
    return resume_run(run, model, optimisers, average, identity)


@dataclass
class _Loop:
    """Steps of one run, with the rows, evaluations and checkpoints between them."""

    options: TrainOptions
    order: Order
    batches: Batches
    stepper: Stepper
    average: Average
    keeper: Keeper
    progress: TrainingProgress
    caught: Sequence[Signals]
    log_every: int

    def run(self, first: int, probe: Probe | None, evaluate: Callable[[int], Row] | None) -> None:
        """Take the steps from ``first`` on, until the last one or a signal."""
        history, last = self.keeper.history, self.options.steps
        started_s = time.monotonic() - history.wall_time_s
        for step in range(first, last):
            done, is_last = step + 1, step + 1 == last
            heard = self._step(step, probe, started_s)
            if evaluate and _is_due(done, self.options.evaluate_every, is_last):
                self._evaluate(done, evaluate)
            history.stopped_by = self.stepper.stop(heard, self.caught, is_last)
            is_end = is_last or history.stopped_by is not None
            if _is_due(done, self.options.checkpoint_every, is_end):
                self._keep(done, is_end)
            if is_end:
                break

    def _step(self, step: int, probe: Probe | None, started_s: float) -> Signals | None:
        """Take a step and log it; return the signal that any process had caught."""
        (number, taken), done = self.order.at(step), step + 1
        stepper, player = self.stepper, self.stepper.players[number]
        batch = stepper.fabric.to_device(self.batches.at(step))
        gradient = stepper.differentiate(number, batch, self.caught, step, self.keeper.kept)
        is_logged = _is_due(taken, self.log_every, done == self.options.steps)
        watched = probe if is_logged and player.turn.generates else None
        before = _look(watched, stepper.engine)
        rate = stepper.update(number, step)
        self.average.update(step)
        self.keeper.history.wall_time_s = time.monotonic() - started_s
        self.progress.step(done, gradient.loss)
        if is_logged:
            row: Row = {
                "step": done,
                **self._turn_of(player),
                "loss": gradient.loss,
                "outer_lr": rate,
                "gradient_norm": gradient.norm,
            }
            self.keeper.log(row | _moved(player, before, _look(watched, stepper.engine)))
        return gradient.heard

    def _turn_of(self, player: Player) -> Row:
        """Name of a player's turn for a row, in a run of several turns or of named ones."""
        has_name = self.stepper.named or len(self.stepper.players) > 1
        return {"turn": player.turn.name} if has_name else {}

    def _evaluate(self, done: int, evaluate: Callable[[int], Row]) -> None:
        """Evaluate the averaged parameters and log the scores."""
        self._measure(done)
        with self.average.in_place():
            scores = evaluate(done)
        if scores:
            if "validation_score" in scores:
                self.progress.evaluated(
                    scores.get("score_name", "score"), scores["validation_score"]
                )
            self.keeper.log({"step": done, **scores})
        self.stepper.engine.train()

    def _keep(self, done: int, is_end: bool) -> None:
        """Write a checkpoint, with the statistics of the averaged parameters."""
        if is_end or self.keeper.run:
            self._measure(done)
        self.keeper.keep(done)

    def _measure(self, done: int) -> None:
        """Measure statistics of the averaged parameters after a step, once.

        They keep the live network's where an iterable cannot be read again.
        """
        if self.average.measured_at != done and self.batches.can_repeat:
            self.average.measure(done, self._rerun)

    def _rerun(self, done: int) -> None:
        """Run the model on the batches of the last steps again."""
        for step in range(max(done - STATISTICS_BATCHES, 0), done):
            batch = self.stepper.fabric.to_device(self.batches.at(step))
            self.stepper.run(self.order.at(step)[0], batch)


def _is_due(count: int, every: int, is_end: bool) -> bool:
    """True for each multiple of ``every``, and at the end of the run."""
    return is_end or count % every == 0


def _look(probe: Probe | None, engine: nn.Module) -> Mapping[str, Tensor]:
    """Copy of the generated parameters, whose memory a step may change; empty without a probe."""
    if probe is None:
        return {}
    engine.eval()
    with torch.no_grad():
        seen = copy.deepcopy(dict(probe()))
    engine.train()
    return seen


def _moved(player: Player, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Row:
    """Distance moved in a step by generated and by resting parameters, as shares of their norms.

    Means over tasks; empty for an empty ``before``.
    """
    pairs = zip(("moved", "resting_moved"), player.split(before), player.split(after), strict=True)
    return {key: distance(now, was, relative=True).mean().item() for key, was, now in pairs if was}
