"""Several runs of one config: over seeds and folds, and over values of an option on validation tasks.

In:   an `App`, its config, seeds, folds, ``option=value,value``.
Out:  a folder of run folders, and a record with intervals over seeds.
Knows nothing of any application.
"""

import signal
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from weightloom.apps.app import App, C, M, P
from weightloom.apps.experiment import Choices, run, say
from weightloom.errors import ConfigError, NonFiniteError, nearest
from weightloom.report import build_report
from weightloom.runs.folder import FORMAT, held_folder, identity_of, is_begun
from weightloom.runs.options import RunOptions, flag, with_option
from weightloom.runs.record import (
    RECORD,
    Record,
    environment,
    label,
    read_run_record,
    summary_over_seeds,
    write_run_record,
)
from weightloom.runs.schema import read_json, write_json
from weightloom.runs.stats import interquartile
from weightloom.training import Processes

SWEEP = "sweep.json"
"""In a run's folder: scores on validation tasks, and the values that were chosen."""


@dataclass(frozen=True)
class Sweep:
    """Contents of ``sweep.json``."""

    option: str
    """The option that was tried."""
    scores: dict[str, dict[str, float | None]]
    """Score on validation tasks by method and value; None for a training that failed."""
    chosen: dict[str, str]
    """The best value by method."""


@dataclass(frozen=True)
class Several:
    """Runs beyond a single one."""

    seeds: tuple[int, ...] = ()
    """Seeds to run; none: the config's own."""
    folds: tuple[int, ...] = ()
    """Folds of the data to run with every seed; none: the config's own."""
    sweep: tuple[str, ...] = ()
    """An option to try on validation tasks, as in ``outer-lr=0.001,0.003``."""

    def __post_init__(self) -> None:
        for name, values in (("seeds", self.seeds), ("folds", self.folds)):
            if len(set(values)) < len(values):
                raise ConfigError(
                    f"`--{name}` has a number twice. Each is one run. Leave it out once."
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
) -> Record | signal.Signals | None:
    """Sweep options for every trained method on validation tasks, then run every fold and seed with what was chosen.

    Folders of single runs lie below ``folder``; those that ended are read, an unfinished one is
    gone on with.

    Returns:
        As `weightloom.apps.experiment.run`; of several seeds the record holds intervals over them.

    Raises:
        ConfigError: If the folder holds something else, or an option cannot be swept.
    """
    resolved: Any = config.resolved()
    if several.sweep:
        resolved.validating()  # what cannot work is said before a file is written
    tried = [parsed(resolved, text) for text in several.sweep]
    if len(tried) > 1:
        raise ConfigError(
            f"`--sweep {' '.join(several.sweep)}` tries several options. It takes one. Sweep one "
            "by one."
        )
    if several.folds and not app.folds:
        raise ConfigError(
            f"`--folds` does not go with `weightloom {app.name}`. Its data are dealt out in one "
            "way."
        )
    processes = app.processes(resolved)
    folder = Path(processes.broadcast(str(folder)))
    problem = app.open(resolved)
    facts = (several.seeds, several.folds, several.sweep)
    with (
        held_folder(folder, app.name, resolved, resume, *facts)
        if processes.global_rank == 0
        else nullcontext()
    ):
        processes.barrier()
        return _run_all(app, resolved, problem, folder, several, tried, command, quiet, processes)


def _run_all(
    app: App[C, P, M],
    resolved: Any,
    problem: P,
    folder: Path,
    several: Several,
    tried: Sequence[tuple[str, list[str]]],
    command: str,
    quiet: bool,
    processes: Processes,
) -> Record | signal.Signals | None:
    """Sweep, run every fold and seed, and write the record over them."""
    first = processes.global_rank == 0
    choices = None
    for option, values in tried:
        swept = _sweep(app, resolved, problem, folder, option, values, quiet, processes)
        if isinstance(swept, signal.Signals):
            return swept
        choices = swept
    runs: dict[tuple[int, int], Record] = {}
    failed: dict[str, str] = {}
    folds = several.folds or (getattr(resolved, app.folds) if app.folds else 0,)
    for fold in folds:
        for seed in several.seeds or (resolved.seed,):
            place = folder / (
                f"{app.folds}-{fold}-seed-{seed}" if several.folds else f"seed-{seed}"
            )
            own = replace(resolved, seed=seed, **({app.folds: fold} if app.folds else {}))
            if first and not quiet:
                say(f"{place.name}:")
            try:
                outcome = _run_or_read(
                    app, own, place, processes, command=command, quiet=quiet, choices=choices
                )
            except NonFiniteError as error:
                failed[place.name] = str(error).partition(". ")[0]
                continue
            if isinstance(outcome, signal.Signals):
                return outcome
            if outcome is not None:
                runs[fold, seed] = outcome
    if not first:
        return None
    if not runs:
        raise NonFiniteError(f"Every seed failed: {failed}.")
    record = summarised(runs, resolved, several)
    identity = identity_of(app.name, resolved)
    record |= {"app": app.name, "identity": identity, "command": command, "failed": failed}
    if several.sweep:
        record["sweep"] = asdict(read_sweep(folder))
    write_run_record(folder, record)
    build_report(folder, app.sections)
    return record


