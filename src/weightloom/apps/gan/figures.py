"""Report sections of an adversarial run: samples, training, nearest pictures, sounds, balance.

Drawn from tensors and facts that `GanProblem.show` returns; a section without them is left out.

Tensors, with images in [0, 1] and METHOD the name of a method:
    ``samples/METHOD``: (conditions, count, channels, height, width), samples of each condition.
    ``walk/METHOD``: (count, channels, height, width), one noise while the condition changes.
    ``resolutions/METHOD/SIZE``: (channels, SIZE, SIZE), one function at several sizes.
    ``nearest/METHOD``: (count, 2, channels, height, width), samples with training images.
    ``sounds/METHOD``: (count, samples) in [-1, 1], equally many of each condition, in order.
    ``points/METHOD``: (count, 2), samples in the plane.
    ``centres``: (modes, 2), for all points.
Facts:
    ``classes``: name of each condition. Default: its number.
    ``nearest``: by method, distance of each pair.
    ``rate``: samples of a sound per second.

Samples at each evaluation are read from the frames in each method's folder, and the players' losses
and gradient norms from its metrics.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from weightloom.apps.gan.training import FRAMES
from weightloom.files import load_tensors
from weightloom.report.audio import sound_uri
from weightloom.report.figures import (
    GREY,
    POINTS_DRAWN,
    Figure,
    Key,
    as_json,
    mark,
    plain_layout,
    trailing_means,
)
from weightloom.report.pictures import data_uri, side_by_side
from weightloom.report.run import Facts, Run
from weightloom.report.section import Grid, GridRow, Section, Sounds, with_shared
from weightloom.runs.metrics import read_rows

MOST_ACROSS, MOST_DOWN = 20, 10
"""Maximum number of images in a row, and of rows in a grid."""
MOST_FRAMES = 8
"""Maximum number of evaluations shown of one training."""
MOST_POINTS, FRAME_POINTS = 600, 200
"""Maximum number of points in a plane, and in one of several: each takes 100 bytes of the page."""
MOST_SOUNDS = 20
"""Maximum number of sounds of one method."""
MOST_PIXELS, MOST_SAMPLES = 300_000, 330_000
"""Maximum numbers in the grids of a section, and in all sounds: 1.3 and 2.7 bytes each."""
SHOWN_PIXELS = 48
"""About the height of a small image, in CSS pixels."""
PLAYERS = {"loss": "loss", "gradient_norm": "gradient norm"}
"""Logged numbers of the players, with the titles of their axes."""


def sections(run: Run) -> list[Section]:
    """Return the sections of the report, those without data left out."""
    trainings = dict(_trainings(run))
    made = {
        "samples": Section(
            "Samples",
            "Drawn in order from one seed; none was chosen.",
            grids=sample_grids(run),
            leads=True,
        ),
        "points": Section(
            "Samples in the plane",
            "Grey crosses are the centres of the data's modes.",
            point_figures(run),
            leads=True,
        ),
        "training": Section(
            "Samples during training",
            "The same noise at every evaluation.",
            grids=frame_grids(trainings),
            rows=frame_rows(trainings),
        ),
        "walk": Section(
            "Walk between conditions",
            "One noise, while the condition moves in a line from each to the next.",
            grids=_one_row_each(run, "walk"),
        ),
        "resolutions": Section(
            "One sample at several resolutions",
            "The same function, evaluated at more points than it was trained on.",
            grids=resolution_grids(run),
        ),
        "nearest": Section(
            "Nearest training images",
            "Each sample, and below it the training image nearest to it. Equal pairs would be "
            "copies.",
            grids=nearest_grids(run),
        ),
        "sounds": Section(
            "Sounds", "Drawn in order from one seed; none was chosen.", sounds=sound_rows(run)
        ),
        "balance": Section(
            "Balance of the players",
            "Loss and gradient norm of each player in its own turns, as running means. Norms that "
            "grow without end announce divergence; a discriminator's loss near zero leaves its "
            "generator without a gradient.",
            rows=balance_rows(trainings),
        ),
    }
    return with_shared(run, made)


def sample_grids(run: Run) -> list[Grid]:
    """Samples of each method, a row for each condition."""
    found = {method: its[:MOST_DOWN] for method, its in _of(run, "samples", axes=5)}
    most = _across(row for its in found.values() for row in its)
    names = _names(run, MOST_DOWN)
    return [
        Grid(method, [_row(name, row, most) for name, row in zip(names, its, strict=False)])
        for method, its in found.items()
    ]


def frame_grids(trainings: Mapping[str, Path]) -> list[Grid]:
    """Images at some evaluations of each training, a row for each."""
    found = {
        method: frames
        for method, frames in _frames(trainings)
        if all(its.ndim == 4 for its in frames.values())
    }
    most = _across(its for frames in found.values() for its in frames.values())
    return [
        Grid(method, [_row(f"step {step:,}", its, most) for step, its in frames.items()])
        for method, frames in found.items()
    ]


def frame_rows(trainings: Mapping[str, Path]) -> list[list[Figure]]:
    """Points at some evaluations of each training, a row of figures for each training."""
    return [
        [
            _plane(its[:FRAME_POINTS], f"{method}, step {step:,}", 240)
            for step, its in reversed(list(frames.items())[::-2])
        ]
        for method, frames in _frames(trainings)
        if all(its.shape[1:] == (2,) for its in frames.values())
    ]


def point_figures(run: Run) -> list[Figure]:
    """Points of each method in the plane, with the centres of the modes."""
    centres = run.tensors.get("centres")
    return [
        _plane(its[:MOST_POINTS], method, 360, centres)
        for method, its in _of(run, "points", axes=2)
    ]


def resolution_grids(run: Run) -> list[Grid]:
    """One function of each method at several sizes, shown equally large, the smallest first."""
    found: dict[str, dict[int, Tensor]] = {}
    for key, image in _of(run, "resolutions", axes=3):
        method, _, size = key.rpartition("/")
        found.setdefault(method, {})[int(size)] = image
    grids = []
    for method, sizes in found.items():
        largest = (max(sizes), max(sizes))
        shown = [interpolate(sizes[its][None], size=largest)[0] for its in sorted(sizes)]
        joined = side_by_side(torch.stack(shown))
        words = ", ".join(map(str, sorted(sizes)))
        row = GridRow("", data_uri(joined), joined.shape[2])
        grids.append(Grid(method, [row], f"{words} pixels, from left to right."))
    return grids


def nearest_grids(run: Run) -> list[Grid]:
    """Samples of each method above their nearest training images, with distances."""
    grids = []
    for method, pairs in _of(run, "nearest", axes=5):
        rows = [_row("sample", pairs[:, 0]), _row("nearest", pairs[:, 1])]
        distances = (run.facts.get("nearest") or {}).get(method) or []
        shown = distances[:: math.ceil(len(pairs) / MOST_ACROSS)]
        words = ", ".join(f"{its:.3g}" for its in shown)
        grids.append(
            Grid(method, rows, f"Distances, from left to right: {words}." if words else "")
        )
    return grids


def sound_rows(run: Run) -> list[Sounds]:
    """Players of each method's sounds, named by condition."""
    rate = int(run.facts.get("rate") or 0)
    rows = []
    found = dict(_of(run, "sounds", axes=2)) if rate else {}
    longest = sum(sounds.shape[1] for sounds in found.values())
    most = max(1, min(MOST_SOUNDS, MOST_SAMPLES // max(1, longest)))
    for method, sounds in found.items():
        names = _names(run, len(sounds))
        each = max(1, len(sounds) // len(names))
        shown = range(0, len(sounds), math.ceil(len(sounds) / most))
        players = [
            (names[min(number // each, len(names) - 1)], sound_uri(sounds[number], rate))
            for number in shown
        ]
        rows.append(Sounds(method, players))
    return rows


def balance_rows(trainings: Mapping[str, Path]) -> list[list[Figure]]:
    """Loss and gradient norm of the players of each training, side by side."""
    rows = []
    for method, folder in trainings.items():
        logged = [row for row in read_rows(folder) if "turn" in row]
        figures = [_players(logged, key, method) for key in PLAYERS]
        if logged:
            rows.append(figures)
    return rows


def _trainings(run: Run) -> Iterator[tuple[str, Path]]:
    """Yield the folder of each method: the run's own, then those inside it."""
    if run.folder is None:
        return
    yield str(run.config.get("method", run.name)), run.folder
    for inside in sorted(run.folder.iterdir()):
        if (inside / "metrics.jsonl").is_file():
            yield inside.name, inside


def _frames(trainings: Mapping[str, Path]) -> Iterator[tuple[str, dict[int, Tensor]]]:
    """Yield the frames of each training by step: first, last, and some between."""
    for method, folder in trainings.items():
        if not (folder / FRAMES).is_file():
            continue
        frames = load_tensors(folder / FRAMES)[0]
        names = sorted(frames, key=int)
        every = max(1, math.ceil((len(names) - 1) / (MOST_FRAMES - 1)))
        shown = names[::-1][::every][::-1]  # the last one is among them
        yield method, {int(name): frames[name] for name in shown}


def _of(run: Run, kind: str, axes: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one kind by the rest of their names."""
    for key, value in run.tensors.items():
        head, _, rest = key.partition("/")
        if head == kind and rest and value.ndim == axes:
            yield rest, value.float()


def _names(run: Run, count: int) -> list[str]:
    return [str(name) for name in run.facts.get("classes") or range(count)]


def _one_row_each(run: Run, kind: str) -> list[Grid]:
    return [Grid(method, [_row("", its)]) for method, its in _of(run, kind, axes=4)]


def _across(rows: Iterable[Tensor]) -> int:
    """Images in each row of a section, so that all of them stay within `MOST_PIXELS`.

    Args:
        rows: Images of each row, (count, channels, height, width).
    """
    images = list(rows)
    total = sum(its.numel() for its in images)
    most = max((len(its) for its in images), default=1)
    return max(1, min(MOST_ACROSS, int(most * MOST_PIXELS / max(1, total))))


def _row(words: str, images: Tensor, most: int = MOST_ACROSS) -> GridRow:
    joined = side_by_side(images[:: math.ceil(len(images) / most)])
    scale = max(1, SHOWN_PIXELS // joined.shape[1])
    return GridRow(words, data_uri(joined), scale * joined.shape[2])


def _plane(points: Tensor, title: str, height: int, centres: Tensor | None = None) -> Figure:
    import plotly.graph_objects as go

    x, y = points.T.tolist()
    style: dict[str, Any] = {"color": mark(0)[0], "size": 3, "opacity": 0.6}
    drawn = [go.Scatter(x=x, y=y, mode="markers", marker=style, hoverinfo="skip")]
    if centres is not None:
        across, up = centres.T.tolist()
        cross = {"color": GREY, "size": 9, "symbol": "cross"}
        drawn.insert(0, go.Scatter(x=across, y=up, mode="markers", marker=cross, hoverinfo="skip"))
    layout = plain_layout(None, None)
    return Figure(
        as_json(go.Figure(drawn, layout)),
        f"{title}: {len(points):,} samples in the plane",
        "",
        height,
        (),
        title,
    )


def _players(rows: Sequence[Facts], key: str, method: str) -> Figure:
    import plotly.graph_objects as go

    drawn, keys, words = [], [], []
    for number, turn in enumerate(sorted({str(row["turn"]) for row in rows})):
        steps, values = _curve([row for row in rows if row["turn"] == turn], key)
        colour, dash = mark(number)[0], "dot" if number else "solid"
        line = {"color": colour, "width": 2, "dash": dash}
        drawn.append(go.Scatter(x=steps, y=values, mode="lines", name=escape(turn), line=line))
        keys.append(Key(turn, "┄" if number else "―", colour))
        words += [f"{turn} {values[0]:.3g} to {values[-1]:.3g}"] if values else []
    title = PLAYERS[key]
    return Figure(
        as_json(go.Figure(drawn, plain_layout("step", title, log_y=key != "loss"))),
        f"{method}, {title}: {'; '.join(words)}",
        f"{'; '.join(words)}.",
        300,
        tuple(keys),
        f"{method}: {title}",
    )


def _curve(rows: Sequence[Facts], key: str) -> tuple[list[int], list[float]]:
    """Return steps and running means of a logged number, thinned."""
    kept = [row for row in rows if isinstance(row.get(key), float | int)]
    every = max(1, math.ceil(len(kept) / POINTS_DRAWN))
    means = trailing_means([row[key] for row in kept], max(1, len(kept) // 25))
    return [row["step"] for row in kept][::every], means[::every]
