"""Several runs of one config: over seeds, over folds, and over values of an option.

In:   an `App`, its config, seeds, folds, ``option=value,value``.
Out:  a folder of run folders, and a record with intervals over seeds.
Knows nothing of any application.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, Generic, NamedTuple

import torch

from weightloom.apps.app import App, C, M, P
from weightloom.apps.experiment import Choices, run, say
from weightloom.errors import ConfigError, NonFiniteError, nearest
from weightloom.report import build_report
from weightloom.runs.folder import FORMAT, held_folder, identity_of, is_begun
from weightloom.runs.loggers import MetricLogger, check_loggers
from weightloom.runs.options import RunOptions, flag, with_option
from weightloom.runs.record import (
    RECORD,
    Record,
    environment,
    label,
    read_run_record,
    summary,
    summary_over_seeds,
    write_run_record,
)
from weightloom.runs.schema import read_json, write_json
from weightloom.runs.stats import interquartile
from weightloom.training import Processes

SWEEP = "sweep.json"
"""File in a run's folder: scores on validation tasks, and the chosen values."""
SHARED = ("method", "role", "setting", "name", "better", "tasks")
"""Entries of a row that are the same in every run."""


@dataclass(frozen=True)
class Sweep:
    """Contents of ``sweep.json``."""

    option: str
    """Name of the swept option."""
    scores: dict[str, dict[str, float | None]]
    """Mean score on validation tasks by method and value; None for a failed training."""
    chosen: dict[str, str]
    """Best value by method."""


@dataclass(frozen=True)
class Several:
    """Seeds, folds and a sweep to run one config with.

    Raises:
        ConfigError: If a seed or fold appears twice, or is not from 0 to 2³² - 1.
    """

    seeds: tuple[int, ...] = ()
    """Seeds to run. Default: the config's seed."""
    folds: tuple[int, ...] = ()
    """Folds of the data to run with every seed. Default: the config's fold."""
    sweep: tuple[str, ...] = ()
    """At most one option to tune on validation tasks, e.g. ``outer-lr=0.001,0.003``."""

    def __post_init__(self) -> None:
        for name, values in (("seeds", self.seeds), ("folds", self.folds)):
            if len(set(values)) < len(values):
                raise ConfigError(
                    f"`--{name}` has a number twice. Each is one run. Remove one of the two."
                )
            for value in values:
                if not 0 <= value < 2**32:
                    raise ConfigError(
                        f"`--{name} {value}` is out of range. Pass numbers from 0 to 4,294,967,295."
                    )

    def __bool__(self) -> bool:
        return bool(self.seeds or self.folds or self.sweep)


def run_several(
    app: App[C, P, M],
    config: RunOptions,
    folder: Path,
    several: Several,
    *,
    command: str = "",
    resume: bool = False,
    quiet: bool = False,
    loggers: Sequence[str | MetricLogger] = (),
) -> Record | signal.Signals | None:
    """Sweep an option on validation tasks, then run every fold and seed with the best values.

    Each run has a folder below ``folder``. Finished runs are read, an unfinished one is continued.

    Args:
        app: The application.
        config: Options, resolved or not.
        folder: Folder of all runs, created after all checks have passed.
        several: Seeds, folds and the sweep.
        command: The command line, for the record.
        resume: Continue unfinished runs of the same config in ``folder``.
        quiet: Show no progress.
        loggers: Loggers of metrics of the runs over seeds and folds, by name or as objects.

    Returns:
        The record over all runs; the signal if Ctrl-C or SIGTERM stopped a run; None in processes
        other than the first.

    Raises:
        ConfigError: If the folder holds another run, or an option cannot be swept.
        NonFiniteError: If every seed failed, or the run's method failed with every swept value.
    """
    check_loggers(loggers)
    resolved: Any = config.resolved()
    if several.sweep:
        resolved.validating()  # raises before a file is written
    tried = [parsed(resolved, text) for text in several.sweep]
    if len(tried) > 1:
        raise ConfigError(
            f"`--sweep {' '.join(several.sweep)}` tries several options. It takes one. Sweep them "
            "in separate runs."
        )
    if several.folds and not app.folds:
        raise ConfigError(
            f"`--folds` does not go with `weightloom {app.name}`. Its data have one fixed split. "
            "Leave `--folds` out."
        )
    processes = app.processes(resolved)
    folder = Path(processes.broadcast(str(folder)))  # each process may have found another free name
    study = _Study(app, resolved, app.open(resolved), folder, processes, quiet, loggers)
    facts = (several.seeds, several.folds, several.sweep)
    with held_folder(folder, app.name, resolved, resume, *facts) if study.first else nullcontext():
        processes.barrier()
        return study.run(several, tried, command)


