"""Encode a support set of any size as a condition: by a mean (`DeepSets`) or by attention.

`DeepSets` and `SupportAttention` are invariant to the order of the points, take a mask for tasks
with different numbers of shots, and return a learned prior for an empty support set.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightloom.conditions.attention import attention
from weightloom.errors import ShapeError

Mask = Bool[Tensor, "tasks shots"]


class DeepSets(nn.Module):
    """Encode each point (x, y) with one network, and the mean over points with a second one.

    The second network also reads 1 / (1 + shots), since a mean does not depend on the number of
    points.

    Args:
        x_dim: Width of an input, flat.
        y_dim: Width of a target, flat.
        condition_dim: Width of the condition.
        hidden: Width of both networks.

    Example:
        >>> encode = DeepSets(x_dim=1, y_dim=1, condition_dim=8)
        >>> encode(torch.randn(5, 10, 1), torch.randn(5, 10, 1)).shape
        torch.Size([5, 8])

    Source:
        Zaheer et al., "Deep Sets" (2017), theorem 2.
    """

    def __init__(self, x_dim: int, y_dim: int, condition_dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.x_dim, self.y_dim, self.condition_dim = x_dim, y_dim, condition_dim
        self.point = nn.Sequential(
            nn.Linear(x_dim + y_dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
        )
        self.pool = nn.Sequential(
            nn.Linear(hidden + 1, hidden), nn.ReLU(), nn.Linear(hidden, condition_dim)
        )

    def forward(
        self,
        support_x: Float[Tensor, "tasks shots x_dim"],
        support_y: Float[Tensor, "tasks shots y_dim"],
        support_mask: Mask | None = None,
    ) -> Float[Tensor, "tasks condition_dim"]:
        """Encode one support set per task.

        Args:
            support_x: Inputs.
            support_y: Targets.
            support_mask: True for real points, False for padding. None: all are real.

        Raises:
            ShapeError: If their shapes disagree, or a width differs from that of construction.
        """
        points, mask = checked_points(support_x, support_y, support_mask, self.x_dim, self.y_dim)
        kept = mask[..., None].to(points.dtype)
        shots = kept.sum(1)
        mean = (self.point(points) * kept).sum(1) / shots.clamp(min=1)
        condition: Tensor = self.pool(torch.cat([mean, 1 / (1 + shots)], dim=1))
        return condition


class SupportAttention(nn.Module):
    """Encode points (x, y) by self-attention; the output of one extra, learned token is read.

    Args:
        x_dim: Width of an input, flat.
        y_dim: Width of a target, flat.
        condition_dim: Width of the condition.
        hidden: Width of the tokens.
        layers: Number of attention blocks.
        heads: Attention heads, a divisor of ``hidden``.

    Example:
        >>> encode = SupportAttention(x_dim=1, y_dim=1, condition_dim=8)
        >>> encode(torch.randn(5, 10, 1), torch.randn(5, 10, 1)).shape
        torch.Size([5, 8])

    Source:
        Lee et al., "Set Transformer" (2019), with an extra token instead of pooling by attention.
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        condition_dim: int,
        hidden: int = 64,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.x_dim, self.y_dim, self.condition_dim = x_dim, y_dim, condition_dim
        self.point = nn.Sequential(
            nn.Linear(x_dim + y_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )
        self.gather = nn.Parameter(torch.zeros(hidden))
        self.blocks = nn.ModuleList(AttentionBlock(hidden, heads) for _ in range(layers))
        self.out = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, condition_dim))

    def forward(
        self,
        support_x: Float[Tensor, "tasks shots x_dim"],
        support_y: Float[Tensor, "tasks shots y_dim"],
        support_mask: Mask | None = None,
    ) -> Float[Tensor, "tasks condition_dim"]:
        """Encode one support set per task; arguments and errors as for `DeepSets`."""
        points, mask = checked_points(support_x, support_y, support_mask, self.x_dim, self.y_dim)
        tokens = torch.cat([self.gather.expand(points.shape[0], 1, -1), self.point(points)], dim=1)
        read = (
            None
            if support_mask is None
            else torch.cat([mask.new_ones(mask.shape[0], 1), mask], dim=1)
        )
        for block in self.blocks:
            tokens = block(tokens, read)
        condition: Tensor = self.out(tokens[:, 0])
        return condition


class AttentionBlock(nn.Module):
    """Transformer block: masked self-attention and a two-layer network, each with a residual sum.

    Args:
        hidden: Width of the tokens.
        heads: Attention heads, a divisor of ``hidden``.

    Source:
        Vaswani et al., "Attention is all you need" (2017), normalised before each part as in Xiong
        et al. (2020).
    """

    def __init__(self, hidden: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mix = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.to_qkv, self.from_heads = (
            nn.Linear(hidden, 3 * hidden, bias=False),
            nn.Linear(hidden, hidden),
        )
        self.mix = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden)
        )

    def forward(
        self,
        tokens: Float[Tensor, "tasks tokens hidden"],
        mask: Bool[Tensor, "tasks tokens"] | None = None,
    ) -> Float[Tensor, "tasks tokens hidden"]:
        """Update each token from the tokens of its task.

        Args:
            tokens: Tokens per task.
            mask: False for tokens to ignore; at least one per task must be True. None: use all.
        """
        qkv = self.to_qkv(self.before_attention(tokens)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = attention(q, k, v, None if mask is None else mask[:, None, None, :])
        tokens = tokens + self.from_heads(attended.transpose(1, 2).flatten(2))
        mixed: Tensor = self.mix(self.before_mix(tokens))
        return tokens + mixed


def checked_points(
    x: Tensor, y: Tensor, mask: Tensor | None, x_dim: int, y_dim: int
) -> tuple[Tensor, Tensor]:
    """Check a support set, and join it into points, (tasks, shots, x_dim + y_dim), and a mask.

    Masked points are zero.

    Raises:
        ShapeError: If shapes disagree, or a width is not ``x_dim`` or ``y_dim``.
    """
    if x.ndim != 3 or y.ndim != 3 or x.shape[:2] != y.shape[:2]:
        raise ShapeError(
            f"`support_x` has shape {tuple(x.shape)} and `support_y` {tuple(y.shape)}. "
            "Both are (tasks, shots, width), with the same tasks and shots. Flatten images with "
            "`x.flatten(2)`."
        )
    if (x.shape[2], y.shape[2]) != (x_dim, y_dim):
        raise ShapeError(
            f"`support_x` is {x.shape[2]} wide and `support_y` {y.shape[2]}, but this encoder was "
            f"built for {x_dim} and {y_dim}. The widths are fixed at construction. "
            f"Build it with `x_dim={x.shape[2]}, y_dim={y.shape[2]}`."
        )
    if mask is None:
        mask = x.new_ones(x.shape[:2], dtype=torch.bool)
    if mask.shape != x.shape[:2]:
        raise ShapeError(
            f"`support_mask` has shape {tuple(mask.shape)}. It is True for each real support "
            f"point. Pass a bool tensor of shape {tuple(x.shape[:2])}."
        )
    return torch.cat([x, y], dim=2).masked_fill(~mask[..., None], 0.0), mask
