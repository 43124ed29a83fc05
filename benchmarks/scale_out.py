"""Meta-train with one process, two, and two machines played by torchrun: how quick, and whether it is the same.

    python benchmarks/scale_out.py --record benchmarks/records/scale-out.json

Every process has one thread. The tasks of a step are the same however many processes share them, so after a few steps
the parameters must be those of one process but for rounding; the record holds how far apart they are. Later, training
carries the smallest difference apart, as it does between two orders of one sum.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from weightloom.checkpoint import load_tensors
from weightloom.records import environment, read_record, write_record

OPTIONS = ["--data", "sinusoid", "--tasks", "256", "--test-tasks", "20", "--comparators", "--quiet"]
FEW = 10
"""Steps after which parameters are compared."""
WAYS = {"1 process": [], "2 processes": ["--devices", "2"], "2 machines, played by torchrun": ["--nodes", "2"]}


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
    known = parser.parse_args()
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
            "cost": {**environment(), "cores": os.cpu_count()},
            "notes": f"`apart` is the largest difference between parameters and those of one process after {FEW} "
            "steps, relative to the largest number of each tensor. Both machines are this one, and share its cores.",
        },
    )
    for way, row in rows.items():
        print(f"{way}: {row['tasks_per_s']:.0f} tasks/s, {row['ratio']:.2f} of one, {row['apart']:.1e} apart")


if __name__ == "__main__":
    main()
