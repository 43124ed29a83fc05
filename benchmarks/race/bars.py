"""Bars of the race: bounds on the ratios to other libraries and to one shared network.

In:   rows of the race.
Out:  a dict per bar: workload, bound, value, closest contender and verdict.
Independent of the measurement.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.race.config import ADAPTER_WORKLOADS

Row = dict[str, Any]

BARS = (
    ("documented", 3.0, "at least 3x faster than every peer's documented path"),
    ("other", 1.0, "at least as fast as the best other path: a README's recipe, or undocumented"),
)
"""Kind of paths, least ratio of their time over ours, and text for the record."""

ADAPTER_BARS = (
    (
        "one shared net",
        "at most",
        {"bert-8": 1.10, "bert-16": 1.10, "bert-64": 1.10, "customers": 1.05},
    ),
    ("one shared net, learning", "at most", {"bert-8": 1.15, "bert-16": 1.15, "bert-64": 1.15}),
    ("peft", "at least", {"bert-8": 1.4, "bert-16": 1.3, "bert-64": 1.15}),
)
"""Contender, relation and bound by workload: "at most" bounds our time over the contender's, "at
least" its time over ours."""


def bars(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Check rows against their bars; the closest contender of each kind decides, per workload.

    Failed rows are left out.

    Example:
        >>> row = {"workload": "mlp", "contender": "a", "way": "documented"}
        >>> (bar,) = bars([row | {"ratio": {"median": 3.5}}])
        >>> bar["holds"], bar["closest"]
        (True, 'a')
    """
    raced = [row for row in rows if "ratio" in row]
    judged: list[dict[str, Any]] = []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        if workload not in ADAPTER_WORKLOADS:
            judged += _bars([row for row in raced if row["workload"] == workload])
    return judged + [bar for row in raced for bar in _adapter_bars(row)]


def _bars(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Check the rows of one workload against `BARS`."""
    for kind, bound, text in BARS:
        ways = ("documented",) if kind == "documented" else ("recipe", "undocumented")
        theirs = [row for row in rows if row["way"] in ways]
        if theirs:
            closest = min(theirs, key=lambda row: float(row["ratio"]["median"]))
            value = closest["ratio"]["median"]
            yield {
                "workload": closest["workload"],
                "bar": text,
                "bound": bound,
                "closest": closest["contender"],
                "value": value,
                "holds": value >= bound,
            }


def _adapter_bars(row: Row) -> Iterator[dict[str, Any]]:
    """Check one row of an adapter workload against its bar, if it has one."""
    for contender, relation, bounds in ADAPTER_BARS:
        bound = bounds.get(row["workload"])
        if row["contender"] == contender and bound:
            value = row["ratio"]["median"]
            value, of = (
                (1 / value, f"ours over {contender}")
                if relation == "at most"
                else (value, f"{contender} over ours")
            )
            yield {
                "workload": row["workload"],
                "bar": f"{of} {relation} {bound:g}",
                "bound": bound,
                "closest": contender,
                "value": value,
                "holds": value <= bound if relation == "at most" else value >= bound,
            }
