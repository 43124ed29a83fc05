"""Report sections of reinforcement learning: returns, episodes, and values against returns."""

from html import escape
from statistics import fmean as mean
from typing import Any

from weightloom.report.figures import (
    BLUE,
    FEW,
    GREY,
    ORANGE,
    Figure,
    Key,
    as_json,
    mark,
    plain_layout,
)
from weightloom.report.run import Run
from weightloom.report.section import Section, with_shared

TRAINED = "in the training ranges"
UNSEEN = "held out"
GROUPS = (
    ("validation_returns", TRAINED, BLUE, "solid", "―"),
    ("held_out_returns", UNSEEN, ORANGE, "dot", "┄"),
)
"""Contexts evaluated in training: key in the metrics, name, colour, dash, and sign in the key."""


def sections(run: Run) -> list[Section]:
    """Return the sections of the report, those without data left out."""
    made = {
        "returns": Section(
            "Return by context, during training",
            "Higher is better."
            + (
                " Dotted lines that stay below show a policy that does not generalise to held-out "
                "contexts."
                if any("held_out_returns" in row for row in run.validation)
                else ""
            ),
            return_curves(run),
        ),
        "grid": Section(
            "Return over the grid of contexts",
            "Lighter is better, on one scale for all methods. Each point is one episode, all from "
            "the same start."
            if run.facts.get("grid_second")
            else "Higher is better. Each point is one episode, all from the same start.",
            return_maps(run),
        ),
        "episodes": Section(
            "Episodes in unseen contexts",
            _episode_words(run),
            rows=episode_rows(run),
        ),
        "values": Section(
            "Values against returns",
            "The value function against the discounted returns of the episodes that followed.",
            value_scatter(run),
        ),
    }
    return with_shared(run, made)


def _episode_words(run: Run) -> str:
    if "episode_paths" not in run.tensors:
        return "Rewards added up from the first step on."
    star = "; a star marks the target" if run.facts.get("episode_target") else ""
    return f"Each begins at the square, and darker points are later{star}."


def return_curves(run: Run) -> list[Figure]:
    """Plot the return of an episode against training steps, one line per context."""
    import plotly.graph_objects as go

    rows = [row for row in run.validation if "validation_returns" in row]
    if not rows:
        return []
    steps, drawn, words, keys = [row["step"] for row in rows], [], [], []
    mode = "lines+markers" if len(rows) < FEW else "lines"
    for key, name, colour, dash, sign in GROUPS:
        if key not in rows[0]:
            continue
        keys.append(Key(name, sign, colour))
        for number in range(len(rows[0][key])):
            style: dict[str, Any] = {"color": colour, "width": 1.2, "dash": dash}
            curve = [row[key][number] for row in rows]
            drawn.append(
                go.Scatter(x=steps, y=curve, mode=mode, line=style, opacity=0.7, hoverinfo="y")
            )
        words.append(f"{name} {mean(rows[0][key]):.3g} to {mean(rows[-1][key]):.3g}")
    alt = f"Return against steps in {len(drawn)} contexts: {'; '.join(words)}"
    caption = (
        "Each line is one context, the same throughout and none of the table's. Each point is one "
        "episode without exploration."
    )
    return [
        Figure(
            as_json(go.Figure(drawn, plain_layout("step", "return"))),
            alt,
            caption,
            320,
            tuple(keys),
        )
    ]


def return_maps(run: Run) -> list[Figure]:
    """Draw the return of every method over the grid of contexts, the training ranges framed."""
    if "grid_returns" not in run.tensors:
        return []
    first, second, methods = (run.facts[f"grid_{name}"] for name in ("first", "second", "methods"))
    returns = run.tensors["grid_returns"]
    if not second:
        return [_return_lines(run, first, methods)]
    limits = [float(returns.min()), float(returns.max())]
    grids = [values.unflatten(0, (len(second), len(first))).tolist() for values in returns]
    return [
        _return_map(run, method, grid, limits) for method, grid in zip(methods, grids, strict=True)
    ]


def episode_rows(run: Run) -> list[list[Figure]]:
    """Draw episodes in unseen contexts: paths, one row per method, or cumulative rewards."""
    if "episode_rewards" not in run.tensors:
        return []
    titles, methods = run.facts["episode_titles"], run.facts["episode_methods"]
    if "episode_paths" not in run.tensors:
        return [[_rewards(run, number, title, methods) for number, title in enumerate(titles)]]
    return [
        [_path(run, row, number, f"{method}: {title}") for number, title in enumerate(titles)]
        for row, method in enumerate(methods)
    ]


def value_scatter(run: Run) -> list[Figure]:
    """Plot values against the discounted returns that followed, with the root mean square error."""
    import plotly.graph_objects as go

    if "value_truth" not in run.tensors:
        return []
    truth, given = run.tensors["value_truth"], run.tensors["value_given"]
    ends = [float(truth.min()), float(truth.max())]
    right = go.Scatter(
        x=ends, y=ends, mode="lines", line={"color": GREY, "width": 2}, hoverinfo="skip"
    )
    style = {"color": BLUE, "size": 5, "opacity": 0.6}
    points = go.Scatter(x=truth.tolist(), y=given.tolist(), mode="markers", marker=style)
    off = float((given - truth).square().mean().sqrt())
    alt = (
        f"Values against discounted returns of {len(truth)} states: root mean square error "
        f"{off:.3g}"
    )
    unseen = UNSEEN if run.facts["ranges"][0][2] else "unseen in training"
    caption = (
        f"On the grey line the value equals the discounted return. The root mean square error is "
        f"{off:.3g}. The states are from episodes in contexts {unseen}."
    )
    layout = plain_layout("discounted return that followed", "value")
    return [Figure(as_json(go.Figure([right, points], layout)), alt, caption, 360)]


