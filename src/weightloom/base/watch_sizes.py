"""Follow the sizes that a base reads while it is watched.

Their use decides for which other sizes a plan is valid. A size that goes into the shape of a tensor
does not restrict the plan. A size that is compared does: for another size the base may take another
path. Folding tasks changes the size of the batch, so that one may go into shapes only.

In:   sizes that a torch function returns.
Out:  the same numbers as `Side`, which note comparisons and arithmetic.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from weightloom.base.row_rules import getter
from weightloom.replica.hot import no_type_check


class Followed:
    """Findings about the sizes that a base read."""

    def __init__(self) -> None:
        self.exact = False
        """True if the use of a size makes a plan valid for these sizes only."""


@no_type_check
def _compared(name: str) -> Callable[..., Any]:
    its = getattr(int, name)

    def compare(self: Any, other: Any) -> Any:
        # The kind of a call already tells which sizes are 1.
        if self.batch or type(other) is not int or not -1 <= other <= 1:
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
    """Integer that notes its comparisons, and passes its marks on through arithmetic."""

    batch: bool
    """True for the size of the batch, and for numbers computed from it."""
    followed: Followed
    """Receives the findings."""

    def __hash__(self) -> int:
        """Note a lookup in a dict or a set, which depends on the value."""
        self.followed.exact = True
        return int.__hash__(self)

    def __bool__(self) -> bool:
        """Note a comparison with zero, if the number depends on the size of the batch."""
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
    """Make a `Side` of a size.

    Args:
        value: The size.
        batch: True if it is the size of the batch.
        followed: Receives the findings.
    """
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
"""Functions whose integer arguments are shapes."""
FOLLOWED = {Tensor.size, Tensor.numel, Tensor.nelement, torch.numel, getter("shape")}
"""Functions whose sizes are followed."""


@no_type_check
def holds_batch(tree: Any) -> bool:
    """True if arguments hold a number computed from the size of the batch."""
    if type(tree) is Side:
        return tree.batch
    if isinstance(tree, tuple | list):
        return any(map(holds_batch, tree))
    if type(tree) is slice:
        return holds_batch((tree.start, tree.stop, tree.step))
    return isinstance(tree, dict) and any(map(holds_batch, tree.values()))


@no_type_check
def plain(value: Any) -> Any:
    """The same value, as a plain integer if it is a followed size."""
    return int(value) if type(value) is Side else value


@no_type_check
def unfollowed(tree: Any) -> Any:
    """The same arguments with plain integers in the place of followed sizes."""
    convert = _CONVERT.get(type(tree))
    return tree if convert is None else convert(tree)


@no_type_check
def _list(tree: list[Any]) -> list[Any]:
    """The list itself if it holds no sizes, as functions may change it in place."""
    return [unfollowed(one) for one in tree] if any(type(one) in _CONVERT for one in tree) else tree


_CONVERT: dict[type, Callable[[Any], Any]] = {
    Side: int,
    tuple: lambda tree: tuple([unfollowed(one) for one in tree]),
    list: _list,
    dict: lambda tree: {name: unfollowed(one) for name, one in tree.items()},
    torch.Size: lambda tree: torch.Size([int(one) for one in tree]),
    slice: lambda its: slice(unfollowed(its.start), unfollowed(its.stop), unfollowed(its.step)),
}


@no_type_check
def follow(
    result: Any, is_rows: bool, batch: int, args: tuple[Any, ...], followed: Followed
) -> Any:
    """Turn the sizes that a function in `FOLLOWED` returns into `Side` numbers.

    Args:
        result: A shape, one of its sizes, or a count of numbers.
        is_rows: True if the tensor has the batch on axis 0.
        batch: Number of rows; a `torch.SymInt` cannot be followed, and ``result`` is returned.
        args: Arguments of the function, the tensor first.
        followed: Receives the findings.
    """
    if isinstance(batch, torch.SymInt):
        _note_symbol(is_rows, args, followed)
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
def _note_symbol(is_rows: bool, args: tuple[Any, ...], followed: Followed) -> None:
    """Note a read of the batch size of rows, unless the axis is given and is another one."""
    axis = args[1] if len(args) > 1 else 0
    if is_rows and not (isinstance(axis, int) and axis % args[0].ndim):
        followed.exact = True


@no_type_check
def _may_be(value: int, batch: int) -> bool:
    return batch > 1 and value > 0 and value % batch == 0
