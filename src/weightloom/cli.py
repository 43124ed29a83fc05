"""The ``weightloom`` command: its list of commands and applications, and its exit codes.

Knows every application by name, none of their insides. Neither torch nor the parser of flags is
imported here, so that help is printed at once.
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
    "export": "Write one task's plain network, or the whole method as one program.",
    "list": "List data sets, environments, methods and rooms; `weightloom list NAME` tells more.",
    "doctor": "Show versions, threads, devices and data; the first thing to read after an error.",
}
"""Commands that are no applications, with their descriptions."""
NARROWEST, WIDEST = 40, 500
"""Columns of a terminal, at least and at most. Lines of one letter take minutes to lay out, lines
of a million letters all memory."""

OUTSIDE = (OSError, ValueError, MemoryError, RecursionError)
"""Errors that bad input or a full machine can cause; all others are faults of this library."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code.

    0, 2 for bad input, 1 for a fault of ours, 128 + a signal.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _fit_terminal()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names that are no UTF-8, terminals of ASCII alone
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        code = _code_of(error, words)
    _drop_output()
    if code:
        raise SystemExit(code)


def _code_of(error: BaseException, words: list[str]) -> int:
    """Print an error in a sentence and return the exit code; a wanted exit is raised again."""
    match error:
        case WeightloomError():
            return _say(f"error: {error}", 2)
        case BrokenPipeError():  # the reader of our output has closed it
            return 0
        case SystemExit():
            if not isinstance(error.__context__, BrokenPipeError):  # that of rich's tables
                raise error
            return 0
        case KeyboardInterrupt():
            return _say("interrupted", 130)
        case Exception():
            return _say(_unexpected(error, words), 2 if isinstance(error, OUTSIDE) else 1)
    raise error


def _run(words: list[str]) -> int:
    """Run a command, or print the list of them."""
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"weightloom {version('weightloom')}")
        return 0
    return _command(words[0])(words[1:])


def _say(text: str, code: int) -> int:
    """Print the reason of an exit to stderr, if it is open; return the exit code."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    return code


def _drop_output() -> None:
    """Drop output that cannot be written, which would raise once more at the interpreter's exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _unexpected(error: Exception, words: list[str]) -> str:
    """Write the traceback of an unforeseen error to a file, and return a sentence that names it.

    The file is put into the run's folder if a word names one, else into the system's temporary one.
    """
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
        f"error: {type(error).__name__}{f': {said}' if said else ''}. This was not foreseen. "
        f"{more}; with a report of it goes its traceback: {where}."
    )


def _fit_terminal() -> None:
    """Set the width for help and tables within readable bounds."""
    columns = shutil.get_terminal_size().columns
    fitting = min(max(columns, NARROWEST), WIDEST)
    if columns != fitting or not os.environ.get("COLUMNS", "80").isdecimal():
        os.environ["COLUMNS"] = str(fitting)


def _command(name: str) -> Callable[[list[str]], int]:
    """Return the function of a command or an application, by the first word."""
    if name in COMMANDS:
        from weightloom import commands

        return commands.BY_NAME[name]
    if ":" in name or name in app_names():
        from weightloom.commands import run_app

        return lambda words: run_app(find_app(name), words, name)
    raise ConfigError(
        f"`{name}` is not a command. {nearest(name, [*app_names(), *COMMANDS])} "
        "Type `weightloom --help` for their descriptions."
    )


def _overview() -> str:
    apps = [(name, find_app(name).about) for name in app_names()]
    return (
        "weightloom: networks that generate the parameters of other networks\n\n"
        "usage: weightloom COMMAND [OPTIONS]\n\napplications:\n"
        + "\n".join(f"  {name:<9} {about}" for name, about in apps)
        + "\n\ncommands:\n"
        + "\n".join(f"  {name:<9} {about}" for name, about in COMMANDS.items())
        + "\n\nStart with `weightloom fewshot`. `weightloom COMMAND --help` shows its options."
    )
