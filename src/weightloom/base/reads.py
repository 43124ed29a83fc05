"""What code reads besides its arguments: globals, class attributes, and things that change by themselves."""

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import nn

_STEADY = {
    *("torch", "math", "cmath", "numpy", "functools", "itertools", "operator", "typing", "copy", "collections"),
    *("warnings", "einops", "jaxtyping", "builtins", "dataclasses", "enum", "abc", "weightloom", "logging", "inspect"),
}
"""Packages whose functions give the same every time."""
_MOVING = {"random", "time", "os", "datetime", "secrets", "uuid", "sys", "threading", "contextvars", "gc"}


class Reads:
    """What the code of a class or a function reads: values, looked up anew every time.

    Args:
        steady: Pairs of a dict, or an object, and a name in it.
        volatile: Whether the code reads something that changes by itself, such as a clock.
    """

    def __init__(self, steady: list[tuple[Any, str]], volatile: bool) -> None:
        self.steady, self.volatile = steady, volatile

    def values(self) -> list[Any]:
        """What would be read now."""
        found: list[Any] = []
        for holder, name in self.steady:
            value = holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
            found.append(id(value) if isinstance(value, types.FunctionType | type | types.ModuleType) else value)
        return found


@functools.lru_cache(maxsize=5_000)
def reads_of(code: Any) -> Reads:
    """Find out, once, what a class of modules or a function reads."""
    steady: dict[tuple[int, str], tuple[Any, str]] = {}
    found = _Reader(steady)
    if isinstance(code, type):
        for kind in code.__mro__:
            if kind is nn.Module or kind is object or kind.__module__.startswith("torch."):
                continue
            for value in vars(kind).values():
                for function in _functions(value):
                    found.read(function)
        for name in found.names:
            holder = next((kind for kind in code.__mro__ if name in vars(kind)), None)
            if holder is not None and not holder.__module__.startswith("torch.") and _is_data(vars(holder)[name]):
                steady[id(holder), name] = (code, name)
    else:
        found.read(code)
    return Reads(list(steady.values()), found.volatile)


class _Reader:
    def __init__(self, steady: dict[tuple[int, str], tuple[Any, str]]) -> None:
        self.steady = steady
        self.names: set[str] = set()
        self.volatile = False
        self._read: set[int] = set()

    def read(self, function: Callable[..., Any]) -> None:
        code, scope = getattr(function, "__code__", None), getattr(function, "__globals__", None)
        if code is None or scope is None or id(code) in self._read or len(self._read) > 300:
            return
        self._read.add(id(code))
        names = _names(code)
        self.names |= names
        for name in names:
            if name in scope:
                self._global(scope, name, scope[name], names)

    def _global(self, scope: dict[str, Any], name: str, value: Any, names: set[str]) -> None:
        package = _package(value)
        if isinstance(value, types.ModuleType):
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
        elif package not in _STEADY or isinstance(value, list | dict | set | tuple | int | float | str | bool):
            self.steady[id(scope), name] = (scope, name)


def _package(value: Any) -> str:
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return str(name or type(value).__module__).partition(".")[0].lstrip("_")


def _names(code: types.CodeType) -> set[str]:
    found = set(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found |= _names(inner)
    return found


def _functions(value: Any) -> list[Any]:
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, property):
        return [f for f in (value.fget, value.fset) if f is not None]
    if isinstance(value, functools.cached_property):
        return [value.func]
    value = getattr(value, "__wrapped__", value)
    return [value] if isinstance(value, types.FunctionType) else []


def _is_data(value: Any) -> bool:
    return not callable(value) and not isinstance(value, property | staticmethod | classmethod | types.MemberDescriptorType)
