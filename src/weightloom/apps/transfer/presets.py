"""Transfer problems by name, their methods in the order of the table, and default options.

Torch is not imported.
"""

from importlib.util import find_spec
from typing import Any, NamedTuple

from weightloom.datasets import find_file

OURS = "generated"
"""Default `--method`."""


class Method(NamedTuple):
    """A method of `weightloom transfer`."""

    name: str
    """Name on the command line."""
    about: str
    """The idea in one line."""


ABOUT = (
    Method("generated", "change of the source's weights, written in one pass from the condition"),
    Method("source", "the source model, unadapted"),
    Method("shared", "one adapter for all targets, in the same places, trained on the same tasks"),
    Method("shared-finetune", "all weights fine-tuned once, on the same tasks"),
    Method("finetune", "all weights fine-tuned on each target"),
    Method("last-layer", "the last layer fine-tuned on each target"),
    Method("lora", "a low-rank change trained from scratch on each target"),
    Method("multitask", "one network trained on all training targets, without condition"),
    Method("batchnorm", "statistics of normalisation refreshed on each target"),
    Method("tent", "norms trained on each target to lower the entropy of predictions"),
    Method("nearest-source", "the training target's model with the nearest statistics"),
    Method("average-source", "the mean of the training targets' models"),
    Method("maml", "an initialisation trained for gradient steps on a target"),
    Method("centroid", "class means of the source's features; nothing is trained"),
    # domains
    # documents
    # series
    # intents
    # pictures
    Method("gaussian", "normal classes with covariances of the training classes; closed form"),
    Method("generated-after", "generated on a network that was fine-tuned before, on other tasks"),
    # zoo
)
"""Methods, in the order of lists."""

COMMON: dict[str, Any] = {
    "learning_rate": 1e-3,
    "tasks": 16,
    "rank": 4,
    "width": 64,
    "test_targets": 600,
    "evaluate_every": 100,
    "checkpoint_every": 200,
    "steps": 1000,
    "rates": {},
}
"""Defaults of options that a preset leaves out."""

PRESETS: dict[str, dict[str, Any]] = {
    # domains
    "domains": {"methods": ("generated", "source")},
    # scans
    # documents
    # series
    # intents
    # pictures
    "pictures": {
        "methods": (
            "generated",
            "source",
            "centroid",
            "gaussian",
            "batchnorm",
            "shared",
            "shared-finetune",
            "multitask",
            "generated-after",
            "last-layer",
            "lora",
            "finetune",
            "maml",
        ),
        "test_targets": 100,
        "tasks": 4,
        "steps": 120,
        "evaluate_every": 60,
        "checkpoint_every": 60,
        "rates": {
            "generated": 5e-4,
            "generated-after": 5e-4,
            "shared": 1e-2,
            "shared-finetune": 3e-3,
            "multitask": 3e-3,
            "maml": 1e-3,
        },
    },
    # zoo
}
"""Default options per problem, tuned on validation targets: ``methods``, in the order of the table,
``rates`` of single methods, ``comparators`` by default, and options of `TransferConfig`."""

FILES: dict[str, tuple[str, str]] = {
    # domains
    "domains": ("domains", "Domains"),
    # scans
    # documents
    # series
    # intents
    # pictures
    "pictures": ("pictures", "Pictures"),
    # zoo
}
"""File in ``problems`` and class of each problem."""

ABOUT_DATA: dict[str, str] = {
    # domains
    "domains": "scikit-learn digits under random distortions; 64 unlabelled pictures of each",
    # scans
    # documents
    # series
    # intents
    # pictures
    "pictures": "ResNet-20 of CIFAR-10, to classes of CIFAR-FS, chest X-rays and Fashion",
    # zoo
}
"""Source and targets of each problem in one line."""

NEEDS: dict[str, tuple[str, ...]] = {
    # domains
    "domains": ("sklearn",),
    # scans
    # documents
    # series
    # intents
    # pictures
    "pictures": (
        "PIL",
        "resnet20_cifar10/resnet20_cifar10.npz",
        "cifar_fs/cifar_fs_100.npz",
        "pneumonia_mnist/pneumonia_balanced.npz",
        "fashion_mnist_900/fashion900.npz",
    ),
    # zoo
}
"""Modules (``sklearn``) and files of data sets (``mnist/mnist_20k_10k.npz``) that a problem reads.
"""

DATA = tuple(PRESETS)
"""Names of the problems."""


def preset(data: str) -> dict[str, Any]:
    """Return the defaults of a problem; those of every problem for one of your own."""
    return {**COMMON, **PRESETS.get(data, {})}


def methods_of(data: str) -> tuple[str, ...]:
    """Return the methods of a problem, in the order of the table."""
    found: tuple[str, ...] = preset(data).get("methods", (OURS, "source"))
    return found


def missing(data: str) -> list[str]:
    """Return the modules and files of a problem that are not on this machine."""
    return [need for need in NEEDS.get(data, ()) if not _is_here(need)]


def where(data: str) -> str:
    """Return in words whether a problem can be opened here."""
    return f"missing: {', '.join(lacking)}" if (lacking := missing(data)) else "here"


def _is_here(need: str) -> bool:
    folder, _, file = need.partition("/")
    return find_file(folder, file) is not None if file else find_spec(need) is not None
