"""The character model that documents adapt: trained once, then read from the user's cache.

In:   steps and seed.
Out:  a frozen `CharacterModel` that copies keys which it has read in its window.
Knows nothing of adapters.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from weightloom.datasets import searched_folders
from weightloom.errors import CheckpointError
from weightloom.files import make_folder
from weightloom.networks.character_model import CharacterModel
from weightloom.progress import counting
from weightloom.tasks.facts import CHARACTERS, plays, recall_rows
from weightloom.training import TrainOptions, load_model, train
from weightloom.training.sources import Draw

KNOWN_WEIGHT = 8.0
"""Weight in the loss of a digit that can be known, beside 1 of any other character."""


class NextCharacter(nn.Module):
    """Weighted cross-entropy of the next character, per row.

    Args:
        base: The model, trained in place.
    """

    def __init__(self, base: CharacterModel) -> None:
        super().__init__()
        self.base = base

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Loss per row, (rows,).

        Args:
            batch: Characters, (rows, length + 1), and True for digits that can be known.
        """
        rows, known = batch
        losses = cross_entropy(self.base(rows[:, :-1]).mT, rows[:, 1:], reduction="none")
        weights = 1 + (KNOWN_WEIGHT - 1) * known[:, 1:]
        return (losses * weights).sum(1) / weights.sum(1).mean()


def character_base(
    steps: int, rows: int, rate: float, layers: int = 3, seed: int = 0
) -> CharacterModel:
    """Train a character model on plays and repeated facts, or load it from the cache.

    Args:
        steps: Gradient steps.
        rows: Rows of one window per step.
        rate: Peak learning rate.
        layers: Blocks of the model.
        seed: Seed of its weights and of the rows.

    Raises:
        DataError: If the plays are not found.
        CheckpointError: If the cache cannot be written.
        KeyboardInterrupt: If Ctrl-C or SIGTERM stopped the training, which then goes on next time.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NextCharacter(CharacterModel(len(CHARACTERS), layers=layers))
    options = TrainOptions(
        steps=steps,
        tasks=rows,
        outer_lr=rate,
        weight_decay=0.01,
        checkpoint_every=100,
        evaluate_every=steps,
        seed=seed,
    )
    text = "".join(plays(split) for split in ("train", "validation", "test"))
    settings = (
        options,
        layers,
        KNOWN_WEIGHT,
        CHARACTERS,
        hashlib.sha256(text.encode()).hexdigest(),
    )
    identity = hashlib.sha256(str(settings).encode()).hexdigest()
    folder = searched_folders("backbones")[-1] / f"characters-{identity[:16]}"
    make_folder(folder, "XDG_CACHE_HOME")
    done = _steps_done(folder, model, identity)
    if done < steps:
        with counting("training the character model", steps) as show:
            history = train(
                model,
                _rows(rows, show),
                None,
                options,
                run=folder,
                resume=done > 0,
                identity=identity,
            )
        if history.stopped_by:
            raise KeyboardInterrupt
    return model.base.eval().requires_grad_(False)


def _steps_done(folder: Path, model: nn.Module, identity: str) -> int:
    """Load the checkpoint of a folder; return its steps, or 0 if none can be used."""
    try:
        return load_model(folder / "checkpoints" / "last.safetensors", model, identity)
    except CheckpointError:  # missing, damaged, or of another training
        return 0


def _rows(rows: int, show: Callable[[int], None]) -> Draw:
    """Return a function that draws the rows of a step, and shows the progress."""

    def draw(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        show(step + 1)
        return recall_rows(rows, generator)

    return draw
