"""Run an application over seeds, and write one record with the published value.

    python benchmarks/seeds.py fewshot --record benchmarks/records/digits.json --data digits --folds
    0 1 2 --seeds 0 1 2

All other flags are passed to `weightloom APP`. The run lies below ``runs/bench``, and is resumed if
it exists. The record holds every seed, failed ones included.
"""

import argparse
import shlex
import sys
from pathlib import Path

from weightloom.cli import main
from weightloom.runs.record import read_record, write_record


def run(known: argparse.Namespace, flags: list[str]) -> None:
    """Start the run or resume it, then copy its record and add command, reference and notes."""
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
    parser.add_argument("--value", default=None, help="published value")
    parser.add_argument(
        "--source", default=None, help="authors, year and table of the published value"
    )
    parser.add_argument("--differs", default=None, help="differences between its protocol and ours")
    run(*parser.parse_known_args())
