"""Engines chosen by the clock: every safe way to run a kind of call is timed once, and what was chosen is kept.

In:   ways to run a call.
Out:  the quickest, and a file that says which it was, so that a later run takes the same, bit for
      bit.
Knows nothing of how a call is run.
"""

import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from statistics import median

import torch
from typing_extensions import TypedDict

from weightloom.errors import ConfigError
from weightloom.files import write_atomically
from weightloom.texts import read_json

ROUNDS = 5
"""Timed runs of each way, in turn, after one that is not timed."""
MARGIN = 0.97
"""So much of the time of the way that was counted the quickest another one may take to be
preferred."""


class Chosen(TypedDict):
    """One kind of call in the file."""

    way: str
    """The way that was chosen."""
    ms: dict[str, float]
    """Milliseconds of each."""


class Tuning:
    """Ways that were timed, by the kind of call.

    Args:
        path: A JSON file that keeps them; what it holds is taken as it is, and not timed again.
            None keeps nothing.

    Raises:
        ConfigError: If the file is no such file.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.chosen: dict[str, Chosen] = {}
        """By kind of call: the ``way`` that was chosen, and milliseconds of each, ``ms``."""
        if self.path is not None and os.path.lexists(self.path):
            from pydantic import TypeAdapter

            try:
                self.chosen = TypeAdapter(dict[str, Chosen]).validate_python(
                    read_json(self.path), strict=True
                )
            except ValueError as error:  # `TextError` and pydantic's are
                raise ConfigError(
                    f"`{self.path}` holds no engines. It is written where engines are timed, as "
                    "JSON. Remove it, and they are timed anew."
                ) from error

    def way(self, kind: str, ways: Mapping[str, Callable[[], object]]) -> str:
        """Return the way to run a kind of call: as chosen before, or the quickest, timed now.

        Args:
            kind: What all calls alike have in common, as a text.
            ways: By name, the one that was counted the quickest first; each runs the call.
        """
        known = self.chosen.get(kind)
        if known is None or known["way"] not in ways:
            ms = _timed(ways) if len(ways) > 1 else dict.fromkeys(ways, 0.0)
            first, best = next(iter(ms)), min(ms, key=ms.__getitem__)
            known = self.chosen[kind] = Chosen(
                way=best if ms[best] < MARGIN * ms[first] else first, ms=ms
            )
            if self.path is not None:
                write_atomically(self.path, json.dumps(self.chosen, indent=1) + "\n")
        way: str = known["way"]
        return way


def _timed(ways: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each way, the median of some rounds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    collects = gc.isenabled()
    gc.disable()
    try:
        for number in range(ROUNDS + 1):
            for name, run in ways.items():
                start_s = _clock()
                run()
                if number:
                    times[name].append(_clock() - start_s)
    finally:
        if collects:
            gc.enable()
    return {name: round(1e3 * median(its), 4) for name, its in times.items()}


def _clock() -> float:
    """Seconds: of the processor where one thread computes, else of the clock, all that was begun being done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


_active: ContextVar[Tuning | None] = ContextVar("tuning", default=None)


def active() -> Tuning | None:
    """Return the tuning that calls are under; None where there is none."""
    return _active.get()


@contextmanager
def autotuned(path: Path | str | None = None) -> Iterator[Tuning]:
    """Time the safe engines for every kind of call of ``engine="auto"`` inside, once, and run each by the quickest.

    Engines differ in rounding. Given a file, a later run with the same file takes the same ones, so
    the same seed gives the same bits.

    Args:
        path: A JSON file that keeps what was chosen; None keeps it as long as the block lasts.

    Raises:
        ConfigError: If the file is no such file.

    Example:
        >>> import torch
        >>> from weightloom import per_task
        >>> with autotuned() as tuning:
        ...     run = per_task(torch.nn.Linear(3, 2))
        ...     y = run({"bias": torch.zeros(4, 2)}, torch.ones(4, 5, 3))
        >>> [sorted(its["ms"]) for its in tuning.chosen.values()]
        [['aligned', 'loop', 'vmap']]
    """
    token = _active.set(Tuning(path))
    try:
        tuning = _active.get()
        assert tuning is not None
        yield tuning
    finally:
        _active.reset(token)
