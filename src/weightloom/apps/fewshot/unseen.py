"""Scores on features of a backbone: before training, and on classes that it does not know.

In:   a problem whose pictures a backbone reads.
Out:  rows of a table, and the entry ``backbone`` of a record.
"""

import copy
from collections.abc import Mapping
from typing import Any

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.judge import judge
from weightloom.apps.fewshot.problems import Problem
from weightloom.apps.fewshot.problems.classes import ClassProblem
from weightloom.learners.learner import Learner
from weightloom.runs.record import Row

BEFORE = ("protonet", "protonet-unit")
"""Methods in closed form but for a scale of their logits, shown before training."""


def score_before(problem: Problem, config: FewShotOptions) -> list[Row]:
    """Judge the methods of `BEFORE` untrained, in every setting.

    Only pictures of test classes are read for it, and a few of every training class.

    Args:
        problem: The problem.
        config: Resolved options.

    Returns:
        Rows; none without a backbone.
    """
    if not isinstance(problem, ClassProblem) or problem.read is None:
        return []
    rows = list[Row]()
    for ways, shots in problem.settings():
        for name in (name for name in BEFORE if name in config.methods):
            scores = judge(problem.learner(name), problem, shots, config.test_tasks, ways)
            rows.append(scores.row(name, problem.setting(shots, ways), role="untrained"))
    return rows


def score_unknown(
    models: Mapping[str, Learner], problem: Problem, config: FewShotOptions
) -> dict[str, Any]:
    """Judge methods on tasks of the classes that a pretrained backbone does not know.

    Args:
        models: Trained methods by name.
        problem: The problem.
        config: Resolved options.

    Returns:
        ``{"backbone": facts}``: its name, the names of ``known`` and ``unknown`` test classes, and
        ``scores``, rows of the tasks of unknown classes, none if these are too few. Empty without
        such a backbone.
    """
    read = problem.read if isinstance(problem, ClassProblem) else None
    if not isinstance(problem, ClassProblem) or read is None or read.backbone.classify is None:
        return {}
    known, names = read.knows(problem.held_out), problem.held_out.names
    unknown = [number for number, its in enumerate(known) if not its]
    facts = {
        "name": read.backbone.name,
        "known": [name for name, its in zip(names, known, strict=True) if its],
        "unknown": [names[number] for number in unknown],
        "scores": _scores_of(unknown, models, problem, config),
    }
    return {"backbone": facts}


def _scores_of(
    classes: list[int],
    models: Mapping[str, Learner],
    problem: ClassProblem,
    config: FewShotOptions,
) -> list[Row]:
    """Judge methods on tasks of some test classes; no rows in settings of more ways than these."""
    apart = copy.copy(problem)
    apart.held_out = problem.held_out.pick(classes)
    return [
        judge(model, apart, shots, config.test_tasks, ways).row(name, problem.setting(shots, ways))
        for ways, shots in problem.settings()
        for name, model in models.items()
        if len(classes) >= ways and model.ways in (None, ways)
    ]


def in_words(facts: Mapping[str, Any]) -> str:
    """Return the entry ``backbone`` of a record in a few sentences.

    Example:
        >>> row = {"method": "protonet", "setting": "2-way 1-shot", "mean": 0.75}
        >>> facts = {"name": "net", "known": ["cup"], "unknown": ["owl", "eel"], "scores": [row]}
        >>> in_words(facts).partition(". ")[2]
        'On tasks of the other 2 (2-way 1-shot): protonet 0.750.'
    """
    known, unknown = facts["known"], facts["unknown"]
    text = (
        f"`{facts['name']}` seems to know {len(known)} of the {len(known) + len(unknown)} judged "
        f"classes from its own training{': ' if known else ''}{', '.join(known)}. "
    )
    if not facts["scores"]:
        return f"{text}The other {len(unknown)} are too few for tasks of their own."
    by_method: dict[str, list[str]] = {}
    for row in facts["scores"]:
        by_method.setdefault(row["method"], []).append(f"{row['mean']:.3f}")
    scores = ", ".join(f"{name} {' / '.join(its)}" for name, its in by_method.items())
    settings = " / ".join(dict.fromkeys(row["setting"] for row in facts["scores"]))
    return f"{text}On tasks of the other {len(unknown)} ({settings}): {scores}."
