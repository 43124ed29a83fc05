"""The character model that documents adapt: trained once, then read from the user's cache.

In:   steps and seed.
Out:  a frozen `CharacterModel` that copies keys which it has read in its window.
Knows nothing of adapters.
"""

import hashlib

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from weightloom.datasets import searched_folders
from weightloom.files import make_folder, save_tensors
from weightloom.networks.character_model import CharacterModel
from weightloom.progress import counting
from weightloom.tasks.facts import CHARACTERS, plays, recall_rows

KNOWN_WEIGHT = 8.0
"""Weight in the loss of a digit that can be known, beside 1 of any other character."""
MUON_RATE, WARM_STEPS, DECAY = 0.018, 50, 0.01
"""Peak rate of Muon, steps until the peak, and weight decay."""


def character_base(
    steps: int, rows: int, rate: float, layers: int = 3, seed: int = 0
) -> CharacterModel:
    """Train a character model on plays and repeated facts, or load it from the cache.

    Matrices of the blocks are trained by Muon, which learns to copy in a third of the steps of
    AdamW, the other parameters by AdamW. A training that is stopped starts again next time.

    Args:
        steps: Gradient steps.
        rows: Rows of one window per step.
        rate: Peak learning rate of AdamW.
        layers: Blocks of the model.
        seed: Seed of its weights and of the rows.

    Raises:
        DataError: If the plays are not found.
        CheckpointError: If the cache cannot be written.

    Source:
        Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    """
    text = "".join(plays(split) for split in ("train", "validation", "test"))
    settings = (steps, rows, rate, layers, seed, KNOWN_WEIGHT, MUON_RATE, WARM_STEPS, DECAY)
    identity = hashlib.sha256(f"{settings} {CHARACTERS} {text}".encode()).hexdigest()
    folder = searched_folders("backbones")[-1]
    path = folder / f"characters-{identity[:16]}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CharacterModel(len(CHARACTERS), layers=layers)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError):  # missing or damaged
        make_folder(folder, "XDG_CACHE_HOME")
        _train(model, steps, rows, rate, torch.Generator().manual_seed(seed))
        save_tensors(path, model.state_dict(), {"steps": steps, "seed": seed})
    return model.eval().requires_grad_(False)


def _train(
    model: CharacterModel, steps: int, rows: int, rate: float, chance: torch.Generator
) -> None:
    matrices = [its for its in model.blocks.parameters() if its.ndim == 2]
    others = [its for its in model.parameters() if not any(its is one for one in matrices)]
    optimisers = [
        torch.optim.Muon(matrices, MUON_RATE, DECAY, adjust_lr_fn="original"),
        torch.optim.AdamW(others, rate, (0.9, 0.98), weight_decay=DECAY, fused=True),
    ]
    with counting("training the character model", steps) as show:
        for step in range(steps):
            show(step + 1)
            share = min(1, (step + 1) / WARM_STEPS, 2.5 * (1 - step / steps))
            for optimiser, peak in zip(optimisers, (MUON_RATE, rate), strict=True):
                optimiser.param_groups[0]["lr"] = share * peak
                optimiser.zero_grad()
            _loss(model, *recall_rows(rows, chance)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()


def _loss(model: CharacterModel, rows: Tensor, known: Tensor) -> Tensor:
    """Weighted mean cross-entropy of the next character."""
    losses = cross_entropy(model(rows[:, :-1]).mT, rows[:, 1:], reduction="none")
    weights = 1 + (KNOWN_WEIGHT - 1) * known[:, 1:]
    return (losses * weights).sum() / weights.sum()
