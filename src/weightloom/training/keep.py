"""Output of a training: its history of rows, its checkpoints, and resuming from them."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.errors import CheckpointError
from weightloom.files import make_folder
from weightloom.runs.checkpoint import (
    check_fits,
    read_checkpoint,
    restore_state,
    state_of,
    write_checkpoint,
)
from weightloom.runs.loggers import MetricLogger, send
from weightloom.runs.metrics import Row, append_row, rows_up_to, write_rows
from weightloom.training.average import Average


@dataclass
class History:
    """History of a run: its rows of metrics, its duration, and the signal that stopped it early."""

    rows: list[Row] = field(default_factory=list)
    """One per logged step or evaluation, oldest first."""
    wall_time_s: float = 0.0
    """Seconds of training, including those before a resume."""
    stopped_by: signal.Signals | None = None
    """Signal that ended the run early; None if it took all its steps."""

    def last(self, key: str) -> Any:
        """Newest value logged under ``key``, or None."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)

    def plot(self) -> Any:
        """Return a plotly figure of loss and validation scores against steps.

        Raises:
            ConfigError: If no row holds a loss or a score.
        """
        from weightloom.training.history_view import history_figure

        return history_figure(self.rows)

    def _repr_html_(self) -> str:
        from weightloom.training.history_view import history_table

        steps = self.rows[-1]["step"] if self.rows else 0
        facts = {"steps": f"{steps:,}", "seconds": f"{self.wall_time_s:.1f}"}
        if self.stopped_by:
            facts["stopped by"] = self.stopped_by.name
        return history_table(self.rows, facts)


def load_model(path: Path, model: nn.Module, identity: str = "") -> int:
    """Load the parameters of a checkpoint into ``model``.

    If the run kept a running average, the averaged values are loaded.

    Args:
        path: The checkpoint.
        model: A model with the same parameters and buffers; changed in place.
        identity: Digest of the run. Empty: any run.

    Returns:
        The number of steps they were trained for.

    Raises:
        CheckpointError: If the file is incomplete, or was written for another model or by another
            run.
    """
    tensors, facts = read_checkpoint(path, identity)
    restore_model(path, model, tensors)
    average = Average(model, 1.0, buffers=True)
    average.restore(tensors)
    average.settle()
    return int(facts["step"])


class Keeper:
    """Writes the rows and checkpoints of one run; without a folder it only collects the rows."""

    def __init__(
        self,
        run: Path | None,
        model: nn.Module,
        optimisers: Mapping[str, torch.optim.Optimizer],
        history: History,
        average: Average,
        identity: str = "",
        loggers: Sequence[MetricLogger] = (),
    ) -> None:
        self.run, self.model, self.optimisers, self.history, self.average = (
            run,
            model,
            optimisers,
            history,
            average,
        )
        self.identity, self.loggers = identity, loggers
        self.kept: Path | None = None
        if run:
            make_folder(run / "checkpoints")
            write_rows(run, history.rows)

    def log(self, row: Row) -> None:
        """Add a row to the history and to ``metrics.jsonl``, and send it to the loggers."""
        row = {**row, "wall_time_s": round(self.history.wall_time_s, 3)}
        self.history.rows.append(row)
        if self.run:
            append_row(self.run, row)
        send(self.loggers, row)

    def keep(self, step: int) -> None:
        """Write the checkpoint of a step; it replaces the previous one once complete."""
        if not self.run:
            return
        tensors = {f"model/{name}": tensor for name, tensor in _named_tensors(self.model).items()}
        tensors |= state_of(_places(self.optimisers)) | self.average.kept()
        path = self.run / "checkpoints" / "last.safetensors"
        facts = {
            "step": step,
            "wall_time_s": self.history.wall_time_s,
            "turns": _names(self.optimisers),
        }
        write_checkpoint(path, tensors, facts, self.identity)
        self.kept = path


def _names(optimisers: Mapping[str, torch.optim.Optimizer]) -> list[str]:
    """Names of turns as stored in checkpoints; a single turn has no name there."""
    return list(optimisers) if len(optimisers) > 1 else []


def _places(optimisers: Mapping[str, torch.optim.Optimizer]) -> dict[str, torch.optim.Optimizer]:
    """Optimisers by the name of their state in a checkpoint."""
    return {
        f"optimiser/{turn}" if len(optimisers) > 1 else "optimiser": its
        for turn, its in optimisers.items()
    }


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def restore_model(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load the ``model/`` tensors of a checkpoint into ``model``.

    Raises:
        CheckpointError: If they do not fit ``model``.
    """
    own = _named_tensors(model)
    kept = {
        name.removeprefix("model/"): value
        for name, value in tensors.items()
        if name.startswith("model/")
    }
    check_fits(path, own, kept)
    with torch.no_grad():
        for name, value in kept.items():
            own[name].copy_(value)


def resume_run(
    run: Path,
    model: nn.Module,
    optimisers: Mapping[str, torch.optim.Optimizer],
    average: Average,
    identity: str = "",
) -> tuple[History, int]:
    """Resume from ``checkpoints/last.safetensors``: restore model, average and optimisers in place.

    Args:
        run: Folder of the run.
        model: The model.
        optimisers: Optimiser of each turn, by the turn's name.
        average: Running average of the model.
        identity: Digest of the run. Empty: any run.

    Returns:
        The history up to the checkpoint, and the number of steps done.

    Raises:
        CheckpointError: If the checkpoint is incomplete, or of another model, run or other turns.
    """
    path = run / "checkpoints" / "last.safetensors"
    tensors, facts = read_checkpoint(path, identity)
    restore_model(path, model, tensors)
    if facts.get("turns", []) != _names(optimisers):
        raise CheckpointError(
            f"`{path}` was written by a run of the turns {facts.get('turns', [])}, and this one "
            f"has {_names(optimisers)}; a single turn has no name. A checkpoint holds the state of "
            "each turn's optimiser. Pass the turns that the run began with, or another folder."
        )
    average.restore(tensors)
    restore_state(path, tensors, _places(optimisers))
    step = int(facts["step"])
    return History(rows_up_to(run, step), facts["wall_time_s"]), step
