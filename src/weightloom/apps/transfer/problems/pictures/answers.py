"""Answers of the methods of `--data pictures`, for all targets of a family.

In:   a model, a family of targets.
Out:  logits of queries, and of the support by folds; seconds, sizes of changes.
Knows nothing of training and of tables.
"""

import time
from collections.abc import Mapping
from statistics import median

import torch
from torch import Tensor, nn

from weightloom.apps.transfer.problems.pictures.models import (
    RATES,
    GeneratedFilm,
    LowRankTuned,
    PictureModel,
)
from weightloom.apps.transfer.problems.pictures.targets import QUERIES, SHOTS, Family, draw_places
from weightloom.apps.transfer.problems.problem import Condition, Outputs
from weightloom.base import apply_per_task
from weightloom.losses import cross_entropy_per_task

AT_ONCE, PICTURES = 8, 250
"""Targets that are answered together, and pictures that are read together."""
SCALE_TASKS, SCALE_SEED = 200, 3 << 20
"""Training tasks that scales and conditions are measured on, and their seed."""
SCALES = torch.logspace(-1.0, 2.5, 50)
"""Scales that are tried."""
REPEATS = 3
"""Timed repetitions."""


def read_all(features: nn.Module, pictures: Tensor) -> Tensor:
    """Return the features of pictures, (pictures, 3, 32, 32) to (pictures, width)."""
    return torch.cat([features(part) for part in pictures.split(PICTURES)])


def training_supports(known: Tensor) -> tuple[Tensor, Tensor]:
    """Draw 5-way training tasks from features by class, (classes, pictures, width).

    Returns:
        Features of supports, (tasks, ways, shots, width), and of queries, (tasks, queries, width).
    """
    counts = torch.full((len(known),), known.shape[1])
    places = draw_places(counts, SCALE_TASKS, 5, SCALE_SEED)
    found = known.flatten(0, 1)[places]
    return found[:, :, :SHOTS], found[:, :, SHOTS:].flatten(1, 2)


def calibrated(model: PictureModel, support: Tensor, query: Tensor) -> PictureModel:
    """Set the scale of a model to that of the lowest log loss on some tasks, and return it.

    Args:
        model: A model whose scale is not trained.
        support: Features of supports, (tasks, ways, shots, width).
        query: Features of queries, class after class, (tasks, ways · QUERIES, width).
    """
    y = torch.arange(support.shape[1]).repeat_interleave(QUERIES).expand(len(query), -1)
    with torch.no_grad():
        model.log_scale.zero_()
        logits = model.logits(support, query)
        losses = torch.stack([cross_entropy_per_task(scale * logits, y).mean() for scale in SCALES])
        model.log_scale.copy_(SCALES[losses.argmin()].log())
    return model


def from_table(model: PictureModel, family: Family, table: Tensor) -> tuple[Tensor, Tensor]:
    """Answer by features of all pictures, read by the network that all targets share.

    Args:
        model: The model.
        family: The targets.
        table: Features of the family's pictures, (pictures, width).

    Returns:
        Logits of queries, (targets, queries, ways), and of the support, each shot by the others,
        (targets, ways · shots, ways).
    """
    support = table[family.support]
    folds = [model.logits(_without(support, shot), support[:, :, shot]) for shot in range(SHOTS)]
    return model.logits(support, table[family.query]), torch.stack(folds, 2).flatten(1, 2)


def one_by_one(
    model: PictureModel, family: Family, condition: Condition, folds: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Answer by a network of each target's own; arguments and result as for `from_table`.

    Args:
        model: The model.
        family: The targets.
        condition: Condition that a generator reads.
        folds: Also answer the support, if the condition is each target's own.
    """
    parts, held = list[Tensor](), list[Tensor]()
    conditions = conditions_of(model, family, condition)
    for chosen in torch.arange(len(family.places)).split(AT_ONCE):
        support = family.pictures[family.support[chosen]]
        query = family.pictures[family.query[chosen]]
        its = None if conditions is None else conditions[chosen]
        parts.append(model.answer(support, query, its))
        if folds and condition == "own":
            found = [model.answer(_without(support, j), support[:, :, j]) for j in range(SHOTS)]
            held.append(torch.stack(found, 2).flatten(1, 2))
    return torch.cat(parts), torch.cat(held) if held else None


def conditions_of(model: PictureModel, family: Family, condition: Condition) -> Tensor | None:
    """Return conditions in place of each target's own, (targets, condition_dim); None for those."""
    if condition == "own" or not isinstance(model, GeneratedFilm):
        return None
    own = torch.cat(
        [model.condition(family.pictures[its]) for its in family.support.split(AT_ONCE)]
    )
    return own.roll(1, 0) if condition == "shuffled" else torch.zeros_like(own)


def stepped(model: PictureModel, family: Family, steps: int) -> Outputs:
    """Take gradient steps on each target, and answer its query.

    Args:
        model: The model whose parameters the steps start from.
        family: The targets.
        steps: Steps of Adam.
    """
    rate = RATES["lora" if isinstance(model, LowRankTuned) else model.tunes or ""]
    parts, spent_s = list[Tensor](), list[float]()
    for support, query in zip(family.support, family.query, strict=True):
        start_s = time.perf_counter()
        base, params = model.tuned(family.pictures[support][None], steps, rate)
        spent_s.append(time.perf_counter() - start_s)
        parts.append(apply_per_task(base, params, family.pictures[query][None]))
    return Outputs(torch.cat(parts).softmax(2), None, median(spent_s), {})


def seconds(model: PictureModel, family: Family) -> float:
    """Return the median seconds from the support of a target to the answer for one picture."""
    support = family.pictures[family.support[:1]]
    query = family.pictures[family.query[:1, :1]]
    spent_s = list[float]()
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        model.answer(support, query)
        spent_s.append(time.perf_counter() - start_s)
    return median(spent_s)


def changes(
    model: PictureModel, source: Mapping[str, Tensor], family: Family, condition: Condition
) -> dict[str, Tensor]:
    """Return norms of the change by stage, divided by the weights' norms, each (targets,).

    Args:
        model: The model.
        source: Parameters of the source by name.
        family: The targets.
        condition: Condition that a generator reads; its change is that of its frozen network.
    """
    targets = len(family.places)
    if isinstance(model, GeneratedFilm):
        conditions = conditions_of(model, family, condition)
        if conditions is None:
            supports = family.support.split(AT_ONCE)
            conditions = torch.cat([model.condition(family.pictures[its]) for its in supports])
        source = dict(model.features.named_parameters())
        now: Mapping[str, Tensor] = {**model.generated(conditions)}
    elif model.trained:
        now = {
            name: own.expand(targets, *own.shape) for name, own in model.features.named_parameters()
        }
    else:
        return {}
    moved, norm = dict[str, Tensor](), dict[str, Tensor]()
    for name, value in now.items():
        stage = name.split(".")[1] if "layer" in name else "stem"
        square = (value - source[name]).flatten(1).square().sum(1)
        moved[stage] = moved.get(stage, torch.zeros(targets)) + square
        norm[stage] = norm.get(stage, torch.zeros(())) + source[name].square().sum()
    return {stage: (moved[stage] / norm[stage]).sqrt() for stage in moved}


def _without(support: Tensor, shot: int) -> Tensor:
    """Return supports without one shot of each class, (targets, ways, shots - 1, ...)."""
    kept = [number for number in range(support.shape[2]) if number != shot]
    return support[:, :, kept]
