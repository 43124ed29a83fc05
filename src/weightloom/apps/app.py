"""The interface of an application.

Four methods (`open`, `build`, `train`, `judge`) give its runs a table, a report, resume, seeds and
sweeps.

In:   a config.
Out:  a problem, models for it, table rows, report sections.
Knows nothing of any application, nor of the course of a run. Torch is not imported: lists and
help texts start at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    NamedTuple,
    Protocol,
    TypeVar,
    runtime_checkable,
)

from weightloom.errors import ConfigError
from weightloom.runs.options import RunOptions

if TYPE_CHECKING:
    from torch import Tensor

    from weightloom.report.run import Run
    from weightloom.report.section import Section
    from weightloom.runs.loggers import MetricLogger
    from weightloom.runs.record import Better, Role, Row
    from weightloom.serving import Written
    from weightloom.training import History, Processes

C = TypeVar("C", bound=RunOptions)
"""Resolved options."""
P = TypeVar("P")
"""The problem: data, environments, a source model."""
M = TypeVar("M")
"""A model that a method builds."""

Shown = tuple[dict[str, "Tensor"], dict[str, Any]]
"""Tensors and facts that a report is drawn from."""


@dataclass(frozen=True)
class Contender(Generic[M]):
    """A model to judge, with its method and role: one row of the table per setting."""

    name: str
    """The method's name."""
    model: M | None
    """None for a method whose training failed."""
    role: "Role" = "method"

    def row(
        self, setting: str, name: str, per_task: "Tensor | None", better: "Better" = "lower"
    ) -> "Row":
        """Return the contender's row of the table.

        Args:
            setting: Name of the test tasks, e.g. "5-way 1-shot".
            name: Name of the score, e.g. "accuracy".
            per_task: Score of each task, (tasks,); None for a model whose training failed.
            better: Direction of better scores, "lower" or "higher".
        """
        from weightloom.runs.record import failed_row, row_of

        if per_task is None:
            return failed_row(self.name, setting, name, better)
        return row_of(self.name, setting, name, per_task, better, self.role)


@dataclass(frozen=True)
class Training(Generic[M]):
    """Folder, identity, processes and callback of one method's training."""

    method: str
    """The method's name."""
    folder: Path
    """Folder for metrics and checkpoints; training resumes from a checkpoint in it."""
    identity: str
    """Digest of the run and name of the method, stored in checkpoints."""
    processes: "Processes"
    """Devices and processes to train on."""
    quiet: bool
    """Show no progress."""
    look: Callable[[M], None]
    """Callback with the current model, called once during training: writes an early report."""
    loggers: Sequence["MetricLogger"] = ()
    """Loggers that get the numbers of each row."""

    def how(self) -> dict[str, Any]:
        """Return the keyword arguments of `weightloom.training.train` for this training."""
        return {
            "run": self.folder,
            "resume": (self.folder / "checkpoints" / "last.safetensors").is_file(),
            "fabric": self.processes,
            "quiet": self.quiet,
            "identity": self.identity,
            "loggers": self.loggers,
        }


class Listed(NamedTuple):
    """One table of `weightloom list`."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    """A name, and what is known of it."""
    absent: frozenset[str] = frozenset()
    """Names of data that are not on this machine."""
    brief: Sequence[str] = ()
    """Names for the list of all applications on one screen. Default: all names."""


@runtime_checkable
class Adapted(Protocol):
    """A model adapted to one new task, as `weightloom adapt` returns it."""

    about: str
    """Description of the task, one sentence."""

    def predict_rows(self, inputs: Sequence[str]) -> list[dict[str, Any]]:
        """Predict for typed inputs, such as paths; return one row of the printed table for each."""
        ...

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the plain network, its preprocessing and a description into a new folder.

        Returns:
            The description, as in ``network.json``: ``files``, input, preprocessing and outputs.

        Raises:
            ConfigError: If the folder already holds a network.
            CheckpointError: If it cannot be written.
        """
        ...


