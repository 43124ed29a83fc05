"""The loop: tasks are drawn, the loss of each is differentiated, a step is taken, and what must survive is kept."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from weightloom.errors import ConfigError, NonFiniteError
from weightloom.losses import TaskLoss, loss_of_those_there
from weightloom.runs.progress import TrainingProgress
from weightloom.runs.signals import collected_signals
from weightloom.tasks import ALL, Tasks, TaskSource, draw_share
from weightloom.training.agreement import Agreement
from weightloom.training.average import Average
from weightloom.training.keep import History, Keeper, Row, resume_run
from weightloom.training.optimiser import build_optimiser
from weightloom.training.options import HasBlocks, TrainOptions
from weightloom.training.processes import OneProcess, Processes, seed_chance


def train(
    model: nn.Module,
    source: TaskSource,
    loss_per_task: TaskLoss | None,
    options: TrainOptions,
    *,
    run: Path | None = None,
    resume: bool = False,
    evaluate: Callable[[int], Row] | None = None,
    fabric: Processes | None = None,
    quiet: bool = True,
    log_every: int = 10,
) -> History:
    """Train ``model``: one loss through hypernetwork and base.

    Args:
        model: Its ``forward`` takes a `Tasks` and gives outputs, (tasks, queries, ...), or losses, (tasks,).
        source: Where tasks are drawn from, anew for each step.
        loss_per_task: Outputs and ``query_y`` to one loss per task. None: ``forward`` gives the losses itself.
        options: Steps, learning rate and so on.
        run: A folder for ``metrics.jsonl`` and ``checkpoints/last.safetensors``. None keeps nothing.
        resume: Go on from the checkpoint in ``run``.
        evaluate: Called with the number of steps done, on the first process only; the row it returns is logged.
        fabric: Devices and processes: a launched ``Fabric``, or `OneProcess`. None means one process on the CPU.
        quiet: Show no progress.
        log_every: Steps between rows of the history.

    Returns:
        The history; `History.stopped_by` is set when Ctrl-C or SIGTERM ended the run, after a checkpoint was written.

    Raises:
        NonFiniteError: If a loss or the gradient is NaN or infinite. No parameter was changed by that step.
        CheckpointError: If a checkpoint cannot be written, or ``resume`` finds none that fits.
        ConfigError: If the tasks of a step cannot be dealt out evenly over the processes, or a model without blocks is
            to be trained in turns.
    """
    fabric = fabric or OneProcess()
    world, rank = fabric.world_size, fabric.global_rank
    if options.tasks % world:
        raise ConfigError(
            f"`tasks={options.tasks}` cannot be dealt out over {world} processes. Every process takes the same number, "
            f"so that the gradient is that of one process. Pass `tasks={-(-options.tasks // world) * world}`."
        )
    model.to(fabric.device)  # before anything is made that has to lie beside its parameters
    resting = _resting(model, options)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = build_optimiser(trained, options.outer_lr, options.weight_decay)
    average = Average(model, options.average)
    history, first = History(), 0
    if resume:
        if run is None:
            raise ConfigError("`resume=True` without `run`. There is no folder to go on from. Pass `run=Path(...)`.")
        history, first = resume_run(run, model, optimiser, average)
    parameters = list(model.parameters())
    agreement = Agreement(fabric) if world > 1 else None
    engine, fabric_optimiser = fabric.setup(_Unconverted(model, agreement), optimiser)
    generator, draw = torch.Generator(), draw_share(source, slice(rank, None, world) if world > 1 else ALL)
    engine.train()
    keeper = Keeper(run if rank == 0 else None, model, optimiser, history, average)
    before_s, start_s = history.wall_time_s, time.monotonic()

    with collected_signals() as caught, TrainingProgress(options.steps, first, quiet or rank > 0) as progress:
        for step in range(first, options.steps):
            # One seed per step: no generator's state needs to survive a kill.
            generator.manual_seed((options.seed << 32) + step)
            seed_chance((options.seed << 32) + step + (rank << 24), fabric.device)
            tasks = fabric.to_device(draw(options.tasks, generator))
            losses = engine(_Held(tasks))
            if loss_per_task is not None:
                losses = loss_of_those_there(loss_per_task, losses, tasks.query_y, tasks.query_mask)
            loss = losses.mean()
            value = loss.item()
            well, stop = math.isfinite(value), None
            for parameter in parameters:
                parameter.grad = None
            if agreement:
                fabric.backward(loss + agreement.tell(well, caught))
                well, stop = agreement.heard()
            if not well:
                bad = (~losses.isfinite()).nonzero().flatten().tolist()
                what = f"loss is {value} for tasks {bad}{_spoilt_data(tasks)}"
                what = what if bad else "loss of another process is not finite"
                raise NonFiniteError(_not_finite(what, step, keeper.kept))
            if not agreement:
                fabric.backward(loss)
            for parameter in resting(step):
                parameter.grad = None  # what has no gradient is left alone by clipping and by the optimiser
            norm = nn.utils.clip_grad_norm_(parameters, options.clip_norm).item()
            if not math.isfinite(norm):
                raise NonFiniteError(_not_finite(f"norm of the gradient is {norm}", step, keeper.kept))
            rate = options.learning_rate(step)
            for group in optimiser.param_groups:
                group["lr"] = rate
            fabric_optimiser.step()
            average.update(step)

            done = step + 1
            history.wall_time_s = before_s + time.monotonic() - start_s
            progress.step(done, value)
            if done % log_every == 0 or done == options.steps:
                keeper.log({"step": done, "loss": value, "outer_lr": rate, "gradient_norm": norm})
            if evaluate and rank == 0 and (done % options.evaluate_every == 0 or done == options.steps):
                with average.in_place():
                    row = evaluate(done)
                if row:
                    progress.evaluated(row.get("score_name", "score"), row["validation_score"])
                    keeper.log({"step": done, **row})
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


def _resting(model: nn.Module, options: TrainOptions) -> Callable[[int], list[nn.Parameter]]:
    """Say which parameters are not trained in a step; it follows from the step's number alone."""
    if options.mode == "joint":
        return lambda step: []
    if not isinstance(model, HasBlocks):
        raise ConfigError(
            f'`mode="alternating"` with {type(model).__name__}, which has no blocks. They are trained in turn. '
            'Give it a method `blocks()` that returns lists of parameters, or pass `mode="joint"`.'
        )
    blocks = [list(block) for block in model.blocks() if block]
    others = [[p for other in blocks if other is not block for p in other] for block in blocks]
    return lambda step: others[(step // options.block_steps) % len(others)] if others else []


class _Held:
    """Tasks, out of sight of a precision plug-in, which would convert whatever tensors it finds in an input."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks


class _Unconverted(nn.Module):
    """Give a model its tasks as they are: half precision is for what networks compute, not for what tasks say."""

    def __init__(self, model: nn.Module, agreement: nn.Module | None) -> None:
        super().__init__()
        self.model, self.agreement = model, agreement

    def forward(self, held: _Held) -> Tensor:
        outputs: Tensor = self.model(held.tasks)
        return outputs


def _spoilt_data(tasks: Tasks) -> str:
    """Name the fields of a batch of tasks that hold NaN or infinity, if any do."""
    leaves, _ = tree_flatten_with_path(tasks)
    spoilt = [keystr(at)[1:].replace(".", "_") for at, x in leaves if isinstance(x, Tensor) and not x.isfinite().all()]
    return f", and the data hold NaN or infinity in {', '.join(spoilt)}" if spoilt else ""


def _not_finite(what: str, step: int, kept: Path | None) -> str:
    back = f"The last good checkpoint is `{kept}`." if kept else "No checkpoint was written yet."
    return (
        f"At step {step + 1} the {what}. A step like this would spoil every parameter, so the run stopped before it. "
        f"{back} Look for NaN in the data, or lower `--outer-lr` or `--clip-norm`."
    )