class _Trial(NamedTuple):
    """Result of one value of a swept option."""

    score: float
    """Mean score on validation tasks."""
    gain: float
    """The same with the sign that makes larger better."""


@dataclass(frozen=True)
class _Study(Generic[C, P, M]):
    """Several runs of one application in folders below one folder."""

    app: App[C, P, M]
    config: C
    problem: P
    folder: Path
    processes: Processes
    quiet: bool
    loggers: Sequence[str | MetricLogger]

    @property
    def first(self) -> bool:
        """This process writes the files."""
        return self.processes.global_rank == 0

    def run(
        self, several: Several, tried: Sequence[tuple[str, list[str]]], command: str
    ) -> Record | signal.Signals | None:
        """Sweep, run every fold and seed, and write the record over them."""
        choices = None
        for option, values in tried:
            swept = self._sweep(option, values)
            if isinstance(swept, signal.Signals):
                return swept
            choices = swept
        runs: dict[tuple[int, int], Record] = {}
        failed: dict[str, str] = {}
        stopped_by = self._run_each(several, choices, command, runs, failed)
        if stopped_by or not self.first:
            return stopped_by
        if not runs:
            raise NonFiniteError(f"Every seed failed: {failed}.")
        record = summarised(runs, self.config, several)
        identity = identity_of(self.app.name, self.config)
        record |= {"app": self.app.name, "identity": identity, "command": command, "failed": failed}
        if several.sweep:
            record["sweep"] = asdict(read_sweep(self.folder))
        write_run_record(self.folder, record)
        build_report(self.folder, self.app.sections)
        return record

    def _run_each(
        self,
        several: Several,
        choices: Choices | None,
        command: str,
        runs: dict[tuple[int, int], Record],
        failed: dict[str, str],
    ) -> signal.Signals | None:
        """Run every fold and seed into ``runs``, or a failure into ``failed``.

        Returns:
            The signal that stopped a run, or None.
        """
        for key, name, config in self._configs(several):
            if self.first and not self.quiet:
                say(f"{name}:")
            how = {
                "command": command,
                "quiet": self.quiet,
                "choices": choices,
                "loggers": self.loggers,
            }
            try:
                outcome = self._run_or_read(config, self.folder / name, **how)
            except NonFiniteError as error:
                failed[name] = str(error).partition(". ")[0]
                continue
            if isinstance(outcome, signal.Signals):
                return outcome
            if outcome is not None:
                runs[key] = outcome
        return None

    def _configs(self, several: Several) -> Iterator[tuple[tuple[int, int], str, C]]:
        """Yield fold and seed, folder name and config of each run."""
        split = self.app.folds
        for fold in several.folds or (getattr(self.config, split) if split else 0,):
            for seed in several.seeds or (self.config.seed,):
                name = f"{split}-{fold}-seed-{seed}" if several.folds else f"seed-{seed}"
                changes: dict[str, Any] = {"seed": seed, **({split: fold} if split else {})}
                yield (fold, seed), name, replace(self.config, **changes)

    def _sweep(self, option: str, values: Sequence[str]) -> Choices | signal.Signals:
        """Train every trained method alone with each value; choose by validation score."""
        if (self.folder / SWEEP).is_file():
            return Choices(option, read_sweep(self.folder).chosen)
        scores: dict[str, dict[str, float | None]] = {}
        chosen: dict[str, str] = {}
        for method in self.config.methods:
            if not self.app.is_trained(self.app.build(method, self.problem, self.config)):
                continue
            trials: dict[str, _Trial] = {}
            for value in values:
                trial = self._try(method, option, value)
                if isinstance(trial, signal.Signals):
                    return trial
                scores.setdefault(method, {})[value] = trial.score if trial else None
                if trial:
                    trials[value] = trial
            if trials:
                chosen[method] = max(trials, key=lambda value: trials[value].gain)
            else:
                self._check_failed(method, option, values)
        if self.first:
            write_json(self.folder / SWEEP, asdict(Sweep(option, scores, chosen)), FORMAT)
        return Choices(option, self.processes.broadcast(chosen))

    def _try(self, method: str, option: str, value: str) -> _Trial | signal.Signals | None:
        """Train a method with one value; None if it failed, and in processes after the first."""
        validating: Any = replace(self.config.validating(), method=method, comparators=(), rates=())
        alone: C = Choices(option, {method: value}).of(validating, method)
        place = self.folder / "sweep" / f"{method.replace(':', '.')}-{option}-{value}"
        try:
            outcome = self._run_or_read(alone, place, quiet=True, bare=True)
        except NonFiniteError:
            return None
        if not isinstance(outcome, dict):
            return outcome
        rows = [row for row in outcome["scores"] if label(row) == method]
        if any(row["mean"] is None for row in rows):
            return None
        score = mean(row["mean"] for row in rows)
        if not self.quiet:
            say(f"{method}, {flag(option)} {value}: {score:.4g} on validation tasks")
        return _Trial(score, -score if rows[0]["better"] == "lower" else score)

    def _check_failed(self, method: str, option: str, values: Sequence[str]) -> None:
        """Raise if the method whose every value failed is the run's own."""
        if self.first and method == self.config.method:
            raise NonFiniteError(
                f"`{method}` failed with every value of `{flag(option)}`: {', '.join(values)}."
            )

    def _run_or_read(self, config: C, place: Path, **how: Any) -> Record | signal.Signals | None:
        """Read the record of a finished run; else start or continue it."""
        if (place / RECORD).is_file():
            return {**read_run_record(place, identity_of(self.app.name, config))}
        resume = is_begun(place)
        outcome = run(self.app, config, place, resume=resume, processes=self.processes, **how)
        return {**read_run_record(place)} if isinstance(outcome, dict) else outcome


