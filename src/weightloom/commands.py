"""Commands: flags to a config, a config to a run of an application, and commands on runs.

Knows nothing of the insides of applications. Torch is imported only by the commands that need it.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from weightloom.apps.app import App
from weightloom.apps.registry import app_names, check_trusted, find_app, need_extra
from weightloom.errors import ConfigError
from weightloom.option_help import field_texts, option_help, options_of, without_rule
from weightloom.runs.options import RunOptions

Options = TypeVar("Options", bound=RunOptions)
AnyApp = App[Any, Any, Any]
WIDEST = 100
"""Columns of help."""


@dataclass(frozen=True)
class RunCommand(Generic[Options]):
    """Train, judge on tasks that training never saw, and write a report."""

    options: Options
    """Options of the application."""
    run: Path | None = None
    """Folder to write; it must not exist. Default: the next free one of runs/NAME-001,
    runs/NAME-002, …"""
    resume: Path | None = None
    """Go on with an unfinished run in this folder."""
    config: Path | None = None
    """A YAML or JSON file of options; flags typed beside it win."""
    quiet: bool = False
    """Show no progress."""
    log: tuple[str, ...] = ()
    """Loggers of metrics besides `metrics.jsonl`: `tensorboard`, `csv`, `wandb`, `mlflow`."""
    trust: bool = False
    """Import code that the options of `--config` or `--resume` name as `module:Class`."""
    seeds: tuple[int, ...] = ()
    """Run once with each of these seeds; intervals are then over seeds."""
    folds: tuple[int, ...] = ()
    """Run every seed on each of these folds of the data."""
    sweep: tuple[str, ...] = ()
    """Try values of an option on validation tasks, for each trained method by itself, as in
    `learning-rate=0.001,0.003`."""


def run_app(app: AnyApp, words: list[str], typed: str) -> int:
    """Run an application."""
    config, several = _options_of(app, words)
    default = RunCommand(config, **several)
    generic: Any = RunCommand
    kind = generic[app.config]
    if _asks_help(words):
        return _print_run_help(app, kind, words, typed, default)
    command = _parse(kind, words, typed, default)

    _check_going_on(command, several, typed)
    source = command.resume or command.config
    if source and not command.trust:
        check_trusted(command.options, source, words)
    need_extra(app)
    from weightloom.apps.experiment import run
    from weightloom.apps.several import Several, run_several

    options: Any = command.options
    folder = command.resume or command.run or _free_folder(app.label(options))
    more = Several(command.seeds, command.folds, command.sweep)
    how: dict[str, Any] = {
        "command": shlex.join(["weightloom", typed, *words]),
        "resume": command.resume is not None,
        "quiet": command.quiet,
        "loggers": command.log,
    }
    outcome = (
        run_several(app, options, folder, more, **how) if more else run(app, options, folder, **how)
    )
    if outcome is None:
        return 0
    if not isinstance(outcome, dict):
        print(
            f"stopped by {outcome.name}; type `weightloom {typed} --resume {folder}` to go on",
            file=sys.stderr,
        )
        return 128 + int(outcome)
    _print_scores(app, outcome["scores"])
    for text in app.lines(outcome):
        print(text)
    print(f"report: {folder / 'report.html'}")
    return 0


def _check_going_on(command: RunCommand[Any], several: dict[str, Any], typed: str) -> None:
    """Raise a `ConfigError` for options that `--resume` excludes."""
    if command.resume is None:
        return
    beside = [name for name in ("run", "config") if getattr(command, name) is not None]
    beside += [name for name, value in several.items() if getattr(command, name) != value]
    if beside:
        raise ConfigError(
            f"`--resume {command.resume}` with `--{beside[0]}`. A run goes on in its own folder, "
            f"with its own options. Type `weightloom {typed} --resume {command.resume}` alone, or "
            "start another run."
        )


def evaluate(words: list[str]) -> int:
    """Judge the methods of a run again, with other options."""
    app = _app_of(words, "eval")
    about = "Judge the methods of a run again, with other options."
    kind = _with_changes(app, about, app.judged_by, record=Path, app=str, trust=bool)
    command = _parse(kind, words, "eval")

    from weightloom.apps.experiment import judge_again
    from weightloom.runs.record import check_target, environment, write_record

    if command.record:
        check_target(command.record)
    config, scores = judge_again(app, command.run, _changes(app, command), command.trust)
    _print_scores(app, scores)
    if command.record:
        typed = shlex.join(["weightloom", "eval", *words])
        facts = {"app": app.name, "command": typed, "config": config.to_dict(), "scores": scores}
        write_record(command.record, {**facts, "cost": environment()})
    return 0


@dataclass(frozen=True)
class ReportCommand:
    """Write report.html of a run anew, from the files in its folder."""

    run: Positional[Path]
    """The run's folder."""
    app: str | None = None
    """Your own application that made it, as `module:Class`."""


