"""Resume runs killed with SIGKILL at random moments, and compare them with an unbroken run.

    python benchmarks/kill.py --kills 20 --record benchmarks/records/kill.json

All numbers except times must be equal bit for bit: every tensor of the last checkpoint, every row
of the metrics, every score of the record. Exits with 1 otherwise.
"""

import argparse
import json
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from weightloom.files import load_tensors
from weightloom.runs.metrics import read_rows
from weightloom.runs.record import environment, write_record

STEPS = 200
OPTIONS = [
    "--data",
    "sinusoid",
    "--steps",
    str(STEPS),
    "--test-tasks",
    "100",
    "--evaluate-every",
    "100",
    "--checkpoint-every",
    "20",
    "--shots",
    "10",
]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "weightloom", "fewshot", "--quiet", *words, "--comparators"]


def numbers(run: Path) -> tuple[dict, list, list]:
    tensors, _ = load_tensors(run / "checkpoints" / "last.safetensors")
    rows = [{k: v for k, v in row.items() if k != "wall_time_s"} for row in read_rows(run)]
    scores = json.loads((run / "record.json").read_text())["scores"]
    return (
        tensors,
        rows,
        [{k: v for k, v in score.items() if k != "adapt_time_s"} for score in scores],
    )


def logged_step(run: Path) -> int:
    rows = read_rows(run)
    return rows[-1]["step"] if rows else 0


def kill_once(run: Path, chance: random.Random) -> int:
    """Start a run, and kill it up to 0.3 s after a random step; return its last logged step."""
    target, later_s = chance.randrange(0, STEPS, 10), chance.uniform(0, 0.3)
    child = subprocess.Popen(
        command("--run", str(run), *OPTIONS), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while child.poll() is None and not (
        run.exists() and logged_step(run) >= target and (run / "metrics.jsonl").exists()
    ):
        time.sleep(0.002)
    time.sleep(later_s)
    child.send_signal(signal.SIGKILL)
    child.wait()
    return logged_step(run)


def main(kills: int, record: Path) -> None:
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        subprocess.run(
            command("--run", str(whole), *OPTIONS), check=True, stdout=subprocess.DEVNULL
        )
        tensors, rows, scores = numbers(whole)
        killed_at, equal = [], []
        for number in range(kills):
            run = Path(folder) / f"killed-{number}"
            killed_at.append(kill_once(run, chance))
            subprocess.run(command("--resume", str(run)), check=True, stdout=subprocess.DEVNULL)
            tensors2, rows2, scores2 = numbers(run)
            same = tensors.keys() == tensors2.keys() and all(
                torch.equal(tensors[k], tensors2[k]) for k in tensors
            )
            equal.append(same and rows == rows2 and scores == scores2)
            print(
                f"killed at step {killed_at[-1]}: {'equal' if equal[-1] else 'DIFFERENT'}",
                flush=True,
            )
    score = {
        "method": "kill -9, then --resume",
        "setting": f"{STEPS} steps",
        "name": "runs equal bit for bit",
        "better": "higher",
        "mean": sum(equal) / len(equal),
        "ci95": None,
        "tasks": kills,
    }
    write_record(
        record,
        {
            "command": shlex.join(["python", "benchmarks/kill.py", *sys.argv[1:]]),
            "config": {"options": OPTIONS, "killed_after_logging_step": killed_at, "equal": equal},
            "scores": [score],
            "cost": environment(),
            "notes": "The moment is a logged step drawn at random plus up to 0.3 s.",
        },
    )
    if not all(equal):
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--record", type=Path, required=True)
    arguments = parser.parse_args()
    main(arguments.kills, arguments.record)
