"""Scale of the base's activations with generated parameters, against that with its own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from weightloom.base import apply_per_task
from weightloom.diagnostics.table import Tabled
from weightloom.errors import ConfigError, ShapeError
from weightloom.params import Params

LOWEST, HIGHEST = 0.5, 2.0
"""Ratios within these bounds are in scale."""


@dataclass(frozen=True)
class ScaleRow:
    """Scale of one layer's outputs."""

    layer: str
    base: float
    """Root mean square of its outputs in the reference."""
    ratios: tuple[float, ...]
    """For each task: root mean square of its outputs with generated parameters, relative to the
    reference."""

    @property
    def ok(self) -> bool:
        """True if all ratios are within bounds."""
        return all(LOWEST <= ratio <= HIGHEST for ratio in self.ratios)


@dataclass(frozen=True)
class ScaleCheck(Tabled):
    """Scale of every layer, in the order in which they run; printed as a table."""

    rows: tuple[ScaleRow, ...]

    @property
    def ok(self) -> bool:
        """True if every layer is within half to twice the reference's scale for every task."""
        return all(row.ok for row in self.rows)

    def __getitem__(self, layer: str) -> ScaleRow:
        return {row.layer: row for row in self.rows}[layer]

    def cells(self) -> list[Sequence[str]]:
        """Return the rows of the table, its heading first; ``!`` marks a layer out of bounds."""
        head = ("layer", "base's scale", "lowest ratio", "median", "highest", "")
        cells = [
            (row.layer, f"{row.base:.3g}", *map(_short, _spread(row)), "" if row.ok else "!")
            for row in self.rows
        ]
        return [head, *cells]

    @property
    def verdict(self) -> str:
        """The finding in a sentence."""
        tasks = len(self.rows[0].ratios) if self.rows else 0
        said = "All within" if self.ok else "Not all within"
        return f"{said} {LOWEST:g} to {HIGHEST:g} of the base's own, over {tasks} tasks."


@torch.no_grad()
def check_scale(
    hyper: nn.Module,
    condition: Float[Tensor, " tasks *features"],
    x: Tensor | tuple[Tensor, ...],
    reference: nn.Module | None = None,
) -> ScaleCheck:
    """Compare the scale of every layer's outputs, per task, with the base's own.

    Meant for initialisation: signals that shrink or grow from layer to layer with generated
    parameters are hard to train. After training a ratio far from one is no fault by itself.

    Args:
        hyper: The hypernetwork, with its ``base``.
        condition: A row per task. Take rows of the sizes that you expect, small and large.
        x: Inputs per task, (tasks, batch, *event), or a tuple of them.
        reference: The base with the values to compare with, such as a copy from before training.
            Default: ``hyper.base`` with its current values.

    Raises:
        ConfigError: If ``hyper`` has no base, or a layer of the reference outputs zeros only where
            the base does not.
        ShapeError: If the tasks of ``x`` and ``condition`` differ.

    Example:
        >>> from weightloom.hypernets import MLPHyperNetwork
        >>> hyper = MLPHyperNetwork(nn.Linear(3, 2), condition_dim=4)
        >>> check_scale(hyper, torch.randn(8, 4), torch.randn(8, 5, 3)).ok
        True

    Source:
        Chang, Flokas and Lipson, "Principled weight initialization for hypernetworks" (2020),
        section 3, on activations of a base under an ordinary initialisation of its hypernetwork.
    """
    base = getattr(hyper, "base", None)
    if not isinstance(base, nn.Module):
        raise ConfigError(
            f"{type(hyper).__name__} has no `base`. The scale is taken of the layers of the base. "
            "Pass a hypernetwork that holds its base as `self.base`."
        )
    inputs = x if isinstance(x, tuple) else (x,)
    _check_tasks(inputs, len(condition))
    params = hyper(condition)
    found = [
        _scales(base, _row(params, task), [_one(v, task) for v in inputs])
        for task in range(len(condition))
    ]
    own = [
        _scales(reference or base, {}, [_one(v, task) for v in inputs])
        for task in range(len(condition))
    ]
    return ScaleCheck(tuple(_compare(layer, found, own) for layer in found[0]))


def _check_tasks(inputs: tuple[Tensor, ...], tasks: int) -> None:
    """Raise a `ShapeError` unless every input has a row for each condition."""
    if any(len(one) != tasks for one in inputs):
        raise ShapeError(
            f"`x` holds {len(inputs[0])} tasks and `condition` {tasks}. Each condition is tried on "
            f"inputs of its own. To try all on the same, pass `x[:1].expand({tasks}, "
            "*x.shape[1:])`."
        )


def _compare(layer: str, found: list[dict[str, float]], own: list[dict[str, float]]) -> ScaleRow:
    if any(layer not in its for its in own):
        raise ConfigError(
            f"`reference` does not run {layer!r}, which the base does. It must be the same network "
            "with other values. Pass `copy.deepcopy(base)` from before the hypernetwork was built."
        )
    if any(not mine[layer] and its[layer] for mine, its in zip(own, found, strict=True)):
        raise ConfigError(
            f"The reference outputs zeros only in {layer!r}, so it has no scale to compare with. "
            "Its values must be those of a working network. Pass `reference=` such a copy of the "
            "base."
        )
    ratios = [
        its[layer] / mine[layer] if mine[layer] else 1.0
        for mine, its in zip(own, found, strict=True)
    ]
    scale = sum(mine[layer] ** 2 for mine in own) / len(own)
    return ScaleRow(layer, scale**0.5, tuple(ratios))


def _row(params: Mapping[str, Tensor], task: int) -> Params:
    return Params({name: value[task : task + 1] for name, value in params.items()})


def _one(x: Tensor, task: int) -> Tensor:
    return x[task : task + 1]


def _scales(
    base: nn.Module, params: Mapping[str, Tensor], inputs: list[Tensor]
) -> dict[str, float]:
    """Run one task, and return the root mean square of each layer's outputs."""
    with _recorded(base) as sums:
        apply_per_task(base, params, *inputs, engine="loop", statistics="task")
    return {layer: (squares / count) ** 0.5 for layer, (squares, count) in sums.items() if count}


@contextmanager
def _recorded(base: nn.Module) -> Iterator[dict[str, tuple[float, int]]]:
    """Sum the squares of each layer's outputs, by hooks that are removed afterwards.

    A layer is a module that holds parameters, or no other module. One that runs several times is
    summed over them.
    """
    sums: dict[str, tuple[float, int]] = {}

    def record(layer: str, outputs: Any) -> None:
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                squares, count = sums.get(layer, (0.0, 0))
                sums[layer] = squares + leaf.double().square().sum().item(), count + leaf.numel()

    def hook_of(layer: str) -> Any:
        return lambda module, inputs, outputs: record(layer, outputs)

    handles = []
    try:
        for name, module in base.named_modules():
            if _is_layer(module):
                handles.append(module.register_forward_hook(hook_of(name or type(module).__name__)))
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _is_layer(module: nn.Module) -> bool:
    """Return True for a module that holds parameters itself, or no other module."""
    return bool(module._parameters) or not module._modules


def _spread(row: ScaleRow) -> tuple[float, float, float]:
    ratios = torch.tensor(row.ratios, dtype=torch.float64)
    return ratios.min().item(), ratios.quantile(0.5).item(), ratios.max().item()


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if 0.01 <= ratio < 1000 else f"{ratio:.1e}"
