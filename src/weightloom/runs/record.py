"""Records: what a run measured, so that a stranger can run it again.

In:   scores per task or per seed, a config, what it cost.
Out:  a JSON record, and the intervals in it.
Knows nothing of how the scores came about.
"""

import json
import math
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.files import write_atomically
from weightloom.errors import DataError

Record = dict[str, Any]

STUDENT_T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
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
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1)) if count > 1 else math.nan
    return {"per_seed": list(values), "mean": mean, "ci95": _student_t_975(count) * spread / math.sqrt(count)}


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


def peak_memory_bytes() -> int:
    """Return the most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_record(path: Path, record: Record) -> None:
    """Write a record as indented JSON, at once or not at all; what is not a number, such as NaN, becomes null."""
    write_atomically(path, json.dumps(_plain(record), indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        DataError: If there is none, or it is not JSON.
    """
    try:
        record: Record = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(
            f"`{path}` cannot be read as a record ({error}). A run writes it when it comes to its end. "
            f"Type `weightloom fewshot --resume {path.parent}` to finish the run."
        ) from error
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _student_t_975(count: int) -> float:
    """From the table, or beyond it by the series of Abramowitz and Stegun (1964), 26.7.5: right to 0.003."""
    freedom = max(count - 1, 1)
    return STUDENT_T_975.get(count, 1.95996 + 2.3723 / freedom + 2.8225 / freedom**2)


def _commit() -> str | None:
    """The commit of the working tree this package was imported from, None outside one."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 and "site-packages" not in str(here) else None
