"""Export of the generator of one condition, as a program that needs no part of this library.

In:   a trained pair, and the name of a condition.
Out:  ``generator.pt2``, ``generator.json``, and for pictures ``samples.png``.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.adversarial import AdversarialPair
from weightloom.apps.gan.problems.problem import GanProblem
from weightloom.errors import ConfigError, nearest
from weightloom.files import check_empty, make_folder, write_atomically
from weightloom.report.pictures import COLOUR_TYPES, encode_png

ROWS, COLUMNS = 4, 8
"""Samples in ``samples.png``."""


class OneGenerator(nn.Module):
    """Generator of one condition: noise, (batch, noise_dim), to samples, (batch, *shape).

    Args:
        pair: A trained pair.
        condition: The condition, (1, condition_dim).
    """

    condition: Tensor

    def __init__(self, pair: AdversarialPair, condition: Tensor) -> None:
        super().__init__()
        self.pair = pair
        self.register_buffer("condition", condition)

    def forward(self, noise: Tensor) -> Tensor:
        """Samples, (batch, *shape)."""
        return self.pair.players(self.condition).generate(noise[None])[0]


def export_generator(
    pair: AdversarialPair, problem: GanProblem, name: str, folder: Path
) -> dict[str, Any]:
    """Write the generator of one condition.

    ``generator.pt2`` is read by ``torch.export.load(path).module()`` and takes normal noise,
    (batch, noise_dim), of any batch size. Loading a program of a stranger can run code.

    Args:
        pair: A trained pair, in eval mode.
        problem: The problem that it was trained on.
        name: Name of the condition.
        folder: Folder to write to; created if missing.

    Returns:
        Contents of ``generator.json``.

    Raises:
        ConfigError: If there is no such condition, or the folder is not empty.
    """
    names = list(problem.names)
    if name not in names:
        raise ConfigError(
            f"`--task {name}` is no condition of the run, which was trained on {len(names)}. "
            f"{nearest(name, names)}"
        )
    check_empty(folder, "--out")
    number = names.index(name)
    net = OneGenerator(pair, problem.conditions()[number : number + 1]).eval()
    net.requires_grad_(False)
    noise = torch.randn(ROWS * COLUMNS, pair.noise_dim, generator=torch.Generator().manual_seed(0))
    samples = net(noise)
    make_folder(folder, "--out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            net, (noise,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
        torch.export.save(program, folder / "generator.pt2")
    again = torch.export.load(folder / "generator.pt2").module()(noise)
    files = ["generator.pt2", "generator.json"]
    if samples.ndim == 4 and samples.shape[1] in COLOUR_TYPES:
        files.append("samples.png")
        (folder / "samples.png").write_bytes(encode_png(picture_grid(samples, COLUMNS)))
    facts = {
        "task": name,
        "input": ["batch", pair.noise_dim],
        "output": ["batch", *samples.shape[1:]],
        "largest_difference": float((again - samples).abs().max()),
        "files": files,
    }
    write_atomically(folder / "generator.json", json.dumps(facts, indent=1) + "\n")
    return facts


def picture_grid(pictures: Tensor, columns: int) -> Tensor:
    """Arrange pictures in rows, with a line of one pixel between them.

    Args:
        pictures: (pictures, channels, height, width), float in [0, 1]; a multiple of ``columns``.
        columns: Pictures per row.

    Returns:
        One picture, (channels, height, width), uint8.

    Example:
        >>> picture_grid(torch.zeros(6, 1, 8, 8), columns=3).shape
        torch.Size([1, 17, 26])
    """
    framed = nn.functional.pad((pictures.clamp(0, 1) * 255).round(), (0, 1, 0, 1), value=127.0)
    rows = framed.unflatten(0, (-1, columns))  # (rows, columns, channels, height, width)
    grid = rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return grid[:, :-1, :-1].to(torch.uint8)
