"""Nested inputs and outputs: tuples, lists, dicts, dataclasses and plain objects, by their own rules and not torch's.

In:   a tree of tensors and other values.
Out:  its leaves, its structure, or the same tree with other tensors.
"""

import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def walk(tree: Any) -> Iterator[Any]:
    """Every leaf of nested tuples, lists, dicts, dataclasses and plain objects."""
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
    """Types and keys of everything around the leaves.

    A tensor or not is all that is said of a leaf.
    """
    if isinstance(tree, list | tuple):
        kind = "tuple" if isinstance(tree, torch.Size) else type(tree).__name__
        return [kind, *(structure(part) for part in tree)]
    if isinstance(tree, dict):
        return [type(tree).__name__, {key: structure(part) for key, part in tree.items()}]
    if _is_record(tree):
        return [type(tree).__name__, structure(vars(tree))]
    return "tensor" if isinstance(tree, Tensor) else "value"


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same tree with every tensor replaced."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[mapped(function, part) for part in tree])
    if isinstance(tree, list | tuple):
        return type(tree)([mapped(function, part) for part in tree])
    if isinstance(tree, dict):
        return {key: mapped(function, part) for key, part in tree.items()}
    if _is_record(tree):
        return type(tree)(**{key: mapped(function, part) for key, part in vars(tree).items()})
    return function(tree) if isinstance(tree, Tensor) else tree


def _is_record(tree: Any) -> bool:
    is_dataclass = dataclasses.is_dataclass(tree) and not isinstance(tree, type)
    return is_dataclass or isinstance(tree, types.SimpleNamespace)
