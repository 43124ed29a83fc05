"""Models that read digits under domains: plain, generated from unlabelled pictures, and rivals.

In:   unlabelled pictures of each target.
Out:  parameters and statistics of norms per target, and the classification with them.
Knows nothing of targets, tables and labels of a target.
"""

import copy
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from weightloom.adapt import descend
from weightloom.base import apply_per_task
from weightloom.base.buffers import task_buffers
from weightloom.conditions.statistics import SetStatistics, set_statistics
from weightloom.forms import Form, LowRank
from weightloom.hypernets import MLPHyperNetwork
from weightloom.learners.shared import SharedChanges
from weightloom.losses import cross_entropy_per_task
from weightloom.params import Params
from weightloom.tasks import Tasks, TaskSource

DIGITS, PIXELS, HIDDEN = 10, 64, 256
CONDITION_DIM, FEATURES = 64, 128
"""Width of the condition, and of the trained features whose statistics are read."""
SOURCES = 50
"""Number of models of single training domains, for `SingleSources`."""
TENT_STEPS, TENT_LR = 10, 3e-3
"""Gradient steps on the entropy of predictions, and their rate, chosen on validation targets."""
CANDIDATES, NEAREST, COPIES = 2000, 12, 100
"""Simulated domains, those taken for a target, and pictures of each, for `Simulated`."""
DISTANCE = 4.0
"""Squared distance between pictures that costs one unit of a logit, for `Simulated`."""

Scope = Literal["none", "head", "low-rank", "all"]
"""Parameters that gradient steps on a target change."""
RATES: dict[Scope, float] = {"none": 0.0, "head": 1e-2, "low-rank": 1e-2, "all": 5e-4}
"""Adam's rate of these steps, chosen on validation targets."""


class Adaptation(NamedTuple):
    """Parameters of a network, and statistics of its norms, per target; empty if not adapted."""

    params: Params
    buffers: dict[str, Tensor]


class StandardPicture(nn.Module):
    """Flatten each picture, and standardise it by its own mean and spread."""

    def forward(self, x: Tensor) -> Tensor:
        """Pictures, (batch, 1, size, size), to (batch, pixels)."""
        flat = x.flatten(1)
        centred = flat - flat.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-4).sqrt()


def digit_net(hidden: int = HIDDEN) -> nn.Sequential:
    """Build the network of all methods: each picture standardised, then three linear layers."""
    return nn.Sequential(
        StandardPicture(),
        nn.Linear(PIXELS, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, DIGITS),
    )


