"""Meta-train with one process, two, and two machines played by torchrun: how quick, and whether it is the same.

    python benchmarks/scale_out.py --record benchmarks/records/scale-out.json

Every process has one thread. The tasks of a step are the same however many processes share them, so after a few steps
the parameters must be those of one process but for rounding; the record holds how far apart they are. Later, training
carries the smallest difference apart, as it does between two orders of one sum.

The profile has the parts of a step, for one process, for two, and for two at once that know nothing of each other and
have half of the tasks each: what these cores would give if nothing had to be exchanged.
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
from weightloom.apps.fewshot.run import launch
from weightloom.checkpoint import load_tensors
from weightloom.records import environment, read_record, write_record
from weightloom.tasks import ALL, Tasks, TaskSource, draw_share
from weightloom.train import Processes, TrainOptions, train

OPTIONS = ["--data", "sinusoid", "--tasks", "256", "--test-tasks", "20", "--comparators", "--quiet"]
FEW = 10
"""Steps after which parameters are compared."""
WAYS = {"1 process": [], "2 processes": ["--devices", "2"], "2 machines, played by torchrun": ["--nodes", "2"]}
TASKS, PROFILED, WARM = 256, 100, 10
"""Tasks of a step; steps of a profile, of which the first few are not counted."""
ONE, TWO, ALONE = "1 process", "2 processes", "2 at once, each alone with half of the tasks"


class Clock:
    """Milliseconds of each part of each step, and the time at which the last part ended."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = defaultdict(list)
        self.last = self.cpu = 0.0

    def start(self) -> None:
        """Begin a part."""
        self.last = time.perf_counter()

    def stop(self, part: str) -> None:
        """End it, and begin another."""
        now = time.perf_counter()
        self.parts[part].append(1000 * (now - self.last))
        self.last = now


