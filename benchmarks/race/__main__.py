"""The command ``python -m benchmarks.race``: flags become a config, a config becomes a race."""

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
    "core": "the library against the plain ways to do the same: factors, built weights, loops, products by hand",
    "peers": "against other libraries for hypernetworks, and peft on adapters, in an environment of their own",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one race and leave with its exit code: 0, or 2 for bad input."""
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
    lines = "\n".join(f"  {name:<6} {what}" for name, what in RACES.items())
    return (
        f"Time a step of weightloom, beside other ways to do the same.\n\n"
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
            f"Type `{' '.join(COMMAND)} --help` for what each times."
        )


def _parse(kind: type[Config], words: list[str]) -> Config:
    """Parse flags into a dataclass; tyro prints help and mistakes, and leaves with 0 or 2."""
    prog = " ".join([*COMMAND, words[0]])
    return tyro.cli(kind, args=words[1:], prog=prog, config=(OmitArgPrefixes,))


if __name__ == "__main__":
    main()