def read_sweep(folder: Path) -> Sweep:
    """Read ``sweep.json``.

    Raises:
        DataError: If it is missing, damaged or of another version.
    """
    return read_json(
        folder / SWEEP, Sweep, FORMAT, "A run with `--sweep` writes it when all values were tried."
    )


def parsed(config: RunOptions, text: str) -> tuple[str, list[str]]:
    """Read an option and the values to try.

    Raises:
        ConfigError: If the option cannot be swept, or a value does not fit.

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
            f"`--sweep {text}` tries `{typed}`. A sweep tries options that training alone reads: "
            f"{', '.join(flag(name)[2:] for name in config.swept)}. {nearest(option, config.swept)}"
        )
    chosen = [value for value in values.split(",") if value]
    if len(chosen) < 2:
        raise ConfigError(
            f"`--sweep {text}` has no values to choose from. Type `--sweep "
            f"{typed}=0.001,0.003,0.01`."
        )
    if len(set(chosen)) < len(chosen):
        raise ConfigError(
            f"`--sweep {text}` has a value twice. Each is tried once. Leave it out once."
        )
    for value in chosen:
        with_option(config, option, value)
    return option, chosen


def _sweep(
    app: App[C, P, M],
    config: C,
    problem: P,
    folder: Path,
    option: str,
    values: Sequence[str],
    quiet: bool,
    processes: Processes,
) -> Choices | signal.Signals:
    """Train every trained method alone with each value, and choose by its mean score on validation tasks."""
    if (folder / SWEEP).is_file():
        return Choices(option, read_sweep(folder).chosen)
    scores: dict[str, dict[str, float | None]] = {}
    chosen: dict[str, str] = {}
    first = processes.global_rank == 0
    for method in config.methods:
        if not app.is_trained(app.build(method, problem, config)):
            continue
        found: dict[str, tuple[float, float]] = {}
        for value in values:
            validating: Any = replace(config.validating(), method=method, comparators=(), rates=())
            alone: C = Choices(option, {method: value}).of(validating, method)
            place = folder / "sweep" / f"{method.replace(':', '.')}-{option}-{value}"
            try:
                outcome = _run_or_read(app, alone, place, processes, quiet=True, bare=True)
            except NonFiniteError:
                scores.setdefault(method, {})[value] = None
                continue
            if isinstance(outcome, signal.Signals):
                return outcome
            if outcome is None:
                continue
            rows = [row for row in outcome["scores"] if label(row) == method]
            if any(row["mean"] is None for row in rows):
                scores.setdefault(method, {})[value] = None
                continue
            score = mean(row["mean"] for row in rows)
            scores.setdefault(method, {})[value] = score
            found[value] = (-score if rows[0]["better"] == "lower" else score, score)
            if not quiet:
                say(f"{method}, {flag(option)} {value}: {score:.4g} on validation tasks")
        if first and not found and method == config.method:
            raise NonFiniteError(
                f"`{method}` failed with every value of `{flag(option)}`: {', '.join(values)}."
            )
        if found:
            chosen[method] = max(found, key=lambda value: found[value][0])
    if first:
        write_json(folder / SWEEP, asdict(Sweep(option, scores, chosen)), FORMAT)
    return Choices(option, processes.broadcast(chosen))


def _run_or_read(
    app: App[C, P, M], config: C, place: Path, processes: Processes, **how: Any
) -> Record | signal.Signals | None:
    """Read a run that ended, go on with one that did not, or start it."""
    if (place / RECORD).is_file():
        return {**read_run_record(place, identity_of(app.name, config))}
    outcome = run(app, config, place, resume=is_begun(place), processes=processes, **how)
    return {**read_run_record(place)} if isinstance(outcome, dict) else outcome


def summarised(runs: dict[tuple[int, int], Record], config: RunOptions, several: Several) -> Record:
    """Return one record over all runs.

    With one run the intervals are over tasks, with several over seeds; where there are several
    folds, a seed's score is the mean over them.
    """
    first = next(iter(runs.values()))
    rows = [_row(runs, number) for number in range(len(first["scores"]))]
    trained = dict.fromkeys(
        name for one in runs.values() for name in one["cost"]["train_wall_time_s"]
    )
    costs = [one["cost"] for one in runs.values()]
    options = {**config.to_dict(), "seeds": list(several.seeds or (config.seed,))}
    if several.folds:
        options["folds"] = list(several.folds)
    return {
        "config": options,
        "scores": rows,
        "paired": _paired(rows, first),
        **{key: first[key] for key in ("many", "start_from") if key in first},
        "cost": {
            "train_wall_time_s": {
                name: [cost["train_wall_time_s"].get(name) for cost in costs] for name in trained
            },
            "steps": {name: [cost["steps"].get(name) for cost in costs] for name in trained},
            "wall_time_s": round(sum(cost["wall_time_s"] for cost in costs), 2),
            "peak_memory_bytes": max(cost["peak_memory_bytes"] or 0 for cost in costs) or None,
            **environment(first["cost"]["device"]),
        },
        "notes": " ".join(dict.fromkeys(one["notes"] for one in runs.values() if one.get("notes"))),
    }


def _row(runs: dict[tuple[int, int], Record], number: int) -> dict[str, Any]:
    """One row over all runs; a run in which the method failed is counted, and the row is over the others."""
    rows = {key: one["scores"][number] for key, one in runs.items()}
    there = {key: row for key, row in rows.items() if row["mean"] is not None}
    folds = dict.fromkeys(fold for fold, _ in runs)
    seeds = [
        seed
        for seed in dict.fromkeys(seed for _, seed in runs)
        if all((fold, seed) in there for fold in folds)
    ]
    row = next(iter((there or rows).values()))
    one = len(runs) == 1

    def over_seeds(score: str | None = None) -> dict[str, Any]:
        values: list[float | None] = []
        for seed in seeds:
            each = [there[fold, seed] for fold in folds]
            picked = [(its["also"][score] if score else its)["mean"] for its in each]
            values.append(None if any(value is None for value in picked) else mean(picked))
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return {"per_seed": values, "mean": mean(known) if known else None, "ci95": None}
        return summary_over_seeds(known)

    errors = [each["calibration"]["ece"] for each in there.values() if "calibration" in each]
    times = [
        each["adapt_time_s"] for each in there.values() if each.get("adapt_time_s") is not None
    ]
    return {
        **{
            key: row[key]
            for key in ("method", "role", "setting", "name", "better", "tasks")
            if key in row
        },
        **({"mean": row["mean"], "ci95": row["ci95"]} if one else over_seeds()),
        "per_run": {
            f"fold {fold}, seed {seed}": (its["mean"], its["ci95"])
            for (fold, seed), its in rows.items()
        },
        **(
            {"failed": f"{len(rows) - len(there)} of {len(rows)} runs"}
            if len(there) < len(rows)
            else {}
        ),
        "also": row.get("also", {})
        if one
        else {score: over_seeds(score) for score in row.get("also", {})},
        **({"adapt_time_s": median(times)} if times else {}),
        **({"ece": mean(errors)} if errors else {}),
        **(
            {"iqm": interquartile([its["per_context"] for its in there.values()])}
            if "per_context" in row
            else {}
        ),
    }


def _paired(rows: list[dict[str, Any]], first: Record) -> dict[str, Any]:
    """Ours less each other method on the same tasks.

    Mean and interval over runs, or of one run over its tasks.
    """
    ahead = {(row["setting"], label(row)): row.get("ours_ahead") for row in first["scores"]}
    found: dict[str, Any] = {}
    for setting in dict.fromkeys(row["setting"] for row in rows):
        ours, *others = (row for row in rows if row["setting"] == setting)
        for other in others:
            pairs = [(ours["per_run"][key][0], other["per_run"][key][0]) for key in ours["per_run"]]
            gaps = [a - b for a, b in pairs if a is not None and b is not None]
            name = f"{setting}: {label(ours)} - {label(other)}"
            if len(gaps) > 1:
                found[name] = summary_over_seeds(gaps)
            elif one := ahead.get((setting, label(other))):
                found[name] = {**one, "over": "tasks"}
    return found
