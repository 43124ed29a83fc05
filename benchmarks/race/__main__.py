"""Command ``python -m benchmarks.race``: parse the flags of one race and run it."""

import shlex
import sys
from collections.abc import Sequence
from typing import TypeVar

import tyro
from tyro.conf import OmitArgPrefixes

from benchmarks.race.config import CoreConfig, PeersConfig
from weightloom.errors import ConfigError, WeightloomError, nearest

Config = TypeVar("Config", CoreConfig, PeersConfig)

COMMAND = ("python", "-m", "benchmarks.race")
RACES = {
    "core": "against plain torch: plain bases, built weights, loops, products by hand",
    "peers": "against other hypernetwork libraries, and peft, in a separate environment",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one race, or print the overview.

    Args:
        arguments: Words after the command. Default: those of the command line.

    Raises:
        SystemExit: With code 2 after an error of this library, which is printed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return
    try:
        _race(words)
    except WeightloomError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _overview() -> str:
    lines = "\n".join(f"  {name:<6} {about}" for name, about in RACES.items())
    return (
        "Step times of weightloom against other ways to run the same step.\n\n"
        f"usage: {' '.join(COMMAND)} RACE [OPTIONS]\n\nraces:\n{lines}\n\n"
        f"`{' '.join(COMMAND)} RACE --help` shows the options of each."
    )


def _race(words: list[str]) -> None:
    typed = shlex.join([*COMMAND, *words])
    if words[0] == "core":
        core = _parse(CoreConfig, words)

        from benchmarks.race.core import run_core

        run_core(core, command=typed)
    elif words[0] == "peers":
        peers = _parse(PeersConfig, words)

        from benchmarks.race.peers import run_peers

        run_peers(peers, command=typed)
    else:
        raise ConfigError(
            f"`{words[0]}` is not a race. {nearest(words[0], RACES)} "
            f"Type `{' '.join(COMMAND)} --help` for a list."
        )


def _parse(kind: type[Config], words: list[str]) -> Config:
    """Parse flags into a dataclass; tyro prints help (exit code 0) and mistakes (2)."""
    prog = " ".join([*COMMAND, words[0]])
    return tyro.cli(kind, args=words[1:], prog=prog, config=(OmitArgPrefixes,))


if __name__ == "__main__":
    main()
