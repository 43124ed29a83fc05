"""Records: scores, options and costs of a run, enough to repeat it.

In:   scores per task or per seed, a config, costs.
Out:  a JSON record, with 95 % intervals.
The computation of the scores is left to its callers.
"""

import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
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
ORIGIN = "A run writes it when it comes to its end; `--resume FOLDER` finishes one."
"""Origin of a record, for messages."""

Role = Literal["method", "untrained", "control", "ceiling"]
"""Role of a row: methods compete, rows of other roles are references for comparison."""

Better = Literal["higher", "lower"]
"""Direction of a score: the better end."""


class Row(TypedDict):
    """One method in one setting: a row of the table."""

    method: str
    """Name of the method."""
    role: NotRequired[Role]
    """Role of the row. Default: ``method``."""
    setting: str
    """The tasks, as in "5-way 1-shot"."""
    name: str
    """Name of the main score, as in "accuracy"."""
    better: Better
    """Direction of the main score."""
    mean: float | None
    """Mean score over tasks; NaN, null in the file, for a failed method."""
    ci95: float | None
    """Half the width of the 95 % interval; NaN, null in the file, for a single task."""
    tasks: int
    """Number of tasks, or contexts, in the mean."""
    also: NotRequired[dict[str, Any]]
    """Further scores by name, each with ``mean`` and ``ci95``."""
    adapt_time_s: NotRequired[float | None]
    """Median seconds to adapt to one new task."""
    calibration: NotRequired[dict[str, Any]]
    """Accuracy by confidence, and the expected calibration error, ``ece``."""
    diverged: NotRequired[int]
    """Number of tasks for which the method returned NaN."""
    ours_ahead: NotRequired[Mapping[str, float | None]]
    """Score of the run's main method minus this one, on the same tasks: ``mean`` and ``ci95``."""
    trained_ahead: NotRequired[Mapping[str, float | None]]
    """In a row of role ``untrained``: score of the trained method minus this one, on the same
    tasks: ``mean`` and ``ci95``."""
    per_context: NotRequired[list[float]]
    """Score in each context, or of each target."""
    check: NotRequired[dict[str, Any]]
    """In the row of a check on the support: ``weights``, the mean weight of each method, and
    ``families``, the mean score of each family of targets, checked and unadapted."""


class RunRecord(TypedDict):
    """Contents of ``record.json`` in a run's folder; an application may add fields."""

    app: str
    """Name of the application."""
    identity: str
    """Digest of application and options, as in ``run.json``."""
    command: str
    """Command line of the run."""
    config: dict[str, Any]
    """All options, resolved."""
    scores: list[Row]
    """Rows of the results table."""
    cost: dict[str, Any]
    """Times, memory, versions."""
    notes: str
    """Protocol of the evaluation, and problems of the run."""


Record = dict[str, Any]
"""A record as a JSON object: of a run (`RunRecord`), or of a benchmark."""

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
"""97.5 % points of Student's t, by number of values, which is degrees of freedom plus one."""


def summary(per_task: Tensor) -> dict[str, float]:
    """Return the mean over tasks and half the width of its 95 % interval.

    The interval is that of the central limit theorem; it is NaN for a single task.

    Example:
        >>> summary(torch.tensor([0.0, 1.0, 0.0, 1.0]))
        {'mean': 0.5, 'ci95': 0.5658...}
    """
    values = per_task.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": values.mean().item(), "ci95": 1.96 * error}


def summary_over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Return values, mean over seeds, and half the width of its 95 % interval, by Student's t.

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
    """Return the role of a row; ``method`` if it has none.

    Example:
        >>> role_of({"method": "protonet"}), role_of({"method": "shuffled", "role": "control"})
        ('method', 'control')
    """
    role: Role = row.get("role", "method")
    return role


def competes(row: Row | dict[str, Any]) -> bool:
    """Return True if the role of a row is ``method``."""
    return role_of(row) == "method"


def label(row: Row | dict[str, Any]) -> str:
    """Return the name of a row for display, followed by its role unless it competes.

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
    """Return the row of a method from its scores per task.

    Args:
        method: Name of the method.
        setting: The tasks, as in "5-way 1-shot".
        name: Name of the score.
        per_task: Scores, ``(tasks,)``.
        better: Direction of the score.
        role: Role of the row.

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
    """Return the row of a failed method: a score of NaN over 0 tasks."""
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
    """Return versions, device and number of threads, for the record of a measurement.

    Args:
        device: Device of the measurement, as torch names it.
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
    """Write a record as indented JSON, atomically. NaN and infinity become null."""
    write_atomically(path, json.dumps(_plain(record), indent=1, allow_nan=False) + "\n")


def check_target(path: Path) -> None:
    """Raise a `ConfigError` unless a record may be written to ``path``.

    The path must be free, an existing record outside a run's folder, a pipe, or a character device.
    Missing parent folders are made.
    """
    kind = kind_of(path)
    try:
        path.lstat()
    except FileNotFoundError:
        make_folder(path.parent, "--record")
        return
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"`{shortened(path)}` cannot be written ({getattr(error, 'strerror', None) or error}). "
            "A record is a file of a valid name. Pass another one as `--record`."
        ) from error
    if kind == "nothing":
        raise ConfigError(
            f"`{path}` is a link to a missing file. A record is a file. Pass a name that is free."
        )
    if fault := _fault_of_target(path, kind):
        raise ConfigError(
            f"`{path}` {fault}. Only a record that `--record` wrote is overwritten. Pass a name "
            "that is free."
        )


def _fault_of_target(path: Path, kind: str) -> str:
    """Return the reason why a record must not be written to an existing path; empty if it may."""
    if kind == "folder":
        return "is a folder"
    if kind == "other":
        return "is a disk" if path.is_block_device() else ""
    record: Any = None
    with suppress(TextError):
        record = read_json(path)
    if not isinstance(record, dict) or not {"scores", "config"} <= {*record}:
        return "is no record"
    belongs = (path.resolve().parent / "run.json").exists()
    return "is the record of a run, which belongs to it" if belongs else ""


def write_run_record(run: Path, record: Record) -> None:
    """Write the record of a run into its folder."""
    write_record(run / RECORD, {"format": FORMAT, **record})


def read_record(path: Path) -> Record:
    """Read any record, of a run or of a benchmark, unchecked.

    Raises:
        DataError: If the file is missing, or is not a JSON object.
    """
    return read_object(path, ORIGIN)


def read_run_record(run: Path, identity: str = "") -> RunRecord:
    """Read the record of a run and check its fields.

    Args:
        run: The run's folder.
        identity: Identity that the record must have; empty accepts any.

    Raises:
        DataError: If the file is missing, damaged, of another version, or of another run.
    """
    path = run / RECORD
    record = read_checked(path, RunRecord, FORMAT, ORIGIN)
    if identity and record["identity"] != identity:
        raise DataError(
            f"`{path}` is of another run (digest {record['identity']}, not {identity}). A record "
            "belongs to the options of its run. Put back the run's own record, or finish the run "
            "again."
        )
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _student_t_975(count: int) -> float:
    """Return the 97.5 % point of Student's t, from the table or by a series.

    The series is Abramowitz and Stegun (1964), 26.7.5, with an error below 0.003.
    """
    freedom = max(count - 1, 1)
    return STUDENT_T_975.get(count, 1.95996 + 2.3723 / freedom + 2.8225 / freedom**2)


def _commit() -> str | None:
    """Return the commit of the working tree of this package; None if it is installed elsewhere."""
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
