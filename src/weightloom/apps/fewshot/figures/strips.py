"""Classification tasks: a run in, strips with the support set, what was predicted, and the words beside it out."""

import torch
from jaxtyping import Int
from torch import Tensor

from weightloom.report.pictures import data_uri
from weightloom.report.run import Run
from weightloom.report.section import Query, Strip

WRONG_SHOWN = 30
"""Wrongly named queries of one of the worst tasks that are shown at most."""
SUPPORT_SHOWN = 5
"""Support images of a class that a strip shows at most."""
QUERIES_SHOWN = 15
"""Query images of a task that a strip shows about at most, the same number of each class."""


def task_strips(run: Run) -> list[Strip]:
    """Return one strip per evaluated task; none if the run holds no classification tasks."""
    names = run.facts.get("class_names") or []
    if "predicted" not in run.tensors:
        return []
    return [_strip(run.tensors, task, names[task], _texts(run, task)) for task in range(len(names))]


def worst_strips(run: Run) -> list[Strip]:
    """Return one strip per task of lowest accuracy, with those queries that went wrong."""
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
    """Return the places of the first ``count`` examples of each class, classes in order.

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
    """Texts of the points of a task, support and query; empty where they are pictures."""
    facts = {side: run.facts.get(f"{prefix}{side}_texts") for side in ("support", "query")}
    return {side: texts[task] if texts else [] for side, texts in facts.items()}


def _strip(
    tensors: dict[str, Tensor], task: int, names: list[str], texts: dict[str, list[str]]
) -> Strip:
    labels = tensors["support_y"][task]
    truth, predicted = tensors["query_y"][task], tensors["predicted"][task]
    there = (
        tensors["support_mask"][task]
        if "support_mask" in tensors
        else torch.ones_like(labels, dtype=torch.bool)
    )
    images = tensors["support_x"][task][there] if "support_x" in tensors else None
    support = first_of_each_class(labels[there], SUPPORT_SHOWN)
    each = max(1, QUERIES_SHOWN // len(names))
    queries = first_of_each_class(truth, each)
    said = (
        [text for text, here in zip(texts["support"], there.tolist(), strict=True) if here]
        if any(texts.values())
        else []
    )
    what = "images" if images is not None else "sentences" if said else "points"
    score = f"{int((truth == predicted).sum())} of {len(truth)} query {what} right"
    all_shown = sum(len(places) for places in queries.values()) == len(truth)
    return Strip(
        f"Task {task + 1}",
        [
            (names[label], [] if images is None else [data_uri(images[place]) for place in places])
            for label, places in support.items()
        ],
        [(names[label], [said[place] for place in places]) for label, places in support.items()]
        if said
        else [],
        [
            _query(tensors, task, place, names, texts["query"])
            for places in queries.values()
            for place in places
        ],
        score
        if all_shown
        else f"{score}; the first {f'{each} ' if each > 1 else ''}of each class shown",
    )


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