def report(words: list[str]) -> int:
    """Write report.html of a run anew."""
    command = _parse(ReportCommand, words, "report")

    from weightloom.apps.experiment import report as build

    print(build(_app_of(words, "report"), command.run))
    return 0


@dataclass(frozen=True)
class AdaptCommand:
    """Adapt a run's method to a task of your own; answer inputs, write the network."""

    run: Positional[Path]
    """The run's folder."""
    support: Positional[str]
    """The new task: for few-shot learning a folder of pictures with a folder for each class, or a
    .csv, .jsonl or .npz file; for reinforcement learning a context, as in `gravity=12`. Or any
    number of tasks: a .jsonl file of customers, as in `{"name": "ann", "examples": [{"text": "late
    again", "label": "complaint"}, …]}`."""
    predict: tuple[str, ...] = ()
    """Inputs to answer, such as paths of pictures or a file of rows."""
    out: Path | None = None
    """Folder to write the adapted network to, or the parameters of customers. Default: nothing is
    written."""
    shard: str = "1/1"
    """Part of a file of customers to write, as in `2/8`; all shards may run at once."""
    batch: int = 256
    """Customers per pass, and per file that is written."""
    app: str | None = None
    """Your own application that made the run, as `module:Class`."""
    trust: bool = False
    """Import code that the run's options name as `module:Class`."""


def adapt(words: list[str]) -> int:
    """Adapt a run's method to a task of your own; answer inputs, write the network."""
    command = _parse(AdaptCommand, words, "adapt")

    app = _app_of(words, "adapt")
    need_extra(app)
    from weightloom.apps.experiment import load
    from weightloom.runs.table import print_rows

    many = app.is_customers(command.support)
    _check_adapt(command, many)
    loaded = load(app, command.run, only=True, trust=command.trust)
    if many:
        model = (loaded.model, loaded.problem, loaded.config, command.support)
        done = app.adapt_many(*model, command.out, _shard_of(command.shard), command.batch)
        print(f"{done.customers:,} customers: {done.files} files written, {done.found} were there")
        print(
            f"complete: {command.out}"
            if done.is_complete
            else "files of other shards are missing; the last shard to end completes the folder"
        )
        return 0
    adapted = app.adapt(loaded.model, loaded.problem, loaded.config, command.support)
    print(adapted.about)
    if command.predict:
        print_rows(adapted.predict_rows(command.predict))
    if command.out:
        adapted.save(command.out)
        print(f"written: {command.out}")
    return 0


def _check_adapt(command: AdaptCommand, many: bool) -> None:
    """Raise a `ConfigError` for options that do not go with one task, or with many customers."""
    if many and (command.out is None or command.predict):
        odd = "no `--out`" if command.out is None else "`--predict`"
        raise ConfigError(
            f"`{command.support}` lists customers, and {odd} was typed. Their parameters are "
            "written to a folder, which `weightloom.serving.Server` loads and answers with. Type "
            "`--out adapters/`, without `--predict`."
        )
    if not many and command.shard != "1/1":
        raise ConfigError(
            f"`--shard {command.shard}` with `{command.support}`, which is one task. Shards divide "
            'a .jsonl file of customers, each line `{"name": …, "examples": […]}`. Pass such a '
            "file, or leave `--shard` out."
        )


