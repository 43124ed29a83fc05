"""Compositional generalisation on the hyperteacher: accuracy on new combinations of known modules.

    python benchmarks/hyperteacher.py --record benchmarks/records/hyperteacher.json --active 2 1
    --seeds 0 1 2

One process, one thread. Each run of an arm, a setting and a seed is kept as a part below
``runs/bench``. Started again, the benchmark skips the parts that are complete, and repeats those of
other settings. ``--validate`` scores new tasks of known combinations only, and writes no record:
the options of the arms were tuned this way.
"""

import argparse
import itertools
import shlex
import sys
import time
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from weightloom.learners.learner import Learner
from weightloom.learners.maml import ANIL, MAML
from weightloom.learners.modular import (
    LayerwiseHyperNetwork,
    ModularHyperNetwork,
)
from weightloom.losses import soft_cross_entropy_per_task
from weightloom.networks import mlp
from weightloom.platforms import peak_memory_bytes
from weightloom.runs.record import (
    environment,
    read_record,
    summary,
    summary_over_seeds,
    write_record,
)
from weightloom.tasks import Tasks
from weightloom.tasks.hyperteacher import HyperteacherTasks
from weightloom.training import TrainOptions

TEACHER = {"width": 16, "shots": 128, "queries": 128}
JUDGED = 600
PROBED = 1000

ARMS = {
    "nonlinear": {
        "width": 32,
        "code_per_module": 8,
        "hidden": [64, 64],
        "inner_steps": 5,
        "inner_lr": 0.3,
    },
    "linear": {"width": 32, "code_per_module": 8, "hidden": [], "inner_steps": 5, "inner_lr": 0.3},
    "anil": {"width": 64, "inner_steps": 10, "inner_lr": 2.0},
    "maml": {"width": 64, "inner_steps": 5, "inner_lr": 0.5},
}
"""Options of each arm. Students have three hidden layers. The hypernetworks' codes are adapted by
Adam, the networks of MAML and ANIL by gradient steps of learned size."""

OUTER = {"tasks": 16, "outer_lr": 3e-3}
"""Training options of every arm."""

STEPS = {1: 3000, 2: 6000}
"""Training steps by the number of active modules: more combinations take longer to learn."""


def build(arm: str, modules: int) -> Learner:
    options = ARMS[arm]
    width, steps, inner_lr = options["width"], options["inner_steps"], options["inner_lr"]
    base = mlp([16, width, width, width, 8])
    if arm == "maml":
        return MAML(base, soft_cross_entropy_per_task, steps, inner_lr, learn_inner_lr=True)
    if arm == "anil":
        *trunk, head = base
        headed = nn.Sequential(OrderedDict(trunk=nn.Sequential(*trunk), head=head))
        return ANIL(headed, soft_cross_entropy_per_task, steps, inner_lr, learn_inner_lr=True)
    hyper = LayerwiseHyperNetwork(base, options["code_per_module"] * modules, options["hidden"])
    return ModularHyperNetwork(base, hyper, soft_cross_entropy_per_task, steps, inner_lr)


