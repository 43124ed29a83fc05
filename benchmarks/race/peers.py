"""Step times of other libraries over ours: ``python -m benchmarks.race peers``.

In:   a `PeersConfig`.
Out:  tables on the terminal, a record of all numbers.
The peers are called by `peers_worker`, which runs in a separate environment: their requirements do
not meet the user's. That environment borrows torch, weightloom and this package by a path file.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.race.bars import bars
from benchmarks.race.config import ADAPTER_WORKLOADS, PeersConfig, peers_for
from benchmarks.race.timing import clock_words
from weightloom.datasets import searched_folders
from weightloom.errors import DataError

PROJECT = Path(__file__).parents[2]

NEEDS: dict[str, tuple[str, ...]] = {
    # its main networks import matplotlib, undeclared
    "hypnettorch": ("hypnettorch==0.0.4", "matplotlib==3.10.8"),
    "hyperlight": ("hyperlight==0.0.5",),
    "hyper-nn": ("hyper-nn==0.2.2",),  # its jax half is not imported
    "torchhyper": ("torchhyper==0.1.2",),  # the one file that is raced needs numpy only
    "polyweave": ("polyweave==0.2.0",),
    "peft": ("peft==0.21.2", "accelerate==1.15.0", "transformers==5.23.0"),
}
"""Requirements per peer: the peer itself, without its own torch, then its other imports."""

WITHOUT_DEPENDENCIES = {*NEEDS, "accelerate"}
"""Packages installed with ``--no-deps``: torch is borrowed; other requirements are listed, borrowed
or not imported."""

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Environment variables that silence transformers: no table of unused weights, no bars."""

Row = dict[str, Any]
Pip = Callable[[Path, Sequence[str]], str | None]


def run_peers(config: PeersConfig, command: str) -> dict[str, Any]:
    """Install missing peers, race all, print the tables, and write the record if asked to.

    A peer that cannot be installed or run gets a row with ``error``.

    Args:
        config: Options of the race.
        command: Command line, for the record.

    Returns:
        The record: command, config, scores, rows, bars, cost, notes.

    Raises:
        DataError: If the environment cannot be made, or the worker fails.
    """
    start_s = time.monotonic()
    python, missing = prepare(config)
    _say(f"racing {len(config.peers) - len(missing)} peers; a few minutes")
    raced = _race(python, config, [peer for peer in config.peers if peer not in missing])
    failed = [
        {"workload": workload, "contender": peer, "way": "documented", "error": reason}
        for workload in config.workloads
        for peer, reason in missing.items()
        if peers_for(workload, [peer])
    ]
    rows = [
        row
        for workload in config.workloads
        for row in raced["rows"] + failed
        if row["workload"] == workload
    ]
    record = {
        "command": command,
        "config": config.to_dict(),
        "scores": _scores(rows, config),
        "rows": rows,
        "bars": bars(rows),
        "cost": raced["cost"]
        | {"versions": raced["versions"], "wall_time_s": time.monotonic() - start_s},
        "notes": _notes(rows, config),
    }
    print_peers(record)
    if config.record:
        from weightloom.runs.record import write_record

        write_record(config.record, record)
        _say(f"record: {config.record}")
    return record


