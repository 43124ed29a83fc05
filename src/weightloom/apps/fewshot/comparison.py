"""Learners of one's own, side by side.

Trained on the same tasks with the same budget, judged on the same new ones.

In:   learners by name, a source to train on, a source to be judged on.
Out:  `Comparison`: rows with 95 % intervals, trained learners, a record and a report.
"""

import copy
import io
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from weightloom.apps import experiment
from weightloom.apps.app import Shown
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.presets import COMMON, PRESETS
from weightloom.apps.fewshot.problems import Problem
from weightloom.errors import ConfigError
from weightloom.files import make_folder, write_atomically
from weightloom.learners.learner import Learner
from weightloom.runs.options import check_rates
from weightloom.runs.record import RECORD, Record, Row, check_target, write_run_record
from weightloom.runs.table import print_table
from weightloom.tasks import TaskSource
from weightloom.texts import kind_of


@dataclass(frozen=True)
class Comparison:
    """Learners that were trained and judged alike. Printed, it is the table."""

    record: Record
    """Scores, options, cost and versions, so that a stranger can run it again."""
    learners: dict[str, Learner]
    """The trained learners by name; those that were given are as they were. One that failed is left
    out."""
    page: str
    """The report, HTML."""

    @property
    def rows(self) -> list[Row]:
        """Rows of the table: every learner, then untrained ones and the control, which say so by their role."""
        rows: list[Row] = self.record["scores"]
        return rows

    def report(self, folder: str | Path) -> Path:
        """Write ``record.json`` and ``report.html`` to a folder, made if need be.

        Return the path of the report.
        """
        place = Path(folder).expanduser()
        if kind_of(place / "report.html") != "nothing" and kind_of(place / RECORD) == "nothing":
            raise ConfigError(
                f"`{place / 'report.html'}` is no report of a comparison: no record lies beside "
                "it. It is not written over. Pass another folder."
            )
        check_target(place / RECORD)
        make_folder(place, "folder")
        write_run_record(place, self.record)
        write_atomically(place / "report.html", self.page)
        return place / "report.html"

    def __str__(self) -> str:
        with redirect_stdout(io.StringIO()) as printed:
            print_table([*map(dict, self.rows)], FewShot.unseen, FewShot.columns)
        return printed.getvalue().rstrip()


@dataclass(frozen=True, kw_only=True)
class CompareOptions(FewShotOptions):
    """Options of a comparison: the names of methods are the caller's own, and none is imported."""

    imports: ClassVar[tuple[str, ...]] = ()

    @property
    def kind(self) -> str:
        """That of a user's own source."""
        return "own"

    def check_methods(self, known: Collection[str], where: str, usual: tuple[str, ...]) -> None:
        """Check the rates alone."""
        check_rates(self.rates, self.methods)


class GivenProblem(Problem):
    """Two sources of tasks, as they were given.

    Args:
        train_source: Tasks of meta-training, and with seeds of their own those to watch a training
            by.
        test_source: Tasks to be judged on.
        config: Options.
    """

    at_once = 50

    def __init__(
        self, train_source: TaskSource, test_source: TaskSource, config: FewShotOptions
    ) -> None:
        self.config, self._train, self._test = config, train_source, test_source
        drawn = test_source.sample(2, torch.Generator().manual_seed(0))
        regression = drawn.support_y.is_floating_point()
        self.kind: Literal["classification", "regression"] = (
            "regression" if regression else "classification"
        )
        ways = 1 if regression else int(drawn.support_y.max()) + 1
        self._setting = ways, drawn.support_x.shape[1] // ways

    def train_source(self, learner: Learner | None = None) -> TaskSource:
        """As given."""
        return self._train

    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """As given."""
        return self._test

    def validation_source(self, shots: int) -> TaskSource:
        """That of training."""
        return self._train

    def settings(self) -> list[tuple[int, int]]:
        """Ways and shots of the tasks."""
        return [self._setting]

    def setting(self, shots: int, ways: int) -> str:
        """Ways and shots in words."""
        return f"{shots}-shot" if self.kind == "regression" else f"{ways}-way {shots}-shot"

    def build(self, outputs: int) -> nn.Module:
        """Learners bring their bases."""
        raise ConfigError(
            "A comparison builds no base network: each learner brings its own. Build it yourself."
        )

    def methods(self) -> dict[str, Callable[[], Learner]]:
        """Learners are given, none is built."""
        return {}


