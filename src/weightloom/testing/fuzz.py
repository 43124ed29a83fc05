"""Random bases, run by every engine against persistent copies.

How often is the library silently wrong?

In:   seeds.
Out:  how many programs each engine ran equally, refused, got wrong without a word or failed in
      words not its own; the smallest failing programs as files.
Knows nothing of how an engine runs.

Run:  ``python -m weightloom.testing.fuzz --programs 1000``

Source:
    Yang, Chen, Eide and Regehr, "Finding and Understanding Bugs in C Compilers" (2011): random
    programs that mean one thing, run by several implementations. Zeller and Hildebrandt,
    "Simplifying and Isolating Failure-Inducing Input" (2002): programs are cut down while they
    still fail.
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
PROGRAM = "python -m weightloom.testing.fuzz"


@dataclass(frozen=True)
class Finding:
    """A program that an engine got wrong without a word, or failed in words that are not the library's."""

    seed: int
    engine: str
    verdict: str
    message: str


@dataclass(frozen=True)
class FuzzReport:
    """What the engines made of many programs."""

    programs: int
    """How many ran."""
    invalid: int
    """How many more were drawn that do not run without the library either, or that rounding
    decides."""
    counts: dict[str, dict[str, int]]
    """How many programs of each verdict, by engine."""
    findings: tuple[Finding, ...]
    """The silent and the unclear ones."""
    wall_time_s: float

    def __str__(self) -> str:
        head = f"{'engine':10}" + "".join(f"{verdict:>10}" for verdict in VERDICTS)
        rows = [
            f"{engine:10}" + "".join(f"{its[v]:10}" for v in VERDICTS)
            for engine, its in self.counts.items()
        ]
        total = f"{self.programs} programs in {self.wall_time_s:.0f} s, {self.invalid} invalid ones left out"
        return "\n".join([head, *rows, total])


def fuzz(seeds: Iterable[int], engines: Sequence[str] = ENGINES, quiet: bool = True) -> FuzzReport:
    """Run the programs of some seeds by every engine, and compare with persistent copies of the base.

    Args:
        seeds: One program each.
        engines: The engines to try.
        quiet: Print no line of progress.

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
    """Count verdicts, and list what was silent or unclear.

    Args:
        cases: Number of each, what stands before its message, and a function that gives its
            verdicts.
        engines: The engines that are tried.
        quiet: Print no line of progress.
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
    """The program of a seed, as a Python file that says when it is run what every engine makes of it.

    Example:
        >>> program(1) == program(1)
        True
    """
    return draw(seed).text


def verdicts(text: str, engines: Sequence[str] = ENGINES) -> dict[str, Verdict]:
    """Run one program by every engine.

    Args:
        text: As from `program`.
        engines: The engines to try.

    Raises:
        InvalidProgramError: If the program does not run without this library either.
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
    """Cut a program down while an engine gives the same verdict on it.

    Args:
        seed: The program's seed.
        engine: The engine that fails.

    Returns:
        The smallest program that was found.
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
    """The verdict, and the first words of why."""
    try:
        verdict, message = verdicts(whole.text, [engine])[engine]
    except InvalidProgramError:
        return "invalid", ""
    return verdict, " ".join(message.split()[:3])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 where an engine was silently wrong or failed in words not its own."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=1000, help="how many programs to draw")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--engines", nargs="+", default=ENGINES, help="engines to try")
    parser.add_argument("--record", type=Path, help="file to write the report to, as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = _until(range(options.start, options.start + options.programs), options.seconds)
    report = fuzz(seeds, options.engines, quiet=False)
    print(report)
    for finding, many, less in smallest(report.findings):
        print(f"\n# {finding.verdict}, {finding.engine}, seed {finding.seed}: {finding.message}")
        print(
            f"# {many} findings begin with these words. Smallest program, of "
            f"{', '.join(less.names) or 'nothing'}:"
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
    """A report as a record: what share of programs each engine ran equally, refused, or got wrong."""
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
    """Cut down the first finding of each kind, and choose the smallest programs.

    Args:
        findings: Silent and unclear ones.
        kinds: How many kinds to look at, most frequent first. Of a kind are those of one engine and
            verdict whose messages begin with the same words.

    Returns:
        A finding, how many there are of its kind, and its program cut down; no two programs of the
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
