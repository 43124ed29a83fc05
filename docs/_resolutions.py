"""Picture of functions drawn at several sizes, for the how-to on pictures.

In:   the folder of a run of `weightloom gan --data digits` with functions.
Out:  ``docs/images/gan-resolutions.png``: rows of digits; columns of 8, 14, 28, 112 and 224 pixels.
Run:  python docs/_resolutions.py runs/digits-001
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from weightloom.apps import gan
from weightloom.apps.gan.export import picture_grid
from weightloom.report.pictures import encode_png

PICTURE = Path(__file__).parent / "images" / "gan-resolutions.png"
SIZES, SIDE = (8, 14, 28, 112, 224), 112
DIGITS = ("2", "3", "5", "8")


def drawing(trained: gan.TrainedPair) -> Tensor:
    """Return the grid, (1, height, width), uint8; each function is drawn from one noise."""
    drawn = []
    for digit in DIGITS:
        for size in SIZES:
            grid = None if size == SIZES[0] else (size, size)
            picture = trained.sample(digit, 1, seed=1, size=grid)
            smaller = "area" if size > SIDE else "nearest"
            drawn.append(interpolate(picture, (SIDE, SIDE), mode=smaller)[0])
    return picture_grid(torch.stack(drawn), columns=len(SIZES))


if __name__ == "__main__":
    PICTURE.write_bytes(encode_png(drawing(gan.load(sys.argv[1]))))
