"""Inventories for ``weightloom doctor`` (versions, devices, data) and ``weightloom list``."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

import weightloom
from weightloom.apps.registry import all_apps

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
    Console().print(table)


def print_list() -> None:
    """Print every application's tables and all public names by room: `weightloom list`."""
    for app in all_apps():
        for listed in app.listed():
            table = Table(*listed.columns, title=listed.title)
            for row in listed.rows:
                table.add_row(*row)
            Console().print(table)
    rooms = Table("room", "to build from", title="from weightloom import …")
    by_room: dict[str, list[str]] = {}
    for name, room in weightloom._public_names().items():
        by_room.setdefault(room, []).append(name)
    for room, names in by_room.items():
        rooms.add_row(room, ", ".join(names))
    Console().print(rooms)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
