"""Coordinate networks: from a position to a value, by Fourier features or by sines.

Plain modules, ``head(trunk(x))``, which work with their own parameters or with generated ones. An
MLP with ReLUs learns only slow changes of a function over its coordinates; these learn fast ones.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError


def fourier_features(x: Tensor, frequencies: Tensor) -> Tensor:
    """Sines, then cosines of positions, ``[sin(x @ frequencies), cos(x @ frequencies)]``.

    Their inner product depends on the difference of two positions only: it is the sum of the
    cosines of ``(x - x') @ frequencies``.

    Args:
        x: Positions, (..., x_dim).
        frequencies: One frequency per column, (x_dim, frequencies), in radians per unit.

    Returns:
        Features, (..., 2 * frequencies).

    Example:
        >>> fourier_features(torch.tensor([[0.0]]), torch.tensor([[1.0, 2.0]]))
        tensor([[0., 0., 1., 1.]])
    """
    angle = x @ frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class FourierFeatures(nn.Module):
    """Fixed random Fourier features of a position: a layer without parameters.

    Args:
        x_dim: Width of a position.
        frequencies: Number of random frequencies; there are twice as many features.
        spread: Standard deviation of the frequencies, in radians per unit of position. A larger
            spread lets a network vary faster over its coordinates.

    Source:
        Rahimi and Recht, "Random features for large-scale kernel machines" (2007); Tancik et al.,
        "Fourier features let networks learn high frequency functions in low dimensional domains"
        (2020).

    Example:
        >>> nn.Sequential(FourierFeatures(2, 64), nn.Linear(128, 1))(torch.rand(7, 2)).shape
        torch.Size([7, 1])
    """

    frequencies: Tensor

    def __init__(self, x_dim: int, frequencies: int = 128, spread: float = 4.0) -> None:
        super().__init__()
        self.features = 2 * frequencies
        self.register_buffer("frequencies", spread * torch.randn(x_dim, frequencies))

    def forward(self, x: Tensor) -> Tensor:
        """Features, (batch, x_dim) to (batch, 2 * frequencies)."""
        return fourier_features(x, self.frequencies)


class FourierTrunk(nn.Module):
    """Random Fourier features of a position, then two linear layers with a ReLU between them.

    Args:
        x_dim: Width of a position; coordinates are about in [-1, 1].
        features: Number of features.
        frequencies: Number of random frequencies.
        spread: Standard deviation of the frequencies, in radians per unit of position.

    Source:
        Tancik et al., "Fourier features let networks learn high frequency functions in low
        dimensional domains" (2020).
    """

    frequencies: Tensor

    def __init__(
        self, x_dim: int, features: int = 256, frequencies: int = 128, spread: float = 4.0
    ) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("frequencies", spread * torch.randn(x_dim, frequencies))
        self.mix = nn.Sequential(
            nn.Linear(2 * frequencies, features), nn.ReLU(), nn.Linear(features, features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features, (batch, x_dim) to (batch, features); their squares sum to about one."""
        features: Tensor = self.mix(fourier_features(x, self.frequencies)) / self.features**0.5
        return features


class FunctionNet(nn.Module):
    """Function of a position, ``head(trunk(x))``, with a `FourierTrunk`.

    Args:
        x_dim: Width of a position.
        y_dim: Width of a value.
        features: Features of a position.
        spread: Standard deviation of the frequencies of the features, in radians per unit; it
            limits how fast the function can vary.
        bounds: Known minimum and maximum of the values. They are clamped to it in eval mode; in
            train mode they are not, since a clamped value has no gradient.

    Example:
        >>> FunctionNet(2, 1)(torch.rand(7, 2)).shape
        torch.Size([7, 1])
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        features: int = 256,
        spread: float = 4.0,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.bounds = bounds
        self.trunk = FourierTrunk(x_dim, features, spread=spread)
        self.head = nn.Linear(features, y_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Values of the function, (batch, x_dim) to (batch, y_dim)."""
        return self.bounded(self.head(self.trunk(x)))

    def bounded(self, values: Tensor) -> Tensor:
        """Clamp values to ``bounds`` in eval mode."""
        return values if self.training or self.bounds is None else values.clamp(*self.bounds)


class SineLayer(nn.Module):
    """Layer of a sine network, ``sin(frequency * (weight @ x + bias))``.

    The initial weights keep the distribution of activations equal from layer to layer: uniform up
    to sqrt(6 / inputs) / frequency, in the first layer up to 1 / inputs.

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        frequency: Factor of the angle, in radians; the paper's omega_0.
        first: The layer reads positions.

    Raises:
        ConfigError: If ``frequency`` is not above 0.

    Source:
        Sitzmann et al., "Implicit neural representations with periodic activation functions"
        (2020), section 3.2 and theorem 1.8 of its supplement.

    Example:
        >>> SineLayer(2, 8, first=True)(torch.rand(7, 2)).shape
        torch.Size([7, 8])
    """

    def __init__(
        self, inputs: int, outputs: int, frequency: float = 30.0, first: bool = False
    ) -> None:
        super().__init__()
        if not frequency > 0:
            raise ConfigError(
                f"`frequency={frequency}`. It multiplies the angle of a sine, which would then be "
                "the same everywhere. Pass a number above 0, such as 30."
            )
        self.frequency = frequency
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else (6 / inputs) ** 0.5 / frequency
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Sines, (..., inputs) to (..., outputs)."""
        return (self.frequency * self.linear(x)).sin()


class SirenTrunk(nn.Sequential):
    """Sine layers from a position to features.

    Args:
        x_dim: Width of a position; coordinates are about in [-1, 1].
        hidden: Widths of the layers; the last is the number of features.
        frequency: Factor of the angle in each layer, as in `SineLayer`.

    Raises:
        ConfigError: If ``hidden`` is empty, or ``frequency`` is not above 0.
    """

    def __init__(self, x_dim: int, hidden: tuple[int, ...], frequency: float = 30.0) -> None:
        if not hidden:
            raise ConfigError(
                "`hidden=()` has no layer. The last width is the number of features. Pass one or "
                "more, as in `hidden=(64, 64)`."
            )
        sizes = [x_dim, *hidden]
        super().__init__(
            *(
                SineLayer(inputs, outputs, frequency, first=number == 0)
                for number, (inputs, outputs) in enumerate(pairwise(sizes))
            )
        )
        self.features = hidden[-1]


class Siren(nn.Module):
    """Sine network from a position to a value, ``head(trunk(x))``, with a `SirenTrunk`.

    All its derivatives are again sine networks, so it can fit derivatives of a function, too.

    Args:
        x_dim: Width of a position; coordinates are about in [-1, 1].
        y_dim: Width of a value.
        hidden: Widths of the sine layers.
        frequency: Factor of the angle in each layer, in radians: a larger one lets the function
            vary faster.

    Raises:
        ConfigError: If ``hidden`` is empty, or ``frequency`` is not above 0.

    Source:
        Sitzmann et al., "Implicit neural representations with periodic activation functions"
        (2020).

    Example:
        >>> Siren(2, 1, hidden=(64, 64))(torch.rand(7, 2)).shape
        torch.Size([7, 1])
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        hidden: tuple[int, ...] = (256, 256, 256),
        frequency: float = 30.0,
    ) -> None:
        super().__init__()
        self.trunk = SirenTrunk(x_dim, hidden, frequency)
        self.head = nn.Linear(self.trunk.features, y_dim)
        bound = (6 / self.trunk.features) ** 0.5 / frequency
        nn.init.uniform_(self.head.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Values of the function, (batch, x_dim) to (batch, y_dim)."""
        values: Tensor = self.head(self.trunk(x))
        return values
