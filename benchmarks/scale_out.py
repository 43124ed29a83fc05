"""Speed and numerical agreement of meta-training with one process, two, and two simulated machines.

    python benchmarks/scale_out.py --record benchmarks/records/scale-out.json

Every process has one thread. A step has the same tasks for any number of processes, so after a few
steps the parameters must agree with those of one process up to rounding; the record holds the
largest difference. Over more steps training amplifies rounding errors, as it does for two orders of
one sum.

The profile splits a step into parts, in CPU time, which other work on the machine changes little.
The ways: one process; two processes; two independent processes at once with half of the tasks each,
which is the speed of these cores without any exchange; and one of these alone, which does not share
caches.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.problems import problem_of
from weightloom.apps.fewshot.training import launch
from weightloom.files import load_tensors
from weightloom.runs.record import environment, read_record, write_record
from weightloom.tasks import ALL, Tasks, TaskSource, draw_share
from weightloom.training import Processes, TrainOptions, train

OPTIONS = ["--data", "sinusoid", "--tasks", "256", "--test-tasks", "20", "--comparators", "--quiet"]
FEW = 10
"""Steps after which parameters are compared."""
WAYS = {
    "1 process": [],
    "2 processes": ["--devices", "2"],
    "2 machines, played by torchrun": ["--nodes", "2"],
}
TASKS, PROFILED, WARM = 256, 100, 10
"""Tasks per step; steps of a profile; first steps of it that are not counted."""
STEPS = 300
"""Steps of a training run for its speed."""
ONE, TWO, APART, HALF = (
    "1 process",
    "2 processes",
    "2 apart, half of the tasks each",
    "1 with half of the tasks",
)


class Clock:
    """CPU milliseconds per part of each step, and the start of each step."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = defaultdict(list)
        self.begun: list[tuple[float, float]] = []
        self.last = 0.0

    def start(self) -> None:
        """Begin a step."""
        self.begun.append((1000 * time.perf_counter(), 1000 * time.process_time()))
        self.last = time.process_time()

    def stop(self, part: str) -> None:
        """End a part and begin the next."""
        now = time.process_time()
        self.parts[part].append(1000 * (now - self.last))
        self.last = now


class ClockedSource(TaskSource):
    """Task source that clocks its draws; each draw begins a step."""

    def __init__(self, source: TaskSource, clock: Clock) -> None:
        self.source, self.clock = source, clock

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Draw from the wrapped source."""
        self.clock.start()
        drawn = draw_share(self.source, share)(tasks, generator)
        self.clock.stop("drawing")
        return drawn


class ClockedProcesses:
    """Processes that clock forward, backward and optimiser."""

    def __init__(self, processes: Processes, clock: Clock) -> None:
        self.processes, self.clock = processes, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processes, name)

    def setup(self, module: torch.nn.Module, *optimizers: torch.optim.Optimizer) -> Any:
        """Set up, with a clock mark after every optimiser step."""
        optimizers[0].register_step_post_hook(lambda *_: self.clock.stop("clipping and optimiser"))
        return self.processes.setup(module, *optimizers)

    def backward(self, tensor: torch.Tensor) -> None:
        """Differentiate, and exchange gradients; ends forward, then backward."""
        self.clock.stop("forward")
        self.processes.backward(tensor)
        self.clock.stop("backward")


def serve_profile(way: str, out: Path) -> None:
    """Train as one process of a profile, and write the milliseconds of each part to ``out``."""
    tasks = TASKS // 2 if way in (APART, HALF) else TASKS
    config = FewShotConfig("sinusoid", tasks=tasks, devices=2 if way == TWO else 1).resolved()
    processes, problem, clock = launch(config), problem_of(config), Clock()
    torch.manual_seed(0)
    learner = problem.learner(config.method)
    options = TrainOptions(steps=PROFILED, tasks=tasks)
    train(
        learner,
        ClockedSource(problem.train_source(), clock),
        None,
        options,
        fabric=ClockedProcesses(processes, clock),
    )
    wall, cpu = (
        median(b - a for a, b in pairwise(times[WARM:])) for times in zip(*clock.begun, strict=True)
    )
    parts = {part: median(times[WARM:]) for part, times in clock.parts.items()}
    if processes.global_rank == 0:
        out.write_text(
            json.dumps(
                {"step": cpu, **parts, "rest": cpu - sum(parts.values()), "on the clock": wall}
            )
        )


def profile(repeats: int) -> dict[str, Any]:
    """Return milliseconds of a step and of its parts, and speeds relative to one process.

    Medians over the steps of the quickest repeat. The ways take turns.
    """
    found: dict[str, list[dict[str, float]]] = {ONE: [], TWO: [], APART: [], HALF: []}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(repeats):
            for number, way in enumerate(found):
                found[way] += profile_once(way, Path(scratch) / f"{repeat}-{number}")
    ms = {way: min(own, key=lambda one: one["on the clock"]) for way, own in found.items()}
    ms[TWO]["exchange"] = ms[TWO]["backward"] - ms[APART]["backward"]
    ms[TWO]["backward"] = ms[APART]["backward"]
    ratios = {
        kind: {way: ms[ONE][kind] / own[kind] for way, own in ms.items()}
        for kind in ("step", "on the clock")
    }
    return {"ms": ms, "ratios": ratios}


def profile_once(way: str, folder: Path) -> list[dict[str, float]]:
    """Run all processes of a profile at once; return the milliseconds of each."""
    folder.mkdir()
    outs = [folder / str(part) for part in range(2 if way == APART else 1)]
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    parts = [
        subprocess.Popen(
            [sys.executable, __file__, "--serve", way, "--record", str(out)],
            env=here,
            stderr=subprocess.DEVNULL,
        )
        for out in outs
    ]
    for part in parts:
        assert part.wait() == 0, shlex.join(part.args)
    return [json.loads(out.read_text()) for out in outs]


def run_once(way: str, folder: Path, port: int, steps: int = STEPS) -> float:
    """Train, and return tasks per second."""
    typed = [
        "weightloom",
        "fewshot",
        *OPTIONS,
        "--steps",
        str(steps),
        *WAYS[way],
        "--run",
        str(folder),
    ]
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    if "--nodes" in typed:
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
            "--nproc-per-node",
            "1",
        ]
        torchrun += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        commands = [[*torchrun, "--node-rank", str(rank), "-m", "--", *typed] for rank in (0, 1)]
    else:
        commands = [[sys.executable, "-m", *typed]]
    parts = [subprocess.Popen(command, env=here, stdout=subprocess.DEVNULL) for command in commands]
    for part in parts:
        assert part.wait() == 0, shlex.join(part.args)
    record = read_record(folder / "record.json")
    return (
        record["config"]["steps"]
        * record["config"]["tasks"]
        / record["cost"]["train_wall_time_s"]["hypernetwork"]
    )


def furthest(one: Path, other: Path) -> float:
    """Return the largest difference of two models, relative to each tensor's largest number."""
    tensors = [
        load_tensors(folder / "checkpoints" / "last.safetensors")[0] for folder in (one, other)
    ]
    names = [name for name in tensors[0] if name.startswith("model/")]
    return max(
        ((tensors[0][n] - tensors[1][n]).abs().max() / tensors[0][n].abs().max()).item()
        for n in names
    )


