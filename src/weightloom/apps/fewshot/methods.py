"""Few-shot methods by name: description, data, settings per data set, and paper.

In:   a problem, when a method is built.
Out:  `METHODS` and `FITS`, from which lists, help, documentation and tests are made.
Knows nothing of data sets beyond their names. Torch is not imported before a method is built.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import weightloom
from weightloom import learners

FAMILIES: dict[str, tuple[str, ...]] = {
    "cameras": ("cameras", "cameras-crosstalk"),
    "unlabelled": ("cameras-unlabelled",),
    "images": ("digits", "omniglot", "omniglot-alphabets", "cifar-fs", "spoken-digits", "folder"),
    "sentences": ("intents",),
    "curves": ("sinusoid", "growth-curves", "table"),
    "functions": ("mnist-functions",),
}
"""Data sets by family, whose tasks have one form; `folder` and `table` are data of your own."""

Build = Callable[[Any], Any]
"""Builder of a method: a problem of the family to a newly initialised `Learner`."""


@dataclass(frozen=True)
class Method:
    """Few-shot method that can be chosen by name."""

    name: str
    """Name on the command line."""
    about: str
    """The idea in one line."""
    solves: Mapping[tuple[str, ...], Build]
    """Builder, with its settings, per families of data or data sets. An entry for the data set
    takes precedence over one for its family."""
    source: str = ""
    """Paper; empty for the library's own methods."""

    def build_for(self, data: str) -> Build | None:
        """Return the builder for a data set, or None if the method does not solve its tasks.

        Args:
            data: A data set in `FAMILIES`.
        """
        family = next(family for family, members in FAMILIES.items() if data in members)
        found = {key: build for keys, build in self.solves.items() for key in keys}
        return found.get(data, found.get(family))


def _norms(name: str, parameter: Any) -> bool:
    """Select scales and shifts of the norms in a trunk, or in the tail of a backbone."""
    return bool(parameter.ndim == 1 and ("blocks." in name or name.startswith("tail")))


def _kernels(name: str, parameter: Any) -> bool:
    """Select kernels of convolutions, and matrices of a network of the user's own."""
    return bool(parameter.ndim > 1)


def _inner(p: Any, learner: Any, base: Any, steps: int, rate: float, **options: Any) -> Any:
    """Build a method of gradient steps whose sizes are learned, from typed or given settings."""
    steps, rate = p.config.inner_steps or steps, p.config.inner_lr or rate
    built = learner(base, inner_steps=steps, inner_lr=rate, learn_inner_lr=True, **options)
    built.ways = p.ways
    return built


def _class_maml(p: Any, **options: Any) -> Any:
    return _inner(
        p, learners.MAML, p.build_alone(p.ways), 5, 0.01 if p.pools.residual else 0.1, **options
    )


def _curve_maml(p: Any, **options: Any) -> Any:
    steps = 5 if p.pools else 3  # on sinusoids, 5 steps of all layers sometimes diverge
    return _inner(p, learners.MAML, p.build(p.y_dim), steps, 0.01, **options)


def _curve_anil(p: Any) -> Any:
    if p.config.base:
        return _inner(p, learners.ANIL, p.build(p.y_dim), 5, 0.01)
    return _inner(p, learners.MAML, p.build(p.y_dim), 5, 0.01, adapted="4.*")


def _then_steps(p: Any, learner: Any, rate: float) -> Any:
    return learners.InnerSteps(learner, p.config.inner_steps or 3, p.config.inner_lr or rate)


def _regressor(p: Any, **options: Any) -> Any:
    return learners.HyperRegressor(p.build(p.y_dim), p.x_dim, p.y_dim, **options)


def _prior(p: Any) -> Any:
    """Build a generated prior over a head that is fitted to the support set, for few tasks.

    A base network of the user's own is generated whole.
    """
    if p.config.base:
        return _regressor(p)
    from weightloom.networks import FunctionNet  # imports torch

    base = FunctionNet(p.x_dim, p.y_dim, features=64, spread=1.0)
    encoder = weightloom.SupportAttention(p.x_dim, p.y_dim, 64, layers=2)
    return learners.HyperFunction(base, encoder, hidden=(64,), noise=0.1)


def _head(p: Any) -> Any:
    return learners.HyperHead(p.build(p.ways, p.unit), p.generated_scale, p.known)


