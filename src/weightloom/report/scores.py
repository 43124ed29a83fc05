"""Scores in words: a run's record in, the results table and the sentence above it out."""

import math
from typing import Any, NamedTuple

from weightloom.report.run import Facts, Run
from weightloom.runs.record import competes, label

OURS = "hypernetwork"
UNSEEN = "never seen in training"
"""What the tasks of the table are, unless a run's facts say more of it as ``unseen``."""
ROUNDING = 1e-9
"""An interval below this share of the mean is none."""
SCORE_WORDS = {"mse": "mean squared error"}
"""Scores that go by another name in a sentence."""


class TableRow(NamedTuple):
    """One method in one setting, ready to print."""

    method: str
    score: str
    macro_recall: str
    f1: str
    adapt_time: str
    tasks: str
    best: bool
    """True if its interval overlaps that of the best method of the setting."""


def rows_by_setting(scores: list[Facts]) -> dict[str, list[TableRow]]:
    """Return the rows of the results table, settings and methods in the order of the record."""
    return {setting: [_row(score, best_of(group)) for score in group] for setting, group in by_setting(scores).items()}


def best_of(scores: list[Facts]) -> Facts:
    """Return the score with the best mean of those that compete; one that is not a number never wins."""
    sign = 1 if scores[0].get("better") == "lower" else -1
    competing = [score for score in scores if competes(score)] or scores
    return min(competing, key=lambda score: (math.isnan(score["mean"]), sign * score["mean"]))


def overlap(one: Facts, other: Facts) -> bool:
    """Say whether two 95 % intervals share a number.

    Example:
        >>> overlap({"mean": 0.91, "ci95": 0.006}, {"mean": 0.90, "ci95": 0.005})
        True
    """
    return bool(abs(one["mean"] - other["mean"]) <= _interval(one) + _interval(other))


def headline(run: Run) -> str:
    """Return the result in one sentence, or how far the run has come where there is none yet."""
    scores = run.record.get("scores") or []
    if not scores:
        return _progress(run)
    groups, method = list(by_setting(scores).values()), str(run.config.get("method", OURS))
    sentence = _compare(groups[0], method, run.facts.get("unseen", UNSEEN))
    if len(groups) > 1:
        level = sum(overlap(_ours(group, method), best_of(group)) for group in groups)
        called = _called(_ours(groups[0], method))
        sentence += (
            f" {called[0].upper()}{called[1:]} is best, or level with the best, in {level} of {len(groups)} settings."
        )
    return sentence


def by_setting(scores: list[Facts]) -> dict[str, list[Facts]]:
    """Group scores by setting, in the order of the record."""
    settings: dict[str, list[Facts]] = {}
    for score in scores:
        settings.setdefault(str(score["setting"]), []).append(score)
    return settings


def score_words(name: str) -> str:
    """Write the name of a score as it stands in a sentence.

    Example:
        >>> score_words("mse"), score_words("macro_recall")
        ('mean squared error', 'macro recall')
    """
    return SCORE_WORDS.get(name, name.replace("_", " "))


def score_text(score: Facts) -> str:
    """Write a mean and its 95 % interval with as many digits as the interval calls for, at least three.

    A mean of which these digits would leave nothing is written by powers of ten. One that is not a number is that of a
    method that failed.

    Example:
        >>> score_text({"mean": 0.91234, "ci95": 0.0061}), score_text({"mean": 0.002, "ci95": 0.00004})
        ('0.912 ± 0.006', '0.00200 ± 0.00004')
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
    """Write a time in the unit that a person would choose.

    Example:
        >>> [time_text(seconds) for seconds in (0.00042, 0.0123, 4.2, 192.0, 7_500.0)]
        ['420 µs', '12.3 ms', '4.2 s', '3 min 12 s', '2 h 05 min']
    """
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 60:
        scale, unit = (1e6, "µs") if seconds < 0.9995e-3 else (1e3, "ms") if seconds < 0.9995 else (1.0, "s")
        return f"{seconds * scale:.3g} {unit}"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def cost_rows(cost: Facts) -> list[tuple[str, str]]:
    """Name each cost in words; what was not measured is left out."""
    memory = cost.get("peak_memory_bytes")
    rows = [
        ("Wall time", time_text(cost.get("wall_time_s"))),
        ("Peak memory", f"{memory / 2**20:,.0f} MiB" if memory else ""),
        ("Device", str(cost.get("device", ""))),
        ("PyTorch", str(cost.get("torch", ""))),
    ]
    return [(name, value) for name, value in rows if value]


def _row(score: Facts, best: Facts) -> TableRow:
    also: dict[str, Any] = score.get("also") or {}
    return TableRow(
        method=label(score),
        score=score_text(score),
        macro_recall=score_text(also["macro_recall"]) if "macro_recall" in also else "",
        f1=score_text(also["f1"]) if "f1" in also else "",
        adapt_time=time_text(score.get("adapt_time_s")),
        tasks=f"{score['tasks']:,}",
        best=competes(score) and overlap(score, best),
    )


def _compare(scores: list[Facts], method: str, unseen: str) -> str:
    """Hold our score against the best other one of a setting, and say so where the other is better."""
    ours = _ours(scores, method)
    reached = (
        f"On {ours['tasks']:,} tasks ({ours['setting']}) {unseen}, "
        f"{_called(ours)} reached {score_text(ours)} {score_words(ours['name'])}"
    )
    others = [score for score in scores if score is not ours and competes(score)]
    rivals = [score for score in others if not math.isnan(score["mean"])]
    if not rivals:
        return f"{reached}."
    rival = best_of(rivals)
    level = overlap(ours, rival)
    if best_of([ours, rival]) is ours:
        return f"{reached} ({rival['method']} {score_text(rival)}{'; the intervals overlap' if level else ''})."
    though = ", though the intervals overlap" if level else ""
    return f"{reached}; {rival['method']} did better, {score_text(rival)}{though}."


def _ours(scores: list[Facts], method: str) -> Facts:
    return next((score for score in scores if competes(score) and score["method"].startswith(method)), scores[0])


def _called(score: Facts) -> str:
    name = str(score["method"])
    return f"the {name}" if name.startswith(OURS) else name


def _progress(run: Run) -> str:
    """Say how far a run without a record has come."""
    rows = run.training or run.validation
    if not rows:
        return "This run has not logged a step yet."
    steps = run.config.get("steps")
    of_all = f" of {steps:,}" if isinstance(steps, int) else ""
    sentence = f"No result yet: this run has reached step {rows[-1]['step']:,}{of_all}."
    if run.validation:
        last = run.validation[-1]
        name = score_words(last.get("score_name", "score"))
        sentence += f" The last validation {name} is {last['validation_score']:.3f}, at step {last['step']:,}."
    return sentence


def _interval(score: Facts) -> float:
    return float(score.get("ci95") or 0.0)
