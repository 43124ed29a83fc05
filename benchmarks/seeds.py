"""Run an application over seeds, and write one record with a published value beside it.

    python benchmarks/seeds.py fewshot --record benchmarks/records/digits.json --data digits --folds
    0 1 2 --seeds 0 1 2

Every other flag is one of `weightloom APP`. The run lies below ``runs/bench``; one that is there
already is gone on with, so a benchmark that was stopped goes on where it was. The record holds
every seed; none that failed is left out.
"""

import argparse
import shlex
import sys
from pathlib import Path

from weightloom.cli import main
from weightloom.runs.record import read_record, write_record


def run(known: argparse.Namespace, flags: list[str]) -> None:
    """Run it, or go on with it, then copy its record."""
    folder = Path("runs/bench") / known.record.stem
    if not (folder / "record.json").exists():
        there = (folder / "run.json").exists()
        main(
            [known.app, "--resume", str(folder)]
            if there
            else [known.app, "--run", str(folder), *flags]
        )
    record = read_record(folder / "record.json")
    record["command"] = shlex.join(["python", "benchmarks/seeds.py", *sys.argv[1:]])
    record["reference"] = {"value": known.value, "source": known.source, "differs": known.differs}
    record["notes"] = " ".join(text for text in (known.notes, record.get("notes")) if text)
    write_record(known.record, record)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("app", help="the application, as in `fewshot`")
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--notes", default="")
    parser.add_argument("--value", default=None, help="a published value to stand beside ours")
    parser.add_argument("--source", default=None, help="authors, year, table of that value")
    parser.add_argument("--differs", default=None, help="how its protocol differs from ours")
    run(*parser.parse_known_args())
