"""Run `weightloom fewshot` over seeds and splits, and write one record.

    python benchmarks/fewshot.py --record benchmarks/records/digits.json --data digits --splits 0 1 2 --seeds 0 1 2

Every other flag is one of `weightloom fewshot`. Runs go below ``runs/bench``; a run that is there already is resumed,
so a benchmark that was stopped goes on where it was. The record holds every run; nothing that failed is left out.
"""

import argparse
import sys
from pathlib import Path

from weightloom.cli import main
from weightloom.records import environment, read_record, summary_over_seeds, write_record


def run_all(record: Path, data: str, splits: list[int], seeds: list[int], flags: list[str], notes: str) -> None:
    runs = []
    for split in splits:
        for seed in seeds:
            folder = Path("runs/bench") / record.stem / f"split{split}-seed{seed}"
            if not (folder / "record.json").exists():
                there = (folder / "config.json").exists()
                options = ["--data", data, "--split", str(split), "--seed", str(seed), *flags]
                main(["fewshot", "--resume", str(folder)] if there else ["fewshot", "--run", str(folder), *options])
            runs.append(read_record(folder / "record.json"))
    scores = []
    for row in runs[0]["scores"]:
        same = [
            other
            for run in runs
            for other in run["scores"]
            if (other["method"], other["setting"]) == (row["method"], row["setting"])
        ]
        scores.append(
            {
                "method": row["method"],
                "setting": row["setting"],
                "name": row["name"],
                "better": row["better"],
                **summary_over_seeds([other["mean"] for other in same]),
                "ci95_over_tasks": [other["ci95"] for other in same],
                "tasks": row["tasks"],
                "also": {k: summary_over_seeds([o["also"][k]["mean"] for o in same]) for k in row["also"]},
                "adapt_time_s": sorted(o["adapt_time_s"] for o in same)[len(same) // 2],
            }
        )
    write_record(
        record,
        {
            "command": " ".join(["python", "benchmarks/fewshot.py", *sys.argv[1:]]),
            "config": {**runs[0]["config"], "splits": splits, "seeds": seeds},
            "runs": [f"split {split}, seed {seed}" for split in splits for seed in seeds],
            "scores": scores,
            "cost": {
                "train_wall_time_s": [run["cost"]["train_wall_time_s"] for run in runs],
                "wall_time_s": sum(run["cost"]["wall_time_s"] for run in runs),
                "peak_memory_bytes": max(run["cost"]["peak_memory_bytes"] for run in runs),
                **environment(),
                "threads": runs[0]["config"]["threads"],
            },
            "notes": notes,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--splits", type=int, nargs="+", default=[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--notes", default="ci95 is over runs by Student's t; ci95_over_tasks over tasks within a run.")
    known, rest = parser.parse_known_args()
    run_all(known.record, known.data, known.splits, known.seeds, rest, known.notes)
