"""A run of any application: open the problem, train and judge every method, record, report.

In:   an `App`, its config, a folder.
Out:  the folder: ``run.json``, ``config.json``, metrics, checkpoints, ``record.json``,
      ``report.html``.
Knows nothing of any application.
"""

import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic

import torch

from weightloom.apps.app import App, C, Contender, M, P, Training
from weightloom.apps.registry import check_trusted
from weightloom.base import autotuned
from weightloom.errors import ConfigError, NonFiniteError
from weightloom.files import make_folder, save_tensors, write_atomically
from weightloom.platforms import peak_memory_bytes
from weightloom.report import build_report
from weightloom.runs.folder import FORMAT, held_folder, identity_of, read_config
from weightloom.runs.loggers import MetricLogger, check_loggers, open_loggers
from weightloom.runs.metrics import read_rows
from weightloom.runs.options import RunOptions, with_option
from weightloom.runs.record import Better, Record, Row, environment, write_run_record
from weightloom.runs.schema import damaged, read_json, write_json
from weightloom.runs.table import print_table
from weightloom.texts import TextError, read_text
from weightloom.training import OneProcess, Processes

FAILURE = "failure.txt"
"""File in a comparator's folder: the error that ended its training."""
STEPS = "steps.json"
"""File in a method's folder: the number of steps that fit into `--minutes`."""
CHOSEN = "chosen.json"
"""File in a run's folder: the value of an option that a sweep chose for each method."""
FRESH = "fresh"
"""Name of the control of `--start-from`: the same method, trained from a new initialisation."""


@dataclass(frozen=True)
class Loaded(Generic[C, P, M]):
    """A run, read from its folder: config, problem and trained models."""

    config: C
    problem: P
    models: dict[str, M]
    """Trained models by method, `--method` first; without comparators that failed."""

    @property
    def model(self) -> M:
        """Model of the run's `--method`."""
        return next(iter(self.models.values()))


@dataclass(frozen=True)
class Steps:
    """Contents of ``steps.json``."""

    steps: int


@dataclass(frozen=True)
class Choices:
    """Values of one option, by method, that a sweep chose: contents of ``chosen.json``."""

    option: str = ""
    chosen: dict[str, str] | None = None

    def of(self, config: C, method: str) -> C:
        """Return the options of a method: ``config``, with the chosen value where one exists."""
        value = (self.chosen or {}).get(method)
        if value is None:
            return config
        if self.option == config.rate:
            others = tuple(text for text in config.rates if text.partition("=")[0] != method)
            return replace(config, rates=(*others, f"{method}={value}"))
        return with_option(config, self.option, value)


def run(
    app: App[C, P, M],
    config: RunOptions,
    folder: str | Path,
    *,
    command: str = "",
    resume: bool = False,
    quiet: bool = False,
    choices: Choices | None = None,
    bare: bool = False,
    processes: Processes | None = None,
    loggers: Sequence[str | MetricLogger] = (),
) -> Record | signal.Signals | None:
    """Train every method of a config, judge all on test tasks, and write the run's folder.

    Args:
        app: The application.
        config: Options, resolved or not.
        folder: The run's folder, created after all checks have passed.
        command: The command line, for the record.
        resume: Continue an unfinished run of the same config in ``folder``.
        quiet: Show no progress.
        choices: Options per method, from a sweep; a resumed run keeps those it began with.
        bare: Skip rows of untrained models, further measures, figures and the report.
        processes: Devices and processes, already started. Default: those of the config.
        loggers: Loggers of metrics, by name (`weightloom.runs.loggers.LOGGERS`) or as objects.

    Returns:
        The record; the signal if Ctrl-C or SIGTERM stopped the run, after a checkpoint was
        written; None in processes other than the first.

    Raises:
        ConfigError: If the folder already holds a run, or an option does not fit the data.
        DataError: If data are missing or damaged.
        NonFiniteError: If training ``config.method`` met a NaN or an infinity. A comparator that
            meets one gets a failed row, and the run continues.
        CheckpointError: If a checkpoint cannot be written or read.
    """
    start_s = time.monotonic()
    check_loggers(loggers)
    resolved = _resolved(app, config)
    processes = processes or app.processes(resolved)
    folder = Path(processes.broadcast(str(folder)))
    problem = _opened(app, resolved)
    first = processes.global_rank == 0
    with held_folder(folder, app.name, resolved, resume) if first else nullcontext():
        if first:
            _begin(app, problem, resolved, folder, choices, quiet or bare)
        processes.barrier()
        chosen = _choices_of(folder, choices)
        arms = _Arms(app, resolved, problem, folder, processes, quiet, chosen, bare, loggers)
        kept = folder / "engines.json" if first else None
        with autotuned(kept) if resolved.autotune else nullcontext():
            stopped_by = arms.train()
            if stopped_by or not first:
                return stopped_by
            return _finish(arms, command, start_s)