def _convs(p: Any, generate: Any, **options: Any) -> Any:
    from weightloom.networks import replace_recurrent  # imports torch

    # recurrent layers with other parameters for each task run in one pass
    base = replace_recurrent(p.build(p.ways, p.unit))
    return learners.HyperConvs(base, generate, p.generated_scale, **options)


def _centroid(p: Any) -> Any:
    """Build nearest centroids, with the scale of the logits from 50 validation tasks."""
    from torch import Generator

    from weightloom.learners.centroid import centroid_scale

    numbers = math.prod(p.event)
    if p.reader() is not None:  # before the validation pictures are read
        return learners.NearestCentroid(numbers)
    tasks = p.validation_source(min(p.config.shots)).sample(50, Generator().manual_seed(0))
    return learners.NearestCentroid(numbers, centroid_scale(tasks))


def _low_rank(p: Any, **options: Any) -> Any:
    return _convs(p, {_kernels: weightloom.LowRank(4)}, **options)


def _metric(p: Any, **options: Any) -> Any:
    return learners.HyperMetric(p.build(p.ways, p.unit), start_scale=p.sharp, **options)


def _inputs(p: Any) -> Any:
    return learners.HyperInputs(p.build(p.classes))


def _growth_prior(p: Any) -> Any:
    """Build a generated prior that starts as the Gaussian of the training curves."""
    if p.config.base:
        return _regressor(p)
    encoder = weightloom.SupportAttention(1, 1, 64, layers=2)
    return learners.HyperFunction(p.gaussian().function(), encoder, hidden=(64,))


def _picture_prior(p: Any) -> Any:
    return learners.HyperFunction(p.build(1), _grid(p), hidden=(512,))


def _curve_cnp(p: Any) -> Any:
    encoder = weightloom.SupportAttention(p.x_dim, p.y_dim, 64, layers=3)
    return learners.ConditionalNeuralProcess(
        encoder, learners.Conditioned(p.x_dim, p.y_dim, 64, hidden=(128, 128))
    )


def _grid(p: Any) -> Any:
    return weightloom.GridEncoder(2, 1, 256, size=p.size, hidden=(512,))


def _picture_cnp(encoder: Any) -> Any:
    return learners.ConditionalNeuralProcess(
        encoder, learners.Conditioned(2, 1, 256, hidden=(256, 256, 256))
    )


