"""Scores in words: a run's record in, the results table and the headline out."""

import math
from typing import Any, NamedTuple

from weightloom.report.run import Facts, Run
from weightloom.runs.record import competes, label
from weightloom.runs.words import (
    best_of,
    by_setting,
    overlap,
    score_text,
    time_text,
    unchanged_by_training,
)

OURS = "hypernetwork"
UNSEEN = "never seen in training"
"""Description of the test tasks, unless the run's facts have one as ``unseen``."""
SCORE_WORDS = {"mse": "mean squared error"}
"""Names of scores in a sentence, if they differ."""
MORE = {"macro_recall": "Macro recall", "f1": "F1", "unobserved": "Unobserved points"}
"""Headings of the further scores that the results table shows, if any row has them."""


class TableRow(NamedTuple):
    """One method in one setting, ready to print."""

    method: str
    score: str
    more: dict[str, str]
    """Further scores, by their heading in `MORE`."""
    adapt_time: str
    tasks: str
    best: bool
    """True if its interval overlaps that of the best of several methods of the setting."""


def rows_by_setting(scores: list[Facts]) -> dict[str, list[TableRow]]:
    """Return the rows of the results table by setting, in the order of the record."""
    return {
        setting: [_row(score, best_of(group), _is_contested(group)) for score in group]
        for setting, group in by_setting(scores).items()
    }


def headline(run: Run) -> str:
    """Return the result in one or two sentences, or the progress of a run without a result."""
    scores = run.record.get("scores") or []
    if not scores:
        return _progress(run)
    groups, method = list(by_setting(scores).values()), str(run.config.get("method", OURS))
    sentence = _compare(groups[0], method, run.facts)
    contested = [group for group in groups if _rivals(group, method)]
    if len(contested) > 1:
        level = sum(overlap(_ours(group, method), best_of(group)) for group in contested)
        sentence += (
            f" {_capital(_called(_ours(groups[0], method)))} is best, or level with the best, in "
            f"{level} of {len(contested)} settings."
        )
    return sentence


def further_headings(settings: dict[str, list[TableRow]]) -> list[str]:
    """Return the headings of the further scores that any row has, in the order of `MORE`."""
    all_rows = (row for rows in settings.values() for row in rows)
    had = {heading for row in all_rows for heading, shown in row.more.items() if shown}
    return [heading for heading in MORE.values() if heading in had]


def table_caption(scores: list[Facts]) -> str:
    """Return the caption of the results table: the meaning of bold rows and times, if any.

    It ends in a sentence for each method that its training did not change.
    """
    compared = any(_is_contested(group) for group in by_setting(scores).values())
    parts = [
        "Bold rows are the best of their setting and those whose 95 % interval overlaps the best "
        "one's."
        if compared
        else "",
        "The time to adapt is that for one new task." if has_times(scores) else "",
        *unchanged_by_training(scores),
    ]
    return " ".join(part for part in parts if part)


def has_times(scores: list[Facts]) -> bool:
    """Return True if the time to adapt was measured for any row."""
    return any(time_text(score.get("adapt_time_s")) for score in scores)


def score_heading(scores: list[Facts]) -> str:
    """Return the heading of the score column; "± 95 %" is in it if any row has an interval."""
    name = score_words(scores[0]["name"]) if scores else ""
    return _capital(name) + (" ± 95 %" if any(has_interval(score) for score in scores) else "")


def score_words(name: str) -> str:
    """Return the name of a score in a sentence.

    Example:
        >>> score_words("mse"), score_words("macro_recall")
        ('mean squared error', 'macro recall')
    """
    return SCORE_WORDS.get(name, name.replace("_", " "))


def cost_rows(cost: Facts) -> list[tuple[str, str]]:
    """Return name and value of each cost in words; costs not measured are left out."""
    memory = cost.get("peak_memory_bytes")
    rows = [
        ("Wall time", time_text(cost.get("wall_time_s"))),
        ("Peak memory", f"{memory / 2**20:,.0f} MiB" if memory else ""),
        ("Device", str(cost.get("device", ""))),
        ("PyTorch", str(cost.get("torch", ""))),
    ]
    return [(name, value) for name, value in rows if value]


def _row(score: Facts, best: Facts, contested: bool) -> TableRow:
    also: dict[str, Any] = score.get("also") or {}
    return TableRow(
        method=label(score),
        score=score_text(score),
        more={
            heading: score_text(also[name]) if name in also else ""
            for name, heading in MORE.items()
        },
        adapt_time=time_text(score.get("adapt_time_s")),
        tasks=f"{score['tasks']:,}",
        best=contested and competes(score) and overlap(score, best),
    )


def _compare(scores: list[Facts], method: str, facts: Facts) -> str:
    """Return a sentence that compares our score with the best other method of a setting."""
    ours, rivals = _ours(scores, method), _rivals(scores, method)
    rival = best_of(rivals) if rivals else None
    if math.isnan(ours["mean"]):
        other = f"; {rival['method']} reached {score_text(rival)}" if rival else ""
        return f"{_capital(_called(ours))} failed and has no score{other}."
    tasks = f"{facts.get('task', 'task')}{'' if ours['tasks'] == 1 else 's'}"
    reached = (
        f"On {ours['tasks']:,} {tasks} ({ours['setting']}) {facts.get('unseen', UNSEEN)}, "
        f"{_called(ours)} reached {score_text(ours)} {score_words(ours['name'])}"
    )
    if rival is None:
        return f"{reached}."
    level = overlap(ours, rival)
    score = f"{rival['method']} {score_text(rival)}"
    if best_of([ours, rival]) is ours:
        return f"{reached} ({score}{'; the intervals overlap' if level else ''})."
    though = ", though the intervals overlap" if level else ""
    return f"{reached}; {rival['method']} did better, {score_text(rival)}{though}."


def _rivals(scores: list[Facts], method: str) -> list[Facts]:
    """Return the scores of all other methods of a setting, without failed ones."""
    ours = _ours(scores, method)
    others = [score for score in scores if score is not ours and competes(score)]
    return [score for score in others if not math.isnan(score["mean"])]


def _is_contested(scores: list[Facts]) -> bool:
    """Return True if several methods compete in a setting."""
    return sum(competes(score) for score in scores) > 1


def has_interval(score: Facts) -> bool:
    """Return True if a score has a finite 95 % interval."""
    return math.isfinite(score.get("ci95") or math.nan)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _ours(scores: list[Facts], method: str) -> Facts:
    return next(
        (score for score in scores if competes(score) and score["method"].startswith(method)),
        scores[0],
    )


def _called(score: Facts) -> str:
    name = str(score["method"])
    return f"the {name}" if name.startswith(OURS) else name


def _progress(run: Run) -> str:
    """Return the progress of a run without a record, in words."""
    rows = run.training or run.validation
    if not rows:
        return "This run has not logged a step yet."
    steps = run.config.get("steps")
    of_all = f" of {steps:,}" if isinstance(steps, int) else ""
    sentence = f"No result yet: this run has reached step {rows[-1]['step']:,}{of_all}."
    if run.validation:
        last = run.validation[-1]
        name = score_words(last.get("score_name", "score"))
        sentence += (
            f" The last validation {name} is {last['validation_score']:.3f}, at step "
            f"{last['step']:,}."
        )
    return sentence
