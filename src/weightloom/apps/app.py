"""The interface of an application.

Four methods, and its runs have a table, a report, resume, seeds, sweeps and export.

In:   a config.
Out:  a problem, models of it, rows that judge them, sections that show them.
Knows nothing of any application, nor of how a run goes on. Torch is not imported: a list or a help
text starts at once.
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
    from weightloom.runs.record import Better, Role, Row
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
    """A model that is judged, and the part it plays."""

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
            setting: The tasks, as in "5-way 1-shot".
            name: The score, as in "accuracy".
            per_task: The score of each task, (tasks,); None for a model whose training failed.
            better: Which scores are better.
        """
        from weightloom.runs.record import failed_row, row_of

        if per_task is None:
            return failed_row(self.name, setting, name, better)
        return row_of(self.name, setting, name, per_task, better, self.role)


@dataclass(frozen=True)
class Training(Generic[M]):
    """The training of one method: where it writes, and with whom it runs."""

    method: str
    """The method's name."""
    folder: Path
    """Its metrics and checkpoints; a checkpoint that is there already is gone on from."""
    identity: str
    """Digest of the run and name of the method, kept in checkpoints."""
    processes: "Processes"
    """Devices and processes."""
    quiet: bool
    """Show no progress."""
    look: Callable[[M], None]
    """Called once, during training, with the model as it is: writes an early report."""

    def how(self) -> dict[str, Any]:
        """Return where and how to train as `weightloom.training.train` takes it, by name."""
        return {
            "run": self.folder,
            "resume": (self.folder / "checkpoints" / "last.safetensors").is_file(),
            "fabric": self.processes,
            "quiet": self.quiet,
            "identity": self.identity,
        }


