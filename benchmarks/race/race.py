"""Pairwise timing of a contender and ours, with errors kept as rows.

In:   a step of theirs and one of ours.
Out:  a row with the milliseconds of both and their ratio, or with the error.
Independent of the steps' contents.
"""

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.race.timing import alternate, clock_for, ratio

Row = dict[str, Any]
Step = Callable[[], object]


def race(theirs: Step, ours: Step, options: dict[str, Any]) -> Row:
    """Time a contender and ours in turn.

    Args:
        theirs: Step of the contender.
        ours: Our step.
        options: ``rounds``, ``repeats``, ``warmup`` and ``threads``, as in `PeersConfig`.

    Returns:
        ``ms`` and ``ours_ms``, medians over all rounds; ``ratio``, theirs over ours: the median of
        the repeats, each a ratio of medians, and the quartiles of the ratios of single rounds.
    """
    repeats = []
    for _ in range(options["repeats"]):
        steps = {"theirs": theirs, "ours": ours}
        repeats.append(
            alternate(steps, options["rounds"], options["warmup"], clock_for(options["threads"]))
        )
    ratios = [ratio(times, of="theirs", against="ours")["median"] for times in repeats]
    pooled = {
        name: [time for times in repeats for time in times[name]] for name in ("theirs", "ours")
    }
    spread = ratio(pooled, of="theirs", against="ours")
    return {
        "ms": 1e3 * median(pooled["theirs"]),
        "ours_ms": 1e3 * median(pooled["ours"]),
        "ratio": {
            "median": median(ratios),
            "low": spread["low"],
            "high": spread["high"],
            "repeats": ratios,
        },
    }


def attempt(row: Row, measure: Callable[[], Row]) -> Row:
    """Return the row with the measurements added, or with ``error`` if ``measure`` raises.

    Prints the ratio or the error on the error stream.
    """
    try:
        row = row | measure()
        said = f"{row['ratio']['median']:.2f} times our step"
    except Exception as error:
        said = reason(error)
        row = row | {"error": said}
    print(f"{row['workload']}: {row['contender']}: {said}", file=sys.stderr, flush=True)
    return row


def reason(error: Exception) -> str:
    """Return class and first line of an error."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
