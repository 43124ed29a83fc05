"""Head and changes of the trunk, such as FiLM layers, both generated from the support set."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.conditions import class_statistics
from weightloom.forms.choose import Generate
from weightloom.hypernets import HeadHyperNetwork, MLPHyperNetwork
from weightloom.hypernets.head import LearnedScale, full_precision
from weightloom.learners.heads import scaled_prototypes, with_generated_head
from weightloom.learners.learner import Learner, Support
from weightloom.learners.shared import SharedChanges
from weightloom.learners.trunks import (
    flat_features,
    head_of,
    known_features,
    run_per_task,
    single,
    split,
    trunk_of,
)
from weightloom.params import Params, sub


class HyperConvs(Learner):
    """Generate changes of the trunk from the support set, then a head from the changed trunk.

    The condition is the mean and the standard deviation, per feature, of the class means under the
    unchanged trunk. It depends neither on the order nor on the number of classes. The changes start
    at zero, so at step 0 this is a shared trunk with a generated head.

    Args:
        base: A network with a trunk and a linear head, as `split` takes it.
        generate: Parameters of the trunk to generate, and their forms. Scales and shifts of its
            norms are the FiLM layers of the literature; ``{"*.weight": LowRank(4)}`` changes the
            kernels.
        start_scale: Scale of the logits at step 0.
        hidden: Width of the hidden layer between condition and parameters.
        generate_head: False computes the head from the class means alone, so that only the changes
            are generated.
        shared: Learn the same changes for all tasks instead of generating them, as a control.

    Raises:
        ConfigError: If ``base`` has no such parts, or the width of its features is unknown.

    Source:
        Requeima et al., "Fast and flexible multi-task classification using conditional neural
        adaptive processes" (2019): FiLM of a trunk and a head from the support set. Theirs uses a
        pretrained trunk and a separate encoder of the support set.
    """

    def __init__(
        self,
        base: nn.Module,
        generate: Generate = "*",
        start_scale: float = 1.0,
        hidden: int = 64,
        generate_head: bool = True,
        shared: bool = False,
    ) -> None:
        super().__init__()
        base = split(base, type(self).__name__)
        self.base, features = with_generated_head(base), known_features(base, type(self).__name__)
        self.trunk = trunk_of(self.base)
        self.hyper = (
            SharedChanges(self.trunk, generate)
            if shared
            else MLPHyperNetwork(self.trunk, 2 * features, generate=generate, hidden=(hidden,))
        )
        self.norm = nn.LayerNorm(2 * features)
        self.head = HeadHyperNetwork("head", start_scale=start_scale) if generate_head else None
        if not generate_head:
            self.scale = LearnedScale(start_scale)

    def condition(self, support: Support) -> Tensor:
        """Mean and standard deviation of the class means, normalised, (tasks, 2 * features)."""
        mean = class_statistics(
            flat_features(self.trunk, support.x), support.y, support.mask, self.ways
        ).mean
        condition: Tensor = self.norm(torch.cat([mean.mean(1), mean.std(1)], dim=1))
        return condition

    def adapt(self, support: Support) -> Params:
        """Generate the changes of the trunk, then the head from features of the changed trunk."""
        changes: Params = self.hyper(self.condition(support))
        features = single(run_per_task(self.trunk, changes, support.x))
        return Params({f"trunk.{name}": value for name, value in changes.items()}) | self._head(
            features, support
        )

    def _head(self, features: Tensor, support: Support) -> Params:
        if self.head is not None:
            return Params(self.head(features, support.y, support.mask, self.ways))
        statistics = class_statistics(features, support.y, support.mask, self.ways)
        return scaled_prototypes(statistics, self.scale)

    def predict(self, params: Mapping[str, Tensor], x: Any) -> Tensor:
        """Run each task's trunk and head."""
        features = single(run_per_task(self.trunk, sub(params, "trunk"), x))
        with full_precision(features):
            return run_per_task(head_of(self.base), sub(params, "head"), features)
