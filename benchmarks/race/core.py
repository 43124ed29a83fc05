"""Step times of this library against plain torch: ``python -m benchmarks.race core``.

In:   a `CoreConfig`.
Out:  tables on the terminal, a record of all numbers.
Independent of the contenders, which `contests` builds.
"""

import sys
import time
from statistics import geometric_mean
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.race.config import CoreConfig
from benchmarks.race.contests import BEST, Bar, Contest, contests
from benchmarks.race.roofline import SIDE, flops, product_rate, share
from benchmarks.race.timing import alternate, clock_for, clock_words, peak_memory_bytes, ratio
from weightloom import FiLM, MLPHyperNetwork, apply_per_task, in_chunks
from weightloom.runs.record import environment, write_record
from weightloom.runs.words import time_text

Row = dict[str, Any]


def run_core(config: CoreConfig, command: str) -> dict[str, Any]:
    """Time every contest, print the tables, and write the record if ``config.record`` is set.

    Args:
        config: Options of the run.
        command: Command line, for the record.

    Returns:
        The record: command, config, scores, rows, scale, cost, notes.
    """
    begun, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        rows, skipped = _all_rows(config)
        scale = _scale(config) if "scale" in config.only else []
        facts = environment()
    finally:
        torch.set_num_threads(threads)
    record = {
        "command": command,
        "config": config.to_dict(),
        "scores": [_score(row) for row in rows]
        + _choices(rows)
        + ([_memory_score(scale)] if scale else []),
        "rows": rows,
        "scale": scale,
        "cost": {**facts, "wall_time_s": time.perf_counter() - begun},
        "notes": " ".join(
            [
                "A step is forward, one loss, backward; no optimiser. Contenders take turns in one "
                "process. A ratio is of medians; beside it stand the quartiles of the ratios round "
                "by round.",
                clock_words(config.threads),
                f"A share is of the rate at which float32 matrices of {SIDE} by {SIDE} are "
                "multiplied, measured beside each workload; operations are those of the contender "
                "that `flops_of` names, which are what the workload needs.",
                *skipped,
            ]
        ),
    }
    print_core(record)
    if config.record:
        write_record(config.record, record)
    return record


