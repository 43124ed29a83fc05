"""What code reads besides its arguments.

Globals, class attributes, and things that change by themselves.
"""

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
"""Packages whose functions give the same every time."""
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


@no_type_check
class Reads:
    """What the code of a class or a function reads: values, looked up anew every time.

    Args:
        steady: Pairs of a dict, or an object, and a name in it.
        volatile: Whether the code reads something that changes by itself, such as a clock.
        versions: Whether it asks how often a tensor was changed, as caches of derived values do.
    """

    def __init__(self, steady: list[tuple[Any, str]], volatile: bool, versions: bool) -> None:
        self.steady, self.volatile, self.versions = steady, volatile, versions

    def values(self) -> list[Any]:
        """What would be read now."""
        found: list[Any] = []
        for holder, name in self.steady:
            value = holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
            found.append(
                id(value)
                if isinstance(value, types.FunctionType | type | types.ModuleType)
                else value
            )
        return found


@functools.lru_cache(maxsize=5_000)
def reads_of(code: Any) -> Reads:
    """Find out, once, what a class of modules or a function reads."""
    found = _Reader()
    if isinstance(code, type):
        todo, seen = ["forward", "__call__", "__getattr__"], set()
        while todo:
            name = todo.pop()
            holder = next((kind for kind in code.__mro__ if name in vars(kind)), None)
            if name in seen or holder is None or holder is nn.Module or _package(holder) in _STEADY:
                continue
            seen.add(name)
            if _is_data(vars(holder)[name]):
                found.steady[id(code), name] = (code, name)
            for function in _functions(vars(holder)[name]):
                found.read(function)
            todo += found.names - seen
    else:
        found.read(code)
    versions = "_version" in found.names
    if len(found.steady) > MOST_READS:  # a framework of its own
        return Reads([], True, versions)
    return Reads(list(found.steady.values()), found.volatile, versions)


MOST_READS = 30
"""As many globals and class attributes are followed."""


@no_type_check
class _Reader:
    def __init__(self) -> None:
        self.steady: dict[tuple[int, str], tuple[Any, str]] = {}
        self.names: set[str] = set()
        self.volatile = False
        self._read: set[int] = set()

    def read(self, function: Callable[..., Any]) -> None:
        code, scope = getattr(function, "__code__", None), getattr(function, "__globals__", None)
        if code is None or scope is None or id(code) in self._read or len(self._read) > 300:
            return
        self._read.add(id(code))
        for cell in getattr(function, "__closure__", None) or ():
            value = getattr(cell, "cell_contents", None)
            if isinstance(value, types.FunctionType):
                self.read(value)
            elif not isinstance(value, type | nn.Module):
                self.steady[id(cell), "cell_contents"] = (cell, "cell_contents")
        names, attributes = _names(code)
        self.names |= attributes
        for name in names:
            if name in scope:
                self._global(scope, name, scope[name], attributes)

    def _global(self, scope: dict[str, Any], name: str, value: Any, names: set[str]) -> None:
        package = _package(value)
        if package == "numpy" and (
            "random" in names or "random" in str(getattr(value, "__name__", type(value)))
        ):
            self.volatile = True
        elif isinstance(value, types.ModuleType):
            if package in _MOVING:
                self.volatile = True
            elif package not in _STEADY:
                for its in names & vars(value).keys():
                    self._global(vars(value), its, vars(value)[its], names)
        elif isinstance(value, types.FunctionType):
            self.steady[id(scope), name] = (scope, name)
            if package not in _STEADY:
                self.read(value)
        elif isinstance(value, type):
            if package in _MOVING:
                self.volatile = True
            elif package not in _STEADY and not issubclass(value, nn.Module):
                for its in names & vars(value).keys():
                    if _is_data(vars(value)[its]):
                        self.steady[id(value), its] = (value, its)
                    for function in _functions(vars(value)[its]):
                        self.read(function)
        elif isinstance(value, types.BuiltinFunctionType | types.MethodType):
            self.volatile = self.volatile or package in _MOVING
        elif package not in _STEADY or isinstance(
            value, list | dict | set | tuple | int | float | str | bool
        ):
            self.steady[id(scope), name] = (scope, name)


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
    """Names of globals that code looks up, and of attributes."""
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
