"""Training: a model and a source of tasks in, a better model and its history out.

In:   a module whose ``forward(tasks)`` does all that is differentiated (encode, generate, run the base), a `TaskSource`
      and a loss that gives one number per task, where ``forward`` does not give it.
Out:  the trained module, and a history of losses; checkpoints on the way.
Knows nothing of what the model is.

Two properties hold, and tests keep them: a step depends only on the seed, its number and the parameters, so a run that
was killed and resumed ends with the same numbers as one that never was; and a step's tasks are dealt out over the
processes, so the gradient of several processes is that of one. Batch normalisation is the exception: it sees only what
is in its own process.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from weightloom.checkpoint import load_tensors, save_tensors, write_atomically
from weightloom.errors import CheckpointError, ConfigError, NonFiniteError
from weightloom.losses import TaskLoss
from weightloom.progress import TrainingProgress
from weightloom.tasks import Tasks, TaskSource

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
    """Decoupled weight decay (AdamW) of matrices and kernels; vectors and numbers have none."""
    average: float = 0.0
    """Judge and keep a running average of the parameters, with this decay per step, as in 0.998; 0 keeps none."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; it is scaled down to this."""
    evaluate_every: int = 500
    """Steps between evaluations."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    """Everything random follows from it."""
    mode: Literal["joint", "alternating"] = "joint"
    """``"joint"``: every step trains everything. ``"alternating"``: the blocks of the model (`HasBlocks`) in turn."""
    block_steps: int = 20
    """Steps before it is the next block's turn."""

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step ``step``, counted from 0."""
        warmup = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        return self.outer_lr * warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@runtime_checkable
class HasBlocks(Protocol):
    """A model that can be trained in turns, such as the base's own values and what generates changes of them."""

    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        """Return the parameters of each block; one that is in none is trained in every step."""
        ...


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
    loss_per_task: TaskLoss | None,
    options: TrainOptions,
    *,
    run: Path | None = None,
    resume: bool = False,
    evaluate: Callable[[int], Row] | None = None,
    fabric: Fabric | None = None,
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
        fabric: Devices and processes; already launched. None means one process on the CPU.
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
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    world, rank = fabric.world_size, fabric.global_rank
    if options.tasks % world:
        raise ConfigError(
            f"`tasks={options.tasks}` cannot be dealt out over {world} processes. Every process takes the same number, "
            f"so that the gradient is that of one process. Pass `tasks={-(-options.tasks // world) * world}`."
        )
    resting = _resting(model, options)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [[p for p in trained if (p.ndim < 2) == plain] for plain in (True, False)]
    decays = (0.0, options.weight_decay)
    optimiser = torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for group, decay in zip(groups, decays, strict=True) if group],
        lr=options.outer_lr,
    )
    average = _Average(model, options.average)
    history, first = History(), 0
    if resume:
        if run is None:
            raise ConfigError("`resume=True` without `run`. There is no folder to go on from. Pass `run=Path(...)`.")
        history, first = _resume(run, model, optimiser, average)
    parameters = list(model.parameters())
    engine, fabric_optimiser = fabric.setup(_Unconverted(model), optimiser)
    generator = torch.Generator()
    keeper = _Keeper(run if rank == 0 else None, model, optimiser, history, average)
    before_s, start_s = history.wall_time_s, time.monotonic()

    with _signals() as caught, TrainingProgress(options.steps, first, quiet or rank > 0) as progress:
        for step in range(first, options.steps):
            # One seed per step: no generator's state needs to survive a kill.
            generator.manual_seed((options.seed << 32) + step)
            torch.manual_seed((options.seed << 32) + step + (rank << 24))
            tasks = fabric.to_device(source.sample(options.tasks, generator).take(slice(rank, None, world)))
            engine.train()
            losses = engine(_Held(tasks))
            if loss_per_task is not None:
                losses = loss_per_task(losses, tasks.query_y)
            loss = losses.mean()
            value = loss.item()
            if not math.isfinite(value):
                bad = (~losses.isfinite()).nonzero().flatten().tolist()
                what = f"loss is {value} for tasks {bad}{_spoilt_data(tasks)}"
                raise NonFiniteError(_not_finite(what, step, keeper.kept))
            fabric_optimiser.zero_grad()
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
            history.stopped_by = _agree(fabric, caught)
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


def load_model(path: Path, model: nn.Module) -> int:
    """Put the parameters kept in a checkpoint into ``model``; return the number of steps they were trained for.

    Raises:
        CheckpointError: If the file is not whole, or was written for another model.
    """
    tensors, facts = load_tensors(path)
    _restore(path, model, tensors)
    average = _Average(model, 1.0)
    average.restore(tensors)
    average.settle()
    return int(facts["step"])


class _Held:
    """Tasks, out of sight of a precision plug-in, which would convert whatever tensors it finds in an input."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks


class _Unconverted(nn.Module):
    """Give a model its tasks as they are: half precision is for what networks compute, not for what tasks say."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, held: _Held) -> Tensor:
        outputs: Tensor = self.model(held.tasks)
        return outputs


class _Average:
    """A running average of the parameters of a model, or nothing where the decay is 0.

    Early on it follows more closely, so that it forgets where the model began. Buffers are the model's own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.own = dict(model.named_parameters()) if decay else {}
        self.values = [parameter.detach().clone() for parameter in self.own.values()]

    def update(self, step: int) -> None:
        if self.values:
            weight = 1 - min(self.decay, (step + 1) / (step + 20))
            torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self.own.values()], weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averages, then its own values back."""
        own = [parameter.detach().clone() for parameter in self.own.values()]
        self.settle()
        try:
            yield
        finally:
            _copy(self.own, own)

    def settle(self) -> None:
        """Give the model the averages for good."""
        _copy(self.own, self.values)

    def kept(self) -> dict[str, Tensor]:
        return {f"average/{name}": value for name, value in zip(self.own, self.values, strict=True)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take the averages from a checkpoint; where it has none they are the model's own values."""
        for name, value in zip(self.own, self.values, strict=True):
            value.copy_(tensors.get(f"average/{name}", self.own[name].detach()))


@torch.no_grad()
def _copy(parameters: dict[str, nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters.values(), values, strict=True):
        parameter.copy_(value)


class _Keeper:
    """Writes the rows and checkpoints of one run; with no folder it only remembers the rows."""

    def __init__(
        self,
        run: Path | None,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        history: History,
        average: "_Average",
    ) -> None:
        self.run, self.model, self.optimiser, self.history, self.average = run, model, optimiser, history, average
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
        tensors |= self.average.kept()
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


def _resume(run: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: "_Average") -> tuple[History, int]:
    """Restore model and optimiser, and the rows up to the checkpoint."""
    path = run / "checkpoints" / "last.safetensors"
    tensors, facts = load_tensors(path)
    _restore(path, model, tensors)
    average.restore(tensors)
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