def _opened(app: App[C, P, M], config: C) -> P:
    """Open the problem, and raise every error of the options before a file is written."""
    if config.start_from:
        read_config(Path(config.start_from), app.config, app.name)
    problem = app.open(config)
    for method in config.methods:
        if method == config.method or ":" in method:  # a user's own code may fail to build
            _built(app, method, problem, config)
    return problem


def _begin(
    app: App[C, P, M], problem: P, config: C, folder: Path, choices: Choices | None, quiet: bool
) -> None:
    """Write the choices of a sweep; print the application's notices, and a table if it has one."""
    if choices:
        write_json(folder / CHOSEN, asdict(choices), FORMAT)
    if quiet:
        return
    for notice in app.notices(problem):
        say(notice)
    if rows := app.preview(problem, config):
        say("Before training:")
        with redirect_stdout(sys.stderr):  # stdout is for the table of the trained methods
            print_table([*map(dict, rows)], app.unseen, app.columns)


def _choices_of(folder: Path, choices: Choices | None) -> Choices:
    """Return the choices that a folder's run began with; for a run without, the given ones."""
    if (folder / CHOSEN).is_file():
        about = "A run writes it when a sweep chose options for it."
        return read_json(folder / CHOSEN, Choices, FORMAT, about)
    return choices or Choices()


def load(
    app: App[C, P, M],
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    only: bool = False,
    trust: bool = False,
) -> Loaded[C, P, M]:
    """Load a run from its folder: its problem and its trained models.

    Args:
        app: The application of the run.
        folder: The run's folder.
        changes: New values of options in ``app.judged_by``, and of ``comparators`` and ``rates``
            to load fewer methods.
        only: Load the run's `--method` alone.
        trust: Import every ``module:name`` in the run's options.

    Raises:
        DataError: If the folder holds no run, or the data are missing.
        ConfigError: If the run is of another application or of several seeds, names code without
            ``trust``, or cannot change an option after training.
        CheckpointError: If a checkpoint is missing, incomplete, or of another run.
    """
    saved = read_config(folder, app.config, app.name)
    identity = identity_of(app.name, saved)
    changes = changes or {}
    _check_changes(app, changes)
    options = {**saved.to_dict(), **changes}
    if only:
        options |= {"comparators": [], "rates": []}
    config = _resolved(app, app.config.from_dict(options))
    if not trust:
        check_trusted(config, folder)
    torch.set_num_threads(config.threads)
    problem = app.open(config)
    models: dict[str, M] = {}
    for method in config.methods:
        place = method_folder(folder, method, config)
        if (place / FAILURE).is_file():
            continue
        models[method] = _built(app, method, problem, config)
        if app.is_trained(models[method]):
            app.load(
                models[method], place / "checkpoints" / "last.safetensors", _tie(identity, method)
            )
    return Loaded(config, problem, models)


