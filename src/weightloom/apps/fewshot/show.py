"""A few tasks to look at, and a map of conditions: what the report draws beside the numbers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.apps.fewshot.judge import TEST_SEED
from weightloom.apps.fewshot.learner import Learner, Support
from weightloom.apps.fewshot.problems import Problem
from weightloom.apps.fewshot.problems.classes import ClassProblem
from weightloom.apps.fewshot.problems.curves import CurveProblem
from weightloom.checkpoint import save_tensors
from weightloom.losses import mse_per_task
from weightloom.records import summary
from weightloom.tasks import SinusoidTasks

SHOWN_TASKS = 6
MAP_TASKS = 200
MAP_CLASSES = 10
CURVE_SHOTS = (1, 3, 5, 10)


@torch.no_grad()
def write_showcase(run: Path, learners: dict[str, Learner], problem: Problem, early: bool = False) -> None:
    """Write ``evaluation.safetensors`` for the report.

    Args:
        run: The run's folder.
        learners: The methods; put into eval mode. The predictions of the first are shown.
        problem: Where tasks come from.
        early: During training: show validation tasks, so that meta-test stays untouched.
    """
    learner = next(iter(learners.values())).eval()
    if isinstance(problem, ClassProblem):
        tensors, facts = _classified(learner, problem, early)
    else:
        assert isinstance(problem, CurveProblem)
        tensors, facts = _curves(learner, problem, early)
    save_tensors(run / "evaluation.safetensors", tensors, facts)


def _classified(learner: Learner, problem: ClassProblem, early: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    pool = problem.validation if early else problem.held_out
    fewest, most = min(problem.config.shots or (1,)), max(problem.config.shots or (1,))
    source = problem.validation_source if early else problem.test_source
    tasks = source(fewest).sample(SHOWN_TASKS, _generator())
    confidence, predicted = learner.answer(tasks).softmax(2).max(2)
    mapped = source(most).sample(MAP_TASKS, _generator())
    conditions = learner.condition(Support.of(mapped))
    assert conditions is not None
    shown = mapped.hidden.unique()[:MAP_CLASSES]
    kept = torch.isin(mapped.hidden, shown)
    return {
        "support_x": tasks.support_x,
        "support_y": tasks.support_y,
        "query_x": tasks.query_x,
        "query_y": tasks.query_y,
        "predicted": predicted,
        "confidence": confidence,
        "conditions": conditions[kept],
        "condition_class": torch.searchsorted(shown, mapped.hidden[kept]),
    }, {
        "kind": "classification",
        "class_names": [[pool.names[i] for i in row] for row in tasks.hidden.tolist()],
        "condition_names": [pool.names[i] for i in shown.tolist()],
    }


def _curves(learner: Learner, problem: CurveProblem, early: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    most = max(problem.config.shots or (1,))
    shots = [k for k in CURVE_SHOTS if k < most] + [most]
    tasks = problem.test_source(shots[-1]).sample(SHOWN_TASKS, _generator())
    amplitude, phase = tasks.hidden[:, None, :1], tasks.hidden[:, None, 1:]
    x = torch.linspace(-5, 5, 201)[None, :, None].expand(SHOWN_TASKS, -1, -1)
    predicted = []
    for kept in shots:
        mask = (torch.arange(shots[-1]) < kept).expand(SHOWN_TASKS, -1)
        params = learner.adapt(Support(tasks.support_x, tasks.support_y, mask))
        predicted.append(learner.predict(params, x)[..., 0])
    mapped = problem.test_source(shots[-1]).sample(MAP_TASKS, _generator())
    conditions = learner.condition(Support.of(mapped))
    assert conditions is not None
    error = [_error(learner, problem, k, 200 if early else 1000) for k in shots]
    return {
        "curve_x": x[0, :, 0],
        "curve_y": SinusoidTasks.curve(x, amplitude, phase)[..., 0],
        "curve_predicted": torch.stack(predicted, dim=1),
        "support_x": tasks.support_x[..., 0],
        "support_y": tasks.support_y[..., 0],
        "shots_mse": torch.tensor([row["mean"] for row in error]),
        "shots_ci95": torch.tensor([row["ci95"] for row in error]),
        "conditions": conditions,
        "condition_value": mapped.hidden,
    }, {"kind": "regression", "shots": shots, "condition_value_names": ["amplitude", "phase"]}


def _error(learner: Learner, problem: CurveProblem, shots: int, tasks: int) -> dict[str, float]:
    """Error on new tasks that are not those of the table."""
    drawn = problem.validation_source(shots).sample(tasks, _generator())
    return summary(mse_per_task(learner.answer(drawn), drawn.query_y))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(TEST_SEED - 1)
