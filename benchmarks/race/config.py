"""What one benchmark run is: every option once, with its default and its check."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightloom.errors import ConfigError, nearest

PEERS = ("hypnettorch", "hyperlight", "hyper-nn", "torchhyper", "polyweave", "peft")
"""Libraries for hypernetworks in torch, and one for adapters, as the package index names them."""

ADAPTER_WORKLOADS = ("bert-8", "bert-16", "bert-64", "customers")
"""A transformer with an adapter for every row, which peft runs; the others are for
hypernetworks."""

WORKLOADS = ("mlp", "cnn", *ADAPTER_WORKLOADS)

CONTESTS = ("forms", "built", "mlp", "kernels", "adapters", "actor", "choice", "scale")


@dataclass(frozen=True)
class CoreConfig:
    """One run of the library's own benchmarks.

    Every field is also a command-line flag of the same name.
    """

    only: tuple[str, ...] = CONTESTS
    """What to time: forms, built, mlp, kernels, adapters, actor, choice, scale."""
    rounds: int = 20
    """Timed steps of each contender, in turn."""
    warmup: int = 3
    """Steps of each contender before the rounds."""
    threads: int = 1
    """CPU threads."""
    tasks: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    """Numbers of tasks to scale to."""
    record: Path | None = None
    """Write all numbers, and what they depend on, to this file as JSON."""

    def __post_init__(self) -> None:
        """Check what can be checked without torch."""
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
                "nothing to time. Both take one value or several, and there is no fewer than one "
                "task. Leave them out for the defaults."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}


@dataclass(frozen=True)
class PeersConfig:
    """One race against other hypernetwork libraries.

    Every field is also a command-line flag of the same name.
    """

    workloads: tuple[str, ...] = WORKLOADS
    """What to run: mlp (1-64-64-1 on 16 points), cnn (3,818 parameters on 8 images of 1x16x16),
    bert-8, bert-16 and bert-64 (6 layers, 384 wide, an adapter for every row of so many tokens),
    customers (MiniLM, 16 tokens)."""
    peers: tuple[str, ...] = PEERS
    """Whom to race: hypnettorch, hyperlight, hyper-nn, torchhyper, polyweave; on adapters peft."""
    env: Path | None = None
    """Folder of the Python environment the peers are installed in. None: weightloom/peers in your
    cache."""
    install: bool = True
    """Install the peers that are not there yet, a minute and 50 MB once. Without: race those that
    are."""
    tasks: int = 32
    """Tasks per step; rows of bert."""
    customers: int = 1_000
    """Rows of customers, each with an adapter of its own."""
    rounds: int = 20
    """Timed steps of each contender, in turn with ours; of customers, whose steps take seconds, a
    fifth."""
    repeats: int = 3
    """How often the rounds are repeated; the ratio is the median of the repeats."""
    warmup: int = 3
    """Steps of each contender before the rounds of every repeat."""
    threads: int = 1
    """CPU threads."""
    record: Path | None = None
    """Write all numbers, and what they depend on, to this file as JSON."""

    def __post_init__(self) -> None:
        """Check what can be checked without the peers."""
        for field, known in (("workloads", WORKLOADS), ("peers", PEERS)):
            for name in getattr(self, field):
                if name not in known:
                    raise ConfigError(
                        f"`--{field} {name}` is unknown. It takes one name or several of a fixed "
                        f"list. {nearest(name, known)}"
                    )
        if not self.workloads:
            raise ConfigError(
                "`--workloads` is empty. There is nothing to time. Type `--workloads mlp cnn`."
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
    """Return those of ``peers`` that can run ``workload``.

    Example:
        >>> peers_for("bert-8", PEERS), peers_for("mlp", ["hyperlight", "peft"])
        (['peft'], ['hyperlight'])
    """
    return [peer for peer in peers if (peer == "peft") == (workload in ADAPTER_WORKLOADS)]
