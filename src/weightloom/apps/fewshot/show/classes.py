"""Example classification tasks for the report: predictions, worst tasks, a map of conditions."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from weightloom.apps.fewshot.problems.classes import ClassProblem
from weightloom.apps.fewshot.show.draw import (
    MAP_TASKS,
    SHOWN_TASKS,
    Shown,
    answered,
    generator,
    lowest,
    mapped_condition,
    score_per_task,
    source_of,
)
from weightloom.learners.learner import Learner
from weightloom.tasks import Tasks, TaskSource

MAP_CLASSES = 10
"""Maximum number of classes on the map of conditions."""
MAP_S = 4.0
"""Time limit of the map, in seconds."""
SHOWN_PIXELS = 48
"""Maximum height and width of a picture of the report, in pixels, with a backbone."""
PICTURE = 3
"""Number of axes of a picture: channels, height, width."""


def predicted(learner: Learner, problem: ClassProblem, early: bool) -> Shown:
    """Return a few tasks with predictions and confidences."""
    tasks = _source(problem, early).sample(SHOWN_TASKS, generator())
    return _looked_at(tasks, learner.answer(tasks), problem, early)


def worst(learner: Learner, problem: ClassProblem, early: bool) -> Shown:
    """Return the tasks of lowest accuracy among many."""
    tasks, outputs, scores, looked = lowest(learner, problem, _source(problem, early), better=1)
    tensors, facts = _looked_at(tasks, outputs, problem, early)
    tensors, facts = (
        {f"worst_{name}": value for name, value in part.items()} for part in (tensors, facts)
    )
    return tensors | {"worst_scores": scores}, facts | {"worst_of": looked}


def conditions(learner: Learner, problem: ClassProblem, early: bool) -> Shown | str:
    """Return the conditions of many tasks: per class, labelled by class, if the method has these.

    Otherwise per task, with its accuracy; or a sentence if the method has no condition.
    """
    source = source_of(problem, max(problem.config.shots or (1,)), early)
    tasks = source.sample(MAP_TASKS // 2, generator())
    known = mapped_condition(learner, tasks)
    if known is None:
        return "The method has no condition to draw."
    classes = tasks.classes
    if classes is not None and known.shape[:2] == classes.shape and known.ndim == 3:
        pool = problem.validation if early else problem.held_out
        shown = classes.unique()[:MAP_CLASSES]
        kept = torch.isin(classes, shown)
        return (
            {
                "conditions": known[kept],
                "condition_class": torch.searchsorted(shown, classes[kept]),
            },
            {"condition_names": [pool.names[i] for i in shown.tolist()], "condition_of": "class"},
        )
    return by_score(learner, source)


def by_score(learner: Learner, source: TaskSource) -> Shown | str:
    """Return the conditions that a method encodes tasks into, with its accuracy on each task.

    Args:
        learner: The method.
        source: Tasks are drawn from it, up to half of `MAP_TASKS`, as many as time allows.

    Returns:
        Tensors ``conditions``, (tasks, width), and ``condition_value``, (tasks, 1); and words of
        the map: the name of the value and of a point. A sentence if the method has no condition.
    """
    parts = [
        (mapped_condition(learner, drawn), score_per_task(outputs, drawn.query))
        for drawn, outputs in answered(learner, source, MAP_TASKS // 2, MAP_S)
    ]
    known = [condition for condition, _ in parts if condition is not None]
    if not known:
        return "The method has no condition to draw."
    scores = torch.cat([score for _, score in parts])
    names = {"condition_value_names": ["accuracy"], "condition_of": "task"}
    return {"conditions": torch.cat(known).flatten(1), "condition_value": scores[:, None]}, names


def titles(problem: ClassProblem, early: bool, tasks: Tasks) -> list[str]:
    """Return the titles of tasks: the names of their classes."""
    return [", ".join(names) for names in class_names(problem, early, tasks)]


def class_names(problem: ClassProblem, early: bool, tasks: Tasks) -> list[list[str]]:
    """Return the names of the classes of each task, in the order of its labels."""
    pool = problem.validation if early else problem.held_out
    return tasks.names(pool.names)


def _source(problem: ClassProblem, early: bool) -> TaskSource:
    return source_of(problem, min(problem.config.shots or (1,)), early)


def _looked_at(tasks: Tasks, outputs: Tensor, problem: ClassProblem, early: bool) -> Shown:
    confidence, chosen = outputs.float().softmax(2).max(2)
    tensors = {
        "support_y": tasks.support_y,
        "support_mask": tasks.support_mask,
        "query_y": tasks.query_y,
    }
    if problem.read:
        tensors |= _pictures(tasks, problem, early)
    elif tasks.support_x.ndim == 2 + PICTURE:
        tensors |= {"support_x": tasks.support_x, "query_x": tasks.query_x}
    tensors |= {"predicted": chosen, "confidence": confidence}
    return tensors, {
        "class_names": class_names(problem, early, tasks),
        **_texts(tasks, problem, early),
    }


def _pictures(tasks: Tasks, problem: ClassProblem, early: bool) -> dict[str, Tensor]:
    """Return the picture of each point, found by its activations, small enough for a page."""
    pool = problem.validation if early else problem.held_out
    pictures = (problem.pools.validation if early else problem.pools.test).examples
    size = min(SHOWN_PIXELS, pictures.shape[-1])
    classes = tasks.classes
    assert classes is not None

    def picture(x: Tensor, of: int) -> Tensor:
        known = pool.examples[of, : int(pool.counts[of])]
        nearest = int((known - x).flatten(1).square().sum(1).argmin())
        return adaptive_avg_pool2d(pictures[of, nearest].float() / 255, size)

    sides = {"support_x": tasks.support, "query_x": tasks.query}
    return {
        side: torch.stack(
            [
                torch.stack([picture(x, int(of)) for x, of in zip(points, numbers, strict=True)])
                for points, numbers in zip(
                    examples.x, classes.gather(1, examples.y.clamp(min=0)), strict=True
                )
            ]
        )
        for side, examples in sides.items()
    }


def _texts(tasks: Tasks, problem: ClassProblem, early: bool) -> dict[str, list[list[str]]]:
    """Return the sentence of each point, found by its features; empty if the points have none."""
    pool = problem.validation if early else problem.held_out
    classes = tasks.classes
    if not pool.sentences or classes is None:
        return {}

    def text(x: Tensor, of: int) -> str:
        texts, known = pool.sentences[of], pool.examples[of]
        nearest = (known[: len(texts)] - x).square().sum(1)
        if pool.named is not None and (pool.named[of] - x).square().sum() < nearest.min():
            return f"the name: {(pool.descriptions or pool.names)[of]}"
        return texts[int(nearest.argmin())]

    sides = {"support": (tasks.support_x, tasks.support_y), "query": (tasks.query_x, tasks.query_y)}
    return {
        f"{side}_texts": [
            [
                text(x, int(classes[task, label]))
                for x, label in zip(points, labels.tolist(), strict=True)
            ]
            for task, (points, labels) in enumerate(zip(*both, strict=True))
        ]
        for side, both in sides.items()
    }
