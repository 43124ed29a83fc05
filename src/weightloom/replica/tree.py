"""Open arguments and outputs of a base into their tensors, and rebuild them with other tensors."""

import enum
import functools
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent
from torch.utils._pytree import SUPPORTED_NODES

from weightloom.errors import BatchingError, ConfigError
from weightloom.replica.hot import no_type_check

Build = Callable[[Sequence[Any]], Any]
"""Rebuilds a tree with the given values in the places of its tensors."""


class Shared:
    """Wrapper for an argument that all tasks share, whose tensors have no tasks axis.

    Args:
        value: A tensor, or any structure that holds tensors.

    Example:
        >>> from weightloom import per_task
        >>> run = per_task(torch.nn.Linear(3, 2))
        >>> run({"bias": torch.zeros(5, 2)}, Shared(torch.randn(7, 3))).shape
        torch.Size([5, 7, 2])
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Shared({self.value!r})"


class Leaf(NamedTuple):
    """One tensor of a tree."""

    tensor: Tensor
    path: str
    """Expression for the place of the tensor, such as ``x[0].mask``."""
    is_shared: bool = False
    """True for a tensor inside of `Shared`."""


class Opened(NamedTuple):
    """A tree opened into its tensors."""

    leaves: list[Leaf]
    build: Build
    key: Any
    """Hashable key, equal for trees of the same structure with equal constants."""


@no_type_check
def open_tree(value: Any, path: str = "", shared: bool = False) -> Opened:
    """Open an argument or an output of a base into its tensors.

    Opened are tuples, lists, deques, dicts, named tuples, dataclasses, classes registered with
    torch's pytree, distributions, and any object with tensors among its attributes. An object
    without tensors is a constant.

    Args:
        value: Any object.
        path: Name of the value, for messages.
        shared: True if all tasks share the value.

    Raises:
        ConfigError: If the value holds an object that may hold tensors and cannot be opened.
    """
    leaves: list[Leaf] = []
    build, key = _Opener(leaves).open(value, path, shared)
    return Opened(leaves, build, key)


class OpenedCall(NamedTuple):
    """Arguments of a call, opened into their tensors."""

    leaves: list[Leaf]
    build: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    key: Any
    by_name: int
    """Number of leaves, at the end of the list, that were passed by name."""


def open_call(args: Sequence[tuple[str, Any]], kwargs: Mapping[str, Any]) -> OpenedCall:
    """Open the arguments of a call into their tensors.

    Args:
        args: Positional arguments, each after its name for messages.
        kwargs: Named arguments.

    Raises:
        ConfigError: If an argument holds an object that may hold tensors and cannot be opened.
    """
    leaves: list[Leaf] = []
    opener = _Opener(leaves)
    by_position = [opener.open(value, path, False) for path, value in args]
    positional = len(leaves)
    by_name = {
        name: opener.open(value, f"kwargs[{name!r}]", False) for name, value in kwargs.items()
    }

    @no_type_check
    def build(tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple([make(tensors) for make, _ in by_position]), {
            n: make(tensors) for n, (make, _) in by_name.items()
        }

    key = (
        tuple([key for _, key in by_position]),
        tuple([(name, key) for name, (_, key) in by_name.items()]),
    )
    return OpenedCall(leaves, build, key, len(leaves) - positional)


def is_plain(value: Any) -> bool:
    """True for a strided tensor of no subclass, which needs no opening."""
    return type(value) is Tensor and value.layout is torch.strided and not value.is_nested


PLAIN = {
    *(type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, range),
}
"""Classes of values that hold no tensor, are immutable, and can be hashed."""
_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
    types.ModuleType,
    type,
)
_ONCE = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)


@no_type_check
class _Opener:
    def __init__(self, leaves: list[Leaf]) -> None:
        self.leaves = leaves
        self.inside: list[int] = []

    def open(self, value: Any, path: str, shared: bool) -> tuple[Build, Any]:
        kind = type(value)
        if isinstance(value, Tensor):
            return self._tensor(value, path, shared)
        if kind in PLAIN:
            return lambda _: value, (kind, value)
        if kind is Shared:
            return self.open(value.value, path, True)
        if isinstance(value, nn.Module | enum.Enum | weakref.ref) or _is_array_scalar(value):
            return lambda _: value, _constant(value)
        if id(value) in self.inside:
            raise _refusal(path, value, "it holds itself")
        self.inside.append(id(value))
        try:
            return self._several(value, path, shared)
        finally:
            self.inside.pop()

    def _tensor(self, value: Tensor, path: str, shared: bool) -> tuple[Build, Any]:
        if value.layout is not torch.strided or value.is_nested or value.is_quantized:
            raise _refusal(path, value, "it is no plain tensor, and has no tasks axis to slice")
        number = len(self.leaves)
        self.leaves.append(Leaf(value, path, shared))
        return lambda tensors: tensors[number], Tensor

    def _several(self, value: Any, path: str, shared: bool) -> tuple[Build, Any]:
        kind = type(value)
        if kind in (tuple, list, deque):
            return self._sequence(value, path, shared)
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return self._named_tuple(value, path, shared)
        if kind in (set, frozenset):
            return self._set(value, path)
        if kind in (dict, OrderedDict, defaultdict):
            return self._dict(value, path, shared)
        if isinstance(value, Independent):
            return self._independent(value, path, shared)
        if isinstance(value, Distribution):
            return self._distribution(value, path, shared)
        if kind in SUPPORTED_NODES:
            return self._node(value, path, shared)
        return self._object(value, path, shared)

    def _sequence(self, value: Any, path: str, shared: bool) -> tuple[Build, Any]:
        kind = type(value)
        builds, keys = self._all([(f"{path}[{i}]", item) for i, item in enumerate(value)], shared)
        if kind is not deque:
            return lambda tensors: kind(b(tensors) for b in builds), (kind, keys)
        size = value.maxlen
        return lambda tensors: deque([b(tensors) for b in builds], size), (kind, size, keys)

    def _named_tuple(self, value: Any, path: str, shared: bool) -> tuple[Build, Any]:
        kind = type(value)
        if kind is nn.utils.rnn.PackedSequence:
            raise _refusal(path, value, "its rows are sorted by length, and have no tasks axis")
        builds, keys = self._all(
            [(f"{path}.{name}", getattr(value, name)) for name in kind._fields], shared
        )
        return lambda tensors: kind._make(b(tensors) for b in builds), (kind, keys)

    def _independent(self, value: Any, path: str, shared: bool) -> tuple[Build, Any]:
        kind, axes = type(value), value.reinterpreted_batch_ndims
        build, key = self.open(value.base_dist, f"{path}.base_dist", shared)
        return lambda tensors: kind(build(tensors), axes, validate_args=False), (kind, axes, key)

    def _node(self, value: Any, path: str, shared: bool) -> tuple[Build, Any]:
        """Open an object whose class is registered with torch's pytree."""
        kind = type(value)
        node = SUPPORTED_NODES[kind]
        children, context = node.flatten_fn(value)
        builds, keys = self._all([(f"{path}.<{i}>", its) for i, its in enumerate(children)], shared)
        unflatten = node.unflatten_fn
        return lambda tensors: unflatten([b(tensors) for b in builds], context), (
            kind,
            repr(context),
            keys,
        )

    def _all(self, items: list[tuple[str, Any]], shared: bool) -> tuple[list[Build], Any]:
        opened = [self.open(item, path, shared) for path, item in items]
        return [build for build, _ in opened], tuple([key for _, key in opened])

    def _set(self, value: Any, path: str) -> tuple[Build, Any]:
        if any(isinstance(item, Tensor) for item in value):
            raise _refusal(path, value, "tensors in a set have no order")
        return lambda _: value, (type(value), frozenset(map(_constant, value)))

    def _dict(self, value: Any, path: str, shared: bool) -> tuple[Build, Any]:
        if any(isinstance(name, Tensor) for name in value):
            raise _refusal(path, value, "tensors are keys in it")
        builds, keys = self._all(
            [(f"{path}[{name!r}]", item) for name, item in value.items()], shared
        )
        kind, names = type(value), list(value)

        @no_type_check
        def build(tensors: Sequence[Any]) -> Any:
            items = [(name, b(tensors)) for name, b in zip(names, builds, strict=True)]
            return defaultdict(value.default_factory, items) if kind is defaultdict else kind(items)

        return build, (kind, tuple(map(_constant, names)), keys)

    def _distribution(self, value: Distribution, path: str, shared: bool) -> tuple[Build, Any]:
        kind: Any = type(value)
        names = [
            name
            for name in getattr(kind, "arg_constraints", {})
            if isinstance(value.__dict__.get(name), Tensor)
        ]
        names = ["logits"] if {"probs", "logits"} == set(names) else names
        if not kind.__module__.startswith("torch.distributions") or not names:
            raise _refusal(path, value, "its parameters are not known")
        builds, keys = self._all(
            [(f"{path}.{name}", value.__dict__[name]) for name in names], shared
        )
        count = getattr(value, "total_count", None)
        more = {"total_count": count} if isinstance(count, int) else {}

        @no_type_check
        def build(tensors: Sequence[Any]) -> Any:
            its = {name: b(tensors) for name, b in zip(names, builds, strict=True)}
            return kind(**its, **more, validate_args=False)

        return build, (kind, tuple(names), tuple(more.items()), keys)

    def _object(self, value: Any, path: str, shared: bool) -> tuple[Build, Any]:
        if _is_read_once(value):
            raise _refusal(path, value, "it can be read only once")
        if isinstance(value, _FUNCTIONS):
            if any(isinstance(held, Tensor) for held in _held_by(value)):
                raise _refusal(path, value, "it is a function that holds tensors")
            return lambda _: value, _constant(value)
        if type(value).__module__ == "numpy":
            raise _refusal(
                path, value, "only tensors have a tasks axis, so convert it: `torch.as_tensor(x)`"
            )
        held = attributes_of(value)
        if held is not None:
            return self._attributes(value, held, path, shared)
        if isinstance(value, Mapping | Sequence):
            raise _refusal(path, value, "it is a container of an unknown class")
        return lambda _: value, _constant(value)

    def _attributes(
        self, value: Any, held: dict[str, Any], path: str, shared: bool
    ) -> tuple[Build, Any]:
        """Open an object by its attributes; without tensors in them, it is a constant."""
        kind, before = type(value), len(self.leaves)
        builds, keys = self._all([(f"{path}.{name}", item) for name, item in held.items()], shared)
        inside = _inside(value)
        if inside is not None:
            _, more_keys = self._all([(f"{path}[{i!r}]", item) for i, item in inside], shared)
            keys = (keys, more_keys)
        if len(self.leaves) == before:
            return lambda _: value, (kind, keys)
        if inside is not None:
            raise _refusal(path, value, "it is a subclass of a container, with tensors in it")

        @no_type_check
        def build(tensors: Sequence[Any]) -> Any:
            made = blank(kind)
            for name, b in zip(held, builds, strict=True):
                object.__setattr__(made, name, b(tensors))
            return made

        return build, (kind, tuple(held), keys)


