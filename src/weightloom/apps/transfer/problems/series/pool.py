"""Windows of all families with the states of the frozen reader and plain forecasts, kept on disk.

In:   families of series.
Out:  `Pool`, tensors by family and window; the condition of a family; losses of forecasts.
Knows nothing of methods.
"""

import hashlib
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weightloom.apps.transfer.problems.series.model import LEVELS, Reader, units
from weightloom.apps.transfer.problems.series.plain import PLAIN
from weightloom.datasets import find_file, searched_folders
from weightloom.errors import CheckpointError
from weightloom.files import load_tensors, save_tensors
from weightloom.progress import counting
from weightloom.tasks.series import (
    HORIZON,
    PACKAGES,
    QUERIES,
    SUPPORTS,
    Family,
    Window,
    load_families,
    windows_of,
)

WINDOWS = SUPPORTS + QUERIES
"""Windows of a family, those to adapt on first, from the latest to the earliest."""
NARROW = 0.7
"""Width of the forecasts of `narrow` relative to the source model's."""
CANDIDATES = ("source", "narrow", *PLAIN)
"""Forecasts that learn nothing, in the order of `Pool.candidates`."""
VERSION = 2
"""Version of the tensors in the cache."""
LEAST = 1e-6
"""Smallest loss that another one is divided by."""
THIRDS = 3


class Pool(NamedTuple):
    """Windows of families, in units of each window's history: 0 its minimum, 1 its maximum."""

    summary: Tensor
    """State of the reader, (families, windows, 2 · WIDTH)."""
    future: Tensor
    """States of the steps, (families, windows, HORIZON, WIDTH)."""
    candidates: Tensor
    """Forecasts by `CANDIDATES`, (families, windows, candidates, HORIZON, levels)."""
    y: Tensor
    """Values that followed, (families, windows, HORIZON); 0 where there are none."""
    there: Tensor
    """True for steps with a value, (families, windows, HORIZON)."""
    about: Tensor
    """Description of each history, (families, windows, ABOUT)."""

    def take(self, families: Tensor, windows: Tensor) -> "Pool":
        """Return windows of families.

        Args:
            families: Numbers of families, (tasks,).
            windows: Numbers of windows, (tasks, windows), or (windows,) for all tasks the same.
        """
        windows = windows.expand(len(families), -1) if windows.ndim == 1 else windows
        return Pool(*(its[families[:, None], windows] for its in self))


class Families(NamedTuple):
    """All families: names, sources, and their windows."""

    names: list[str]
    groups: list[str]
    pool: Pool


def load_pool() -> Families:
    """Read all families, run the frozen reader over their windows, and keep the results.

    The first time takes one to three minutes on one core. Later, the results are read from the
    cache, ``series/<key>.safetensors``, 100 MB, where the key tells the versions of all packages.

    Raises:
        MissingExtraError: If a package is not installed.
        DataError: If a file of a package cannot be read.
    """
    reader = Reader()
    packages = [*PACKAGES.values(), "fracast"]
    known = "\n".join(f"{name} {version(name)}" for name in packages) + f"\n{VERSION}"
    file = f"{hashlib.sha256(known.encode()).hexdigest()[:16]}.safetensors"
    kept = find_file("series", file)
    if kept is not None:
        tensors, facts = load_tensors(kept)
        return Families(facts["names"], facts["groups"], Pool(**tensors))
    families = load_families()
    made = Families(
        [its.name for its in families], [its.group for its in families], pool_of(families, reader)
    )
    _keep(file, made)
    return made


def pool_of(families: Sequence[Family], reader: Reader) -> Pool:
    """Cut families into windows, read their histories and make plain forecasts.

    Raises:
        DataError: If a family has too few values.
    """
    parts: list[Pool] = []
    with counting("reading series", len(families)) as show:
        for number, family in enumerate(families):
            cut = windows_of(family)
            parts.append(_windows([*cut.support, *cut.query], family.season, reader))
            show(number + 1)
    return Pool(*(torch.stack(its) for its in zip(*parts, strict=True)))


def losses(quantiles: Tensor, y: Tensor, there: Tensor) -> Tensor:
    """Quantile loss of each window: mean over its steps and levels of 2 max(τ e, (τ - 1) e).

    e is the value minus the quantile, and τ the level. The mean over levels approximates the
    continuous ranked probability score.

    Args:
        quantiles: (..., HORIZON, levels).
        y: Values, (..., HORIZON).
        there: True for steps with a value, (..., HORIZON).

    Source:
        Koenker and Bassett, "Regression quantiles" (1978); Gneiting and Raftery, "Strictly proper
        scoring rules" (2007), section 6.3.
    """
    return (step_losses(quantiles, y) * there).sum(-1) / there.sum(-1)