class Compared(FewShot):
    """Few-shot learning with learners and sources that live in Python.

    Args:
        learners: By name, as they are before training.
        sources: To train on, and to be judged on.
    """

    name = "compare"
    about = "Learners of your own, side by side."
    config = CompareOptions

    def __init__(
        self,
        learners: Mapping[str, Learner] | None = None,
        sources: tuple[TaskSource, TaskSource] | None = None,
    ) -> None:
        self._learners, self._sources = dict(learners or {}), sources

    def open(self, config: FewShotOptions) -> Problem:
        """Take the sources."""
        if self._sources is None:
            raise ConfigError(
                "The learners and sources of a comparison live in the program that made it. Its "
                "folder holds the record and the report. Call `weightloom.apps.fewshot.compare` "
                "there again."
            )
        return GivenProblem(*self._sources, config)

    def build(self, method: str, problem: Problem, config: FewShotOptions) -> Learner:
        """Copy a learner as it was given."""
        return copy.deepcopy(self._learners[method])

    def show(
        self, models: Mapping[str, Learner], problem: Problem, config: FewShotOptions, early: bool
    ) -> Shown:
        """Nothing but the kind: of tasks of one's own it is not known how they are drawn."""
        return {}, {
            "kind": problem.kind,
            "better": "lower" if problem.kind == "regression" else "higher",
        }

    def notes(self, config: FewShotOptions) -> str:
        """Say which tasks are which."""
        return (
            "Intervals are 95 % over tasks. Learners and sources were given in Python; tasks to "
            "watch a training by are of the source of training."
        )


def compare(
    learners: Mapping[str, Learner],
    train_source: TaskSource,
    test_source: TaskSource,
    *,
    run: str | Path | None = None,
    quiet: bool = True,
    **options: Any,
) -> Comparison:
    """Train learners on the same tasks with the same budget, and judge all of them on the same new tasks.

    Beside each trained learner stands itself before training, and below the first one a control:
    the same with the support set of another task, which must fall to chance.

    Args:
        learners: By name; copies of them are trained. The first is the one that the report is
            about.
        train_source: Tasks to train on.
        test_source: Tasks to be judged on: the same for every learner.
        run: Folder to keep checkpoints, metrics, record and report in; None keeps nothing on disk.
        quiet: Show no progress.
        **options: Fields of `FewShotConfig`: ``steps`` (1,000) or ``minutes``, ``tasks`` per step
            (8), ``outer_lr`` (0.001), ``rates`` for single learners, ``test_tasks`` (600), ``seed``
            and others of training.

    Raises:
        ConfigError: If there is no learner, or an option is unknown or does not fit.
        NonFiniteError: If training of the first learner met a number that is not finite. The others
            may fail: their rows say so.

    Example:
        >>> from weightloom import SinusoidTasks, mlp
        >>> from weightloom.learners.maml import MAML
        >>> from weightloom.learners.polynomial import RidgePolynomial
        >>> learners = {"maml": MAML(mlp([1, 8, 1])), "line": RidgePolynomial(1, 1, degree=1)}
        >>> compared = compare(learners, SinusoidTasks(5), SinusoidTasks(5), steps=2, test_tasks=20)
        >>> [(row["method"], row.get("role")) for row in compared.rows]
        [('maml', None), ('line', None), ('maml', 'untrained'), ('shuffled', 'control')]
    """
    if not learners:
        raise ConfigError(
            "There are no learners to compare. They are given by name. Pass one or more."
        )
    for name, learner in learners.items():
        if not isinstance(learner, Learner):
            raise ConfigError(
                f"`{name}` is a {type(learner).__name__}. What is compared is a `Learner`, with "
                "`adapt` and `predict`. Inherit from `weightloom.Learner`."
            )
    first, *others = learners
    sizes = {**COMMON, **PRESETS["own"], "data": type(train_source).__name__}
    if "minutes" in options:
        sizes.pop("steps")
    config = CompareOptions.from_dict(
        {**sizes, **options, "method": first, "comparators": list(others)}
    )
    app = Compared(learners, (train_source, test_source))
    with TemporaryDirectory() if run is None else nullcontext(str(Path(run).expanduser())) as place:
        folder = Path(place)
        record = experiment.run(
            app, config, folder, command="weightloom.apps.fewshot.compare", quiet=quiet
        )
        if not isinstance(record, dict):
            raise KeyboardInterrupt
        trained = experiment.load(app, folder).models
        page = (folder / "report.html").read_text(encoding="utf-8")
        return Comparison(record, trained, page)
