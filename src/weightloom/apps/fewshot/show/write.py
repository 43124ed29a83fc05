"""All tensors and facts that the report of a run draws."""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from weightloom.apps.fewshot.problems import Problem
from weightloom.apps.fewshot.problems.cameras import CameraProblem
from weightloom.apps.fewshot.problems.classes import ClassProblem
from weightloom.apps.fewshot.problems.functions import FunctionProblem
from weightloom.apps.fewshot.show import cameras, classes, curves, functions
from weightloom.apps.fewshot.show.changes import changes
from weightloom.apps.fewshot.show.draw import Shown
from weightloom.apps.fewshot.show.sweep import sweep
from weightloom.learners.learner import Learner

Part = Callable[[], Shown | str]
"""Part of a showcase: returns tensors and facts, or a sentence with the reason for having none."""


@torch.no_grad()
def showcase(learners: dict[str, Learner], problem: Problem, early: bool = False) -> Shown:
    """Return the tensors and facts that the report draws.

    A part that a method does not support, or that raises an error, is left out with a sentence in
    the facts: a picture must not cost a run its record.

    Args:
        learners: The methods by name; put into eval mode. Tasks are shown for the first, scores for
            all.
        problem: Source of the tasks.
        early: Show validation tasks, so that a report during training leaves test tasks unseen.
    """
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"kind": problem.kind, "early": early, "left_out": {}}
    facts["better"] = "lower" if problem.kind == "regression" else "higher"
    if isinstance(problem, ClassProblem):
        facts["unseen"] = (
            "with new examples of training classes"
            if early and problem.validates_on_training
            else "with classes never seen in training"
        )
    for learner in learners.values():
        learner.eval()
    for name, part in _parts(learners, problem, early).items():
        torch.manual_seed(0)  # for methods that start from a random network
        try:
            shown = part()
        except Exception as error:  # a user's method may raise any error
            shown = f"It could not be drawn ({type(error).__name__}: {error})."
        if isinstance(shown, str):
            facts["left_out"][name] = shown
        else:
            tensors |= shown[0]
            facts |= shown[1]
    return tensors, facts


def _parts(learners: dict[str, Learner], problem: Problem, early: bool) -> dict[str, Part]:
    """Return every part by name, from the module for the kind of problem."""
    rooms: dict[type[Problem], ModuleType] = {
        ClassProblem: classes,
        FunctionProblem: functions,
        CameraProblem: cameras,
    }
    room = next((its for kind, its in rooms.items() if isinstance(problem, kind)), curves)
    about = (next(iter(learners.values())), problem, early)
    side_by_side = room is cameras
    return {
        "predicted": partial(room.predicted, learners if side_by_side else about[0], *about[1:]),
        "worst": partial(room.worst, *about),
        "map": partial(room.conditions, *about),
        "changes": partial(changes, *about, partial(room.titles, problem, early)),
        "sweep": partial(sweep, learners, problem, early),
    }
