"""The ``weightloom`` command: flags become a config, a config becomes a run.

Knows every app and nothing of their insides. Torch is imported only by the commands that need it.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from weightloom.apps.bench.config import CoreConfig, PeersConfig
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.rl.config import RLConfig
from weightloom.errors import ConfigError, MissingExtraError, WeightloomError, nearest

Command = TypeVar("Command")
RunOptions = TypeVar("RunOptions", FewShotConfig, RLConfig)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code: 0, or 2 for bad input, or 128 + the signal that ended it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"weightloom {version('weightloom')}")
        return
    try:
        if words[0] not in COMMANDS:
            raise ConfigError(
                f"`{words[0]}` is not a command. {nearest(words[0], COMMANDS)} "
                "Type `weightloom --help` for what each does."
            )
        code = COMMANDS[words[0]](words[1:])
    except WeightloomError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stderr.close()
        code = 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    if code:
        raise SystemExit(code)


def _overview() -> str:
    lines = [f"  {name:<9} {(run.__doc__ or '').splitlines()[0]}" for name, run in COMMANDS.items()]
    return (
        "weightloom: networks that generate the parameters of other networks\n\n"
        "usage: weightloom COMMAND [OPTIONS]\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\nStart with `weightloom fewshot`. `weightloom COMMAND --help` shows the options of each."
    )


@dataclass(frozen=True)
class FewShotCommand:
    """Meta-train on some classes, meet classes never seen, and show how well it went."""

    options: FewShotConfig
    """What to run."""
    run: Path | None = None
    """Folder to write; it must not exist. None: the next free one of runs/DATA-001, runs/DATA-002, …"""
    resume: Path | None = None
    """Go on with an unfinished run in this folder."""
    config: Path | None = None
    """A YAML or JSON file of options; flags typed beside it win."""
    quiet: bool = False
    """Show no progress."""


def fewshot(words: list[str]) -> int:
    """Learn to learn from a few examples; table, checkpoints and report.html in a run folder."""
    command = _parse(FewShotCommand, words, "fewshot", FewShotCommand(_options_of(FewShotConfig, words)))

    from weightloom.apps.fewshot.run import run_fewshot
    from weightloom.apps.fewshot.table import print_table

    run = command.resume or command.run or _free_folder(Path(command.options.data).stem)
    typed = shlex.join(["weightloom", "fewshot", *words])
    outcome = run_fewshot(command.options, run, command=typed, resume=command.resume is not None, quiet=command.quiet)
    if outcome is None:
        return 0
    return _told(outcome, run, "fewshot", print_table)


@dataclass(frozen=True)
class RLCommand:
    """Let agents learn in a family of environments, judge them in contexts never met, and show how well they act."""

    options: RLConfig
    """What to run."""
    run: Path | None = None
    """Folder to write; it must not exist. None: the next free one of runs/ENV-001, runs/ENV-002, …"""
    resume: Path | None = None
    """Go on with an unfinished run in this folder."""
    config: Path | None = None
    """A YAML or JSON file of options; flags typed beside it win."""
    quiet: bool = False
    """Show no progress."""


def rl(words: list[str]) -> int:
    """Reinforcement learning in families of environments: policy and value function, generated."""
    command = _parse(RLCommand, words, "rl", RLCommand(_options_of(RLConfig, words)))

    _need_extra("rl", "gymnasium", "mujoco", "stable_baselines3", "sb3_contrib")
    from weightloom.apps.rl.run import run_rl
    from weightloom.apps.rl.table import print_table

    run = command.resume or command.run or _free_folder(command.options.env.split(":")[-1].replace("/", "-"))
    typed = shlex.join(["weightloom", "rl", *words])
    outcome = run_rl(command.options, run, command=typed, resume=command.resume is not None, quiet=command.quiet)
    return _told(outcome, run, "rl", print_table)


@dataclass(frozen=True)
class EvalCommand:
    """Judge a finished run again, on other tasks if you like."""

    run: Positional[Path]
    """The run's folder."""
    ways: tuple[int, ...] | None = None
    """Classes per task. None: as trained."""
    shots: tuple[int, ...] | None = None
    """Support points per class. None: as trained."""
    uneven_shots: bool = False
    """Give classes unequal shots, from 1 to each of `--shots`."""
    queries: int | None = None
    """Query points per class. None: as trained."""
    test_tasks: int | None = None
    """How many tasks. None: as trained."""
    record: Path | None = None
    """Write the scores to this file, as JSON."""


def evaluate(words: list[str]) -> int:
    """Judge the methods of a run again, with other ways, shots or tasks."""
    command = _parse(EvalCommand, words, "eval")

    from weightloom.apps.fewshot.run import load_run, score_all
    from weightloom.apps.fewshot.table import print_table
    from weightloom.runs.record import environment, write_record

    wanted = {name: getattr(command, name) for name in ("ways", "shots", "queries", "test_tasks")}
    wanted["uneven_shots"] = command.uneven_shots or None
    changes = {k: list(v) if isinstance(v, tuple) else v for k, v in wanted.items() if v is not None}
    config, problem, learners = load_run(command.run, changes)
    scores = score_all(learners, problem, config)
    print_table(scores)
    if command.record:
        typed = shlex.join(["weightloom", "eval", *words])
        facts = {"command": typed, "config": config.to_dict(), "scores": scores, "cost": environment()}
        write_record(command.record, facts)
    return 0


@dataclass(frozen=True)
class ReportCommand:
    """Write report.html of a run anew from what its folder holds."""

    run: Positional[Path]
    """The run's folder."""


def report(words: list[str]) -> int:
    """Write report.html of a run anew."""
    command = _parse(ReportCommand, words, "report")

    from weightloom.apps.fewshot import figures as of_fewshot
    from weightloom.apps.rl import figures as of_rl
    from weightloom.report import build_report

    print(build_report(command.run, lambda run: (of_rl if "env" in run.config else of_fewshot).sections(run)))
    return 0