def _shard_of(typed: str) -> tuple[int, int]:
    """Parse ``i/n``."""
    first, _, last = typed.partition("/")
    if not (first.isdecimal() and last.isdecimal()):
        raise ConfigError(
            f"`--shard {typed}`. It is the number of a shard, a slash, and that of all shards. "
            "Type `--shard 1/2` and, in another job, `--shard 2/2`."
        )
    return int(first), int(last)


def export(words: list[str]) -> int:
    """Write one task's plain network, or the whole method as one program."""
    app = _app_of(words, "export")
    about = (
        "Write a plain network for one task: parameters, a description, and a program for "
        "torch.export.load. With --whole: encoder, hypernetwork and base as one program for "
        "torch.export and ONNX."
    )
    left = [name for name in app.judged_by if not name.startswith("test_")]
    more = {"task": str, "whole": bool, "out": Path, "app": str, "trust": bool}
    command = _parse(_with_changes(app, about, left, **more), words, "export")
    if command.whole == (command.task is not None):
        raise ConfigError(
            "`weightloom export` was given neither `--task` nor `--whole`, or both. It writes the "
            "network of one task, or the program that makes them. Type `--task 0` or `--whole`."
        )
    need_extra(app)
    from weightloom.apps.experiment import load

    changes = _changes(app, command)
    _check_one_each(changes)
    loaded = load(app, command.run, changes, only=True, trust=command.trust)
    folder = command.out or command.run / "export" / (
        "whole" if command.whole else Path(command.task).stem
    )
    if command.whole:
        facts = app.export_whole(loaded.model, loaded.problem, loaded.config, folder)
    else:
        facts = app.export(loaded.model, loaded.problem, loaded.config, command.task, folder)
    print(f"{facts['task']}: {', '.join(facts['files'])} in {folder}")
    found = facts["largest_difference"]
    worst = max(found.values()) if isinstance(found, dict) else found
    print(f"loaded again without weightloom: equal to the run within {worst:.0e}")
    return 0


def _check_one_each(changes: dict[str, Any]) -> None:
    """Raise a `ConfigError` if an option of an export has several values."""
    for name, values in changes.items():
        if isinstance(values, list) and len(values) > 1:
            raise ConfigError(
                f"`--{name} {' '.join(map(str, values))}` with `weightloom export`, which writes "
                f"one network for one kind of task. Pass one, as in `--{name} {values[0]}`."
            )


def show_list(words: list[str]) -> int:
    """List data sets, environments, methods and rooms; `weightloom list NAME` tells more."""
    from weightloom.apps.doctor import print_list, print_table_of

    if words and words[0][0] != "-":
        _no_options(words[1:], f"list {words[0]}")
        print_table_of(words[0])
        return 0
    _no_options(words, "list")
    print_list()
    return 0


def doctor(words: list[str]) -> int:
    """Show versions, threads, devices and data; the first thing to read after an error."""
    _no_options(words, "doctor")

    from weightloom.apps.doctor import print_doctor

    print_doctor()
    return 0


BY_NAME: dict[str, Callable[[list[str]], int]] = {
    "eval": evaluate,
    "report": report,
    "adapt": adapt,
    "export": export,
    "list": show_list,
    "doctor": doctor,
}


def _parse(kind: Any, words: list[str], name: str, default: Any = None) -> Any:
    """Parse flags into a dataclass; tyro prints help and mistakes, and leaves with 0 or 2."""
    if _asks_help(words):
        options = list(options_of(kind, default))
        places = "".join(f" {option.words}" for option in options if option.words[0] != "-")
        usage = f"weightloom {name}{places} [OPTIONS]"
        print(option_help(kind.__doc__, usage, options, {}, _columns()))
        raise SystemExit(0)
    return _parsed(kind, words, name, default)