METHODS: tuple[Method, ...] = (
    Method(
        "hypernetwork",
        "by data: generated-head (classes), generated-network (sinusoid), generated-prior (other "
        "regression) or generated-inputs (cameras)",
        {
            ("images", "sentences"): _head,
            ("sinusoid",): _regressor,
            ("growth-curves",): _growth_prior,
            ("curves",): _prior,
            ("functions",): _picture_prior,
            ("cameras", "unlabelled"): _inputs,
        },
    ),
    Method(
        "generated-head",
        "class means and ridge regression on the features of a shared trunk, mixed by four "
        "generated numbers per task",
        {("images", "sentences"): _head},
    ),
    Method(
        "generated-network",
        "a whole network written by an MLP from attention over the support set",
        {("curves",): _regressor},
    ),
    Method(
        "generated-prior",
        "a generated mean of the prior of a head, which is then fitted in closed form",
        {
            ("curves",): _prior,
            ("growth-curves",): _growth_prior,
            ("functions",): _picture_prior,
        },
    ),
    Method(
        "generated-inputs",
        "a generated first layer, which assigns wires to pixels",
        {("cameras", "unlabelled"): _inputs},
    ),
    Method(
        "hyper-film",
        "a generated head, and generated scales and shifts of the norms before it",
        {("images",): lambda p: _convs(p, _norms)},
        "after Requeima et al. (2019)",
    ),
    Method(
        "hyper-lowrank",
        "a generated head, and generated changes of rank 4 of the convolutions before it",
        {("images",): _low_rank},
    ),
    Method(
        "shared-film",
        "hyper-film with the same scales and shifts for all tasks: learned, not generated",
        {("images",): lambda p: _convs(p, _norms, shared=True)},
    ),
    Method(
        "shared-lowrank",
        "hyper-lowrank with the same changes for all tasks: learned, not generated",
        {("images",): lambda p: _low_rank(p, shared=True)},
    ),
    Method(
        "generated-metric",
        "class means, and a generated distance: scales of features and a change of rank 4",
        {("images",): _metric},
        "after Bateni et al. (2020)",
    ),
    Method(
        "shared-metric",
        "generated-metric with the same distance for all tasks: learned, not generated",
        {("images",): lambda p: _metric(p, shared=True)},
    ),
    Method(
        "support-transformer",
        "class means, changed by attention to the means of the other classes",
        {("images",): lambda p: learners.SupportTransformer(p.build(p.ways, p.unit), p.sharp)},
        "after Ye et al. (2020)",
    ),
    Method(
        "hyper-mlp",
        "generated-network by its older name",
        {("curves",): _regressor},
    ),
    Method(
        "hyper-transformer",
        "a whole network written by a transformer over slices of its parameters",
        {("curves",): lambda p: _regressor(p, transformer=True)},
        "after Zhmoginov et al. (2022)",
    ),
    Method(
        "hyper-maml",
        "the hypernetwork, then gradient steps on the generated parameters, trained end to end",
        {
            ("images", "sentences"): lambda p: _then_steps(
                p, learners.HyperHead(p.build(p.ways, p.unit), p.generated_scale), 0.01
            ),
            ("curves",): lambda p: _then_steps(p, _regressor(p), 0.001),
        },
        "after Przewięźlikowski et al. (2022)",
    ),
    Method(
        "film",
        "scales and shifts only, generated from the support set",
        {
            ("images",): lambda p: _convs(p, _norms, generate_head=False),
            ("curves",): lambda p: _regressor(p, form=weightloom.FiLM()),
        },
        "Perez et al. (2018)",
    ),
    Method(
        "cnp",
        "a conditional neural process: the condition is an input of a network shared by all tasks",
        {
            ("curves",): _curve_cnp,
            ("functions",): lambda p: _picture_cnp(weightloom.DeepSets(2, 1, 256, hidden=256)),
        },
        "Garnelo et al. (2018)",
    ),
    Method(
        "cnp-grid",
        "the same, with the support set on a grid, as for the hypernetwork",
        {("functions",): lambda p: _picture_cnp(_grid(p))},
        "after Gordon et al. (2020)",
    ),
    Method(
        "maml",
        "gradient steps from an initialisation shared by all tasks and trained through the steps",
        {("images", "sentences"): _class_maml, ("curves",): _curve_maml},
        "Finn, Abbeel and Levine (2017)",
    ),
    Method(
        "maml-first-order",
        "maml with inner gradients taken as constants",
        {
            ("images", "sentences"): lambda p: _class_maml(p, first_order=True),
            ("curves",): lambda p: _curve_maml(p, first_order=True),
        },
        "Finn, Abbeel and Levine (2017)",
    ),
    Method(
        "anil",
        "maml that adapts only the last layer",
        {
            ("images", "sentences"): lambda p: _inner(p, learners.ANIL, p.build(p.ways), 5, 0.1),
            ("curves",): _curve_anil,
        },
        "Raghu et al. (2020)",
    ),
    Method(
        "cavia",
        "maml that adapts only a few additional inputs",
        {
            ("curves",): lambda p: learners.CAVIA(
                p.build(p.y_dim),
                inner_steps=p.config.inner_steps or 5,
                inner_lr=p.config.inner_lr or 1.0,
            )
        },
        "Zintgraf et al. (2019)",
    ),
    Method(
        "protonet",
        "a trunk shared by all tasks, and the class with the nearest mean feature",
        {("images", "sentences"): lambda p: learners.ProtoNet(p.build(p.ways), p.scale, p.known)},
        "Snell, Swersky and Zemel (2017)",
    ),
    Method(
        "protonet-unit",
        "protonet on features that are centred and scaled to one length",
        {
            ("images", "sentences"): lambda p: learners.ProtoNet(
                p.build(p.ways, True), p.sharp, p.known
            )
        },
    ),
    Method(
        "probe",
        "a trunk trained to tell all training classes apart, and a linear head fitted to each "
        "support set",
        {
            ("images", "sentences"): lambda p: learners.LinearProbe(
                p.build(p.ways, p.unit), p.train_classes()
            )
        },
        "Tian et al. (2020)",
    ),
    Method(
        "hyper-free",
        "the hypernetwork for cameras, each column as free numbers, not as an assignment of wires "
        "to pixels",
        {("cameras", "unlabelled"): lambda p: learners.HyperInputs(p.build(p.classes), rounds=0)},
    ),
    Method(
        "code-input",
        "the encoder of the hypernetwork, with its code as an input instead of as weights",
        {("cameras", "unlabelled"): lambda p: learners.CodeInputs(p.build_coded())},
    ),
    Method(
        "in-context",
        "a transformer that reads the support set together with each query",
        {("cameras",): lambda p: learners.InContext(learners.ContextReader(p.pixels, p.classes))},
        "Müller et al. (2022)",
    ),
    Method(
        "shared",
        "the base network of the hypernetwork, with one first layer for all tasks",
        {("cameras", "unlabelled"): lambda p: learners.SharedInputs(p.build(p.classes))},
    ),
    Method(
        "scratch",
        "the base network, trained on each support set alone",
        {
            ("images", "sentences"): lambda p: learners.FromScratch(
                p.build_alone, steps=50, inner_lr=3e-3
            ),
            ("curves",): lambda p: learners.FromScratch(p.build, steps=100, inner_lr=3e-2),
        },
    ),
    Method(
        "matching",
        "wires matched to pixels by hand, and a support vector machine that knows the training "
        "pictures",
        {("cameras",): lambda p: learners.Matching(*p.images())},
    ),
    Method(
        "matching-taught",
        "matching, with a machine trained on pictures restored in this way",
        {("cameras",): lambda p: learners.Matching(*p.images(), taught=p.taught())},
    ),
    Method(
        "logistic",
        "logistic regression on each support set alone",
        {("cameras",): lambda p: learners.SupportLogistic(p.pixels, p.classes)},
    ),
    Method(
        "nearest",
        "the label of the nearest point of the support set",
        {("cameras",): lambda p: learners.SupportNearest(p.pixels, p.classes)},
    ),
    Method(
        "svm",
        "a support vector machine on each support set alone",
        {("cameras",): lambda p: learners.SupportSVM(p.pixels, p.classes)},
    ),
    Method(
        "centroid",
        "the class whose mean input is nearest",
        {("images", "sentences"): _centroid},
    ),
    Method(
        "polynomial",
        "a polynomial fitted to each support set alone, by ridge regression",
        {("curves",): lambda p: learners.RidgePolynomial(p.x_dim, p.y_dim, degree=3, ridge=0.3)},
        "Hoerl and Kennard (1970)",
    ),
    Method(
        "ridge",
        "a line fitted to each support set alone, by ridge regression",
        {("curves",): lambda p: learners.RidgePolynomial(p.x_dim, p.y_dim, degree=1, ridge=0.3)},
        "Hoerl and Kennard (1970)",
    ),
    Method(
        "interpolation",
        "interpolation between the points of the support set",
        {("functions",): lambda p: learners.Interpolation(2, 1, power=4.0)},
        "Shepard (1968)",
    ),
    Method(
        "gaussian",
        "the posterior mean under a Gaussian that is fitted to training images or functions",
        {
            ("curves",): lambda p: p.gaussian(),
            ("functions",): lambda p: learners.GaussianPixels(p.train, bounds=p.bounds),
        },
        "Rasmussen and Williams (2006)",
    ),
    Method(
        "kernel",
        "kernel regression over training functions on one grid: their mean, weighted by the "
        "distance at observed points",
        {("functions", "table"): lambda p: p.kernel()},
        "Nadaraya (1964), Watson (1964)",
    ),
)
"""Every method, in the order of lists; add yours here."""

FITS: dict[str, tuple[str, ...]] = {
    data: tuple(method.name for method in METHODS if method.build_for(data))
    for members in FAMILIES.values()
    for data in members
} | {
    "own": tuple(
        method.name for method in METHODS if method.build_for("folder") or method.build_for("table")
    )
}
"""Names of the methods for each data set. ``own``, a source as ``module:Class``, has those of
images and those of curves, until a drawn task decides between them."""


def twins(names: Sequence[str], data: str) -> tuple[str, str] | None:
    """Return the first two names that stand for one method on a data set, or None.

    Args:
        names: Names of methods.
        data: A data set in `FAMILIES`, or ``own``, where names are not compared.

    Example:
        >>> twins(("hypernetwork", "protonet", "generated-head"), "digits")
        ('hypernetwork', 'generated-head')
    """
    builds = {} if data == "own" else builds_of(data)
    for place, name in enumerate(names):
        for other in names[:place]:
            if name in builds and other != name and builds[name] is builds.get(other):
                return other, name
    return None


def builds_of(data: str) -> dict[str, Build]:
    """Return the builders of the methods for a data set, by name."""
    return {method.name: build for method in METHODS if (build := method.build_for(data))}