def adapted_places(rank: int) -> Mapping[str, Form]:
    """Return the weights of `digit_net` with a low-rank change; the last layer has half the rank.

    Args:
        rank: Rank of the changes, at most 18.
    """
    return {
        "1.weight": LowRank(rank),
        "4.weight": LowRank(rank),
        "7.weight": LowRank(max(rank // 2, 1)),
    }


class DigitModel(nn.Module):
    """Network without condition, the same for every target up to the statistics of its norms.

    Args:
        base: The network; None if a subclass holds it.
        trained: Train it on the training domains.
        scope: Parameters that gradient steps on a target change.
        rate: Rate of these steps. Default: that of the scope in `RATES`.
        refreshes: Take the statistics of norms over a target's unlabelled pictures; in training,
            over each domain's own batch. Else those of all training domains.

    Source:
        Refreshed statistics: Li et al., "Revisiting batch normalization for practical domain
        adaptation" (2017), with one source there, and a network of many domains here.
    """

    reads, needs_examples = False, False

    def __init__(
        self,
        base: nn.Module | None,
        trained: bool = True,
        scope: Scope = "none",
        rate: float | None = None,
        refreshes: bool = False,
    ) -> None:
        super().__init__()
        self.trained, self.scope, self.refreshes = trained, scope, refreshes
        self.rate = RATES[scope] if rate is None else rate
        if base is not None:
            self.base = base

    @property
    def net(self) -> nn.Module:
        """The network that runs with adapted parameters."""
        return self.base

    def forward(self, batch: Tasks) -> Tensor:
        """Loss of each training domain, (tasks,)."""
        x, params = batch.query_x, self.params(batch.support_x)
        if self.refreshes:
            logits = apply_per_task(self.net, params, x, statistics="task")
        else:
            logits = self.logits(Adaptation(params, {}), x)
        return cross_entropy_per_task(logits, batch.query_y)

    def params(self, x: Tensor) -> Params:
        """Parameters for each target from its unlabelled pictures; here none."""
        return Params()

    def adapt(self, x: Tensor) -> Adaptation:
        """Adapt to unlabelled pictures, (targets, examples, 1, size, size)."""
        return self.settled(self.params(x), x)

    def settled(self, params: Params, x: Tensor) -> Adaptation:
        """Add the statistics of norms over unlabelled pictures, if they are refreshed."""
        return Adaptation(params, statistics_of(self.net, params, x) if self.refreshes else {})

    def logits(self, adapted: Adaptation, x: Tensor) -> Tensor:
        """Classify pictures of each target, (targets, pictures, 1, size, size)."""
        if not adapted.params and not adapted.buffers:
            outputs: Tensor = self.net(x.flatten(0, 1))
            return outputs.unflatten(0, x.shape[:2])
        together: Literal["shared"] | None = "shared" if self.net.training else None
        logits: Tensor = apply_per_task(
            self.net, adapted.params, x, buffers=adapted.buffers, statistics=together
        )
        return logits


def statistics_of(net: nn.Module, params: Params, x: Tensor) -> dict[str, Tensor]:
    """Return the statistics of every norm over the pictures of each target, by buffer name.

    Args:
        net: The network; its own statistics stay.
        params: Parameters of each target; those of ``net`` where they are left out.
        x: Pictures, (targets, pictures, 1, size, size).
    """
    fresh = copy.deepcopy(net).train()
    for norm in fresh.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.momentum = 1.0  # a batch replaces the statistics
    buffers = task_buffers(fresh, len(x))
    with torch.no_grad():
        apply_per_task(fresh, params, x, buffers=buffers)
    return buffers


class Generated(DigitModel):
    """Network whose weights get a low-rank change, written from unlabelled pictures.

    Args:
        base: The network: new, and trained with the generator; or a trained source, kept frozen.
        rank: Rank of the change.
        width: Width of the hypernetwork.
        frozen: Freeze ``base``, and read the statistics of its features.
    """

    reads, needs_examples = True, True

    def __init__(self, base: nn.Sequential, rank: int, width: int, frozen: bool = False) -> None:
        super().__init__(None, scope="none" if frozen else "all", refreshes=True)
        self.encode = _encoder(base, frozen)
        self.hyper = MLPHyperNetwork(
            base.train(),
            CONDITION_DIM,
            adapted_places(rank),
            hidden=(width,),
            freeze="*" if frozen else None,
        )

    @property
    def net(self) -> nn.Module:
        """The network inside the hypernetwork."""
        return self.hyper.generated.base

    def params(self, x: Tensor) -> Params:
        """Write the change of each target in one pass."""
        written: Params = self.hyper(self.encode(x))
        return written


def _encoder(base: nn.Sequential, frozen: bool) -> SetStatistics:
    if frozen:
        features = copy.deepcopy(base[:7]).eval().requires_grad_(False)
        return SetStatistics(features, HIDDEN, CONDITION_DIM)
    features = nn.Sequential(
        StandardPicture(), nn.Linear(PIXELS, FEATURES), nn.ReLU(), nn.Linear(FEATURES, FEATURES)
    )
    return SetStatistics(features, FEATURES, CONDITION_DIM)


class SharedAdapter(DigitModel):
    """Frozen source with one low-rank change for all targets, in the places of `Generated`.

    Args:
        base: The source.
        rank: Rank of the change.
        trained: Train the change; else it is zero.
        scope: As for `DigitModel`.
    """

    def __init__(
        self, base: nn.Module, rank: int, trained: bool = True, scope: Scope = "none"
    ) -> None:
        super().__init__(None, trained, scope, refreshes=trained)
        self.changes = SharedChanges(base.train().requires_grad_(False), adapted_places(rank))

    @property
    def net(self) -> nn.Module:
        """The source."""
        return self.changes.generated.base

    def params(self, x: Tensor) -> Params:
        """Return the shared change."""
        return self.changes(x.flatten(1))


class Tent(DigitModel):
    """Refreshed statistics, and steps on scale and shift of the norms that lower the entropy.

    Args:
        base: The network.

    Source:
        Wang et al., "Tent: Fully test-time adaptation by entropy minimization" (2021). Statistics
        are taken once, before the first step.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base, refreshes=True)

    def adapt(self, x: Tensor) -> Adaptation:
        """Refresh the statistics of each target, then take the steps."""
        buffers = super().adapt(x).buffers
        start = Params(
            {
                f"{name}.{leaf}": its.detach().expand(len(x), -1).clone()
                for name, norm in self.base.named_modules()
                if isinstance(norm, nn.BatchNorm1d)
                for leaf, its in norm.named_parameters()
            }
        )

        def entropy(params: Params) -> Tensor:
            log = self.logits(Adaptation(params, buffers), x).log_softmax(-1)
            return -(log.exp() * log).sum(-1).mean(1)

        steps = descend(start, entropy, TENT_STEPS, TENT_LR, momentum=(0.9, 0.999))
        return Adaptation(steps, buffers)


class SingleSources(DigitModel):
    """Models of single training domains, all fine-tuned from the source at once.

    A target gets the model of the domain with the nearest statistics of the source's features, or
    the mean of all models' parameters.

    Args:
        base: The source.
        mean: Take the mean of all models.
    """

    needs_examples = True
    signatures: Tensor
    seen: Tensor

    def __init__(self, base: nn.Sequential, mean: bool) -> None:
        super().__init__(base.eval().requires_grad_(False))
        self.mean = mean
        self.models = nn.ParameterDict(
            {
                name.replace(".", "/"): its.detach().expand(SOURCES, *its.shape).clone()
                for name, its in base.named_parameters()
            }
        )
        self.register_buffer("signatures", torch.zeros(SOURCES, 2 * HIDDEN))
        self.register_buffer("seen", torch.zeros(()))

    def train(self, mode: bool = True) -> "SingleSources":
        """Set the mode; the source stays in eval mode."""
        super().train(mode)
        self.base.eval()
        return self

    def forward(self, batch: Tasks) -> Tensor:
        """Loss of the model of each training domain, (SOURCES,)."""
        with torch.no_grad():
            self.seen += 1
            self.signatures += (self._signature(batch.support_x) - self.signatures) / self.seen
        logits = apply_per_task(self.base, self._models(), batch.query_x)
        return cross_entropy_per_task(logits, batch.query_y)

    def params(self, x: Tensor) -> Params:
        """Return the nearest model of each target, or the mean of all."""
        params = self._models()
        if self.mean:
            means = {name: its.mean(0) for name, its in params.items()}
            return Params({name: its.expand(len(x), *its.shape) for name, its in means.items()})
        spread = self.signatures.std(0) + 1e-3
        near = torch.cdist(self._signature(x) / spread, self.signatures / spread).argmin(1)
        return Params({name: its[near] for name, its in params.items()})

    def _models(self) -> Params:
        return Params({name.replace("/", "."): its for name, its in self.models.items()})

    def _signature(self, x: Tensor) -> Tensor:
        base = self.base
        assert isinstance(base, nn.Sequential)
        return set_statistics(base[:7](x.flatten(0, 1)).unflatten(0, x.shape[:2]))


class Simulated(DigitModel):
    """Nearest pictures of simulated domains, those whose pixels have the nearest statistics.

    Nothing is trained: training pictures are seen through many random domains, a few domains are
    taken for each target, and their pictures are neighbours with known labels.

    Args:
        tasks: Source of training domains; its queries are the labelled neighbours.
        seed: Seed of the domains.
    """

    def __init__(self, tasks: TaskSource, seed: int) -> None:
        super().__init__(StandardPicture(), trained=False)
        drawn = tasks.sample(CANDIDATES, torch.Generator().manual_seed(seed))
        self.points, self.labels = self._flat(drawn.query_x), drawn.query_y
        self.signatures = set_statistics(self._flat(drawn.support_x))

    def _flat(self, x: Tensor) -> Tensor:
        standard: Tensor = self.base(x.flatten(0, 1))
        return standard.unflatten(0, x.shape[:2])

    def params(self, x: Tensor) -> Params:
        """Find the nearest simulated domains of each target."""
        near = torch.cdist(set_statistics(self._flat(x)), self.signatures)
        return Params({"domains": near.topk(NEAREST, largest=False).indices})

    def logits(self, adapted: Adaptation, x: Tensor) -> Tensor:
        """Score each digit by its nearest neighbour."""
        rows: list[Tensor] = []
        for domains, pictures in zip(adapted.params["domains"], self._flat(x), strict=True):
            points, labels = self.points[domains].flatten(0, 1), self.labels[domains].flatten()
            squares = torch.cdist(pictures, points).square()
            of_digit = one_hot(labels, DIGITS).bool()
            nearest = [squares[:, its].amin(1) for its in of_digit.T]
            rows.append(-torch.stack(nearest, 1) / DISTANCE)
        return torch.stack(rows)
