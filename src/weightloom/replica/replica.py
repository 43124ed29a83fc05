"""A replica of a base, which runs in its place so that the base itself is never touched.

In:   a scanned base, and tensors for some of its parameters and buffers.
Out:  a module that computes the base's output with these tensors; and the attributes that `forward`
      assigned while it ran.
Knows nothing of tasks, nor of the source of the tensors.

A replica is shallow: its modules are new, with new dicts, and everything else is shared with the
base by identity. If the base refers to one of its own modules or replaced tensors in a list, a
closure, a bound method or an object, the replica has a copy of that object which refers to the
replica's modules and tensors.
"""

import functools
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from sys import getrefcount
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.errors import BatchingError
from weightloom.params import modules_by_name
from weightloom.replica.hot import no_type_check
from weightloom.replica.modules import HOOKS, is_script
from weightloom.replica.scan import Scan
from weightloom.replica.tree import PLAIN, attributes_of, behind, blank

Places = Sequence[tuple[str, list[tuple[int, bool, str]]]]
"""Places of each name in a base: number of the module, True for a buffer, and its name there."""

Written = list[tuple[int, str, Any]]
"""Attributes that `forward` assigned: number of the module, name of the attribute, value."""


def all_names(base: nn.Module) -> dict[str, tuple[nn.Module, bool, str, Tensor]]:
    """All parameters and buffers by full name; tied and shared ones have several names.

    Returns:
        For each name: the module, True for a buffer, the name in the module, and the value.
    """
    return {
        f"{name}.{leaf}" if name else leaf: (module, is_buffer, leaf, value)
        for name, module in modules_by_name(base).items()
        for is_buffer, table in ((False, module._parameters), (True, module._buffers))
        for leaf, value in table.items()
        if value is not None
    }


def named(scan: Scan) -> dict[str, tuple[nn.Module, bool, str, Tensor]]:
    """`all_names` of a scanned base; cached in the scan."""
    if scan.names is None:
        scan.names = all_names(scan.base)
    return scan.names


def places_of(scan: Scan, names: Iterable[str]) -> Places:
    """Find all places of each name: a tied parameter has several, a shared layer has one.

    Raises:
        BatchingError: If a parameter is in a module that `torch.jit` compiled.
    """
    holders: dict[int, list[tuple[int, bool, str]]] = {}
    for number, module in enumerate(scan.modules[: scan.registered]):
        for is_buffer, table in ((False, module._parameters), (True, module._buffers)):
            for leaf, value in table.items():
                if value is not None and not is_script(module):
                    holders.setdefault(id(value), []).append((number, is_buffer, leaf))
    known = named(scan)
    for name in names:
        if id(known[name][3]) not in holders:
            raise BatchingError(
                f"{name!r} is in a module that `torch.jit` compiled. Its parameters are fixed in "
                "the compiled code. Give the hypernetwork the module as it was before "
                "`torch.jit.script`, or do not generate it."
            )
    return [(name, holders[id(known[name][3])]) for name in names]


