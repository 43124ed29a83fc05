"""Example regression tasks for the report: predictions, the worst tasks, a map of conditions."""

import torch
from torch import Tensor

from weightloom.apps.fewshot.problems.curves import CurveProblem
from weightloom.apps.fewshot.show.draw import (
    MAP_TASKS,
    SHOWN_TASKS,
    Shown,
    generator,
    lowest,
    mapped_condition,
    source_of,
)
from weightloom.learners.learner import Learner, Support
from weightloom.tasks import SinusoidTasks, Tasks
from weightloom.tasks.points import PointPool, PointTasks

CURVE_SHOTS = (1, 3, 5, 10)
"""Numbers of support points that curves are predicted from, besides the most of the table."""
CURVE_POINTS = 201
"""Points of a predicted curve."""
SCATTER_TASKS = 60
"""Tasks behind a plot of predictions against the truth."""
SCATTER_POINTS = 1200
"""Maximum number of marks in such a plot."""


def predicted(learner: Learner, problem: CurveProblem, early: bool) -> Shown:
    """Return the curves of a few tasks, predicted from more and more of their points.

    For tasks with several inputs, predictions and truth of query points.
    """
    most = max(problem.config.shots or (1,))
    source = source_of(problem, most, early)
    if problem.x_dim > 1:
        tasks = source.sample(SCATTER_TASKS, generator())
        kept = torch.randperm(tasks.query_y.numel(), generator=generator())[:SCATTER_POINTS]
        pairs = {"scatter_true": tasks.query_y, "scatter_predicted": learner.answer(tasks)}
        return {name: values.flatten()[kept] for name, values in pairs.items()}, {
            "scatter_shots": most
        }
    shots = [count for count in CURVE_SHOTS if count < most] + [most]
    tasks = source.sample(SHOWN_TASKS, generator())
    return _drawn(learner, tasks, shots, problem, early)


def worst(learner: Learner, problem: CurveProblem, early: bool) -> Shown | str:
    """Return the tasks of largest error among many."""
    most = max(problem.config.shots or (1,))
    tasks, outputs, scores, looked = lowest(
        learner, problem, source_of(problem, most, early), better=-1
    )
    found = {"worst_scores": scores}
    names = {"worst_of": looked, "worst_titles": titles(problem, early, tasks)}
    if problem.x_dim > 1:
        return found | {
            "worst_true": tasks.query_y.flatten(1),
            "worst_predicted": outputs.flatten(1),
        }, names
    tensors, facts = _drawn(learner, tasks, [most], problem, early)
    found |= {f"worst_{name}": value for name, value in tensors.items()}
    return found, names | {f"worst_{name}": value for name, value in facts.items()}


def conditions(learner: Learner, problem: CurveProblem, early: bool) -> Shown | str:
    """Return the condition of each task, labelled by its family or by numbers.

    The numbers are amplitude and phase of sinusoids, else the mean target. A sentence if the method
    has no condition.
    """
    tasks = source_of(problem, max(problem.config.shots or (1,)), early).sample(
        MAP_TASKS, generator()
    )
    known = mapped_condition(learner, tasks)
    if known is None:
        return "The method has no condition to draw."
    pool = pool_of(problem, early)
    tensors = {"conditions": known.flatten(1)}
    if problem.config.kind == "sinusoid":
        names = {"condition_value_names": ["amplitude", "phase"], "condition_of": "task"}
        return tensors | {"condition_value": tasks.hidden}, names
    groups = tasks.hidden[:, 1].unique() if pool else tasks.hidden[:0]
    if pool and len(groups) > 1:
        families = {
            int(group): pool.names[int(task)].partition("/")[0] for task, group in tasks.hidden
        }
        shown = torch.searchsorted(groups, tasks.hidden[:, 1].contiguous())
        names = {
            "condition_names": [families[group] for group in groups.tolist()],
            "condition_of": "task",
        }
        return tensors | {"condition_class": shown}, names
    mean = tasks.query_y.flatten(1).mean(1, keepdim=True)
    return tensors | {"condition_value": mean}, {
        "condition_value_names": ["mean target"],
        "condition_of": "task",
    }


def titles(problem: CurveProblem, early: bool, tasks: Tasks) -> list[str]:
    """Return the titles of tasks: names in the data, amplitude and phase, or numbers."""
    pool = pool_of(problem, early)
    if problem.config.kind == "sinusoid":
        return [
            f"amplitude {amplitude:.2f}, phase {phase:.2f}"
            for amplitude, phase in tasks.hidden.tolist()
        ]
    if pool is None:
        return [f"task {task}" for task in range(len(tasks.hidden))]
    return [pool.names[int(task)] for task in tasks.hidden[:, 0]]


def pool_of(problem: CurveProblem, early: bool) -> PointPool | None:
    """Return the pool that shown tasks are drawn from; None if they are made on the fly."""
    source = source_of(problem, 1, early)
    return source.pool if isinstance(source, PointTasks) else None


def _drawn(
    learner: Learner, tasks: Tasks, shots: list[int], problem: CurveProblem, early: bool
) -> Shown:
    """Predict whole curves from the first support points of each task, for several numbers."""
    x = _grid(tasks)
    drawn = []
    for count in shots:
        mask = tasks.support_mask & (torch.arange(tasks.support_mask.shape[1]) < count)
        support = Support(tasks.support_x, tasks.support_y, mask)
        drawn.append(learner.predict(learner.adapt(support), x)[..., 0])
    tensors = {
        "curve_x": x[..., 0],
        "curve_predicted": torch.stack(drawn, dim=1).float(),
        "support_x": tasks.support_x[..., 0],
        "support_y": tasks.support_y[..., 0],
        "support_mask": tasks.support_mask,
        "query_x": tasks.query_x[..., 0],
        "query_y": tasks.query_y[..., 0],
    }
    if problem.config.kind == "sinusoid":
        amplitude, phase = tasks.hidden[:, None, :1], tasks.hidden[:, None, 1:]
        tensors["curve_y"] = SinusoidTasks.curve(x, amplitude, phase)[..., 0]
    return tensors, {"shots": shots, "titles": titles(problem, early, tasks)}


def _grid(tasks: Tasks) -> Tensor:
    """Return evenly spaced inputs over the range of each task, (tasks, points, 1)."""
    seen = torch.where(tasks.support_mask[..., None], tasks.support_x, tasks.query_x[:, :1])
    points = torch.cat([seen, tasks.query_x], dim=1)
    first, last = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
    return first + (last - first) * torch.linspace(0, 1, CURVE_POINTS)[:, None]