def prepare(config: PeersConfig, pip: Pip | None = None) -> tuple[Path, dict[str, str]]:
    """Create or reuse the peers' environment, and install missing peers.

    Args:
        config: Peers, folder of the environment, permission to install.
        pip: Installs requirements with a Python; returns None, or the reason of a failure.
            Default: pip of the environment.

    Returns:
        The environment's Python; the reason for each missing peer.

    Raises:
        DataError: If the environment cannot be made, or its Python does not run.
    """
    folder = (config.env or searched_folders("peers")[-1]).expanduser().absolute()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        _say(f"making an environment for the peers in {folder}")
        made = subprocess.run(
            [sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True
        )
        if made.returncode:
            raise DataError(
                f"`python -m venv {folder}` failed: {_last_line(made.stdout + made.stderr)} The "
                "peers are installed in a separate environment. Pass `--env` with a writable "
                "folder, or with the folder of an existing virtual environment."
            )
    _borrow(python)
    return python, _install(python, config, pip or _pip)


def print_peers(record: dict[str, Any]) -> None:
    """Print a table per workload with its bars, then the notes."""
    console = Console()
    for workload in dict.fromkeys(row["workload"] for row in record["rows"]):
        of = _tasks(workload, record["config"])
        table = Table(title=f"{workload}: one step of {of:,} {_unit(workload)}", box=SIMPLE_HEAD)
        table.add_column("contender", no_wrap=True)
        table.add_column("documented", no_wrap=True)
        table.add_column("ms", justify="right")
        table.add_column("ours", justify="right")
        table.add_column("ratio", justify="right")
        table.add_column("quartiles, or why not")
        for row in (row for row in record["rows"] if row["workload"] == workload):
            table.add_row(row["contender"], _documented(row["way"]), *_cells(row))
        console.print(table)
        for bar in (bar for bar in record["bars"] if bar["workload"] == workload):
            verdict = "holds" if bar["holds"] else "does NOT hold"
            console.print(
                f"{bar['bar']}: {verdict} ({bar['closest']}: {bar['value']:.2f})", highlight=False
            )
    console.print(record["notes"], highlight=False)


def _race(python: Path, config: PeersConfig, peers: Sequence[str]) -> dict[str, Any]:
    """Run the worker, with its output on the terminal; return its results."""
    with tempfile.TemporaryDirectory() as temporary:
        options, out = Path(temporary) / "options.json", Path(temporary) / "out.json"
        options.write_text(json.dumps(config.to_dict() | {"peers": list(peers)}))
        worker = [str(python), "-m", "benchmarks.race.peers_worker", str(options), str(out)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(worker, stdout=sys.stderr, env=environment | QUIET)
        if done.returncode or not out.exists():
            raise DataError(
                f"The race ended with exit code {done.returncode}; its output is above. It runs in "
                f"a separate environment, {python.parent.parent}. Remove that folder to have it "
                "made anew, and type the command again."
            )
        raced: dict[str, Any] = json.loads(out.read_text())
    return raced


def _borrow(python: Path) -> None:
    """Append this project and this interpreter's packages to the environment's path, for torch."""
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    found = subprocess.run(asked, capture_output=True, text=True)
    if found.returncode:
        raise DataError(
            f"`{python}` does not run: {_last_line(found.stderr)} It belongs to the peers' "
            f"environment, which may stem from a Python that is gone. Remove "
            f"{python.parent.parent} and type the command again."
        )
    ours = find_spec("weightloom")
    assert ours is not None and ours.origin is not None
    folders = [str(PROJECT), str(Path(ours.origin).parents[1])]
    folders += [
        folder for folder in sys.path if folder.endswith(("site-packages", "dist-packages"))
    ]
    lines = [f"import site; site.addsitedir({folder!r})" for folder in folders]
    (Path(found.stdout.strip()) / "weightloom-host.pth").write_text("\n".join(lines) + "\n")


def _install(python: Path, config: PeersConfig, pip: Pip) -> dict[str, str]:
    """Install the requirements of the peers; return the reason for each missing peer."""
    missing = {}
    there = _installed(python)
    for peer in config.peers:
        for requirement in NEEDS[peer]:
            name = requirement.split("==")[0]
            if requirement in there or (name != peer and name in there):
                continue
            if not config.install:
                missing[peer] = f"{requirement} is not installed, and --no-install was passed"
                break
            _say(f"installing {requirement}")
            if reason := pip(
                python, [*(["--no-deps"] if name in WITHOUT_DEPENDENCIES else []), requirement]
            ):
                missing[peer] = f"{requirement} could not be installed: {reason}"
                _say(f"{missing[peer]}; going on without {peer}")
                break
    return missing


def _installed(python: Path) -> set[str]:
    """Return names, and names with versions, of the packages that the environment sees."""
    code = (
        "import importlib.metadata as m; "
        "print('\\n'.join(f'{d.name}=={d.version}' for d in m.distributions()))"
    )
    listed = (
        subprocess.run([str(python), "-c", code], capture_output=True, text=True)
        .stdout.lower()
        .split()
    )
    return {*listed, *(line.split("==")[0] for line in listed)}


def _pip(python: Path, arguments: Sequence[str]) -> str | None:
    """Install with the machine's pip settings; return None, or the first line of the error."""
    options = [
        "-q",
        "--disable-pip-version-check",
        "--no-input",
        "--retries",
        "1",
        "--timeout",
        "20",
    ]
    done = subprocess.run(
        [str(python), "-m", "pip", "install", *options, *arguments], capture_output=True, text=True
    )
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return errors[0].removeprefix("ERROR: ") if errors else _last_line(done.stderr)


def _scores(rows: Sequence[Row], config: PeersConfig) -> list[dict[str, Any]]:
    """Return the ratios as scores, in the form common to all records; ours is 1."""
    facts = {"name": "step time over ours", "better": "lower", "ci95": None}
    ours = [
        {"workload": name, "contender": "weightloom", "ratio": {"median": 1.0}}
        for name in config.workloads
    ]
    return [
        {"method": row["contender"], "setting": name, "mean": row["ratio"]["median"], **facts}
        | {"tasks": row.get("tasks", _tasks(name, config.to_dict()))}
        for name in config.workloads
        for row in [*ours, *rows]
        if row["workload"] == name and "ratio" in row
    ]


def _notes(rows: Sequence[Row], config: PeersConfig) -> str:
    said = (
        "A step generates parameters for all tasks, runs forward, takes one loss, runs backward; "
        "no optimiser. On a transformer adapters of rank 4 on query and value are given, one for "
        "every row, and a step is forward only, except where `learning` is said: forward, one "
        "loss, backward. Each contender takes turns with ours in one process. A ratio above 1 "
        "means that ours is faster: it is of medians, the median of the repeats; beside it stand "
        "the quartiles of the ratios round by round. Milliseconds drift "
        "with the machine, ratios do not. " + clock_words(config.threads)
    )
    errors = {f"{row['contender']} ({row['error']})": None for row in rows if "error" in row}
    return said + (f" Not raced: {'; '.join(errors)}." if errors else "")


def _cells(row: Row) -> list[str]:
    if "error" in row:
        return ["", "", "", row["error"]]
    ratio = row["ratio"]
    return [
        f"{row['ms']:.2f}",
        f"{row['ours_ms']:.2f}",
        f"{ratio['median']:.2f}",
        f"{ratio['low']:.2f} to {ratio['high']:.2f}",
    ]


def _tasks(workload: str, config: Mapping[str, Any]) -> int:
    return int(config["customers" if workload == "customers" else "tasks"])


def _unit(workload: str) -> str:
    return "rows, each with an adapter of its own" if workload in ADAPTER_WORKLOADS else "tasks"


def _documented(way: str) -> str:
    return {"documented": "yes", "recipe": "README", "undocumented": "no"}.get(way, "-")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].rstrip(".") + "." if lines else "no reason was given."


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
