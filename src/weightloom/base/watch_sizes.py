"""Sizes that a base reads while it is watched.

What becomes of them says for which other sizes a plan holds.

A size that goes into the shape of a tensor is no question of its value. One that is compared is:
for another size the base may do something else. The size of the batch is another one where tasks
are folded, so it may go into shapes alone.

In:   what a function of torch says of a tensor's shape.
Out:  the same numbers, followed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from weightloom.replica.hot import no_type_check


class Followed:
    """Whether any size was used in a way that makes a plan hold for these sizes alone."""

    def __init__(self) -> None:
        self.exact = False


@no_type_check
def _compared(name: str) -> Callable[..., Any]:
    its = getattr(int, name)

    def compare(self: Any, other: Any) -> Any:
        if (
            self.batch or type(other) is not int or not -1 <= other <= 1
        ):  # kinds of calls differ in what is one
            self.followed.exact = True
        return its(self, other)

    return compare


@no_type_check
def _computed(name: str) -> Callable[..., Any]:
    its = getattr(int, name)

    def compute(self: Any, *others: Any) -> Any:
        result = its(self, *others)
        batch = self.batch or any(type(other) is Side and other.batch for other in others)
        if type(result) is int:
            return side(result, batch, self.followed)
        if batch and result is not NotImplemented:
            self.followed.exact = True
        if type(result) is tuple:
            return tuple([side(one, batch, self.followed) for one in result])
        return result

    return compute


@no_type_check
class Side(int):
    """A size, followed through arithmetic of Python."""

    batch: bool
    """Whether it is the size of the batch, or comes of it."""
    followed: Followed

    def __hash__(self) -> int:
        """Note that it is looked up."""
        self.followed.exact = True
        return int.__hash__(self)

    def __bool__(self) -> bool:
        """Compare with zero."""
        self.followed.exact = self.followed.exact or self.batch
        return int.__bool__(self)

    __eq__ = _compared("__eq__")
    __ne__ = _compared("__ne__")
    __lt__ = _compared("__lt__")
    __le__ = _compared("__le__")
    __gt__ = _compared("__gt__")
    __ge__ = _compared("__ge__")
    __add__ = _computed("__add__")
    __radd__ = _computed("__radd__")
    __sub__ = _computed("__sub__")
    __rsub__ = _computed("__rsub__")
    __mul__ = _computed("__mul__")
    __rmul__ = _computed("__rmul__")
    __floordiv__ = _computed("__floordiv__")
    __rfloordiv__ = _computed("__rfloordiv__")
    __mod__ = _computed("__mod__")
    __rmod__ = _computed("__rmod__")
    __divmod__ = _computed("__divmod__")
    __rdivmod__ = _computed("__rdivmod__")
    __pow__ = _computed("__pow__")
    __rpow__ = _computed("__rpow__")
    __truediv__ = _computed("__truediv__")
    __rtruediv__ = _computed("__rtruediv__")
    __and__ = _computed("__and__")
    __rand__ = _computed("__rand__")
    __or__ = _computed("__or__")
    __ror__ = _computed("__ror__")
    __xor__ = _computed("__xor__")
    __rxor__ = _computed("__rxor__")
    __lshift__ = _computed("__lshift__")
    __rlshift__ = _computed("__rlshift__")
    __rshift__ = _computed("__rshift__")
    __rrshift__ = _computed("__rrshift__")
    __neg__ = _computed("__neg__")
    __abs__ = _computed("__abs__")
    __float__ = _computed("__float__")
    __round__ = _computed("__round__")


@no_type_check
def side(value: int, batch: bool, followed: Followed) -> Side:
    """Follow a size."""
    self = int.__new__(Side, value)
    self.batch, self.followed = batch, followed
    return self


SHAPED = {
    *(
        Tensor.view,
        Tensor.reshape,
        torch.reshape,
        Tensor.expand,
        torch.broadcast_to,
        Tensor.broadcast_to,
    ),
    *(
        Tensor.unflatten,
        torch.unflatten,
        Tensor.repeat,
        torch.arange,
        Tensor.new_zeros,
        Tensor.new_ones,
    ),
    *(Tensor.new_full, Tensor.new_empty, torch.zeros, torch.ones, torch.empty, torch.full),
}
"""Functions to which a size is a shape."""
FOLLOWED = {
    *(Tensor.size, Tensor.numel, Tensor.nelement, torch.numel, Tensor.shape.__get__),  # type: ignore[attr-defined]
}


@no_type_check
def holds_batch(tree: Any) -> bool:
    """Whether arguments hold a size of the batch."""
    if type(tree) is Side:
        return tree.batch
    if isinstance(tree, tuple | list):
        return any(map(holds_batch, tree))
    if type(tree) is slice:
        return holds_batch((tree.start, tree.stop, tree.step))
    return isinstance(tree, dict) and any(map(holds_batch, tree.values()))


@no_type_check
def plain(value: Any) -> Any:
    """The same without a size that is followed."""
    return int(value) if type(value) is Side else value


@no_type_check
def unfollowed(tree: Any) -> Any:
    """The same arguments with plain numbers."""
    kind = type(tree)
    if kind is Side:
        return int(tree)
    if kind is tuple:
        return tuple([unfollowed(one) for one in tree])
    if kind is list:
        return (
            [unfollowed(one) for one in tree] if any(type(one) in _OPENED for one in tree) else tree
        )
    if kind is dict:
        return {name: unfollowed(one) for name, one in tree.items()}
    if kind is torch.Size:
        return torch.Size([int(one) for one in tree])
    if kind is slice:
        return slice(unfollowed(tree.start), unfollowed(tree.stop), unfollowed(tree.step))
    return tree


_OPENED = {Side, tuple, list, dict, torch.Size, slice}


@no_type_check
def follow(
    result: Any, is_rows: bool, batch: int, args: tuple[Any, ...], followed: Followed
) -> Any:
    """Follow what `FOLLOWED` functions return.

    Args:
        result: A shape, a size of it, or a count of numbers.
        is_rows: Whether the tensor has the batch on axis 0.
        batch: Its size.
        args: Arguments of the function.
        followed: What is found out is noted there.
    """
    if isinstance(batch, torch.SymInt):  # what becomes of a symbol cannot be followed
        said = args[1] if len(args) > 1 else 0
        followed.exact = followed.exact or (
            is_rows and not (isinstance(said, int) and said % args[0].ndim)
        )
        return result
    if isinstance(result, torch.Size):
        sides = [
            side(its, axis == 0 if is_rows else _may_be(its, batch), followed)
            for axis, its in enumerate(result)
        ]
        return torch.Size(sides)
    axis = args[1] if len(args) > 1 and isinstance(args[1], int) else None
    if is_rows and axis is not None:
        return side(result, axis % args[0].ndim == 0, followed)
    return side(result, is_rows or _may_be(result, batch), followed)


@no_type_check
def _may_be(value: int, batch: int) -> bool:
    return batch > 1 and value > 0 and value % batch == 0
