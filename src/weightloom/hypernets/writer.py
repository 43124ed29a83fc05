"""The last layer that several pieces of a flat vector share, and the check of the sizes it is built from."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from weightloom.errors import ConfigError
from weightloom.hypernets.generated import Generated


class Writer(nn.Module):
    """Write a flat vector per task from the features of its pieces, all by one linear layer.

    Start + W h.

    The layer starts at zero, so at step 0 every task gets the base. For the other initialisations a
    second layer of unit variance reads the normalised features; each number of it is multiplied by
    `Generated.scales`, which is what makes one layer serve parameters of unequal size.

    Args:
        width: Width of the features.
        numbers: Numbers in a piece.
        generated: What is written to.
    """

    scales: Tensor

    def __init__(self, width: int, numbers: int, generated: Generated) -> None:
        super().__init__()
        self.change = nn.Linear(width, numbers)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)
        scales = generated.scales()
        self.spread = nn.Linear(width, numbers, bias=False) if scales.any() else None
        if self.spread is not None:
            nn.init.normal_(self.spread.weight, std=width**-0.5)
            self.register_buffer("scales", scales)

    def forward(
        self,
        features: Float[Tensor, "tasks pieces width"],
        lengths: list[int],
        start: Float[Tensor, " size"],
    ) -> Float[Tensor, "tasks size"]:
        """Write all pieces and crop them.

        Args:
            features: Features of each piece.
            lengths: How many numbers are kept of pieces that follow each other: each length begins
                at a new piece.
            start: What is added.
        """
        flat = start + self._cropped(self.change(features), lengths)
        if self.spread is not None:
            unit = self.spread(rms_norm(features, features.shape[-1:]))
            flat = flat + self.scales * self._cropped(unit, lengths)
        return flat

    def _cropped(self, pieces: Tensor, lengths: list[int]) -> Tensor:
        numbers = pieces.shape[2]
        runs = pieces.split([pieces_of(length, numbers) for length in lengths], dim=1)
        return torch.cat(
            [run.flatten(1)[:, :n] for run, n in zip(runs, lengths, strict=True)], dim=1
        )


LARGEST_HEAD = 50_000_000
"""As many numbers as a last layer has without being asked for."""


def check_head(numbers: int, largest_head: int, what: str, advice: str) -> None:
    """Raise a `ConfigError` if a last layer would be too large, before its memory is taken.

    Args:
        numbers: How many numbers it would hold.
        largest_head: How many it may.
        what: What is made of them, as in ``"64 inputs x 1,000 outputs"``.
        advice: What to type for a smaller one.
    """
    if numbers > largest_head:
        raise ConfigError(
            f"The last layer would hold {numbers:,} numbers ({what}), {numbers * 4 / 1e9:.2g} GB "
            f"in float32, and three times as much again while Adam trains it. "
            f"`largest_head={largest_head:,}` is the most it may hold, so that no memory is spent "
            f"unasked. {advice}, or allow it by `largest_head={numbers}`."
        )


def check_slices(width: int, slice_size: int, largest_head: int) -> None:
    """Raise a `ConfigError` if the layer that writes slices would be too large."""
    fits = max(1, largest_head // (width + 1))
    what = f"{width:,} inputs and a bias for each of {slice_size:,} numbers"
    check_head(
        (width + 1) * slice_size,
        largest_head,
        what,
        f"Cut smaller slices, as in `slice_size={fits}`",
    )


def pieces_of(length: int, numbers: int) -> int:
    """How many pieces of ``numbers`` numbers hold ``length`` of them."""
    return -(-length // numbers)


def check_sizes(**sizes: int) -> None:
    """Raise a `ConfigError` unless every size is 1 or more."""
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(
                f"`{name}={size}` is below 1. It counts something that is needed. Pass 1 or more."
            )
