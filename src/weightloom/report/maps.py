"""Maps of conditions: the input of the hypernetwork for each task, on its principal plane."""

import math
from collections import Counter
from html import escape
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.report.figures import (
    COLOURS,
    GREY,
    POINTS_DRAWN,
    Figure,
    Key,
    as_json,
    mark,
    plain_layout,
)
from weightloom.report.run import Facts, Run

TASKS = ("task", "family", "")
CLASSES = ("class of a task", "class", ", in every task")
"""Words for the captions of maps: a mark, its group, and the end of the sentence."""


def condition_maps(run: Run) -> list[Figure]:
    """Plot conditions on their principal plane: one map by class, or one per hidden value.

    Runs with fewer than three conditions have none.
    """
    conditions = run.tensors.get("conditions")
    if conditions is None or len(conditions) < 3:
        return []
    every = max(1, math.ceil(len(conditions) / POINTS_DRAWN))
    places, shares = principal_plane(conditions)
    if "condition_class" in run.tensors:
        names = [
            run.facts["condition_names"][index]
            for index in run.tensors["condition_class"][::every].tolist()
        ]
        return [_class_map(places[::every], shares, names, run.facts.get("condition_of") == "task")]
    if "condition_value" not in run.tensors:
        return []
    values, value_names = (
        run.tensors["condition_value"][::every].T,
        run.facts["condition_value_names"],
    )
    return [
        _value_map(places[::every], shares, *each) for each in zip(values, value_names, strict=True)
    ]


def principal_plane(
    conditions: Float[Tensor, "count condition_dim"],
) -> tuple[Float[Tensor, "count 2"], Float[Tensor, " 2"]]:
    """Project conditions on their first two principal components.

    The largest entry of each direction is made positive, so that equal conditions always give the
    same map. NaN and infinity count as 0.

    Returns:
        Places on the plane, and the share of the variance along each of its axes.

    Example:
        >>> places, shares = principal_plane(torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]))
        >>> places[:, 0].tolist(), shares.tolist()
        ([-2.0, 0.0, 2.0], [1.0, 0.0])
    """
    finite = conditions.double().nan_to_num(0.0, 0.0, 0.0)
    padded = torch.nn.functional.pad(finite - finite.mean(0), (0, max(0, 2 - finite.shape[1])))
    _, scales, directions = torch.linalg.svd(padded, full_matrices=False)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()
    shares = scales.square() / scales.square().sum().clamp(min=1e-30)
    return (padded @ directions[:2].T).to(conditions.dtype), shares[:2].to(conditions.dtype)


def _class_map(places: Tensor, shares: Tensor, names: list[str], of_tasks: bool) -> Figure:
    """Plot a map by class: the most frequent ones have a colour each, all others are grey."""
    import plotly.graph_objects as go

    shown = sorted(name for name, _ in Counter(sorted(names)).most_common(len(COLOURS)))
    rest = [i for i, name in enumerate(names) if name not in shown]
    points = [_points(places[rest], "other classes", GREY, "circle-open")] if rest else []
    keys = []
    for i, name in enumerate(shown):
        colour, symbol, sign = mark(i)
        chosen = [place for place, other in enumerate(names) if other == name]
        points.append(_points(places[chosen], escape(name), colour, symbol))
        keys.append(Key(name, sign, colour))
    keys += [Key("other classes", "○", GREY)] if rest else []
    each, group, end = TASKS if of_tasks else CLASSES
    return Figure(
        as_json(go.Figure(points, _map_layout(shares))),
        f"Map of {len(names)} conditions, one per {each}, coloured by {group}",
        f"Each mark is the condition of one {each}. If marks of one {group} lie together, apart "
        f"from the others, the condition tells the {group}{end}.",
        400,
        tuple(keys),
    )


def _value_map(places: Tensor, shares: Tensor, values: Tensor, name: str) -> Figure:
    import plotly.graph_objects as go

    bar = {"title": {"text": escape(name)}, "thickness": 12, "outlinewidth": 0}
    marker = {
        "color": values.tolist(),
        "colorscale": "Viridis",
        "size": 6,
        "showscale": True,
        "colorbar": bar,
    }
    x, y = places.T.tolist()
    texts = [f"{escape(name)} {value:.3g}" for value in values.tolist()]
    points = go.Scatter(x=x, y=y, mode="markers", marker=marker, text=texts, hoverinfo="text")
    return Figure(
        as_json(go.Figure([points], _map_layout(shares))),
        f"Map of {len(places)} conditions, one per task, coloured by {name}",
        f"Each mark is the condition of one task, coloured by the task's {name}. If colours change "
        f"smoothly across the map, the condition tells the {name}.",
        360,
    )


def _points(places: Tensor, name: str, colour: str, symbol: str) -> Any:
    import plotly.graph_objects as go

    x, y = places.T.tolist()
    marker = {"color": colour, "symbol": symbol, "size": 7, "opacity": 0.85}
    return go.Scatter(x=x, y=y, mode="markers", name=name, hoverinfo="name", marker=marker)


def _map_layout(shares: Tensor) -> Facts:
    first, second = (f"{100 * float(share):.0f} % of variance" for share in shares)
    return plain_layout(f"direction 1 ({first})", f"direction 2 ({second})")