def read_sweep(folder: Path) -> Sweep:
    """Read ``sweep.json`` of a run's folder.

    Raises:
        DataError: If the file is missing, damaged or of another version.
    """
    return read_json(
        folder / SWEEP, Sweep, FORMAT, "A run with `--sweep` writes it when all values were tried."
    )


def parsed(config: RunOptions, text: str) -> tuple[str, list[str]]:
    """Parse the text of `--sweep`: an option's name and at least two values.

    Raises:
        ConfigError: If the option cannot be swept, or its values are fewer than two, equal or
            invalid.

    Example:
        >>> parsed(RunOptions(), "learning-rate=0.001,0.003")
        Traceback (most recent call last):
            ...
        weightloom.errors.ConfigError: Option 'learning_rate' is unknown. ...
    """
    typed, _, values = text.partition("=")
    option = config.rate if typed in ("learning-rate", "learning_rate") else typed.replace("-", "_")
    if option not in config.swept:
        raise ConfigError(
            f"`--sweep {text}` tries `{typed}`. A sweep tries options of training: "
            f"{', '.join(flag(name)[2:] for name in config.swept)}. {nearest(option, config.swept)}"
        )
    chosen = [value for value in values.split(",") if value]
    if len(chosen) < 2:
        raise ConfigError(
            f"`--sweep {text}` has fewer than two values. A sweep chooses among several. Type "
            f"`--sweep {typed}=0.001,0.003,0.01`."
        )
    if len(set(chosen)) < len(chosen):
        raise ConfigError(
            f"`--sweep {text}` has a value twice. Each is tried once. Remove one of the two."
        )
    for value in chosen:
        with_option(config, option, value)
    return option, chosen


