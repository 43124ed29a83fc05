"""Methods of `--data pictures`: ResNet-20, changed by each, and class means of its features.

In:   pictures of the support and of the query.
Out:  `PictureModel`: losses in training, logits of the query.
Knows nothing of data sets and tables.
"""

import copy
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from weightloom.adapt import descend, fit_params
from weightloom.base import apply_per_task
from weightloom.conditions import class_statistics
from weightloom.forms import LowRank
from weightloom.hypernets import MLPHyperNetwork
from weightloom.learners.shared import SharedChanges
from weightloom.losses import cross_entropy_per_task
from weightloom.networks.resnet20 import WIDTHS, ResNet20
from weightloom.params import Params

FILM = "*bn*"
"""Selector of the gains and shifts of all 19 norms, 1,376 numbers."""
RATES = {"*": 1e-4, "": 3e-4, "lora": 3e-4}
"""Adam's rate for steps on a target, by tuned parameters, swept on validation targets."""
LEAST = 1e-4
"""Smallest deviation that a condition is divided by: some features are zero in every picture."""
SMOOTHING, CLASS_SCALE = 0.1, 20.0
"""Probability that is shared out among all classes, and factor on cosines, in the training of a
classifier of all classes."""


class JoinedFeatures(nn.Module):
    """Pooled features of the last stage of ResNet-20, or of its last two stages joined.

    Each is scaled to unit length. Convolutions run in bfloat16, twice as fast.

    Args:
        network: The network, in eval mode.
        both: Join the features of the second stage, (batch, 96) in place of (batch, 64).
    """

    def __init__(self, network: ResNet20, both: bool = True) -> None:
        super().__init__()
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        self.network, self.both = network.to(**layout), both
        self.width = WIDTHS[2] + (WIDTHS[1] if both else 0)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures from 0 to 1, (batch, 3, 32, 32), to features, (batch, width), float32."""
        with torch.autocast(x.device.type, torch.bfloat16):
            stages = self.network.features(x.contiguous(memory_format=torch.channels_last))
        kept = stages if self.both else stages[1:]
        return torch.cat([normalize(stage.float(), dim=-1) for stage in kept], dim=-1)


class PictureModel(nn.Module):
    """Class means of the features of one network for all targets: the nearest one is the answer.

    Args:
        features: The network; its parameters are trained or not as `trains` says.
        scale: Factor on cosines, which makes them logits.
        trains: Parameters of the network that are trained: `FILM`, "*" for all, or "" for none.
        tunes: Parameters that gradient steps on a target change beside the class means: "*" for
            all, "" for none, or None if no steps are taken.
    """

    reads: ClassVar[bool] = False
    """True if a condition is read, from which the network's parameters are generated."""
    is_shared: ClassVar[bool] = True
    """True if one network reads the pictures of all targets."""

    def __init__(
        self,
        features: JoinedFeatures,
        scale: float,
        trains: str = "",
        tunes: str | None = None,
    ) -> None:
        super().__init__()
        self.features, self.tunes, self.trained = features, tunes, bool(trains)
        self.log_scale = nn.Parameter(torch.tensor(scale).log(), requires_grad=self.trained)
        self.moves = trains == "*"
        """True if statistics of norms are refreshed in training."""
        for name, parameter in features.named_parameters():
            parameter.requires_grad = name in _selected(features, trains)

    def train(self, mode: bool = True) -> "PictureModel":
        """Set the mode; the network is in train mode only while all its weights are trained."""
        super().train(mode)
        self.features.train(mode and self.moves)
        return self

    def answer(self, support: Tensor, query: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return logits of the query of each target.

        Args:
            support: Pictures from 0 to 1, (targets, ways, shots, 3, 32, 32).
            query: Pictures, (targets, queries, 3, 32, 32).
            condition: Condition to read in place of the support's own, (targets, condition_dim).

        Returns:
            (targets, queries, ways).
        """
        shots = support.shape[1:3]
        found = self.read(torch.cat([support.flatten(1, 2), query], 1), support, condition)
        count = shots.numel()
        return self.logits(found[:, :count].unflatten(1, shots), found[:, count:])

    def read(self, x: Tensor, support: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return features of pictures of each target, (targets, pictures, width).

        Args:
            x: Pictures, (targets, pictures, 3, 32, 32).
            support: As for `answer`.
            condition: As for `answer`.
        """
        found: Tensor = self.features(x.flatten(0, 1))
        return found.unflatten(0, x.shape[:2])

    def logits(self, support: Tensor, query: Tensor) -> Tensor:
        """Return scaled cosines of query features to class means.

        Args:
            support: Features of the support, (targets, ways, shots, width).
            query: Features of the query, (targets, queries, width).

        Returns:
            (targets, queries, ways).
        """
        means = normalize(support.mean(2), dim=-1)
        return self.log_scale.exp() * normalize(query, dim=-1) @ means.mT

    def forward(self, batch: Any) -> Tensor:
        """Return the cross-entropy of each task's query, (tasks,); a batch is `Tasks`."""
        support = batch.support_x.unflatten(1, (batch.classes.shape[1], -1))
        return cross_entropy_per_task(self.answer(support, batch.query_x), batch.query_y)

    def tuned(self, support: Tensor, steps: int, rate: float) -> tuple["Classifier", Params]:
        """Take steps of Adam on all support pictures of each target, from class means.

        Args:
            support: Pictures, (targets, ways, shots, 3, 32, 32).
            steps: Number of steps.
            rate: Learning rate.

        Returns:
            A module that maps pictures to logits, and its parameters for each target.
        """
        base, start = self.start(support)
        y = labels_of(support)

        def loss(logits: Tensor) -> Tensor:
            return cross_entropy_per_task(logits, y)

        return base, fit_params(base, start, support.flatten(1, 2), loss, steps, rate)

    def start(self, support: Tensor) -> tuple["Classifier", Params]:
        """Return the classifier at class means, and the parameters that steps on a target change.

        Args:
            support: Pictures, (targets, ways, shots, 3, 32, 32).
        """
        found = self.read(support.flatten(1, 2), support).unflatten(1, support.shape[1:3])
        means = normalize(found.mean(2), dim=-1)
        base = Classifier(self.features, means[0], self.log_scale.exp().detach())
        return base, Params({"means": means, **self.changed(len(support))})

    def changed(self, targets: int) -> dict[str, Tensor]:
        """Return the network's parameters that steps change, equal for all targets."""
        own = dict(self.features.named_parameters())
        return {
            f"features.{name}": own[name].expand(targets, *own[name].shape)
            for name in _selected(self.features, self.tunes or "")
        }


class Classifier(nn.Module):
    """Features and class means as one module: pictures to logits.

    Args:
        features: The network.
        means: Class means, (ways, width), parameters of this module.
        scale: Factor on cosines.
    """

    def __init__(self, features: JoinedFeatures, means: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.features, self.scale = features, scale
        self.means = nn.Parameter(means.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of pictures, (batch, 3, 32, 32) to (batch, ways)."""
        return self.scale * linear(
            normalize(self.features(x), dim=-1), normalize(self.means, dim=-1)
        )


class LowRankTuned(PictureModel):
    """Low-rank changes of all convolutions, trained from scratch on each target.

    Args:
        features: The network.
        scale: Factor on cosines.
        rank: Rank of the changes.
    """

    def __init__(self, features: JoinedFeatures, scale: float, rank: int) -> None:
        super().__init__(features, scale, tunes="")
        kernels = [name for name, its in features.named_parameters() if its.ndim == 4]
        self.changes = SharedChanges(features, dict.fromkeys(kernels, LowRank(rank)))
        self.changes.requires_grad_(False)

    def changed(self, targets: int) -> dict[str, Tensor]:
        """Return the kernels with changes of zero, held as factors."""
        found = self.changes(torch.zeros(targets, 1))
        return {f"features.{name}": value for name, value in found.items()}


class Refreshed(PictureModel):
    """Statistics of all norms measured on the support of each target.

    Args:
        features: The network.
        scale: Factor on cosines.
        kept: Share of the source's statistics, from 0 to 1.

    Source:
        Li et al., "Revisiting batch normalization for practical domain adaptation" (2017); a share
        of the source's statistics: Schneider et al., "Improving robustness against common
        corruptions by covariate shift adaptation" (2020).
    """

    is_shared: ClassVar[bool] = False

    def __init__(self, features: JoinedFeatures, scale: float, kept: float) -> None:
        super().__init__(features, scale)
        self.kept = kept

    def read(self, x: Tensor, support: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return features by the statistics of each target; arguments as for class means."""
        pairs = zip(x, support.flatten(1, 2), strict=True)
        return torch.stack([self.refreshed(known)(its) for its, known in pairs])

    def refreshed(self, known: Tensor) -> JoinedFeatures:
        """Return the network with the statistics of pictures, (pictures, 3, 32, 32)."""
        features = copy.deepcopy(self.features).train()
        for norm in features.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1 - self.kept
        features(known)
        return features.eval()


class Gaussian(PictureModel):
    """Normal classes around normal class means, with covariances of the training classes.

    The class mean of a target is its posterior mean, and a picture has the posterior predictive
    density. Nothing is trained by gradient descent.

    Args:
        features: The network.
        known: Features of training pictures, (classes, pictures, width).
        ridge: Variance that is added within classes, as a share of the mean variance.
        scale: Factor on log densities.

    Source:
        Ioffe, "Probabilistic linear discriminant analysis" (2006).
    """

    mean: Tensor
    within: Tensor
    between: Tensor

    def __init__(
        self, features: JoinedFeatures, known: Tensor, ridge: float, scale: float = 1.0
    ) -> None:
        super().__init__(features, scale)
        means = known.mean(1)
        offsets = (known - means[:, None]).flatten(0, 1)
        within = offsets.mT @ offsets / (len(offsets) - len(known))
        added = ridge * within.trace() / len(within)
        self.register_buffer("mean", means.mean(0))
        self.register_buffer("within", within + added * torch.eye(len(within)))
        self.register_buffer("between", means.mT.cov())

    def logits(self, support: Tensor, query: Tensor) -> Tensor:
        """Return scaled log densities up to a constant; arguments as for class means."""
        gain = torch.linalg.solve(self.between + self.within / support.shape[2], self.between).mT
        means = self.mean + (support.mean(2) - self.mean) @ gain.mT
        spread = self.between - gain @ self.between + self.within
        root = torch.linalg.cholesky(torch.linalg.inv((spread + spread.mT) / 2))
        squares = torch.cdist(query @ root, means @ root).square()
        return -0.5 * self.log_scale.exp() * squares


class GeneratedFilm(PictureModel):
    """Gains and shifts of all norms, generated from statistics of the support's features.

    The condition is mean and standard deviation of the class means, and the standard deviation
    within classes, per feature of the frozen network. Each is standardised over training tasks, so
    the mean condition of all training targets is zero.

    Args:
        features: The network, frozen.
        scale: Factor on cosines at the start.
        width: Width of the hypernetwork.
    """

    reads: ClassVar[bool] = True
    is_shared: ClassVar[bool] = False
    center: Tensor
    spread: Tensor

    def __init__(self, features: JoinedFeatures, scale: float, width: int) -> None:
        super().__init__(features, scale)
        self.trained = True
        self.log_scale.requires_grad_(True)
        dim = 3 * features.width
        self.hyper = MLPHyperNetwork(features, dim, FILM, (width,), freeze="*")
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))

    def standardise(self, support: Tensor) -> None:
        """Measure mean and deviation of the conditions of training tasks.

        Args:
            support: Features of their supports, (tasks, ways, shots, width).
        """
        found = statistics_of(support)
        self.center.copy_(found.mean(0))
        self.spread.copy_(found.std(0).clamp_min(LEAST))

    def condition(self, support: Tensor) -> Tensor:
        """Return the condition of each target, (targets, 3 · width).

        Args:
            support: Pictures, (targets, ways, shots, 3, 32, 32).
        """
        with torch.no_grad():
            found = self.features(support.flatten(0, 2)).unflatten(0, support.shape[:3])
        return (statistics_of(found) - self.center) / self.spread

    def generated(self, condition: Tensor) -> Params:
        """Return gains and shifts of all norms for each target."""
        params: Params = self.hyper(condition)
        return params

    def read(self, x: Tensor, support: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return features by each target's gains and shifts; arguments as for class means."""
        condition = self.condition(support) if condition is None else condition
        found: Tensor = apply_per_task(self.hyper.base, self.generated(condition), x)
        return found


class GeneratedAfter(GeneratedFilm):
    """`GeneratedFilm` on a network that was fine-tuned before, on other classes.

    Arguments as for `GeneratedFilm`; the network is fine-tuned in place before the training.
    """


class AllClasses(PictureModel):
    """All weights trained to tell all training classes apart, then class means.

    Args:
        features: The network.
        scale: Factor on cosines to class means, not trained.
        classes: Number of training classes.
    """

    def __init__(self, features: JoinedFeatures, scale: float, classes: int) -> None:
        super().__init__(features, scale, trains="*")
        self.log_scale.requires_grad_(False)
        self.directions = nn.Parameter(torch.randn(classes, features.width))

    def forward(self, batch: Any) -> Tensor:
        """Return the cross-entropy of each picture, (batch,); a batch is `LabelledPictures`."""
        found = self.features(batch.x)
        cosines = linear(normalize(found, dim=-1), normalize(self.directions, dim=-1))
        return cross_entropy(
            CLASS_SCALE * cosines, batch.y, reduction="none", label_smoothing=SMOOTHING
        )


class FirstOrderMaml(PictureModel):
    """Initialisation of all weights for steps on a target, trained by first-order gradients.

    The head starts at class means, as in Proto-MAML.

    Args:
        features: The network.
        scale: Factor on cosines at the start.
        inner_steps: Steps on the support in training.
        inner_lr: Learning rate of these steps, by Adam as on a target.

    Source:
        Finn, Abbeel and Levine, "Model-agnostic meta-learning" (2017), section 5.2; Triantafillou
        et al., "Meta-Dataset" (2020), for the head.
    """

    def __init__(
        self, features: JoinedFeatures, scale: float, inner_steps: int, inner_lr: float
    ) -> None:
        super().__init__(features, scale, trains="*", tunes="*")
        self.inner_steps, self.inner_lr = inner_steps, inner_lr
        self.moves = False  # as on a target, where norms keep their statistics

    def forward(self, batch: Any) -> Tensor:
        """Return the cross-entropy of each task's query after the steps, (tasks,)."""
        support = batch.support_x.unflatten(1, (batch.classes.shape[1], -1))
        base, start = self.start(support)

        def loss(params: Params) -> Tensor:
            logits = apply_per_task(base, params, batch.support_x)
            return cross_entropy_per_task(logits, batch.support_y)

        params = descend(
            start, loss, self.inner_steps, self.inner_lr, first_order=True, momentum=(0.9, 0.999)
        )
        return cross_entropy_per_task(apply_per_task(base, params, batch.query_x), batch.query_y)


def labels_of(support: Tensor) -> Tensor:
    """Labels of a support, (targets, ways, shots, ...), class after class, (targets, pictures)."""
    targets, ways, shots = support.shape[:3]
    return torch.arange(ways).repeat_interleave(shots).expand(targets, -1)


def statistics_of(support: Tensor) -> Tensor:
    """Mean and deviation of class means, and deviation within classes, (targets, 3 · width).

    Args:
        support: Features, (targets, ways, shots, width).
    """
    found = class_statistics(support.flatten(1, 2), labels_of(support), ways=support.shape[1])
    return torch.cat([found.mean.mean(1), found.mean.std(1), found.spread.sqrt()], dim=1)


def _selected(features: nn.Module, selector: str) -> list[str]:
    """Names of the parameters that "" (none), `FILM` or "*" select; the last layer is not read."""
    return [
        name
        for name, _ in features.named_parameters()
        if selector and fnmatchcase(name, selector) and not name.startswith("network.linear")
    ]
