"""Relative timing on a busy machine, and peak memory: contenders take turns in one process.

In:   functions without arguments, one per contender.
Out:  seconds per round of each; the ratio of two with its quartiles; peak bytes of one.
The caller sets the threads: ``torch.set_num_threads(1)``.
"""

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median, quantiles
from typing import Any

# torch.profiler takes four seconds to start
from torch.autograd.profiler import profile, record_function

from weightloom.errors import ConfigError

MEASURED = "weightloom: measured call"

Clock = Callable[[], float]


def clock_for(threads: int) -> Clock:
    """Return the clock of a run: processor time for one thread, wall clock for more.

    Processor time does not grow with other work on the machine. With more threads it adds up over
    them, and on Windows it moves in ticks of 16 ms, so that Windows always gets the wall clock.

    Example:
        >>> clock_for(threads=2) is time.perf_counter
        True
    """
    return time.process_time if threads == 1 and sys.platform != "win32" else time.perf_counter


def clock_words(threads: int) -> str:
    """Return a sentence for a record that names the clock of `clock_for`.

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
    """Time contenders in turn, so that other work on the machine slows all of them alike.

    In every round each contender runs once. The order rotates by one per round and every other
    round runs backwards, so that the neighbours change. Garbage is collected between rounds, never
    within one. Before each round its last contender runs once untimed, to warm the caches.

    Args:
        contenders: Functions to time, by name. Each does all its work when called; results are
            dropped.
        rounds: Timed calls of each.
        warmup: Untimed calls of each before the first round.
        clock: Returns seconds.
        synchronise: Waits for the device, as in ``torch.cuda.synchronize``; called before each
            reading of the clock.

    Returns:
        Seconds per round, by name: entry i of every list was measured in round i.

    Raises:
        ConfigError: If no contender is given, or fewer than one round.

    Example:
        >>> contenders = {"short": lambda: sum(range(10)), "long": lambda: sum(range(10_000))}
        >>> times = alternate(contenders, rounds=5)
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
    """Return the ratio of two contenders' times, with quartiles over rounds.

    ``median`` is the ratio of the two medians. ``low`` and ``high`` are the quartiles of the ratios
    within each round, in which both ran close together.

    Args:
        times: Seconds per round, as returned by `alternate`.
        of: Contender in the numerator.
        against: Contender in the denominator.

    Example:
        >>> ratio({"peer": [2.0, 4.0, 8.0], "ours": [1.0, 2.0, 2.0]}, of="peer", against="ours")
        {'median': 2.0, 'low': 2.0, 'high': 3.0}
    """
    paired = [above / below for above, below in zip(times[of], times[against], strict=True)]
    low, _, high = quantiles(paired, method="inclusive") if len(paired) > 1 else paired * 3
    return {"median": median(times[of]) / median(times[against]), "low": low, "high": high}


def peak_memory_bytes(function: Callable[[], object], warmup: int = 1) -> int:
    """Return the peak bytes of CPU tensors during a call, tensors left by the warm-up included.

    Torch's profiler reports every allocation and release of the CPU allocator, with its size. The
    running sum is exact and repeatable, and includes activations kept for backward. The high-water
    mark of the process, the usual alternative, counts pages: it hides reused memory and grows with
    caches. Not counted: workspaces that kernels allocate elsewhere (oneDNN), and memory of an
    accelerator (``torch.cuda.max_memory_allocated``).

    Args:
        function: One step. Its gradients count if it replaces them
            (``zero_grad(set_to_none=True)``); gradients from before the warm-up, to which it adds,
            do not.
        warmup: Calls before the measured one, for one-time buffers. Tensors that they leave are
            known by size.

    Example:
        >>> from torch import zeros
        >>> peak_memory_bytes(lambda: zeros(1000).exp().exp())  # 4,000 bytes each, two at once
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
                held -= live.pop(memory.ptr, 0)  # unknown pointers stem from before the profile
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
    """Silence the profiler, whose compiled code writes to the error stream, past `warnings`."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
