"""Values that code reads besides its arguments: globals, class attributes, clocks and the like."""

import dis
import functools
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from weightloom.replica.hot import no_type_check

_STEADY = {
    *(
        "torch",
        "math",
        "cmath",
        "numpy",
        "functools",
        "itertools",
        "operator",
        "typing",
        "copy",
        "collections",
    ),
    *(
        "warnings",
        "einops",
        "jaxtyping",
        "builtins",
        "dataclasses",
        "enum",
        "abc",
        "weightloom",
        "logging",
        "inspect",
    ),
    "transformers",
}
"""Packages whose functions always return the same for the same arguments."""
_MOVING = {
    "random",
    "time",
    "os",
    "datetime",
    "secrets",
    "uuid",
    "sys",
    "threading",
    "contextvars",
    "gc",
}
"""Packages whose functions return values that change by themselves."""


@no_type_check
class Reads:
    """Globals and class attributes that the code of a class or a function reads.

    Args:
        steady: Globals and class attributes: pairs of a dict, or an object, and a name in it.
        volatile: True if the code reads values that change by themselves, such as a clock.
        versions: True if it reads ``Tensor._version``, as caches of derived values do.
    """

    def __init__(self, steady: list[tuple[Any, str]], volatile: bool, versions: bool) -> None:
        self.steady, self.volatile, self.versions = steady, volatile, versions

    def values(self) -> list[Any]:
        """Current value of each global and attribute, in the order of ``steady``.

        Functions, classes and modules are given by their id, names that no longer exist by None.
        """
        found: list[Any] = []
        for holder, name in self.steady:
            value = holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
            found.append(
                id(value)
                if isinstance(value, types.FunctionType | type | types.ModuleType)
                else value
            )
        return found


MOST_READS = 30
"""Maximum of globals and class attributes that are followed; code with more counts as volatile."""
_MOST_FUNCTIONS = 300
"""Maximum of functions that are read behind one class or function."""


@functools.lru_cache(maxsize=5_000)
def reads_of(code: Any) -> Reads:
    """Find the reads of a class of modules or a function; cached.

    Args:
        code: A class, whose `forward` and everything that it calls on itself are read; or a
            function.
    """
    found = _Reader()
    if isinstance(code, type):
        found.read_class(code)
    else:
        found.read(code)
    versions = "_version" in found.names
    if len(found.steady) > MOST_READS:
        return Reads([], True, versions)
    return Reads(list(found.steady.values()), found.volatile, versions)


@no_type_check
class _Reader:
    """Collects the reads of functions, and of the functions that these look up."""

    def __init__(self) -> None:
        self.steady: dict[tuple[int, str], tuple[Any, str]] = {}
        self.names: set[str] = set()
        """Attributes that the code looks up, on any object."""
        self.volatile = False
        self._read: set[int] = set()

    def read_class(self, code: type) -> None:
        """Read `forward`, and the attributes of the class that the code looks up by any name."""
        todo, seen = ["forward", "__call__", "__getattr__"], set()
        while todo:
            name = todo.pop()
            holder = next((kind for kind in code.__mro__ if name in vars(kind)), None)
            if name in seen or _is_known(holder):
                continue
            seen.add(name)
            if _is_data(vars(holder)[name]):
                self.steady[id(code), name] = (code, name)
            for function in _functions(vars(holder)[name]):
                self.read(function)
            todo += self.names - seen

    def read(self, function: Callable[..., Any]) -> None:
        code, scope = getattr(function, "__code__", None), getattr(function, "__globals__", None)
        if code is None or scope is None:
            return
        if id(code) in self._read or len(self._read) > _MOST_FUNCTIONS:
            return
        self._read.add(id(code))
        for cell in getattr(function, "__closure__", None) or ():
            self._cell(cell)
        names, attributes = _names(code)
        self.names |= attributes
        for name in names:
            if name in scope:
                self._global(scope, name, scope[name], attributes)

    def _cell(self, cell: Any) -> None:
        value = getattr(cell, "cell_contents", None)
        if isinstance(value, types.FunctionType):
            self.read(value)
        elif not isinstance(value, type | nn.Module):
            self.steady[id(cell), "cell_contents"] = (cell, "cell_contents")

    def _global(self, scope: dict[str, Any], name: str, value: Any, names: set[str]) -> None:
        package = _package(value)
        if _is_random(value, package, names):
            self.volatile = True
        elif isinstance(value, types.ModuleType):
            self._module(value, package, names)
        elif isinstance(value, types.FunctionType):
            self.steady[id(scope), name] = (scope, name)
            if package not in _STEADY:
                self.read(value)
        elif isinstance(value, type):
            self._class(value, package, names)
        elif isinstance(value, types.BuiltinFunctionType | types.MethodType):
            self.volatile = self.volatile or package in _MOVING
        elif package not in _STEADY or isinstance(value, _VALUES):
            self.steady[id(scope), name] = (scope, name)

    def _module(self, module: types.ModuleType, package: str, names: set[str]) -> None:
        if package in _MOVING:
            self.volatile = True
        elif package not in _STEADY:
            for name in names & vars(module).keys():
                self._global(vars(module), name, vars(module)[name], names)

    def _class(self, kind: type, package: str, names: set[str]) -> None:
        if package in _MOVING:
            self.volatile = True
        elif package not in _STEADY and not issubclass(kind, nn.Module):
            for name in names & vars(kind).keys():
                if _is_data(vars(kind)[name]):
                    self.steady[id(kind), name] = (kind, name)
                for function in _functions(vars(kind)[name]):
                    self.read(function)


_VALUES = (list, dict, set, tuple, int, float, str, bool)


@no_type_check
def _is_known(holder: type | None) -> bool:
    """True for a class whose code needs no reading: none, `nn.Module`, or of a steady package."""
    return holder is None or holder is nn.Module or _package(holder) in _STEADY


@no_type_check
def _is_random(value: Any, package: str, names: set[str]) -> bool:
    """True for numpy if the code looks up ``random``, and for any part of ``numpy.random``."""
    if package != "numpy":
        return False
    return "random" in names or "random" in str(getattr(value, "__name__", type(value)))


@no_type_check
def _package(value: Any) -> str:
    name = (
        value.__name__
        if isinstance(value, types.ModuleType)
        else getattr(value, "__module__", None)
    )
    return str(name or type(value).__module__).partition(".")[0].lstrip("_")


@no_type_check
def _names(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Names of the globals and of the attributes that code looks up, nested functions included."""
    scope, attributes = set(), set()
    for step in dis.get_instructions(code):
        if "GLOBAL" in step.opname or step.opname in ("LOAD_NAME", "STORE_NAME"):
            scope.add(step.argval)
        elif "ATTR" in step.opname or "METHOD" in step.opname:
            attributes.add(step.argval)
        elif isinstance(step.argval, types.CodeType):
            its = _names(step.argval)
            scope |= its[0]
            attributes |= its[1]
    return scope, attributes


@no_type_check
def _functions(value: Any) -> list[Any]:
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, property):
        return [f for f in (value.fget, value.fset) if f is not None]
    if isinstance(value, functools.cached_property):
        return [value.func]
    value = getattr(value, "__wrapped__", value)
    return [value] if isinstance(value, types.FunctionType) else []


@no_type_check
def _is_data(value: Any) -> bool:
    return not callable(value) and not isinstance(
        value, property | staticmethod | classmethod | types.MemberDescriptorType
    )
