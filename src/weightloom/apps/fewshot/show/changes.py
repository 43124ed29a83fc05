"""Changes of the base network by a method, parameter by parameter, for two tasks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from weightloom.apps.fewshot.problems import Problem
from weightloom.apps.fewshot.problems.classes import ClassProblem
from weightloom.apps.fewshot.show.classes import class_names
from weightloom.apps.fewshot.show.draw import Shown, generator, source_of
from weightloom.forms.factored import built
from weightloom.learners.learner import Learner
from weightloom.params import parameters_by_name
from weightloom.tasks import Tasks

MATRICES = 3
"""Maximum number of generated matrices drawn, the largest ones."""
ROWS, COLUMNS = 40, 64
"""Maximum size of a drawn matrix; the rest is cut off."""


def changes(
    learner: Learner, problem: Problem, early: bool, titles: Callable[[Tasks], list[str]]
) -> Shown | str:
    """Compare the parameters of two tasks with the base's own values and with each other.

    Args:
        learner: The method.
        problem: Source of the tasks, which have the most shots of the table.
        early: Take validation tasks.
        titles: Names tasks.

    Returns:
        The generated matrices, largest first but the head before all, less the base's own values;
        and facts with a row of norms for each parameter. A sentence if the method adapts no
        parameter.
    """
    shots = max(problem.config.shots)
    tasks = source_of(problem, shots, early).sample(2, generator())
    params = {name: built(value).float() for name, value in learner.adapt(tasks.support).items()}
    own = own_values(learner, params)
    if not params:
        return "The method adapts no parameter."
    rows = [_row(name, value, own.get(name)) for name, value in params.items()]
    tensors: dict[str, Tensor] = {}
    maps: list[dict[str, Any]] = []
    head, matrices = _matrices(params, problem, tasks)
    for name in matrices:
        value = params[name] - own[name] if name in own else params[name]
        tensors[f"changed_{len(maps)}"] = value.flatten(2)[:, :ROWS, :COLUMNS]
        shape = [value.shape[1], value[0, 0].numel()]
        maps.append({"name": name, "shape": shape, "own": name in own, "by_class": name == head})
    facts: dict[str, Any] = {"tasks": titles(tasks), "shots": shots, "rows": rows, "maps": maps}
    if isinstance(problem, ClassProblem):
        facts["class_names"] = class_names(problem, early, tasks)
    return tensors, {"changes": facts}


def own_values(learner: Learner, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the base's own values of generated parameters, by name.

    Parameters that the base lacks, has in another shape, or has as zeros are left out.
    """
    base = getattr(learner, "base", None)
    if not isinstance(base, torch.nn.Module):
        return {}
    known = parameters_by_name(base)
    return {
        name: known[name].detach().float()
        for name, value in params.items()
        if name in known and known[name].shape == value.shape[1:] and bool(known[name].any())
    }


def _matrices(
    params: dict[str, Tensor], problem: Problem, tasks: Tasks
) -> tuple[str | None, list[str]]:
    """Return the name of the head by class, or None, and the names of the matrices to draw."""
    matrices = [name for name, value in params.items() if value.ndim > 2]
    head = matrices[-1] if matrices and _by_class(params[matrices[-1]], problem, tasks) else None
    matrices.sort(key=lambda name: (name != head, -params[name].numel()))
    return head, matrices[:MATRICES]


def _row(name: str, value: Tensor, own: Tensor | None) -> dict[str, Any]:
    """Return the norms of a parameter's changes, relative to the norm of the own value.

    Without an own value ``relative`` is None, and the distance of the two tasks is relative to the
    root mean square norm of their values.
    """
    norms = value.flatten(1).norm(dim=1)
    apart = float((value[0] - value[1]).norm())
    if own is None:
        size = float(norms.square().mean().sqrt())
        return {
            "name": name,
            "relative": None,
            "apart": apart / size if size else 0.0,
            "size": size,
        }
    size = float(own.norm())
    relative = [float((each - own).norm()) / size for each in value]
    return {"name": name, "relative": relative, "apart": apart / size, "size": size}


def _by_class(value: Tensor, problem: Problem, tasks: Tasks) -> bool:
    """Return True if the last matrix has a row for every class of a task."""
    return (
        isinstance(problem, ClassProblem)
        and value.ndim == 3
        and value.shape[1] == Learner.ways_of(tasks.support)
    )
