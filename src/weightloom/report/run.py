"""A run folder, read: its files in, one `Run` out."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from weightloom.errors import DataError
from weightloom.files import load_tensors

Facts = dict[str, Any]
"""What one JSON object holds."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds so far; what is not there yet is empty."""

    name: str
    """The folder's own name."""
    config: Facts
    """Every option, resolved."""
    training: list[Facts]
    """One row per logged training step, in order of steps."""
    validation: list[Facts]
    """One row per evaluation during training, in order of steps."""
    record: Facts
    """Scores and cost; empty until the run has ended."""
    tensors: dict[str, Tensor]
    """A few evaluated tasks, what was predicted for them, and conditions."""
    facts: Facts
    """Names that go with the tensors, and words of the page: ``better``, ``higher`` or ``lower``; ``unseen``, as in
    "with classes never seen in training"; ``left_out``, why a section is empty, by its name."""


def read_run(folder: Path) -> Run:
    """Read a run folder, finished or not.

    Args:
        folder: Must hold ``config.json``; every other file may be absent. Where a resumed run logged a step
            twice, the later row counts; a line of ``metrics.jsonl`` that is torn is passed over.

    Raises:
        DataError: If ``folder`` is not a run, or one of its JSON files is damaged.
        CheckpointError: If ``evaluation.safetensors`` is damaged.
    """
    if not (folder / "config.json").is_file():
        raise DataError(
            f"`{folder}` holds no `config.json`. A report is made from the folder of a run, and every run "
            "writes its options there before its first step. "
            "Pass such a folder, as in `weightloom report runs/digits-001`."
        )
    rows = _read_lines(folder / "metrics.jsonl")
    evaluation = folder / "evaluation.safetensors"
    tensors, facts = load_tensors(evaluation) if evaluation.is_file() else ({}, {})
    return Run(
        name=folder.resolve().name,
        config=_read_object(folder / "config.json"),
        training=_last_of_each_step(rows, "loss"),
        validation=_last_of_each_step(rows, "validation_score"),
        record=_read_record(folder / "record.json") if (folder / "record.json").is_file() else {},
        tensors=tensors,
        facts=facts,
    )


def _read_record(path: Path) -> Facts:
    """Read a record; a score that a failed method does not have, null there, is NaN."""
    record = _read_object(path)
    for score in record.get("scores") or []:
        score |= {key: _number(score[key]) for key in ("mean", "ci95") if key in score}
    return record


def _read_object(path: Path) -> Facts:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, f"it holds a {type(content).__name__}")
    return content


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"`{path}` cannot be read ({reason}). It must hold one JSON object, as the run wrote it. "
        "Put back an earlier copy, or start the run again in a new folder with `--run FOLDER`."
    )


def _read_lines(path: Path) -> list[Facts]:
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # torn: a live run is writing it, or a killed one was
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def _last_of_each_step(rows: list[Facts], key: str) -> list[Facts]:
    by_step = {row["step"]: row | {key: _number(row[key])} for row in rows if key in row}
    return [by_step[step] for step in sorted(by_step)]


def _number(value: Any) -> float:
    """Read a logged number; what is logged where JSON has no word for it, null or a name, is NaN."""
    return float(value) if isinstance(value, int | float) else math.nan
