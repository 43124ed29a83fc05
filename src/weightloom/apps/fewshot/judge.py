"""How a few-shot method is judged: on many tasks never seen in training, the same for every method."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from weightloom.apps.fewshot.learner import Learner, Support
from weightloom.apps.fewshot.problems import Problem
from weightloom.losses import mse_per_task
from weightloom.records import summary
from weightloom.tasks import Tasks

TEST_SEED = 1 << 40
"""Where meta-test tasks come from: the same tasks for every method and every seed of training."""


@dataclass(frozen=True)
class Scores:
    """Scores of one method in one setting, and what it takes to adapt to one new task."""

    per_task: dict[str, Tensor]
    """Each score by name, (tasks,); the first is the one that counts."""
    adapt_time_s: float
    """Median seconds to adapt to one new task."""

    def row(self, method: str, setting: str) -> dict[str, Any]:
        """Return a row of the table, as it stands in a record."""
        name, *others = self.per_task
        return {
            "method": method,
            "setting": setting,
            "name": name,
            "better": "lower" if name == "mse" else "higher",
            **summary(self.per_task[name]),
            "tasks": len(self.per_task[name]),
            "also": {other: summary(self.per_task[other]) for other in others},
            "adapt_time_s": self.adapt_time_s,
        }


def draw_test_tasks(problem: Problem, shots: int, tasks: int, first: int = 0) -> Tasks:
    """Draw meta-test tasks; the same number gives the same tasks, whatever was drawn before."""
    generator = torch.Generator().manual_seed(TEST_SEED + (shots << 20) + first)
    return problem.test_source(shots).sample(tasks, generator)


@torch.no_grad()
def judge(
    learner: Learner, problem: Problem, shots: int, tasks: int, shuffled: bool = False, at_once: int = 50
) -> Scores:
    """Adapt to ``tasks`` new tasks, predict their query sets, score each task.

    Args:
        learner: The method; put into eval mode.
        problem: Where tasks come from.
        shots: Support points per class.
        tasks: How many tasks.
        shuffled: Give every task the support set of another: a control that must fall to chance.
        at_once: Tasks per pass.
    """
    learner.eval()
    at_once = at_once if problem.kind == "classification" else 10 * at_once
    parts: list[dict[str, Tensor]] = []
    for first in range(0, tasks, at_once):
        count = min(at_once, tasks - first)
        drawn = draw_test_tasks(problem, shots, max(2, count) if shuffled else count, first)
        torch.manual_seed(TEST_SEED + first)  # for methods that start from a random network
        support = Support.of(drawn)
        if shuffled:
            support = Support(*(field.roll(1, 0) for field in support))
        outputs = learner.predict(learner.adapt(support), drawn.query_x)
        parts.append({name: value[:count] for name, value in _score(outputs, drawn.query_y).items()})
    scores = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Scores(scores, time_to_adapt(learner, problem, shots))


@torch.no_grad()
def time_to_adapt(learner: Learner, problem: Problem, shots: int, repeats: int = 11) -> float:
    """Median seconds to adapt to one new task, after a first go that is not counted."""
    support = Support.of(draw_test_tasks(problem, shots, 1))
    times: list[float] = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        learner.adapt(support)
        times.append(time.perf_counter() - start)
        if sum(times) > 3:
            break
    return median(times[1:] or times)


def _score(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Score each task: error of a regression; accuracy, macro recall and F1 of a classification."""
    if targets.is_floating_point():
        return {"mse": mse_per_task(outputs, targets)}
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    options: dict[str, Any] = {"num_classes": outputs.shape[2], "multidim_average": "samplewise"}
    predicted = outputs.argmax(2)
    return {
        "accuracy": multiclass_accuracy(predicted, targets, average="micro", **options),
        "macro_recall": multiclass_accuracy(predicted, targets, average="macro", **options),
        "f1": multiclass_f1_score(predicted, targets, average="macro", **options),
    }