@no_type_check
class Replica:
    """Copy of the modules of a base that holds other tensors, and shares everything else with it.

    Args:
        scan: The base.
        places: Places of the tensors in the base.
        tensors: Replacements for parameters and buffers, by name.
        state: Replacements for attributes, by number of the module and name of the attribute.
        unhooked: True to leave out the hooks of its modules, such as those that users registered.
    """

    def __init__(
        self,
        scan: Scan,
        places: Places,
        tensors: Mapping[str, Tensor],
        state: Mapping[tuple[int, str], Any] | None = None,
        unhooked: bool = False,
    ) -> None:
        self.scan = scan
        self.modules = modules = [_twin(m, kind, slots) for m, kind, slots in scan.kinds]
        for number, name, child in scan.children:
            modules[number].__dict__["_modules"][name] = modules[child]
        replaced = self._fill(places, tensors)
        if scan.kept:
            self._rebind(replaced)
        if unhooked and scan.hooked:
            self._unhook()
        self._is_recurrent = any(isinstance(module, nn.RNNBase) for module in scan.modules)
        if self._is_recurrent:
            self._flatten_weights()
        if state:
            self._set(state)
        self._before = [_record(module) for module in modules]
        self._references: list[int] = []

    def _fill(self, places: Places, tensors: Mapping[str, Tensor]) -> dict[int, Any]:
        """Put tensors in their places; return them by the ids of the values that they replace."""
        modules, replaced = self.modules, {}
        for name, its in places:
            value = tensors[name]
            for number, is_buffer, leaf in its:
                held: Any = modules[number].__dict__["_buffers" if is_buffer else "_parameters"]
                replaced[id(held[leaf])] = value
                held[leaf] = value
        return replaced

    def _rebind(self, replaced: Mapping[int, Any]) -> None:
        """Copy attributes that refer to the base's own modules or tensors, with those replaced."""
        rebinder = _Rebinder(self.scan, self.modules, replaced)
        for number, name in self.scan.kept:
            held = self.modules[number].__dict__
            if name in HOOKS:
                held[name] = type(held[name])(
                    (key, rebinder.rebind(hook)) for key, hook in held[name].items()
                )
            else:
                held[name] = rebinder.rebind(held[name])

    def _unhook(self) -> None:
        for module in self.modules:
            module.__dict__.update({name: type(module.__dict__[name])() for name in HOOKS})

    def _flatten_weights(self) -> None:
        """Rebuild the list of weights that torch's recurrent layers keep."""
        for module in self.modules:
            if isinstance(module, nn.RNNBase):
                module.__dict__["_flat_weights"] = [
                    getattr(module, n, None) for n in module._flat_weights_names
                ]

    def _set(self, state: Mapping[tuple[int, str], Any]) -> None:
        for (number, name), value in state.items():
            module = self.modules[number]
            held = module._buffers if name in module._buffers else module.__dict__
            held[name] = value

    @property
    def base(self) -> nn.Module:
        """Replica of the base module."""
        return self.modules[0]

    def refill(self, places: Places, tensors: Mapping[str, Tensor]) -> bool:
        """Replace the tensors, if no other object refers to the replica and it was not written.

        Returns:
            True if the tensors were replaced. False if the replica is unchanged, as always for a
            base with recurrent layers, or with references to its own modules or tensors.
        """
        if self.scan.kept or self._is_recurrent or self.was_written():
            return False
        if [getrefcount(module) for module in self.modules] != self._references:
            return False
        for name, its in places:
            for number, is_buffer, leaf in its:
                _, _, parameters, its_parameters, buffers, its_buffers, *_ = self._before[number]
                table, before = (
                    (buffers, its_buffers) if is_buffer else (parameters, its_parameters)
                )
                table[leaf] = before[leaf] = tensors[name]
        return True

    def count_references(self) -> None:
        """Store the number of references to each module, before the replica runs, for `refill`."""
        self._references = [getrefcount(module) for module in self.modules]

    def was_written(self) -> bool:
        """True if `forward` assigned or deleted an attribute, a buffer, a parameter or a layer."""
        with torch._C.DisableTorchFunction():
            try:
                for a, b, c, d, e, f, g, h in self._before:
                    # Dicts compare values by identity first, so unchanged tensors cost nothing.
                    if a != b or c != d or e != f or g != h:
                        return True
            except (RuntimeError, ValueError, TypeError):  # comparing a tensor with its replacement
                return True
        return False

    def written(self) -> Written:
        """Attributes and buffers that `forward` assigned, with their values.

        Raises:
            BatchingError: If `forward` made or replaced layers or parameters, or deleted
                attributes.
        """
        if not self.was_written():
            return []
        found: Written = []
        for number, (module, record) in enumerate(zip(self.modules, self._before, strict=True)):
            if _same(record):
                continue
            held, before, parameters, its_parameters, buffers, its_buffers, *layers = record
            _refuse_replaced(module, "parameter", parameters, its_parameters)
            _refuse_replaced(module, "layer", *layers)
            assigned = [*_assigned(buffers, its_buffers), *_assigned(held, before)]
            found += [(number, name, value) for name, value in assigned if name not in _DERIVED]
            for name in before.keys() - held.keys():
                raise BatchingError(
                    f"`forward` of {type(module).__name__} deletes its attribute {name!r}. The "
                    "next run would lack it. Set it to None instead."
                )
        return found


@no_type_check
def _assigned(now: dict[str, Any], before: dict[str, Any]) -> list[tuple[str, Any]]:
    """Entries of a dict that were added or replaced."""
    return [(name, value) for name, value in now.items() if before.get(name, _ABSENT) is not value]


@no_type_check
def _refuse_replaced(
    module: nn.Module, kind: str, now: dict[str, Any], before: dict[str, Any]
) -> None:
    """Raise if parameters or layers of a module were added, replaced or removed."""
    for name in now.keys() | before.keys():
        if now.get(name) is not before.get(name):
            raise BatchingError(
                f"`forward` of {type(module).__name__} makes or replaces its {kind} {name!r}. "
                "Generated parameters belong to layers that exist before the call. Run the base "
                "once by itself, then build the hypernetwork; or make the layer in `__init__`."
            )


_ABSENT = object()
_DERIVED = {"_flat_weights", "_flat_weight_refs"}


@no_type_check
def _twin(module: nn.Module, kind: Any, slots: tuple[str, ...]) -> nn.Module:
    """A new module with copies of the dicts of another; a compiled one itself."""
    if is_script(module):
        return module
    twin: nn.Module = object.__new__(kind)
    held = module.__dict__.copy()
    held["_parameters"] = held["_parameters"].copy()
    held["_buffers"] = held["_buffers"].copy()
    held["_modules"] = held["_modules"].copy()
    if held.get("_compiled_call_impl") is not None:  # it would run the original module
        held["_compiled_call_impl"] = None
    object.__setattr__(twin, "__dict__", held)
    for name in slots:
        if hasattr(module, name):
            object.__setattr__(twin, name, getattr(module, name))
    return twin


_NO_RECORD: tuple[dict[str, Any], ...] = ({},) * 8


