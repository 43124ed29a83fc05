"""A small causal transformer over characters, to be used as a base.

In:   numbers of characters, (batch, length).
Out:  logits of the next character at every place, (batch, length, characters).
Knows nothing of texts, documents or adapters.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from weightloom.errors import ConfigError, ShapeError


class CharacterModel(nn.Module):
    """Decoder-only transformer with rotary positions.

    Every layer is torch's own, so any weight can be generated or adapted by name, such as
    ``blocks.2.down.weight``.

    Args:
        characters: Number of different characters.
        width: Width of the residual stream.
        layers: Number of blocks.
        heads: Attention heads per block; ``width / heads`` is even.
        window: Most characters that are read at once.

    Raises:
        ConfigError: If ``width`` is not an even multiple of ``heads``.

    Example:
        >>> model = CharacterModel(characters=10, width=16, layers=2, heads=2)
        >>> model(torch.randint(10, (3, 7))).shape
        torch.Size([3, 7, 10])

    Source:
        Vaswani et al., "Attention is all you need" (2017); rotary positions from Su et al.,
        "RoFormer" (2021).
    """

    def __init__(
        self,
        characters: int,
        width: int = 96,
        layers: int = 3,
        heads: int = 4,
        window: int = 128,
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ConfigError(
                f"`width={width}` with `heads={heads}`. Each head turns pairs of numbers, so it "
                f"needs an even share of the width. Pass a multiple of {2 * heads} as `width`."
            )
        self.window = window
        self.embedding = nn.Embedding(characters, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.5)

    def forward(
        self, x: Int[Tensor, "batch length"], reach: int | None = None
    ) -> Float[Tensor, "batch length characters"]:
        """Logits of the next character after each one.

        Args:
            x: Numbers of characters, at most ``window`` in a row.
            reach: Characters that each place attends to, itself included. None: all before it.

        Raises:
            ShapeError: If a row is longer than the window.
        """
        if x.shape[-1] > self.window:
            raise ShapeError(
                f"`x` holds {x.shape[-1]} characters in a row. The model was built for windows of "
                f"{self.window}. Pass at most {self.window}, or split the text."
            )
        mask = None if reach is None else near(x.shape[-1], reach, x.device)
        state = self.embedding(x)
        for block in self.blocks:
            state = block(state, mask)
        logits: Tensor = self.head(self.norm(state))
        return logits


class Block(nn.Module):
    """Attention, then two linear layers, each added to the residual stream.

    Args:
        width: Width of the residual stream.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self, state: Float[Tensor, "batch length width"], mask: Tensor | None = None
    ) -> Float[Tensor, "batch length width"]:
        """Residual stream behind the block; ``mask`` is True where a place may attend."""
        qkv = self.qkv(self.norm_attention(state)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.movedim(-3, 0).transpose(-3, -2)
        read = scaled_dot_product_attention(
            rotated(query), rotated(key), value, mask, is_causal=mask is None
        )
        state = state + self.out(read.transpose(-3, -2).flatten(-2))
        added: Tensor = self.down(gelu(self.up(self.norm_mlp(state))))
        return state + added


def rotated(x: Float[Tensor, "*lead length width"]) -> Float[Tensor, "*lead length width"]:
    """Turn pairs of numbers by an angle that grows with the place.

    The product of a turned query and a turned key depends on their distance only.
    """
    half = x.shape[-1] // 2
    places = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)
    rates = 1000.0 ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angles = places[:, None] * rates
    first, second = x.split(half, -1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)


def near(length: int, reach: int, device: torch.device) -> Tensor:
    """Mask of the ``reach`` last places up to each one, (length, length); True may be read."""
    places = torch.arange(length, device=device)
    behind = places[:, None] - places
    return (behind >= 0) & (behind < reach)
