"""One few-shot run from config to report: train, judge, record, show."""

import copy
import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.figures import sections
from weightloom.apps.fewshot.judge import Scores, failed_row, judge
from weightloom.apps.fewshot.many import time_many
from weightloom.apps.fewshot.problems import Problem, problem_of
from weightloom.apps.fewshot.show import write_showcase
from weightloom.base import autotuned
from weightloom.errors import ConfigError, NonFiniteError
from weightloom.files import write_atomically
from weightloom.learners.learner import Learner
from weightloom.report import build_report
from weightloom.runs.folder import prepare_folder, read_config
from weightloom.runs.record import Record, environment, peak_memory_bytes, write_record
from weightloom.tasks import Tasks, TaskSource
from weightloom.training import History, OneProcess, Processes, TrainOptions, load_model

CONTROL = "shuffled"
VALIDATION_TASKS = 200
"""Tasks to watch a training by."""
FAILURE = "failure.txt"
"""In a comparator's folder: why its training came to no end."""

_PROTOCOL = {
    "group": "Inductive: no method sees query points together.",
    "batch": "Inductive: images are normalised by running statistics of meta-training.",
    "transductive": "Transductive: images are normalised by statistics of all query images of a task together.",
}


def run_fewshot(
    config: FewShotConfig, run: Path, *, command: str = "", resume: bool = False, quiet: bool = False
) -> Record | signal.Signals | None:
    """Meta-train, judge on tasks never seen, and write the run's folder.

    Args:
        config: What to run.
        run: The run's folder; made here, after everything that can be checked was checked.
        command: What was typed, for the record.
        resume: Go on in a folder that holds an unfinished run of the same config.
        quiet: Show no progress.

    Returns:
        The record; the signal if Ctrl-C or SIGTERM ended the run early, its checkpoint written; None from a process
        that only helped to train.

    Raises:
        ConfigError: If the folder already holds a run, or options ask for more than the data have.
        DataError: If the data are missing or damaged.
        NonFiniteError: If training ``config.method`` met a NaN or an infinity. A comparator that does has failed: its
            row says so, and the run goes on.
        CheckpointError: If a checkpoint cannot be written or read.
    """
    start_s = time.monotonic()
    config = config.resolved()
    fabric = launch(config)
    run = Path(fabric.broadcast(str(run)))
    problem = problem_of(config)
    if fabric.global_rank == 0:
        prepare_folder(run, config, resume, "fewshot")
        if not quiet:
            for notice in problem.notices:
                print_line(notice)
    fabric.barrier()
    kept = run / "engines.json" if fabric.global_rank == 0 else None
    with autotuned(kept) if config.autotune else nullcontext():
        return _train_and_judge(config, run, problem, fabric, command, quiet, start_s)


def _train_and_judge(
    config: FewShotConfig, run: Path, problem: Problem, fabric: Processes, command: str, quiet: bool, start_s: float
) -> Record | signal.Signals | None:
    learners: dict[str, Learner] = {}
    spent_s: dict[str, float] = {}
    failures: dict[str, str] = {}
    for method in config.methods:
        torch.manual_seed(config.seed)  # every method starts from the same base network
        learner = problem.learner(method)
        if learner.trained:
            if config.precision == "bf16-mixed":
                learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            history = _train(learner, problem, config, run, method, fabric, quiet)
            if isinstance(history, str):
                failures[method] = history
                continue
            spent_s[method] = round(history.wall_time_s, 2)
            learner.cpu()  # judged on the CPU, wherever it was trained
            if history.stopped_by:
                return history.stopped_by
        learners[method] = learner
    if fabric.global_rank > 0:
        return None
    if not quiet:
        print_line(f"judging on {config.test_tasks} tasks never seen in training")
    record: Record = {
        "command": command,
        "config": config.to_dict(),
        "scores": score_all(learners, problem, config),
        "cost": {
            "train_wall_time_s": spent_s,
            "wall_time_s": round(time.monotonic() - start_s, 2),
            "peak_memory_bytes": peak_memory_bytes(),
            **environment(str(fabric.device)),
        },
        "failures": failures,
        "notes": " ".join(
            [
                f"Intervals are 95 % over tasks. {_PROTOCOL[config.normalisation or 'group']}",
                *(f"{method} failed: {why.partition('. ')[0]}." for method, why in failures.items()),
            ]
        ),
    }
    if problem.many:
        record["many"] = time_many(learners[config.method], problem, problem.many)
    record["version"], record["commit"] = record["cost"].pop("weightloom"), record["cost"].pop("commit")
    write_showcase(run, learners, problem)
    write_record(run / "record.json", record)
    build_report(run, sections)
    return record


