"""weightloom: hypernetworks in meta-learning, for PyTorch.

A hypernetwork reads a condition and generates parameters for a base network, one set per task, many
tasks in one pass. The names that `__init__.pyi` lists are loaded when they are first used, so that
importing the package, and its command, costs nothing.
"""

import functools
import importlib
import pathlib
from typing import Any


def __getattr__(name: str) -> Any:
    """Load a public name from its room, the first time it is asked for."""
    if name == "__all__":
        return list(_public_names())
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("weightloom")
    room = None if name.startswith("_") else _public_names().get(name)
    if room is None:
        raise AttributeError(f"module 'weightloom' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"weightloom.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_public_names())


@functools.cache
def _public_names() -> dict[str, str]:
    """Rooms by public name, as the stub lists them.

    One by one, or all names of a package by ``import *``.
    """
    package = pathlib.Path(__file__).parent
    rooms: dict[str, str] = {}
    for room, name in _imports(package / "__init__.pyi"):
        names = (
            [name]
            if name != "*"
            else [name for _, name in _imports(package / room / "__init__.py")]
        )
        rooms.update(dict.fromkeys(names, room))
    return rooms


def _imports(file: pathlib.Path) -> list[tuple[str, str]]:
    """Room and name of each line ``from weightloom.ROOM import NAME …``."""
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return [
        (words[1].removeprefix("weightloom."), words[3]) for words in lines if words[:1] == ["from"]
    ]
