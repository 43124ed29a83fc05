"""Run `weightloom fewshot` over seeds and splits, and write one record.

    python benchmarks/fewshot.py --record benchmarks/records/digits.json --data digits --splits 0 1 2 --seeds 0 1 2

Every other flag is one of `weightloom fewshot`. Runs go below ``runs/bench``; a run that is there already is resumed,
so a benchmark that was stopped goes on where it was. The record holds every run; nothing that failed is left out.

With ``--sweep RATE ...`` every trained method is first trained alone at each of these learning rates and judged on
validation tasks, and runs at the one whose mean score is best; the record holds the scores.
"""

import argparse
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import tyro
from tyro.conf import OmitArgPrefixes

from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.problems import problem_of
from weightloom.apps.fewshot.run import run_fewshot
from weightloom.cli import main
from weightloom.runs.record import competes, environment, label, read_record, summary_over_seeds, write_record


def run_all(known: argparse.Namespace, flags: list[str]) -> None:
    """Run every split and seed; where there are several splits, a seed's score is the mean over them."""
    record, runs = known.record, {}
    swept = sweep(known, flags) if known.sweep else {}
    if swept:
        flags = [*flags, "--rates", *(f"{method}={best(swept[method])}" for method in swept)]
    for split in known.splits:
        for seed in known.seeds:
            folder = Path("runs/bench") / record.stem / f"split{split}-seed{seed}"
            if not (folder / "record.json").exists():
                there = (folder / "config.json").exists()
                options = ["--data", known.data, "--split", str(split), "--seed", str(seed), *flags]
                main(["fewshot", "--resume", str(folder)] if there else ["fewshot", "--run", str(folder), *options])
            if int(os.environ.get("LOCAL_RANK", "0")) > 0:
                return  # a process that only helped to train
            runs[split, seed] = read_record(folder / "record.json")
    first = next(iter(runs.values()))
    rows = [summarise(runs, known, number) for number in range(len(first["scores"]))]
    trained = dict.fromkeys(m for run in runs.values() for m in run["cost"]["train_wall_time_s"])
    seconds = {m: [run["cost"]["train_wall_time_s"].get(m) for run in runs.values()] for m in trained}
    failures = [
        f"{m} failed: {why.partition('. ')[0]}." for run in runs.values() for m, why in run.get("failures", {}).items()
    ]
    write_record(
        record,
        {
            "command": shlex.join(["python", "benchmarks/fewshot.py", *sys.argv[1:]]),
            "config": {**first["config"], "splits": known.splits, "seeds": known.seeds},
            "scores": rows,
            "paired": paired(rows, first),
            **({"sweep": swept} if swept else {}),
            **({"many": first["many"]} if "many" in first else {}),
            "cost": {
                "train_wall_time_s": seconds,
                "wall_time_s": sum(run["cost"]["wall_time_s"] for run in runs.values()),
                "peak_memory_bytes": max(run["cost"]["peak_memory_bytes"] for run in runs.values()),
                **environment(first["cost"]["device"]),
                "threads": first["config"]["threads"],
            },
            "reference": {"value": known.value, "source": known.source, "differs": known.differs},
            "notes": " ".join([*([known.notes] if known.notes else []), *dict.fromkeys(failures)]),
        },
    )


def sweep(known: argparse.Namespace, flags: list[str]) -> dict[str, dict[str, float]]:
    """Train every trained method alone at each rate; its mean score on validation tasks over all settings.

    With ``--sweep-only`` it is these methods alone; the others keep ``--outer-lr``.
    """
    config = replace(_config_of(["--data", known.data, *flags]), seed=known.seeds[0], held_out="validation")
    problem, swept = problem_of(config.resolved()), {}
    for method in config.resolved().methods:
        if not problem.learner(method).trained or (known.sweep_only and method not in known.sweep_only):
            continue
        for rate in known.sweep:
            folder = Path("runs/bench") / known.record.stem / f"sweep-{method}-{rate}"
            if not (folder / "record.json").exists():
                alone = replace(config, method=method, comparators=(), outer_lr=rate, rates=())
                run_fewshot(alone, folder, resume=(folder / "config.json").exists(), quiet=True)
            rows = [
                row
                for row in read_record(folder / "record.json")["scores"]
                if row["method"] == method and competes(row)
            ]
            swept.setdefault(method, {})[str(rate)] = mean(row["mean"] for row in rows)
            print(f"{method} at {rate}: {swept[method][str(rate)]:.4f} on validation tasks", flush=True)
    return swept


