"""Loggers of metrics: TensorBoard, CSV, Weights & Biases, MLflow, any object with ``log_metrics``.

In:   rows of a training, as ``metrics.jsonl`` holds them.
Out:  the numbers of each row, sent to loggers under the row's step.
Knows nothing of models. A logger's package is imported when its first row comes.
"""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from weightloom.errors import ConfigError, MissingExtraError, nearest
from weightloom.runs.metrics import Row, read_rows


@runtime_checkable
class MetricLogger(Protocol):
    """Anything that takes metrics, such as the loggers of Lightning and Fabric.

    A method ``finalize(status)``, if there is one, is called when the training has ended, with
    ``"success"`` or ``"failed"``.
    """

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        """Take the metrics of one step."""
        ...


def send(loggers: Sequence[MetricLogger], row: Row) -> None:
    """Send the numbers of a row to every logger; text, lists, NaN and infinity are left out.

    Example:
        >>> class Printer:
        ...     def log_metrics(self, metrics, step):
        ...         print(step, metrics)
        >>> send([Printer()], {"step": 10, "loss": 0.5, "name": "maml", "returns": [1.0]})
        10 {'loss': 0.5}
        >>> send([Printer()], {"step": 10, "turn": "actor", "actor": {"loss": 0.5}})
    """
    if loggers and (metrics := _numbers(row)):
        for logger in loggers:
            logger.log_metrics(metrics, row["step"])


@contextmanager
def finalised(loggers: Sequence[MetricLogger]) -> Iterator[None]:
    """Call ``finalize`` of every logger that has it, when the block ends."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for logger in loggers:
            getattr(logger, "finalize", _ignore)(status)


def _ignore(status: str) -> None: ...


def _numbers(row: Row) -> dict[str, float]:
    """Return a row's metrics; those of a turn are named ``TURN/METRIC``."""
    turn = f"{row['turn']}/" if "turn" in row else ""
    return {
        f"{turn}{name}": float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def _csv(folder: Path, title: str) -> MetricLogger:
    from lightning_fabric.loggers.csv_logs import CSVLogger

    return CSVLogger(_emptied(folder, "csv"), name="", version="")


def _tensorboard(folder: Path, title: str) -> MetricLogger:
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    return TensorBoardLogger(_emptied(folder, "tensorboard"), name="", version="")


class WandbLogger:
    """Metrics to Weights & Biases; offline where ``WANDB_MODE=offline``.

    Args:
        folder: Its files; the current run's if there is one.
        title: Name of the run.
        project: Project that the run is in.
    """

    def __init__(self, folder: Path, title: str, project: str = "weightloom") -> None:
        import wandb

        self.run = wandb.init(project=project, name=title, dir=folder, reinit="create_new")

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        """Take the metrics of one step."""
        self.run.log(metrics, step=step)

    def finalize(self, status: str) -> None:
        """End the run."""
        self.run.finish(exit_code=int(status != "success"))


class MlflowLogger:
    """Metrics to MLflow, where ``MLFLOW_TRACKING_URI`` points.

    Args:
        folder: Not used; MLflow keeps its own.
        title: Name of the run.
        experiment: Name of the experiment, which is made if it does not exist.
    """

    def __init__(self, folder: Path, title: str, experiment: str = "weightloom") -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient()
        found = self.client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self.client.create_experiment(experiment)
        self.run_id = self.client.create_run(number, run_name=title).info.run_id

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        """Take the metrics of one step."""
        for name, value in metrics.items():
            self.client.log_metric(self.run_id, name, value, step=step)

    def finalize(self, status: str) -> None:
        """End the run."""
        self.client.set_terminated(self.run_id, "FINISHED" if status == "success" else "FAILED")


class Maker(NamedTuple):
    """The way to a logger that is chosen by name."""

    make: Callable[[Path, str], MetricLogger]
    """Takes the folder of a training and a title."""
    package: str
    """Module that it needs."""


LOGGERS = {
    "csv": Maker(_csv, "lightning_fabric"),
    "tensorboard": Maker(_tensorboard, "tensorboard"),
    "wandb": Maker(WandbLogger, "wandb"),
    "mlflow": Maker(MlflowLogger, "mlflow"),
}
"""Loggers by the names that ``--log`` takes."""
IN_FOLDER = ("csv", "tensorboard")
"""Loggers that write to the folder of a training."""


def check_loggers(loggers: Iterable[str | MetricLogger], kept: bool = True) -> None:
    """Check loggers, given by name or as objects.

    Args:
        loggers: Keys of `LOGGERS`, or objects.
        kept: The training keeps a folder, which ``csv`` and ``tensorboard`` write to.

    Raises:
        ConfigError: If a name is unknown, an object has no ``log_metrics``, or a logger needs a
            folder and none is kept.
        MissingExtraError: If the package of a logger is not installed.
    """
    for logger in loggers:
        if not isinstance(logger, str):
            _check_object(logger)
        elif logger not in LOGGERS:
            raise ConfigError(f"`{logger}` is no logger. {nearest(logger, LOGGERS)}")
        elif find_spec(LOGGERS[logger].package) is None:
            raise MissingExtraError(
                f"`{LOGGERS[logger].package}` is not installed. The logger `{logger}` sends "
                "metrics to it. Type `pip install 'weightloom[loggers]'`, or choose `csv`, which "
                "needs no package."
            )
        elif not kept and logger in IN_FOLDER:
            raise ConfigError(
                f"The logger `{logger}` writes to the run's folder, and no folder is kept. Pass "
                '`run="runs/mine"`, or an object such as `CSVLogger("logs")`.'
            )


def _check_object(logger: MetricLogger) -> None:
    if not isinstance(logger, MetricLogger):
        raise ConfigError(
            f"{type(logger).__name__} has no method `log_metrics(metrics, step)`. That is all that "
            f"a logger needs. Pass an object with it, or a name: {', '.join(LOGGERS)}."
        )


def open_loggers(
    loggers: Iterable[str | MetricLogger], folder: Path, title: str
) -> list[MetricLogger]:
    """Return the loggers of one training; those given by name open at their first row.

    A named logger of a resumed training first gets the rows of before, so that curves are whole.

    Args:
        loggers: Keys of `LOGGERS`, or objects, which are returned as they are.
        folder: The training's, with ``metrics.jsonl``; ``csv`` and ``tensorboard`` write below it.
        title: Name of the training, as in ``digits-001/hypernetwork``.
    """
    return [
        _Opening(LOGGERS[its].make, folder, title) if isinstance(its, str) else its
        for its in loggers
    ]


class _Opening:
    """A logger that is opened at the first row, and then takes every row that the folder holds."""

    def __init__(self, make: Callable[[Path, str], MetricLogger], folder: Path, title: str) -> None:
        self.make, self.folder, self.title = make, folder, title
        self.logger: MetricLogger | None = None

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        if self.logger is not None:
            return self.logger.log_metrics(metrics, step)
        self.logger = self.make(self.folder, self.title)
        for row in read_rows(self.folder):  # this one among them: it was written before it was sent
            send([self.logger], row)
        return None

    def finalize(self, status: str) -> None:
        if self.logger is not None:
            getattr(self.logger, "finalize", _ignore)(status)


def _emptied(folder: Path, name: str) -> Path:
    """Return a sub-folder without files of before, which are made again from the rows."""
    place = folder / name
    if place.is_dir():
        shutil.rmtree(place)
    return place