def run_all(known: argparse.Namespace) -> None:
    """Run the missing parts, then write the record of all."""
    parts = {}
    for seed, active, arm in itertools.product(known.seeds, known.active, known.arms):
        path = (
            Path("runs/bench")
            / known.record.stem
            / f"m{known.modules}-k{active}-seed{seed}-{arm}.json"
        )
        outer = {**OUTER, "steps": known.steps or STEPS[active]}
        settings = {
            "arm": ARMS[arm],
            "outer": outer,
            "teacher": TEACHER,
            "validate": known.validate,
        }
        if not path.exists() or read_record(path)["settings"] != settings:
            part = {
                "settings": settings,
                **run_one(arm, known.modules, active, seed, known.validate, outer),
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(path, part)
        parts[active, seed, arm] = part = read_record(path)
        told = ", ".join(f"{kind} {score['mean']:.3f}" for kind, score in part["scores"].items())
        print(f"{path.stem}: {told}, {part['wall_time_s']:.0f} s", flush=True)
    if not known.validate:
        write_record(known.record, record_of(parts, known))


def run_one(arm: str, modules: int, active: int, seed: int, validate: bool, outer: dict) -> dict:
    """Train one arm; return its scores on known and new combinations, with its settings' cost."""
    known = HyperteacherTasks(modules, active, seed=seed, **TEACHER)
    new = HyperteacherTasks(modules, active, "ood", seed=seed, **TEACHER)
    torch.manual_seed(seed)
    learner, start_s, start_cpu_s = build(arm, modules), time.monotonic(), time.process_time()
    history = learner.fit(known, TrainOptions(**outer, seed=seed), quiet=not sys.stderr.isatty())
    return {
        "scores": {"known": score(learner, known)}
        | ({} if validate else {"new": score(learner, new)}),
        "code_r2": None if validate else probe(learner, known, new),
        "train_loss": history.last("loss"),
        "wall_time_s": time.monotonic() - start_s,
        "cpu_time_s": time.process_time() - start_cpu_s,
        "parameters": sum(parameter.numel() for parameter in learner.parameters()),
    }


def draw(source: HyperteacherTasks, tasks: int, seed: int = 1 << 40) -> list[Tasks]:
    """Draw tasks with a seed that training does not use, in batches of 100."""
    generator = torch.Generator().manual_seed(seed)
    return [source.sample(100, generator) for _ in range(tasks // 100)]


@torch.no_grad()
def score(learner: Learner, source: HyperteacherTasks) -> dict[str, float]:
    """Return the accuracy against the teacher's likeliest class: mean over tasks, and interval."""
    learner.eval()
    right = [
        (learner.answer(t).argmax(2) == t.query_y.argmax(2)).float().mean(1)
        for t in draw(source, JUDGED)
    ]
    return summary(torch.cat(right))


@torch.no_grad()
def probe(learner: Learner, known: HyperteacherTasks, new: HyperteacherTasks) -> float | None:
    """Return R² of a linear map from the student's code to the teacher's, on new combinations.

    The map is fitted on known combinations. None for learners without a code.
    """
    if not isinstance(learner, ModularHyperNetwork):
        return None

    def codes(source: HyperteacherTasks, tasks: int) -> tuple[Tensor, Tensor]:
        drawn = draw(source, tasks, (1 << 40) + 1)
        layers = torch.cat([learner.condition(t.support) for t in drawn]).unflatten(1, (4, -1))
        unit = nn.functional.rms_norm(layers, layers.shape[2:]).flatten(1)
        return torch.cat([unit, torch.ones(len(unit), 1)], dim=1), torch.cat(
            [t.hidden for t in drawn]
        )

    read, truth = codes(known, PROBED)
    gram = read.T @ read + torch.eye(read.shape[1])
    linear = torch.linalg.solve(gram, read.T @ truth)
    read, truth = codes(new, JUDGED)
    return (
        1 - ((read @ linear - truth).square().sum() / (truth - truth.mean(0)).square().sum()).item()
    )


def wall_times(parts: dict, known: argparse.Namespace) -> dict[str, list[float]]:
    """Return training and scoring seconds of each run, by arm."""
    return {
        arm: [
            parts[active, seed, arm]["wall_time_s"]
            for active in known.active
            for seed in known.seeds
        ]
        for arm in known.arms
    }


def means(runs: dict[str, dict], kind: str) -> list[float]:
    return [run["scores"][kind]["mean"] for run in runs.values()]


def score_row(arm: str, setting: str, kind: str, runs: dict[str, dict]) -> dict:
    """Return an arm's score of one setting over its runs, with those of each run."""
    return {
        "method": arm,
        "setting": setting,
        "name": "accuracy",
        "better": "higher",
        "tasks": JUDGED,
        **summary_over_seeds(means(runs, kind)),
        "per_run": {name: tuple(run["scores"][kind].values()) for name, run in runs.items()},
        "also": {},
        "code_r2": [run["code_r2"] for run in runs.values()],
    }


def differences(setting: str, by_arm: dict[str, list[float]]) -> dict[str, dict]:
    """Return the first arm's accuracy less that of each other arm, paired by seed."""
    first, *others = by_arm
    return {
        f"{setting}: {first} - {arm}": summary_over_seeds(
            [a - b for a, b in zip(by_arm[first], by_arm[arm], strict=True)]
        )
        for arm in others
    }


def record_of(parts: dict, known: argparse.Namespace) -> dict:
    """Return the record: a score per setting and arm, and paired differences from the first arm."""
    scores, paired = [], {}
    for active, kind in itertools.product(known.active, ("new", "known")):
        setting = f"{known.modules} modules, {active} active, {kind} combinations"
        runs = {
            arm: {f"seed {seed}": parts[active, seed, arm] for seed in known.seeds}
            for arm in known.arms
        }
        scores += [score_row(arm, setting, kind, runs[arm]) for arm in known.arms]
        if len(known.seeds) > 1:
            paired |= differences(setting, {arm: means(its, kind) for arm, its in runs.items()})
    seconds = wall_times(parts, known)
    return {
        "command": shlex.join(["python", "benchmarks/hyperteacher.py", *sys.argv[1:]]),
        "config": {
            "modules": known.modules,
            "active": known.active,
            "seeds": known.seeds,
            "outer": {
                f"{k} active": parts[k, known.seeds[0], known.arms[0]]["settings"]["outer"]
                for k in known.active
            },
            "teacher": TEACHER,
            "arms": {arm: ARMS[arm] for arm in known.arms},
        },
        "scores": scores,
        "paired": paired,
        "cost": {
            "train_wall_time_s": seconds,
            "wall_time_s": sum(map(sum, seconds.values())),
            "peak_memory_bytes": peak_memory_bytes(),
            **environment(),
        },
        "reference": {
            "value": {
                "4 modules, 2 active": {
                    "nonlinear": 0.909,
                    "linear": 0.7635,
                    "maml": 0.5541,
                    "anil": 0.6078,
                },
                "4 modules, 1 active": {
                    "nonlinear": 0.2093,
                    "linear": 0.2042,
                    "maml": 0.2053,
                    "anil": 0.4652,
                },
            },
            "source": "Schug et al. (2024), tables A2 to A8, as others quote them",
            "differs": "there the teacher is 32 wide, the students 128 to 512, with 256 points, "
            "128 tasks per step, 200,000 steps and 10 inner steps (100 of ANIL)",
        },
        "notes": known.notes,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, default=Path("benchmarks/records/hyperteacher.json"))
    parser.add_argument("--modules", type=int, default=4)
    parser.add_argument(
        "--active",
        type=int,
        nargs="+",
        default=[2, 1],
        choices=list(STEPS),
        help="active modules per layer at most",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument(
        "--steps",
        type=int,
        default=None,
        help="steps of every arm; default: 3,000 or 6,000, by `--active`",
    )
    parser.add_argument(
        "--validate", action="store_true", help="score known combinations only, and write no record"
    )
    parser.add_argument("--notes", default="")
    run_all(parser.parse_args())
