"""Tasks, answers and scores for all parts of a showcase, within a time limit."""

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
"""Number of example tasks."""
MAP_TASKS = 200
"""Number of tasks on a map of conditions."""
WORST_OF = 200
"""Number of tasks searched for the worst, or fewer within `WORST_S` seconds."""
WORST_KEPT = 3
"""Number of worst tasks shown."""
WORST_S = 8.0
"""Time limit of the search for the worst tasks, in seconds."""
FIRST_PART = 5
"""Number of tasks answered first, to measure the time per task."""


def at_most(tasks: int, problem: Problem) -> int:
    """Return ``tasks``, limited to the number of tasks of the run's table."""
    return min(tasks, problem.config.test_tasks or tasks)


def generator() -> torch.Generator:
    """Return the generator of shown tasks, whose seed differs from that of the table."""
    return torch.Generator().manual_seed(TEST_SEED - 1)


def source_of(problem: Problem, shots: int, early: bool, ways: int | None = None) -> TaskSource:
    """Return the source of shown tasks.

    Args:
        problem: The data.
        shots: Support points per class.
        early: Take validation tasks, since the run is still being trained.
        ways: Classes per task; None for the config's first. Ignored if ``early``.

    Raises:
        ConfigError: If the data have too few classes or examples.
    """
    return problem.validation_source(shots) if early else problem.test_source(shots, ways)


def score_per_task(outputs: Tensor, query: Examples) -> Tensor:
    """Return the accuracy of each task, or its mean squared error in a regression, (tasks,).

    Args:
        outputs: Logits (tasks, batch, ways), or predictions (tasks, batch, out).
        query: Query points with their labels or targets.
    """
    if query.y.is_floating_point():
        return loss_of_those_there(mse_per_task, outputs.float(), query.y, query.mask)
    right = (outputs.argmax(2) == query.y) & query.mask
    return right.float().sum(1) / query.mask.sum(1)


def answered(
    learner: Learner, source: TaskSource, tasks: int, limit_s: float, queries: int | None = None
) -> Iterator[tuple[Tasks, Tensor]]:
    """Draw and answer tasks in parts, each twice as large as the last, within a time limit.

    Args:
        learner: The method.
        source: Source of the tasks.
        tasks: Maximum number of tasks.
        limit_s: Time limit in seconds; a part that would exceed it is not begun.
        queries: Maximum number of query points per class; None for all.

    Yields:
        Tasks, and the outputs for their queries.
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

    Tasks with fewer points than others are padded with masked ones.

    Args:
        tasks: Classification tasks.
        queries: Maximum number of query points per class.
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
    """Search for the tasks with the worst scores.

    Args:
        learner: The method.
        problem: The problem, which limits the number of searched tasks.
        source: Source of the tasks.
        better: 1 if a higher score is better, -1 if a lower one is.

    Returns:
        The `WORST_KEPT` worst tasks, worst first; the outputs for their queries; their scores; and
        the number of searched tasks.
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
    """Return the condition of each task or of each of its classes, as vectors for a map.

    Returns:
        (tasks, width) or (tasks, ways, width); None if the method has no condition.
    """
    condition = learner.condition(tasks.support)
    if condition is None or condition.ndim < 2:
        return None
    return condition if condition.ndim <= 3 else condition.flatten(1)
