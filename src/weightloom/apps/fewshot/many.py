"""Timing of many tasks at once: adaptation, the adapted networks, and one shared network."""

import time
from collections.abc import Callable
from typing import Any

import torch

from weightloom.apps.fewshot.judge import draw_test_tasks
from weightloom.apps.fewshot.problems import Problem
from weightloom.learners.learner import Learner
from weightloom.params import Params

AT_ONCE = 100
"""Tasks per pass."""
REPEATS = 3
"""Timed runs of each measurement; the fastest counts."""


@torch.no_grad()
def time_many(learner: Learner, problem: Problem, tasks: int) -> dict[str, Any]:
    """Time the adaptation to many tasks, and their networks on their queries.

    Times are CPU seconds of this thread, the minimum of three runs in turn.

    Args:
        learner: The method; put into eval mode.
        problem: Source of the tasks.
        tasks: Number of tasks.

    Returns:
        ``tasks``; ``queries``, the query points of each task; ``write_s``, seconds to adapt;
        ``run_s``, to run the adapted networks; ``shared_s``, to run the base network with its own
        parameters on the same inputs.
    """
    learner.eval()
    ways, shots = problem.settings()[0]
    drawn = draw_test_tasks(problem, shots, tasks, ways=ways)
    parts = [drawn.take(slice(first, first + AT_ONCE)) for first in range(0, tasks, AT_ONCE)]
    written: list[Params] = [learner.adapt(part.support) for part in parts]
    flat = drawn.query_x.flatten(0, 1)

    def write() -> None:
        for part in parts:
            learner.adapt(part.support)

    def run() -> None:
        for params, part in zip(written, parts, strict=True):
            learner.predict(params, part.query_x)

    def shared() -> None:
        for part in flat.split(AT_ONCE * drawn.query_x.shape[1]):
            learner.base(part)

    least = dict.fromkeys(("write_s", "run_s", "shared_s"), float("inf"))
    for _ in range(REPEATS):
        for name, work in zip(least, (write, run, shared), strict=True):
            least[name] = min(least[name], _seconds(work))
    return {"tasks": tasks, "queries": drawn.query_x.shape[1], **least}


def in_words(many: dict[str, Any]) -> str:
    """Return the timings of `time_many` in a sentence.

    Example:
        >>> seconds = {"write_s": 0.9, "run_s": 0.3, "shared_s": 0.2}
        >>> in_words({"tasks": 1000, "queries": 50, **seconds})[:64]
        '1,000 networks written in 0.90 s, run on 50 inputs each in 0.30 '
    """
    ratio = many["run_s"] / many["shared_s"]
    return (
        f"{many['tasks']:,} networks written in {many['write_s']:.2f} s, run on {many['queries']} "
        f"inputs each in {many['run_s']:.2f} s: {ratio:.2f} times one shared network "
        f"({many['shared_s']:.2f} s)"
    )


def _seconds(work: Callable[[], None]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start
