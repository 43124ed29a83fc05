"""Scores in words: a run's record in, the results table and the sentence above it out."""

import math
from typing import Any, NamedTuple

from weightloom.report.run import Facts, Run
from weightloom.runs.record import competes, label
from weightloom.runs.words import best_of, by_setting, overlap, score_text, time_text

OURS = "hypernetwork"
UNSEEN = "never seen in training"
"""What the tasks of the table are, unless a run's facts say more of it as ``unseen``."""
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
    return {
        setting: [_row(score, best_of(group)) for score in group]
        for setting, group in by_setting(scores).items()
    }


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
        sentence += f" {called[0].upper()}{called[1:]} is best, or level with the best, in {level} of {len(groups)} settings."
    return sentence


def score_words(name: str) -> str:
    """Write the name of a score as it stands in a sentence.

    Example:
        >>> score_words("mse"), score_words("macro_recall")
        ('mean squared error', 'macro recall')
    """
    return SCORE_WORDS.get(name, name.replace("_", " "))


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
    return next(
        (score for score in scores if competes(score) and score["method"].startswith(method)),
        scores[0],
    )


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
