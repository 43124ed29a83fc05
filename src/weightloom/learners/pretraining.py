"""Pretraining of a trunk by cross-entropy over all training classes of a pool.

In:   a trunk and a pool of pictures.
Out:  the same trunk, trained, from a folder if it was trained before.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from weightloom.errors import CheckpointError
from weightloom.files import make_folder
from weightloom.platforms import lock
from weightloom.progress import counting
from weightloom.tasks.classes import Augment
from weightloom.tasks.data import ClassPool
from weightloom.training import TrainOptions, load_model, train


class LabelledPictures(NamedTuple):
    """Batch of pictures with their classes."""

    x: Tensor
    """Pictures from 0 to 1, (batch, channels, height, width)."""
    y: Tensor
    """Number of the class of each, (batch,)."""


class ClassTrainer(nn.Module):
    """Trunk and a linear layer that tells all training classes apart; returns losses.

    Args:
        trunk: Network whose attribute ``features`` is the width of its output.
        classes: Number of classes.
        smoothing: Probability that is shared out among all classes.
        half: Compute in bfloat16, about twice as fast on processors that have it.

    Example:
        >>> trunk = nn.Flatten()
        >>> trunk.features = 12
        >>> batch = LabelledPictures(torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 2, 1, 0]))
        >>> ClassTrainer(trunk, classes=3)(batch).shape
        torch.Size([5])

    Source:
        Label smoothing: Szegedy et al., "Rethinking the inception architecture for computer vision"
        (2016), section 7.
    """

    def __init__(
        self, trunk: nn.Module, classes: int, smoothing: float = 0.1, half: bool = False
    ) -> None:
        super().__init__()
        self.trunk, self.smoothing, self.bf16 = trunk, smoothing, half
        self.head = nn.Linear(cast("int", trunk.features), classes, bias=False)

    def forward(self, batch: LabelledPictures) -> Tensor:
        """Cross-entropy of each picture, (batch,)."""
        x = batch.x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.head(self.trunk(x))
        return cross_entropy(
            logits.float(), batch.y, reduction="none", label_smoothing=self.smoothing
        )


def pretrain(
    trunk: nn.Module,
    pool: ClassPool,
    augment: Augment | None,
    options: TrainOptions,
    folder: Path,
    identity: str,
    half: bool = False,
) -> None:
    """Train a trunk to tell all classes of a pool apart, or load it if that was done before.

    A training that was stopped goes on from its last checkpoint. Of several processes one trains
    and the others wait for it.

    Args:
        trunk: The trunk, trained in place, in eval mode at the end.
        pool: Pictures, uint8.
        augment: Augmentation of the pictures; None for none.
        options: Steps, pictures per step (``tasks``), learning rate and so on.
        folder: Folder of the checkpoint.
        identity: Digest of all that the result depends on.
        half: Compute in bfloat16.

    Raises:
        ConfigError: If the folder cannot be made.
        CheckpointError: If a checkpoint cannot be written.
        KeyboardInterrupt: If Ctrl-C or SIGTERM stopped the training, after a checkpoint.
    """
    model = ClassTrainer(trunk, len(pool.names), half=half)
    make_folder(folder, "XDG_CACHE_HOME")
    with _alone(folder / "lock"):
        done = _steps_done(folder, model, identity)
        if done < options.steps:
            _train(model, pool, augment, options, folder, identity, resume=done > 0)
    trunk.eval()


def _steps_done(folder: Path, model: ClassTrainer, identity: str) -> int:
    """Load the checkpoint of a folder; return its steps, or 0 if none can be used."""
    try:
        return load_model(folder / "checkpoints" / "last.safetensors", model, identity)
    except CheckpointError:  # missing, damaged, or of another training
        return 0


def _train(
    model: ClassTrainer,
    pool: ClassPool,
    augment: Augment | None,
    options: TrainOptions,
    folder: Path,
    identity: str,
    resume: bool,
) -> None:
    layout: dict[str, Any] = {"memory_format": torch.channels_last}
    model.to(**layout)  # convolutions are a third faster
    with counting("training the backbone", options.steps) as show:
        source = _batches(pool, augment, options.tasks, show)
        history = train(model, source, None, options, run=folder, resume=resume, identity=identity)
    if history.stopped_by:
        raise KeyboardInterrupt
    layout = {"memory_format": torch.contiguous_format}
    model.to(**layout)


def _batches(
    pool: ClassPool, augment: Augment | None, count: int, show: Callable[[int], None]
) -> Callable[[int, torch.Generator], LabelledPictures]:
    """Return a function that draws the batch of a step, and shows the progress."""
    there = torch.arange(pool.examples.shape[1]) < pool.counts[:, None]
    pictures, classes = pool.examples[there], there.nonzero()[:, 0]

    def draw(step: int, generator: torch.Generator) -> LabelledPictures:
        show(step + 1)
        drawn = torch.randint(len(pictures), (count,), generator=generator)
        x = pictures[drawn].float() / 255
        return LabelledPictures(augment(x, generator) if augment else x, classes[drawn])

    return draw


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file, once no other process holds it."""
    with path.open("ab") as file:
        while not lock(file.fileno()):
            time.sleep(0.2)
        yield
