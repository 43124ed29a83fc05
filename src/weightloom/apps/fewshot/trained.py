"""Few-shot learning from Python: train on your own data, adapt to a new task, predict, save.

In:   the name or path of a data set, and options; or the folder of a run.
Out:  `Trained`, which adapts to any number of new tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightloom.apps.experiment import load as load_run
from weightloom.apps.experiment import say, train_model
from weightloom.apps.fewshot.adapted import AdaptedTask, Names, adapt_to
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig, FewShotOptions
from weightloom.apps.fewshot.customers import Customers, writer_of
from weightloom.apps.fewshot.problems import Problem
from weightloom.learners.learner import Learner
from weightloom.runs.loggers import MetricLogger
from weightloom.serving import CustomerWriter, Server, Written, write_customers
from weightloom.serving.stream import BATCH


@dataclass(frozen=True)
class Trained:
    """A trained few-shot learner, with its problem and options."""

    learner: Learner
    """The trained method."""
    problem: Problem
    """The data it was trained on, which define the preprocessing."""
    config: FewShotOptions
    """Options of the training, all filled in."""

    def adapt(self, support: Any, names: Names = None) -> AdaptedTask:
        """Adapt to a new task.

        Args:
            support: A mapping from class names to examples (paths, arrays, tensors, texts); inputs
                and targets ``(x, y)``; or a path: a folder with a folder for each class, a .csv,
                .jsonl or .npz file. The numbers of classes and examples may differ from training
                if the method allows it.
            names: For texts, read the name of each class as one more example; or a mapping from
                classes to descriptions, which are read in place of their names. None: as in
                training, if all classes have names with a word.

        Returns:
            The network of the task, which predicts and saves.

        Raises:
            DataError: If an example cannot be read or has the wrong form.
            ConfigError: If the method cannot be adapted to this number of classes, or ``names`` are
                given and the examples are no texts.
        """
        return adapt_to(self.learner, self.problem, support, names)

    def adapt_many(
        self,
        customers: str | Path,
        folder: str | Path,
        *,
        batch: int = BATCH,
        shard: tuple[int, int] = (1, 1),
        quiet: bool = False,
    ) -> Written:
        """Adapt to every customer of a file; go on where a killed call stopped.

        Args:
            customers: A .jsonl file, a customer a line: ``{"name": "ann", "examples": [row, …]}``,
                with rows as in the .jsonl file of a support set.
            folder: Folder for the parameters, which `serve` loads.
            batch: As for `weightloom.serving.write_customers`.
            shard: As for `weightloom.serving.write_customers`.
            quiet: Show no progress.

        Raises:
            DataError: If a customer cannot be read.
            ConfigError: If ``batch`` or ``shard`` is out of range.
            CheckpointError: If a file cannot be written.
        """
        lines = Customers(Path(customers))
        write = self.writer(folder, lines.path.parent)
        return write_customers(lines, write, batch=batch, shard=shard, quiet=quiet)

    def writer(self, folder: str | Path, beside: str | Path = ".") -> CustomerWriter:
        """Return a writer of batches of customers, each a line of a .jsonl file, for an engine.

        Args:
            folder: Folder for the parameters.
            beside: Folder that paths in examples are relative to.
        """
        folder, beside = (Path(its).expanduser() for its in (folder, beside))
        return writer_of(self.learner, self.problem, folder, beside)

    def serve(self, folder: str | Path | None = None) -> Server:
        """Return a server of customers: those of a folder that `adapt_many` wrote, or none yet.

        It takes preprocessed inputs: ``problem.encode(problem.inputs().encode(items))`` of
        ``problem = trained.problem``.

        Args:
            folder: The folder.

        Raises:
            CheckpointError: If the folder is incomplete, or was written by another method.
        """
        if folder is None:
            return Server(self.learner.base, self.learner)
        return Server.load(Path(folder).expanduser(), self.learner.base, self.learner)


def train(
    data: str | Path,
    *,
    run: str | Path | None = None,
    quiet: bool = False,
    loggers: Sequence[str | MetricLogger] = (),
    **options: Any,
) -> Trained:
    """Train one few-shot method.

    Args:
        data: A name from `weightloom list`, a folder of pictures, a table, or ``module:Class``.
        run: Folder to keep the run in; None keeps no files.
        quiet: Show no progress.
        loggers: Loggers of metrics, by name (`weightloom.runs.loggers.LOGGERS`) or as objects.
        **options: Fields of `FewShotConfig`, such as ``method``, ``minutes`` or ``steps``.

    Returns:
        The trained method, which adapts to new tasks.

    Raises:
        ConfigError: If an option is unknown or does not fit.
        DataError: If the data are missing or damaged.
        NonFiniteError: If a loss or gradient is NaN or infinite.
    """
    app, config = FewShot(), FewShotConfig.from_dict({"data": str(data), **options})
    folder = None if run is None else Path(run).expanduser()
    loaded = train_model(app, config, folder, quiet, loggers=loggers)
    if not quiet:
        for notice in app.notices(loaded.problem):
            say(notice)
    return Trained(loaded.model, loaded.problem, loaded.config)


def load(run: str | Path, *, trust: bool = False) -> Trained:
    """Load the trained method of a run of `weightloom fewshot`.

    Args:
        run: Folder of the run.
        trust: Import the code that the run's options name as ``module:Class``.

    Raises:
        ConfigError: If the options name code and ``trust`` is False.
        DataError: If the folder holds no run, or its data are missing.
        CheckpointError: If the checkpoint is missing or damaged.
    """
    loaded = load_run(FewShot(), Path(run).expanduser(), only=True, trust=trust)
    return Trained(loaded.model, loaded.problem, loaded.config)
