"""Backbones of pictures by name, and pools of pictures read by one.

In:   pools of pictures and the options of a run.
Out:  `Read`: the same pools as activations, and the trunk over them.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.problems.pools import Pools
from weightloom.apps.fewshot.problems.trained import trained_backbone
from weightloom.errors import ConfigError
from weightloom.networks.backbone import Backbone, ViewsTrunk
from weightloom.tasks.pictures import encoded_pool

INTO_TAIL = ("hyper-film", "hyper-lowrank", "film", "shared-film", "shared-lowrank")
"""Methods that change the tail of a backbone; runs with one of them keep activations before it."""


@dataclass(frozen=True)
class Read:
    """Pictures as read by a backbone."""

    backbone: Backbone
    """The frozen network."""
    whole: bool
    """True if examples are features; False if they are activations before the tail."""
    centre: Tensor
    """Mean feature of the training pictures, (features,)."""

    def trunk(self, unit: bool) -> ViewsTrunk:
        """Build a trunk over the examples, with its own copy of the tail.

        Args:
            unit: Centre features by the training pictures and scale them to one length.
        """
        tail = None if self.whole else copy.deepcopy(self.backbone.tail)
        return ViewsTrunk(tail, self.backbone.features, unit, self.centre)


def read_by_backbone(pools: Pools, config: FewShotOptions) -> tuple[Pools, Read]:
    """Replace the pictures of pools by activations of the backbone that the options name.

    Args:
        pools: Pictures.
        config: Resolved options, with a ``backbone``.

    Raises:
        ConfigError: If the backbone is unknown, or does not fit the pictures.
        MissingExtraError: If its package is not installed.
    """
    if pools.upright is not None:
        pools = replace(pools, train=pools.upright)
    backbone = backbone_of(pools, config)
    whole = not set(config.methods) & set(INTO_TAIL)
    network = backbone if whole else backbone.stem
    parts = {
        name: encoded_pool(getattr(pools, name), network, config.views, backbone.size)
        for name in ("test", "train", "validation")
    }
    seen = parts["train"].examples[:, :20].flatten(0, 1)
    with torch.inference_mode():
        views = seen.flatten(0, 1) if whole else backbone.tail(seen.flatten(0, 1))
    read = Read(backbone, whole, views.mean(0).clone())
    return replace(pools, **parts, augment=None, tell_all_apart=False), read


def backbone_of(pools: Pools, config: FewShotOptions) -> Backbone:
    """Build or load the backbone that the options name.

    Args:
        pools: Pictures, to train a backbone on.
        config: Resolved options.

    Raises:
        ConfigError: If its name is unknown.
    """
    if config.backbone in BACKBONES:
        return BACKBONES[config.backbone](pools, config)
    raise ConfigError(
        f"`--backbone {config.backbone}` is unknown. Type one of {', '.join(BACKBONES)}."
    )


BACKBONES: dict[str, Callable[[Pools, FewShotOptions], Backbone]] = {
    "trained": trained_backbone,
}
"""Builder of each backbone by name: pools and options to a `Backbone`."""