def best(scores: dict[str, float]) -> str:
    """The rate of the highest score."""
    return max(scores, key=scores.get)


def _config_of(flags: list[str]) -> FewShotConfig:
    return tyro.cli(FewShotConfig, args=[flag for flag in flags if flag != "--quiet"], config=(OmitArgPrefixes,))


def summarise(runs: dict, known: argparse.Namespace, number: int) -> dict:
    """One row over all runs: with one seed the interval over tasks, with several that over seeds.

    A seed in which the method failed has no score: the row counts it and is over the others.
    """
    rows = {key: run["scores"][number] for key, run in runs.items()}
    there = {key: row for key, row in rows.items() if row["mean"] is not None}
    seeds = [seed for seed in known.seeds if all((split, seed) in there for split in known.splits)]
    row = next(iter((there or rows).values()))

    def over_seeds(score: str | None = None) -> dict:
        if not seeds:
            return {"mean": None, "ci95": None}
        picked = [[there[split, seed] for split in known.splits] for seed in seeds]
        return summary_over_seeds([mean((p["also"][score] if score else p)["mean"] for p in each) for each in picked])

    one = len(runs) == 1
    errors = [each["calibration"]["ece"] for each in there.values() if "calibration" in each]
    return {
        **{key: row[key] for key in ("method", "role", "setting", "name", "better", "tasks") if key in row},
        **({"mean": row["mean"], "ci95": row["ci95"]} if one else over_seeds()),
        "per_run": {f"split {split}, seed {seed}": (r["mean"], r["ci95"]) for (split, seed), r in rows.items()},
        **({"failed": f"{len(rows) - len(there)} of {len(rows)} runs"} if len(there) < len(rows) else {}),
        "also": row["also"] if one else {score: over_seeds(score) for score in row["also"]},
        "adapt_time_s": median(each["adapt_time_s"] for each in there.values()) if there else None,
        **({"ece": mean(errors)} if errors else {}),
    }


def paired(rows: list[dict], first: dict) -> dict:
    """Ours less each other method on the same tasks: mean and interval over runs, or of one run over its tasks."""
    ahead = {(row["setting"], label(row)): row.get("ours_ahead") for row in first["scores"]}
    found = {}
    for setting in dict.fromkeys(row["setting"] for row in rows):
        ours, *others = (row["per_run"] for row in rows if row["setting"] == setting)
        names = [label(row) for row in rows if row["setting"] == setting]
        for name, other in zip(names[1:], others, strict=True):
            gaps = [ours[run][0] - other[run][0] for run in ours if None not in (ours[run][0], other[run][0])]
            if len(gaps) > 1:
                found[f"{setting}: {names[0]} - {name}"] = summary_over_seeds(gaps)
            elif one := ahead.get((setting, name)):
                found[f"{setting}: {names[0]} - {name}"] = {**one, "over": "tasks"}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--splits", type=int, nargs="+", default=[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sweep", type=float, nargs="+", help="learning rates to try on validation tasks")
    parser.add_argument("--sweep-only", nargs="+", help="the methods to try them for")
    parser.add_argument("--notes", default="")
    parser.add_argument("--value", default=None, help="a published value to stand beside ours")
    parser.add_argument("--source", default=None, help="authors, year, table of that value")
    parser.add_argument("--differs", default=None, help="how its protocol differs from ours")
    run_all(*parser.parse_known_args())
