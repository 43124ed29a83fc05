"""Low-rank factors of this library as `peft` lays them out for each kind of layer, and back.

In:   a model, factors ``up`` (rows, rank) and ``down`` (rank, columns) of one weight.
Out:  the two tensors of `peft`, by their names, and the reverse.
Knows nothing of files or configurations.
"""

from math import prod
from typing import Literal

from torch import Tensor, nn

from weightloom.params import Shape, parameters_by_name

Layout = Literal["linear", "transposed", "embedding", "conv"]
"""Layout of a layer's weight and adapter.

- ``"linear"``: weight (out, in); ``lora_A`` is down, ``lora_B`` is up.
- ``"transposed"``: weight (in, out), as of ``Conv1D`` of transformers; ``lora_A`` is upᵀ,
  ``lora_B`` is downᵀ.
- ``"embedding"``: weight (symbols, width), transposed too, with names of its own.
- ``"conv"``: a kernel; ``lora_A`` is a kernel of ``rank`` channels, ``lora_B`` one of size 1.
"""

A_AND_B: dict[Layout, tuple[str, str]] = {
    "linear": ("lora_A.weight", "lora_B.weight"),
    "transposed": ("lora_A.weight", "lora_B.weight"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
    "conv": ("lora_A.weight", "lora_B.weight"),
}
"""Names of the two tensors of an adapter in its layer."""

PREFIX = "base_model.model."
"""Beginning of every name in a file of `peft`."""


def layout_of(module: nn.Module) -> Layout | None:
    """Layout of a layer's adapter; None for layers to which `peft` adds none that is equal to ours.

    Grouped, dilated or circular convolutions have none: `peft` runs their adapters otherwise than
    the layer.
    """
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # of transformers
        return "transposed"
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return None
    is_plain = module.groups == 1 and set(module.dilation) == {1}
    return "conv" if is_plain and module.padding_mode == "zeros" else None


def layout_of_shape(shape: Shape) -> Layout | None:
    """Layout for a weight of a model that is not given: a linear layer's, or a kernel's."""
    return "linear" if len(shape) == 2 else "conv" if 3 <= len(shape) <= 5 else None


def layouts(model: nn.Module) -> dict[str, Layout]:
    """Layout of each layer of a model that can have an adapter, by its name."""
    found = {name: layout_of(module) for name, module in model.named_modules() if name}
    return {name: its for name, its in found.items() if its}


def tied_names(model: nn.Module) -> dict[str, str]:
    """Another name of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in parameters_by_name(model).items():
        names.setdefault(id(parameter), []).append(name)
    several = [its for its in names.values() if len(its) > 1]
    return {name: next(n for n in its if n != name) for its in several for name in its}


def to_peft(
    layout: Layout, shape: Shape, up: Tensor, down: Tensor, scaling: float
) -> dict[str, Tensor]:
    """Tensors of one adapter, by their names in the layer.

    Args:
        layout: Layout of the layer.
        shape: Shape of its weight.
        up: Factor of one task, (rows, rank).
        down: The other factor, (rank, columns).
        scaling: Factor by which `peft` multiplies the product; ``lora_B`` is divided by it.
    """
    a, b = (down, up) if layout in ("linear", "conv") else (up.mT, down.mT)
    if scaling != 1:
        b = b / scaling
    if layout == "conv":
        a, b = a.reshape(len(a), *shape[1:]), b.reshape(*b.shape, *[1] * (len(shape) - 2))
    return dict(zip(A_AND_B[layout], (a.contiguous(), b.contiguous()), strict=True))


def from_peft(layout: Layout, a: Tensor, b: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Factors ``up`` and ``down`` of one adapter, from the tensors of `peft`."""
    if scaling != 1:
        b = b * scaling
    if layout in ("linear", "conv"):
        return b.flatten(1), a.flatten(1)
    return a.mT.contiguous(), b.mT.contiguous()


def shapes_of_adapter(layout: Layout, shape: Shape, rank: int) -> tuple[Shape, Shape]:
    """Shapes of the two tensors of an adapter of a weight."""
    rows, columns = shape[0], prod(shape[1:])
    if layout == "conv":
        return (rank, *shape[1:]), (rows, rank, *[1] * (len(shape) - 2))
    if layout == "linear":
        return (rank, columns), (rows, rank)
    return (rank, rows), (columns, rank)
