"""The chunked form: one small network writes the change of a parameter chunk by chunk."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError
from weightloom.forms.form import Form, Parts
from weightloom.params import Shape


class Chunked(Form):
    """θ = W + chunks: a small network that all tasks share writes the change chunk by chunk.

    The network reads the task's generated code and a learned embedding of the chunk. Only the code,
    ``code_dim`` numbers, is generated per task, regardless of the parameter's size. The network's
    last layer starts at zero, so the change starts at zero.

    Args:
        size: Numbers per chunk.
        code_dim: Width of the generated code.
        embedding_dim: Width of a chunk's embedding.
        hidden: Width of the network's hidden layer.

    Raises:
        ConfigError: If an argument is below 1.

    Example:
        >>> form = Chunked(size=4)
        >>> form.factor_shapes((6, 5))
        {'code': (8,)}
        >>> {name: tuple(value.shape) for name, value in form.shared((6, 5)).items()}
        {'embeddings': (8, 8), 'inner': (32, 16), 'inner_bias': (32,), 'outer': (4, 32)}

    Source:
        von Oswald et al., "Continual learning with hypernetworks" (2020), section 2, chunked
        hypernetworks.
    """

    needs = "a parameter with at least one axis"

    def __init__(
        self, size: int, code_dim: int = 8, embedding_dim: int = 8, hidden: int = 32
    ) -> None:
        options = {
            "size": size,
            "code_dim": code_dim,
            "embedding_dim": embedding_dim,
            "hidden": hidden,
        }
        for name, value in options.items():
            if value < 1:
                raise ConfigError(
                    f"`{name}={value}` is below 1. It is a size in the network that writes chunks. "
                    "Pass 1 or more."
                )
        self.size, self.code_dim, self.embedding_dim, self.hidden = (
            size,
            code_dim,
            embedding_dim,
            hidden,
        )

    @classmethod
    def candidates(cls) -> "Sequence[Chunked]":
        """Small and large chunks."""
        return [Chunked(size) for size in (64, 512)]

    def fit(self, shape: Shape, owner: nn.Module) -> "Chunked | None":
        """Fit every parameter with at least one axis."""
        return self if shape else None

    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """One factor, ``code``, (code_dim,), for every shape."""
        return {"code": (self.code_dim,)}

    def shared(self, shape: Shape) -> Parts:
        """Weights of a two-layer network, and an embedding for each chunk."""
        width = self.code_dim + self.embedding_dim
        return {
            "embeddings": torch.randn(-(-prod(shape) // self.size), self.embedding_dim),
            "inner": torch.randn(self.hidden, width) * (2 / width) ** 0.5,
            "inner_bias": torch.zeros(self.hidden),
            "outer": torch.zeros(self.size, self.hidden),
        }

    def dense(self, own: Tensor, parts: Parts) -> Tensor:
        """Write all chunks and crop them to the parameter."""
        of_code, of_chunk = parts["inner"].split([self.code_dim, self.embedding_dim], dim=1)
        code = nn.functional.linear(parts["code"], of_code, parts["inner_bias"])
        hidden = torch.relu(code[..., None, :] + parts["embeddings"] @ of_chunk.mT)
        chunks = hidden @ parts["outer"].mT
        return own + chunks.flatten(-2)[..., : own.numel()].unflatten(-1, own.shape)

    def value(self, own: Tensor, factors: Parts, shared: Parts | None = None) -> Tensor:
        """Build the parameter; this form has no cheaper route."""
        return self.dense(own, {**factors, **(shared or {})})