def _check_changes(app: App[C, P, M], changes: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` for an option that training has fixed."""
    known = (*app.judged_by, "comparators", "rates")
    for name in changes:
        if name not in known:
            raise ConfigError(
                f"Option {name!r} cannot be changed after training: the checkpoints belong to the "
                f"value that the run began with. Change {' or '.join(f'`{its}`' for its in known)}."
            )


def judge_again(
    app: App[C, P, M], folder: Path, changes: Mapping[str, Any], trust: bool = False
) -> tuple[C, list[Row]]:
    """Judge the trained methods of a run again, with other options.

    Args:
        app: The application of the run.
        folder: The run's folder.
        changes: As for `load`.
        trust: Import every ``module:name`` in the run's options.

    Returns:
        The changed config, and rows of the table.

    Raises:
        ConfigError: If an option cannot be changed after training, or the run names code without
            ``trust``.
    """
    loaded = load(app, folder, changes, trust=trust)
    contenders = [Contender(name, loaded.models.get(name)) for name in loaded.config.methods]
    return loaded.config, app.judge(contenders, loaded.problem, loaded.config, folder)


def report(app: App[C, P, M], folder: Path) -> Path:
    """Write ``report.html`` of a finished or unfinished run from its files; return its path."""
    return build_report(folder, app.sections)


def method_folder(folder: Path, method: str, config: RunOptions) -> Path:
    """Return the folder of a method's metrics and checkpoints.

    The run's folder for `--method`, a folder below it for a comparator.
    """
    return folder if method == config.method else folder / method.replace(":", ".")


def failure_of(place: Path) -> str:
    """Return the error message of a comparator whose training failed.

    Args:
        place: The comparator's folder.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        return read_text(place / FAILURE)
    except TextError as error:
        raise damaged(place / FAILURE, str(error)) from error


def say(text: str) -> None:
    """Print a line to stderr at once."""
    print(text, file=sys.stderr, flush=True)


def train_model(
    app: App[C, P, M],
    config: RunOptions,
    folder: Path | None = None,
    quiet: bool = True,
    resume: bool = False,
    loggers: Sequence[str | MetricLogger] = (),
) -> Loaded[C, P, M]:
    """Train the `--method` of a config alone, without judging it.

    Args:
        app: The application.
        config: Options, resolved or not.
        folder: The run's folder. Default: a temporary one, deleted afterwards.
        quiet: Show no progress.
        resume: Continue an unfinished training of the same config in ``folder``.
        loggers: Loggers of metrics, by name or as objects.

    Raises:
        ConfigError: If the folder already holds a run, or an option does not fit the data.
        NonFiniteError: If training met a NaN or an infinity.
        KeyboardInterrupt: If Ctrl-C or SIGTERM stopped the training.
    """
    check_loggers(loggers, kept=folder is not None)
    resolved = _resolved(app, replace(config, comparators=()))
    problem = app.open(resolved)
    held = held_folder(folder, app.name, resolved, resume) if folder else nullcontext()
    with TemporaryDirectory() if folder is None else nullcontext(str(folder)) as place, held:
        arms = _Arms(
            app,
            resolved,
            problem,
            Path(place),
            app.processes(resolved),
            quiet,
            Choices(),
            bare=True,
            loggers=loggers,
        )
        if arms.train():
            raise KeyboardInterrupt
    return Loaded(resolved, problem, arms.models)


class _Arms(Generic[C, P, M]):
    """The methods of one run, trained one after the other: models, times, steps and failures."""

    def __init__(
        self,
        app: App[C, P, M],
        config: C,
        problem: P,
        folder: Path,
        processes: Processes,
        quiet: bool,
        choices: Choices,
        bare: bool,
        loggers: Sequence[str | MetricLogger],
    ) -> None:
        self.app, self.config, self.problem, self.folder = app, config, problem, folder
        self.processes, self.quiet, self.choices, self.bare = processes, quiet, choices, bare
        self.loggers = loggers if processes.global_rank == 0 else ()
        self.identity = identity_of(app.name, config)
        self.models: dict[str, M] = {}
        self.fresh: M | None = None
        self.spent_s: dict[str, float] = {}
        self.steps: dict[str, int | None] = {}
        self.failures: dict[str, str] = {}

    def train(self) -> signal.Signals | None:
        """Train all methods; return the signal that stopped the training, or None."""
        for method in self.config.methods:
            model = _built(self.app, method, self.problem, self.config)
            if self.app.is_trained(model):
                trained = self._train(
                    method, method_folder(self.folder, method, self.config), method, model
                )
                if isinstance(trained, signal.Signals):
                    return trained
                if trained is None:
                    continue
                model = trained
            self.models[method] = model
        if self.config.start_from:
            fresh = self._train(self.config.method, self.folder / FRESH, FRESH)
            if isinstance(fresh, signal.Signals):
                return fresh
            self.fresh = fresh
        return None

    def _start(self, model: M, method: str) -> None:
        """Load the parameters of `--start-from` into a model, if that run has the method."""
        other = Path(self.config.start_from)
        config = read_config(other, self.app.config, self.app.name)
        if method in config.methods:
            place = method_folder(other, method, config) / "checkpoints" / "last.safetensors"
            self.app.load(model, place, _tie(identity_of(self.app.name, config), method))
        elif method == self.config.method:
            raise ConfigError(
                f"`--start-from {other}` has no method `{method}`. Training starts from "
                f"parameters of the same method. That run has {', '.join(config.methods)}. Pass "
                "one of them as `--method`."
            )

    def _train(
        self, method: str, place: Path, name: str, built: M | None = None
    ) -> M | signal.Signals | None:
        """Train one method.

        Args:
            method: The method.
            place: Its folder.
            name: Name of its row: the method, or `FRESH`.
            built: A model just built with the run's options.

        Returns:
            The trained model; None for a comparator that failed; a signal that stopped it.
        """
        if (place / FAILURE).is_file():
            self.failures[name] = failure_of(place)
            return None
        own = self.choices.of(self.config, method)
        steps = self._steps_of(method, own, place)
        own = replace(own, steps=steps)
        if self._is_first() and not self.quiet:
            say(f"{name}: {steps:,} steps" if steps else name)
        model = self._initialised(method, name, own, built)
        tie, look = _tie(self.identity, name), self._look if self._looks(name) else _no_look
        loggers = open_loggers(self.loggers, place, f"{self.folder.name}/{name}")
        training = Training(method, place, tie, self.processes, self.quiet, look, loggers)
        try:
            history = self.app.train(model, self.problem, own, training)
        except NonFiniteError as error:
            if name == self.config.method:
                raise
            self._fail(name, place, error)
            return None
        if history.stopped_by:
            return history.stopped_by
        self.spent_s[name], self.steps[name] = round(history.wall_time_s, 2), steps
        return model

    def _initialised(self, method: str, name: str, config: C, built: M | None) -> M:
        """Return the model to train: built with its own options, started from `--start-from`."""
        timed = config.minutes is not None  # timing drew random numbers
        if built is None or config != self.config or timed:
            built = _built(self.app, method, self.problem, config)
        if self.config.start_from and name != FRESH:
            self._start(built, method)
        return built

    def _fail(self, name: str, place: Path, error: NonFiniteError) -> None:
        """Record the failure of a comparator."""
        self.failures[name] = str(error)
        if self._is_first():
            write_atomically(place / FAILURE, str(error))
            say(f"{name} failed, the others go on: {error}")

    def _is_first(self) -> bool:
        return self.processes.global_rank == 0

    def _looks(self, name: str) -> bool:
        return name == self.config.method and not self.bare and self._is_first()

    def _look(self, model: M) -> None:
        """Write a report on validation tasks during training."""
        write_shown(
            self.app,
            {self.config.method: model},
            self.problem,
            self.config,
            self.folder,
            self.identity,
            early=True,
        )
        path = build_report(self.folder, self.app.sections)
        if not self.quiet:
            say(f"early report: {path}")

    def _steps_of(self, method: str, config: C, place: Path) -> int | None:
        """Return the steps of a method: those of the config, or as many as fit into `--minutes`.

        Two short trainings of new models measure the processor time of a step. The result is kept
        in ``steps.json``, so that a resumed run ends like an uninterrupted one.
        """
        if config.minutes is None:
            return config.steps
        kept, steps = place / STEPS, 0
        if self._is_first() and kept.is_file():
            steps = read_json(
                kept, Steps, FORMAT, "A run with `--minutes` writes it before training."
            ).steps
        elif self._is_first():
            short, long = self.app.trial_steps(config)
            _, short_s, long_s = (
                self._time(method, config, count) for count in (short, short, long)
            )
            step_s = max((long_s - short_s) / (long - short), 1e-6)
            steps = max(1, min(config.steps or 10**9, int(60 * config.minutes / step_s)))
            make_folder(place)
            write_json(kept, {"steps": steps}, FORMAT)
        return int(self.processes.broadcast(steps))

    def _time(self, method: str, config: C, steps: int) -> float:
        """Return the processor time of a short training in this process alone, in seconds."""
        short = replace(config, steps=steps, minutes=None)
        model = _built(self.app, method, self.problem, short)
        with TemporaryDirectory() as place:
            alone = OneProcess(self.processes.device)
            start_s = time.process_time()
            self.app.train(
                model, self.problem, short, Training(method, Path(place), "", alone, True, _no_look)
            )
            return time.process_time() - start_s


def _finish(arms: _Arms[C, P, M], command: str, start_s: float) -> Record:
    """Judge the trained models, write the record and the report, and return the record."""
    app, config, problem = arms.app, arms.config, arms.problem
    if not arms.quiet:
        say(f"judging on {app.unseen}")
    record: Record = {
        "app": app.name,
        "identity": arms.identity,
        "command": command,
        "config": config.to_dict(),
        "scores": app.judge([*_contenders(arms)], problem, config, arms.folder),
        "cost": {
            "train_wall_time_s": arms.spent_s,
            "steps": arms.steps,
            "wall_time_s": round(time.monotonic() - start_s, 2),
            "peak_memory_bytes": peak_memory_bytes(),
            **environment(str(arms.processes.device)),
        },
        "failures": arms.failures,
        "notes": " ".join(
            [
                app.notes(config),
                *(
                    f"{name} failed: {why.partition('. ')[0]}."
                    for name, why in arms.failures.items()
                ),
            ]
        ).strip(),
    }
    if config.start_from:
        record["start_from"] = _steps_saved(arms, record["scores"][0]["better"])
    if arms.choices.chosen:
        record["chosen"] = asdict(arms.choices)
    if not arms.bare:
        record |= app.measure(arms.models, problem, config)
    record["version"], record["commit"] = (
        record["cost"].pop("weightloom"),
        record["cost"].pop("commit"),
    )
    if not arms.bare:
        write_shown(app, arms.models, problem, config, arms.folder, arms.identity, early=False)
    write_run_record(arms.folder, record)
    if not arms.bare:
        build_report(arms.folder, app.sections)
    return record


def _contenders(arms: _Arms[C, P, M]) -> Iterator[Contender[M]]:
    """Yield every method, the fresh control, then every trained method before its training."""
    for method in arms.config.methods:
        yield Contender(method, arms.models.get(method))
    if arms.config.start_from:
        yield Contender(FRESH, arms.fresh, "control")
    for method in () if arms.bare else arms.spent_s:
        if method in arms.models:
            yield Contender(
                method, _built(arms.app, method, arms.problem, arms.config), "untrained"
            )


def _steps_saved(arms: _Arms[C, P, M], better: Better) -> dict[str, Any]:
    """Compare `--start-from` with the fresh control: steps to the control's final validation score.

    Steps are None where a training has no validation scores, or never reached that score.
    """
    started, fresh = (_validated(place) for place in (arms.folder, arms.folder / FRESH))
    facts: dict[str, Any] = {
        "run": arms.config.start_from,
        "fresh_steps": None,
        "steps": None,
        "steps_saved": None,
    }
    if not started or not fresh:
        return facts
    goal = fresh[-1]["validation_score"]
    first, reached = (_first_step(rows, goal, better) for rows in (fresh, started))
    saved = None if first is None or reached is None else first - reached
    return facts | {"goal": goal, "fresh_steps": first, "steps": reached, "steps_saved": saved}


def _validated(place: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics that hold a validation score."""
    return [row for row in read_rows(place) if "validation_score" in row]


def _first_step(rows: list[dict[str, Any]], goal: float, better: Better) -> int | None:
    """Return the first step whose validation score is as good as ``goal``, or None."""
    sign = -1 if better == "lower" else 1
    return next(
        (row["step"] for row in rows if sign * row["validation_score"] >= sign * goal), None
    )


def write_shown(
    app: App[C, P, M],
    models: Mapping[str, M],
    problem: P,
    config: C,
    folder: Path,
    identity: str,
    early: bool,
) -> None:
    """Write ``evaluation.safetensors``: the tensors and facts that the report draws.

    An error of the application is written into the file, so that a figure cannot cost the record.

    Args:
        app: The application.
        models: Models by method, the run's method first.
        problem: The data or environments.
        config: Resolved options.
        folder: The run's folder.
        identity: Digest of the run.
        early: Use validation tasks, for a report during training.
    """
    with torch.random.fork_rng(devices=[]):  # training must draw the same numbers as without
        try:
            tensors, facts = app.show(models, problem, config, early)
        except Exception as error:  # a user's own application or method may raise any
            tensors, facts = (
                {},
                {"failed": f"No figure could be drawn ({type(error).__name__}: {error})."},
            )
    save_tensors(folder / "evaluation.safetensors", tensors, {**facts, "identity": identity})


def _tie(identity: str, arm: str) -> str:
    """Return the identity that checkpoints of one method of one run hold."""
    return f"{identity} {arm}"


def _built(app: App[C, P, M], method: str, problem: P, config: C) -> M:
    torch.manual_seed(config.seed)  # every method then starts from the same base network
    return app.build(method, problem, config)


def _resolved(app: App[C, P, M], config: RunOptions) -> C:
    if not isinstance(config, app.config):
        raise ConfigError(
            f"`weightloom {app.name}` was given a {type(config).__name__}. Its options are a "
            f"{app.config.__name__}. Pass one."
        )
    resolved: Any = config.resolved()
    return resolved


def _no_look(model: Any) -> None:
    """Write no early report."""
