"""How a few-shot method is judged.

On many tasks never seen in training, the same for every method.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from weightloom.apps.app import Contender
from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.problems import Problem
from weightloom.learners.learner import Learner
from weightloom.losses import cross_entropy_per_task, loss_of_those_there, mse_per_task
from weightloom.runs.record import Role, Row, failed_row, row_of, summary
from weightloom.tasks import Examples, Tasks

TEST_SEED = 1 << 40
"""Where meta-test tasks come from: the same tasks for every method and every seed of training."""
TUNING_SEED = 1 << 31
"""Where tasks come from that options are chosen by, with ``--held-out validation``. Of a seed a
torch generator reads the lower 32 bits only: what differs above them is one and the same."""


@dataclass(frozen=True)
class Scores:
    """Scores of one method in one setting, and what it takes to adapt to one new task."""

    per_task: dict[str, Tensor]
    """Each score by name, (tasks,); the first is the one that counts."""
    adapt_time_s: float
    """Median seconds to adapt to one new task."""
    calibration: dict[str, Any] | None = None
    """Of a classification: what `reliability` says of all query points together."""
    diverged: int = 0
    """Tasks for which the method gave something that is not a number: guesses of a
    classification."""

    def row(
        self, method: str, setting: str, ours: "Scores | None" = None, role: Role = "method"
    ) -> Row:
        """Return a row of the table, as it stands in a record.

        Args:
            method: Its name.
            setting: Ways and shots.
            role: The part it plays.
            ours: Scores of the method that the run is about, on the same tasks: the row then holds,
                as ``ours_ahead``, by how much that one's score is larger, which sees finer than two
                intervals side by side.
        """
        name, *others = self.per_task
        row = row_of(
            method, setting, name, self.per_task[name], "lower" if name == "mse" else "higher", role
        )
        row["also"] = {other: summary(self.per_task[other]) for other in others}
        row["adapt_time_s"] = self.adapt_time_s
        if ours:
            row["ours_ahead"] = summary(ours.per_task[name] - self.per_task[name])
        if self.calibration:
            row["calibration"] = self.calibration
        if self.diverged:
            row["diverged"] = self.diverged
        return row


def score_all(
    contenders: Sequence[Contender[Learner]], problem: Problem, config: FewShotOptions
) -> list[Row]:
    """Judge every contender in every setting, and the run's method once more with shuffled support sets."""
    rows: list[Row] = []
    ours = contenders[0].model
    yardsticks = problem.yardsticks(ours) if ours else []
    for ways, shots in problem.settings():
        setting = problem.setting(shots, ways)
        best: Scores | None = None
        for contender in contenders:
            learner = contender.model
            if learner is None:
                name, regression = (
                    ("mse", True) if problem.kind == "regression" else ("accuracy", False)
                )
                rows.append(
                    failed_row(contender.name, setting, name, "lower" if regression else "higher")
                )
            elif learner.ways in (None, ways):
                scores = judge(learner, problem, shots, config.test_tasks, ways)
                rows.append(scores.row(contender.name, setting, best, contender.role))
                best = best or scores
        if ours and ours.ways in (None, ways):
            control = judge(ours, problem, shots, config.test_tasks, ways, shuffled=True)
            rows.append(control.row("shuffled", setting, role="control"))
        for mark in yardsticks:
            scores = judge(mark.learner, problem, shots, config.test_tasks, ways, seen=mark.seen)
            rows.append(scores.row(mark.method, setting, role=mark.role))
    return rows


def draw_test_tasks(
    problem: Problem, shots: int, tasks: int, first: int = 0, ways: int | None = None
) -> Tasks:
    """Draw the tasks to judge on; the same number gives the same tasks, whatever was drawn before.

    Where all is made on the fly the seed alone keeps tasks to tune on from those of the table.
    """
    seed = TEST_SEED if problem.config.held_out == "test" else TUNING_SEED
    generator = torch.Generator().manual_seed(seed + (shots << 20) + first)
    return problem.test_source(shots, ways).sample(tasks, generator)


def draw_judged_task(problem: Problem, shots: int, number: int, tasks: int) -> Tasks:
    """Draw one of the tasks that `judge` draws, and with it no more than those of its pass.

    Args:
        problem: Where tasks come from.
        shots: Support points per class.
        number: From 0 to ``tasks`` - 1.
        tasks: How many are judged on.
    """
    first = number - number % problem.at_once
    drawn = draw_test_tasks(problem, shots, min(problem.at_once, tasks - first), first)
    return drawn.take(slice(number - first, number - first + 1))


