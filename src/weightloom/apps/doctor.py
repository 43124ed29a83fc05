"""Inventories for ``weightloom doctor`` (versions, devices, data) and ``weightloom list``."""

import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from textwrap import fill

from rich.console import Console
from rich.table import Table
from rich.text import Text

import weightloom
from weightloom.apps.app import Listed
from weightloom.apps.registry import all_apps
from weightloom.errors import ConfigError, nearest

ROOMS = "rooms"
"""Word for which `weightloom list` shows the rooms."""

PACKAGES = (
    *("weightloom", "torch", "numpy", "lightning-fabric", "torchmetrics", "safetensors", "plotly"),
    *("scikit-learn", "onnxruntime", "keras", "transformers"),
    *("gymnasium", "mujoco", "stable-baselines3", "sb3-contrib"),
)


def print_doctor() -> None:
    """Print versions, threads, accelerators and locations of data sets: `weightloom doctor`."""
    import torch  # slow to import, and `weightloom list` does without

    table = Table("item", "found", show_header=False)
    table.add_row("python", f"{platform.python_version()} ({sys.executable})")
    for package in PACKAGES:
        table.add_row(package, _version(package))
    table.add_row("cores", str(os.cpu_count()))
    table.add_row("torch threads", str(torch.get_num_threads()))
    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        accelerators.append("mps")
    table.add_row("accelerators", ", ".join(accelerators) or "none: runs use the CPU")
    for app in all_apps():
        for data, place in app.data():
            table.add_row(f"data: {data}", place)
    Console(markup=False).print(table)


def print_list() -> None:
    """Print the names of data sets, environments, methods and rooms, on one screen."""
    console, absent = Console(highlight=False, markup=False), False
    for app in all_apps():
        for listed in app.listed():
            shown = listed.brief or [row[0] for row in listed.rows]
            names = [f"{name}*" if name in listed.absent else name for name in shown]
            names += ["…"] * bool(listed.brief)
            absent |= bool(listed.absent)
            _print_names(console, listed.title, names)
    _print_names(console, "from weightloom.ROOM import …, ROOM being one of", _rooms())
    if absent:
        console.print("* Not on this machine yet.", style="dim")
    known = "|".join([*(app.name for app in all_apps()), ROOMS])
    console.print(f"`weightloom list {known}` says more of each.", style="dim")


def print_table_of(name: str) -> None:
    """Print everything that is known of an application's names, or of the rooms.

    Args:
        name: An application, or ``"rooms"``.

    Raises:
        ConfigError: If there is no such table.
    """
    tables = {app.name: app.listed for app in all_apps()}
    if name != ROOMS and name not in tables:
        raise ConfigError(
            f"`weightloom list {name}` has no table. {nearest(name, [*tables, ROOMS])} Type "
            "`weightloom list` alone for all names on one screen."
        )
    rows = [(room, ", ".join(names)) for room, names in _rooms().items()]
    rooms = Listed("from weightloom import …", ("room", "public names"), rows)
    for listed in [rooms] if name == ROOMS else tables[name]():
        table = Table(*listed.columns, title=listed.title)
        for row in listed.rows:
            table.add_row(*row)
        Console(markup=False).print(table)


def _print_names(console: Console, title: str, names: Iterable[str]) -> None:
    text = fill(
        f"{title} {' '.join(names)}",
        console.width,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    shown = Text(text)
    shown.stylize("bold", 0, len(title))
    console.print(shown)


def _rooms() -> dict[str, list[str]]:
    """Return the names that ``from weightloom import`` gives, by room."""
    by_room: dict[str, list[str]] = {}
    for name, room in weightloom._public_names().items():
        by_room.setdefault(room, []).append(name)
    return by_room


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
