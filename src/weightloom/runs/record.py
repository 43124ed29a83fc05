"""Records: measurements of a run, so that a stranger can run it again.

In:   scores per task or per seed, a config, costs.
Out:  a JSON record, and the intervals in it.
Knows nothing of how the scores came about.
"""

import json
import math
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NotRequired

import torch
from torch import Tensor
from typing_extensions import TypedDict

from weightloom.errors import ConfigError, DataError
from weightloom.files import make_folder, write_atomically
from weightloom.runs.schema import read_json as read_checked
from weightloom.runs.schema import read_object
from weightloom.texts import TextError, kind_of, read_json, shortened

FORMAT = 1
"""Version of the schema of a record."""
RECORD = "record.json"

Role = Literal["method", "untrained", "control", "ceiling"]
"""Part that a row plays: a method competes; the others are what methods are held against."""

Better = Literal["higher", "lower"]
"""Which scores are better."""


class Row(TypedDict):
    """One method in one setting: a row of the table."""

    method: str
    """Its name."""
    role: NotRequired[Role]
    """Its part; a method where it is not given."""
    setting: str
    """The tasks, as in "5-way 1-shot"."""
    name: str
    """The score that counts, as in "accuracy"."""
    better: Better
    mean: float | None
    """Over tasks; NaN, in a file null, for a method that failed."""
    ci95: float | None
    """Half the width of the 95 % interval."""
    tasks: int
    """Tasks, or contexts, that the mean is over."""
    also: NotRequired[dict[str, Any]]
    """Further scores by name, each with ``mean`` and ``ci95``."""
    adapt_time_s: NotRequired[float | None]
    """Median seconds to adapt to one new task."""
    calibration: NotRequired[dict[str, Any]]
    """Confidence held against accuracy."""
    diverged: NotRequired[int]
    """Tasks for which the method gave something that is not a number."""
    ours_ahead: NotRequired[dict[str, float | None]]
    """By how much the score of the run's method is larger on the same tasks."""
    per_context: NotRequired[list[float]]
    """The score in each context."""


class RunRecord(TypedDict):
    """Contents of ``record.json`` in a run's folder; an application may add facts of its own."""

    app: str
    """The application that made the run."""
    identity: str
    """Digest of application and options, as in ``run.json``."""
    command: str
    """The command line."""
    config: dict[str, Any]
    """Every option, resolved."""
    scores: list[Row]
    """The table."""
    cost: dict[str, Any]
    """Times, memory, versions."""
    notes: str
    """The protocol, and what did not go well."""


Record = dict[str, Any]
"""A record as JSON has it: of a run (`RunRecord`), or of a benchmark."""

STUDENT_T_975 = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
}
"""97.5 % points of Student's t for a few values (degrees of freedom are one less)."""


def summary(per_task: Tensor) -> dict[str, float]:
    """Mean over tasks and half the width of its 95 % interval, by the central limit.

    Example:
        >>> summary(torch.tensor([0.0, 1.0, 0.0, 1.0]))
        {'mean': 0.5, 'ci95': 0.5658...}
    """
    values = per_task.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": values.mean().item(), "ci95": 1.96 * error}


