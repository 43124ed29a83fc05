"""Everything that is shown of a run, in one file."""

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
"""Gives tensors and facts, or a sentence that says why there are none."""


@torch.no_grad()
def showcase(learners: dict[str, Learner], problem: Problem, early: bool = False) -> Shown:
    """Gather what the report draws.

    A part that a method cannot give, or fails at, is left out with a sentence in the facts: a
    picture must not cost a run its record.

    Args:
        learners: The methods; put into eval mode. What the first does is shown, its scores beside
            those of the others.
        problem: Where tasks come from.
        early: During training: show validation tasks, so that meta-test stays untouched.
    """
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"kind": problem.kind, "early": early, "left_out": {}}
    facts["better"] = "lower" if problem.kind == "regression" else "higher"
    if isinstance(problem, ClassProblem):
        facts["unseen"] = "with classes never seen in training"
    for learner in learners.values():
        learner.eval()
    for name, part in _parts(learners, problem, early).items():
        torch.manual_seed(0)  # for methods that start from a random network
        try:
            shown = part()
        except Exception as error:  # methods of one's own raise what they like
            shown = f"It could not be drawn ({type(error).__name__}: {error})."
        if isinstance(shown, str):
            facts["left_out"][name] = shown
        else:
            tensors |= shown[0]
            facts |= shown[1]
    return tensors, facts


def _parts(learners: dict[str, Learner], problem: Problem, early: bool) -> dict[str, Part]:
    """Every part by name, those of one kind of problem from the file that is about it."""
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
