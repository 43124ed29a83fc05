"""Nested inputs and outputs: tuples, lists, dicts, dataclasses and plain objects.

In:   a tree of tensors and other values.
Out:  its leaves, its structure, or a copy with other tensors.
Independent of torch's pytrees, so that the tests do not share a fault with the engines.
"""

import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def walk(tree: Any) -> Iterator[Any]:
    """Iterate over the leaves of nested tuples, lists, dicts, dataclasses and plain objects."""
    if isinstance(tree, list | tuple):
        for part in tree:
            yield from walk(part)
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from walk(part)
    elif _is_record(tree):
        yield from walk(vars(tree))
    else:
        yield tree


def structure(tree: Any) -> Any:
    """Return the types and keys of all containers; a leaf is ``"tensor"`` or ``"value"``."""
    if isinstance(tree, list | tuple):
        kind = "tuple" if isinstance(tree, torch.Size) else type(tree).__name__
        return [kind, *(structure(part) for part in tree)]
    if isinstance(tree, dict):
        return [type(tree).__name__, {key: structure(part) for key, part in tree.items()}]
    if _is_record(tree):
        return [type(tree).__name__, structure(vars(tree))]
    return "tensor" if isinstance(tree, Tensor) else "value"


def mapped(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Return a copy of the tree with ``function`` applied to every tensor."""
    if isinstance(tree, list | tuple):
        parts = [mapped(function, part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if isinstance(tree, dict):
        return {key: mapped(function, part) for key, part in tree.items()}
    if _is_record(tree):
        return type(tree)(**mapped(function, vars(tree)))
    return function(tree) if isinstance(tree, Tensor) else tree


def _is_record(tree: Any) -> bool:
    is_dataclass = dataclasses.is_dataclass(tree) and not isinstance(tree, type)
    return is_dataclass or isinstance(tree, types.SimpleNamespace)