@no_type_check
def _is_read_once(value: Any) -> bool:
    """True for iterators and coroutines."""
    if isinstance(value, _ONCE):
        return True
    return hasattr(value, "__next__") and not isinstance(value, nn.Module)


@no_type_check
def attributes_of(value: Any) -> dict[str, Any] | None:
    """Attributes of an object, in its dict and its slots; None if it has neither."""
    held = dict(value.__dict__) if hasattr(value, "__dict__") else None
    for kind in type(value).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in [names] if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                held = held or {}
                held[name] = getattr(value, name)
    return held


@no_type_check
def blank(kind: Any) -> Any:
    """Make an object of a class without running its `__init__`.

    Raises:
        BatchingError: If the class cannot make one.
    """
    for make in (object.__new__, kind.__new__):
        try:
            return make(kind)
        except TypeError:
            continue
    raise BatchingError(
        f"A {kind.__name__} holds one of the base's own tensors or modules, and cannot be copied. "
        "A run needs a copy that holds the generated values. Keep them in an attribute, a list, a "
        "dict or an object of a class written in Python."
    )


@no_type_check
def behind(proxy: Any) -> Any:
    """Return the object that a weak proxy refers to."""
    return proxy.__repr__.__self__


@no_type_check
def _inside(value: Any) -> list[tuple[Any, Any]] | None:
    """Items of a container, with their keys or positions; None for any other object."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return list(enumerate(value))
    return None


@no_type_check
def _held_by(function: Any) -> list[Any]:
    """Objects that a function holds: closure cells, defaults, bound arguments, ``__self__``."""
    if isinstance(function, functools.partial):
        return [*function.args, *function.keywords.values(), *_held_by(function.func)]
    if isinstance(function, types.MethodType):
        return [function.__self__, *_held_by(function.__func__)]
    if not isinstance(function, types.FunctionType):
        return []
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


@no_type_check
def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


@no_type_check
def _is_array_scalar(value: Any) -> bool:
    return type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0


@no_type_check
def _constant(value: Any) -> Any:
    """Key of a constant: by value if it can be hashed, else by identity."""
    try:
        hash(value)
    except TypeError:
        return type(value), id(value)
    return type(value), value


def _refusal(path: str, value: Any, why: str) -> ConfigError:
    name = f"`{path}`" if path else "The output of the base"
    return ConfigError(
        f"{name} is a {type(value).__name__}, which cannot be opened: {why}. "
        "Every tensor that goes into a base or comes out of it has a tasks axis, also inside "
        "tuples, lists, dicts, dataclasses and objects. Pass or return tensors in one of these."
    )
