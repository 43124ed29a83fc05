"""weightloom: hypernetworks in meta-learning, for PyTorch.

A hypernetwork reads a condition and generates parameters for a base network, one set per task, for
many tasks in one pass. The names listed in `__init__.pyi` are imported on first use, so importing
the package, or starting its command, does not import torch.
"""

import functools
import importlib
import pathlib
from typing import Any


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use.

    Raises:
        AttributeError: If the name is not public.
    """
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
    """Return the module of each public name, read from the lines of the stub.

    A line with ``import *`` stands for all names that the package's ``__init__.py`` imports.
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
    """Return module and name of each line ``from weightloom.MODULE import NAME …``."""
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return [
        (words[1].removeprefix("weightloom."), words[3]) for words in lines if words[:1] == ["from"]
    ]
