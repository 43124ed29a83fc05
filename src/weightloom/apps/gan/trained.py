"""Adversarial training from Python: train a pair, then draw samples from it.

In:   the name of data and options, or the folder of a run.
Out:  `TrainedPair`, which draws samples of any condition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.adversarial import AdversarialPair
from weightloom.apps.experiment import load as load_run
from weightloom.apps.experiment import train_model
from weightloom.apps.gan.app import Gan
from weightloom.apps.gan.config import GanConfig, GanOptions
from weightloom.apps.gan.problems.problem import GanProblem
from weightloom.errors import ConfigError, nearest
from weightloom.runs.loggers import MetricLogger


@dataclass(frozen=True)
class TrainedPair:
    """A trained pair, with its data and options."""

    model: AdversarialPair
    """The trained pair."""
    problem: GanProblem
    """The real samples it was trained on."""
    config: GanOptions
    """Options of the training, all filled in."""

    def sample(
        self, name: str, count: int = 1, seed: int | None = None, size: Sequence[int] | None = None
    ) -> Tensor:
        """Draw samples of a condition.

        Args:
            name: Name of the condition, such as a class.
            count: Number of samples.
            seed: Seed of the noise. Default: torch's global generator.
            size: Points along each axis, for pairs that draw functions. Default: as in training.

        Returns:
            Samples, (count, *shape).

        Raises:
            ConfigError: If there is no such condition, or ``size`` is given for a pair whose
                samples have one size.
        """
        names = list(self.problem.names)
        if name not in names:
            raise ConfigError(
                f"There is no condition `{name}`. The pair was trained on {len(names)}. "
                f"{nearest(name, names)}"
            )
        chance = None if seed is None else torch.Generator().manual_seed(seed)
        return self.problem.draw_samples(self.model, names.index(name), count, chance, size)


def train(
    data: str = "digits",
    *,
    run: str | Path | None = None,
    quiet: bool = False,
    loggers: Sequence[str | MetricLogger] = (),
    **options: Any,
) -> TrainedPair:
    """Train one method on data.

    Args:
        data: A name from `weightloom list gan`, a folder, or ``module:Class``.
        run: Folder to keep the run in; None keeps no files.
        quiet: Show no progress.
        loggers: Loggers of metrics, by name (`weightloom.runs.loggers.LOGGERS`) or as objects.
        **options: Fields of `GanConfig`, such as ``method``, ``minutes`` or ``gamma``.

    Raises:
        ConfigError: If an option is unknown or does not fit.
        DataError: If the data are missing or damaged.
        MissingExtraError: If an optional package is not installed.
        NonFiniteError: If the players diverge.
    """
    config = GanConfig.from_dict({"data": data, **options})
    folder = None if run is None else Path(run).expanduser()
    loaded = train_model(Gan(), config, folder, quiet, loggers=loggers)
    loaded.model.eval()
    return TrainedPair(loaded.model, loaded.problem, loaded.config)


def load(run: str | Path, *, trust: bool = False) -> TrainedPair:
    """Load the trained pair of a run of `weightloom gan`.

    Args:
        run: Folder of the run.
        trust: Import the code that the run's options name as ``module:Class``.

    Raises:
        ConfigError: If the options name code and ``trust`` is False.
        DataError: If the folder holds no run, or its data are missing.
        CheckpointError: If the checkpoint is missing or damaged.
    """
    loaded = load_run(Gan(), Path(run).expanduser(), only=True, trust=trust)
    loaded.model.eval()
    return TrainedPair(loaded.model, loaded.problem, loaded.config)