def print_core(record: dict[str, Any]) -> None:
    """Print the ratios beside their bars, the shares of the core's rate, the scale, the notes."""
    console = Console()
    for setting in dict.fromkeys(row["setting"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["setting"] == setting]
        console.print(_ratios(setting, rows))
    if any("share" in row for row in record["rows"]):
        console.print(_shares(record["rows"]))
    if record["scale"]:
        console.print(_growth(record["scale"]))
    console.print(record["notes"], highlight=False)


def _ratios(setting: str, rows: list[Row]) -> Table:
    """Return the table of one setting: ratios, quartiles, bars and verdicts."""
    table = Table(title=setting, box=SIMPLE_HEAD, title_justify="left")
    for head in ("a step of", "over", "ratio", "quartiles", "bar", ""):
        table.add_column(head, justify="right" if head in ("ratio", "quartiles") else "left")
    for row in rows:
        found, of, spread = row["ratio"], f"{row['of']}, memory", "exact"
        if row["unit"] == "time":
            of, spread = row["of"], f"{found['low']:.2f} to {found['high']:.2f}"
        bar, verdict = f"{row['relation']} {row['bound']:g}", _verdict(row["holds"])
        table.add_row(of, row["against"], f"{found['median']:.3g}", spread, bar, verdict)
    return table


def _verdict(holds: bool) -> str:
    return "holds" if holds else "does NOT hold"


def _growth(rows: list[Row]) -> Table:
    """Return the table of time and peak memory per number of tasks."""
    table = Table(title="Generate and run, in chunks", box=SIMPLE_HEAD)
    for head in ("tasks", "seconds", "microseconds a task", "peak MB", "training: peak MB"):
        table.add_column(head, justify="right")
    for row in rows:
        each = f"{1e6 * row['seconds'] / row['tasks']:.1f}"
        keys = ("peak_memory_bytes", "training_peak_memory_bytes")
        peaks = (f"{row[key] / 1e6:.2f}" for key in keys)
        table.add_row(f"{row['tasks']:,}", f"{row['seconds']:.3f}", each, *peaks)
    return table


def _shares(rows: list[Row]) -> Table:
    """Return the table of shares of the core's matrix product rate, per contender."""
    table = Table(
        title="Share of this core's rate of matrix products", box=SIMPLE_HEAD, title_justify="left"
    )
    for head in ("workload", "a step of", "time", "needs, MFLOP", "GFLOP/s", "share"):
        table.add_column(head, justify="left" if head in ("workload", "a step of") else "right")
    for row in (row for row in rows if "share" in row):
        for number, (name, reached) in enumerate(row["share"].items()):
            rate = reached * row["product_flops_per_s"] / 1e9
            cells = (
                time_text(row["ms"][name] / 1e3),
                f"{row['flops'] / 1e6:,.1f}",
                f"{rate:.1f}",
                f"{100 * reached:.0f} %",
            )
            table.add_row("" if number else row["setting"], name, *cells)
    return table


def _all_rows(config: CoreConfig) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    skipped = []
    for contest in contests(tuple(name for name in config.only if name != "scale")):
        if isinstance(contest, str):
            skipped.append(f"Not timed: {contest}.")
            continue
        print(f"timing {contest.setting}", file=sys.stderr, flush=True)
        rows += _rows(contest, config)
    return rows, skipped


def _rows(contest: Contest, config: CoreConfig) -> list[Row]:
    """Time a contest; a row per bar, the first with milliseconds, memory and shares."""
    clock = clock_for(config.threads)
    rate = product_rate(clock)
    times = alternate(contest.steps, config.rounds, config.warmup, clock)
    held = {name: peak_memory_bytes(contest.steps[name]) for name in contest.memory}
    medians = {
        name: ratio(times, name, name)["median"] * sorted(its)[len(its) // 2]
        for name, its in times.items()
    }
    rows = []
    for bar in contest.bars:
        against = _against(bar, medians)
        found = ratio(times, bar.of, against) if bar.unit == "time" else _of_memory(bar, held)
        if (bar.against, against) == (BEST, contest.chosen):  # the same engine: only noise differs
            found = {"median": 1.0, "low": 1.0, "high": 1.0}
        facts = {
            "of": contest.label or bar.of,
            "against": against,
            "relation": bar.relation,
            "bound": bar.bound,
            "unit": bar.unit,
        }
        holds = _holds(bar, found["median"])
        rows.append({"setting": contest.setting, **facts, "ratio": found, "holds": holds})
    rows[0] |= {
        "ms": {name: 1e3 * value for name, value in medians.items()},
        "peak_memory_bytes": held,
    }
    if contest.counted:
        needed = flops(contest.steps[contest.counted])
        rows[0] |= {
            "flops": needed,
            "flops_of": contest.counted,
            "product_flops_per_s": rate,
            "share": {name: share(needed, seconds, rate) for name, seconds in medians.items()},
        }
    return rows


def _against(bar: Bar, medians: dict[str, float]) -> str:
    """Return the contender in the denominator: that of the bar, or the fastest other."""
    if bar.against != BEST:
        return bar.against
    return min((name for name in medians if name != bar.of), key=medians.__getitem__)


def _holds(bar: Bar, value: float) -> bool:
    return value <= bar.bound if bar.relation == "at most" else value >= bar.bound


def _of_memory(bar: Bar, held: dict[str, int]) -> dict[str, float]:
    none = held[bar.beyond] if bar.beyond else 0
    value = (held[bar.of] - none) / (held[bar.against] - none)
    return {"median": value, "low": value, "high": value}


def _score(row: Row) -> dict[str, Any]:
    """Return a ratio as a score, in the form common to all records."""
    of = f"{row['of']} over {row['against']}" + (", memory" if row["unit"] == "memory" else "")
    better = "lower" if row["relation"] == "at most" else "higher"
    facts = {"name": "ratio", "better": better, "mean": row["ratio"]["median"], "ci95": None}
    return {"setting": row["setting"], "method": of, **facts}


def _scale(config: CoreConfig, chunk_size: int = 100) -> list[Row]:
    """Time and measure the peak memory of generated networks in chunks, per number of tasks."""
    torch.manual_seed(0)
    base = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    hyper = MLPHyperNetwork(base, 16, form=FiLM(), generate="*")
    rows = []
    for tasks in config.tasks:
        condition, x = torch.randn(tasks, 16), torch.randn(8, 32)

        def run(condition: Tensor, x: Tensor = x) -> Tensor:
            inputs = x.expand(len(condition), *x.shape)
            output: Tensor = apply_per_task(base, hyper(condition), inputs)
            return output.mean((1, 2))

        def forward(condition: Tensor = condition, run: Any = run) -> None:
            with torch.no_grad():
                in_chunks(run, condition, chunk_size=chunk_size)

        def training(condition: Tensor = condition, run: Any = run) -> None:
            loss = in_chunks(run, condition, chunk_size=chunk_size).mean()
            torch.autograd.grad(loss, list(hyper.parameters()))

        print(f"timing {tasks:,} tasks, {chunk_size} at a time", file=sys.stderr, flush=True)
        times = alternate({"forward": forward}, rounds=5, warmup=1, clock=clock_for(config.threads))
        peaks = {"peak_memory_bytes": forward, "training_peak_memory_bytes": training}
        held = {name: peak_memory_bytes(step) for name, step in peaks.items()}
        rows.append({"tasks": tasks, "seconds": sorted(times["forward"])[2], **held})
    return rows


def _choices(rows: list[Row]) -> list[dict[str, Any]]:
    """Return the geometric mean of auto over the best engine, as a score; empty without ratios."""
    ratios = [row["ratio"]["median"] for row in rows if row["setting"].startswith("auto over")]
    if not ratios:
        return []
    facts = {"name": "ratio", "better": "lower", "mean": geometric_mean(ratios), "ci95": None}
    return [
        {
            "setting": "auto over the best engine",
            "method": f"geometric mean of {len(ratios)}",
            **facts,
        }
    ]


def _memory_score(scale: list[Row]) -> dict[str, Any]:
    """Return the growth of training memory from a full chunk, 100 tasks, to the largest run."""
    filled = next((row for row in scale if row["tasks"] >= 100), scale[-1])
    most = max(scale, key=lambda row: int(row["tasks"]))
    growth = most["training_peak_memory_bytes"] / filled["training_peak_memory_bytes"]
    facts = {"name": "ratio", "better": "lower", "mean": growth, "ci95": None}
    return {
        "setting": "in chunks of 100",
        "method": f"memory of {most['tasks']:,} tasks over {filled['tasks']:,}",
        **facts,
    }
