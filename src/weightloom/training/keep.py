"""What survives a training: its rows, its checkpoints, and the way back from them."""

import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.errors import CheckpointError
from weightloom.files import load_tensors, save_tensors, write_atomically
from weightloom.training.average import Average

Row = dict[str, Any]


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


def load_model(path: Path, model: nn.Module) -> int:
    """Put the parameters kept in a checkpoint into ``model``; return the number of steps they were trained for.

    Raises:
        CheckpointError: If the file is not whole, or was written for another model.
    """
    tensors, facts = load_tensors(path)
    restore_model(path, model, tensors)
    average = Average(model, 1.0)
    average.restore(tensors)
    average.settle()
    return int(facts["step"])


class Keeper:
    """Writes the rows and checkpoints of one run; with no folder it only remembers the rows."""

    def __init__(
        self,
        run: Path | None,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        history: History,
        average: Average,
    ) -> None:
        self.run, self.model, self.optimiser, self.history, self.average = run, model, optimiser, history, average
        self.kept: Path | None = None
        if run:
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(row) + "\n" for row in history.rows)
            write_atomically(run / "metrics.jsonl", lines)

    def log(self, row: Row) -> None:
        """Add a row to the history and to ``metrics.jsonl``."""
        row = {**row, "wall_time_s": round(self.history.wall_time_s, 3)}
        self.history.rows.append(row)
        if self.run:
            with (self.run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def keep(self, step: int) -> None:
        """Write the checkpoint of a step; the one before is replaced when it is whole."""
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


def restore_model(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put the tensors of a checkpoint into the model that wrote it, or raise a `CheckpointError`."""
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


def resume_run(run: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: Average) -> tuple[History, int]:
    """Restore model and optimiser, and the rows up to the checkpoint."""
    path = run / "checkpoints" / "last.safetensors"
    tensors, facts = load_tensors(path)
    restore_model(path, model, tensors)
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