class App(ABC, Generic[C, P, M]):
    """An application: opens a problem from a config, builds, trains and judges models for it.

    Subclasses implement `open`, `build`, `train` and `judge`; `weightloom.apps.experiment.run`
    calls them and writes the run's folder. The config checks the options.
    """

    name: ClassVar[str]
    """Name on the command line and in ``run.json``."""
    about: ClassVar[str]
    """One line of `weightloom --help`."""
    config: ClassVar[type[RunOptions]]
    """Class of the options, a frozen dataclass; every field is a command-line flag."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules of the optional extra ``extra`` that must be installed."""
    extra: ClassVar[str] = ""
    """Name of the optional extra. Default: the application's name."""
    judged_by: ClassVar[tuple[str, ...]] = ()
    """Options that `weightloom eval` may change after training."""
    folds: ClassVar[str] = ""
    """Option that selects the data split, varied by `--folds`; empty if the split is fixed."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Further scores with a column in the printed table; the record holds all scores."""
    unseen: ClassVar[str] = "tasks never seen in training"
    """Noun phrase for the test tasks, put after their number in the table's heading."""
    adapts_to: ClassVar[str] = "a support set"
    """Noun phrase for the input of `weightloom adapt`, for its help."""

    def label(self, config: Any) -> str:
        """Return the stem of a run's folder name, e.g. ``"digits"``."""
        return self.name

    def processes(self, config: C) -> "Processes":
        """Set the number of threads and start the processes of a config; one process by default."""
        import torch

        from weightloom.training import OneProcess

        torch.set_num_threads(config.threads)
        return OneProcess()

    @abstractmethod
    def open(self, config: C) -> P:
        """Load the data or environments, before a file is written.

        Raises:
            ConfigError: If the options cannot work.
            DataError: If data are missing or damaged.
        """

    def notices(self, problem: P) -> Sequence[str]:
        """Return notices to print before training, such as skipped files."""
        return ()

    def preview(self, problem: P, config: C) -> list["Row"]:
        """Return rows of methods that need no training, to print before it. Default: none."""
        return []

    @abstractmethod
    def build(self, method: str, problem: P, config: C) -> M:
        """Build the model of a method, initialised from torch's current seed."""

    def is_trained(self, model: M) -> bool:
        """Return whether a model needs training. Default: True."""
        return True

    @abstractmethod
    def train(self, model: M, problem: P, config: C, training: Training[M]) -> "History":
        """Train a model, from the last checkpoint in the training's folder if one exists.

        Raises:
            NonFiniteError: If training met a NaN or an infinity. A comparator then counts as
                failed, and the run continues.
        """

    def trial_steps(self, config: C) -> tuple[int, int]:
        """Return two lengths of training, in steps; `--minutes` times both to measure one step."""
        return 6, 18

    def load(self, model: M, checkpoint: Path, identity: str) -> None:
        """Load a checkpoint into a model; by default one of `weightloom.training.train`.

        Raises:
            CheckpointError: If the checkpoint is missing, incomplete, or of another run.
            TypeError: If the model is no `nn.Module` and the application does not override this.
        """
        from weightloom.training import load_model

        if not hasattr(model, "named_parameters"):
            raise TypeError(
                f"{type(model).__name__} is no `nn.Module`. The default `load` needs one. Write "
                f"`{type(self).__name__}.load`."
            )
        module: Any = model
        load_model(checkpoint, module, identity)

    @abstractmethod
    def judge(
        self, contenders: Sequence[Contender[M]], problem: P, config: C, folder: Path
    ) -> list["Row"]:
        """Judge models on test tasks, in every setting.

        Args:
            contenders: Models to judge, the run's method first; one without a model gets a failed
                row.
            problem: The data or environments.
            config: Resolved options.
            folder: The run's folder.

        Returns:
            One row per contender and setting, and rows of controls and ceilings, marked by their
            role.
        """

    def measure(self, models: Mapping[str, M], problem: P, config: C) -> dict[str, Any]:
        """Return further entries for the record. Default: none."""
        return {}

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """Return sentences to print below the table. Default: none."""
        return []

    def show(self, models: Mapping[str, M], problem: P, config: C, early: bool) -> Shown:
        """Return the tensors and facts for `sections` to draw.

        Args:
            models: Models by method, the run's method first.
            problem: The data or environments.
            config: Resolved options.
            early: Use validation tasks, for a report during training; else test tasks.
        """
        return {}, {}

    def sections(self, run: "Run") -> list["Section"]:
        """Return the sections of the report, drawn from the files of a run."""
        from weightloom.report.section import with_shared

        return with_shared(run)

    def notes(self, config: C) -> str:
        """Return a few sentences on the protocol, for the record. Default: none."""
        return ""

    def adapt(self, model: M, problem: P, config: C, support: str) -> Adapted:
        """Adapt a model to a new task, for `weightloom adapt`.

        Args:
            model: Trained model of the run's method.
            problem: The problem that it was trained on.
            config: Resolved options.
            support: Path or description of the task, as typed.

        Raises:
            ConfigError: If the application adapts no model, or cannot read ``support``.
            DataError: If the data do not fit the model.
        """
        raise ConfigError(
            f"`weightloom adapt` does not go with a run of `weightloom {self.name}`, which adapts "
            "no model."
        )

    def is_customers(self, support: str) -> bool:
        """Return True if a file lists customers, for `adapt_many`. Default: False."""
        return False

    def adapt_many(
        self,
        model: M,
        problem: P,
        config: C,
        customers: str,
        folder: Path,
        shard: tuple[int, int],
        batch: int,
    ) -> "Written":
        """Adapt a model to every customer of a file, for `weightloom adapt RUN customers.jsonl`.

        Args:
            model: Trained model of the run's method.
            problem: The problem that it was trained on.
            config: Resolved options.
            customers: Path of the file.
            folder: Folder to write to; its contents are kept and completed.
            shard: Number of this shard, from 1, and of all shards.
            batch: Customers per pass and file.

        Raises:
            ConfigError: If the application adapts no model to customers.
            DataError: If the file cannot be read.
        """
        raise ConfigError(
            f"`weightloom adapt` reads no file of customers for a run of `weightloom {self.name}`. "
            f"It adapts to one task. Pass {self.adapts_to}."
        )

    def export(self, model: M, problem: P, config: C, task: str, folder: Path) -> dict[str, Any]:
        """Write a plain network for one test task, for `weightloom export --task`.

        Returns:
            A description of the files, as JSON values.


        Raises:
            ConfigError: If the application exports no task, or has none of that name.
        """
        raise ConfigError(
            f"`weightloom export --task` does not go with a run of `weightloom {self.name}`, which "
            "exports no single task."
        )

    def export_whole(self, model: M, problem: P, config: C, folder: Path) -> dict[str, Any]:
        """Write one program from a support set to predictions, for `weightloom export --whole`.

        Returns:
            A description of the files, as JSON values.

        Raises:
            ConfigError: If the application or the method has no such program.
        """
        raise ConfigError(
            f"`weightloom export --whole` does not go with a run of `weightloom {self.name}`, "
            "which exports no whole program."
        )

    def listed(self) -> list[Listed]:
        """Return tables for `weightloom list`, without importing torch. Default: none."""
        return []

    def data(self) -> Sequence[tuple[str, str]]:
        """Return data sets and their locations, for `weightloom doctor`. Default: none."""
        return ()