def step_losses(quantiles: Tensor, y: Tensor) -> Tensor:
    """Quantile loss of each step, (..., HORIZON)."""
    levels = quantiles.new_tensor(LEVELS)
    error = y[..., None] - quantiles
    return 2 * torch.maximum(levels * error, (levels - 1) * error).mean(-1)


def condition_of(windows: Pool) -> Tensor:
    """Describe families by windows whose values are known, (families, condition_dim).

    These are logarithms of the losses of all candidates relative to the source model's, in all and
    for each third of the horizon; the source model's loss, coverage, bias and width; and the mean
    description of the histories.

    Args:
        windows: Windows to adapt on.
    """
    source, y, there = windows.candidates[:, :, 0], windows.y, windows.there
    by_third = _thirds(step_losses(windows.candidates, y[:, :, None]), there[:, :, None])
    mean = by_third.mean(1).clamp_min(1e-5)
    total = mean.mean(2)
    steps = there.sum(-1)
    below = ((y[..., None] < source).to(y) - y.new_tensor(LEVELS)) * there[..., None]
    error = (y - source[..., len(LEVELS) // 2]) * there
    size = (error.abs().sum(-1) / steps).mean(1).clamp_min(1e-4)
    width = (((source[..., -1] - source[..., 0]) * there).sum(-1) / steps).mean(1).clamp_min(1e-4)
    return torch.cat(
        [
            (total[:, 1:] / total[:, :1]).log(),
            (mean[:, 1:] / mean[:, :1]).log().flatten(1),
            total[:, :1].log(),
            (below.sum(2) / steps[..., None]).mean(1),
            _thirds(error, there).mean(1) / size[:, None],
            (width / size).log()[:, None],
            windows.about.mean(1),
        ],
        1,
    )


def _thirds(values: Tensor, there: Tensor) -> Tensor:
    """Mean of values over each third of the steps that are there, (..., THIRDS)."""
    steps = there.sum(-1, keepdim=True)
    third = (torch.arange(HORIZON, device=values.device) * THIRDS) // steps
    inside = torch.stack([(third == number) & there for number in range(THIRDS)], -1)
    return (values[..., None] * inside).sum(-2) / inside.sum(-2).clamp_min(1)


def _windows(windows: Sequence[Window], season: int, reader: Reader) -> Pool:
    """Return the pool of one family, without the axis of families."""
    states = reader.states(windows)
    with torch.no_grad():
        source = reader.head()(states.summary, states.future)
    y, there = torch.zeros(len(windows), HORIZON), torch.zeros(len(windows), HORIZON).bool()
    plain: list[Tensor] = []
    for place, window in enumerate(windows):
        low, span = units(window.context)
        steps = len(window.target)
        y[place, :steps] = torch.from_numpy((window.target - low) / span).float()
        there[place, :steps] = True
        context = (window.context - low) / span
        forecasts = [forecast(context, season, HORIZON) for forecast in PLAIN.values()]
        plain.append(torch.from_numpy(np.stack(forecasts)).float())
    middle = source[..., [len(LEVELS) // 2]]
    both = torch.stack([source, middle + NARROW * (source - middle)], 1)
    candidates = torch.cat([both, torch.stack(plain)], 1)
    about = torch.stack([_about(window, season) for window in windows])
    return Pool(states.summary, states.future, candidates, y, there, about)


def _about(window: Window, season: int) -> Tensor:
    """Describe a history: length, autocorrelation, trend, roughness, season and horizon, (8,)."""
    low, span = units(window.context)
    recent = (window.context[-512:] - low) / span
    centred = recent - recent.mean()
    variance = max(float((centred**2).mean()), 1e-9)
    apart = season if len(recent) > season + 4 else 1
    part = max(len(recent) // 4, 1)
    late = recent[-part:].mean()
    return torch.tensor(
        [
            np.log(len(window.context)),
            (centred[1:] * centred[:-1]).mean() / variance,
            (centred[apart:] * centred[:-apart]).mean() / variance,
            late - recent[:part].mean(),
            np.log(np.abs(np.diff(recent)).mean() + 1e-4),
            recent[-1] - late,
            np.log2(season),
            len(window.target) / HORIZON,
        ],
        dtype=torch.float32,
    )


def _keep(file: str, made: Families) -> None:
    """Write the pool to the cache; an error is reported and not raised."""
    path = searched_folders("series")[-1] / file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, made.pool._asdict(), {"names": made.names, "groups": made.groups})
    except (OSError, CheckpointError) as error:
        print(f"Series: the windows were not cached ({error})", file=sys.stderr, flush=True)
