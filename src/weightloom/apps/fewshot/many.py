"""A thousand tasks at once: what it takes to adapt to them, and to run their networks beside one that all share."""

import time
from collections.abc import Callable
from typing import Any

import torch

from weightloom.apps.fewshot.judge import draw_test_tasks
from weightloom.apps.fewshot.problems import Problem
from weightloom.learners.learner import Learner
from weightloom.params import Params

AT_ONCE = 100
"""Tasks that are adapted to in one pass."""
REPEATS = 3


@torch.no_grad()
def time_many(learner: Learner, problem: Problem, tasks: int) -> dict[str, Any]:
    """Adapt to many tasks and run their networks on their queries.

    CPU seconds of this thread, the least of three.

    Args:
        learner: The method; put into eval mode.
        problem: Where tasks come from.
        tasks: How many.

    Returns:
        ``tasks`` and ``queries`` of each; ``write_s``, ``run_s`` and ``shared_s``, the last for the
        base network with its own parameters on as many inputs, in turn with the other.
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
    """Say it in a sentence.

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
