"""The low-rank form (LoRA): a generated change of low rank."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError
from weightloom.forms.calls import Conv, has_one_input, look_up, shared_linear
from weightloom.forms.form import Answer, Form, Parts, along
from weightloom.params import Shape


class LowRank(Form):
    """θ = W + B A: the own matrix plus a generated low-rank change, kept as its two factors.

    A kernel counts as a matrix: its first axis against all others. A starts at random and B at
    zero, so the change is zero at step 0 but has a gradient. Linear layers, ungrouped convolutions,
    embeddings and norms are computed from the factors.

    Args:
        rank: Rank of the change.

    Raises:
        ConfigError: If ``rank`` is below 1.

    Example:
        >>> form, own = LowRank(2), torch.randn(6, 5)
        >>> factors = {"up": torch.randn(3, 6, 2), "down": torch.randn(3, 2, 5)}
        >>> weight, x = form.value(own, factors), torch.randn(3, 4, 5)
        >>> weight.shape, torch.allclose(form.linear(x, own, factors), x @ weight.mT, atol=1e-5)
        (torch.Size([3, 6, 5]), True)

    Source:
        Hu et al., "LoRA: Low-rank adaptation of large language models" (2022), section 4.1.
        Generated per task: Charakorn et al., "Text-to-LoRA" (2025). The paper's factor alpha / r is
        left out.
    """

    needs = "at least two axes, and both matrix sides above its rank"

    def __init__(self, rank: int) -> None:
        if rank < 1:
            raise ConfigError(
                f"`rank={rank}` is below 1. A change of rank 0 is no change. Pass 1 or more."
            )
        self.rank = rank

    @classmethod
    def candidates(cls) -> "Sequence[LowRank]":
        """Ranks 32, 16, 8, 4, 2 and 1."""
        return [LowRank(rank) for rank in (32, 16, 8, 4, 2, 1)]

    def fit(self, shape: Shape, owner: nn.Module) -> "LowRank | None":
        """Fit matrices and kernels with both sides above the rank; others are smaller in full."""
        fits = len(shape) >= 2 and min(shape[0], prod(shape[1:])) > self.rank
        return self if fits else None

    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """``up``, (rows, rank), and ``down``, (rank, columns)."""
        return {"up": (shape[0], self.rank), "down": (self.rank, prod(shape[1:]))}

    def starts(self, shape: Shape) -> Parts:
        """A random ``down`` whose outputs are of the size of its inputs."""
        columns = prod(shape[1:])
        return {"down": torch.randn(self.rank, columns) / columns**0.5}

    def dense(self, own: Tensor, parts: Parts) -> Tensor:
        """Build W + B A."""
        change = parts["up"] @ parts["down"]
        return own + change.reshape(*change.shape[:-2], *own.shape)

    def linear(self, x: Tensor, own: Tensor, parts: Parts, bias: Tensor | None = None) -> Tensor:
        """Compute x Wᵀ + (x Aᵀ) Bᵀ."""
        y, thin = self._products(x, own, parts["down"], bias)
        if y.ndim == 3 and thin.ndim == 3 and y.dtype == thin.dtype == parts["up"].dtype:
            # `y` is a fresh tensor, so it can be changed in place
            return y.baddbmm_(thin, parts["up"].mT)
        return y + thin @ parts["up"].mT

    def _products(
        self, x: Tensor, own: Tensor, down: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compute x Wᵀ, a fresh tensor of all tasks, and x Aᵀ."""
        if not has_one_input(x) or bias is None or bias.ndim < 3:
            return shared_linear(x, own, bias), x @ down.mT
        of_all = nn.functional.linear(x[0], down.flatten(0, 1))
        thin = of_all.unflatten(1, down.shape[:2]).transpose(0, 1)
        return nn.functional.linear(x[:1], own) + bias, thin

    def conv(self, x: Tensor, own: Tensor, parts: Parts, conv: Conv) -> Answer:
        """Convolve with A, then mix channels by B; grouped convolutions build the kernel."""
        if conv.groups > 1:
            return NotImplemented
        up, down = parts["up"], parts["down"]
        thin = down.reshape(*down.shape[:-1], *own.shape[1:])
        if conv.transposed:
            return conv(x, own) + conv(conv.plain(x, up.mT).to(x.dtype), thin)
        return conv(x, own) + conv.plain(conv(x, thin), up)

    def embedding(self, ids: Tensor, own: Tensor, parts: Parts) -> Tensor:
        """Look up rows of W and B; multiply the latter by A."""
        down = parts["down"]
        thin = look_up(ids, parts["up"])
        if down.ndim == 3:
            return look_up(ids, own) + (thin.flatten(1, -2) @ down).unflatten(1, ids.shape[1:])
        return look_up(ids, own) + thin @ down

    def squared_norm(self, own: Tensor, parts: Parts) -> Tensor:
        """Compute |W|² + 2 ⟨W Aᵀ, B⟩ + ⟨Bᵀ B, A Aᵀ⟩: three small products per task."""
        up, down, matrix = parts["up"], parts["down"], own.flatten(1)
        across = (matrix @ down.mT * up).sum((-2, -1))
        change = ((up.mT @ up) * (down @ down.mT)).sum((-2, -1))
        total = matrix.square().sum() + 2 * across + change
        return total.clamp_min(0)  # rounding may leave it below zero

    def joins(self, other: Form) -> bool:
        """True for low-rank changes of any rank."""
        return isinstance(other, LowRank)

    def stacked(
        self, changes: Sequence[Parts], weights: Sequence[float | Tensor]
    ) -> tuple[Form, Parts]:
        """Concatenate the factors into a change of the summed rank."""
        ups = [
            along(weight, change["up"]) * change["up"]
            for change, weight in zip(changes, weights, strict=True)
        ]
        downs = [change["down"] for change in changes]
        up, down = _side_by_side(ups, -1), _side_by_side(downs, -2)
        return LowRank(up.shape[-1]), {"up": up, "down": down.expand(len(up), -1, -1)}


def _side_by_side(pieces: list[Tensor], axis: int) -> Tensor:
    tasks = max(len(piece) for piece in pieces)
    return torch.cat([piece.expand(tasks, *piece.shape[1:]) for piece in pieces], axis)
