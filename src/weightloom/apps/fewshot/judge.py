"""Evaluation of few-shot methods on unseen tasks, the same tasks for every method.

In:   methods, a problem, the settings of a run.
Out:  `Scores` per method and setting, and rows of the table.
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
from weightloom.apps.fewshot.problems.problem import observed
from weightloom.learners.learner import Learner
from weightloom.losses import cross_entropy_per_task, loss_of_those_there, mse_per_task
from weightloom.runs.record import Better, Role, Row, failed_row, row_of, summary
from weightloom.tasks import Examples, Tasks

TEST_SEED = 1 << 40
"""Seed of meta-test tasks, which are the same for every method and every seed of training."""
TUNING_SEED = 1 << 31
"""Seed of the tasks that options are chosen by (``held_out="validation"``). It differs from
`TEST_SEED` in the lower 32 bits, since a torch generator ignores the others."""


SCORES: dict[str, tuple[str, Better]] = {
    "classification": ("accuracy", "higher"),
    "regression": ("mse", "lower"),
}
"""Main score by kind of problem, and its better direction."""


@dataclass(frozen=True)
class Scores:
    """Scores of one method in one setting, and its time to adapt to one new task."""

    per_task: dict[str, Tensor]
    """Each score by name, (tasks,); the first is the main one."""
    adapt_time_s: float
    """Median seconds to adapt to one new task."""
    calibration: dict[str, Any] | None = None
    """Result of `reliability` over all query points; None in a regression."""
    diverged: int = 0
    """Number of tasks with a prediction that is NaN or infinite; in a classification these are
    scored as uniform guesses."""

    def row(
        self,
        method: str,
        setting: str,
        ours: "Scores | None" = None,
        role: Role = "method",
        trained: "Scores | None" = None,
    ) -> Row:
        """Return the row of the table, in the format of a record.

        Args:
            method: Name of the method.
            setting: Ways and shots in words.
            ours: Scores of the run's main method on the same tasks; the row then holds the paired
                difference ours - these as ``ours_ahead``, which is more precise than a comparison
                of two intervals.
            role: Role of the row, such as control or ceiling.
            trained: Scores of the same method after training, for the row of an untrained one,
                which then holds the paired difference trained - these as ``trained_ahead``.
        """
        name, *others = self.per_task
        row = row_of(
            method, setting, name, self.per_task[name], "lower" if name == "mse" else "higher", role
        )
        row["also"] = {other: summary(self.per_task[other]) for other in others}
        row["adapt_time_s"] = self.adapt_time_s
        if ours:
            row["ours_ahead"] = summary(ours.per_task[name] - self.per_task[name])
        if trained:
            row["trained_ahead"] = summary(trained.per_task[name] - self.per_task[name])
        if self.calibration:
            row["calibration"] = self.calibration
        if self.diverged:
            row["diverged"] = self.diverged
        return row


def score_all(
    contenders: Sequence[Contender[Learner]], problem: Problem, config: FewShotOptions
) -> list[Row]:
    """Judge every contender in every setting, then a control and the problem's yardsticks.

    The control is the first contender with the support set of another task. A method with a fixed
    number of classes has no row in settings of other ways; a contender without a model has a row
    that says it failed.
    """
    ours = contenders[0].model
    yardsticks = problem.yardsticks(ours) if ours else []
    rows: list[Row] = []
    for ways, shots in problem.settings():
        setting = problem.setting(shots, ways)
        rows += _contender_rows(contenders, problem, config, ways, shots)
        if ours and ours.ways in (None, ways):
            control = judge(ours, problem, shots, config.test_tasks, ways, shuffled=True)
            rows.append(control.row("shuffled", setting, role="control"))
        for mark in yardsticks:
            scores = judge(mark.learner, problem, shots, config.test_tasks, ways, seen=mark.seen)
            rows.append(scores.row(mark.method, setting, role=mark.role))
    return rows


def _contender_rows(
    contenders: Sequence[Contender[Learner]],
    problem: Problem,
    config: FewShotOptions,
    ways: int,
    shots: int,
) -> list[Row]:
    """Judge the contenders in one setting; each is compared with the first that was judged."""
    setting, rows = problem.setting(shots, ways), list[Row]()
    ours: Scores | None = None
    trained: dict[str, Scores] = {}
    for contender in contenders:
        learner = contender.model
        if learner is None:
            name, better = SCORES[problem.kind]
            rows.append(failed_row(contender.name, setting, name, better))
        elif learner.ways in (None, ways):
            scores = judge(learner, problem, shots, config.test_tasks, ways)
            before = contender.role == "untrained"
            after = trained.get(contender.name) if before else None
            rows.append(scores.row(contender.name, setting, ours, contender.role, after))
            ours = ours or scores
            if contender.role == "method":
                trained[contender.name] = scores
    return rows


def draw_test_tasks(
    problem: Problem, shots: int, tasks: int, first: int = 0, ways: int | None = None
) -> Tasks:
    """Draw meta-test tasks; they depend on the arguments and ``held_out`` alone.

    Validation tasks have another seed, which is all that separates them if data are made on the
    fly.

    Args:
        problem: Source of the tasks.
        shots: Support points per class.
        tasks: Number of tasks.
        first: Offset of the seed: the number of the first task.
        ways: Classes per task; None for the config's first.
    """
    seed = TEST_SEED if problem.config.held_out == "test" else TUNING_SEED
    generator = torch.Generator().manual_seed(seed + (shots << 20) + first)
    return problem.test_source(shots, ways).sample(tasks, generator)


def draw_judged_task(problem: Problem, shots: int, number: int, tasks: int) -> Tasks:
    """Draw one of the tasks that `judge` draws.

    Only the tasks of its pass are drawn, at most ``problem.at_once``.

    Args:
        problem: Source of the tasks.
        shots: Support points per class.
        number: Number of the task, from 0 to ``tasks`` - 1.
        tasks: Number of tasks that `judge` draws.
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
    """Adapt to new tasks, predict their query sets, and score each task.

    Args:
        learner: The method; put into eval mode.
        problem: Source of the tasks.
        shots: Support points per class.
        tasks: Number of tasks.
        ways: Classes per task; None for the config's first.
        shuffled: Give every task the support set of another: a control that must fall to chance.
        at_once: Tasks per pass; None for ``problem.at_once``.
        seen: Changes the drawn tasks before the method sees them, as for a ceiling; None for no
            change.
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
        outputs = _answers(learner, drawn, shuffled)[:count]
        query = drawn.query.take(slice(count))
        lost = ~outputs.flatten(1).isfinite().all(1)
        diverged += int(lost.sum())
        if labels:
            outputs[lost] = 0.0  # no class is likelier than another
        parts.append(_score(outputs, query))
        if problem.on_grid:
            parts[-1]["unobserved"] = _score_unobserved(outputs, drawn.take(slice(count)))
        if labels:
            sure, chosen = outputs.softmax(2).max(2)
            trust.append(torch.stack([sure, (chosen == query.y).float()])[:, query.mask])
    scores = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    calibration = reliability(*torch.cat(trust, dim=1)) if labels else None
    return Scores(scores, time_to_adapt(learner, problem, shots, ways), calibration, diverged)


def reliability(confidence: Tensor, right: Tensor, bins: int = 10) -> dict[str, Any]:
    """Return the calibration of a classifier: expected calibration error and reliability bins.

    Args:
        confidence: Probability of the predicted class, (points,).
        right: 1 where the prediction is correct, else 0, (points,).
        bins: Number of equal bins of confidence.

    Returns:
        ``ece``, the mean distance of confidence and accuracy over bins, weighted by their points;
        and ``bins``: ``confidence``, ``accuracy`` and ``share`` of the points of each bin that is
        not empty.

    Source:
        Guo et al., "On calibration of modern neural networks" (2017), equation 3.

    Example:
        >>> right = torch.tensor([1.0, 1.0, 0.0, 0.0])
        >>> reliability(torch.full((4,), 0.75), right)["ece"]
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
    """Return the median seconds to adapt to one new task.

    Args:
        learner: The method, in eval mode.
        problem: Source of the task.
        shots: Support points per class.
        ways: Classes per task; None for the config's first.
        repeats: Maximum number of timed runs, after one to warm up. After 3 s no further run
            starts.
    """
    support = draw_test_tasks(problem, shots, 1, ways=ways).support
    times: list[float] = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        learner.adapt(support)
        times.append(time.perf_counter() - start)
        if sum(times) > 3:
            break
    return median(times[1:] or times)


def _answers(learner: Learner, tasks: Tasks, shuffled: bool) -> Tensor:
    """Adapt and predict, float32; if ``shuffled``, from the support set of the task before."""
    support = tasks.support
    if shuffled:
        support = support.map(lambda values: values.roll(1, 0))
    return learner.predict(learner.adapt(support), tasks.query_x).float()


def _score(outputs: Tensor, query: Examples) -> dict[str, Tensor]:
    """Return the scores of each task by name, each (tasks,).

    Mean squared error in a regression; accuracy, macro recall, F1 and log loss in a classification.
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


def _score_unobserved(outputs: Tensor, tasks: Tasks) -> Tensor:
    """Return the mean squared error at query points that are no support points, (tasks,).

    It is NaN for a task without any.
    """
    rest = tasks.query._replace(mask=tasks.query_mask & ~observed(tasks))
    return _score(outputs, rest)["mse"].masked_fill(~rest.mask.any(1), torch.nan)
