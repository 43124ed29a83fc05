"""A replica of a base that runs in its place, so that the base itself is never touched.

In:   a base as it was scanned, and tensors for some of its parameters and buffers.
Out:  a module that computes what the base would with these; and what `forward` assigned while it
      ran.
Knows nothing of tasks, nor of where the tensors came from.

A replica is shallow: modules are made anew, with dicts of their own, and everything else is shared
with the base by identity. Wherever the base keeps a reference to one of its own modules or replaced
tensors, in a list, a closure, a bound method or an object, the replica keeps one to its own.
"""

import functools
import types
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
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
"""Every place of each name: number of the module, whether it is a buffer there, and the name it has
there."""

Written = list[tuple[int, str, Any]]
"""What `forward` assigned: number of the module, name of the attribute, value."""


def all_names(base: nn.Module) -> dict[str, tuple[nn.Module, bool, str, Tensor]]:
    """Every name of every parameter and buffer, tied and shared ones by each.

    Module, whether a buffer, leaf, value.
    """
    return {
        f"{name}.{leaf}" if name else leaf: (module, is_buffer, leaf, value)
        for name, module in modules_by_name(base).items()
        for is_buffer, table in ((False, module._parameters), (True, module._buffers))
        for leaf, value in table.items()
        if value is not None
    }


def named(scan: Scan) -> dict[str, tuple[nn.Module, bool, str, Tensor]]:
    """`all_names` of a base as it was scanned."""
    if scan.names is None:
        scan.names = all_names(scan.base)
    return scan.names


def places_of(scan: Scan, names: Iterable[str]) -> Places:
    """Find every place of each name: a tied parameter has several, a shared layer has one."""
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
    """One replica of a base.

    Args:
        scan: The base.
        places: Where the tensors belong.
        tensors: What stands there, by name.
        state: Attributes that stand in the place of the base's: by number of the module, and name.
        unhooked: Leave out hooks that users put on its modules.
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
        self.modules = modules = [
            m if is_script(m) else _twin(m, kind, slots) for m, kind, slots in scan.kinds
        ]
        for number, name, child in scan.children:
            modules[number].__dict__["_modules"][name] = modules[child]
        replaced: dict[int, Any] = {}
        for name, its in places:
            value = tensors[name]
            for number, is_buffer, leaf in its:
                held: Any = modules[number].__dict__["_buffers" if is_buffer else "_parameters"]
                replaced[id(held[leaf])] = value
                held[leaf] = value
        if scan.kept:
            rebinder = _Rebinder(scan, modules, replaced)
            for number, name in scan.kept:
                held = modules[number].__dict__
                if name in HOOKS:
                    held[name] = type(held[name])(
                        (key, rebinder.rebind(hook)) for key, hook in held[name].items()
                    )
                else:
                    held[name] = rebinder.rebind(held[name])
        if unhooked and scan.hooked:
            for module in modules:
                module.__dict__.update({name: type(module.__dict__[name])() for name in HOOKS})
        self._is_recurrent = any(isinstance(module, nn.RNNBase) for module in scan.modules)
        for module in modules if self._is_recurrent else ():
            if isinstance(module, nn.RNNBase):  # these keep a list beside
                module.__dict__["_flat_weights"] = [
                    getattr(module, n, None) for n in module._flat_weights_names
                ]
        for (number, name), value in (state or {}).items():
            held = (
                modules[number]._buffers
                if name in modules[number]._buffers
                else modules[number].__dict__
            )
            held[name] = value
        self._before = [
            _NO_RECORD if is_script(module) else _record(module.__dict__) for module in modules
        ]
        self._references: list[int] = []

    @property
    def base(self) -> nn.Module:
        """What is called in the place of the base."""
        return self.modules[0]

    def refill(self, places: Places, tensors: Mapping[str, Tensor]) -> bool:
        """Put other tensors in their places, where nobody can notice.

        Otherwise say False and change nothing.
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
        """Remember how many references there are to each module before it is run."""
        self._references = [getrefcount(module) for module in self.modules]

    def was_written(self) -> bool:
        """Whether `forward` assigned anything."""
        with torch._C.DisableTorchFunction():
            try:
                for a, b, c, d, e, f, g, h in self._before:
                    if (
                        a != b or c != d or e != f or g != h
                    ):  # identity first, so that nothing is compared in vain
                        return True
            except (
                RuntimeError,
                ValueError,
                TypeError,
            ):  # of tensors, which are compared only where one was replaced
                return True
        return False

    def written(self) -> Written:
        """What `forward` assigned.

        Raises:
            BatchingError: If it made or replaced layers or parameters.
        """
        if not self.was_written():
            return []
        found: Written = []
        for number, (module, record) in enumerate(zip(self.modules, self._before, strict=True)):
            (
                held,
                before,
                parameters,
                its_parameters,
                buffers,
                its_buffers,
                children,
                its_children,
            ) = record
            if _same(record):
                continue
            for what, now, old in (
                ("parameter", parameters, its_parameters),
                ("layer", children, its_children),
            ):
                for name in now.keys() | old.keys():
                    if now.get(name) is not old.get(name):
                        raise BatchingError(
                            f"`forward` of {type(module).__name__} makes or replaces its {what} "
                            f"{name!r}. Generated "
                            "parameters belong to layers that are there before the call. Run the "
                            "base once by itself, then build the hypernetwork; or make the layer "
                            "in `__init__`."
                        )
            found += [
                (number, n, v) for n, v in buffers.items() if its_buffers.get(n, module) is not v
            ]
            for name, value in held.items():
                if before.get(name, module) is not value and name not in _DERIVED:
                    found.append((number, name, value))
            for name in before.keys() - held.keys():
                raise BatchingError(
                    f"`forward` of {type(module).__name__} deletes its attribute {name!r}. What "
                    "one run takes away the next would lack. Set it to None instead."
                )
        return found