class ClockedSource(TaskSource):
    """A source whose drawing is clocked; a step begins with it."""

    def __init__(self, source: TaskSource, clock: Clock) -> None:
        self.source, self.clock = source, clock

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Draw as the source does."""
        self.clock.parts["begun"].append(1000 * time.perf_counter())
        self.clock.parts["cpu"].append(1000 * time.process_time())
        self.clock.start()
        drawn = draw_share(self.source, share)(tasks, generator)
        self.clock.stop("drawing")
        return drawn


class ClockedProcesses:
    """Processes whose parts of a step are clocked."""

    def __init__(self, processes: Processes, clock: Clock) -> None:
        self.processes, self.clock = processes, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processes, name)

    def setup(self, module: torch.nn.Module, *optimizers: torch.optim.Optimizer) -> Any:
        """Set up, and look at the clock after every step of the optimiser."""
        optimizers[0].register_step_post_hook(lambda *_: self.clock.stop("clipping and optimiser"))
        return self.processes.setup(module, *optimizers)

    def backward(self, tensor: torch.Tensor) -> None:
        """Differentiate, and exchange gradients."""
        self.clock.stop("forward")
        self.processes.backward(tensor)
        self.clock.stop("backward")


def serve_profile(way: str, out: Path) -> None:
    """Train for some steps as one of the processes of a way, and write the milliseconds of each part."""
    tasks = TASKS // 2 if way == ALONE else TASKS
    config = FewShotConfig("sinusoid", tasks=tasks, devices=2 if way == TWO else 1).resolved()
    processes, problem, clock = launch(config), problem_of(config), Clock()
    torch.manual_seed(0)
    learner = problem.learner(config.method)
    options = TrainOptions(steps=PROFILED, tasks=tasks)
    train(
        learner, ClockedSource(problem.train_source(), clock), None, options, fabric=ClockedProcesses(processes, clock)
    )
    begun, cpu = ([b - a for a, b in pairwise(ends)] for ends in (clock.parts.pop("begun"), clock.parts.pop("cpu")))
    parts = {part: median(times[WARM:]) for part, times in clock.parts.items()}
    parts["rest"] = median(begun[WARM:]) - sum(parts.values())
    if processes.global_rank == 0:
        out.write_text(json.dumps({"step": median(begun[WARM:]), "cpu": median(cpu[WARM:]), **parts}))


def profile(repeats: int) -> dict[str, Any]:
    """Milliseconds of a step and of its parts, medians over steps and then over repeats; the ways take turns."""
    found: dict[str, list[dict[str, float]]] = {ONE: [], TWO: [], ALONE: []}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(repeats):
            for number, way in enumerate(found):
                outs = [Path(scratch) / f"{repeat}-{number}-{part}" for part in range(2 if way == ALONE else 1)]
                here = {**os.environ, "OMP_NUM_THREADS": "1"}
                commands = [[sys.executable, __file__, "--serve", way, "--record", str(out)] for out in outs]
                parts = [subprocess.Popen(command, env=here, stderr=subprocess.DEVNULL) for command in commands]
                for part in parts:
                    assert part.wait() == 0, shlex.join(part.args)
                found[way] += [json.loads(out.read_text()) for out in outs]
    means = {way: {part: median(one[part] for one in own) for part in own[0]} for way, own in found.items()}
    one, two, alone = (means[way] for way in (ONE, TWO, ALONE))
    two["exchange of gradients"] = two["backward"] - alone["backward"]
    two["backward"] = alone["backward"]
    return {
        "ms": means,
        "ratio": one["step"] / two["step"],
        "ratio without any exchange": one["step"] / alone["step"],
        "ratio in CPU time": one["cpu"] / two["cpu"],
    }


def run_once(way: str, folder: Path, port: int, steps: int = 600) -> float:
    """Train and return the tasks trained on per second."""
    typed = ["weightloom", "fewshot", *OPTIONS, "--steps", str(steps), *WAYS[way], "--run", str(folder)]
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    if "--nodes" in typed:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        torchrun += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        commands = [[*torchrun, "--node-rank", str(rank), "-m", "--", *typed] for rank in (0, 1)]
    else:
        commands = [[sys.executable, "-m", *typed]]
    parts = [subprocess.Popen(command, env=here, stdout=subprocess.DEVNULL) for command in commands]
    for part in parts:
        assert part.wait() == 0, shlex.join(part.args)
    record = read_record(folder / "record.json")
    return record["config"]["steps"] * record["config"]["tasks"] / record["cost"]["train_wall_time_s"]["hypernetwork"]


def furthest(one: Path, other: Path) -> float:
    """The largest difference between two models, relative to the largest number of each tensor."""
    tensors = [load_tensors(folder / "checkpoints" / "last.safetensors")[0] for folder in (one, other)]
    names = [name for name in tensors[0] if name.startswith("model/")]
    return max(((tensors[0][n] - tensors[1][n]).abs().max() / tensors[0][n].abs().max()).item() for n in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", choices=(ONE, TWO, ALONE), help="train for a profile, written to the record")
    known = parser.parse_args()
    if known.serve:
        serve_profile(known.serve, known.record)
        return
    profiled = profile(known.repeats)
    for way, parts in profiled["ms"].items():
        print(f"{way}: {', '.join(f'{part} {ms:.2f}' for part, ms in parts.items())} ms", flush=True)
    print({name: round(value, 3) for name, value in profiled.items() if name != "ms"}, flush=True)
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
    one = median(speeds["1 process"])
    rows = {
        way: {"tasks_per_s": median(s), "per_repeat": s, "ratio": median(s) / one, "apart": apart[way]}
        for way, s in speeds.items()
    }
    write_record(
        known.record,
        {
            "command": shlex.join(["python", "benchmarks/scale_out.py", *sys.argv[1:]]),
            "config": {"options": shlex.join(OPTIONS), "repeats": known.repeats},
            "scores": [
                {"method": way, "setting": "training", "name": "tasks per second", "better": "higher"}
                | {"mean": row["tasks_per_s"], "ci95": None}
                for way, row in rows.items()
            ],
            "speeds": rows,
            "profile": profiled,
            "cost": {**environment(), "cores": os.cpu_count()},
            "notes": f"`apart` is the largest difference between parameters and those of one process after {FEW} "
            "steps, relative to the largest number of each tensor. Both machines are this one, and share its cores.",
        },
    )
    for way, row in rows.items():
        print(f"{way}: {row['tasks_per_s']:.0f} tasks/s, {row['ratio']:.2f} of one, {row['apart']:.1e} apart")


if __name__ == "__main__":
    main()
