"""Training of few-shot methods: devices and processes, evaluation on the way, the loop."""

import os
from typing import Any

import torch

from weightloom.apps.app import Training
from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.problems import Problem
from weightloom.errors import ConfigError
from weightloom.learners.learner import Learner
from weightloom.training import History, OneProcess, Processes, TrainOptions

VALIDATION_TASKS, VALIDATION_SEED = 200, 3 << 30
"""Tasks to watch a training by."""
MOST_ALONE = 16
"""Processes that are started on a machine of fewer processors."""


def fit(
    learner: Learner, problem: Problem, config: FewShotOptions, training: Training[Learner]
) -> History:
    """Meta-train one method, from its last checkpoint where there is one.

    Raises:
        NonFiniteError: If a loss or gradient is not finite.
    """
    assert config.steps
    processes, steps, shots = training.processes, config.steps, max(config.shots)
    if config.precision == "bf16-mixed":
        learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def evaluate(done: int) -> dict[str, Any]:
        tasks = problem.validation_source(shots).sample(
            VALIDATION_TASKS, torch.Generator().manual_seed(VALIDATION_SEED)
        )
        learner.eval()
        with torch.no_grad():
            parts = [
                tasks.take(slice(first, first + 50)) for first in range(0, VALIDATION_TASKS, 50)
            ]
            outputs = torch.cat(
                [learner.answer(processes.to_device(part)).float().cpu() for part in parts]
            )
        if processes.device.type == "cpu" and done == config.evaluate_every != steps:
            training.look(learner)
        there, y = tasks.query_mask, tasks.query_y
        if problem.kind == "regression":
            return {
                "validation_score": (outputs - y)[there].square().mean().item(),
                "score_name": "mse",
            }
        return {
            "validation_score": (outputs.argmax(2) == y)[there].float().mean().item(),
            "score_name": "accuracy",
        }

    options = TrainOptions(
        steps=steps,
        tasks=config.tasks,
        outer_lr=config.rate_of(training.method),
        clip_norm=config.clip_norm,
        weight_decay=config.weight_decay,
        average=config.average,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        seed=config.seed,
        mode="alternating" if config.mode == "alternating" else "joint",
        block_steps=config.block_steps,
    )
    history = learner.fit(
        problem.train_source(learner),
        options,
        evaluate=evaluate,
        **training.how(),
    )
    learner.cpu()  # judged on the CPU, wherever it was trained
    return history


def launch(config: FewShotOptions) -> Processes:
    """Set threads and start the processes that a config asks for.

    Raises:
        ConfigError: If this machine does not have the accelerator.
    """
    torch.set_num_threads(config.threads)
    if config.nodes > 1 and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"`--nodes {config.nodes}` was typed, and no other machine is known here: they would "
            "be waited for without end. Start the same command on each by `torchrun`."
        )
    most = max(MOST_ALONE, os.cpu_count() or 1)
    if config.accelerator == "cpu" and config.devices > most:
        raise ConfigError(
            f"`--devices {config.devices}` processes on a machine that has {os.cpu_count()} "
            f"processors. At most {most} are started. Type `--devices {os.cpu_count()}`."
        )
    try:
        fabric = _processes(config, config.devices, config.nodes)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"`--accelerator {config.accelerator} --devices {config.devices}` cannot be had here "
            f"({error}). "
            "`weightloom doctor` shows what this machine has. Pass `--accelerator cpu --devices 1`."
        ) from error
    fabric.launch()
    return fabric


def _processes(config: FewShotOptions, devices: int, nodes: int) -> Processes:
    """One process that computes in full precision needs nobody.

    Several, or half precision, are Fabric's.
    """
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
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    kinds = list(there) if accelerator == "auto" else [accelerator]
    kind = next((kind for kind in kinds if there[kind]), None)
    if kind is None:
        raise ValueError(f"torch finds no device of the kind {accelerator}")
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