_DERIVED = {"_flat_weights", "_flat_weight_refs"}


@no_type_check
def _twin(module: nn.Module, kind: Any, slots: tuple[str, ...]) -> nn.Module:
    twin: nn.Module = object.__new__(kind)
    held = module.__dict__.copy()
    held["_parameters"] = held["_parameters"].copy()
    held["_buffers"] = held["_buffers"].copy()
    held["_modules"] = held["_modules"].copy()
    if (
        held.get("_compiled_call_impl") is not None
    ):  # it would run the module that it was compiled for
        held["_compiled_call_impl"] = None
    object.__setattr__(twin, "__dict__", held)
    for name in slots:
        if hasattr(module, name):
            object.__setattr__(twin, name, getattr(module, name))
    return twin


_NO_RECORD: tuple[dict[str, Any], ...] = ({},) * 8


@no_type_check
def _same(record: tuple[dict[str, Any], ...]) -> bool:
    """Whether a module holds what it held."""
    with torch._C.DisableTorchFunction():
        try:
            a, b, c, d, e, f, g, h = record
            return not (a != b or c != d or e != f or g != h)
        except (RuntimeError, ValueError, TypeError):
            return False


@no_type_check
def _record(held: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """What a module holds, each beside a copy."""
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
    """Copies whatever lies between an attribute and a reference, with the replica's own in the reference's place."""

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
        kind, rebind = type(value), self.rebind
        if isinstance(value, weakref.ref):
            target = value()
            made: Any = value if target is None else weakref.ref(rebind(target))
        elif isinstance(value, types.MethodType):
            made = types.MethodType(rebind(value.__func__), rebind(value.__self__))
        elif isinstance(value, functools.partial):
            its = {name: rebind(item) for name, item in value.keywords.items()}
            made = kind(rebind(value.func), *map(rebind, value.args), **its)
        elif isinstance(value, types.CellType):
            made = self.made[me] = types.CellType()
            made.cell_contents = rebind(value.cell_contents)
        elif isinstance(value, types.FunctionType):
            return self._function(value, me)
        elif isinstance(value, tuple):
            items = [rebind(item) for item in value]
            made = kind._make(items) if hasattr(kind, "_make") else tuple.__new__(kind, items)
        elif isinstance(value, frozenset):
            made = kind(map(rebind, value))
        else:
            return self._open(value, me)
        self.made[me] = made
        return made

    def _function(self, value: types.FunctionType, me: int) -> Any:
        cells = tuple([types.CellType() for _ in value.__closure__ or ()]) or None
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
        self.made[me] = made
        for ours, its in zip(cells or (), value.__closure__ or (), strict=True):
            try:
                ours.cell_contents = self.rebind(its.cell_contents)
            except ValueError:
                continue
        made.__defaults__ = (
            tuple(map(self.rebind, value.__defaults__)) if value.__defaults__ else None
        )
        if value.__kwdefaults__:
            made.__kwdefaults__ = {
                name: self.rebind(item) for name, item in value.__kwdefaults__.items()
            }
        made.__dict__.update(value.__dict__)
        made.__qualname__, made.__module__ = value.__qualname__, value.__module__
        return made

    def _open(self, value: Any, me: int) -> Any:
        """Copy a list, a dict, a set or any object with attributes."""
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
