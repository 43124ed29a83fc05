"""Comparison of a user's own learners: same training tasks, same budget, same test tasks.

In:   learners by name, a source of training tasks, a source of test tasks.
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
from torch import Tensor, nn

from weightloom.apps import experiment
from weightloom.apps.app import Shown
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.presets import COMMON, PRESETS
from weightloom.apps.fewshot.problems import Problem
from weightloom.apps.fewshot.problems.problem import observed
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
    """Result of `compare`: learners trained and judged alike; prints as the table of scores."""

    record: Record
    """Scores, options, cost and versions: all that is needed to repeat the comparison."""
    learners: dict[str, Learner]
    """Trained copies of the learners, by name, without those whose training failed."""
    page: str
    """The report as HTML."""

    @property
    def rows(self) -> list[Row]:
        """Rows of the table: every learner, then the untrained ones and the control.

        The ``role`` of a row distinguishes them.
        """
        rows: list[Row] = self.record["scores"]
        return rows

    def report(self, folder: str | Path) -> Path:
        """Write ``record.json`` and ``report.html`` to a folder, and return the report's path.

        Args:
            folder: Folder to write to; created if missing. An earlier comparison is overwritten.

        Raises:
            ConfigError: If the folder holds a ``report.html`` that is not of a comparison, or
                cannot be written.
        """
        place = Path(folder).expanduser()
        if kind_of(place / "report.html") != "nothing" and kind_of(place / RECORD) == "nothing":
            raise ConfigError(
                f"`{place / 'report.html'}` is not the report of a comparison: its folder holds no "
                f"`{RECORD}`. It is not overwritten. Pass another folder."
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
    """Options of a comparison: method names are the caller's own, and no code is imported."""

    imports: ClassVar[tuple[str, ...]] = ()

    @property
    def kind(self) -> str:
        """``own``: the key in `FITS` of a user's own source."""
        return "own"

    def check_methods(self, known: Collection[str], where: str, usual: tuple[str, ...]) -> None:
        """Check the learning rates alone; any method name is valid."""
        check_rates(self.rates, self.methods)


class GivenProblem(Problem):
    """Problem around two given sources of tasks.

    Args:
        train_source: Source of meta-training tasks; validation tasks are drawn from it with other
            seeds.
        test_source: Source of test tasks.
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
        if regression and isinstance(drawn.support_x, Tensor):
            self.on_grid = bool(observed(drawn).any())
        ways = 1 if regression else int(drawn.support_y.max()) + 1
        self._setting = ways, drawn.support_x.shape[1] // ways

    def train_source(self, learner: Learner | None = None) -> TaskSource:
        """Return the given source of training tasks."""
        return self._train

    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """Return the given source of test tasks, for any shots and ways."""
        return self._test

    def validation_source(self, shots: int) -> TaskSource:
        """Return the source of training tasks."""
        return self._train

    def settings(self) -> list[tuple[int, int]]:
        """Return the one pair of ways and shots, read off two drawn test tasks."""
        return [self._setting]

    def setting(self, shots: int, ways: int) -> str:
        """Return ways and shots in words, as in "5-way 1-shot"."""
        return f"{shots}-shot" if self.kind == "regression" else f"{ways}-way {shots}-shot"

    def build(self, outputs: int) -> nn.Module:
        """Raise a `ConfigError`: each learner brings its base network."""
        raise ConfigError(
            "A comparison builds no base network: each learner brings its own. Build it yourself."
        )

    def methods(self) -> dict[str, Callable[[], Learner]]:
        """Return no builders: the learners are given."""
        return {}


class Compared(FewShot):
    """Few-shot application for learners and task sources that are Python objects.

    Args:
        learners: Untrained learners by name.
        sources: Sources of training and of test tasks.
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
        """Build the problem from the given sources.

        Raises:
            ConfigError: If the comparison is opened from its folder, without sources.
        """
        if self._sources is None:
            raise ConfigError(
                "The learners and sources of a comparison live in the program that made it. Its "
                "folder holds the record and the report. Call `weightloom.apps.fewshot.compare` "
                "there again."
            )
        return GivenProblem(*self._sources, config)

    def build(self, method: str, problem: Problem, config: FewShotOptions) -> Learner:
        """Return an untrained copy of a given learner."""
        return copy.deepcopy(self._learners[method])

    def show(
        self, models: Mapping[str, Learner], problem: Problem, config: FewShotOptions, early: bool
    ) -> Shown:
        """Return only the kind of the tasks: no drawing is known for a user's own tasks."""
        return {}, {
            "kind": problem.kind,
            "better": "lower" if problem.kind == "regression" else "higher",
        }

    def notes(self, config: FewShotOptions) -> str:
        """Return the evaluation protocol in words."""
        return (
            "Intervals are 95 % over tasks. Learners and sources were given in Python; validation "
            "tasks are drawn from the source of training."
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
    """Train learners on the same tasks and budget, and judge all of them on the same new tasks.

    The table has a row for each learner, a row for each trained one before its training, and a
    control: the first learner with the support set of another task, whose score must fall to
    chance.

    Args:
        learners: Learners by name; copies of them are trained. The report is about the first.
        train_source: Source of training tasks.
        test_source: Source of test tasks; every learner gets the same ones.
        run: Folder to keep checkpoints, metrics, record and report in; None keeps no files.
        quiet: Show no progress.
        **options: Fields of `FewShotConfig`: ``steps`` (1,000) or ``minutes``, ``tasks`` per step
            (8), ``outer_lr`` (0.001), ``rates`` for single learners, ``test_tasks`` (600), ``seed``
            and others of training.

    Raises:
        ConfigError: If no learner is given, or an option is unknown or does not fit.
        NonFiniteError: If a number is NaN or infinite while the first learner is trained. If
            another learner fails, its row says so and the comparison goes on.

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
            "`learners` holds no learners. A comparison takes them by name. Pass one or more."
        )
    for name, learner in learners.items():
        if not isinstance(learner, Learner):
            raise ConfigError(
                f"`{name}` is a {type(learner).__name__}. Only a `Learner`, with `adapt` and "
                "`predict`, can be compared. Inherit from `weightloom.Learner`."
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
