"""Arguments of a call, opened: tensors that each task has its own of, and those that all tasks share.

In:   what was passed by position and by name, trees of any kind.
Out:  the tensors with a tasks axis, and the way back from one task's part of them to arguments.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from weightloom.base.target import Target
from weightloom.errors import ConfigError
from weightloom.replica.hot import no_type_check
from weightloom.replica.tree import Leaf, Shared, is_plain, open_call


class Taken(NamedTuple):
    """Arguments of a call, sorted by whose they are."""

    rows: list[Tensor]
    build: Callable[[Any], tuple[Any, Any]]
    key: Any
    paths: list[str] | None = None
    common: Sequence[Tensor] = ()


def take(
    target: Target,
    shared: frozenset[str | int] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Taken:
    """Find the tensors of a call.

    Args:
        target: What is called.
        shared: Which arguments all tasks share, by name or position; None where it was not said.
        args: What was passed by position.
        kwargs: What was passed by name.

    Raises:
        ConfigError: If a tensor was passed by name and it was not said what is shared.
    """
    if not kwargs and not shared and all(map(is_plain, args)):
        return Taken(list(args), _of_tensors, len(args))
    return _taken_apart(target, shared, args, kwargs)


def _taken_apart(
    target: Target,
    its_shared: frozenset[str | int] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Taken:
    shared = its_shared or frozenset()
    known = target.arguments if shared and args else None
    names = known[0] if known is not None else []
    given = [
        (path, Shared(x) if i in shared or (i < len(names) and names[i] in shared) else x)
        for i, (path, x) in enumerate(zip(positions(len(args)), args, strict=True))
    ]
    opened = open_call(
        given, {name: Shared(x) if name in shared else x for name, x in kwargs.items()}
    )
    leaves = opened.leaves
    if its_shared is None:
        by_name = [leaf for leaf in leaves[len(leaves) - opened.by_name :] if not leaf.is_shared]
        if by_name:
            raise _unsaid(target.name, by_name)
    at = [number for number, leaf in enumerate(leaves) if not leaf.is_shared]
    paths = [leaves[number].path for number in at]
    if len(at) == len(leaves):
        return Taken([leaf.tensor for leaf in leaves], opened.build, opened.key, paths)
    all_tensors = [leaf.tensor for leaf in leaves]

    @no_type_check
    def build(rows: Any) -> Any:
        tensors: list[Any] = list(all_tensors)
        for number, row in zip(at, rows, strict=True):
            tensors[number] = row
        return opened.build(tensors)

    key = (
        opened.key,
        tuple([(leaf.tensor.shape, leaf.tensor.dtype) for leaf in leaves if leaf.is_shared]),
    )
    common = [leaf.tensor for leaf in leaves if leaf.is_shared]
    return Taken([leaves[number].tensor for number in at], build, key, paths, common)


def _of_tensors(rows: Any) -> tuple[Any, dict[str, Any]]:
    return tuple(rows), {}


def positions(count: int) -> list[str]:
    """Names of positional arguments, for messages."""
    return ["x"] if count == 1 else [f"inputs[{i}]" for i in range(count)]


def _unsaid(base: str, by_name: list[Leaf]) -> ConfigError:
    names = list(dict.fromkeys(leaf.path.split("'")[1] for leaf in by_name))
    listed = "{" + ", ".join(f'"{name}"' for name in names) + "}"
    one = len(names) == 1
    return ConfigError(
        f"{', '.join(f'`{name}`' for name in names)} of {base} {'holds' if one else 'hold'} "
        f"tensors and {'was' if one else 'were'} passed by name. A mask, say, may belong to each "
        f"task or to all, and sizes do not tell. Type `per_task(net, shared=())` where each task "
        f"has its own, on axis 0, or `per_task(net, shared={listed})` where all tasks share "
        f"{'it' if one else 'them'}; `apply_per_task` takes `shared` too."
    )