def summary_over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean over a few seeds and half the width of its 95 % interval, by Student's t.

    Example:
        >>> summary_over_seeds([1.0, 2.0, 3.0])
        {'per_seed': [1.0, 2.0, 3.0], 'mean': 2.0, 'ci95': 2.484...}
    """
    count = len(values)
    mean = sum(values) / count
    spread = (
        math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1)) if count > 1 else math.nan
    )
    return {
        "per_seed": list(values),
        "mean": mean,
        "ci95": _student_t_975(count) * spread / math.sqrt(count),
    }


def role_of(row: Row | dict[str, Any]) -> Role:
    """Return the part that a row plays.

    Example:
        >>> role_of({"method": "protonet"}), role_of({"method": "shuffled", "role": "control"})
        ('method', 'control')
    """
    role: Role = row.get("role", "method")
    return role


def competes(row: Row | dict[str, Any]) -> bool:
    """Say whether a row is of a method, and not of what methods are held against."""
    return role_of(row) == "method"


def label(row: Row | dict[str, Any]) -> str:
    """Write the name of a row for a person, its role behind it unless it competes.

    Example:
        >>> label({"method": "protonet"}), label({"method": "shuffled", "role": "control"})
        ('protonet', 'shuffled (control)')
    """
    return str(row["method"]) if competes(row) else f"{row['method']} ({role_of(row)})"


def row_of(
    method: str,
    setting: str,
    name: str,
    per_task: Tensor,
    better: Better = "higher",
    role: Role = "method",
) -> Row:
    """Return the row of a method: mean over tasks and its 95 % interval.

    Example:
        >>> row_of("mine", "all", "accuracy", torch.tensor([0.0, 1.0]))["mean"]
        0.5
    """
    overall = summary(per_task)
    row: Row = {
        "method": method,
        "setting": setting,
        "name": name,
        "better": better,
        "mean": overall["mean"],
        "ci95": overall["ci95"],
        "tasks": len(per_task),
        "also": {},
    }
    if role != "method":
        row["role"] = role
    return row


def failed_row(method: str, setting: str, name: str, better: Better) -> Row:
    """Return the row of a method that came to no end: its score is not a number, over no task."""
    return {
        "method": method,
        "setting": setting,
        "name": name,
        "better": better,
        "mean": math.nan,
        "ci95": math.nan,
        "tasks": 0,
        "also": {},
        "adapt_time_s": math.nan,
    }


def environment(device: str = "cpu") -> dict[str, Any]:
    """Return what a number depends on beside the code: versions, device, threads.

    Args:
        device: Where it was computed, as torch names it.
    """
    return {
        "weightloom": version("weightloom"),
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def write_record(path: Path, record: Record) -> None:
    """Write a record as indented JSON, at once or not at all.

    What is not a number, such as NaN, becomes null.
    """
    write_atomically(path, json.dumps(_plain(record), indent=1, allow_nan=False) + "\n")


def check_target(path: Path) -> None:
    """Raise a `ConfigError` unless a record may be written to ``path``.

    That is where nothing is, where a record outside a run's folder is, or a pipe, or a device that
    takes text.
    """
    what = kind_of(path)
    try:
        path.lstat()
    except FileNotFoundError:
        make_folder(path.parent, "--record")
        return
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"`{shortened(path)}` cannot be written ({getattr(error, 'strerror', None) or error}). "
            "A record is a file of a name that a file can have. Pass another one as `--record`."
        ) from error
    if what == "nothing":
        raise ConfigError(
            f"`{path}` is a link that leads nowhere. A record is a file. Pass a name that is free."
        )
    if what == "other" and not path.is_block_device():
        return
    found = {"folder": "is a folder", "other": "is a disk"}.get(what, "is no record")
    if what == "file":
        record: Any = None
        with suppress(TextError):
            record = read_json(path)
        if isinstance(record, dict) and {"scores", "config"} <= {*record}:
            if not (path.resolve().parent / "run.json").exists():
                return
            found = "is the record of a run, which belongs to it"
    raise ConfigError(
        f"`{path}` {found}. Only a record that `--record` wrote is written over. Pass a name that "
        "is free."
    )


def write_run_record(run: Path, record: Record) -> None:
    """Write the record of a run into its folder."""
    write_record(run / RECORD, {"format": FORMAT, **record})


def read_record(path: Path) -> Record:
    """Read any record.

    Raises:
        DataError: If there is none, or it is not JSON.
    """
    return read_object(
        path, "A run writes it when it comes to its end; `--resume FOLDER` finishes one."
    )


def read_run_record(run: Path, identity: str = "") -> RunRecord:
    """Read the record of a run.

    Args:
        run: The run's folder.
        identity: The run that it has to be of; empty is any.

    Raises:
        DataError: If there is none, it is damaged, of another version, or of another run.
    """
    path = run / RECORD
    about = "A run writes it when it comes to its end; `--resume FOLDER` finishes one."
    record = read_checked(path, RunRecord, FORMAT, about)
    if identity and record["identity"] != identity:
        raise DataError(
            f"`{path}` is of another run (digest {record['identity']}, not {identity}). A record "
            "belongs to the options that it was made with. Put back the run's own, or finish the "
            "run anew."
        )
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _student_t_975(count: int) -> float:
    """From the table, or beyond it by the series of Abramowitz and Stegun (1964), 26.7.5.

    Right to 0.003.
    """
    freedom = max(count - 1, 1)
    return STUDENT_T_975.get(count, 1.95996 + 2.3723 / freedom + 2.8225 / freedom**2)


def _commit() -> str | None:
    """The commit of the working tree this package was imported from, None outside one."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (
        found.stdout.strip() or None
        if found.returncode == 0 and "site-packages" not in str(here)
        else None
    )
