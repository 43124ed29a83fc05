"""Arguments of a call: tensors with a tasks axis, and tensors that all tasks share.

In:   positional and named arguments, trees of any kind.
Out:  the tensors with a tasks axis, and a function from one task's part of them to arguments.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from weightloom.base.target import Target
from weightloom.errors import ConfigError
from weightloom.replica.hot import no_type_check
from weightloom.replica.tree import Leaf, OpenedCall, Shared, is_plain, open_call


class Taken(NamedTuple):
    """Arguments of a call, with the tensors taken out."""

    rows: list[Tensor]
    """Tensors with a tasks axis."""
    build: Callable[[Any], tuple[Any, Any]]
    """Rebuilds positional and named arguments from a replacement for each of ``rows``."""
    key: Any
    """Structure and constants of the arguments; hashable."""
    paths: list[str] | None = None
    """Path of each tensor in ``rows``, for messages; None if all are plain positional tensors."""
    common: Sequence[Tensor] = ()
    """Tensors that all tasks share."""


def take(
    target: Target,
    shared: frozenset[str | int] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Taken:
    """Find the tensors in the arguments of a call.

    Args:
        target: The base that is called.
        shared: Arguments that all tasks share, by name or position; None if the caller did not say.
        args: Positional arguments.
        kwargs: Named arguments.

    Raises:
        ConfigError: If ``shared`` is None and a tensor outside of `Shared` was passed by name, or
            an argument cannot be opened.
    """
    if not kwargs and not shared and all(map(is_plain, args)):
        return Taken(list(args), _of_tensors, len(args))
    return _taken_apart(target, shared, args, kwargs)


def _taken_apart(
    target: Target,
    stated: frozenset[str | int] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Taken:
    opened = open_call(*_marked(target, stated, args, kwargs))
    if stated is None:
        _refuse_by_name(target.name, opened)
    rows = [leaf for leaf in opened.leaves if not leaf.is_shared]
    common = [leaf.tensor for leaf in opened.leaves if leaf.is_shared]
    tensors, paths = [leaf.tensor for leaf in rows], [leaf.path for leaf in rows]
    if not common:
        return Taken(tensors, opened.build, opened.key, paths)
    key = (opened.key, tuple([(tensor.shape, tensor.dtype) for tensor in common]))
    return Taken(tensors, _build_with_shared(opened), key, paths, common)


def _marked(
    target: Target,
    stated: frozenset[str | int] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[list[tuple[str, Any]], dict[str, Any]]:
    """Positional arguments with their paths, and named ones; those to share wrapped in `Shared`."""
    shared = stated or frozenset()
    names = _names(target) if shared and args else []

    def is_shared(position: int) -> bool:
        return position in shared or (position < len(names) and names[position] in shared)

    by_position = [
        (path, Shared(x) if is_shared(i) else x)
        for i, (path, x) in enumerate(zip(positions(len(args)), args, strict=True))
    ]
    return by_position, {name: Shared(x) if name in shared else x for name, x in kwargs.items()}


def _names(target: Target) -> list[str]:
    """Names of the base's positional arguments; empty if they are unknown."""
    known = target.arguments
    return known[0] if known is not None else []


def _build_with_shared(opened: OpenedCall) -> Callable[[Any], tuple[Any, Any]]:
    """The way back from tensors of one task to arguments, with the shared tensors put in."""
    all_tensors = [leaf.tensor for leaf in opened.leaves]
    at = [number for number, leaf in enumerate(opened.leaves) if not leaf.is_shared]

    @no_type_check
    def build(rows: Any) -> Any:
        tensors: list[Any] = list(all_tensors)
        for number, row in zip(at, rows, strict=True):
            tensors[number] = row
        return opened.build(tensors)

    return build


def _of_tensors(rows: Any) -> tuple[Any, dict[str, Any]]:
    return tuple(rows), {}


def positions(count: int) -> list[str]:
    """Names of positional arguments, for messages: ``x``, or ``inputs[0]``, ``inputs[1]``, ..."""
    return ["x"] if count == 1 else [f"inputs[{i}]" for i in range(count)]


def _refuse_by_name(base: str, opened: OpenedCall) -> None:
    """Raise if a tensor was passed by name without saying whether tasks share it."""
    by_name = opened.leaves[len(opened.leaves) - opened.by_name :]
    unstated = [leaf for leaf in by_name if not leaf.is_shared]
    if unstated:
        raise _unstated(base, unstated)


def _unstated(base: str, by_name: list[Leaf]) -> ConfigError:
    names = list(dict.fromkeys(leaf.path.split("'")[1] for leaf in by_name))
    listed = "{" + ", ".join(f'"{name}"' for name in names) + "}"
    one = len(names) == 1
    return ConfigError(
        f"{', '.join(f'`{name}`' for name in names)} of {base} {'holds' if one else 'hold'} "
        f"tensors and {'was' if one else 'were'} passed by name. A mask, say, may belong to each "
        f"task or to all; its size does not tell. Pass `per_task(net, shared=())` if each task "
        f"has its own, on axis 0, or `per_task(net, shared={listed})` if all tasks share "
        f"{'it' if one else 'them'}; `apply_per_task` takes `shared` too."
    )