@no_type_check
def _same(record: tuple[dict[str, Any], ...]) -> bool:
    """True if the dicts of a module equal their copies."""
    with torch._C.DisableTorchFunction():
        try:
            a, b, c, d, e, f, g, h = record
            return not (a != b or c != d or e != f or g != h)
        except (RuntimeError, ValueError, TypeError):
            return False


@no_type_check
def _record(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Dicts of a module, each followed by a copy."""
    if is_script(module):
        return _NO_RECORD
    held = module.__dict__
    parameters, buffers, children = held["_parameters"], held["_buffers"], held["_modules"]
    return (
        held,
        held.copy(),
        parameters,
        parameters.copy(),
        buffers,
        buffers.copy(),
        children,
        children.copy(),
    )


@no_type_check
class _Rebinder:
    """Copies the objects between an attribute and a reference, and replaces the reference."""

    def __init__(
        self, scan: Scan, modules: Sequence[nn.Module], replaced: Mapping[int, Any]
    ) -> None:
        self.scan, self.modules, self.replaced = scan, modules, replaced
        self.made: dict[int, Any] = {}

    def rebind(self, value: Any) -> Any:
        me = id(value)
        if type(value) in PLAIN:
            return value
        if type(value) in weakref.ProxyTypes:
            return weakref.proxy(self.rebind(behind(value)))
        if isinstance(value, nn.Module):
            number = self.scan.number_of.get(me)
            return value if number is None else self.modules[number]
        if isinstance(value, Tensor):
            return self.replaced.get(me, value)
        if me in self.made:
            return self.made[me]
        if me not in self.scan.holders:
            return value
        return self._copy(value, me)

    def _copy(self, value: Any, me: int) -> Any:
        for kinds, copier in _COPIERS:
            if isinstance(value, kinds):
                made = copier(self, value)
                break
        else:
            made = self._open(value, me)
        self.made[me] = made
        return made

    def _weak(self, value: Any) -> Any:
        target = value()
        return value if target is None else weakref.ref(self.rebind(target))

    def _method(self, value: types.MethodType) -> Any:
        return types.MethodType(self.rebind(value.__func__), self.rebind(value.__self__))

    def _partial(self, value: Any) -> Any:
        its = {name: self.rebind(item) for name, item in value.keywords.items()}
        return type(value)(self.rebind(value.func), *map(self.rebind, value.args), **its)

    def _cell(self, value: types.CellType) -> Any:
        made = self.made[id(value)] = types.CellType()  # first, as it may hold itself
        made.cell_contents = self.rebind(value.cell_contents)
        return made

    def _function(self, value: types.FunctionType) -> Any:
        cells = tuple([types.CellType() for _ in value.__closure__ or ()]) or None
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
        self.made[id(value)] = made
        self._fill_cells(cells or (), value.__closure__ or ())
        if value.__defaults__:
            made.__defaults__ = tuple(map(self.rebind, value.__defaults__))
        if value.__kwdefaults__:
            made.__kwdefaults__ = {
                name: self.rebind(item) for name, item in value.__kwdefaults__.items()
            }
        made.__dict__.update(value.__dict__)
        made.__qualname__, made.__module__ = value.__qualname__, value.__module__
        return made

    def _fill_cells(self, cells: Sequence[Any], originals: Sequence[Any]) -> None:
        for ours, its in zip(cells, originals, strict=True):
            try:
                ours.cell_contents = self.rebind(its.cell_contents)
            except ValueError:  # an empty cell
                continue

    def _tuple(self, value: Any) -> Any:
        kind, items = type(value), [self.rebind(item) for item in value]
        return kind._make(items) if hasattr(kind, "_make") else tuple.__new__(kind, items)

    def _frozenset(self, value: Any) -> Any:
        return type(value)(map(self.rebind, value))

    def _open(self, value: Any, me: int) -> Any:
        """Copy a list, a dict, a deque, a set or any object with attributes."""
        kind: Any = type(value)
        made: Any
        if isinstance(value, dict):
            made = self.made[me] = kind.__new__(kind)
            if hasattr(value, "default_factory"):
                made.default_factory = value.default_factory
            for name, item in value.items():
                dict.__setitem__(made, self.rebind(name), self.rebind(item))
        elif isinstance(value, list):
            made = self.made[me] = kind.__new__(kind)
            list.extend(made, map(self.rebind, value))
        elif isinstance(value, deque):
            made = self.made[me] = deque(map(self.rebind, value), value.maxlen)
        elif isinstance(value, set):
            made = self.made[me] = kind(map(self.rebind, value))
        else:
            made = self.made[me] = blank(kind)
        for name, item in (attributes_of(value) or {}).items():
            object.__setattr__(made, name, self.rebind(item))
        return made


_COPIERS: Sequence[tuple[type, Callable[[_Rebinder, Any], Any]]] = (
    (weakref.ref, _Rebinder._weak),
    (types.MethodType, _Rebinder._method),
    (functools.partial, _Rebinder._partial),
    (types.CellType, _Rebinder._cell),
    (types.FunctionType, _Rebinder._function),
    (tuple, _Rebinder._tuple),
    (frozenset, _Rebinder._frozenset),
)
"""Function that copies each kind of object; `_Rebinder._open` copies all others."""
