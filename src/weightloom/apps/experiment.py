"""One run of any application from config to report: open, train every method, judge, record, show.

In:   an `App`, its config, a folder.
Out:  the folder: ``run.json``, ``config.json``, metrics, checkpoints, ``record.json``,
      ``report.html``.
Knows nothing of any application.
"""

import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
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
from weightloom.runs.metrics import read_rows
from weightloom.runs.options import RunOptions, with_option
from weightloom.runs.record import Better, Record, Row, environment, write_run_record
from weightloom.runs.schema import damaged, read_json, write_json
from weightloom.texts import TextError, read_text
from weightloom.training import OneProcess, Processes

FAILURE = "failure.txt"
"""In a comparator's folder: why its training came to no end."""
STEPS = "steps.json"
"""Beside a method's checkpoints: how many steps fit into its time."""
CHOSEN = "chosen.json"
"""In a run's folder: the values of an option that a sweep chose for it."""
FRESH = "fresh"
"""The arm beside one that starts from another run: the same method, newly initialised."""


@dataclass(frozen=True)
class Loaded(Generic[C, P, M]):
    """A run, read from its folder."""

    config: C
    problem: P
    models: dict[str, M]
    """Trained methods, the run's own first; a comparator that failed is left out."""

    @property
    def model(self) -> M:
        """The method that the run is about."""
        return next(iter(self.models.values()))


@dataclass(frozen=True)
class Steps:
    """Contents of ``steps.json``."""

    steps: int


@dataclass(frozen=True)
class Choices:
    """Values that a sweep chose, by method: contents of ``chosen.json``."""

    option: str = ""
    chosen: dict[str, str] | None = None

    def of(self, config: C, method: str) -> C:
        """Return the options of one method."""
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
) -> Record | signal.Signals | None:
    """Train every method of a config, judge all on tasks never seen, and write the run's folder.

    Args:
        app: The application.
        config: Options, resolved or not.
        folder: The run's folder; made here, after everything that can be checked was checked.
        command: The command line, for the record.
        resume: Go on in a folder that holds an unfinished run of the same config.
        quiet: Show no progress.
        choices: Options of single methods, from a sweep; a run that goes on has those that it began
            with.
        bare: Leave out what only a person looks at: untrained rows, pictures, the report.
        processes: Devices and processes, already started. None: those that the config asks for.

    Returns:
        The record; the signal if Ctrl-C or SIGTERM ended the run early, its checkpoint written;
        None from a process that only helped to train.

    Raises:
        ConfigError: If the folder already holds a run, or options ask for more than there is.
        DataError: If data are missing or damaged.
        NonFiniteError: If training ``config.method`` met a NaN or an infinity. A comparator that
            does has failed: its row says so, and the run goes on.
        CheckpointError: If a checkpoint cannot be written or read.
    """
    start_s = time.monotonic()
    resolved = _resolved(app, config)
    processes = processes or app.processes(resolved)
    folder = Path(processes.broadcast(str(folder)))
    if resolved.start_from:
        read_config(
            Path(resolved.start_from), app.config, app.name
        )  # said before anything is written
    problem = app.open(resolved)
    for method in resolved.methods:
        if (
            method == resolved.method or ":" in method
        ):  # code of a user's own, which may not even be there
            _built(app, method, problem, resolved)
    first = processes.global_rank == 0
    with held_folder(folder, app.name, resolved, resume) if first else nullcontext():
        if first and choices:
            write_json(folder / CHOSEN, asdict(choices), FORMAT)
        if first and not quiet:
            for notice in app.notices(problem):
                say(notice)
        processes.barrier()
        if (folder / CHOSEN).is_file():
            about = "A run writes it when a sweep chose options for it."
            choices = read_json(folder / CHOSEN, Choices, FORMAT, about)
        kept = folder / "engines.json" if first else None
        with autotuned(kept) if resolved.autotune else nullcontext():
            arms = _Arms(
                app, resolved, problem, folder, processes, quiet, choices or Choices(), bare
            )
            stopped_by = arms.train()
            if stopped_by or not first:
                return stopped_by
            return _finish(arms, command, start_s)


