"""What we ask of ourselves in the race: how far ahead of others, how close to one net for all.

In:   rows of the race.
Out:  a bar for each that has one, with the contender that decides it and whether it holds.
Knows nothing of how rows came about.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.race.config import ADAPTER_WORKLOADS

Row = dict[str, Any]

BARS = (
    ("documented", 3.0, "at least 3x faster than every peer's documented path"),
    ("other", 1.0, "at least as fast as the best other path: a README's recipe, or undocumented"),
)

ADAPTER_BARS = (
    (
        "one shared net",
        "at most",
        {"bert-8": 1.10, "bert-16": 1.10, "bert-64": 1.10, "customers": 1.05},
    ),
    ("one shared net, learning", "at most", {"bert-8": 1.15, "bert-16": 1.15, "bert-64": 1.15}),
    ("peft", "at least", {"bert-8": 1.4, "bert-16": 1.3, "bert-64": 1.15}),
)
"""By workload the most of our time over a contender's, or the least of its time over ours."""


def bars(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Hold the rows against what we ask of ourselves.

    The closest contender of each kind decides, per workload.

    Example:
        >>> row = {"workload": "mlp", "contender": "a", "way": "documented", "ratio": {"median": 3.5}}
        >>> bars([row])[0]["holds"], bars([row])[0]["closest"]
        (True, 'a')
    """
    judged = []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        for kind, bound, text in BARS:
            ways = ("documented",) if kind == "documented" else ("recipe", "undocumented")
            theirs = [
                r for r in rows if r["workload"] == workload and r["way"] in ways and "ratio" in r
            ]
            if theirs and workload not in ADAPTER_WORKLOADS:
                closest = min(theirs, key=lambda row: float(row["ratio"]["median"]))
                value = closest["ratio"]["median"]
                judged.append(
                    {
                        "workload": workload,
                        "bar": text,
                        "bound": bound,
                        "closest": closest["contender"],
                        "value": value,
                        "holds": value >= bound,
                    }
                )
    return judged + [bar for row in rows for bar in _adapter_bars(row)]


def _adapter_bars(row: Row) -> Iterator[dict[str, Any]]:
    """Hold one row of an adapter workload against its bar, if it has one."""
    for contender, relation, bounds in ADAPTER_BARS:
        bound = bounds.get(row["workload"])
        if row["contender"] == contender and bound and "ratio" in row:
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
