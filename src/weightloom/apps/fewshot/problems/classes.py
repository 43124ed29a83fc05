"""Classification of classes never seen in meta-training: images, spectrograms, sentences, pictures of your own."""

from collections.abc import Callable
from itertools import product
from typing import Any

from torch import Tensor, nn

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.inputs import Inputs, Pictures, Sentences, Sounds
from weightloom.apps.fewshot.problems.base import own_base, split_base
from weightloom.apps.fewshot.problems.pools import load_pools
from weightloom.apps.fewshot.problems.problem import MixedTasks, Problem
from weightloom.forms import LowRank
from weightloom.learners.centroid import NearestCentroid
from weightloom.learners.convs import HyperConvs
from weightloom.learners.heads import HyperHead
from weightloom.learners.inner_steps import InnerSteps
from weightloom.learners.learner import Learner
from weightloom.learners.maml import ANIL, MAML
from weightloom.learners.probe import LinearProbe
from weightloom.learners.protonet import ProtoNet
from weightloom.learners.scratch import FromScratch
from weightloom.networks import ConvNet, FeatureTrunk, Norm, ResidualTrunk, TrunkNet
from weightloom.tasks import ClassTasks, TaskSource

NORM_METHODS = ("hyper-film", "film", "protonet-unit")
"""Methods that change the norms of the base, or add one."""
NORMS: dict[str, Norm] = {"group": "group", "batch": "batch", "transductive": "task"}


class ClassProblem(Problem):
    """Classify examples of classes never seen in meta-training.

    Args:
        config: A resolved config.
    """

    kind = "classification"
    at_once = 25

    def __init__(self, config: FewShotOptions) -> None:
        self.config = config
        pools = load_pools(config)
        self.train, self.validation, self.held_out = pools.train, pools.validation, pools.test
        self.pools, self.notices = pools, pools.notices
        self.event = tuple(self.train.examples.shape[2:])
        for ways, shots in product(config.ways or (), config.shots or ()):
            self.test_source(shots, ways)  # refuse what cannot be drawn before anything is written
        self.train_source()

    def train_source(self, learner: Learner | None = None) -> TaskSource:
        """Classes of meta-training, augmented; shots as in the table, chosen for each batch, the others are queries."""
        config, pools = self.config, self.pools
        assert config.train_ways and config.queries and config.shots
        fixed = learner.ways if learner else None
        ways = fixed or min(config.train_ways, pools.most_ways(pools.train_groups, len(self.train.names)))
        options: dict[str, Any] = {"augment": pools.augment, "groups": pools.train_groups}
        drawn = min(config.shots) + config.queries
        sources = [
            ClassTasks(self.train.examples, self.train.counts, ways, shots, max(1, drawn - shots), **options)
            for shots in config.shots
        ]
        return sources[0] if len(sources) == 1 else MixedTasks([*sources])

    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """Classes that were held out, as they are."""
        config = self.config
        assert config.ways and config.queries
        fewest = 1 if config.uneven_shots and shots > 1 else None
        pool, groups = self.held_out, self.pools.test_groups
        ways = ways or config.ways[0]
        same = self.pools.same_drawer
        return ClassTasks(pool.examples, pool.counts, ways, shots, config.queries, None, fewest, groups, same)

    def validation_source(self, shots: int) -> TaskSource:
        """Classes that are neither judged on nor, where the data have enough, trained on."""
        assert self.config.ways and self.config.queries
        pool, groups = self.validation, self.pools.validation_groups
        ways = min(self.config.ways[0], self.pools.most_ways(groups, len(pool.names)))
        return ClassTasks(pool.examples, pool.counts, ways, shots, self.config.queries, groups=groups)

    def build(self, outputs: int, unit: bool = False, norm: Norm | None = None) -> nn.Module:
        """The base network of every method.

        Args:
            outputs: Rows of the head.
            unit: Bring its features to one length.
            norm: How it normalises images; None is the config's.
        """
        if self.config.base:
            return split_base(self.config, outputs, self.event)
        if len(self.event) == 1:
            return TrunkNet(FeatureTrunk(self.event[0]), outputs)
        channels_in, size = self.event[:2]
        options = {"norm": norm or NORMS[self.config.normalisation or "group"], **self.pools.network}
        if self.pools.residual:
            return TrunkNet(ResidualTrunk(channels_in, size, unit=unit, **options), outputs)
        return ConvNet(channels_in, size, outputs, **options)

    def build_alone(self, outputs: int) -> nn.Module:
        """The base network where all of it is fitted to a task: statistics of meta-training are no longer its own."""
        return own_base(self.config, outputs, self.event) if self.config.base else self.build(outputs, norm="group")

    def methods(self) -> dict[str, Callable[[], Learner]]:
        """What builds each method."""
        config, scale = self.config, self.pools.start_scale
        ways = config.ways[0] if config.ways else 2
        steps, rate = config.inner_steps, config.inner_lr
        unit, sharp = self.pools.unit_scale is not None, self.pools.unit_scale or scale
        classes = len(self.train.names) if self.pools.tell_all_apart else 0

        def film(name: str, parameter: Tensor) -> bool:
            return parameter.ndim == 1 and name.startswith("blocks")  # scales and shifts of norms

        def kernels(name: str, parameter: Tensor) -> bool:
            return parameter.ndim == (2 if self.config.base else 4)

        def inner(kind: Callable[..., Learner], base: nn.Module, inner_lr: float, **options: Any) -> Learner:
            learner = kind(base, inner_steps=steps or 5, inner_lr=rate or inner_lr, learn_inner_lr=True, **options)
            learner.ways = ways
            return learner

        def maml(**options: Any) -> Learner:
            return inner(MAML, self.build_alone(ways), 0.01 if self.pools.residual else 0.1, **options)

        known: dict[str, Callable[[], Learner]] = {
            "hypernetwork": lambda: HyperHead(self.build(ways, unit), sharp, classes),
            "hyper-film": lambda: HyperConvs(self.build(ways), film, scale),
            "hyper-lowrank": lambda: HyperConvs(self.build(ways), {kernels: LowRank(4)}, scale),
            "hyper-maml": lambda: InnerSteps(HyperHead(self.build(ways), scale), steps or 3, rate or 0.01),
            "film": lambda: HyperConvs(self.build(ways), film, scale, generate_head=False),
            "maml": maml,
            "maml-first-order": lambda: maml(first_order=True),
            "anil": lambda: inner(ANIL, self.build(ways), 0.1),
            "protonet": lambda: ProtoNet(self.build(ways), scale, classes),
            "protonet-unit": lambda: ProtoNet(self.build(ways, True), self.pools.unit_scale or scale, classes),
            "probe": lambda: LinearProbe(self.build(ways), len(self.train.names)),
            "scratch": lambda: FromScratch(self.build_alone, steps=50, inner_lr=3e-3),
            "centroid": lambda: NearestCentroid(self.train.examples[0, 0].numel()),
        }
        if self.config.base:  # norms of a network of the user's own have no names that are known
            known = {name: build for name, build in known.items() if name not in NORM_METHODS}
        return known

    def inputs(self) -> Inputs:
        """Sentences, sounds, or pictures of the size of training."""
        if len(self.event) == 1:
            return Sentences()
        if self.config.kind == "spoken-digits":
            return Sounds()
        return Pictures(self.event[0], self.event[1])

    def setting(self, shots: int, ways: int) -> str:
        """Ways and shots, and what is unusual."""
        also = ", transductive" if self.config.normalisation == "transductive" else ""
        return f"{ways}-way {self.up_to(shots)}-shot{also}"