class Listed(NamedTuple):
    """A table of `weightloom list`."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    """A name, and what is known of it."""
    absent: frozenset[str] = frozenset()
    """Names of data that are not on this machine."""


@runtime_checkable
class Adapted(Protocol):
    """A model adapted to one new task: what `weightloom adapt` gives."""

    about: str
    """The task in a sentence."""

    def predict_rows(self, inputs: Sequence[str]) -> list[dict[str, Any]]:
        """Answer inputs that a person typed, such as paths: a row of the printed table for each."""
        ...

    def save(self, folder: Path) -> dict[str, Any]:
        """Write a plain network, its preprocessing and a description; return the description."""
        ...


class App(ABC, Generic[C, P, M]):
    """An application: a config becomes a problem, a method a model, models become rows and pictures.

    `weightloom.apps.experiment.run` does all else. Options that a method does not use may be
    checked in the config.
    """

    name: ClassVar[str]
    """Name on the command line and in ``run.json``."""
    about: ClassVar[str]
    """One line of `weightloom --help`."""
    config: ClassVar[type[RunOptions]]
    """Options, a frozen dataclass; every field is a flag."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules of the optional extra called as the application, or as ``extra`` says."""
    extra: ClassVar[str] = ""
    """The optional extra; empty is the application's name."""
    judged_by: ClassVar[tuple[str, ...]] = ()
    """Options that `weightloom eval` may change."""
    folds: ClassVar[str] = ""
    """The option that deals the data out, for `--folds`; empty for none."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Further scores that have a column in the printed table; the record holds them all."""
    unseen: ClassVar[str] = "tasks never seen in training"
    """Heading of the table, behind a number."""
    adapts_to: ClassVar[str] = "a support set"
    """In the help of `weightloom adapt`: what a new task is given as."""

    def label(self, config: Any) -> str:
        """Return the stem of a run's folder, as in ``"digits"``."""
        return self.name

    def processes(self, config: C) -> "Processes":
        """Set threads and start the processes that a config asks for."""
        import torch

        from weightloom.training import OneProcess

        torch.set_num_threads(config.threads)
        return OneProcess()

    @abstractmethod
    def open(self, config: C) -> P:
        """Load the data or environments; all that cannot work is raised here, before a file is written."""

    def notices(self, problem: P) -> Sequence[str]:
        """Return sentences that a person should read before the run goes on, such as files that were skipped."""
        return ()

    @abstractmethod
    def build(self, method: str, problem: P, config: C) -> M:
        """Build the model of a method, newly initialised from the seed that is set."""

    def is_trained(self, model: M) -> bool:
        """Say whether a model has anything to train."""
        return True

    @abstractmethod
    def train(self, model: M, problem: P, config: C, training: Training[M]) -> "History":
        """Train a model, from its last checkpoint where there is one.

        Raises:
            NonFiniteError: If a number is NaN or infinite. A comparator has then failed, and the
                run goes on.
        """

    def trial_steps(self, config: C) -> tuple[int, int]:
        """Return two lengths of training whose times tell how long a step takes, for `--minutes`."""
        return 6, 18

    def load(self, model: M, checkpoint: Path, identity: str) -> None:
        """Put a checkpoint into a model; by default one that `weightloom.training.train` wrote.

        Raises:
            CheckpointError: If it is missing, not whole, or of another run.
        """
        from weightloom.training import load_model

        if not hasattr(model, "named_parameters"):
            raise TypeError(
                f"{type(model).__name__} is no `nn.Module`. `{type(self).__name__}.load` has to be "
                "written."
            )
        module: Any = model
        load_model(checkpoint, module, identity)

    @abstractmethod
    def judge(
        self, contenders: Sequence[Contender[M]], problem: P, config: C, folder: Path
    ) -> list["Row"]:
        """Judge models on tasks that training never saw, in every setting.

        The run's method comes first.

        Rows of controls and ceilings say so by their role. A contender without a model has a failed
        row.
        """

    def measure(self, models: Mapping[str, M], problem: P, config: C) -> dict[str, Any]:
        """Return further facts for the record."""
        return {}

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """Return sentences to print below the table."""
        return []

    def show(self, models: Mapping[str, M], problem: P, config: C, early: bool) -> Shown:
        """Return tensors and facts that `sections` draws.

        Args:
            models: The run's method first.
            problem: Where tasks come from.
            config: Resolved options.
            early: During training: of validation tasks, so that those of the table stay untouched.
        """
        return {}, {}

    def sections(self, run: "Run") -> list["Section"]:
        """Draw the sections of the report from the files of a run."""
        from weightloom.report.section import with_shared

        return with_shared(run)

    def notes(self, config: C) -> str:
        """Return the protocol in a few sentences, for the record."""
        return ""

    def adapt(self, model: M, problem: P, config: C, support: str) -> Adapted:
        """Adapt a model to a task of the user's own.

        Args:
            model: The run's method, trained.
            problem: The problem that it was trained on.
            config: Resolved options.
            support: A path or a description, as typed.

        Raises:
            ConfigError: If the application cannot, or ``support`` is not what it takes.
            DataError: If the data do not fit.
        """
        raise ConfigError(
            f"`weightloom adapt` does not go with a run of `weightloom {self.name}`. It adapts no "
            "model."
        )

    def export(self, model: M, problem: P, config: C, task: str, folder: Path) -> dict[str, Any]:
        """Write a plain network for one task that the run was judged on.

        Raises:
            ConfigError: If the application cannot, or there is no such task.
        """
        raise ConfigError(
            f"`weightloom export --task` does not go with a run of `weightloom {self.name}`."
        )

    def export_whole(self, model: M, problem: P, config: C, folder: Path) -> dict[str, Any]:
        """Write everything between a support set and an answer as one program.

        Raises:
            ConfigError: If the application or the method cannot.
        """
        raise ConfigError(
            f"`weightloom export --whole` does not go with a run of `weightloom {self.name}`."
        )

    def listed(self) -> list[Listed]:
        """Return tables for `weightloom list`, without importing torch."""
        return []

    def data(self) -> Sequence[tuple[str, str]]:
        """Return data sets and where they are, for `weightloom doctor`."""
        return ()
