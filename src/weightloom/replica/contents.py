"""Contents of what a base keeps outside of torch's own dicts.

To find out what changed, and to take it back.
"""

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
    """What lists, dicts, sets, objects and closure cells of a base hold, to find out and take back what changed.

    Args:
        things: All of them.
    """

    def __init__(self, things: Iterable[Any]) -> None:
        self._before = [(thing, _contents(thing)) for thing in things]

    def changed(self) -> list[tuple[Any, bool]]:
        """What holds something else now, and whether there are tensors among what is new in it."""
        found = []
        for thing, old in self._before:
            new = _contents(thing)
            if _differ(old, new):
                before = {id(item) for part in old for item in _items(part)}
                fresh = [item for part in new for item in _items(part) if id(item) not in before]
                found.append((thing, any(_has_tensor(item, 3) for item in fresh)))
        return found

    def restore(self) -> None:
        """Put everything back as it was."""
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
    if isinstance(thing, dict):
        dict.clear(thing)
        for name, value in parts.pop(0):
            dict.__setitem__(thing, name, value)
    elif isinstance(thing, list):
        list.__setitem__(thing, slice(None), parts.pop(0))
    elif isinstance(thing, deque | set):
        thing.clear()
        (thing.extend if isinstance(thing, deque) else thing.update)(parts.pop(0))
    if parts:
        names = dict(parts[0])
        for name in attributes_of(thing) or {}:
            if name not in names:
                object.__delattr__(thing, name)
        for name, value in names.items():
            object.__setattr__(thing, name, value)


@no_type_check
def _has_tensor(value: Any, depth: int) -> bool:
    if isinstance(value, Tensor):
        return True
    if depth == 0 or type(value) in PLAIN or isinstance(value, (*CONSTANT, nn.Module)):
        return False
    inside = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, list | tuple | set | deque)
        else ()
    )
    held = (
        (attributes_of(value) or {}).values() if not isinstance(value, types.FunctionType) else ()
    )
    return any(_has_tensor(item, depth - 1) for item in (*inside, *held))
