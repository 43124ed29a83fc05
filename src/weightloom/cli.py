"""The ``weightloom`` command: a list of commands and applications, and what an error becomes.

Knows every application by name and nothing of their insides. Neither torch nor the parser of flags is imported here, so
that help comes at once.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence

from weightloom.apps.registry import app_names, find_app
from weightloom.errors import ConfigError, WeightloomError, nearest

COMMANDS = {
    "eval": "Judge the methods of a run again, with other options.",
    "report": "Write report.html of a run anew.",
    "adapt": "Adapt a run's method to a task of your own; answer inputs, write the network.",
    "export": "Write a plain network for one task of a run, or everything from support set to answer as one program.",
    "list": "Show the data sets, and whether they are at hand; the methods; the rooms to build from.",
    "doctor": "Show versions, threads, devices and data: where to look first when something is odd.",
}
"""Commands beside the applications, and what each does."""
NARROWEST, WIDEST = 40, 500
"""Letters of a line. Help of lines of one letter takes minutes, and of a million letters all memory."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code: 0, or 2 for bad input, or 128 + the signal that ended it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _fit_terminal()
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"weightloom {version('weightloom')}")
        return
    try:
        code = _command(words[0])(words[1:])
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


def _fit_terminal() -> None:
    """Have help and tables written as for a terminal that is neither narrower nor wider than can be read."""
    columns = shutil.get_terminal_size().columns
    fitting = min(max(columns, NARROWEST), WIDEST)
    if columns != fitting or not os.environ.get("COLUMNS", "80").isdecimal():
        os.environ["COLUMNS"] = str(fitting)


def _command(name: str) -> Callable[[list[str]], int]:
    """Return what a first word does: a command, or an application."""
    if name in COMMANDS:
        from weightloom import commands

        return commands.BY_NAME[name]
    if ":" in name or name in app_names():
        from weightloom.commands import run_app

        return lambda words: run_app(find_app(name), words, name)
    raise ConfigError(
        f"`{name}` is not a command. {nearest(name, [*app_names(), *COMMANDS])} "
        "Type `weightloom --help` for what each does."
    )


def _overview() -> str:
    apps = [(name, find_app(name).about) for name in app_names()]
    return (
        "weightloom: networks that generate the parameters of other networks\n\n"
        "usage: weightloom COMMAND [OPTIONS]\n\napplications:\n"
        + "\n".join(f"  {name:<9} {about}" for name, about in apps)
        + "\n\ncommands:\n"
        + "\n".join(f"  {name:<9} {about}" for name, about in COMMANDS.items())
        + "\n\nStart with `weightloom fewshot`. `weightloom COMMAND --help` shows the options of each."
    )
