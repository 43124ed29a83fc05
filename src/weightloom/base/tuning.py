"""Engines chosen by measured time: each safe engine is timed once per kind of call.

In:   functions that run a call, by name of the engine.
Out:  the fastest, and a file that records it, so that a later run repeats the choice and its bits.
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
"""Timed runs of each engine, interleaved, after one run that is not timed."""
MARGIN = 0.97
"""Maximum time of another engine, as a fraction of the first one's, to be preferred to it."""


class Chosen(TypedDict):
    """Entry of the file for one kind of call."""

    way: str
    """Name of the chosen engine, with its tasks at a time."""
    ms: dict[str, float]
    """Median milliseconds of a run, with its backward pass if gradients are on, by engine."""


class Tuning:
    """Engines that were timed, by kind of call.

    Args:
        path: JSON file of choices. Choices that it holds are used without timing; new ones are
            written to it. None keeps them in memory.

    Raises:
        ConfigError: If the file exists and does not hold choices.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.chosen: dict[str, Chosen] = {}
        """Choice by kind of call: its name, ``way``, and the milliseconds of each, ``ms``."""
        if self.path is not None and os.path.lexists(self.path):
            from pydantic import TypeAdapter

            try:
                self.chosen = TypeAdapter(dict[str, Chosen]).validate_python(
                    read_json(self.path), strict=True
                )
            except ValueError as error:  # `TextError` and pydantic's are
                raise ConfigError(
                    f"`{self.path}` holds no engines. It should be a JSON file that `autotuned` "
                    "wrote. Remove it, and engines are timed anew."
                ) from error

    def way(self, kind: str, ways: Mapping[str, Callable[[], object]]) -> str:
        """Return the name of the engine for a kind of call: the earlier choice, or the fastest now.

        The first of ``ways`` is kept unless another takes less than `MARGIN` of its time.

        Args:
            kind: Description of the kind of call, from `kind_of`.
            ways: Functions that run the call, by name of the engine; the default comes first.
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
    """Median milliseconds of each engine over `ROUNDS` interleaved runs."""
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
    """Seconds: process time if torch uses one thread; else wall time, with CUDA synchronised."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


_active: ContextVar[Tuning | None] = ContextVar("tuning", default=None)


def active() -> Tuning | None:
    """Return the tuning of the enclosing `autotuned` block; None outside of one."""
    return _active.get()


@contextmanager
def autotuned(path: Path | str | None = None) -> Iterator[Tuning]:
    """Run calls of ``engine="auto"`` inside the block by the fastest safe engine, timed once each.

    Engines differ in rounding. With a file, a later run repeats the same choices, so the same seed
    gives the same bits.

    Args:
        path: JSON file of choices, read and written. None keeps them until the block ends.

    Yields:
        The tuning, whose ``chosen`` holds the choice for each kind of call.

    Raises:
        ConfigError: If the file exists and does not hold choices.

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
