"""Overhead of `train()` over a loop by hand, and of a command's start over torch's import.

    python benchmarks/training.py --record benchmarks/records/training.json

The model is that of `weightloom fewshot --data sinusoid`. The loop by hand draws the same tasks,
clips the gradient and schedules the learning rate as `train()` does, with torch's fused AdamW, but
without logs and checkpoints. Both end with the same parameters, bit for bit. The contenders take
turns in one process, a block of steps each. All times are CPU time of one thread.
"""

import argparse
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn

from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.problems import Problem, problem_of
from weightloom.runs.record import environment, write_record
from weightloom.training import TrainOptions, train

BARE = "loop by hand"
FIRST_STEP = """
import sys
from weightloom.cli import main
from weightloom.runs.progress import TrainingProgress
def end(self, step, loss):
    raise SystemExit
TrainingProgress.step = end
main(["fewshot", "--data", "sinusoid", "--quiet"])
"""
STARTS = {
    "import torch": ["-c", "import torch"],
    "weightloom list": ["-m", "weightloom", "list"],
    "weightloom doctor": ["-m", "weightloom", "doctor"],
    "weightloom fewshot, to the end of its first step": ["-c", FIRST_STEP],
}
"""Arguments of Python for each start; the first is the reference."""
BOUNDS = {
    "weightloom list": 0.5,
    "weightloom doctor": 1.2,
    "weightloom fewshot, to the end of its first step": 1.5,
}
"""Largest ratio of CPU time to torch's import."""


def by_hand(problem: Problem, model: nn.Module, options: TrainOptions) -> None:
    """Train with the shortest loop that takes the same steps as `train()`."""
    source, generator = problem.train_source(), torch.Generator()
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=options.outer_lr, weight_decay=0.0, fused=True)
    for step in range(options.steps):
        generator.manual_seed(step)
        loss = model(source.sample(options.tasks, generator)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, options.clip_norm)
        optimiser.param_groups[0]["lr"] = options.learning_rate(step)
        optimiser.step()


def time_loops(tasks: int, steps: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds per step of each contender, and its speed relative to the loop by hand.

    Both as quartiles over the rounds.
    """
    config = FewShotConfig("sinusoid", tasks=tasks).resolved()
    problem = problem_of(config)
    assert config.outer_lr and config.clip_norm
    options = TrainOptions(
        steps=steps, tasks=tasks, outer_lr=config.outer_lr, clip_norm=config.clip_norm
    )
    few = TrainOptions(steps=10, tasks=tasks)

    def trained(model: nn.Module, run: Path | None = None, options: TrainOptions = options) -> None:
        train(model, problem.train_source(), None, options, run=run)

    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Callable[[nn.Module, int], None]] = {
            BARE: lambda model, number: by_hand(problem, model, options),
            "train()": lambda model, number: trained(model),
            "train(run=...)": lambda model, number: trained(model, Path(folder) / str(number)),
        }
        trained(problem.learner(config.method), options=few)
        by_hand(problem, problem.learner(config.method), few)  # imports happen in a first step
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds):
            ends: list[nn.Module] = []
            for name, run in contenders.items():
                torch.manual_seed(0)
                ends.append(problem.learner(config.method))
                begun = time.process_time()
                run(ends[-1], number)
                times[name].append(1000 * (time.process_time() - begun) / steps)
            check_equal(ends)
    return {
        name: {
            "ms_per_step": of_quartiles(own),
            "speed": of_quartiles([bare / ms for bare, ms in zip(times[BARE], own, strict=True)]),
        }
        for name, own in times.items()
    }


def check_equal(models: list[nn.Module]) -> None:
    """Check that all parameters are equal, bit for bit."""
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        assert all(torch.equal(parameters[0], other) for other in parameters), (
            "the contenders differ"
        )


def cpu_s(words: list[str], folder: str) -> float:
    """Return the CPU seconds of one Python process with these arguments."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def time_starts(rounds: int) -> dict[str, Any]:
    """Return CPU seconds per start and their ratio to torch's import: quartiles over rounds."""
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    with tempfile.TemporaryDirectory() as folder:
        for name, words in [*STARTS.items()] * (rounds + 1):
            times[name].append(cpu_s(words, folder))
    first = next(iter(STARTS))
    return {
        name: {
            "cpu_s": of_quartiles(own[1:]),
            "ratio": of_quartiles(
                [one / torch_s for one, torch_s in zip(own[1:], times[first][1:], strict=True)]
            ),
        }
        for name, own in times.items()
    }


def of_quartiles(values: list[float]) -> dict[str, float]:
    """Return the median and the lower and upper quartile."""
    low, _, high = quantiles(values, n=4, method="inclusive")
    return {"median": median(values), "lower_quartile": low, "upper_quartile": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    known = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    loops = {
        f"{tasks} tasks a step": time_loops(tasks, known.steps, known.rounds) for tasks in (32, 4)
    }
    starts = time_starts(known.rounds)
    for setting, of_setting in loops.items():
        for name, one in of_setting.items():
            speed = one["speed"]
            print(
                f"{setting}, {name}: {one['ms_per_step']['median']:.2f} ms, {speed['median']:.3f} "
                f"of the loop by hand (quartiles {speed['lower_quartile']:.3f} to "
                f"{speed['upper_quartile']:.3f})"
            )
    for name, one in starts.items():
        bound = f", at most {BOUNDS[name]}" if name in BOUNDS else ""
        print(
            f"{name}: {one['cpu_s']['median']:.2f} s, {one['ratio']['median']:.2f} of torch's "
            f"import{bound}"
        )
    if known.record:
        scores = [
            {
                "method": name,
                "setting": setting,
                "name": "steps over those by hand",
                "better": "higher",
            }
            | {"mean": one["speed"]["median"], "ci95": None}
            for setting, of_setting in loops.items()
            for name, one in of_setting.items()
        ] + [
            {
                "method": name,
                "setting": "start",
                "name": "CPU time over torch's import",
                "better": "lower",
            }
            | {"mean": one["ratio"]["median"], "ci95": None}
            for name, one in starts.items()
        ]
        write_record(
            known.record,
            {
                "command": shlex.join(["python", "benchmarks/training.py", *sys.argv[1:]]),
                "config": {
                    "steps": known.steps,
                    "rounds": known.rounds,
                    "bounds": BOUNDS | {"train()": 0.95},
                },
                "scores": scores,
                "loops": loops,
                "starts": starts,
                "cost": environment(),
                "notes": "CPU time of one thread. Ratios are taken within a round, and the median "
                "over rounds is given. All contenders of a round end with the same parameters, "
                "bit for bit.",
            },
        )


if __name__ == "__main__":
    main()
