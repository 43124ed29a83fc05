"""The ``weightloom`` command: a list of commands and applications, and what an error becomes.

Knows every application by name and nothing of their insides. Neither torch nor the parser of flags
is imported here, so that help comes at once.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

from weightloom.apps.registry import app_names, find_app
from weightloom.errors import ConfigError, WeightloomError, nearest
from weightloom.texts import kind_of

COMMANDS = {
    "eval": "Judge the methods of a run again, with other options.",
    "report": "Write report.html of a run anew.",
    "adapt": "Adapt a run's method to a task of your own; answer inputs, write the network.",
    "export": "Write a plain network for one task of a run, or everything from support set to answer as one program.",
    "list": "List data sets, environments, methods and rooms; `weightloom list NAME` says more of each.",
    "doctor": "Show versions, threads, devices and data: where to look first when something is odd.",
}
"""Commands beside the applications, and what each does."""
NARROWEST, WIDEST = 40, 500
"""Letters of a line. Help of lines of one letter takes minutes, and of a million letters all
memory."""

OUTSIDE = (OSError, ValueError, MemoryError, RecursionError)
"""Errors that what comes from outside leads to; all others are of this library's making."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code.

    0, 2 for bad input, 1 for a fault of ours, 128 + a signal.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _fit_terminal()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, TextIOWrapper
        ):  # names that are not UTF-8, terminals that know ASCII alone
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except WeightloomError as error:
        code = _say(f"error: {error}", 2)
    except BrokenPipeError:  # whoever read our output has seen enough
        code = 0
    except SystemExit as left:
        if not isinstance(left.__context__, BrokenPipeError):  # that of rich's tables
            raise
        code = 0
    except KeyboardInterrupt:
        code = _say("interrupted", 130)
    except Exception as error:
        code = _say(_unexpected(error, words), 2 if isinstance(error, OUTSIDE) else 1)
    _let_go()
    if code:
        raise SystemExit(code)


def _run(words: list[str]) -> int:
    """Run a command, or show what there is."""
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"weightloom {version('weightloom')}")
        return 0
    return _command(words[0])(words[1:])


def _say(text: str, code: int) -> int:
    """Say on stderr, if anybody can hear it, what ended the command; return its exit code."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    return code


def _let_go() -> None:
    """Drop output that nobody reads, or that a full disk does not take.

    It would end the command once more.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _unexpected(error: Exception, words: list[str]) -> str:
    """Keep the traceback of an error that nothing foresaw, in the run's folder or else the system's; say where."""
    import tempfile
    import traceback

    said = " ".join(str(error).split())[:300]
    memory = isinstance(error, MemoryError) or "allocate memory" in said  # as torch says it
    named = (Path(word.rpartition("=")[2]) for word in words)
    folder = next((path for path in named if kind_of(path / "run.json") == "file"), None)
    text = "".join(traceback.format_exception(error)).encode(errors="backslashreplace")
    where = "there was no room for it"
    places = [str(folder), tempfile.gettempdir()] if folder else [tempfile.gettempdir()]
    for place in places:
        with suppress(OSError):
            handle, path = tempfile.mkstemp(".txt", "traceback-", place)
            with os.fdopen(handle, "wb") as file:
                file.write(text)
            where = f"it is in `{path}`"
            break
    more = "Free some memory, or ask for less" if memory else "Check the files and options"
    return (
        f"error: {type(error).__name__}{f': {said}' if said else ''}. Nothing foresaw this. "
        f"{more}; with a report of it goes its traceback: {where}."
    )


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
