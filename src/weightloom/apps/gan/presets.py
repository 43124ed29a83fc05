"""Data to imitate by name, their methods in the order of the table, and default options.

Torch is not imported.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weightloom.datasets import lacking
from weightloom.texts import home, kind_of

OURS = "generated"
"""Default `--method`."""


class KnownData(NamedTuple):
    """Data of `weightloom gan`."""

    about: str
    """Samples and conditions in one line."""
    place: str
    """File in `weightloom.apps.gan.problems` and class, as ``file:Class``."""
    needs: tuple[str, ...]
    """Modules (``sklearn``) and files of data sets (``mnist/mnist_20k_10k.npz``) that it reads."""
    methods: tuple[str, ...]
    """Methods, in the order of the table."""
    options: Mapping[str, Any]
    """Default options, as fields of `GanConfig`, tuned on validation data."""
    rates: Mapping[str, float] = {}
    """Learning rates of single methods, each swept on validation data."""


class GanMethod(NamedTuple):
    """A method of `weightloom gan`."""

    name: str
    """Name on the command line."""
    about: str
    """The idea in one line."""


ABOUT = (
    GanMethod("generated", "generator and discriminator, both written from the condition"),
    GanMethod("generated-generator", "the generator written, the discriminator shared"),
    GanMethod("plain", "a pair without hypernetwork and without condition"),
    GanMethod("packed", "the plain pair, whose discriminator judges two samples together"),
    GanMethod("matched", "the plain pair with as many trained numbers as `generated`"),
    GanMethod("constant-penalty", "the plain pair, its gradient penalty as heavy to the end"),
    GanMethod("r1", "the plain pair, non-saturating loss, penalty at real samples only"),
    GanMethod("non-saturating", "the plain pair, non-saturating loss, no penalty"),
    GanMethod("packed-alone", "the packed pair, non-saturating loss, no penalty"),
    GanMethod("generated-discriminator", "samples of one size; the discriminator written"),
    GanMethod("concat", "the same pair without hypernetwork, which reads the condition as input"),
    GanMethod(
        "function-concat", "functions by one network, which reads place, condition and noise"
    ),
    GanMethod("function-film", "functions whose layers are scaled and shifted by condition, noise"),
    GanMethod("function-lowrank", "functions whose layers change at low rank by condition, noise"),
    GanMethod("picture-generated", "samples of one size; both players changed at low rank"),
    GanMethod("picture-film", "samples of one size; both players scaled and shifted"),
    GanMethod("picture-concat", "samples of one size; both players read the condition as input"),
    GanMethod("matched", "as function-concat, with as many parameters as generated"),
    GanMethod("constant-penalty", "the plain pair, its gradient penalty as heavy to the end"),
    GanMethod("r1", "as generated, with the non-saturating loss and R1 alone"),
    GanMethod("packed", "as generated, with pairs of samples judged together"),
)
"""Methods, in the order of lists."""

PICTURE_METHODS = (
    "generated",
    "function-concat",
    "function-film",
    "function-lowrank",
    "picture-generated",
    "picture-film",
    "picture-concat",
    "matched",
    "r1",
    "packed",
)
"""Methods for pictures."""
FEW_METHODS = ("generated", "function-concat", "picture-generated", "picture-concat")
"""Methods for pictures that are compared by default."""

SOUND_METHODS = (*FEW_METHODS, "generated-discriminator")
"""Methods for sounds."""

COMMON: dict[str, Any] = {
    "steps": 4000,
    "learning_rate": 2e-3,
    "batch": 128,
    "noise_dim": 16,
    "width": 128,
    "gamma": 1.0,
    "gamma_end": 1.0,
    "penalty_every": 1,
    "average": 0.999,
    "samples": 1000,
    "size": 28,
    "replicas": 1,
    "evaluate_every": 1000,
    "checkpoint_every": 1000,
}
"""Defaults of options that the data leave out."""

POINT_METHODS = (
    "generated",
    "generated-generator",
    "plain",
    "packed",
    "matched",
    "constant-penalty",
    "r1",
    "non-saturating",
    "packed-alone",
)
"""Methods for points in the plane."""
POINT_OPTIONS: dict[str, Any] = {
    "replicas": 5,
    "width": 64,
    "noise_dim": 2,
    "samples": 2500,
    "steps": 10000,
    "comparators": ("generated-generator", "plain", "packed", "matched"),
    "learning_rate": 3e-3,
    "gamma": 0.1,
    "gamma_end": 0.003,
    "penalty_every": 4,
}
"""Default options for points in the plane."""
SOUNDS: Mapping[str, Any] = {
    "batch": 80,
    "noise_dim": 32,
    "width": 256,
    "penalty_every": 4,
    "average": 0.995,
    "samples": 60,
    "evaluate_every": 100,
}
"""Defaults of options for sounds."""

PROBLEMS: dict[str, KnownData] = {
    "digits": KnownData(
        about="scikit-learn digits, 8 x 8 pixels; 10 classes",
        place="pictures:Digits",
        needs=("sklearn",),
        methods=PICTURE_METHODS,
        options={
            "size": 8,
            "samples": 204,
            "comparators": FEW_METHODS,
            "gamma": 3.0,
            "gamma_end": 3.0,
            "penalty_every": 4,
        },
        rates={"picture-concat": 1e-3},
    ),
    "mnist": KnownData(
        about="MNIST digits, 28 x 28 pixels; 10 classes",
        place="pictures:Mnist",
        needs=("mnist/mnist_20k_10k.npz",),
        methods=PICTURE_METHODS,
        options={
            "samples": 200,
            "comparators": FEW_METHODS,
            "gamma": 3.0,
            "gamma_end": 3.0,
            "penalty_every": 4,
        },
        rates={"picture-concat": 1e-3},
    ),
    "spoken-digits": KnownData(
        about="recordings of spoken digits, 8 kHz; 10 words",
        place="sounds:SpokenWords",
        needs=("free_spoken_digits/fsdd_mulaw8.npz",),
        methods=SOUND_METHODS,
        options=SOUNDS,
    ),
    "grid": KnownData(
        about="25 normal distributions on a grid in the plane; 5 replicas in one pass",
        place="points:Points",
        needs=(),
        methods=POINT_METHODS,
        options=POINT_OPTIONS,
    ),
    "ring": KnownData(
        about="8 normal distributions on a circle in the plane; 5 replicas in one pass",
        place="points:Points",
        needs=(),
        methods=POINT_METHODS,
        options=POINT_OPTIONS,
    ),
}
"""Data by name."""

DATA = tuple(PROBLEMS)
"""Names of the data."""
OWN_METHODS = FEW_METHODS
"""Methods for a folder of one's own."""


def preset(data: str) -> dict[str, Any]:
    """Return the default options of data; for one's own, those of all data, or of sounds."""
    if data in PROBLEMS:
        return {**COMMON, **PROBLEMS[data].options}
    return {**COMMON, **SOUNDS} if holds_sounds(data) else dict(COMMON)


def holds_sounds(folder: str | Path) -> bool:
    """Return whether a folder has WAV files in a sub-folder."""
    if kind_of(root := home(folder)) != "folder":
        return False
    return any(its.suffix.lower() == ".wav" for its in root.glob("*/*"))


def usual_rates(data: str) -> Mapping[str, float]:
    """Return the learning rates of single methods."""
    return PROBLEMS[data].rates if data in PROBLEMS else {}


def methods_of(data: str) -> tuple[str, ...]:
    """Return the methods for data, in the order of the table."""
    return PROBLEMS[data].methods if data in PROBLEMS else OWN_METHODS


def missing(data: str) -> list[str]:
    """Return the modules and files of data that are not on this machine."""
    return lacking(PROBLEMS[data].needs)


def where(data: str) -> str:
    """Return in words whether data can be opened here."""
    return f"missing: {', '.join(absent)}" if (absent := missing(data)) else "here"
