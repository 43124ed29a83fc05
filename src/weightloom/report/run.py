"""A run folder, read: its files in, one `Run` out."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from weightloom.files import load_tensors
from weightloom.runs.folder import read_options
from weightloom.runs.metrics import read_rows
from weightloom.runs.record import RECORD, read_run_record

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
    """Names that go with the tensors, and words of the page: ``better``, ``higher`` or ``lower``;
    ``unseen``, as in "with classes never seen in training"; ``left_out``, why a section is empty,
    by its name."""


def read_run(folder: Path) -> Run:
    """Read a run folder, finished or not.

    Args:
        folder: Must hold ``config.json``; every other file may be absent. Where a resumed run
            logged a step twice, the later row counts; a line of ``metrics.jsonl`` that is torn is
            passed over.

    Raises:
        DataError: If ``folder`` is not a run, or one of its JSON files is damaged.
        CheckpointError: If ``evaluation.safetensors`` is damaged.
    """
    config, rows = read_options(folder), read_rows(folder)
    evaluation = folder / "evaluation.safetensors"
    tensors, facts = load_tensors(evaluation) if evaluation.is_file() else ({}, {})
    return Run(
        name=folder.resolve().name,
        config=config,
        training=_last_of_each_step(rows, "loss"),
        validation=_last_of_each_step(rows, "validation_score"),
        record=_read_record(folder) if (folder / RECORD).is_file() else {},
        tensors=tensors,
        facts=facts,
    )


def _read_record(folder: Path) -> Facts:
    """Read a record; a score that a failed method does not have, null there, is NaN."""
    record: Facts = {**read_run_record(folder)}
    for score in record["scores"]:
        score |= {key: _number(score[key]) for key in ("mean", "ci95") if key in score}
    return record


def _last_of_each_step(rows: list[Facts], key: str) -> list[Facts]:
    by_step = {row["step"]: row | {key: _number(row[key])} for row in rows if key in row}
    return [by_step[step] for step in sorted(by_step)]


def _number(value: Any) -> float:
    """Read a logged number; what is logged where JSON has no word for it, null or a name, is NaN."""
    return float(value) if isinstance(value, int | float) else math.nan
