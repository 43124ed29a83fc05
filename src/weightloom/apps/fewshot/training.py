"""Training of few-shot methods: devices, processes, and evaluation during training."""

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
"""Number and seed of the validation tasks that are scored during training."""
MOST_ALONE = 16
"""Maximum number of CPU processes on a machine with fewer processors than that."""


def fit(
    learner: Learner, problem: Problem, config: FewShotOptions, training: Training[Learner]
) -> History:
    """Meta-train one method, from its last checkpoint if it has one.

    Args:
        learner: The method, trained in place; it ends on the CPU.
        problem: Source of training and validation tasks.
        config: Options.
        training: Folder, identity and processes of the training, and the call for an early report.

    Returns:
        Losses and evaluations by step.

    Raises:
        NonFiniteError: If a loss or gradient is not finite.
    """
    assert config.steps
    processes, steps, shots = training.processes, config.steps, max(config.shots)
    if config.precision == "bf16-mixed":
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        learner.to(**layout)

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
    source = problem.train_source(learner)
    problem.validation_source(shots)  # a backbone reads its pictures before training is timed
    history = learner.fit(
        source,
        options,
        evaluate=evaluate,
        **training.how(),
    )
    learner.cpu()  # judged on the CPU, wherever it was trained
    return history


def launch(config: FewShotOptions) -> Processes:
    """Set the number of threads and start the processes that the options ask for.

    Args:
        config: Options; ``threads``, ``accelerator``, ``devices``, ``nodes`` and ``precision`` are
            read.

    Raises:
        ConfigError: If the machine lacks the accelerator, the CPU processes are too many, or
            several machines are asked for without ``torchrun``.
    """
    torch.set_num_threads(config.threads)
    if config.nodes > 1 and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"`--nodes {config.nodes}` was typed, and no other machine is known here: the run "
            "would wait for them forever. Start the same command on each by `torchrun`."
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
            f"`--accelerator {config.accelerator} --devices {config.devices}` is not available "
            f"here ({error}). `weightloom doctor` lists the devices of this machine. Pass "
            "`--accelerator cpu --devices 1`."
        ) from error
    fabric.launch()
    return fabric


def _processes(config: FewShotOptions, devices: int, nodes: int) -> Processes:
    """Return one process without Fabric for full precision, else processes of Fabric."""
    if devices * nodes == 1 and config.precision != "bf16-mixed":
        return OneProcess(_device(config.accelerator))
    from lightning_fabric import Fabric  # slow to import

    return Fabric(
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision=config.precision,
    )


def _device(accelerator: str) -> torch.device:
    """Return the first device of a kind; for ``auto`` the first of CUDA, MPS and CPU.

    Raises:
        ValueError: If torch finds no such device.
    """
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
