"""Wall-clock seconds of set-up, help, demo and tests in a fresh clone of the project.

python benchmarks/house.py --record benchmarks/records/house.json
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from weightloom.runs.record import environment, write_record


def seconds(command: list[str], folder: Path, repeats: int = 1) -> float:
    """Return the median wall-clock seconds of a command.

    Raises:
        SystemExit: If it exits with another code than 0; holds the end of its output.
    """
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        times.append(time.perf_counter() - start)
        print(f"{' '.join(command)}: {times[-1]:.2f} s", flush=True)
        if done.returncode:
            raise SystemExit(f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return median(times)


def main(record: Path) -> None:
    project = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / "weightloom"
        subprocess.run(["git", "clone", "-q", str(project), str(clone)], check=True)
        measured = {
            "set-up": seconds(["make", ".venv/.ready"], clone),
            "weightloom --help": seconds([".venv/bin/weightloom", "--help"], clone, repeats=11),
            "make demo": seconds(["make", "demo"], clone),
            "make test": seconds(["make", "test"], clone),
        }
        reports = sorted(
            path.relative_to(clone).as_posix() for path in clone.glob("runs/*/report.html")
        )
    scores = [
        {
            "method": "a fresh clone",
            "setting": name,
            "name": "seconds",
            "better": "lower",
            "mean": value,
            "ci95": None,
            "tasks": 1,
        }
        for name, value in measured.items()
    ]
    write_record(
        record,
        {
            "command": shlex.join(["python", "benchmarks/house.py", *sys.argv[1:]]),
            "config": {"reports": reports},
            "scores": scores,
            "cost": environment(),
            "notes": "In this order: the demo pays for the first import of everything. Set-up "
            "includes downloads.",
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, required=True)
    main(parser.parse_args().record)
