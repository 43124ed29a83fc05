"""Players: modules from a condition and inputs, to samples or scores.

In:   conditions, (tasks, condition_dim); inputs of each, (tasks, count, *shape).
Out:  outputs, (tasks, count, *out).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.base import per_task
from weightloom.errors import ConfigError
from weightloom.hypernets import HyperNetwork


class ConcatenatedPlayer(nn.Module):
    """Player with one set of parameters, which reads the condition beside its input.

    Args:
        base: Network from inputs (batch, inputs + condition_dim), or, for pictures and sounds,
            ``(batch, channels + condition_dim, *size)``, to outputs.

    Example:
        >>> player = ConcatenatedPlayer(nn.Linear(4 + 3, 2))
        >>> player(torch.eye(3), torch.randn(3, 5, 4)).shape
        torch.Size([3, 5, 2])
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, condition: Float[Tensor, "tasks condition_dim"], inputs: Tensor) -> Tensor:
        """Outputs, (tasks, count, *out); the condition is joined along axis 2, at every place."""
        tasks, count, _, *size = inputs.shape
        beside = condition[:, None, :, *[None] * len(size)]
        beside = beside.expand(tasks, count, -1, *size)
        outputs = self.base(torch.cat([inputs, beside.to(inputs.dtype)], dim=2).flatten(0, 1))
        return outputs.unflatten(0, (tasks, count))


class GeneratedPlayer(nn.Module):
    """Player whose parameters a hypernetwork writes from the condition.

    Args:
        base: The player's network, from inputs (batch, *shape) to outputs.
        hyper: Hypernetwork over this base.

    Example:
        >>> from weightloom.hypernets import MLPHyperNetwork
        >>> base = nn.Linear(4, 2)
        >>> player = GeneratedPlayer(base, MLPHyperNetwork(base, condition_dim=3))
        >>> player(torch.eye(3), torch.randn(3, 5, 4)).shape
        torch.Size([3, 5, 2])
    """

    def __init__(self, base: nn.Module, hyper: HyperNetwork) -> None:
        super().__init__()
        self.hyper = hyper
        self._run = per_task(getattr(hyper, "base", base))

    def forward(self, condition: Float[Tensor, "tasks condition_dim"], inputs: Tensor) -> Tensor:
        """Outputs, (tasks, count, *out)."""
        return self._run(self.hyper(condition), inputs)


class FunctionGenerator(nn.Module):
    """Generator of functions: condition and noise decide the parameters of a coordinate network.

    Each sample is a network of its own, evaluated on a grid of any resolution.

    Args:
        base: Coordinate network, from positions (points, axes) to values (points, channels).
        hyper: Hypernetwork over this base; its condition is the task's condition and the noise of
            the sample, joined.
        size: Points along each axis of a sample in training, as in ``(8, 8)``.
        cell: Positions along each axis of a cell, whose mean is the value of the cell at the size
            of training. From 2 on, a sample drawn larger and reduced is about the trained one.

    Raises:
        ConfigError: If ``size`` is empty, or a number is below 1.

    Source:
        Skorokhodov, Ignatyev and Elhoseiny, "Adversarial generation of continuous images" (2021);
        Dupont, Teh and Doucet, "Generative models as distributions of functions" (2022).

    Example:
        >>> from weightloom.hypernets import MLPHyperNetwork
        >>> from weightloom.networks import Siren
        >>> base = Siren(2, 1, hidden=(16,))
        >>> made = FunctionGenerator(base, MLPHyperNetwork(base, 3 + 4), size=(8, 8))
        >>> made(torch.eye(3), torch.randn(3, 5, 4)).shape
        torch.Size([3, 5, 1, 8, 8])
        >>> made(torch.eye(3), torch.randn(3, 5, 4), size=(32, 32)).shape
        torch.Size([3, 5, 1, 32, 32])
    """

    def __init__(
        self, base: nn.Module, hyper: HyperNetwork, size: Sequence[int], cell: int = 1
    ) -> None:
        super().__init__()
        if not size or min(*size, cell) < 1:
            raise ConfigError(
                f"`size={tuple(size)}, cell={cell}` is no grid. A sample is evaluated on as many "
                "points along each axis, and each cell at as many positions. Pass one number from "
                "1 for each axis, as in `size=(8, 8)`."
            )
        self.hyper, self.size, self.cell = hyper, tuple(size), cell
        self._run = per_task(getattr(hyper, "base", base), shared=(0,))

    def forward(
        self,
        condition: Float[Tensor, "tasks condition_dim"],
        noise: Float[Tensor, "tasks count noise_dim"],
        size: Sequence[int] | None = None,
    ) -> Tensor:
        """Samples, (tasks, count, channels, *size); by default at the size of training."""
        tasks, count = noise.shape[:2]
        cell = self.cell if size is None else 1
        grid = cell_centres([cell * its for its in size or self.size]).to(noise)
        beside = condition[:, None].expand(-1, count, -1).to(noise.dtype)
        params = self.hyper(torch.cat([beside, noise], dim=2).flatten(0, 1))
        values = self._run(params, grid.flatten(0, -2)).mT.unflatten(2, grid.shape[:-1])
        if cell > 1:
            for axis in range(2, values.ndim):
                values = values.unflatten(axis, (-1, cell)).mean(axis + 1)
        return values.unflatten(0, (tasks, count))


def cell_centres(size: Sequence[int]) -> Float[Tensor, "*size axes"]:
    """Centres of the cells of a grid over [-1, 1] along each axis.

    A grid with more cells covers the same area, so a function keeps its place in a larger picture.

    Example:
        >>> cell_centres((2,))
        tensor([[-0.5000],
                [ 0.5000]])
    """
    axes = [(torch.arange(points) + 0.5) * 2 / points - 1 for points in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
