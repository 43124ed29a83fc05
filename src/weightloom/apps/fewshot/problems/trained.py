"""The backbone `trained`: convolutions that learned to tell all training classes of a run apart.

In:   pools of pictures, and the seed and steps of the options.
Out:  a `Backbone`, from the user's cache if it was trained before.
"""

import hashlib

import torch
from torch import nn

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.problems.pools import Pools
from weightloom.datasets import searched_folders
from weightloom.learners.pretraining import pretrain
from weightloom.networks.backbone import Backbone
from weightloom.networks.feedforward import ConvTrunk
from weightloom.tasks import ClassPool
from weightloom.tasks.classes import Augment
from weightloom.training import TrainOptions

CHANNELS, BLOCKS = 64, 4
"""Channels of every block, and number of blocks in pictures of 16 pixels or more."""


def trained_backbone(pools: Pools, config: FewShotOptions) -> Backbone:
    """Train convolutions to tell all training classes apart, or load them from the cache.

    They are kept in the folder ``backbones`` of the user's cache, under a digest of the training
    pictures, the seed and all settings, so that every run with these shares them.

    Args:
        pools: Pictures.
        config: Resolved options; ``seed``, ``backbone_steps`` and ``precision`` are read.

    Raises:
        ConfigError: If the cache cannot be made.
        CheckpointError: If it cannot be written.
        KeyboardInterrupt: If Ctrl-C or SIGTERM stopped the training, which then goes on next time.
    """
    channels, size = pools.train.examples.shape[2:4]
    options = TrainOptions(
        steps=config.backbone_steps,
        tasks=64,
        optimiser="sgd",
        outer_lr=0.05,
        weight_decay=5e-4,
        clip_norm=10.0,
        checkpoint_every=500,
        seed=config.seed,
    )
    half = config.precision == "bf16-mixed"
    identity = digest_of(pools, options, half)
    folder = searched_folders("backbones")[-1] / f"trained-{identity[:16]}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        blocks = min(BLOCKS, size.bit_length() - 1)
        trunk = ConvTrunk(channels, size, CHANNELS, blocks, norm="batch")
        pretrain(trunk, *_taught(pools), options, folder, identity, half)
    *stem, last = trunk.blocks
    tail = nn.Sequential(last, nn.Flatten())
    return Backbone("trained", nn.Sequential(*stem), tail, trunk.features, size)


def _taught(pools: Pools) -> tuple[ClassPool, Augment | None]:
    """Return the pictures that the backbone learns from, and their augmentation."""
    if pools.upright is None:
        return pools.train, pools.augment
    return pools.upright, pools.upright_augment or pools.augment


def digest_of(pools: Pools, options: TrainOptions, half: bool = False) -> str:
    """Return a digest of all that a trained backbone depends on.

    Args:
        pools: Its training classes and their augmentation.
        options: Steps, seed and so on.
        half: It is trained in bfloat16.
    """
    pool, augment = _taught(pools)
    settings = (
        *(augment, tuple(pool.examples.shape), CHANNELS, BLOCKS, half),
        *(options.seed, options.steps, options.tasks, options.optimiser),
        *(options.outer_lr, options.weight_decay, options.clip_norm),
    )
    digest = hashlib.sha256(str(settings).encode())
    digest.update(pool.counts.numpy().tobytes())
    digest.update(pool.examples.contiguous().numpy().tobytes())
    return digest.hexdigest()
