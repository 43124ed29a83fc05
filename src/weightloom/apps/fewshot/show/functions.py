"""Example images for the report: completions, the worst images, a map of conditions."""

import torch
from torch import Tensor

from weightloom.apps.fewshot.problems.functions import FunctionProblem
from weightloom.apps.fewshot.show.draw import (
    MAP_TASKS,
    Shown,
    generator,
    lowest,
    mapped_condition,
    source_of,
)
from weightloom.learners.learner import Learner
from weightloom.tasks import Tasks
from weightloom.tasks.functions import FunctionTasks, pixel_positions

SHOWN_IMAGES = 5
"""Number of example images."""
FINER = 4
"""Factor of the resolution at which a completed image is drawn between its pixels."""


def predicted(learner: Learner, problem: FunctionProblem, early: bool) -> Shown:
    """Return a few images, completed from each number of pixels, the last at a finer resolution."""
    shots = sorted(problem.config.shots or (1,))
    tensors: dict[str, Tensor] = {}
    for count in shots:
        source = source_of(problem, count, early)
        tasks = source.sample(
            SHOWN_IMAGES, generator()
        )  # the same images from every number of pixels
        height, width = image_size(source)
        tensors |= _looked_at(tasks, learner.answer(tasks), height, width, f"_{count}")
        if count == shots[-1]:
            fine = pixel_positions(FINER * height, FINER * width).expand(len(tasks.query_x), -1, -1)
            values = learner.predict(learner.adapt(tasks.support), fine)
            tensors["image_fine"] = (
                values[..., 0].float().unflatten(1, (FINER * height, FINER * width))
            )
    return tensors, {"image_shots": shots, "titles": titles(problem, early, tasks)}


def worst(learner: Learner, problem: FunctionProblem, early: bool) -> Shown:
    """Return the images of largest error among many, completed from the fewest pixels."""
    shots = min(problem.config.shots or (1,))
    source = source_of(problem, shots, early)
    tasks, outputs, scores, looked = lowest(learner, problem, source, better=-1)
    tensors = _looked_at(tasks, outputs, *image_size(source), f"_{shots}")
    found = {f"worst_{name}": value for name, value in tensors.items()}
    names = {
        "worst_image_shots": [shots],
        "worst_of": looked,
        "worst_titles": titles(problem, early, tasks),
    }
    return found | {"worst_scores": scores}, names


def conditions(learner: Learner, problem: FunctionProblem, early: bool) -> Shown | str:
    """Return the condition of each image with its mean brightness, or a sentence if it has none."""
    tasks = source_of(problem, max(problem.config.shots or (1,)), early).sample(
        MAP_TASKS, generator()
    )
    known = mapped_condition(learner, tasks)
    if known is None:
        return "The method has no condition to draw."
    ink = tasks.query_y.flatten(1).mean(1, keepdim=True)
    names = {"condition_value_names": ["mean brightness"], "condition_of": "task"}
    return {"conditions": known.flatten(1), "condition_value": ink}, names


def titles(problem: FunctionProblem, early: bool, tasks: Tasks) -> list[str]:
    """Return the titles of tasks: the numbers of their images."""
    return [f"image {int(number)}" for number in tasks.hidden[:, 0]]


def image_size(source: object) -> tuple[int, int]:
    """Return height and width of the images that a source draws from, in pixels."""
    assert isinstance(source, FunctionTasks)
    height, width = source.images.shape[1:]
    return height, width


def observed_pixels(tasks: Tasks, height: int, width: int) -> Tensor:
    """Return True where a pixel is in the support set, (tasks, height, width)."""
    size = torch.tensor([width, height])
    column, row = (
        ((tasks.support_x + 1) / 2 * size).floor().long().clamp(min=0).minimum(size - 1).unbind(2)
    )
    seen = torch.zeros(len(tasks.support_x), height * width)
    return (seen.scatter_add(1, row * width + column, tasks.support_mask.float()) > 0).unflatten(
        1, (height, width)
    )


def _looked_at(
    tasks: Tasks, outputs: Tensor, height: int, width: int, end: str
) -> dict[str, Tensor]:
    truth, completed = (
        values[..., 0].float().unflatten(1, (height, width)) for values in (tasks.query_y, outputs)
    )
    return {
        "image_truth": truth,
        f"image_observed{end}": observed_pixels(tasks, height, width),
        f"image_completed{end}": completed,
    }
