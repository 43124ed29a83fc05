"""Run folders: files in, one `Run` out."""

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
"""A JSON object."""


@dataclass(frozen=True)
class Run:
    """Contents of a run folder; parts that are not written yet are empty."""

    name: str
    """Name of the folder."""
    config: Facts
    """Every option, resolved."""
    training: list[Facts]
    """One row per logged training step, in order of steps."""
    validation: list[Facts]
    """One row per evaluation during training, in order of steps."""
    record: Facts
    """Scores and cost; empty until the run has ended."""
    tensors: dict[str, Tensor]
    """A few evaluated tasks, their predictions, and conditions."""
    facts: Facts
    """Names for the tensors, and words of the page: ``better``, ``higher`` or ``lower``; ``task``,
    the word for one, as in "patient"; ``unseen``, as in "with classes never seen in training";
    ``left_out``, the reason for each empty section, by its name."""
    folder: Path | None = None
    """The folder itself, for sections that read further files."""


def read_run(folder: Path) -> Run:
    """Read a run folder, finished or not.

    Args:
        folder: Must hold ``config.json``; all other files are optional. If a resumed run logged a
            step twice, the later row counts; an incomplete line of ``metrics.jsonl`` is skipped.

    Raises:
        DataError: If ``folder`` is not a run folder, or one of its JSON files is damaged.
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
        folder=folder,
    )


def _read_record(folder: Path) -> Facts:
    """Read a record; scores of failed methods, null in the file, become NaN."""
    record: Facts = {**read_run_record(folder)}
    for score in record["scores"]:
        score |= {key: _number(score[key]) for key in ("mean", "ci95") if key in score}
    return record


def _last_of_each_step(rows: list[Facts], key: str) -> list[Facts]:
    by_step = {row["step"]: row | {key: _number(row[key])} for row in rows if key in row}
    return [by_step[step] for step in sorted(by_step)]


def _number(value: Any) -> float:
    """Return a logged number as a float; null and strings, which stand for no number, are NaN."""
    return float(value) if isinstance(value, int | float) else math.nan
