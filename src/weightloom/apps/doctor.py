"""What is here: versions, devices and data for ``weightloom doctor``, what can be used for ``weightloom list``."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table

import weightloom
from weightloom.apps.fewshot.methods import FITS, METHODS
from weightloom.apps.fewshot.presets import DATA, PRESETS
from weightloom.apps.rl.presets import METHODS as AGENTS
from weightloom.apps.rl.presets import RUNS
from weightloom.datasets import FILES, find_file, searched_folders

PACKAGES = (
    *("weightloom", "torch", "numpy", "lightning-fabric", "torchmetrics", "safetensors", "plotly"),
    *("scikit-learn", "onnxruntime", "keras", "transformers"),
    *("gymnasium", "mujoco", "stable-baselines3", "sb3-contrib"),
)


def print_doctor() -> None:
    """Print versions, threads, devices and the data found."""
    import torch  # takes longer than all that `weightloom list` does

    table = Table("what", "found", show_header=False)
    table.add_row("python", f"{platform.python_version()} ({sys.executable})")
    for package in PACKAGES:
        table.add_row(package, _version(package))
    table.add_row("cores", str(os.cpu_count()))
    table.add_row("torch threads", str(torch.get_num_threads()))
    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        accelerators.append("mps")
    table.add_row("accelerators", ", ".join(accelerators) or "none: runs use the CPU")
    for data in DATA:
        table.add_row(f"data: {data}", where(data))
    Console().print(table)


def print_list() -> None:
    """Print data sets, methods and rooms."""
    data = Table("data", "defaults", "where", title="weightloom fewshot --data …")
    for name in DATA:
        preset = PRESETS[name]
        ways = "" if preset["ways"] == (1,) else f"ways {' '.join(map(str, preset['ways']))}, "
        data.add_row(name, f"{ways}shots {' '.join(map(str, preset['shots']))}, {preset['steps']} steps", where(name))
    methods = Table("method", "what it is", "data", title="weightloom fewshot --method …")
    for method in METHODS:
        methods.add_row(method.name, method.about, " ".join(d for d, fits in FITS.items() if method.name in fits))
    agents = Table("method", "what it is", "algorithms", title="weightloom rl --method …")
    for name, what in AGENTS.items():
        agents.add_row(name, what, " ".join(algorithm for algorithm, runs in RUNS.items() if name in runs))
    rooms = Table("room", "to build from", title="from weightloom import …")
    by_room: dict[str, list[str]] = {}
    for name, room in weightloom._public_names().items():
        by_room.setdefault(room, []).append(name)
    for room, names in by_room.items():
        rooms.add_row(room, ", ".join(names))
    for shown in (data, methods, agents, rooms):
        Console().print(shown)


def where(data: str) -> str:
    """Say where a data set is, or how to get it."""
    if data == "sinusoid":
        return "made on the fly"
    if data == "digits" or data.startswith("cameras"):
        return "in scikit-learn" if find_spec("sklearn") else "missing: pip install 'weightloom[digits]'"
    folder, file = FILES[data]
    if found := find_file(folder, file):
        return str(found)
    looked = ", ".join(str(searched) for searched in searched_folders(folder))
    fetched = ", will be fetched at the first run" if folder == "omniglot" else f": {file} is not fetched for you"
    return f"not here yet{fetched} (looked in {looked})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
