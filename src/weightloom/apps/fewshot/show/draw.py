"""What all parts of a showcase share: where their tasks come from, and answering within a time."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils._pytree import tree_map

from weightloom.apps.fewshot.judge import TEST_SEED
from weightloom.apps.fewshot.problems import Problem
from weightloom.learners.learner import Learner
from weightloom.losses import loss_of_those_there, mse_per_task
from weightloom.tasks import Examples, Tasks, TaskSource

Shown = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and facts that a part adds to a showcase."""

SHOWN_TASKS = 6
MAP_TASKS = 200
WORST_OF = 200
"""Tasks among which the worst are looked for, fewer where that takes longer than `WORST_S`
seconds."""
WORST_KEPT = 3
WORST_S = 8.0
FIRST_PART = 5
"""Tasks that are answered first, to learn how long one takes."""


def at_most(tasks: int, problem: Problem) -> int:
    """Return how many tasks to draw: no more than the run's own table is computed from."""
    return min(tasks, problem.config.test_tasks or tasks)


def generator() -> torch.Generator:
    """Return the generator of shown tasks, which are none of the table's."""
    return torch.Generator().manual_seed(TEST_SEED - 1)


def source_of(problem: Problem, shots: int, early: bool, ways: int | None = None) -> TaskSource:
    """Return where shown tasks come from: validation tasks as long as a run is being trained.

    Raises:
        ConfigError: If there is not enough to draw from.
    """
    return problem.validation_source(shots) if early else problem.test_source(shots, ways)


def score_per_task(outputs: Tensor, query: Examples) -> Tensor:
    """Return the accuracy of each task of a classification, the mean squared error of each of a regression."""
    if query.y.is_floating_point():
        return loss_of_those_there(mse_per_task, outputs.float(), query.y, query.mask)
    right = (outputs.argmax(2) == query.y) & query.mask
    return right.float().sum(1) / query.mask.sum(1)


def answered(
    learner: Learner, source: TaskSource, tasks: int, limit_s: float, queries: int | None = None
) -> Iterator[tuple[Tasks, Tensor]]:
    """Draw tasks and answer them in parts, each twice the last, until all are done or the next would take too long.

    Args:
        learner: The method.
        source: Where tasks come from.
        tasks: How many at most.
        limit_s: How long it may take, about.
        queries: Query points of each class to answer at most; None for all.
    """
    drawer, start_s, part, done = generator(), time.monotonic(), FIRST_PART, 0
    while done < tasks:
        begun_s = time.monotonic()
        drawn = source.sample(min(part, tasks - done), drawer)
        if queries is not None:
            drawn = fewer_queries(drawn, queries)
        yield drawn, learner.answer(drawn)
        done += len(drawn.query_y)
        now_s = time.monotonic()
        if now_s - start_s + 2 * (now_s - begun_s) > limit_s:
            return
        part *= 2


def fewer_queries(tasks: Tasks, queries: int) -> Tasks:
    """Keep the first query points of each class of each task.

    Where a task has fewer than others, some are masked.
    """
    there = tasks.query_mask
    member = one_hot(tasks.query_y.masked_fill(~there, 0)) * there[..., None]
    kept = there & ((member.cumsum(1) * member).sum(2) <= queries)
    first = (~kept).int().argsort(dim=1, stable=True)[:, : int(kept.sum(1).max())]
    query = tasks.query.rows(first)
    return tasks._replace(query=query._replace(mask=kept.gather(1, first)))


def lowest(
    learner: Learner, problem: Problem, source: TaskSource, better: int
) -> tuple[Tasks, Tensor, Tensor, int]:
    """Look for the tasks with the worst scores.

    Args:
        learner: The method.
        problem: Says how many tasks are looked at.
        source: Where tasks come from.
        better: 1 where a higher score is better, -1 where a lower one is.

    Returns:
        The worst tasks, worst first, what was answered to them, their scores, and among how many
        they were found.
    """
    looked, kept = 0, None
    for drawn, outputs in answered(learner, source, at_most(WORST_OF, problem), WORST_S):
        looked += len(outputs)
        found = (drawn, outputs, score_per_task(outputs, drawn.query))
        both = found if kept is None else tree_map(_joined, kept, found)
        order = (better * both[-1]).argsort(stable=True)[:WORST_KEPT]
        kept = both[0].take(order), both[1][order], both[2][order]
    assert kept is not None
    tasks, answers, scores = kept
    return tasks, answers, scores, looked


def _joined(first: Any, other: Any) -> Any:
    return torch.cat([first, other]) if isinstance(first, Tensor) else first


def mapped_condition(learner: Learner, tasks: Tasks) -> Tensor | None:
    """Return what a method knows of some tasks, a vector for each of them or for each of their classes; None: nothing.

    Returns:
        (tasks, width) or (tasks, ways, width).
    """
    condition = learner.condition(tasks.support)
    if condition is None or condition.ndim < 2:
        return None
    return condition if condition.ndim <= 3 else condition.flatten(1)
