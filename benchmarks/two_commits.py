"""CPU time per step of `benchmarks.race core`, of this commit over an earlier one.

    python benchmarks/two_commits.py --before d5873ca --record benchmarks/records/two-commits.json

One process per commit; both take turns on one core.
"""

import argparse
import importlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

PROJECT = Path(__file__).parent.parent
OTHERS = {
    "bmm by hand",
    "plain base",
    "grouped by hand",
    "plain MLP",
    "built, then vmap",
    "built, loop",
}
"""Contenders that do not use this library."""
LOOPS = {"loop", "loop over examples"}
"""Contenders with the looser bound, 1.15 instead of 1.05."""


def steps() -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Yield setting, contender and step for every contender that uses the library."""
    import torch

    # earlier commits have the race inside the package
    race = "weightloom.apps.bench" if find_spec("weightloom.apps.bench") else "benchmarks.race"
    contests = importlib.import_module(f"{race}.contests").contests
    workloads = importlib.import_module(f"{race}.workloads")

    torch.set_num_threads(1)
    for contest in contests(("forms", "built", "mlp", "kernels", "adapters", "actor")):
        if not isinstance(contest, str):
            for name, step in contest.steps.items():
                if name not in OTHERS:
                    yield contest.setting, name, step
    for name in ("mlp", "cnn"):
        workload = workloads.make_workload(name)
        contender = workloads.ours(workload)
        yield (
            f"peers, {name}",
            contender.name,
            lambda contender=contender, workload=workload: contender.step(workload),
        )


def serve() -> None:
    """Run steps on request from the standard input.

    A line "next" moves to the next row and prints its setting and contender; a number runs the step
    so many times and prints the CPU seconds of one.
    """
    rows = steps()
    step: Callable[[], object] = lambda: None  # noqa: E731
    for line in sys.stdin:
        if line.strip() == "next":
            setting, name, step = next(rows, ("", "", step))
            print(f"{setting}|{name}", flush=True)
        else:
            begun = time.process_time()
            for _ in range(int(line)):
                step()
            print((time.process_time() - begun) / int(line), flush=True)


def ask(server: Any, words: str) -> str:
    server.stdin.write(words + "\n")
    server.stdin.flush()
    answer: str = server.stdout.readline().strip()
    return answer


def start(source: Path, core: int) -> Any:
    command = ["taskset", "-c", str(core), sys.executable, "-W", "ignore", __file__, "--serve"]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{source / 'src'}{os.pathsep}{source}",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def main(before: str, rounds: int, core: int, record: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", before], cwd=PROJECT, capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        old, new = start(Path(folder), core), start(PROJECT, core)
        rows = []
        while (title := ask(new, "next")) != "|":
            if ask(old, "next") != title:
                raise SystemExit(f"the two commits do not time the same steps: {title}")
            warm = max(float(ask(server, "2")) for server in (old, new) for _ in range(2))
            repeats = str(max(1, round(0.02 / warm)))
            times = [(float(ask(old, repeats)), float(ask(new, repeats))) for _ in range(rounds)]
            setting, name = title.split("|")
            before_s, now_s = map(median, zip(*times, strict=True))
            ratio = now_s / before_s
            bound = 1.15 if name in LOOPS else 1.05
            rows.append(
                {
                    "setting": setting,
                    "method": name,
                    "ratio": ratio,
                    "bound": bound,
                    "holds": ratio <= bound,
                }
            )
            print(f"{setting}, {name}: {ratio:.3f} (at most {bound})", flush=True)
        for server in (old, new):
            server.kill()
    from weightloom.runs.record import environment, write_record

    scores = [
        {
            "setting": row["setting"],
            "method": row["method"],
            "name": "CPU time over that before",
            "better": "lower",
        }
        | {"mean": row["ratio"], "ci95": None, "tasks": 1}
        for row in rows
    ]
    write_record(
        record,
        {
            "command": shlex.join(["python", "benchmarks/two_commits.py", *sys.argv[1:]]),
            "config": {"before": before, "rounds": rounds},
            "scores": scores,
            "timed": rows,
            "cost": environment(),
            "notes": "Ratio of medians of CPU time per step, the two commits in turn on one core, "
            "each in a process of its own. A step is forward, one loss, backward.",
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default="HEAD")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--serve", action="store_true")
    options = parser.parse_args()
    if options.serve:
        serve()
    else:
        main(options.before, options.rounds, options.core, options.record)
