"""Scores and times in words, and comparisons of scores.

In:   rows of a record, seconds.
Out:  text, with as many digits as the interval justifies.
Knows nothing of any application.
"""

import math
from typing import Any

from weightloom.runs.record import competes, role_of

ROUNDING = 1e-9
"""Intervals below this fraction of the mean are rounding errors, and count as 0."""


def best_of(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row with the best mean among those that compete; NaN is worst.

    If no row competes, all count.
    """
    sign = 1 if scores[0].get("better") == "lower" else -1
    competing = [score for score in scores if competes(score)] or scores
    return min(competing, key=lambda score: (math.isnan(score["mean"]), sign * score["mean"]))


def by_setting(scores: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group rows by setting, in the order of the record."""
    settings: dict[str, list[dict[str, Any]]] = {}
    for score in scores:
        settings.setdefault(str(score["setting"]), []).append(score)
    return settings


def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return True if two 95 % intervals overlap.

    Example:
        >>> overlap({"mean": 0.91, "ci95": 0.006}, {"mean": 0.90, "ci95": 0.005})
        True
    """
    return bool(abs(one["mean"] - other["mean"]) <= _interval(one) + _interval(other))


def unchanged_by_training(scores: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each method whose training changed nothing that its tasks can show.

    In every setting, the 95 % interval of its score minus that of its untrained row, on the same
    tasks, contains 0. Rows without that difference, ``trained_ahead``, are not spoken of.

    Args:
        scores: Rows of a record.

    Example:
        >>> row = {"method": "mine", "role": "untrained", "setting": "5-shot", "name": "accuracy"}
        >>> unchanged_by_training([row | {"trained_ahead": {"mean": 0.001, "ci95": 0.004}}])
        ['Training changed nothing ... in the accuracy of mine: 5-shot 0.001 ± 0.004.']
        >>> unchanged_by_training([row | {"trained_ahead": {"mean": 0.1, "ci95": 0.004}}])
        []
    """
    changes: dict[str, list[dict[str, Any]]] = {}
    for row in scores:
        if role_of(row) == "untrained":
            changes.setdefault(str(row["method"]), []).append(row)
    return [
        f"Training changed nothing that these tasks can show in the {rows[0]['name']} of {method}: "
        + ", ".join(f"{row['setting']} {score_text(row['trained_ahead'])}" for row in rows)
        + "."
        for method, rows in changes.items()
        if all(map(_is_unchanged, rows))
    ]


def _is_unchanged(row: dict[str, Any]) -> bool:
    """Return True if the difference to the trained method is known, and its interval holds 0."""
    ahead = row.get("trained_ahead") or {}
    mean, half = ahead.get("mean"), ahead.get("ci95")
    return mean is not None and half is not None and bool(abs(mean) <= half)


def score_text(score: dict[str, Any]) -> str:
    """Return a mean and its 95 % interval as text, with at least three decimals.

    A small interval adds decimals, up to six. A mean that would round to 0 is written with a power
    of ten. A mean of NaN is written as ``failed``.

    Example:
        >>> score_text({"mean": 0.91234, "ci95": 0.0061})
        '0.912 ± 0.006'
        >>> score_text({"mean": 0.002, "ci95": 0.00004})
        '0.00200 ± 0.00004'
        >>> score_text({"mean": 1.234e-9, "ci95": 5.1e-11})
        '1.2e-09 ± 5.1e-11'
        >>> score_text({"mean": 0.9014, "ci95": 1.4e-16})  # the same in every run, up to rounding
        '0.901'
    """
    mean, interval = score["mean"], _interval(score)
    if math.isnan(mean):
        return "failed"
    interval = interval if interval > ROUNDING * abs(mean) else 0.0
    digits = min(max(3, math.ceil(-math.log10(interval))), 6) if 0 < interval < math.inf else 3
    if interval < abs(mean) < 0.5 * 10**-digits:
        return f"{mean:.1e} ± {interval:.1e}" if interval else f"{mean:.1e}"
    return f"{mean:.{digits}f} ± {interval:.{digits}f}" if interval else f"{mean:.{digits}f}"


def time_text(seconds: float | None) -> str:
    """Return a time as text in a suitable unit; empty for None, NaN and infinity.

    Example:
        >>> [time_text(seconds) for seconds in (0.00042, 0.0123, 4.2, 192.0, 7_500.0)]
        ['420 µs', '12.3 ms', '4.2 s', '3 min 12 s', '2 h 05 min']
    """
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 60:
        scale, unit = (
            (1e6, "µs") if seconds < 0.9995e-3 else (1e3, "ms") if seconds < 0.9995 else (1.0, "s")
        )
        return f"{seconds * scale:.3g} {unit}"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def _interval(score: dict[str, Any]) -> float:
    """Return half the width of the 95 % interval; 0 without one."""
    half = float(score.get("ci95") or 0.0)
    return half if math.isfinite(half) else 0.0
