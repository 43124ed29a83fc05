"""The few-shot application: meta-train on some tasks, adapt to new ones from a few examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from weightloom.apps.app import App, Contender, Listed, Shown, Training
from weightloom.apps.fewshot.config import FewShotConfig, FewShotOptions
from weightloom.apps.fewshot.methods import FITS, METHODS
from weightloom.apps.fewshot.presets import DATA, PRESETS, is_here, where
from weightloom.errors import ConfigError

if TYPE_CHECKING:
    from weightloom.apps.fewshot.adapted import AdaptedTask
    from weightloom.apps.fewshot.problems import Problem
    from weightloom.learners.learner import Learner
    from weightloom.report.run import Run
    from weightloom.report.section import Section
    from weightloom.runs.record import Row
    from weightloom.serving import Written
    from weightloom.training import History, Processes

PROTOCOL = {
    "group": "Inductive: no method sees query points together.",
    "batch": "Inductive: images are normalised by running statistics of meta-training.",
    "transductive": "Transductive: images are normalised by statistics of all query images of a "
    "task together.",
}
"""Evaluation protocol by normalisation, one sentence each."""
COMMON_IN = 8
"""Number of data sets that a method of the brief list solves, at least."""


class FewShot(App[FewShotOptions, "Problem", "Learner"]):
    """Few-shot application: meta-train on some tasks, adapt to unseen ones in one pass."""

    name = "fewshot"
    about = (
        "Learn to learn from a few examples; table, checkpoints and report.html in a run folder."
    )
    config: ClassVar[type[FewShotConfig]] = FewShotConfig
    judged_by = ("ways", "shots", "uneven_shots", "queries", "test_tasks")
    folds = "split"
    columns = ("f1", "unobserved")
    adapts_to = (
        "a folder with a folder of pictures or sounds for each class; a .csv, .jsonl or .npz file"
    )

    def label(self, config: FewShotConfig) -> str:
        """Return the name of the data set, or the stem of its path."""
        return Path(config.data).stem.replace(":", ".")

    def processes(self, config: FewShotOptions) -> "Processes":
        """Start the processes that share the tasks of a step."""
        from weightloom.apps.fewshot.training import launch

        return launch(config)

    def open(self, config: FewShotOptions) -> "Problem":
        """Load the data, and check that a method uses the options of the inner loop.

        Raises:
            DataError: If the data are missing or damaged.
            MissingExtraError: If an optional package for the data is not installed.
            ConfigError: If options do not fit the data, or ``inner_steps`` or ``inner_lr`` is given
                and no method takes inner steps.
        """
        from weightloom.apps.fewshot.problems import problem_of

        problem = problem_of(config)
        asked = config.inner_steps or config.inner_lr
        if asked and not any(problem.learner(method).inner_loop for method in config.methods):
            raise ConfigError(
                "`--inner-steps` or `--inner-lr` was typed, and no method of the run takes steps "
                "on a support set. Type `--mode bilevel`, choose such a method, as in `--method "
                "maml`, or leave them out."
            )
        return problem

    def notices(self, problem: "Problem") -> Sequence[str]:
        """Return sentences about the data, such as the files that were skipped."""
        return problem.notices

    def preview(self, problem: "Problem", config: FewShotOptions) -> "list[Row]":
        """Return scores of closed-form methods on features of a backbone, before training."""
        from weightloom.apps.fewshot.unseen import score_before

        return score_before(problem, config)

    def build(self, method: str, problem: "Problem", config: FewShotOptions) -> "Learner":
        """Build the learner of a method, newly initialised."""
        return problem.learner(method)

    def is_trained(self, model: "Learner") -> bool:
        """Return False for methods that work on each task alone, without meta-training."""
        return model.trained

    def train(
        self,
        model: "Learner",
        problem: "Problem",
        config: FewShotOptions,
        training: "Training[Learner]",
    ) -> "History":
        """Meta-train a learner, from its last checkpoint if it has one."""
        from weightloom.apps.fewshot.training import fit

        return fit(model, problem, config, training)

    def load(self, model: "Learner", checkpoint: Path, identity: str) -> None:
        """Load the parameters of a checkpoint into a learner."""
        from weightloom.training import load_model

        load_model(checkpoint, model, identity)

    def judge(
        self,
        contenders: "Sequence[Contender[Learner]]",
        problem: "Problem",
        config: FewShotOptions,
        folder: Path,
    ) -> "list[Row]":
        """Score every contender on unseen tasks, in every setting of ways and shots."""
        from weightloom.apps.fewshot.judge import score_all

        return score_all(contenders, problem, config)

    def measure(
        self, models: "Mapping[str, Learner]", problem: "Problem", config: FewShotOptions
    ) -> dict[str, Any]:
        """Time adaptation to ``problem.many`` tasks at once, if that is not 0.

        With a pretrained backbone, score the methods on classes that it does not know.
        """
        from weightloom.apps.fewshot.many import time_many
        from weightloom.apps.fewshot.unseen import score_unknown

        found = score_unknown(models, problem, config)
        if problem.many:
            found["many"] = time_many(models[config.method], problem, problem.many)
        return found

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """Return the entries of `measure` as printed lines."""
        from weightloom.apps.fewshot import many, unseen

        told = {"backbone": unseen.in_words, "many": many.in_words}
        return [words(record[name]) for name, words in told.items() if name in record]

    def show(
        self,
        models: "Mapping[str, Learner]",
        problem: "Problem",
        config: FewShotOptions,
        early: bool,
    ) -> Shown:
        """Return the tensors and facts that the report draws."""
        from weightloom.apps.fewshot.show import showcase

        return showcase(dict(models), problem, early)

    def sections(self, run: "Run") -> "list[Section]":
        """Return the sections of the report."""
        from weightloom.apps.fewshot.figures import sections

        return sections(run)

    def notes(self, config: FewShotOptions) -> str:
        """Return the evaluation protocol in words."""
        said = f"Intervals are 95 % over tasks. {PROTOCOL[config.normalisation]}"
        if config.names == "support":
            said += " Every method reads the name of each class as one more support example."
        if config.kind != "own":
            return said
        from weightloom.apps.fewshot.problems.own import protocol_of

        return f"{said} {protocol_of(config.data)}"

    def adapt(
        self, model: "Learner", problem: "Problem", config: FewShotOptions, support: str
    ) -> "AdaptedTask":
        """Adapt to a support set given as a path: a folder of pictures, a .csv, .jsonl or .npz."""
        from weightloom.apps.fewshot.adapted import adapt_to

        return adapt_to(model, problem, support)

    def is_customers(self, support: str) -> bool:
        """Return True for a .jsonl file whose first line is a customer."""
        from weightloom.apps.fewshot.customers import is_customers

        return is_customers(Path(support))

    def adapt_many(
        self,
        model: "Learner",
        problem: "Problem",
        config: FewShotOptions,
        customers: str,
        folder: Path,
        shard: tuple[int, int],
        batch: int,
    ) -> "Written":
        """Adapt to the customers of a .jsonl file, one a line."""
        from weightloom.apps.fewshot.customers import Customers, writer_of
        from weightloom.serving import write_customers

        lines = Customers(Path(customers))
        write = writer_of(model, problem, folder, lines.path.parent)
        return write_customers(lines, write, batch=batch, shard=shard)

    def export(
        self, model: "Learner", problem: "Problem", config: FewShotOptions, task: str, folder: Path
    ) -> dict[str, Any]:
        """Write the network adapted to one meta-test task."""
        from weightloom.apps.fewshot.export import export_task

        return export_task(model, problem, config, task, folder)

    def export_whole(
        self, model: "Learner", problem: "Problem", config: FewShotOptions, folder: Path
    ) -> dict[str, Any]:
        """Write encoder, hypernetwork and base as one program."""
        from weightloom.apps.fewshot.judge import draw_test_tasks
        from weightloom.apps.fewshot.whole_export import export_whole

        ways, shots = problem.settings()[0]
        about = problem.facts()
        if about:
            about["reads"] = "activations of the backbone, which is not part of the program"
        example = draw_test_tasks(problem, shots, 4, ways=ways)
        facts = export_whole(model, example, folder, about=about)
        setting = problem.setting(shots, ways)
        return {**facts, "task": f"any number of tasks, shots and queries, shown {setting}"}

    def listed(self) -> list[Listed]:
        """Return the tables of `weightloom list`: data sets and methods."""
        data = []
        for name in DATA:
            preset = PRESETS[name]
            ways = "" if preset["ways"] == (1,) else f"ways {' '.join(map(str, preset['ways']))}, "
            shots = " ".join(map(str, preset["shots"]))
            data.append((name, f"{ways}shots {shots}, {preset['steps']} steps", where(name)))
        methods = [
            (
                method.name,
                method.about,
                " ".join(data for data, fits in FITS.items() if method.name in fits),
            )
            for method in METHODS
        ]
        return [
            Listed(
                "weightloom fewshot --data …",
                ("data", "defaults", "where"),
                data,
                frozenset(name for name in DATA if not is_here(name)),
            ),
            Listed(
                "weightloom fewshot --method …",
                ("method", "description", "data"),
                methods,
                brief=[name for name, _, fits in methods if len(fits.split()) >= COMMON_IN],
            ),
        ]

    def data(self) -> Sequence[tuple[str, str]]:
        """Return every data set with its location."""
        return [(name, where(name)) for name in DATA]
