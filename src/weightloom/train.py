"""Training: a model and a source of tasks in, a better model and its history out.

In:   a module whose ``forward(tasks)`` does all that is differentiated (encode, generate, run the base), a `TaskSource`
      and a loss that gives one number per task.
Out:  the trained module, and a history of losses; checkpoints on the way.
Knows nothing of what the model is.

Two properties hold, and tests keep them: a step depends only on the seed, its number and the parameters, so a run that
was killed and resumed ends with the same numbers as one that never was; and a step's tasks are dealt out over the
processes, so the gradient of several processes is that of one.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from weightloom.checkpoint import load_tensors, save_tensors, write_atomically
from weightloom.errors import CheckpointError, ConfigError, NonFiniteError
from weightloom.progress import TrainingProgress
from weightloom.tasks import Tasks, TaskSource

TaskLoss = Callable[[Tensor, Tensor], Tensor]
"""Outputs and targets, each (tasks, ...), to one loss per task, (tasks,)."""

Row = dict[str, Any]


@dataclass(frozen=True)
class TrainOptions:
    """How a model is trained."""

    steps: int
    """Optimiser steps in all."""
    tasks: int = 16
    """Tasks per step, over all processes."""
    outer_lr: float = 1e-3
    """Peak learning rate; it rises over ``warmup_steps``, then falls to zero along a cosine."""
    warmup_steps: int = 100
    """Steps until the peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; it is scaled down to this."""
    evaluate_every: int = 500
    """Steps between evaluations."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    """Everything random follows from it."""

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step ``step``, counted from 0."""
        warmup = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        return self.outer_lr * warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass
class History:
    """What happened: one row per logged step and per evaluation, and whether the run came to its end."""

    rows: list[Row] = field(default_factory=list)
    """One per logged step or evaluation, oldest first."""
    wall_time_s: float = 0.0
    """Seconds of training, those before a resume included."""
    stopped_by: signal.Signals | None = None
    """The signal that ended the run early; None when it came to its end."""

    def last(self, key: str) -> Any:
        """Return the newest value logged under ``key``, None if there is none."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)


def train(
    model: nn.Module,
    source: TaskSource,
    loss_per_task: TaskLoss,
    options: TrainOptions,
    *,
    run: Path | None = None,
    resume: bool = False,
    evaluate: Callable[[int], Row] | None = None,
    fabric: Fabric | None = None,
    quiet: bool = True,
    log_every: int = 10,
) -> History:
    """Train ``model`` jointly: one loss through hypernetwork and base.

    Args:
        model: Its ``forward`` takes a `Tasks` and gives outputs, (tasks, queries, ...).
        source: Where tasks are drawn from, anew for each step.
        loss_per_task: Outputs and ``query_y`` to one loss per task.
        options: Steps, learning rate and so on.
        run: A folder for ``metrics.jsonl`` and ``checkpoints/last.safetensors``. None keeps nothing.
        resume: Go on from the checkpoint in ``run``.
        evaluate: Called with the number of steps done, on the first process only; the row it returns is logged.
        fabric: Devices and processes; already launched. None means one process on the CPU.
        quiet: Show no progress.
        log_every: Steps between rows of the history.

    Returns:
        The history; `History.stopped_by` is set when Ctrl-C or SIGTERM ended the run, after a checkpoint was written.

    Raises:
        NonFiniteError: If a loss or the gradient is NaN or infinite. No parameter was changed by that step.
        CheckpointError: If a checkpoint cannot be written, or ``resume`` finds none that fits.
        ConfigError: If the tasks of a step cannot be dealt out evenly over the processes.
    """
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    world, rank = fabric.world_size, fabric.global_rank
    if options.tasks % world:
        raise ConfigError(
            f"`tasks={options.tasks}` cannot be dealt out over {world} processes. Every process takes the same number, "
            f"so that the gradient is that of one process. Pass `tasks={-(-options.tasks // world) * world}`."
        )
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=options.outer_lr, weight_decay=options.weight_decay
    )
    history, first = History(), 0
    if resume:
        if run is None:
            raise ConfigError("`resume=True` without `run`. There is no folder to go on from. Pass `run=Path(...)`.")
        history, first = _resume(run, model, optimiser)
    parameters = list(model.parameters())
    engine, fabric_optimiser = fabric.setup(model, optimiser)
    generator = torch.Generator()
    keeper = _Keeper(run if rank == 0 else None, model, optimiser, history)
    before_s, start_s = history.wall_time_s, time.monotonic()

    with _signals() as caught, TrainingProgress(options.steps, first, quiet or rank > 0) as progress:
        for step in range(first, options.steps):
            # One seed per step: no generator's state needs to survive a kill.
            generator.manual_seed((options.seed << 32) + step)
            torch.manual_seed((options.seed << 32) + step + (rank << 24))
            tasks = fabric.to_device(source.sample(options.tasks, generator).take(slice(rank, None, world)))
            engine.train()
            losses = loss_per_task(engine(tasks), tasks.query_y)
            loss = losses.mean()
            value = loss.item()
            if not math.isfinite(value):
                bad = (~losses.isfinite()).nonzero().flatten().tolist()
                what = f"loss is {value} for tasks {bad}{_spoilt_data(tasks)}"
                raise NonFiniteError(_not_finite(what, step, keeper.kept))
            fabric_optimiser.zero_grad()
            fabric.backward(loss)
            norm = nn.utils.clip_grad_norm_(parameters, options.clip_norm).item()
            if not math.isfinite(norm):
                raise NonFiniteError(_not_finite(f"norm of the gradient is {norm}", step, keeper.kept))
            rate = options.learning_rate(step)
            for group in optimiser.param_groups:
                group["lr"] = rate
            fabric_optimiser.step()

            done = step + 1
            history.wall_time_s = before_s + time.monotonic() - start_s
            progress.step(done, value)
            if done % log_every == 0 or done == options.steps:
                keeper.log({"step": done, "loss": value, "outer_lr": rate, "gradient_norm": norm})
            if evaluate and rank == 0 and (done % options.evaluate_every == 0 or done == options.steps):
                row = evaluate(done)
                if row:
                    progress.evaluated(row.get("score_name", "score"), row["validation_score"])
                    keeper.log({"step": done, **row})
            history.stopped_by = _agree(fabric, caught)
            if history.stopped_by or done % options.checkpoint_every == 0 or done == options.steps:
                keeper.keep(done)
            if history.stopped_by:
                break
    return history


def load_model(path: Path, model: nn.Module) -> int:
    """Put the parameters kept in a checkpoint into ``model``; return the number of steps they were trained for.

    Raises:
        CheckpointError: If the file is not whole, or was written for another model.
    """
    tensors, facts = load_tensors(path)
    _restore(path, model, tensors)
    return int(facts["step"])


class _Keeper:
    """Writes the rows and checkpoints of one run; with no folder it only remembers the rows."""

    def __init__(self, run: Path | None, model: nn.Module, optimiser: torch.optim.Optimizer, history: History) -> None:
        self.run, self.model, self.optimiser, self.history = run, model, optimiser, history
        self.kept: Path | None = None
        if run:
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(row) + "\n" for row in history.rows)
            write_atomically(run / "metrics.jsonl", lines)

    def log(self, row: Row) -> None:
        row = {**row, "wall_time_s": round(self.history.wall_time_s, 3)}
        self.history.rows.append(row)
        if self.run:
            with (self.run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def keep(self, step: int) -> None:
        if not self.run:
            return
        tensors = {f"model/{name}": tensor for name, tensor in _named_tensors(self.model).items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{number}/{key}": torch.as_tensor(value) for key, value in state.items()}
        path = self.run / "checkpoints" / "last.safetensors"
        save_tensors(path, tensors, {"step": step, "wall_time_s": self.history.wall_time_s})
        self.kept = path


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once even where modules share them."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _restore(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = _named_tensors(model)
    kept = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    odd = sorted(own.keys() ^ kept.keys()) or [n for n in own if own[n].shape != kept[n].shape]
    if odd:
        raise CheckpointError(
            f"`{path}` was written for another model: they differ in {', '.join(odd[:3])}. A checkpoint fits the model "
            "that wrote it. Build the model with the options in the run's `config.json`."
        )
    with torch.no_grad():
        for name, value in kept.items():
            own[name].copy_(value)


def _resume(run: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[History, int]:
    """Restore model and optimiser, and the rows up to the checkpoint."""
    path = run / "checkpoints" / "last.safetensors"
    tensors, facts = load_tensors(path)
    _restore(path, model, tensors)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser/"):
            _, number, key = name.split("/")
            state.setdefault(int(number), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    step = int(facts["step"])
    rows = [row for row in read_rows(run) if row["step"] <= step]
    return History(rows, facts["wall_time_s"]), step


def read_rows(run: Path) -> list[Row]:
    """Read ``metrics.jsonl`` of a run; a last line that was torn by a crash is left out."""
    path = run / "metrics.jsonl"
    rows: list[Row] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _spoilt_data(tasks: Tasks) -> str:
    """Name the fields of a batch of tasks that hold NaN or infinity, if any do."""
    spoilt = [name for name, value in tasks._asdict().items() if not bool(value.isfinite().all())]
    return f", and the data hold NaN or infinity in {', '.join(spoilt)}" if spoilt else ""


def _not_finite(what: str, step: int, kept: Path | None) -> str:
    back = f"The last good checkpoint is `{kept}`." if kept else "No checkpoint was written yet."
    return (
        f"At step {step + 1} the {what}. A step like this would spoil every parameter, so the run stopped before it. "
        f"{back} Look for NaN in the data, or lower `--outer-lr` or `--clip-norm`."
    )


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Collect Ctrl-C and SIGTERM instead of dying; a second Ctrl-C does what it always did."""
    caught: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))

    try:
        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us handles signals
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _agree(fabric: Fabric, caught: list[signal.Signals]) -> signal.Signals | None:
    """Return the signal that any process caught, so that all stop after the same step."""
    own = int(caught[0]) if caught else 0
    if fabric.world_size > 1:
        worst = fabric.all_reduce(torch.tensor(own), reduce_op="max")
        own = int(worst)  # type: ignore[arg-type]
    return signal.Signals(own) if own else None
