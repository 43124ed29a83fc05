"""Options of both races, with defaults and checks."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightloom.errors import ConfigError, nearest

PEERS = ("hypnettorch", "hyperlight", "hyper-nn", "torchhyper", "polyweave", "peft")
"""Libraries to race, by package name: hypernetworks in torch, and peft for adapters."""

ADAPTER_WORKLOADS = ("bert-8", "bert-16", "bert-64", "customers")
"""Workloads with a transformer and an adapter per row, which peft runs; the hypernetwork libraries
run the others."""

WORKLOADS = ("mlp", "cnn", *ADAPTER_WORKLOADS)

CONTESTS = ("forms", "built", "mlp", "kernels", "adapters", "actor", "choice", "scale")


@dataclass(frozen=True)
class CoreConfig:
    """Options of ``python -m benchmarks.race core``.

    Every field is also a command-line flag of the same name.
    """

    only: tuple[str, ...] = CONTESTS
    """Contests to run: forms, built, mlp, kernels, adapters, actor, choice, scale."""
    rounds: int = 20
    """Timed steps of each contender; contenders take turns."""
    warmup: int = 3
    """Untimed steps of each contender before the rounds."""
    threads: int = 1
    """CPU threads."""
    tasks: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    """Numbers of tasks of the contest `scale`."""
    record: Path | None = None
    """JSON file for all numbers, options and versions. Default: none is written."""

    def __post_init__(self) -> None:
        """Check names and counts.

        Raises:
            ConfigError: If a name is unknown, a count too small or a list empty.
        """
        for name in self.only:
            if name not in CONTESTS:
                raise ConfigError(
                    f"`--only {name}` is unknown. It takes one name or several of a fixed list. "
                    f"{nearest(name, CONTESTS)}"
                )
        for field, least in (("rounds", 1), ("warmup", 0), ("threads", 1)):
            if getattr(self, field) < least:
                raise ConfigError(
                    f"`--{field} {getattr(self, field)}` is too small. It is a count, of {least} "
                    f"or more here. Pass `--{field} {max(least, 1)}`, or leave it out."
                )
        if not self.only or not self.tasks or min(self.tasks) < 1:
            raise ConfigError(
                f"`--only {' '.join(self.only)} --tasks {' '.join(map(str, self.tasks))}` leaves "
                "nothing to time. Both take one value or several, and a number of tasks is at "
                "least 1. Leave them out for the defaults."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}


@dataclass(frozen=True)
class PeersConfig:
    """Options of ``python -m benchmarks.race peers``.

    Every field is also a command-line flag of the same name.
    """

    workloads: tuple[str, ...] = WORKLOADS
    """Workloads: mlp (1-64-64-1 on 16 points), cnn (3,818 parameters on 8 images of 1x16x16),
    bert-8, bert-16 and bert-64 (6 layers, 384 wide, an adapter per row of 8, 16 or 64 tokens),
    customers (MiniLM, an adapter per row of 16 tokens)."""
    peers: tuple[str, ...] = PEERS
    """Libraries to race: hypnettorch, hyperlight, hyper-nn, torchhyper, polyweave; peft on
    adapters."""
    env: Path | None = None
    """Folder of the peers' Python environment. Default: weightloom/peers in your cache."""
    install: bool = True
    """Install missing peers: a minute and 50 MB, once. Otherwise race the installed ones."""
    tasks: int = 32
    """Tasks per step; rows of the bert workloads."""
    customers: int = 1_000
    """Rows of the workload `customers`, each with another adapter."""
    rounds: int = 20
    """Timed steps of each contender, in turn with ours; a fifth of it for `customers`, whose steps
    take seconds."""
    repeats: int = 3
    """Repeats of all rounds; the ratio is the median of the repeats."""
    warmup: int = 3
    """Untimed steps of each contender before the rounds of every repeat."""
    threads: int = 1
    """CPU threads."""
    record: Path | None = None
    """JSON file for all numbers, options and versions. Default: none is written."""

    def __post_init__(self) -> None:
        """Check names and counts.

        Raises:
            ConfigError: If a name is unknown, a count too small or the list of workloads empty.
        """
        for field, known in (("workloads", WORKLOADS), ("peers", PEERS)):
            for name in getattr(self, field):
                if name not in known:
                    raise ConfigError(
                        f"`--{field} {name}` is unknown. It takes one name or several of a fixed "
                        f"list. {nearest(name, known)}"
                    )
        if not self.workloads:
            raise ConfigError(
                "`--workloads` is empty. A race needs at least one. Type `--workloads mlp cnn`."
            )
        for field, least in (
            ("tasks", 2),
            ("customers", 2),
            ("rounds", 1),
            ("repeats", 1),
            ("warmup", 0),
            ("threads", 1),
        ):
            if getattr(self, field) < least:
                raise ConfigError(
                    f"`--{field} {getattr(self, field)}` is too small. It is a count, of {least} "
                    f"or more here. Pass `--{field} {max(least, 1)}`, or leave it out."
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}


def peers_for(workload: str, peers: Iterable[str]) -> list[str]:
    """Return the peers that can run a workload; only peft runs, and runs only, those with adapters.

    Example:
        >>> peers_for("bert-8", PEERS), peers_for("mlp", ["hyperlight", "peft"])
        (['peft'], ['hyperlight'])
    """
    return [peer for peer in peers if (peer == "peft") == (workload in ADAPTER_WORKLOADS)]
