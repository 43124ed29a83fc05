"""Fuzzing of the engines: random base networks, compared with persistent copies per task.

In:   seeds.
Out:  the number of programs per engine and verdict (``equal``, ``refused``, ``silent``,
      ``unclear``), and the smallest failing programs as text.
Independent of the implementation of the engines.

Run:  ``python -m weightloom.testing.fuzz --programs 1000``

Source:
    Yang, Chen, Eide and Regehr, "Finding and Understanding Bugs in C Compilers" (2011): random
    programs with one meaning, run by several implementations. Zeller and Hildebrandt, "Simplifying
    and Isolating Failure-Inducing Input" (2002): programs are reduced while they still fail.
"""

import argparse
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from weightloom.runs.record import Record, environment, write_record
from weightloom.testing.copies import InvalidProgramError
from weightloom.testing.oracle import Verdict, judge
from weightloom.testing.programs import Program, draw

ENGINES = ("auto", "vmap", "aligned", "loop")
VERDICTS = ("equal", "refused", "silent", "unclear")
SHOWN = 5
"""Maximum number of failing programs that are printed."""
PROGRAM = "python -m weightloom.testing.fuzz"


@dataclass(frozen=True)
class Finding:
    """Program with the verdict ``silent`` or ``unclear`` on an engine."""

    seed: int
    """Seed of the program, or number of the case."""
    engine: str
    """Name of the engine."""
    verdict: str
    """``silent`` or ``unclear``."""
    message: str
    """Reason, as a phrase."""


@dataclass(frozen=True)
class FuzzReport:
    """Verdicts of the engines on many programs."""

    programs: int
    """Number of programs that were compared."""
    invalid: int
    """Number of programs that were left out: they fail without the library too, or their result
    depends on rounding."""
    counts: dict[str, dict[str, int]]
    """Number of programs by engine and verdict."""
    findings: tuple[Finding, ...]
    """All programs with the verdict ``silent`` or ``unclear``."""
    wall_time_s: float
    """Duration of the whole test."""

    def __str__(self) -> str:
        head = f"{'engine':10}" + "".join(f"{verdict:>10}" for verdict in VERDICTS)
        rows = [
            f"{engine:10}" + "".join(f"{its[v]:10}" for v in VERDICTS)
            for engine, its in self.counts.items()
        ]
        total = f"{self.programs} programs in {self.wall_time_s:.0f} s"
        return "\n".join([head, *rows, f"{total}, {self.invalid} invalid ones left out"])


def fuzz(seeds: Iterable[int], engines: Sequence[str] = ENGINES, quiet: bool = True) -> FuzzReport:
    """Run random programs by every engine, and compare with persistent copies of the base.

    Args:
        seeds: Seeds of the programs.
        engines: Engines to test.
        quiet: Print no progress.

    Example:
        >>> fuzz(range(3), engines=["loop"]).programs
        3
    """
    return tally(
        ((seed, "", partial(_verdicts_of, seed, engines)) for seed in seeds), engines, quiet
    )


def _verdicts_of(seed: int, engines: Sequence[str]) -> dict[str, Verdict]:
    return verdicts(draw(seed).text, engines)


def tally(
    cases: Iterable[tuple[int, str, Callable[[], dict[str, Verdict]]]],
    engines: Sequence[str],
    quiet: bool = True,
) -> FuzzReport:
    """Count the verdicts on many cases, and list the silent and unclear ones.

    Args:
        cases: Number of each case, a prefix for its messages, and a function that returns its
            verdicts.
        engines: Engines that the verdicts are about.
        quiet: Print no progress.
    """
    started_s = time.perf_counter()
    counts = {engine: Counter(dict.fromkeys(VERDICTS, 0)) for engine in engines}
    findings: list[Finding] = []
    programs = invalid = 0
    for number, name, judged in cases:
        try:
            found = judged()
        except InvalidProgramError:
            invalid += 1
            continue
        programs += 1
        for engine, (verdict, message) in found.items():
            counts[engine][verdict] += 1
            if verdict in ("silent", "unclear"):
                findings.append(Finding(number, engine, verdict, name + message))
        if not quiet and programs % 100 == 0:
            spent_s = time.perf_counter() - started_s
            print(
                f"{programs} programs, {len(findings)} findings, {1e3 * spent_s / programs:.0f} ms "
                "each",
                flush=True,
            )
    spent_s = time.perf_counter() - started_s
    return FuzzReport(
        programs, invalid, {e: dict(its) for e, its in counts.items()}, tuple(findings), spent_s
    )


def program(seed: int) -> str:
    """Return the random program of a seed, as a Python file that prints its verdicts when run.

    Example:
        >>> program(1) == program(1)
        True
    """
    return draw(seed).text