def _return_map(run: Run, method: str, grid: list[list[float]], limits: list[float]) -> Figure:
    import plotly.graph_objects as go

    first, second = run.facts["grid_first"], run.facts["grid_second"]
    (name, across, _), (other, up, _) = run.facts["ranges"][:2]
    bar = {"thickness": 10, "outlinewidth": 0, "title": {"text": "return", "side": "right"}}
    shade = {"colorscale": "Viridis", "zmin": limits[0], "zmax": limits[1], "colorbar": bar}
    heat = go.Heatmap(
        x=first,
        y=second,
        z=grid,
        hovertemplate="%{x:.3g}, %{y:.3g}: %{z:.4g}<extra></extra>",
        **shade,
    )
    layout = plain_layout(name, other)
    frame = {"type": "rect", "x0": across[0], "x1": across[1], "y0": up[0], "y1": up[1]}
    layout["shapes"] = [frame | {"line": {"color": ORANGE, "width": 3}}]
    flat = [value for row in grid for value in row]
    alt = f"Return of {method} over {name} and {other}: {min(flat):.3g} to {max(flat):.3g}"
    caption = (
        "The orange frame holds the training ranges; no context outside it was used in training."
    )
    return Figure(as_json(go.Figure([heat], layout)), alt, caption, 320, (), method)


def _return_lines(run: Run, first: list[float], methods: list[str]) -> Figure:
    import plotly.graph_objects as go

    name, across, _ = run.facts["ranges"][0]
    drawn, keys = [], []
    for number, method in enumerate(methods):
        colour, symbol, sign = mark(number)
        style: dict[str, Any] = {
            "line": {"color": colour, "width": 2},
            "marker": {"symbol": symbol, "size": 8},
        }
        returns = run.tensors["grid_returns"][number].tolist()
        drawn.append(
            go.Scatter(x=first, y=returns, mode="lines+markers", name=escape(method), **style)
        )
        keys.append(Key(method, sign, colour))
    layout = plain_layout(name, "return")
    band = {"type": "rect", "x0": across[0], "x1": across[1], "yref": "paper", "y0": 0, "y1": 1}
    layout["shapes"] = [band | {"fillcolor": ORANGE, "opacity": 0.12, "line": {"width": 0}}]
    caption = "The orange band is the training range; no context outside it was used in training."
    return Figure(
        as_json(go.Figure(drawn, layout)), f"Return against {name}", caption, 320, tuple(keys)
    )


def _path(run: Run, row: int, number: int, title: str) -> Figure:
    import plotly.graph_objects as go

    path = run.tensors["episode_paths"][row, number]
    x, y = path.T.tolist()
    total = float(run.tensors["episode_rewards"][row, :, number].sum())
    place = {"x": x, "y": y, "mode": "lines+markers", "line": {"color": BLUE, "width": 1.5}}
    shade = {"size": 5, "color": list(range(len(x))), "colorscale": "Blues"}
    drawn = [
        go.Scatter(
            **place, marker=shade, hoverinfo="text", text=[f"step {step}" for step in range(len(x))]
        ),
        go.Scatter(
            x=x[:1], y=y[:1], mode="markers", marker={"color": GREY, "size": 11, "symbol": "square"}
        ),
    ]
    if target := run.facts.get("episode_target"):
        star = {"color": ORANGE, "size": 13, "symbol": "star"}
        drawn.append(go.Scatter(x=target[:1], y=target[1:], mode="markers", marker=star))
    layout = plain_layout(*run.facts["episode_axes"])
    layout["margin"] = {"l": 40, "r": 6, "t": 6, "b": 36}
    every = run.tensors["episode_paths"].flatten(0, 2)
    for axis, numbers in zip(("xaxis", "yaxis"), every.T, strict=True):
        low, high = float(numbers.min()), float(numbers.max())
        layout[axis] |= {"range": [low - 0.05 * (high - low), high + 0.05 * (high - low)]}
    alt = f"Path of {title}, return {total:.4g}"
    return Figure(as_json(go.Figure(drawn, layout)), alt, f"Return {total:.4g}.", 220, (), title)


def _rewards(run: Run, number: int, title: str, methods: list[str]) -> Figure:
    import plotly.graph_objects as go

    sums = run.tensors["episode_rewards"][:, :, number].cumsum(1)
    drawn = [
        go.Scatter(
            y=line.tolist(),
            mode="lines",
            name=escape(method),
            line={"color": mark(row)[0], "width": 2},
        )
        for row, (line, method) in enumerate(zip(sums, methods, strict=True))
    ]
    words = ", ".join(
        f"{method} {float(line[-1]):.4g}" for line, method in zip(sums, methods, strict=True)
    )
    layout = plain_layout("step of the episode", "cumulative reward")
    keys = tuple(Key(method, "―", mark(row)[0]) for row, method in enumerate(methods))
    return Figure(
        as_json(go.Figure(drawn, layout)), f"{title}: {words}", f"{words}.", 220, keys, title
    )
