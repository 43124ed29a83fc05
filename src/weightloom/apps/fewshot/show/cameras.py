"""Example cameras for the report: pictures before a camera, as sent, as restored, and as read."""

import torch
from torch import Tensor

from weightloom.apps.fewshot.problems.cameras import CameraProblem
from weightloom.apps.fewshot.show.classes import by_score
from weightloom.apps.fewshot.show.draw import Shown, generator, lowest, source_of
from weightloom.learners.inputs import RestoringLearner
from weightloom.learners.learner import Learner
from weightloom.tasks import Tasks

SHOWN_QUERIES = 150
"""Pictures drawn of the first camera, to find the first of each digit among."""
WORST_SHOWN = 10
"""Pictures shown of each of the worst cameras."""


def predicted(learners: dict[str, Learner], problem: CameraProblem, early: bool) -> Shown | str:
    """Return the first picture of every digit of the first camera: original, sent and restored.

    Restored pictures and readings are those of `matching` and of the first learner, if they restore
    pictures.
    """
    tasks = _first_camera(problem, early)
    labels = tasks.query_y[0]
    first = [int((labels == digit).nonzero()[0]) for digit in labels.unique().tolist()]
    rows = {"before the camera": tasks.hidden[0, first], "sent": _to_grey(tasks.query_x[0])[first]}
    read: dict[str, list[int]] = {}
    for name, learner in _restoring(learners).items():
        params = learner.adapt(tasks.support)
        rows[name] = learner.restored(params, tasks.query_x)[0, first]
        read[name] = learner.predict(params, tasks.query_x)[0, first].argmax(1).tolist()
    facts = {
        "camera_rows": list(rows),
        "camera_digits": labels[first].tolist(),
        "camera_read": read,
        "camera_setting": problem.setting(*_fewest(problem)),
    }
    return {"camera_pictures": _square(torch.stack([*rows.values()]))}, {"cameras": facts}


def worst(learner: Learner, problem: CameraProblem, early: bool) -> Shown | str:
    """Return the cameras of lowest accuracy among many, with their first pictures as restored.

    They are adapted to in the first setting of the table. A sentence for a method that restores no
    pictures.
    """
    if not isinstance(learner, RestoringLearner):
        return "The method restores no pictures."
    shots, ways = _fewest(problem)
    source = source_of(problem, shots, early, ways)
    tasks, outputs, scores, looked = lowest(learner, problem, source, better=1)
    restored = learner.restored(learner.adapt(tasks.support), tasks.query_x)
    first = slice(None, WORST_SHOWN)
    tensors = {
        "worst_before": _square(tasks.hidden[:, first]),
        "worst_restored": _square(restored[:, first]),
        "worst_read": outputs.argmax(2)[:, first],
        "worst_truth": tasks.query_y[:, first],
        "worst_scores": scores,
    }
    return tensors, {"worst_of": looked}


def conditions(learner: Learner, problem: CameraProblem, early: bool) -> Shown | str:
    """Return the condition of each camera with its accuracy, or a sentence if it has none."""
    shots, ways = _fewest(problem)
    return by_score(learner, source_of(problem, shots, early, ways))


def titles(problem: CameraProblem, early: bool, tasks: Tasks) -> list[str]:
    """Return the titles of cameras: their numbers."""
    return [f"camera {number + 1}" for number in range(len(tasks.query_x))]


def _fewest(problem: CameraProblem) -> tuple[int, int]:
    """Return shots and ways of the first setting, which has the fewest pictures."""
    ways, shots = problem.settings()[0]
    return shots, ways


def _first_camera(problem: CameraProblem, early: bool) -> Tasks:
    shots, ways = _fewest(problem)
    left = len(problem.validation[0] if early else problem.held_out[0]) - shots * ways
    return problem.camera_source(early, ways, shots, min(SHOWN_QUERIES, left)).sample(
        1, generator()
    )


def _restoring(learners: dict[str, Learner]) -> dict[str, RestoringLearner]:
    """Return those of `matching` and the first learner that restore pictures, in this order."""
    found = {
        name: learner for name, learner in learners.items() if isinstance(learner, RestoringLearner)
    }
    return {name: found[name] for name in ("matching", next(iter(learners))) if name in found}


def _square(pictures: Tensor) -> Tensor:
    """Return vectors of pixels as square pictures."""
    side = int(pictures.shape[-1] ** 0.5)
    return pictures.float().unflatten(-1, (side, side))


def _to_grey(x: Tensor) -> Tensor:
    """Scale the signals of a camera to [0, 1], without undoing its fault."""
    low, high = x.min(), x.max()
    return (x - low) / (high - low)
