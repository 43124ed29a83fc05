"""Cut out of chunks that one small network writes."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError
from weightloom.forms.form import Form, Parts
from weightloom.params import Shape


class Chunked(Form):
    """θ = W + chunks: a small network that all tasks share writes the change chunk by chunk.

    It reads a generated code of the task and a learned embedding of the chunk. What is generated
    per task is the code alone, however large the parameter is. The network's last layer starts at
    zero, so the change does.

    Args:
        size: Numbers in a chunk.
        code_dim: Width of the generated code.
        embedding_dim: Width of a chunk's embedding.
        hidden: Width of the network's hidden layer.

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

    needs = "a parameter of any shape but a single number"

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
                    f"`{name}={value}` is below 1. A chunk needs numbers to hold. Pass 1 or more."
                )
        self.size, self.code_dim, self.embedding_dim, self.hidden = (
            size,
            code_dim,
            embedding_dim,
            hidden,
        )

    @classmethod
    def candidates(cls) -> "Sequence[Chunked]":
        """Small chunks, and large ones."""
        return [Chunked(size) for size in (64, 512)]

    def fit(self, shape: Shape, owner: nn.Module) -> "Chunked | None":
        """Fits every parameter that is more than one number."""
        return self if shape else None

    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """One factor, ``code``, whatever the parameter's shape."""
        return {"code": (self.code_dim,)}

    def shared(self, shape: Shape) -> Parts:
        """A network of two layers, and an embedding for each chunk."""
        width = self.code_dim + self.embedding_dim
        return {
            "embeddings": torch.randn(-(-prod(shape) // self.size), self.embedding_dim),
            "inner": torch.randn(self.hidden, width) * (2 / width) ** 0.5,
            "inner_bias": torch.zeros(self.hidden),
            "outer": torch.zeros(self.size, self.hidden),
        }

    def dense(self, own: Tensor, parts: Parts) -> Tensor:
        """Write all chunks and cut the parameter out of them."""
        of_code, of_chunk = parts["inner"].split([self.code_dim, self.embedding_dim], dim=1)
        code = nn.functional.linear(parts["code"], of_code, parts["inner_bias"])
        hidden = torch.relu(code[..., None, :] + parts["embeddings"] @ of_chunk.mT)
        chunks = hidden @ parts["outer"].mT
        return own + chunks.flatten(-2)[..., : own.numel()].unflatten(-1, own.shape)

    def value(self, own: Tensor, factors: Parts, shared: Parts | None = None) -> Tensor:
        """Build the parameter: there is no shorter way."""
        return self.dense(own, {**factors, **(shared or {})})