def summarised(runs: dict[tuple[int, int], Record], config: RunOptions, several: Several) -> Record:
    """Return one record over all runs.

    Args:
        runs: Records by fold and seed, at least one.
        config: Options of the runs, resolved.
        several: Seeds and folds that were typed.

    Returns:
        A record whose intervals are over tasks for one run, over seeds for several. With several
        folds a seed's score is its mean over folds.
    """
    first = next(iter(runs.values()))
    rows = [_row(_Across(runs, number)) for number in range(len(first["scores"]))]
    options = {**config.to_dict(), "seeds": list(several.seeds or (config.seed,))}
    if several.folds:
        options["folds"] = list(several.folds)
    return {
        "config": options,
        "scores": rows,
        "paired": _paired(rows, first),
        **{key: first[key] for key in ("many", "start_from", "protocol", "facts") if key in first},
        "cost": _cost([one["cost"] for one in runs.values()]),
        "notes": " ".join(dict.fromkeys(one["notes"] for one in runs.values() if one.get("notes"))),
    }


def _cost(costs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the cost of all runs: lists per method, total time, and maximum memory."""
    return {
        "train_wall_time_s": _by_method(costs, "train_wall_time_s"),
        "steps": _by_method(costs, "steps"),
        "wall_time_s": round(sum(cost["wall_time_s"] for cost in costs), 2),
        "peak_memory_bytes": max(cost["peak_memory_bytes"] or 0 for cost in costs) or None,
        **environment(costs[0]["device"]),
    }


def _by_method(costs: list[dict[str, Any]], key: str) -> dict[str, list[Any]]:
    """Return one entry of the cost by method, a value per run; None where a method failed."""
    trained = dict.fromkeys(name for cost in costs for name in cost["train_wall_time_s"])
    return {name: [cost[key].get(name) for cost in costs] for name in trained}


class _Across:
    """The same row of the table in every run, by fold and seed.

    Args:
        runs: Records by fold and seed.
        number: Index of the row.
    """

    def __init__(self, runs: dict[tuple[int, int], Record], number: int) -> None:
        self.rows = {key: one["scores"][number] for key, one in runs.items()}
        self.known = {key: row for key, row in self.rows.items() if row["mean"] is not None}
        """Rows of the runs in which the method did not fail."""
        self.row = next(iter((self.known or self.rows).values()))
        """One of them, for the entries that all share."""
        self.folds = dict.fromkeys(fold for fold, _ in runs)
        self.seeds = [
            seed
            for seed in dict.fromkeys(seed for _, seed in runs)
            if all((fold, seed) in self.known for fold in self.folds)
        ]
        """Seeds without a failed fold."""

    def over_seeds(self, score: str | None = None) -> dict[str, Any]:
        """Return mean and interval over seeds, of a further score if named."""
        values = [self._of_seed(seed, score) for seed in self.seeds]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return {"per_seed": values, "mean": mean(known) if known else None, "ci95": None}
        return summary_over_seeds(known)

    def _of_seed(self, seed: int, score: str | None) -> float | None:
        """Return a seed's mean over folds; None if a fold lacks the score."""
        rows = [self.known[fold, seed] for fold in self.folds]
        found = [row["also"].get(score, {}) if score else row for row in rows]
        picked = [row.get("mean") for row in found]
        return None if any(value is None for value in picked) else mean(picked)

    def scores(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the summary of the score, and of each further score by name."""
        also = self.row.get("also", {})
        if len(self.rows) == 1:
            return {"mean": self.row["mean"], "ci95": self.row["ci95"]}, also
        return self.over_seeds(), {score: self.over_seeds(score) for score in also}

    def measures(self) -> dict[str, Any]:
        """Return adaptation time, calibration error and interquartile mean, where known."""
        rows = list(self.known.values())
        found = {}
        if times := [row["adapt_time_s"] for row in rows if row.get("adapt_time_s") is not None]:
            found["adapt_time_s"] = median(times)
        if errors := [row["calibration"]["ece"] for row in rows if "calibration" in row]:
            found["ece"] = mean(errors)
        return found | self._by_context() | self._check()

    def _by_context(self) -> dict[str, Any]:
        """Return the mean score of each context, and the interquartile mean if folds share them."""
        if "per_context" not in self.row:
            return {}
        found: dict[str, Any] = {"per_context": self._means_of_contexts()}
        if len(self.folds) == 1:
            found["iqm"] = interquartile([row["per_context"] for row in self.known.values()])
        return found

    def _means_of_contexts(self) -> list[float]:
        """Return the mean over seeds of each context's score, the contexts of all folds in turn."""
        scores: list[float] = []
        for fold in self.folds:
            of_fold = [row["per_context"] for (its, _), row in self.known.items() if its == fold]
            scores += [mean(values) for values in zip(*of_fold, strict=True)]
        return scores

    def _check(self) -> dict[str, Any]:
        """Return the mean over runs of the weights of a check, and of its scores by family."""
        if "check" not in self.row:
            return {}
        checks = [row["check"] for row in self.known.values()]
        weights = {
            name: mean(its["weights"][name] for its in checks) for name in checks[0]["weights"]
        }
        found: dict[str, list[list[float]]] = {}
        for its in checks:
            for family, pair in its["families"].items():
                found.setdefault(family, []).append(pair)
        scores = {family: [*map(mean, zip(*pairs, strict=True))] for family, pairs in found.items()}
        return {"check": {"weights": weights, "families": scores}}


def _row(across: _Across) -> dict[str, Any]:
    """Return one row over all runs; runs in which the method failed are counted and left out."""
    row, runs, failed = across.row, len(across.rows), len(across.rows) - len(across.known)
    score, also = across.scores()
    return {
        **{key: row[key] for key in SHARED if key in row},
        **score,
        "per_run": {
            f"fold {fold}, seed {seed}": (its["mean"], its["ci95"])
            for (fold, seed), its in across.rows.items()
        },
        **({"failed": f"{failed} of {runs} runs"} if failed else {}),
        "also": also,
        **across.measures(),
    }


def _paired(rows: list[dict[str, Any]], first: Record) -> dict[str, Any]:
    """Return the difference of our score to each other method's, on the same tasks.

    Mean and interval over runs; of a single run over its tasks.
    """
    ahead = {(row["setting"], label(row)): row.get("ours_ahead") for row in first["scores"]}
    found: dict[str, Any] = {}
    for setting in dict.fromkeys(row["setting"] for row in rows):
        ours, *others = (row for row in rows if row["setting"] == setting)
        for other in others:
            gaps = _gaps(ours["per_run"], other["per_run"])
            name = f"{setting}: {label(ours)} - {label(other)}"
            if len(gaps) > 1:
                found[name] = {**summary_over_seeds(gaps), **_over_contexts(ours, other)}
            elif one := ahead.get((setting, label(other))):
                found[name] = {**one, "over": "tasks"}
    return found


def _over_contexts(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the difference over contexts of the means over seeds, if both have all contexts."""
    pairs = [its.get("per_context") or [] for its in (ours, other)]
    if len(pairs[0]) != len(pairs[1]) or len(pairs[0]) < 2:
        return {}
    return {"over_contexts": summary(torch.tensor(pairs[0]) - torch.tensor(pairs[1]))}


def _gaps(ours: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """Return the difference of two methods' means in every run in which neither failed."""
    pairs = [(ours[run][0], other[run][0]) for run in ours]
    return [a - b for a, b in pairs if a is not None and b is not None]