def launch(config: FewShotConfig) -> Processes:
    """Set threads and start the processes that a config asks for.

    Raises:
        ConfigError: If this machine does not have the accelerator.
    """
    torch.set_num_threads(config.threads)
    try:
        fabric = _processes(config, config.devices, config.nodes)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"`--accelerator {config.accelerator} --devices {config.devices}` cannot be had here ({error}). "
            "`weightloom doctor` shows what this machine has. Pass `--accelerator cpu --devices 1`."
        ) from error
    fabric.launch()
    return fabric


def _processes(config: FewShotConfig, devices: int, nodes: int) -> Processes:
    """One process that computes in full precision needs nobody; several, or half precision, are Fabric's."""
    if devices * nodes == 1 and config.precision != "bf16-mixed":
        return OneProcess(_device(config.accelerator))
    from lightning_fabric import Fabric  # its import alone takes longer than many a training

    return Fabric(
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision=config.precision,
    )


def _device(accelerator: str) -> torch.device:
    """The first device of a kind, or of any kind, the CPU being the last."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kinds = list(there) if accelerator == "auto" else [accelerator]
    kind = next((kind for kind in kinds if there[kind]), None)
    if kind is None:
        raise ValueError(f"torch finds no device of the kind {accelerator}")
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)


def load_run(run: Path, changes: dict[str, Any] | None = None) -> tuple[FewShotConfig, Problem, dict[str, Learner]]:
    """Rebuild the problem of a run and its trained methods, from its folder; a comparator that failed is left out.

    Args:
        run: The run's folder.
        changes: Options to judge it by that may differ from training: ways, shots, queries, test_tasks.

    Raises:
        DataError: If the folder holds no run, or the data are missing.
        CheckpointError: If a checkpoint is missing or not whole.
    """
    saved = read_config(run, FewShotConfig)
    config = FewShotConfig.from_dict({**saved.to_dict(), **(changes or {})}).resolved()
    torch.set_num_threads(config.threads)
    problem = problem_of(config)
    learners: dict[str, Learner] = {}
    for method in config.methods:
        folder = method_folder(run, method, config)
        if (folder / FAILURE).is_file():
            continue
        torch.manual_seed(config.seed)
        learners[method] = problem.learner(method)
        if learners[method].trained:
            load_model(folder / "checkpoints" / "last.safetensors", learners[method])
    return config, problem, learners


def score_all(learners: dict[str, Learner], problem: Problem, config: FewShotConfig) -> list[dict[str, Any]]:
    """Judge every method in every setting, and ours once more with shuffled support sets.

    A method of the config that is not among ``learners`` has failed: its rows are there, their scores not a number.
    """
    rows: list[dict[str, Any]] = []
    assert config.test_tasks
    yardsticks = problem.yardsticks(learners[config.method])
    for ways, shots in problem.settings():
        setting = problem.setting(shots, ways)
        ours: Scores | None = None
        for method in config.methods:
            learner = learners.get(method)
            if learner is None:
                rows.append(failed_row(problem, method, setting))
            elif learner.ways in (None, ways):
                scores = judge(learner, problem, shots, config.test_tasks, ways)
                rows.append(scores.row(method, setting, ours))
                ours = scores if method == config.method else ours
        if learners[config.method].ways in (None, ways):
            control = judge(learners[config.method], problem, shots, config.test_tasks, ways, shuffled=True)
            rows.append(control.row(CONTROL, setting, role="control"))
        for method, role, yardstick, seen in yardsticks:
            scores = judge(yardstick, problem, shots, config.test_tasks, ways, seen=seen)
            rows.append(scores.row(method, setting, role=role))
    return rows


def method_folder(run: Path, method: str, config: FewShotConfig) -> Path:
    """Where a method's checkpoints are: those of ``--method`` in the run itself, a comparator's in a folder below."""
    return run if method == config.method else run / method.replace(":", ".")


def print_line(text: str) -> None:
    """Say something to the person who waits."""
    print(text, file=sys.stderr, flush=True)


def _train(
    learner: Learner, problem: Problem, config: FewShotConfig, run: Path, method: str, fabric: Processes, quiet: bool
) -> History | str:
    """Train one method; of a comparator that fails, say why."""
    assert config.tasks and config.outer_lr and config.shots and config.evaluate_every and config.clip_norm
    folder = method_folder(run, method, config)
    if (folder / FAILURE).is_file():
        return (folder / FAILURE).read_text(encoding="utf-8")
    steps = _steps(learner, problem, config, folder, fabric)
    shots = max(config.shots)
    if fabric.global_rank == 0 and not quiet:
        print_line(f"{method}: {steps} steps of {config.tasks} tasks")

    def evaluate(done: int) -> dict[str, Any]:
        tasks = problem.validation_source(shots).sample(VALIDATION_TASKS, torch.Generator().manual_seed(1 << 41))
        learner.eval()
        with torch.no_grad():
            parts = [tasks.take(slice(first, first + 50)) for first in range(0, VALIDATION_TASKS, 50)]
            outputs = torch.cat([learner.answer(fabric.to_device(part)).float().cpu() for part in parts])
        if method == config.method and fabric.device.type == "cpu" and done == config.evaluate_every != steps:
            write_showcase(run, {method: learner}, problem, early=True)
            build_report(run, sections)
            if not quiet:
                print_line(f"an early look: {run / 'report.html'}")
        if problem.kind == "regression":
            return {"validation_score": (outputs - tasks.query_y).square().mean().item(), "score_name": "mse"}
        right = (outputs.argmax(2) == tasks.query_y).float().mean().item()
        return {"validation_score": right, "score_name": "accuracy"}

    options = TrainOptions(
        steps=steps,
        tasks=config.tasks,
        outer_lr=config.rate_of(method),
        clip_norm=config.clip_norm,
        weight_decay=config.weight_decay or 0.0,
        average=config.average or 0.0,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        seed=config.seed,
        mode="alternating" if config.mode == "alternating" else "joint",
        block_steps=config.block_steps,
    )
    resume = (folder / "checkpoints" / "last.safetensors").is_file()
    source = problem.train_source(learner)
    try:
        return learner.fit(source, options, run=folder, resume=resume, evaluate=evaluate, fabric=fabric, quiet=quiet)
    except NonFiniteError as error:
        if method == config.method:
            raise
        if fabric.global_rank == 0:
            write_atomically(folder / FAILURE, str(error))
            print_line(f"{method} failed, the others go on: {error}")
        return str(error)


def _steps(learner: Learner, problem: Problem, config: FewShotConfig, folder: Path, fabric: Processes) -> int:
    """How many steps a method is trained for: those of the config, or as many as fit into the time that is given.

    They are counted once, by timing steps of a copy, and kept beside the checkpoints, so that a resumed run ends as one
    that never stopped. On a CPU the time is that of this thread, so that what else the machine does takes no steps away
    from one method and not from another.
    """
    if config.minutes is None:
        assert config.steps
        return config.steps
    kept = folder / "steps.json"
    steps = 0
    if fabric.global_rank == 0 and kept.is_file():
        steps = int(json.loads(kept.read_text()))
    elif fabric.global_rank == 0:
        assert config.tasks and config.outer_lr
        few = TrainOptions(steps=12, tasks=config.tasks // fabric.world_size, outer_lr=config.outer_lr)
        alone = _processes(config, devices=1, nodes=1)
        times: list[float] = []
        clock = time.thread_time if fabric.device.type == "cpu" else time.monotonic
        copy.deepcopy(learner).fit(Timed(problem.train_source(learner), times, clock), few, fabric=alone)
        step_s = median(b - a for a, b in pairwise(times[2:]))
        steps = max(1, min(config.steps or 10**9, int(60 * config.minutes / step_s)))
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(steps))
    return int(fabric.broadcast(steps))


class Timed(TaskSource):
    """A source that notes when it is asked: once at the start of every step.

    Args:
        source: Where tasks come from.
        times: Where the times go, in seconds.
        clock: What it looks at.
    """

    def __init__(self, source: TaskSource, times: list[float], clock: Callable[[], float] = time.monotonic) -> None:
        self.source, self.times, self.clock = source, times, clock

    def sample(self, tasks: int, generator: torch.Generator) -> Tasks:
        """Draw as the source does."""
        self.times.append(self.clock())
        return self.source.sample(tasks, generator)
