"""Classification of unseen classes: images, spectrograms, sentences, pictures of your own."""

from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import nn

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.inputs import Inputs, Pictures, Sentences, Sounds
from weightloom.apps.fewshot.problems.backbones import Read, read_by_backbone
from weightloom.apps.fewshot.problems.base import own_base
from weightloom.apps.fewshot.problems.pools import Pools, load_pools
from weightloom.apps.fewshot.problems.problem import MixedTasks, Problem
from weightloom.learners.learner import Learner
from weightloom.learners.trunks import with_unit_length
from weightloom.networks import (
    ConvNet,
    FeatureTrunk,
    Norm,
    ResidualTrunk,
    TrunkNet,
    replace_recurrent,
)
from weightloom.tasks import ClassTasks, TaskSource
from weightloom.tasks.data import ClassPool

NORMS: dict[str, Norm] = {"group": "group", "batch": "batch", "transductive": "task"}

UNIT_SCALE = 10.0
"""Scale of the logits at step 0 of heads on features of one length, unless the data set has one."""

ON_TRAINING = (
    "Validation scores during training are of new tasks of training classes, since no others are "
    "held out for them; the table is of unseen classes."
)
"""Notice about data without validation classes."""


class ClassProblem(Problem):
    """Problem of classifying examples of classes never seen in meta-training.

    Args:
        config: Resolved options.

    Raises:
        DataError: If the data are missing or damaged.
        ConfigError: If ways, shots and queries ask for more classes or examples than exist.
    """

    kind = "classification"
    validates_on_training = False
    at_once = 25
    pools: Pools
    """Classes of training, validation and test; with a backbone their pictures."""
    read: Read | None = None
    """The backbone that reads pictures; None without one."""

    def __init__(self, config: FewShotOptions) -> None:
        self.config = config
        self.pools = load_pools(config)
        if config.backbone != "none":
            self.pools, self.read = read_by_backbone(self.pools, config)
        self.notices = self.pools.notices
        self.validates_on_training = self.pools.validates_on_training
        if self.validates_on_training:
            self.notices += (ON_TRAINING,)
        self.event = tuple(self.pools.train.examples.shape[2:])
        for ways, shots in product(config.ways or (), config.shots or ()):
            self._test_source(self.pools.test, shots, ways)  # raises before any file is written
        self._train_source(self.pools.train)
        if self.read:
            self.event = self.read.event(self.event)

    @cached_property
    def train(self) -> ClassPool:
        """Classes of meta-training; with a backbone, read when they are first asked for."""
        return self._encoded(self.pools.train)

    @cached_property
    def validation(self) -> ClassPool:
        """Classes that are scored during meta-training."""
        return self._encoded(self.pools.validation)

    @cached_property
    def held_out(self) -> ClassPool:
        """Classes of the table."""
        return self._encoded(self.pools.test)

    def _encoded(self, pool: ClassPool) -> ClassPool:
        return self.read.encoded(pool) if self.read else pool

    def reader(self) -> nn.Module | None:
        """Return the frozen network that reads pictures; None without a backbone."""
        return self.read.reader if self.read else None

    def facts(self) -> dict[str, Any]:
        """Return the backbone in words, for ``network.json``."""
        return {"backbone": self.read.in_words()} if self.read else {}

    def train_source(self, learner: Learner | None = None) -> TaskSource:
        """Return tasks of the augmented classes of meta-training.

        Each batch has one of the shots of the table, chosen at random; all batches have equally
        many examples per class, those beyond the shots being queries.

        Args:
            learner: A learner with a fixed number of classes gets tasks of as many.
        """
        return self._train_source(self.train, learner)

    def _train_source(self, pool: ClassPool, learner: Learner | None = None) -> TaskSource:
        config, pools = self.config, self.pools
        assert config.train_ways and config.queries and config.shots
        fixed = learner.ways if learner else None
        ways = fixed or min(config.train_ways, pools.most_ways(pools.train_groups, len(pool.names)))
        options: dict[str, Any] = {"augment": pools.augment, "groups": pools.train_groups}
        drawn = min(config.shots) + config.queries
        sources = [
            ClassTasks(
                pool.examples,
                pool.counts,
                ways,
                shots,
                max(1, drawn - shots),
                named=pool.named,
                **options,
            )
            for shots in config.shots
        ]
        return sources[0] if len(sources) == 1 else MixedTasks([*sources])

    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """Return tasks of the held-out classes, without augmentation."""
        return self._test_source(self.held_out, shots, ways)

    def _test_source(self, pool: ClassPool, shots: int, ways: int | None) -> TaskSource:
        config = self.config
        assert config.ways and config.queries
        fewest = 1 if config.uneven_shots and shots > 1 else None
        groups = self.pools.test_groups
        ways = ways or config.ways[0]
        same = self.pools.same_drawer
        return ClassTasks(
            *(pool.examples, pool.counts, ways, shots, config.queries),
            fewest_shots=fewest,
            groups=groups,
            same_drawer=same,
            named=pool.named,
        )

    def validation_source(self, shots: int) -> TaskSource:
        """Return tasks of classes not used for the table nor, if there are enough, for training."""
        assert self.config.ways and self.config.queries
        pool, groups = self.validation, self.pools.validation_groups
        ways = min(self.config.ways[0], self.pools.most_ways(groups, len(pool.names)))
        return ClassTasks(
            *(pool.examples, pool.counts, ways, shots, self.config.queries),
            groups=groups,
            named=pool.named,
        )

    def build(self, outputs: int, unit: bool = False, norm: Norm | None = None) -> nn.Module:
        """Build the base network.

        Args:
            outputs: Rows of the head.
            unit: Centre features and scale them to one length.
            norm: Normalisation of images; None for the config's.
        """
        if self.read:
            return TrunkNet(self.read.trunk(unit), outputs)
        base = self._base(outputs, norm)
        return with_unit_length(base, torch.zeros(1, *self.event)) if unit else base

    def _base(self, outputs: int, norm: Norm | None) -> nn.Module:
        if self.config.base:
            return own_base(self.config, outputs, self.event)
        if len(self.event) == 1:
            return TrunkNet(FeatureTrunk(self.event[0]), outputs)
        channels_in, size = self.event[:2]
        options = {
            "norm": norm or NORMS[self.config.normalisation or "group"],
            **self.pools.network,
        }
        if self.pools.residual:
            return TrunkNet(ResidualTrunk(channels_in, size, **options), outputs)
        return ConvNet(channels_in, size, outputs, **options)

    def build_alone(self, outputs: int) -> nn.Module:
        """Build the base network for methods that fit all of it to a task.

        It normalises within each image, since running statistics of meta-training no longer fit.
        Recurrent layers are those that run for many tasks in one pass.
        """
        return replace_recurrent(self.build(outputs, norm="group"))

    @property
    def ways(self) -> int:
        """Number of rows of a head that is shared by all tasks."""
        return self.config.ways[0] if self.config.ways else 2

    @property
    def scale(self) -> float:
        """Scale of the logits of heads at step 0."""
        return self.pools.start_scale

    @property
    def unit(self) -> bool:
        """True if generated heads, and probes, read features of one length."""
        return self.read is not None or self.pools.unit_scale is not None

    @property
    def sharp(self) -> float:
        """Scale of the logits at step 0 of heads on features of one length."""
        return self.pools.unit_scale or UNIT_SCALE

    @property
    def generated_scale(self) -> float:
        """Scale of the logits at step 0 of generated heads."""
        return self.sharp if self.unit else self.scale

    @property
    def known(self) -> int:
        """Number of classes in an auxiliary classification loss of the trunk; 0 for none."""
        return len(self.pools.train.names) if self.pools.tell_all_apart else 0

    def train_classes(self) -> int:
        """Return the number of training classes, for methods that classify all of them."""
        return len(self.pools.train.names)

    def inputs(self) -> Inputs:
        """Return the preprocessing of sentences, sounds, or pictures of the size of training."""
        event = tuple(self.pools.train.examples.shape[2:])
        if len(event) == 1:
            return Sentences()
        if self.config.kind == "spoken-digits":
            return Sounds()
        return Pictures(event[0], event[1])

    def setting(self, shots: int, ways: int) -> str:
        """Return the setting in words, as in "5-way 1-shot"."""
        also = ", transductive" if self.config.normalisation == "transductive" else ""
        return f"{ways}-way {self.up_to(shots)}-shot{also}"
