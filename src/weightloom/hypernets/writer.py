"""Output layer shared by the pieces of a flat vector, and checks of layer sizes."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from weightloom.errors import ConfigError
from weightloom.hypernets.generated import Generated


class Writer(nn.Module):
    """Output layer: one linear layer writes all pieces of a flat vector, start + W h + b.

    The layer starts at zero, so every task gets the base at step 0. For the other initialisations a
    second layer of unit variance reads the normalised features, and `Generated.scales` multiply its
    outputs, so that one layer serves parameters of different scales.

    Args:
        width: Width of the features h.
        numbers: Numbers per piece.
        generated: The generated parameters, which define ``scales``.
    """

    scales: Tensor
    """Standard deviation of each number at step 0, (size,); absent if all are zero."""

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
        """Write all pieces, crop them, and add the start.

        Args:
            features: Features of each piece.
            lengths: Lengths of the runs that the pieces cover, in order; each run begins with a new
                piece, and its last piece is cropped.
            start: Start of every number.

        Returns:
            The generated numbers, with the start added.
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
"""Default limit of the number of elements in a last layer."""


def check_head(numbers: int, largest_head: int, content: str, advice: str) -> None:
    """Raise a `ConfigError` if a last layer would be too large, before its memory is taken.

    Args:
        numbers: Number of its elements.
        largest_head: Limit of this number.
        content: Description of the elements, such as ``"64 inputs x 1,000 outputs"``.
        advice: Code that makes it smaller, for the message.

    Raises:
        ConfigError: If ``numbers`` exceeds ``largest_head``.
    """
    if numbers > largest_head:
        raise ConfigError(
            f"The last layer would hold {numbers:,} numbers ({content}), "
            f"{numbers * 4 / 1e9:.2g} GB in float32, and three times as much again while "
            f"Adam trains it. `largest_head={largest_head:,}` is the most it may hold, to protect "
            f"memory. {advice}, or allow it by `largest_head={numbers}`."
        )


def check_slices(width: int, slice_size: int, largest_head: int) -> None:
    """Raise a `ConfigError` if the layer that writes slices would be too large.

    Args:
        width: Inputs of the layer.
        slice_size: Outputs of the layer.
        largest_head: Limit of the number of its elements, biases included.
    """
    fits = max(1, largest_head // (width + 1))
    content = f"{width:,} inputs and a bias for each of {slice_size:,} numbers"
    check_head(
        (width + 1) * slice_size,
        largest_head,
        content,
        f"Cut smaller slices, as in `slice_size={fits}`",
    )


def pieces_of(length: int, numbers: int) -> int:
    """Number of pieces of ``numbers`` elements that cover ``length`` elements."""
    return -(-length // numbers)


def check_sizes(**sizes: int) -> None:
    """Raise a `ConfigError` unless every size is 1 or more."""
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(
                f"`{name}={size}` is below 1. It counts required parts. Pass 1 or more."
            )