def verdicts(text: str, engines: Sequence[str] = ENGINES) -> dict[str, Verdict]:
    """Run one program by every engine, and compare with persistent copies of its base.

    Args:
        text: Python code, as from `program`; it is executed.
        engines: Engines to test.

    Raises:
        InvalidProgramError: If the program fails without this library too, or its result depends on
            rounding.
    """
    names: dict[str, Any] = {
        "__name__": "weightloom_fuzzed",
        "ROUGH": ".float()" in text or "float32" in text,
        "BY_BACKWARD": "use_reentrant=True" in text,
    }
    try:
        exec(compile(text, "<program>", "exec"), names)
    except SyntaxError as error:
        raise InvalidProgramError(str(error)) from error
    return judge(names, engines)


def shrink(seed: int, engine: str) -> str:
    """Reduce a program while the verdict on an engine stays the same.

    Args:
        seed: Seed of the program.
        engine: Engine that fails on it.

    Returns:
        The smallest program found, as a Python file.
    """
    return _shrunk(draw(seed), engine).text


def _shrunk(whole: Program, engine: str) -> Program:
    wanted = _verdict(whole, engine)
    is_cut = True
    while is_cut:
        is_cut = False
        for less in whole.smaller():
            if _verdict(less, engine) == wanted:
                whole, is_cut = less, True
                break
    return whole


def _verdict(whole: Program, engine: str) -> tuple[str, str]:
    """Return the verdict and the first three words of its reason."""
    try:
        verdict, message = verdicts(whole.text, [engine])[engine]
    except InvalidProgramError:
        return "invalid", ""
    return verdict, " ".join(message.split()[:3])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a verdict was ``silent`` or ``unclear``, else 0."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=1000, help="number of programs")
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time limit")
    parser.add_argument("--engines", nargs="+", default=ENGINES, help="engines to test")
    parser.add_argument("--record", type=Path, help="JSON file for the report")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = _until(range(options.start, options.start + options.programs), options.seconds)
    report = fuzz(seeds, options.engines, quiet=False)
    print(report)
    for finding, many, less in smallest(report.findings):
        print(f"\n# {finding.verdict}, {finding.engine}, seed {finding.seed}: {finding.message}")
        print(
            f"# {many} findings begin with these words. Smallest program, of "
            f"{', '.join(less.names) or 'one layer'}:"
        )
        print(less.text)
    if options.record:
        config = {name: str(value) for name, value in vars(options).items()}
        write_record(
            options.record,
            record_of(report, config, shlex.join([PROGRAM, *(arguments or sys.argv[1:])])),
        )
    return int(bool(report.findings))


def record_of(report: FuzzReport, config: dict[str, Any], command: str) -> Record:
    """Convert a report to a record, with a score per engine and verdict.

    Args:
        report: The report.
        config: Options of the command.
        command: The command line.
    """
    names = {
        "silent": "silent",
        "unclear": "in words of torch",
        "refused": "refused",
        "equal": "equal",
    }
    scores = [
        {
            "setting": f"{report.programs:,} random programs",
            "method": engine,
            "name": name,
            "mean": its[verdict],
        }
        | {
            "better": "higher" if verdict == "equal" else "lower",
            "ci95": None,
            "tasks": report.programs,
        }
        for verdict, name in names.items()
        for engine, its in report.counts.items()
    ]
    findings = [asdict(finding) for finding in report.findings]
    cost = {**environment(), "wall_time_s": report.wall_time_s}
    notes = (
        "Programs are drawn from a grammar of modules and held against one copy of the base per "
        f"task: outputs and gradients, to 1e-10 in double precision. {report.invalid} programs "
        "that do not run alone were left out. An engine chosen by name refuses what it cannot run; "
        "auto is the default."
    )
    return {
        "command": command,
        "config": config,
        "scores": scores,
        "findings": findings,
        "cost": cost,
        "notes": notes,
    }


def smallest(findings: Iterable[Finding], kinds: int = 20) -> list[tuple[Finding, int, Program]]:
    """Reduce the first finding of each kind, and return the `SHOWN` smallest programs.

    A kind is an engine, a verdict and the first five words of the message.

    Args:
        findings: Silent and unclear programs.
        kinds: Maximum number of kinds, most frequent first.

    Returns:
        Finding, number of findings of its kind, and reduced program. No two programs consist of the
        same statements.
    """
    first: dict[tuple[str, ...], Finding] = {}
    many: Counter[tuple[str, ...]] = Counter()
    for finding in findings:
        kind = finding.engine, finding.verdict, *finding.message.split()[:5]
        first.setdefault(kind, finding)
        many[kind] += 1
    found: dict[tuple[str, ...], tuple[Finding, int, Program]] = {}
    for kind, count in many.most_common(kinds):
        less = _shrunk(draw(first[kind].seed), first[kind].engine)
        found.setdefault(less.names, (first[kind], count, less))
    return sorted(found.values(), key=lambda its: len(its[2].text))[:SHOWN]


def _until(seeds: Iterable[int], seconds: float) -> Iterator[int]:
    ends_s = time.perf_counter() + seconds
    for seed in seeds:
        if time.perf_counter() > ends_s:
            return
        yield seed


if __name__ == "__main__":
    raise SystemExit(main())