def _parsed(kind: Any, words: list[str], name: str, default: Any, loud: bool = True) -> Any:
    """Let tyro parse flags; it prints mistakes if ``loud``, and leaves with 2."""
    given = {} if default is None else {"default": default}
    return tyro.cli(
        kind,
        args=words,
        prog=f"weightloom {name}",
        config=(OmitArgPrefixes, FlagCreatePairsOff),
        console_outputs=loud,
        **given,
    )


def _asks_help(words: list[str]) -> bool:
    return "-h" in words or "--help" in words


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, WIDEST)


def _print_run_help(app: AnyApp, kind: Any, words: list[str], typed: str, default: Any) -> int:
    """Print the options of an application, with the defaults that go with the other words."""
    others = [word for word in words if word not in ("-h", "--help")]
    with suppress(SystemExit):
        default = _parsed(kind, others, typed, default, loud=False)
    try:
        resolved = default.options.resolved()
    except ConfigError:
        resolved = None
    of_run = [option for option in options_of(RunCommand, default) if option.name != "options"]
    of_app = options_of(type(default.options), default.options, resolved)
    text = option_help(
        f"{app.about} Defaults are those that go with the options typed before `--help`.",
        f"weightloom {typed} [OPTIONS]",
        [*of_run, *of_app],
        {
            "Run": ("run", "resume", "config", "log", "quiet", "trust"),
            **_groups(type(default.options)),
            "Several runs": ("seeds", "folds", "sweep"),
        },
        _columns(),
    )
    print(text)
    return 0


def _groups(kind: type[RunOptions]) -> dict[str, list[str]]:
    """Join the headings of a config with those of the classes that it inherits from."""
    joined: dict[str, list[str]] = {}
    for owner in kind.__mro__:
        for title, names in vars(owner).get("groups", {}).items():
            joined.setdefault(title, []).extend(names)
    return joined


def _print_scores(app: AnyApp, scores: list[Any]) -> None:
    from weightloom.runs.table import print_table

    print_table(scores, app.unseen, app.columns)


def _app_of(words: list[str], command: str) -> AnyApp:
    """Return the application of the run that is among the words; with `--help` alone, `fewshot`."""
    from weightloom.runs.folder import read_run_file

    named = _value_of("--app", words)
    folder = None if _asks_help(words[:1]) else _run_of(words, named)
    if folder is None:
        return find_app(named or "fewshot")
    about = read_run_file(Path(folder))
    if command != "report" and any((about.seeds, about.folds, about.sweep)):
        raise _several_runs(folder, command)
    if named is None and about.app not in app_names():
        raise ConfigError(
            f"`{folder}` is a run of `{about.app}`, an application that is not installed here. "
            f"What a folder names is not imported by itself. Type where it is, as in `weightloom "
            f"{command} {folder} --app my_package:MyApp`."
        )
    app = find_app(named or about.app)
    if app.name == about.app:
        return app
    raise ConfigError(
        f"`{folder}` is a run of `{about.app}`, and `--app {named}` is `{app.name}`. Each reads "
        "its own runs. Pass `--app` of the application that made it."
    )


def _run_of(words: list[str], named: str | None) -> str | None:
    """Return the word that is a run's folder, else the first that is no flag."""
    from weightloom.runs.folder import RUN

    folders = [word for word in words if not word.startswith("-") and word != named]
    runs = (word for word in folders if (Path(word) / RUN).is_file())
    return next(runs, folders[0] if folders else None)


def _several_runs(folder: str, command: str) -> ConfigError:
    from weightloom.runs.folder import RUN

    inside = sorted(path.parent.as_posix() for path in Path(folder).glob(f"*/{RUN}"))
    which = f"Pass a folder in it, as in `{inside[0]}`." if inside else "None of them has begun."
    return ConfigError(f"`{folder}` holds several runs. `weightloom {command}` takes one. {which}")


