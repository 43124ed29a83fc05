"""Backbones of pictures by name, and pools of pictures read by one.

In:   pools of pictures and the options of a run.
Out:  `Read`: pictures as activations, and the trunk over them.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.presets import PRETRAINED
from weightloom.apps.fewshot.problems import pretrained
from weightloom.apps.fewshot.problems.imagenet import is_named
from weightloom.apps.fewshot.problems.pools import Pools
from weightloom.apps.fewshot.problems.trained import trained_backbone
from weightloom.errors import ConfigError
from weightloom.networks.backbone import Backbone, ViewsTrunk
from weightloom.tasks.data import ClassPool
from weightloom.tasks.pictures import ViewsReader, encoded_pool, thinned

INTO_TAIL = ("hyper-film", "hyper-lowrank", "film", "shared-film", "shared-lowrank")
"""Methods that change the tail of a backbone; runs with one of them keep activations before it."""
SIZE: int = PRETRAINED["size"]
"""Default height and width that a pretrained backbone reads, in pixels."""
CENTRE = 400
"""Training pictures behind the centre of the features, about as many of each class."""
KNOWN = 0.25
"""Mean probability of one class of the backbone over the pictures of a user's class."""
TRAINING_PICTURES = 60
"""Maximum number of pictures of a training class that are read."""


@dataclass(frozen=True)
class Read:
    """Pictures as read by a backbone, on demand."""

    backbone: Backbone
    """The frozen network."""
    whole: bool
    """True if examples are features; False if they are activations before the tail."""
    views: int
    """Views per picture."""
    seen: ClassPool
    """Pictures of training classes, to centre features by."""

    @cached_property
    def reader(self) -> ViewsReader:
        """Pictures from 0 to 1, (batch, channels, height, width), to (batch, views, *event).

        Features of a picture are averaged, ``views`` is 1; activations before the tail are not.
        """
        network = self.backbone if self.whole else self.backbone.stem
        return ViewsReader(network, self.views, self.backbone.size, mean=self.whole)

    @cached_property
    def version(self) -> str:
        """Digest of the network, the views and their size."""
        about = f"{self.whole} {self.views} {self.backbone.size}"
        return f"{pretrained.version_of(self.backbone)} {about}"

    @cached_property
    def centre(self) -> Tensor:
        """Mean feature of the training pictures, (features,)."""
        few = self.encoded(thinned(self.seen, max(1, CENTRE // len(self.seen.counts))))
        there = torch.arange(few.examples.shape[1]) < few.counts[:, None]
        with torch.inference_mode():
            centre = self.trunk_of(None)(few.examples[there]).mean(0)
        return centre.clone()

    def event(self, of_picture: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a read picture, (views, *event)."""
        if self.whole:
            return 1, self.backbone.features
        with torch.inference_mode():
            return tuple(self.reader(torch.zeros(1, *of_picture)).shape[1:])

    def encoded(self, pool: ClassPool) -> ClassPool:
        """Replace the pictures of a pool by activations, read from the cache if they are there."""
        return encoded_pool(pool, self.reader, self.version)

    def knows(self, pool: ClassPool) -> list[bool]:
        """Say for each class whether the backbone seems to know it from its own training.

        It does if ImageNet has a class of that name, or if its last layer gives the pictures of the
        class one of its own classes with a mean probability above `KNOWN`.

        Args:
            pool: Encoded classes.
        """
        found = list[bool]()
        for name, examples, count in zip(pool.names, pool.examples, pool.counts, strict=True):
            with torch.inference_mode():
                sure = self.sure(examples[: int(count)]).mean(0).max()
            found.append(is_named(name) or float(sure) > KNOWN)
        return found

    def sure(self, examples: Tensor) -> Tensor:
        """Probabilities of the backbone's own classes, (examples, classes).

        Args:
            examples: Encoded pictures, (examples, views, *event).
        """
        assert self.backbone.classify is not None
        return self.backbone.classify(self.trunk_of(None)(examples)).softmax(1)

    def in_words(self) -> str:
        """Describe the backbone and its views."""
        shown = ("the picture", "its mirror image", "its enlarged middle")[: self.views]
        return (
            f"`{self.backbone.name}` reads {', '.join(shown)}, each scaled "
            f"to {self.backbone.size}x{self.backbone.size} pixels. {self.backbone.about}"
        ).strip()

    def trunk(self, unit: bool) -> ViewsTrunk:
        """Build a trunk over the examples, with its own copy of the tail.

        Args:
            unit: Centre features by the training pictures and scale them to one length.
        """
        return self.trunk_of(self.centre if unit else None)

    def trunk_of(self, centre: Tensor | None) -> ViewsTrunk:
        """Build a trunk; a ``centre`` is subtracted and features are scaled to one length."""
        tail: nn.Module | None = None if self.whole else copy.deepcopy(self.backbone.tail)
        return ViewsTrunk(tail, self.backbone.features, centre is not None, centre)


def read_by_backbone(pools: Pools, config: FewShotOptions) -> tuple[Pools, Read]:
    """Load the backbone that the options name, to read the pictures of pools on demand.

    Args:
        pools: Pictures.
        config: Resolved options, with a ``backbone``.

    Returns:
        The pools, not augmented, with up to `TRAINING_PICTURES` pictures of each class of training
        and validation for a pretrained backbone; and the reader of their pictures.

    Raises:
        ConfigError: If the backbone is unknown, or does not fit the pictures.
        MissingExtraError: If its package is not installed.
    """
    if pools.upright is not None:
        pools = replace(pools, train=pools.upright)
    backbone = backbone_of(pools, config)
    notices = (*pools.notices, *([backbone.about] if backbone.about else []))
    most = int(max(pools.train.counts.max(), pools.validation.counts.max()))
    limit = TRAINING_PICTURES if config.is_pretrained else most
    if most > limit:
        notices += (
            f"Of each class for training or validation up to {limit} pictures are "
            f"read, evenly spaced by name; the largest has {most:,}.",
        )
    pools = replace(
        pools,
        train=thinned(pools.train, limit),
        validation=thinned(pools.validation, limit),
        augment=None,
        tell_all_apart=False,
        notices=notices,
    )
    whole = not set(config.methods) & set(INTO_TAIL)
    return pools, Read(backbone, whole, config.views, pools.train)


def backbone_of(pools: Pools, config: FewShotOptions) -> Backbone:
    """Build or load the backbone that the options name.

    Args:
        pools: Pictures, to train a backbone on.
        config: Resolved options.

    Raises:
        ConfigError: If its name is unknown.
        MissingExtraError: If its package is not installed.
    """
    name, _, model = (config.backbone or "").partition(":")
    if name == "timm" and model:
        return pretrained.timm_model(model, config.size)
    if config.backbone in BACKBONES:
        return BACKBONES[config.backbone](pools, config)
    raise ConfigError(
        f"`--backbone {config.backbone}` is unknown. Type one of {', '.join(BACKBONES)}, or "
        "`timm:NAME` for a model of the package `timm`."
    )


BACKBONES: dict[str, Callable[[Pools, FewShotOptions], Backbone]] = {
    "trained": trained_backbone,
    "efficientnet-lite0": lambda pools, config: pretrained.efficientnet_lite0(config.size or SIZE),
}
"""Builder of each backbone by name: pools and options to a `Backbone`."""
