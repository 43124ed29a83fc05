"""Scores of every method against shots and ways, on other tasks than those of the table."""

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
"""Swept shots, besides those of the table."""
PIXELS = (10, 20, 40, 80, 160, 320)
"""Swept shots for images as functions."""
WAYS = (2, 5, 10, 20)
"""Swept ways, besides those of the table."""
SWEPT_TASKS = 100
"""Maximum number of tasks per point."""
FEWEST_TASKS = 15
"""Minimum number of tasks per point; points of fewer are left out as too noisy."""
QUERIES = 3
"""Query points per class."""
SWEEP_S = 15.0
"""Time limit of a sweep, in seconds."""
SHARE_S = 1.5
"""Time limit per point, in seconds; slower points are left out."""
EARLY_S = 3.0
"""Time limit of a sweep during training, in seconds."""


def sweep(learners: dict[str, Learner], problem: Problem, early: bool) -> Shown | str:
    """Score all methods at several shots, and the first one at several ways too.

    Points are left out if the data have too few examples, or the time limit is reached.

    Args:
        learners: The methods by name, the main one first.
        problem: Source of the tasks.
        early: Score the main method alone, in the table's shots, on validation tasks.

    Returns:
        Facts with a row of mean, interval and number of tasks for each point; a sentence if no
        point was scored.
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
        return (
            "The methods of this run are too slow, or the data too few, to be scored at other "
            "shots within the time limit."
        )
    name = "mse" if problem.kind == "regression" else "accuracy"
    facts = {
        "name": name,
        "rows": rows,
        "ours": next(iter(learners)),
        "ways": problem.config.ways[0],
        "early": early,
    }
    return {}, {"sweep": facts}


def _points(
    learners: dict[str, Learner], problem: Problem, early: bool
) -> list[tuple[str, int, int]]:
    """Return method, ways and shots of every point, in the order in which they are scored."""
    config, ours, own_ways = problem.config, next(iter(learners)), problem.config.ways[0]
    if early:
        return [(ours, own_ways, count) for count in config.shots]
    usual = PIXELS if isinstance(problem, FunctionProblem) else SHOTS
    shots = sorted({*usual, *config.shots})
    classes = problem.kind == "classification"
    ways = sorted({*WAYS, *config.ways} - {own_ways}) if classes else []
    own = [(method, own_ways, count) for count in shots for method in learners]
    return own + [(ours, other, count) for count in shots for other in ways]


def _scored(
    learner: Learner, problem: Problem, shots: int, ways: int, early: bool, limit_s: float
) -> dict[str, float] | None:
    """Return mean score, interval and number of tasks; None if data or time are too short."""
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
