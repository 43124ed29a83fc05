"""The smallest application that can do all an application may: guess a number, told by noisy examples of it."""

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from weightloom.apps.app import App
from weightloom.errors import NonFiniteError
from weightloom.runs.options import RunOptions
from weightloom.training import TrainOptions, train

SEEDS = {"train": 0, "validation": 1 << 31, "test": 3 << 30}
"""Where examples come from."""


@dataclass(frozen=True)
class GuessConfig(RunOptions):
    """Guess a number; methods are `hypernetwork`, `costly`, `idle` and `broken`."""

    command: ClassVar[str] = "guess"
    swept: ClassVar[tuple[str, ...]] = ("learning_rate",)
    learning_rate: float = 0.05
    """Of Adam."""
    number: float = 3.0
    """The number."""
    held_out: str = "test"
    """Examples to judge on."""
    part: int = 0
    """Part of the data."""

    def validating(self):
        return replace(self, held_out="validation")


class Guess(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.method, self.number = method, nn.Parameter(torch.randn(()))

    def forward(self, examples):
        if self.training:
            Guesses.steps[self.method] += 1
            if self.method in Guesses.cost_s:
                end_s = time.process_time() + Guesses.cost_s[self.method]
                while time.process_time() < end_s:
                    pass
        error = (self.number - examples).square().mean(1)
        return error * float("nan") if self.method == "broken" and self.training else error


class Examples:
    """Noisy examples of the number, (4 tasks, 5 examples); who asked for which is counted."""

    def __init__(self, config):
        self.config = config

    def __call__(self, step, generator, part="train"):
        Guesses.drawn[part] += 1
        if part == "train" and (self.config.seed, step) == Guesses.stop_at:
            Guesses.stop_at = None
            os.kill(os.getpid(), signal.SIGTERM)
        return self.config.number + self.config.part + 0.1 * torch.randn(4, 5, generator=generator)

    def held_out(self, part):
        return self(0, torch.Generator().manual_seed(SEEDS[part]), part)


class Guesses(App):
    """The application."""

    name, about, config, folds, judged_by = (
        "guess",
        "Guess a number.",
        GuessConfig,
        "part",
        ("number",),
    )
    drawn, steps, cost_s, stop_at, used_s = Counter(), Counter(), {}, None, {}

    @classmethod
    def forget(cls):
        """Begin to count anew."""
        cls.drawn, cls.steps, cls.cost_s, cls.stop_at, cls.used_s = (
            Counter(),
            Counter(),
            {},
            None,
            {},
        )

    def open(self, config):
        return Examples(config)

    def build(self, method, problem, config):
        return Guess(method)

    def is_trained(self, model):
        return model.method != "idle"

    def train(self, model, problem, config, training):
        start_s = time.process_time()

        def score(done):
            with torch.no_grad():
                return {
                    "validation_score": model.eval()(problem.held_out("validation")).mean().item(),
                    "score_name": "error",
                }

        if config.rate_of(training.method) >= 1e9:
            raise NonFiniteError("At step 1 the loss is nan.")
        how = {
            "checkpoint_every": config.checkpoint_every or 10,
            "evaluate_every": config.evaluate_every or 1000,
        }
        options = TrainOptions(
            config.steps or 40, outer_lr=config.rate_of(training.method), seed=config.seed, **how
        )
        history = train(model, problem, None, options, evaluate=score, **training.how())
        self.used_s[training.method] = time.process_time() - start_s
        return history

    def judge(self, contenders, problem, config, folder):
        examples = problem.held_out(config.held_out)
        with torch.no_grad():
            return [
                one.row("all", "error", one.model and one.model.eval()(examples))
                for one in contenders
            ]
