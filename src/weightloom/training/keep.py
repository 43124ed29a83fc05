"""What survives a training: its rows, its checkpoints, and the way back from them."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.errors import CheckpointError
from weightloom.files import load_tensors, make_folder, save_tensors
from weightloom.runs.folder import check_identity
from weightloom.runs.metrics import Row, append_row, read_rows, write_rows
from weightloom.training.average import Average


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


def load_model(path: Path, model: nn.Module, identity: str = "") -> int:
    """Put the parameters kept in a checkpoint into ``model``; return the number of steps they were trained for.

    Raises:
        CheckpointError: If the file is not whole, or was written for another model or by another run.
    """
    tensors, facts = load_tensors(path)
    check_identity(path, facts, identity)
    restore_model(path, model, tensors)
    average = Average(model, 1.0, buffers=True)
    average.restore(tensors)
    average.settle()
    return int(facts["step"])


class Keeper:
    """Writes the rows and checkpoints of one run; with no folder it only remembers the rows."""

    def __init__(
        self,
        run: Path | None,
        model: nn.Module,
        optimisers: Mapping[str, torch.optim.Optimizer],
        history: History,
        average: Average,
        identity: str = "",
    ) -> None:
        self.run, self.model, self.optimisers, self.history, self.average = run, model, optimisers, history, average
        self.identity = identity
        self.kept: Path | None = None
        if run:
            make_folder(run / "checkpoints")
            write_rows(run, history.rows)

    def log(self, row: Row) -> None:
        """Add a row to the history and to ``metrics.jsonl``."""
        row = {**row, "wall_time_s": round(self.history.wall_time_s, 3)}
        self.history.rows.append(row)
        if self.run:
            append_row(self.run, row)

    def keep(self, step: int) -> None:
        """Write the checkpoint of a step; the one before is replaced when it is whole."""
        if not self.run:
            return
        tensors = {f"model/{name}": tensor for name, tensor in _named_tensors(self.model).items()}
        for turn, optimiser in self.optimisers.items():
            for number, state in optimiser.state_dict()["state"].items():
                place = f"{_place(turn, self.optimisers)}/{number}"
                tensors |= {f"{place}/{key}": torch.as_tensor(value) for key, value in state.items()}
        tensors |= self.average.kept()
        path = self.run / "checkpoints" / "last.safetensors"
        facts = {"step": step, "wall_time_s": self.history.wall_time_s, "turns": _names(self.optimisers)}
        save_tensors(path, tensors, facts | {"identity": self.identity})
        self.kept = path


def _names(optimisers: Mapping[str, torch.optim.Optimizer]) -> list[str]:
    """Names of turns as checkpoints have them; one alone goes by none."""
    return list(optimisers) if len(optimisers) > 1 else []


def _place(turn: str, optimisers: Mapping[str, torch.optim.Optimizer]) -> str:
    """The name under which a checkpoint has the optimiser's state of a turn."""
    return f"optimiser/{turn}" if len(optimisers) > 1 else "optimiser"


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


def resume_run(
    run: Path,
    model: nn.Module,
    optimisers: Mapping[str, torch.optim.Optimizer],
    average: Average,
    identity: str = "",
) -> tuple[History, int]:
    """Restore model and optimisers, by the names of their turns, and the rows up to the checkpoint.

    Raises:
        CheckpointError: If the checkpoint is not whole, or is of another model, run or other turns.
    """
    path = run / "checkpoints" / "last.safetensors"
    tensors, facts = load_tensors(path)
    check_identity(path, facts, identity)
    restore_model(path, model, tensors)
    if facts.get("turns", []) != _names(optimisers):
        raise CheckpointError(
            f"`{path}` was written by a run of the turns {facts.get('turns', [])}, and this one has "
            f"{_names(optimisers)}; one turn alone goes by no name. Each has an optimiser, whose state is kept. Pass "
            "the turns that the run began with, or another folder."
        )
    average.restore(tensors)
    for turn, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            place, _, key = name.rpartition("/")
            place, _, number = place.rpartition("/")
            if place == _place(turn, optimisers) and name.startswith("optimiser/"):
                state.setdefault(int(number), {})[key] = value
        _check_state(path, turn, state, optimiser)
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    step = int(facts["step"])
    rows = [row for row in read_rows(run) if row["step"] <= step]
    return History(rows, facts["wall_time_s"]), step


def _check_state(
    path: Path, turn: str, state: Mapping[int, Mapping[str, Tensor]], optimiser: torch.optim.Optimizer
) -> None:
    """Raise a `CheckpointError` unless the state that was kept is that of what an optimiser moves."""
    moved = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for number, its in state.items():
        if number >= len(moved) or any(value.ndim and value.shape != moved[number].shape for value in its.values()):
            raise CheckpointError(
                f"`{path}` was written by a run whose turn `{turn}` moved other parameters. The state of its optimiser "
                "is that of each number that moves. Pass the turn that the run began with, or another folder."
            )
