"""Parameters of many customers in memory: stacked tensors with free slots.

In:   Params, one task per customer.
Out:  the slots that hold them; Params of any slots.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from weightloom.forms import Factored
from weightloom.forms.form import Parts
from weightloom.params import Params


class Stack:
    """Params of equal structure, stacked along the tasks axis; capacity grows by doubling.

    Values held as factors are stored as factors; the base's own values are stored once.

    Args:
        like: Params of the structure to store: names, forms, shapes, dtypes and device.

    Example:
        >>> stack = Stack(Params(bias=torch.zeros(1, 2)))
        >>> slots = stack.put(Params(bias=torch.tensor([[1.0, 2.0], [3.0, 4.0]])))
        >>> stack.take(slots[::-1])["bias"]
        tensor([[3., 4.],
                [1., 2.]])
    """

    def __init__(self, like: Params) -> None:
        self._like = like.detach().take([])
        leaves, self._structure = tree_flatten(self._like)
        self._leaves: list[Tensor] = leaves
        self._free: list[int] = []

    def holds(self, params: Params) -> bool:
        """True if Params have the structure of this stack."""
        return list(params) == list(self._like) and all(
            _alike(value, self._like[name]) for name, value in params.items()
        )

    def put(self, params: Params) -> list[int]:
        """Store Params; return the slot of each task."""
        slots = [self.slot() for _ in range(params.tasks or 0)]
        self.write(slots, params)
        return slots

    def slot(self) -> int:
        """Take a free slot; without one, capacity doubles."""
        if not self._free:
            had = len(self._leaves[0])
            more = max(had, 1)
            self._leaves = [
                torch.cat([leaf, leaf.new_zeros(more, *leaf.shape[1:])]) for leaf in self._leaves
            ]
            self._free = list(reversed(range(had, had + more)))
        return self._free.pop()

    def write(self, slots: Sequence[int], params: Params) -> None:
        """Replace the contents of slots."""
        with torch.no_grad():
            for leaf, value in zip(self._leaves, tree_flatten(params)[0], strict=True):
                leaf[_place(slots, leaf)] = value.detach()

    def take(self, slots: Sequence[int]) -> Params:
        """Copy the Params of some slots, in this order."""
        taken = [leaf.index_select(0, _place(slots, leaf)) for leaf in self._leaves]
        params: Params = tree_unflatten(taken, self._structure)
        return params

    def drop(self, slot: int) -> None:
        """Zero a slot and mark it as free."""
        for leaf in self._leaves:
            leaf[slot] = 0
        self._free.append(slot)


def _place(slots: Sequence[int], leaf: Tensor) -> Tensor:
    return torch.tensor(slots, dtype=torch.long, device=leaf.device)


def _alike(value: Tensor, other: Tensor) -> bool:
    """True if two values differ in their numbers and their number of tasks only."""
    if not isinstance(value, Factored) or not isinstance(other, Factored):
        return type(value) is type(other) and _kind(value) == _kind(other)
    if (value.form, _kinds(value.factors)) != (other.form, _kinds(other.factors)):
        return False
    kept, its = {"own": value.own, **value.shared}, {"own": other.own, **other.shared}
    return kept.keys() == its.keys() and all(_same(kept[name], its[name]) for name in kept)


def _kinds(factors: Parts) -> list[Any]:
    return [(name, _kind(factor)) for name, factor in factors.items()]


def _kind(value: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return value.shape[1:], value.dtype, value.device


def _same(a: Tensor, b: Tensor) -> bool:
    if a.data_ptr() == b.data_ptr() and a.shape == b.shape:
        return True
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
