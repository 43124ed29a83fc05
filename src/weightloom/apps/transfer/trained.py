"""Transfer from Python: train the method that adapts, then adapt it to targets.

In:   the name of a problem and options, or the folder of a run.
Out:  `Trained`, which adapts to any number of new targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from weightloom.apps.app import Adapted
from weightloom.apps.experiment import load as load_run
from weightloom.apps.experiment import train_model
from weightloom.apps.transfer.app import Transfer
from weightloom.apps.transfer.config import TransferConfig, TransferOptions
from weightloom.apps.transfer.problems.problem import TransferProblem
from weightloom.runs.loggers import MetricLogger


@dataclass(frozen=True)
class Trained:
    """A trained transfer method, with its problem and options."""

    model: nn.Module
    """The trained method."""
    problem: TransferProblem
    """The source model and the targets it was trained on."""
    config: TransferOptions
    """Options of the training, all filled in."""

    def adapt(self, target: str) -> Adapted:
        """Adapt the source model to a target.

        Args:
            target: Text or path, as the problem reads it.

        Raises:
            ConfigError: If the problem reads no targets of one's own.
            DataError: If the target cannot be read.
        """
        return self.problem.adapt(self.model, target)


def train(
    data: str,
    *,
    run: str | Path | None = None,
    quiet: bool = False,
    loggers: Sequence[str | MetricLogger] = (),
    **options: Any,
) -> Trained:
    """Train one method of a transfer problem.

    Args:
        data: A name from `weightloom list transfer`, or ``module:Class``.
        run: Folder to keep the run in; None keeps no files.
        quiet: Show no progress.
        loggers: Loggers of metrics, by name (`weightloom.runs.loggers.LOGGERS`) or as objects.
        **options: Fields of `TransferConfig`, such as ``method``, ``minutes`` or ``rank``.

    Raises:
        ConfigError: If an option is unknown or does not fit.
        DataError: If the data are missing or damaged.
        MissingExtraError: If an optional package is not installed.
        NonFiniteError: If a loss or gradient is NaN or infinite.
    """
    config = TransferConfig.from_dict({"data": data, **options})
    folder = None if run is None else Path(run).expanduser()
    loaded = train_model(Transfer(), config, folder, quiet, loggers=loggers)
    return Trained(loaded.model, loaded.problem, loaded.config)


def load(run: str | Path, *, trust: bool = False) -> Trained:
    """Load the trained method of a run of `weightloom transfer`.

    Args:
        run: Folder of the run.
        trust: Import the code that the run's options name as ``module:Class``.

    Raises:
        ConfigError: If the options name code and ``trust`` is False.
        DataError: If the folder holds no run, or its data are missing.
        CheckpointError: If the checkpoint is missing or damaged.
    """
    loaded = load_run(Transfer(), Path(run).expanduser(), only=True, trust=trust)
    return Trained(loaded.model, loaded.problem, loaded.config)
