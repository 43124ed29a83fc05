"""The application `weightloom transfer`, an `App`; its parts are imported when they are used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightloom.apps.app import Adapted, App, Contender, Listed, Shown, Training
from weightloom.apps.transfer.config import TransferConfig, TransferOptions
from weightloom.apps.transfer.presets import (
    ABOUT,
    DATA,
    PROBLEMS,
    methods_of,
    missing,
    where,
)

if TYPE_CHECKING:
    from torch import nn

    from weightloom.apps.transfer.problems.problem import TransferProblem
    from weightloom.report.run import Run
    from weightloom.report.section import Section
    from weightloom.runs.record import Row
    from weightloom.training import History

COMMON_IN = 3
"""Number of problems that a method of the brief list solves, at least."""


class Transfer(App[TransferOptions, "TransferProblem", "nn.Module"]):
    """Adapt a source model to targets: generate the change of its weights, fine-tune, check."""

    name = "transfer"
    about = "Adapt a frozen model to targets by generated changes of its weights; table and report."
    config = TransferConfig
    judged_by = ("test_targets", "check", "validation")
    folds = "split"
    unseen = "targets never seen in training"
    adapts_to = "a target, e.g. a folder or a text file, as the problem reads it"

    def label(self, config: TransferConfig) -> str:
        """Return the name of the problem."""
        return config.data.split(":")[-1]

    def open(self, config: TransferOptions) -> "TransferProblem":
        """Load the source model and the targets.

        Raises:
            DataError: If data are missing or damaged.
            MissingExtraError: If an optional package is not installed.
            ConfigError: If options do not fit the problem.
        """
        from weightloom.apps.transfer.problems import problem_of

        return problem_of(config)

    def notices(self, problem: "TransferProblem") -> Sequence[str]:
        """Return sentences about the data."""
        return problem.notices

    def build(
        self, method: str, problem: "TransferProblem", config: TransferOptions
    ) -> "nn.Module":
        """Build the model of a method, newly initialised."""
        return problem.build(method)

    def is_trained(self, model: "nn.Module") -> bool:
        """Return False for methods that are not trained on the training targets."""
        return bool(model.trained)

    def train(
        self,
        model: "nn.Module",
        problem: "TransferProblem",
        config: TransferOptions,
        training: "Training[nn.Module]",
    ) -> "History":
        """Train a model on the training targets, from its last checkpoint if it has one."""
        return problem.train(model, config, training)

    def judge(
        self,
        contenders: "Sequence[Contender[nn.Module]]",
        problem: "TransferProblem",
        config: TransferOptions,
        folder: Path,
    ) -> "list[Row]":
        """Judge every contender on the test targets, with controls and the check."""
        from weightloom.apps.transfer.judge import score_all

        return score_all(contenders, problem, config.check)

    def measure(
        self, models: "Mapping[str, nn.Module]", problem: "TransferProblem", config: TransferOptions
    ) -> dict[str, Any]:
        """Return the problem's protocol and facts."""
        found = {"protocol": problem.protocol, "facts": problem.facts()}
        return {name: its for name, its in found.items() if its}

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """Return a sentence on the check in each setting: methods weighed, and the worst family."""
        from weightloom.apps.transfer.words import sentences

        return sentences(record["scores"])

    def show(
        self,
        models: "Mapping[str, nn.Module]",
        problem: "TransferProblem",
        config: TransferOptions,
        early: bool,
    ) -> Shown:
        """Return the tensors and facts of the problem's own figures; none during training."""
        return ({}, {}) if early else problem.show(models)

    def sections(self, run: "Run") -> "list[Section]":
        """Return the sections of the report."""
        from weightloom.apps.transfer.figures import sections

        return sections(run)

    def notes(self, config: TransferOptions) -> str:
        """Return the protocol of the table."""
        return (
            "Intervals are 95 % over targets. Rows `shuffled condition` read the condition of "
            "another target, rows `mean condition` the mean of all training targets."
        )

    def adapt(
        self, model: "nn.Module", problem: "TransferProblem", config: TransferOptions, support: str
    ) -> Adapted:
        """Adapt a model to a target of one's own, if the problem reads any."""
        return problem.adapt(model, support)

    def listed(self) -> list[Listed]:
        """Return the tables of `weightloom list`: problems and methods."""
        problems = [(name, PROBLEMS[name].about, where(name)) for name in DATA]
        solved = {
            its.name: [name for name in DATA if its.name in methods_of(name)] for its in ABOUT
        }
        methods = [(its.name, its.about, " ".join(solved[its.name])) for its in ABOUT]
        return [
            Listed(
                "weightloom transfer --data …",
                ("data", "source and targets", "where"),
                problems,
                frozenset(name for name in DATA if missing(name)),
            ),
            Listed(
                "weightloom transfer --method …",
                ("method", "description", "data"),
                methods,
                brief=[name for name, its in solved.items() if len(its) >= COMMON_IN],
            ),
        ]

    def data(self) -> Sequence[tuple[str, str]]:
        """Return every problem, and whether its data are here."""
        return [(name, where(name)) for name in DATA]