def _with_changes(made_by: AnyApp, about: str, judged_by: Sequence[str], **more: type) -> type[Any]:
    """Build the dataclass of a command on a run: folder, own options, options that may change."""
    hints = get_type_hints(made_by.config)
    own = {
        "record": "Write the scores to this file, as JSON.",
        "task": "Number of a task that the run was judged on.",
        "whole": "Write the whole method, from support set to answer, as one program.",
        "out": "Folder to write. Default: RUN/export/TASK.",
        "app": "Your own application that made the run, as `module:Class`.",
        "trust": "Import code that the run's options name as `module:Class`.",
    }
    columns: list[Any] = [("run", Annotated[Positional[Path], arg(help="The run's folder.")])]
    for name, kind in more.items():
        wanted, default = (bool, False) if kind is bool else (kind | None, None)
        columns.append((name, Annotated[wanted, arg(help=own[name])], field(default=default)))
    documented = field_texts(made_by.config)
    for name in judged_by:
        kind = hints[name]
        text = without_rule(documented.get(name, ""))
        wanted, default, usual = (
            (bool, False, "") if kind is bool else (kind | None, None, " Default: as trained.")
        )
        columns.append((name, Annotated[wanted, arg(help=text + usual)], field(default=default)))
    made = make_dataclass("RunChanges", columns, frozen=True)
    made.__doc__ = about
    return made


def _changes(app: AnyApp, command: Any) -> dict[str, Any]:
    values = {name: getattr(command, name) for name in app.judged_by if hasattr(command, name)}
    typed = {name: its for name, its in values.items() if its is not None and its is not False}
    return {name: list(its) if isinstance(its, tuple) else its for name, its in typed.items()}


def _options_of(app: AnyApp, words: list[str]) -> tuple[RunOptions, dict[str, Any]]:
    """Return the options that flags change: those of a file, of the resumed run, or defaults."""
    if folder := _value_of("--resume", words):
        from weightloom.runs.folder import SEVERAL, read_config, read_run_file

        about = read_run_file(Path(folder))
        return read_config(Path(folder), app.config, app.name), {
            name: getattr(about, name) for name in SEVERAL
        }
    file = _value_of("--config", words)
    return (app.config.from_dict(_read_options(Path(file))) if file else app.config()), {}


def _no_options(words: list[str], name: str) -> None:
    if words and words[0] in ("-h", "--help"):
        print(f"usage: weightloom {name}\n\n{BY_NAME[name.split()[0]].__doc__}")
        raise SystemExit(0)
    if words:
        raise ConfigError(
            f"`weightloom {name}` takes no options, but `{words[0]}` was typed. Type it alone."
        )


def _value_of(flag: str, words: list[str]) -> str | None:
    """Return the value of a flag that decides on the defaults of all others, or None."""
    found = None
    for number, word in enumerate(words):  # the last one counts, as the parser has it
        if word == flag and number + 1 < len(words):
            found = words[number + 1]
        elif word.startswith(f"{flag}="):
            found = word.removeprefix(f"{flag}=")
    return found


def _read_options(path: Path) -> dict[str, Any]:
    from weightloom.texts import TextError, parse_json, parse_yaml, read_text

    try:
        text = read_text(path)
        options = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except TextError as error:
        raise ConfigError(
            f"`--config {path}` cannot be read ({error}). It is a YAML or JSON file with one "
            "option a line, as in `ways: 5`. A run's `config.json` is one."
        ) from error
    if not isinstance(options, dict):
        raise ConfigError(
            f"`--config {path}` holds no options. It needs one a line, as in `ways: 5`. Add some."
        )
    return options


def _free_folder(label: str) -> Path:
    number = 1
    while os.path.lexists(folder := Path("runs") / f"{label}-{number:03d}"):
        number += 1
    return folder