@torch.no_grad()
def judge(
    learner: Learner,
    problem: Problem,
    shots: int,
    tasks: int,
    ways: int | None = None,
    shuffled: bool = False,
    at_once: int | None = None,
    seen: Callable[[Tasks], Tasks] | None = None,
) -> Scores:
    """Adapt to ``tasks`` new tasks, predict their query sets, score each task.

    Args:
        learner: The method; put into eval mode.
        problem: Where tasks come from.
        shots: Support points per class.
        tasks: How many tasks.
        ways: Classes per task; None is the config's first.
        shuffled: Give every task the support set of another: a control that must fall to chance.
        at_once: Tasks per pass; None is what suits the problem.
        seen: What the method is given in the place of the tasks drawn, as for a ceiling; None: the
            tasks.
    """
    learner.eval()
    labels = problem.kind == "classification"
    at_once = at_once or problem.at_once
    parts: list[dict[str, Tensor]] = []
    trust: list[Tensor] = []
    diverged = 0
    for first in range(0, tasks, at_once):
        count = min(at_once, tasks - first)
        drawn = draw_test_tasks(problem, shots, max(2, count) if shuffled else count, first, ways)
        drawn = drawn if seen is None else seen(drawn)
        torch.manual_seed(TEST_SEED + first)  # for methods that start from a random network
        support = drawn.support
        if shuffled:
            support = support.map(lambda values: values.roll(1, 0))
        outputs = learner.predict(learner.adapt(support), drawn.query_x)
        outputs, query = outputs[:count].float(), drawn.query.take(slice(count))
        lost = ~outputs.flatten(1).isfinite().all(1)
        diverged += int(lost.sum())
        if labels:
            outputs[lost] = 0.0  # no class is likelier than another
        parts.append(_score(outputs, query))
        if labels:
            sure, chosen = outputs.softmax(2).max(2)
            trust.append(torch.stack([sure, (chosen == query.y).float()])[:, query.mask])
    scores = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    calibration = reliability(*torch.cat(trust, dim=1)) if labels else None
    return Scores(scores, time_to_adapt(learner, problem, shots, ways), calibration, diverged)


def reliability(confidence: Tensor, right: Tensor, bins: int = 10) -> dict[str, Any]:
    """Hold how sure a method was against how often it was right.

    Args:
        confidence: The probability given to the chosen class, (points,).
        right: 1 where it was the right one, (points,).
        bins: Into how many equal parts confidence is cut.

    Returns:
        ``ece``, the mean distance between the two over bins, weighed by their points; and for each
        bin that has any ``confidence``, ``accuracy`` and ``share`` of the points.

    Source:
        Guo et al., "On calibration of modern neural networks" (2017), equation 3.

    Example:
        >>> reliability(torch.tensor([0.75, 0.75, 0.75, 0.75]), torch.tensor([1.0, 1.0, 0.0, 0.0]))["ece"]
        0.25
    """
    place = (confidence * bins).long().clamp(max=bins - 1)
    count = torch.bincount(place, minlength=bins).double()
    there = count > 0
    sums = [
        torch.zeros(bins, dtype=torch.float64).index_add_(0, place, v.double())
        for v in (confidence, right)
    ]
    sure, accuracy = (total[there] / count[there] for total in sums)
    share = count[there] / count.sum()
    return {
        "ece": ((sure - accuracy).abs() * share).sum().item(),
        "bins": [
            dict(zip(("confidence", "accuracy", "share"), row, strict=True))
            for row in zip(sure.tolist(), accuracy.tolist(), share.tolist(), strict=True)
        ],
    }


@torch.no_grad()
def time_to_adapt(
    learner: Learner, problem: Problem, shots: int, ways: int | None = None, repeats: int = 11
) -> float:
    """Median seconds to adapt to one new task, after a first go that is not counted."""
    support = draw_test_tasks(problem, shots, 1, ways=ways).support
    times: list[float] = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        learner.adapt(support)
        times.append(time.perf_counter() - start)
        if sum(times) > 3:
            break
    return median(times[1:] or times)


def _score(outputs: Tensor, query: Examples) -> dict[str, Tensor]:
    """Score each task: error of a regression.

    Accuracy, macro recall, F1 and log loss of a classification.
    """
    if query.y.is_floating_point():
        return {"mse": loss_of_those_there(mse_per_task, outputs, query.y, query.mask)}
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    options: dict[str, Any] = {
        "num_classes": outputs.shape[2],
        "multidim_average": "samplewise",
        "ignore_index": -1,
    }
    targets = query.y.masked_fill(~query.mask, -1)
    predicted = outputs.argmax(2)
    return {
        "accuracy": multiclass_accuracy(predicted, targets, average="micro", **options),
        "macro_recall": multiclass_accuracy(predicted, targets, average="macro", **options),
        "f1": multiclass_f1_score(predicted, targets, average="macro", **options),
        "log_loss": loss_of_those_there(cross_entropy_per_task, outputs, query.y, query.mask),
    }
