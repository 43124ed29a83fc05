"""The score of every method against shots and ways, on tasks that are not those of the table."""

import time
from typing import Any

import torch

from weightloom.apps.fewshot.problems import Problem
from weightloom.apps.fewshot.problems.classes import ClassProblem
from weightloom.apps.fewshot.problems.functions import FunctionProblem
from weightloom.apps.fewshot.show.draw import Shown, answered, at_most, score_per_task, source_of
from weightloom.errors import ConfigError
from weightloom.learners.learner import Learner
from weightloom.runs.record import summary

SHOTS = (1, 2, 3, 5, 10)
PIXELS = (10, 20, 40, 80, 160, 320)
WAYS = (2, 5, 10, 20)
SWEPT_TASKS = 100
FEWEST_TASKS = 15
"""From fewer tasks a score says too little to be drawn."""
QUERIES = 3
"""Query points of a class, in a sweep."""
SWEEP_S = 15.0
SHARE_S = 1.5
"""No point may take longer than this; a method that is too slow for it is left out."""
EARLY_S = 3.0


def sweep(learners: dict[str, Learner], problem: Problem, early: bool) -> Shown | str:
    """Score methods at several shots; the first of them at several ways too.

    What the data do not suffice for is left out, and so is what does not fit into the time.
    """
    start_s, limit_s = time.monotonic(), EARLY_S if early else SWEEP_S
    rows: list[dict[str, Any]] = []
    for method, ways, shots in _points(learners, problem, early):
        left_s = limit_s - (time.monotonic() - start_s)
        if left_s <= 0:
            break
        if learners[method].ways not in (None, ways):
            continue
        row = _scored(learners[method], problem, shots, ways, early, min(left_s, SHARE_S))
        rows += [{"method": method, "ways": ways, "shots": shots, **row}] if row else []
    if not rows:
        return "The methods of this run are too slow, or the data too few, to be scored at other shots in passing."
    name = "mse" if problem.kind == "regression" else "accuracy"
    facts = {
        "name": name,
        "rows": rows,
        "ours": next(iter(learners)),
        "ways": _own_ways(problem),
        "early": early,
    }
    return {}, {"sweep": facts}


def _points(
    learners: dict[str, Learner], problem: Problem, early: bool
) -> list[tuple[str, int, int]]:
    """Method, ways and shots of every point, those first that say most."""
    config, ours, own_ways = problem.config, next(iter(learners)), _own_ways(problem)
    usual = PIXELS if isinstance(problem, FunctionProblem) else SHOTS
    shots = sorted({*usual, *(config.shots or ())})
    ways = (
        sorted({*WAYS, *(config.ways or ())} - {own_ways})
        if problem.kind == "classification"
        else []
    )
    if early:
        return [(ours, own_ways, count) for count in config.shots or ()]
    own = [(method, own_ways, count) for count in shots for method in learners]
    return own + [(ours, other, count) for count in shots for other in ways]


def _own_ways(problem: Problem) -> int:
    return problem.config.ways[0] if problem.config.ways else 1


def _scored(
    learner: Learner, problem: Problem, shots: int, ways: int, early: bool, limit_s: float
) -> dict[str, float] | None:
    """Mean score and interval; None where data or time do not suffice."""
    try:
        source = source_of(problem, shots, early, ways)
    except ConfigError:
        return None
    most = at_most(SWEPT_TASKS, problem)
    queries = QUERIES if isinstance(problem, ClassProblem) else None
    scores = [
        score_per_task(outputs, tasks.query)
        for tasks, outputs in answered(learner, source, most, limit_s, queries)
    ]
    per_task = torch.cat(scores)
    return (
        {**summary(per_task), "tasks": len(per_task)}
        if len(per_task) >= min(most, FEWEST_TASKS)
        else None
    )
