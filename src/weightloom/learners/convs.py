"""A head and changes of the convolutions before it, both generated from the support set."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.conditions import class_statistics
from weightloom.forms.choose import Generate
from weightloom.hypernets import HeadHyperNetwork, MLPHyperNetwork
from weightloom.hypernets.head import full_precision
from weightloom.learners.heads import scaled_prototypes, with_generated_head
from weightloom.learners.learner import Learner, Support
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
    """Read the support set with the trunk as it is, change the trunk for this task, then generate its head.

    The condition is what the unchanged trunk says of the support set: the mean of its class means
    and their spread, feature by feature. It does not depend on the order of the classes or their
    number. The change starts at zero, so at step 0 this is a shared trunk with a generated head.

    Args:
        base: A network with a trunk and a linear head, as `split` takes it.
        generate: Which parameters of the trunk are generated, and in which form. The scales and
            shifts of its norms are the FiLM layers of the literature; ``{"*.weight": LowRank(4)}``
            changes the kernels.
        start_scale: How sharp the head is at step 0.
        hidden: Width of the network between condition and parameters.
        generate_head: False sets the head from the class means alone, so that the changes are all
            that is generated.

    Raises:
        ConfigError: If ``base`` has no such parts.

    Source:
        Requeima et al., "Fast and flexible multi-task classification using conditional neural
        adaptive processes" (2019): FiLM of a trunk and a head from the support set. Theirs is a
        pretrained trunk and reads the support set with a network of its own.
    """

    def __init__(
        self,
        base: nn.Module,
        generate: Generate = "*",
        start_scale: float = 1.0,
        hidden: int = 64,
        generate_head: bool = True,
    ) -> None:
        super().__init__()
        base = split(base, type(self).__name__)
        self.base, features = with_generated_head(base), known_features(base, type(self).__name__)
        self.trunk = trunk_of(self.base)
        self.hyper = MLPHyperNetwork(self.trunk, 2 * features, generate=generate, hidden=(hidden,))
        self.norm = nn.LayerNorm(2 * features)
        self.head = HeadHyperNetwork("head", start_scale=start_scale) if generate_head else None
        if not generate_head:
            self.log_scale = nn.Parameter(torch.tensor(start_scale).log())

    def condition(self, support: Support) -> Tensor:
        """Mean of the class means and their spread, (tasks, 2 * features)."""
        mean = class_statistics(
            flat_features(self.trunk, support.x), support.y, support.mask, self.ways
        ).mean
        condition: Tensor = self.norm(torch.cat([mean.mean(1), mean.std(1)], dim=1))
        return condition

    def adapt(self, support: Support) -> Params:
        """Generate the changes of the trunk, then the head from the features of the changed trunk."""
        changes: Params = self.hyper(self.condition(support))
        features = single(run_per_task(self.trunk, changes, support.x))
        return Params({f"trunk.{name}": value for name, value in changes.items()}) | self._head(
            features, support
        )

    def _head(self, features: Tensor, support: Support) -> Params:
        if self.head is not None:
            return Params(self.head(features, support.y, support.mask, self.ways))
        return scaled_prototypes(
            class_statistics(features, support.y, support.mask, self.ways).mean, self.log_scale
        )

    def predict(self, params: Mapping[str, Tensor], x: Any) -> Tensor:
        """Run each task's trunk and head."""
        features = single(run_per_task(self.trunk, sub(params, "trunk"), x))
        with full_precision(features):
            return run_per_task(head_of(self.base), sub(params, "head"), features)
