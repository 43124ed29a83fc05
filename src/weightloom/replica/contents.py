"""Contents of the objects that a base holds outside of torch's own dicts: compare and restore."""

import types
from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from weightloom.replica.hot import no_type_check
from weightloom.replica.scan import CONSTANT
from weightloom.replica.tree import PLAIN, attributes_of


@no_type_check
class Contents:
    """Copy of the contents of objects, to find their changes and to undo them.

    Contents are compared by identity; plain values also by equality.

    Args:
        things: Lists, dicts, sets, deques, closure cells, and objects with attributes.
    """

    def __init__(self, things: Iterable[Any]) -> None:
        self._before = [(thing, _contents(thing)) for thing in things]

    def changed(self) -> list[tuple[Any, bool]]:
        """Objects whose contents changed; True beside each whose new contents include tensors."""
        found = []
        for thing, old in self._before:
            new = _contents(thing)
            if _differ(old, new):
                before = {id(item) for part in old for item in _items(part)}
                fresh = [item for part in new for item in _items(part) if id(item) not in before]
                found.append((thing, any(_has_tensor(item, 3) for item in fresh)))
        return found

    def restore(self) -> None:
        """Restore the contents of every object that changed."""
        for thing, old in self._before:
            if _differ(old, _contents(thing)):
                _put(thing, old)


@no_type_check
def _contents(thing: Any) -> tuple[Any, ...]:
    if isinstance(thing, types.CellType):
        try:
            return ([thing.cell_contents],)
        except ValueError:
            return ([],)
    parts: list[Any] = []
    if isinstance(thing, dict):
        parts.append(list(thing.items()))
    elif isinstance(thing, list | deque):
        parts.append(list(thing))
    elif isinstance(thing, set):
        parts.append(set(thing))
    attributes = attributes_of(thing)
    if attributes is not None:
        parts.append(list(attributes.items()))
    return tuple(parts)


@no_type_check
def _items(part: Any) -> list[Any]:
    return [item for entry in part for item in (entry if isinstance(entry, tuple) else (entry,))]


@no_type_check
def _differ(old: Any, new: Any) -> bool:
    for a, b in zip(old, new, strict=True):
        if isinstance(a, set):
            if a != b:
                return True
        elif len(a) != len(b):
            return True
        else:
            for x, y in zip(_items(a), _items(b), strict=True):
                if x is not y and not (type(x) in PLAIN and type(x) is type(y) and x == y):
                    return True
    return False


@no_type_check
def _put(thing: Any, old: tuple[Any, ...]) -> None:
    if isinstance(thing, types.CellType):
        if old[0]:
            thing.cell_contents = old[0][0]
        return
    parts = list(old)
    if isinstance(thing, dict | list | deque | set):
        _put_items(thing, parts.pop(0))
    if parts:
        _put_attributes(thing, dict(parts[0]))


@no_type_check
def _put_items(thing: Any, items: Any) -> None:
    if isinstance(thing, dict):
        dict.clear(thing)
        for name, value in items:
            dict.__setitem__(thing, name, value)
    elif isinstance(thing, list):
        list.__setitem__(thing, slice(None), items)
    else:
        thing.clear()
        (thing.extend if isinstance(thing, deque) else thing.update)(items)


@no_type_check
def _put_attributes(thing: Any, attributes: dict[str, Any]) -> None:
    for name in attributes_of(thing) or {}:
        if name not in attributes:
            object.__delattr__(thing, name)
    for name, value in attributes.items():
        object.__setattr__(thing, name, value)


@no_type_check
def _has_tensor(value: Any, depth: int) -> bool:
    if isinstance(value, Tensor):
        return True
    if depth == 0 or type(value) in PLAIN or isinstance(value, (*CONSTANT, nn.Module)):
        return False
    return any(_has_tensor(item, depth - 1) for item in (*_inside(value), *_held(value)))


@no_type_check
def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple | set | deque) else ()


@no_type_check
def _held(value: Any) -> Iterable[Any]:
    if isinstance(value, types.FunctionType):
        return ()
    return (attributes_of(value) or {}).values()
