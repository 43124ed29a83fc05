"""Drawings of README and the tutorial, made with `weightloom.diagnostics.draw`.

Out:  ``docs/images/architecture.svg`` and ``docs/images/training-step.svg``.
Run:  python docs/_drawings.py
"""

from pathlib import Path

from torch import nn

from weightloom import MLPHyperNetwork
from weightloom.diagnostics import Drawing, draw

IMAGES = Path(__file__).parent / "images"


def drawings() -> dict[str, Drawing]:
    """Return the drawings of the tutorial's hypernetwork, by file name."""
    base = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 1))
    hyper = MLPHyperNetwork(base, condition_dim=16)
    return {"architecture.svg": draw(hyper), "training-step.svg": draw(hyper, step=True)}


if __name__ == "__main__":
    for name, drawing in drawings().items():
        print(drawing.save(IMAGES / name))