def load(
    app: App[C, P, M],
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    only: bool = False,
    trust: bool = False,
) -> Loaded[C, P, M]:
    """Rebuild the problem of a run and its trained methods, from its folder.

    Args:
        app: The application that made it.
        folder: The run's folder.
        changes: Options to judge by that differ from training, among ``app.judged_by``; fewer
            ``comparators``.
        only: Load the run's method alone.
        trust: Import what the run's options name as ``module:name``.

    Raises:
        DataError: If the folder holds no run, or the data are missing.
        ConfigError: If it is a run of another application, or of several seeds, or names code and
            is not trusted, or an option cannot be changed after training.
        CheckpointError: If a checkpoint is missing, not whole, or of another run.
    """
    saved = read_config(folder, app.config, app.name)
    identity = identity_of(app.name, saved)
    known = (*app.judged_by, "comparators", "rates")
    for name in changes or {}:
        if name not in known:
            raise ConfigError(
                f"Option {name!r} cannot be changed after training: the checkpoints are of what "
                f"the run began with. Pass others of {', '.join(f'`{its}`' for its in known)}."
            )
    options = {**saved.to_dict(), **(changes or {})}
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


def judge_again(
    app: App[C, P, M], folder: Path, changes: Mapping[str, Any], trust: bool = False
) -> tuple[C, list[Row]]:
    """Judge the methods of a run once more, with other options.

    Raises:
        ConfigError: If an option cannot be changed after training, or the run names code and is not
            trusted.
    """
    loaded = load(app, folder, changes, trust=trust)
    contenders = [Contender(name, loaded.models.get(name)) for name in loaded.config.methods]
    return loaded.config, app.judge(contenders, loaded.problem, loaded.config, folder)


def report(app: App[C, P, M], folder: Path) -> Path:
    """Write ``report.html`` of a run anew, from whatever its folder holds so far."""
    return build_report(folder, app.sections)


def method_folder(folder: Path, method: str, config: RunOptions) -> Path:
    """Return where a method's checkpoints are.

    Of ``--method`` in the run itself, of a comparator in a folder below.
    """
    return folder if method == config.method else folder / method.replace(":", ".")


def failure_of(place: Path) -> str:
    """Return why the training of a comparator came to no end.

    Raises:
        DataError: If the file that says it cannot be read.
    """
    try:
        return read_text(place / FAILURE)
    except TextError as error:
        raise damaged(place / FAILURE, str(error)) from error


def say(text: str) -> None:
    """Say something to the person who waits."""
    print(text, file=sys.stderr, flush=True)


def train_model(
    app: App[C, P, M],
    config: RunOptions,
    folder: Path | None = None,
    quiet: bool = True,
    resume: bool = False,
) -> Loaded[C, P, M]:
    """Train the method of a config alone, and judge nothing.

    Args:
        app: The application.
        config: Options, resolved or not.
        folder: The run's folder; None keeps nothing.
        quiet: Show no progress.
        resume: Go on in a folder that holds an unfinished training of the same config.

    Raises:
        KeyboardInterrupt: If Ctrl-C or SIGTERM ended the training.
    """
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
        )
        if arms.train():
            raise KeyboardInterrupt
    return Loaded(resolved, problem, arms.models)


