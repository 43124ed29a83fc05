"""Strips of classification tasks: the support set by class, and the queries with predictions."""

from collections.abc import Callable, Sequence
from itertools import chain, compress
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from weightloom.report.pictures import data_uri
from weightloom.report.run import Run
from weightloom.report.section import Query, Strip

WRONG_SHOWN = 30
"""Maximum number of misclassified queries shown of one of the worst tasks."""
SUPPORT_SHOWN = 5
"""Maximum number of support images per class in a strip."""
QUERIES_SHOWN = 15
"""Approximate maximum number of queries in a strip, equally many of each class and at least one."""


def task_strips(run: Run) -> list[Strip]:
    """Return one strip per shown task; empty if the run has no classification tasks."""
    names = run.facts.get("class_names") or []
    if "predicted" not in run.tensors:
        return []
    return [_strip(run.tensors, task, names[task], _texts(run, task)) for task in range(len(names))]


def worst_strips(run: Run) -> list[Strip]:
    """Return one strip per task of lowest accuracy, with its misclassified queries alone."""
    names = run.facts.get("worst_class_names") or []
    tensors = {
        name.removeprefix("worst_"): value
        for name, value in run.tensors.items()
        if name.startswith("worst_")
    }
    strips = []
    for task in range(len(names)):
        wrong = (tensors["query_y"][task] != tensors["predicted"][task]).nonzero()[:, 0].tolist()
        texts = _texts(run, task, "worst_")
        strip = _strip(tensors, task, names[task], texts)
        some = "" if len(wrong) <= WRONG_SHOWN else "some of "
        score = strip.score.partition(";")[0] + (f"; {some}the others shown" if wrong else "")
        queries = [
            _query(tensors, task, place, names[task], texts["query"])
            for place in wrong[:WRONG_SHOWN]
        ]
        strips.append(strip._replace(queries=queries, score=score))
    return strips


def first_of_each_class(labels: Int[Tensor, " batch"], count: int) -> dict[int, list[int]]:
    """Return the indices of the first ``count`` examples of each class, classes in order.

    Example:
        >>> first_of_each_class(torch.tensor([1, 0, 1, 1]), count=2)
        {0: [1], 1: [0, 2]}
    """
    places: dict[int, list[int]] = {label: [] for label in sorted(set(labels.tolist()))}
    for place, label in enumerate(labels.tolist()):
        if len(places[label]) < count:
            places[label].append(place)
    return places


def _texts(run: Run, task: int, prefix: str = "") -> dict[str, list[str]]:
    """Return the texts of a task's points by side, support and query; empty for pictures."""
    facts = {side: run.facts.get(f"{prefix}{side}_texts") for side in ("support", "query")}
    return {side: texts[task] if texts else [] for side, texts in facts.items()}


def _strip(
    tensors: dict[str, Tensor], task: int, names: list[str], texts: dict[str, list[str]]
) -> Strip:
    there = _present(tensors, task)
    images = [*tensors["support_x"][task][there]] if "support_x" in tensors else []
    said = [*compress(texts["support"], there.tolist())]
    support = first_of_each_class(tensors["support_y"][task][there], SUPPORT_SHOWN)
    each = max(1, QUERIES_SHOWN // len(names))
    queries = [*chain(*first_of_each_class(tensors["query_y"][task], each).values())]
    points = "images" if images else "sentences" if said else "points"
    return Strip(
        f"Task {task + 1}",
        _by_class(names, support, images, data_uri),
        _by_class(names, support, said, str) if said else [],
        [_query(tensors, task, place, names, texts["query"]) for place in queries],
        _score_words(tensors, task, points, len(queries), each),
    )


def _present(tensors: dict[str, Tensor], task: int) -> Tensor:
    """Return True for each support point that is not masked, (batch,)."""
    if "support_mask" in tensors:
        return tensors["support_mask"][task]
    return torch.ones_like(tensors["support_y"][task], dtype=torch.bool)


def _by_class(
    names: list[str],
    support: dict[int, list[int]],
    points: Sequence[Any],
    show: Callable[[Any], str],
) -> list[tuple[str, list[str]]]:
    """Return the name of each class with its shown support points, or none if there are none."""
    return [
        (names[label], [show(points[place]) for place in places] if points else [])
        for label, places in support.items()
    ]


def _score_words(tensors: dict[str, Tensor], task: int, points: str, shown: int, each: int) -> str:
    """Return the number of correct queries in words, and which of them are shown if not all."""
    right = tensors["query_y"][task] == tensors["predicted"][task]
    score = f"{int(right.sum())} of {len(right)} query {points} right"
    if shown == len(right):
        return score
    return f"{score}; the first {f'{each} ' if each > 1 else ''}of each class shown"


def _query(
    tensors: dict[str, Tensor], task: int, place: int, names: list[str], texts: list[str]
) -> Query:
    truth, predicted = int(tensors["query_y"][task, place]), int(tensors["predicted"][task, place])
    return Query(
        data_uri(tensors["query_x"][task, place]) if "query_x" in tensors else "",
        names[truth],
        names[predicted],
        f"{100 * float(tensors['confidence'][task, place]):.0f} %",
        truth == predicted,
        texts[place] if texts else "",
    )
