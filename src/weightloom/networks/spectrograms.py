"""Recurrent classifier of spectrograms, which reads them frame by frame.

In:   spectrograms, (batch, 1, bands, frames).
Out:  features, (batch, features), or logits.
Knows nothing of tasks. The layers are torch's own; `replace_recurrent` gives a copy that runs with
other parameters for each task in one pass.
"""

import torch
from torch import Tensor, nn


class SpectrogramTrunk(nn.Module):
    """GRU over the frames of a spectrogram, in both directions; mean and maximum of its states.

    They are normalised over the features of each spectrogram, to mean 0 and variance 1.

    Args:
        bands: Bands of a frame.
        hidden: Width of the state in each direction.
    """

    def __init__(self, bands: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.features = 4 * hidden
        self.reader = nn.GRU(bands, hidden, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """Features of spectrograms: (batch, 1, bands, frames) to (batch, features)."""
        states = self.reader(x.squeeze(1).mT)[0]
        features = torch.cat([states.mean(1), states.amax(1)], dim=1)
        return nn.functional.layer_norm(features, features.shape[1:])


class SpectrogramGRU(nn.Module):
    """Recurrent classifier of spectrograms: `SpectrogramTrunk`, then one linear head.

    Args:
        ways: Number of classes.
        bands: Bands of a frame.
        hidden: Width of the GRU's state in each direction.

    Example:
        >>> SpectrogramGRU(ways=5)(torch.rand(7, 1, 32, 40)).shape
        torch.Size([7, 5])
    """

    def __init__(self, ways: int, bands: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.trunk = SpectrogramTrunk(bands, hidden)
        self.head = nn.Linear(self.trunk.features, ways)

    def forward(self, x: Tensor) -> Tensor:
        """Classify spectrograms, (batch, 1, bands, frames) to (batch, ways)."""
        logits: Tensor = self.head(self.trunk(x))
        return logits
