"""The application `weightloom gan`, an `App`; its parts are imported when they are used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightloom.apps.app import App, Contender, Listed, Shown, Training
from weightloom.apps.gan.config import GanConfig, GanOptions
from weightloom.apps.gan.presets import ABOUT, DATA, PROBLEMS, methods_of, missing, where

if TYPE_CHECKING:
    from weightloom.adversarial import AdversarialPair
    from weightloom.apps.gan.problems.problem import GanProblem
    from weightloom.report.run import Run
    from weightloom.report.section import Section
    from weightloom.runs.record import Row
    from weightloom.training import History


class Gan(App[GanOptions, "GanProblem", "AdversarialPair"]):
    """Train generator and discriminator, both generated from a condition, and judge samples."""

    name = "gan"
    about = "Draw pictures and sounds by a generator and a discriminator, both generated; report."
    config = GanConfig
    extra = "digits"
    judged_by = ("samples", "validation")
    columns = ("recall",)
    unseen = "conditions, with real samples never seen in training"

    def label(self, config: GanConfig) -> str:
        """Return the name of the data."""
        return Path(config.data.split(":")[-1]).name or self.name

    def open(self, config: GanOptions) -> "GanProblem":
        """Load the real samples.

        Raises:
            DataError: If data are missing or damaged.
            MissingExtraError: If an optional package is not installed.
            ConfigError: If options do not fit the data.
        """
        from weightloom.apps.gan.problems import problem_of

        return problem_of(config)

    def notices(self, problem: "GanProblem") -> Sequence[str]:
        """Return sentences about the data."""
        return problem.notices

    def build(self, method: str, problem: "GanProblem", config: GanOptions) -> "AdversarialPair":
        """Build the pair of a method, newly initialised."""
        return problem.build(method)

    def trial_steps(self, config: GanOptions) -> tuple[int, int]:
        """Return two lengths of training, each of whole rounds with their gradient penalties."""
        rounds = 2 * config.penalty_every
        return 6 * rounds, 18 * rounds

    def train(
        self,
        model: "AdversarialPair",
        problem: "GanProblem",
        config: GanOptions,
        training: "Training[AdversarialPair]",
    ) -> "History":
        """Train a pair in turns, from its last checkpoint if it has one."""
        from weightloom.apps.gan.training import fit

        return fit(model, problem, config, training)

    def judge(
        self,
        contenders: "Sequence[Contender[AdversarialPair]]",
        problem: "GanProblem",
        config: GanOptions,
        folder: Path,
    ) -> "list[Row]":
        """Judge samples of every contender, with controls and real samples beside them."""
        from weightloom.apps.gan.judge import score_all

        return score_all(contenders, problem, config, folder)

    def measure(
        self, models: "Mapping[str, AdversarialPair]", problem: "GanProblem", config: GanOptions
    ) -> dict[str, Any]:
        """Return the protocol, facts, and the number of trained parameters of each method."""
        counts = {
            name: sum(its.numel() for its in model.parameters() if its.requires_grad)
            for name, model in models.items()
        }
        found = {"protocol": problem.protocol, "facts": {"parameters": counts} | problem.facts()}
        return {name: its for name, its in found.items() if its}

    def show(
        self,
        models: "Mapping[str, AdversarialPair]",
        problem: "GanProblem",
        config: GanOptions,
        early: bool,
    ) -> Shown:
        """Return the samples and facts that the report shows."""
        for model in models.values():
            model.eval()
        return problem.show(models)

    def export(
        self,
        model: "AdversarialPair",
        problem: "GanProblem",
        config: GanOptions,
        task: str,
        folder: Path,
    ) -> dict[str, Any]:
        """Write the generator of one condition, for `weightloom export RUN --task CONDITION`.

        Raises:
            ConfigError: If there is no such condition, or the folder is not empty.
        """
        from weightloom.apps.gan.export import export_generator

        return export_generator(model.eval(), problem, task, folder)

    def sections(self, run: "Run") -> "list[Section]":
        """Return the sections of the report."""
        from weightloom.apps.gan.figures import sections

        return sections(run)

    def notes(self, config: GanOptions) -> str:
        """Return the protocol of the table."""
        return (
            "Each number is a mean over conditions, or over independently trained replicas. Rows "
            "`shuffled condition` score samples that were drawn for another condition."
        )

    def listed(self) -> list[Listed]:
        """Return the tables of `weightloom list`: data and methods."""
        data = [(name, PROBLEMS[name].about, where(name)) for name in DATA]
        goes = {its.name: [name for name in DATA if its.name in methods_of(name)] for its in ABOUT}
        methods = [(its.name, its.about, " ".join(goes[its.name])) for its in ABOUT]
        return [
            Listed(
                "weightloom gan --data …",
                ("data", "samples", "where"),
                data,
                frozenset(name for name in DATA if missing(name)),
            ),
            Listed(
                "weightloom gan --method …",
                ("method", "description", "data"),
                methods,
                brief=GanConfig().resolved().methods,
            ),
        ]

    def data(self) -> Sequence[tuple[str, str]]:
        """Return all data, and whether they are here."""
        return [(name, where(name)) for name in DATA]