def print_profile(profiled: dict[str, Any]) -> None:
    """Print the milliseconds of each part, and the speeds over one process."""
    for way, parts in profiled["ms"].items():
        print(f"{way}: {', '.join(f'{part} {ms:.2f}' for part, ms in parts.items())} ms")
        cpu, wall = (profiled["ratios"][kind][way] for kind in ("step", "on the clock"))
        print(f"  {cpu:.2f} times as quick as 1 process in CPU time, {wall:.2f} on the clock")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--serve",
        choices=(ONE, TWO, APART, HALF),
        help="run one process of a profile, and write it to `--record`",
    )
    known = parser.parse_args()
    if known.serve:
        serve_profile(known.serve, known.record)
        return
    profiled = profile(known.repeats)
    print_profile(profiled)
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    apart: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(known.repeats):  # the contenders take turns
            for number, way in enumerate(WAYS):
                folder = Path(scratch) / f"{repeat}-{number}"
                speeds[way].append(run_once(way, folder, 29700 + 10 * repeat + number))
        for number, way in enumerate(WAYS):
            folder = Path(scratch) / f"few-{number}"
            run_once(way, folder, 29900 + number, FEW)
            apart[way] = furthest(Path(scratch) / "few-0", folder)
    one = max(speeds["1 process"])
    rows = {
        way: {"tasks_per_s": max(s), "per_repeat": s, "ratio": max(s) / one, "apart": apart[way]}
        for way, s in speeds.items()
    }
    write_record(
        known.record,
        {
            "command": shlex.join(["python", "benchmarks/scale_out.py", *sys.argv[1:]]),
            "config": {"options": shlex.join(OPTIONS), "repeats": known.repeats},
            "scores": [
                {
                    "method": way,
                    "setting": "training",
                    "name": "tasks per second",
                    "better": "higher",
                }
                | {"mean": row["tasks_per_s"], "ci95": None}
                for way, row in rows.items()
            ],
            "speeds": rows,
            "profile": profiled,
            "cost": {**environment(), "cores": os.cpu_count()},
            "notes": "`apart` is the largest difference between parameters and those of one "
            f"process after {FEW} steps, relative to the largest number of each tensor. Both "
            "machines are this one, and share its cores. Speeds are those of the quickest repeat, "
            "as other work on the machine only slows it. The profile is in CPU milliseconds of one "
            "process. `exchange` is what backward takes longer than where nothing is exchanged. "
            "Not split are drawing, clipping and optimiser, exchange, and in forward and backward "
            "what does not grow with the tasks.",
        },
    )
    for way, row in rows.items():
        print(
            f"{way}: {row['tasks_per_s']:.0f} tasks/s, {row['ratio']:.2f} of one, "
            f"{row['apart']:.1e} apart"
        )


if __name__ == "__main__":
    main()