@dataclass(frozen=True)
class ExportCommand:
    """Write a plain network for one task: parameters, a description, and a program for torch.export.load."""

    run: Positional[Path]
    """The run's folder."""
    task: str
    """The number of a meta-test task, or a .npz file with `support_x` and `support_y`."""
    out: Path | None = None
    """Folder to write. None: RUN/export/TASK."""
    shots: int | None = None
    """Support points per class of a meta-test task. None: the first of the run."""


def export(words: list[str]) -> int:
    """Write a plain network for one task, with nothing of weightloom inside."""
    command = _parse(ExportCommand, words, "export")

    from weightloom.apps.fewshot.export import export_network

    folder = command.out or command.run / "export" / Path(command.task).stem
    facts = export_network(command.run, command.task, folder, command.shots)
    print(f"{facts['task']}: {folder}/network.safetensors, network.json, network.pt2")
    print(f"loaded again by torch alone: equal to the run within {facts['largest_difference']:.0e}")
    return 0


def bench(words: list[str]) -> int:
    """Time a step: `bench core` against the plain ways to do it, `bench peers` against other libraries."""
    kinds = {"core": "the library against the plain ways to do the same", "peers": "against other libraries"}
    if not words or words[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:<6} {what}" for name, what in kinds.items())
        print(f"usage: weightloom bench {{core,peers}} [OPTIONS]\n\n{bench.__doc__}\n\n{lines}")
        raise SystemExit(0 if words else 2)
    typed = shlex.join(["weightloom", "bench", *words])
    if words[0] == "core":
        core = _parse(CoreConfig, words[1:], "bench core")

        from weightloom.apps.bench.core import run_core

        run_core(core, command=typed)
    elif words[0] == "peers":
        peers = _parse(PeersConfig, words[1:], "bench peers")

        from weightloom.apps.bench.peers import run_peers

        run_peers(peers, command=typed)
    else:
        raise ConfigError(
            f"`weightloom bench {words[0]}` is unknown. It times one of two things. {nearest(words[0], kinds)}"
        )
    return 0


def show_list(words: list[str]) -> int:
    """Show the data sets, and whether they are at hand; the methods; the rooms to build from."""
    _no_options(words, "list")

    from weightloom.apps.doctor import print_list

    print_list()
    return 0


def doctor(words: list[str]) -> int:
    """Show versions, threads, devices and data: what to look at first when something is odd."""
    _no_options(words, "doctor")

    from weightloom.apps.doctor import print_doctor

    print_doctor()
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "fewshot": fewshot,
    "rl": rl,
    "eval": evaluate,
    "report": report,
    "export": export,
    "bench": bench,
    "list": show_list,
    "doctor": doctor,
}


def _parse(kind: type[Command], words: list[str], name: str, default: Command | None = None) -> Command:
    """Parse flags into a dataclass; tyro prints help and mistakes, and leaves with 0 or 2."""
    prog, config = f"weightloom {name}", (OmitArgPrefixes,)
    if default is None:
        return tyro.cli(kind, args=words, prog=prog, config=config)
    return tyro.cli(kind, args=words, prog=prog, config=config, default=default)


def _need_extra(extra: str, *modules: str) -> None:
    """Raise unless what an extra installs is there."""
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"`{missing[0]}` is not installed. `weightloom {extra}` needs it, and an installation without extras "
            f'leaves it out. Type `pip install "weightloom[{extra}]"`.'
        )


def _options_of(kind: type[RunOptions], words: list[str]) -> RunOptions:
    """Return what typed flags change: the options of a file, of the run that is to go on, or the usual ones."""
    if folder := _value_of("--resume", words):
        from weightloom.runs.folder import read_config

        return read_config(Path(folder), kind)
    file = _value_of("--config", words)
    return kind.from_dict(_read_options(Path(file))) if file else kind()


def _told(outcome: Any, run: Path, name: str, print_table: Callable[[list[dict[str, Any]]], None]) -> int:
    """Say how a run ended, by its record or by the signal that stopped it; return the exit code."""
    if not isinstance(outcome, dict):
        print(f"stopped by {outcome.name}; type `weightloom {name} --resume {run}` to go on", file=sys.stderr)
        return 128 + int(outcome)
    print_table(outcome["scores"])
    if "many" in outcome:
        from weightloom.apps.fewshot.many import in_words

        print(in_words(outcome["many"]))
    print(f"report: {run / 'report.html'}")
    return 0


def _no_options(words: list[str], name: str) -> None:
    if words and words[0] in ("-h", "--help"):
        print(f"usage: weightloom {name}\n\n{COMMANDS[name].__doc__}")
        raise SystemExit(0)
    if words:
        raise ConfigError(f"`weightloom {name}` takes no options, but `{words[0]}` was typed. Type it alone.")


def _value_of(flag: str, words: list[str]) -> str | None:
    """Find a flag that decides on the defaults of all others."""
    for number, word in enumerate(words):
        if word == flag and number + 1 < len(words):
            return words[number + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def _read_options(path: Path) -> dict[str, Any]:
    import yaml

    try:
        options = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"`--config {path}` cannot be read ({error}). It is a YAML or JSON file with one option a line, as in "
            "`ways: 5`. A run's `config.json` is one."
        ) from error
    if not isinstance(options, dict):
        raise ConfigError(f"`--config {path}` holds no options. It needs one a line, as in `ways: 5`. Add some.")
    return options


def _free_folder(data: str) -> Path:
    number = 1
    while (folder := Path("runs") / f"{data}-{number:03d}").exists():
        number += 1
    return folder
