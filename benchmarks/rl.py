"""Run `weightloom rl` over seeds, and write one record.

    python benchmarks/rl.py --record benchmarks/records/lqr.json --env lqr --seeds 0 1 2

Every other flag is one of `weightloom rl`; ``--comparators`` are the arms beside ours. Each seed runs in a process of
its own, with one thread, below ``runs/bench``; what is there already is resumed, so a benchmark that was stopped goes
on where it was. The record holds every run; a seed that failed is in it, with its error.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean

from weightloom.runs.record import environment, read_record, summary_over_seeds, write_record
from weightloom.runs.stats import interquartile


def run_all(known: argparse.Namespace, flags: list[str]) -> None:
    """Run every seed, then summarise them."""
    runs, failed = {}, {}
    for seed in known.seeds:
        folder = Path("runs/bench") / known.record.stem / f"seed{seed}"
        if not (folder / "record.json").exists():
            there = (folder / "config.json").exists()
            options = ["--env", known.env, "--seed", str(seed), *flags]
            words = ["--resume", str(folder)] if there else ["--run", str(folder), *options]
            quiet = ["--quiet"] if known.quiet else []
            done = subprocess.run(
                [sys.executable, "-m", "weightloom", "rl", *words, *quiet],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE if known.quiet else None,
                text=True,
            )
            if done.returncode >= 128:
                raise SystemExit(done.returncode)
            if done.returncode:
                failed[str(seed)] = (done.stderr or f"exit code {done.returncode}").strip().splitlines()[-1]
                continue
        runs[seed] = read_record(folder / "record.json")
    if not runs:
        raise SystemExit(f"every seed failed: {failed}")
    first = next(iter(runs.values()))
    write_record(
        known.record,
        {
            "command": shlex.join(["python", "benchmarks/rl.py", *sys.argv[1:]]),
            "config": {**first["config"], "seeds": known.seeds},
            "scores": [summarise(runs, number) for number in range(len(first["scores"]))],
            "failed": failed,
            "cost": {
                "train_wall_time_s": {
                    method: [run["cost"]["train_wall_time_s"][method] for run in runs.values()]
                    for method in first["cost"]["train_wall_time_s"]
                },
                "wall_time_s": sum(run["cost"]["wall_time_s"] for run in runs.values()),
                "peak_memory_bytes": max(run["cost"]["peak_memory_bytes"] for run in runs.values()),
                **environment(),
                "threads": first["config"]["threads"],
            },
            "reference": {"value": known.value, "source": known.source, "differs": known.differs},
            "notes": known.notes or first["notes"],
        },
    )


def summarise(runs: dict, number: int) -> dict:
    """One row over all seeds; with one seed the interval over contexts."""
    rows = {seed: run["scores"][number] for seed, run in runs.items()}
    first = next(iter(rows.values()))
    one = len(runs) == 1
    over = summary_over_seeds([row["mean"] for row in rows.values()])
    return {
        **{key: first[key] for key in ("method", "role", "setting", "name", "better", "tasks") if key in first},
        **({"mean": first["mean"], "ci95": first["ci95"]} if one else over),
        "iqm": interquartile([row["per_context"] for row in rows.values()]),
        "per_run": {f"seed {seed}": (row["mean"], row["ci95"]) for seed, row in rows.items()},
        "also": {
            name: first["also"][name] if one else over_seeds([row["also"][name]["mean"] for row in rows.values()])
            for name in first["also"]
        },
    }


def over_seeds(values: list[float | None]) -> dict:
    """Mean and interval over seeds; None where a seed has no number, such as steps to a return never reached."""
    if any(value is None for value in values):
        there = [value for value in values if value is not None]
        return {"per_seed": values, "mean": mean(there) if there else None, "ci95": None}
    return summary_over_seeds(values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--notes", default="")
    parser.add_argument("--value", default=None, help="a published value to stand beside ours")
    parser.add_argument("--source", default=None, help="authors, year, table of that value")
    parser.add_argument("--differs", default=None, help="how its protocol differs from ours")
    run_all(*parser.parse_known_args())
