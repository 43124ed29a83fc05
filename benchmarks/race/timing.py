"""Timing that survives a busy machine.

Contenders take turns in one process, and ratios are the result.

In:   functions without arguments, one per contender.
Out:  seconds per round of each; the ratio of two of them with its spread; the bytes one of them
      holds at its peak.
Knows nothing of what the functions do. The caller sets the threads: ``torch.set_num_threads(1)``.
"""

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median, quantiles
from typing import Any

from torch.autograd.profiler import (
    profile,
    record_function,
)  # torch.profiler's takes four seconds to start

from weightloom.errors import ConfigError

MEASURED = "weightloom: measured call"

Clock = Callable[[], float]


def clock_for(threads: int) -> Clock:
    """Return the clock of a run: processor time of one thread, which others on the machine do not lengthen.

    With more threads processor time adds up over them, and on Windows it moves in ticks of 16 ms:
    there the wall clock.

    Example:
        >>> clock_for(threads=2) is time.perf_counter
        True
    """
    return time.process_time if threads == 1 and sys.platform != "win32" else time.perf_counter


def clock_words(threads: int) -> str:
    """Say for a record which clock that is.

    Example:
        >>> clock_words(threads=2)
        'Times are of the wall clock.'
    """
    one = clock_for(threads) is time.process_time
    return "Times are processor time of one thread." if one else "Times are of the wall clock."


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 20,
    warmup: int = 3,
    clock: Clock = time.perf_counter,
    synchronise: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time contenders in turn, so that whatever else the machine does falls on all of them alike.

    In every round each contender runs once. The order moves on by one from round to round and every
    other round runs backwards, so that none always runs behind the same neighbour. Garbage is
    collected before, never while, a round is timed; then the last in the round's order runs once
    untimed, so that none starts with cold caches.

    Args:
        contenders: What to time, by name. Each does all its work when called; what it returns is
            dropped.
        rounds: Timed calls of each.
        warmup: Calls of each before the first round.
        clock: Returns seconds.
        synchronise: Waits for the device, as in ``torch.cuda.synchronize``; called before the clock
            is read.

    Returns:
        Seconds per round, by name: entry i of every list was measured in round i.

    Raises:
        ConfigError: If there is nothing to time.

    Example:
        >>> times = alternate({"short": lambda: sum(range(10)), "long": lambda: sum(range(10_000))}, rounds=5)
        >>> len(times["short"]), ratio(times, of="long", against="short")["median"] > 1
        (5, True)
    """
    if not contenders or rounds < 1:
        raise ConfigError(
            f"{len(contenders)} contenders for {rounds} rounds leave nothing to time. "
            "A median needs at least one contender and one round. Pass `rounds=20`."
        )
    names = list(contenders)
    for name in names:
        for _ in range(warmup):
            contenders[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    with _garbage_left_alone():
        for number in range(rounds):
            gc.collect()
            first = number % len(names)
            order = (names[first:] + names[:first])[:: -1 if number % 2 else 1]
            contenders[order[-1]]()
            for name in order:
                synchronise()
                start_s = clock()
                contenders[name]()
                synchronise()
                times[name].append(clock() - start_s)
    return times


def ratio(times: Mapping[str, Sequence[float]], of: str, against: str) -> dict[str, float]:
    """Say how many times as long ``of`` takes as ``against``, and how sure that is.

    ``median`` is the ratio of the two medians. ``low`` and ``high`` are the quartiles of the ratios
    within each round: half of the rounds lie between them. Rounds are paired because both ran
    within moments of each other.

    Args:
        times: As `alternate` returns them.
        of: The contender above the line.
        against: The contender below the line.

    Example:
        >>> ratio({"peer": [2.0, 4.0, 8.0], "ours": [1.0, 2.0, 2.0]}, of="peer", against="ours")
        {'median': 2.0, 'low': 2.0, 'high': 3.0}
    """
    paired = [above / below for above, below in zip(times[of], times[against], strict=True)]
    low, _, high = quantiles(paired, method="inclusive") if len(paired) > 1 else paired * 3
    return {"median": median(times[of]) / median(times[against]), "low": low, "high": high}


def peak_memory_bytes(function: Callable[[], object], warmup: int = 1) -> int:
    """Return the most bytes of CPU tensors that ``function`` holds at once, what an earlier call left included.

    Torch's profiler reports every allocation and release of the CPU allocator, with its size: the
    running sum is exact, the same every time, and knows activations kept for backward. The
    high-water mark of the process, the usual other way, counts pages: it hides what is reused and
    rises by caches. Not counted: scratch that kernels take from elsewhere (oneDNN's workspaces),
    and anything on an accelerator (``torch.cuda.max_memory_allocated``).

    Args:
        function: One step. Gradients count if it replaces them (``zero_grad(set_to_none=True)``),
            as a step does; where it adds to gradients that were there before, those do not.
        warmup: Calls before the measured one: they pay for one-time buffers, and their leavings are
            known by size.

    Example:
        >>> from torch import zeros
        >>> peak_memory_bytes(lambda: zeros(1000).exp().exp())  # each of 4,000 bytes, never more than two at once
        8000
    """
    gc.collect()
    with _garbage_left_alone(), _no_words_from_kineto(), profile(profile_memory=True) as trace:
        for _ in range(warmup):
            function()
        with record_function(MEASURED):
            function()
    assert trace is not None and trace.kineto_results is not None
    live: dict[int, int] = {}
    held = peak = 0
    measured = False
    for event in sorted(
        _walk(trace.kineto_results.experimental_event_tree()), key=lambda event: event.start_time_ns
    ):
        measured = measured or event.name == MEASURED
        if event.name == "[memory]":
            memory = event.extra_fields
            if memory.alloc_size > 0:
                live[memory.ptr] = memory.alloc_size
                held += memory.alloc_size
            else:
                held -= live.pop(memory.ptr, 0)  # what was there before is no concern of ours
        peak = max(peak, held) if measured else peak
    assert measured
    return peak


def _walk(events: Sequence[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _walk(event.children)


@contextmanager
def _garbage_left_alone() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _no_words_from_kineto() -> Iterator[None]:
    """Its start and stop are announced on the error stream by compiled code, below what `warnings` can reach."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
