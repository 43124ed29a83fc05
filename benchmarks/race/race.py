"""One contender and ours in turn, and the row that says how it went.

In:   a step of theirs and one of ours.
Out:  milliseconds of both and their ratio; or why there is none.
Knows nothing of what a step does.
"""

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.race.timing import alternate, clock_for, ratio

Row = dict[str, Any]
Step = Callable[[], object]


def race(theirs: Step, ours: Step, options: dict[str, Any]) -> Row:
    """Time one contender and ours in turn; the ratio of medians, the median of the repeats."""
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
    """Return the row with what ``measure`` returns, or with the reason why it failed.

    Say so on the terminal.
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
    """Return the first line of an error, with its kind."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