class _Arms(Generic[C, P, M]):
    """The methods of one run, trained one after the other."""

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
    ) -> None:
        self.app, self.config, self.problem, self.folder = app, config, problem, folder
        self.processes, self.quiet, self.choices, self.bare = processes, quiet, choices, bare
        self.identity = identity_of(app.name, config)
        self.models: dict[str, M] = {}
        self.fresh: M | None = None
        self.spent_s: dict[str, float] = {}
        self.steps: dict[str, int | None] = {}
        self.failures: dict[str, str] = {}

    def train(self) -> signal.Signals | None:
        """Train them all; return the signal that ended it early."""
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
        """Take the parameters of the run that this one starts from, where it has the method."""
        other = Path(self.config.start_from)
        config = read_config(other, self.app.config, self.app.name)
        if method in config.methods:
            place = method_folder(other, method, config) / "checkpoints" / "last.safetensors"
            self.app.load(model, place, _tie(identity_of(self.app.name, config), method))
        elif method == self.config.method:
            raise ConfigError(
                f"`--start-from {other}` has no method `{method}`. A training starts from "
                f"parameters of the same method. It has {', '.join(config.methods)}: pass one of "
                "them as `--method`."
            )

    def _train(
        self, method: str, place: Path, name: str, built: M | None = None
    ) -> M | signal.Signals | None:
        """Train one arm, as it was just built where its options are the run's.

        None where a comparator failed.
        """
        first = self.processes.global_rank == 0
        if (place / FAILURE).is_file():
            self.failures[name] = failure_of(place)
            return None
        own = self.choices.of(self.config, method)
        steps = self._steps_of(method, own, place)
        own = replace(own, steps=steps)
        if first and not self.quiet:
            say(f"{name}: {steps:,} steps" if steps else name)
        if (
            built is None or own != self.config or own.minutes is not None
        ):  # timing it drew random numbers
            built = _built(self.app, method, self.problem, own)
        model = built
        if self.config.start_from and name != FRESH:
            self._start(model, method)
        tie, look = _tie(self.identity, name), self._look if self._looks(name) else _nothing
        training = Training(method, place, tie, self.processes, self.quiet, look)
        try:
            history = self.app.train(model, self.problem, own, training)
        except NonFiniteError as error:
            if name == self.config.method:
                raise
            self.failures[name] = str(error)
            if first:
                write_atomically(place / FAILURE, str(error))
                say(f"{name} failed, the others go on: {error}")
            return None
        if history.stopped_by:
            return history.stopped_by
        self.spent_s[name], self.steps[name] = round(history.wall_time_s, 2), steps
        return model

    def _looks(self, name: str) -> bool:
        return name == self.config.method and not self.bare and self.processes.global_rank == 0

    def _look(self, model: M) -> None:
        """Write a report during training, of validation tasks."""
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
            say(f"an early look: {path}")

    def _steps_of(self, method: str, config: C, place: Path) -> int | None:
        """Return the steps of a method: those of the config, or as many as fit into its processor time.

        They are counted once, by timing short trainings of new models, and kept beside the
        checkpoints, so that a resumed run ends as one that never stopped.
        """
        if config.minutes is None:
            return config.steps
        kept, steps = place / STEPS, 0
        if self.processes.global_rank == 0 and kept.is_file():
            steps = read_json(
                kept, Steps, FORMAT, "A run with `--minutes` writes it before training."
            ).steps
        elif self.processes.global_rank == 0:
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
        """Return the processor seconds of a short training, in this process alone."""
        short = replace(config, steps=steps, minutes=None)
        model = _built(self.app, method, self.problem, short)
        with TemporaryDirectory() as place:
            alone = OneProcess(self.processes.device)
            start_s = time.process_time()
            self.app.train(
                model, self.problem, short, Training(method, Path(place), "", alone, True, _nothing)
            )
            return time.process_time() - start_s


def _finish(arms: _Arms[C, P, M], command: str, start_s: float) -> Record:
    """Judge, record and show what was trained."""
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
    """Every method, then every trained one as it was before training."""
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
    """Hold a training that started from another run against a fresh one, by their validation scores."""
    started, fresh = (
        [row for row in read_rows(place) if "validation_score" in row]
        for place in (arms.folder, arms.folder / FRESH)
    )
    facts: dict[str, Any] = {
        "run": arms.config.start_from,
        "fresh_steps": None,
        "steps": None,
        "steps_saved": None,
    }
    if not started or not fresh:
        return facts
    goal, sign = fresh[-1]["validation_score"], -1 if better == "lower" else 1
    reached = next(
        (row["step"] for row in started if sign * row["validation_score"] >= sign * goal), None
    )
    first = next(row["step"] for row in fresh if sign * row["validation_score"] >= sign * goal)
    saved = None if reached is None else first - reached
    return facts | {"goal": goal, "fresh_steps": first, "steps": reached, "steps_saved": saved}


def write_shown(
    app: App[C, P, M],
    models: Mapping[str, M],
    problem: P,
    config: C,
    folder: Path,
    identity: str,
    early: bool,
) -> None:
    """Write ``evaluation.safetensors``, which the report draws.

    Pictures that fail must not cost a run its record.

    Args:
        app: The application.
        models: The run's method first.
        problem: Where tasks come from.
        config: Resolved options.
        folder: The run's folder.
        identity: Digest of the run.
        early: During training.
    """
    with torch.random.fork_rng(devices=[]):  # training goes on as if nothing had been shown
        try:
            tensors, facts = app.show(models, problem, config, early)
        except Exception as error:  # applications and methods of one's own raise what they like
            tensors, facts = (
                {},
                {"failed": f"Nothing could be drawn ({type(error).__name__}: {error})."},
            )
    save_tensors(folder / "evaluation.safetensors", tensors, {**facts, "identity": identity})


def _tie(identity: str, arm: str) -> str:
    """Return what ties a checkpoint to one arm of one run."""
    return f"{identity} {arm}"


def _built(app: App[C, P, M], method: str, problem: P, config: C) -> M:
    torch.manual_seed(config.seed)  # every method starts from the same base network
    return app.build(method, problem, config)


def _resolved(app: App[C, P, M], config: RunOptions) -> C:
    if not isinstance(config, app.config):
        raise ConfigError(
            f"`weightloom {app.name}` was given a {type(config).__name__}. Its options are a "
            f"{app.config.__name__}. Pass one."
        )
    resolved: Any = config.resolved()
    return resolved


def _nothing(model: Any) -> None:
    """Take no look."""
