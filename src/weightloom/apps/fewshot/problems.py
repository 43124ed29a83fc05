"""What a data set brings to a few-shot run: tasks for training and for judging, base networks, methods, a loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from weightloom.apps.fewshot.comparators import FromScratch, NearestCentroid, ProtoNet
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.hyper import HyperClassifier, HyperRegressor
from weightloom.apps.fewshot.learner import Learner
from weightloom.losses import cross_entropy_per_task, mse_per_task
from weightloom.networks import ConvNet, mlp
from weightloom.tasks import (
    ClassPool,
    ClassTasks,
    Jitter,
    SinusoidTasks,
    Tasks,
    TaskSource,
    digits_split,
    load_digits,
    load_omniglot,
    omniglot_split,
    rotated,
)

OURS = "hypernetwork"


class Problem(ABC):
    """A data set, seen as a few-shot problem."""

    kind: Literal["classification", "regression"]
    loss_per_task: Callable[[Tensor, Tensor], Tensor]

    @abstractmethod
    def train_source(self) -> TaskSource:
        """Tasks of meta-training."""

    @abstractmethod
    def test_source(self, shots: int) -> TaskSource:
        """Tasks never seen in meta-training, with ``shots`` support points per class."""

    @abstractmethod
    def validation_source(self, shots: int) -> TaskSource:
        """Tasks to watch during meta-training; never those of the final table."""

    @abstractmethod
    def learner(self, method: str) -> Learner:
        """Build a method, newly initialised."""

    @abstractmethod
    def setting(self, shots: int) -> str:
        """Say which tasks these are, as in "3-way 1-shot"."""


class AlternatingShots(TaskSource):
    """Draw from one of several sources, chosen by chance for each batch.

    Args:
        sources: Where to draw from.
    """

    def __init__(self, sources: list[TaskSource]) -> None:
        self.sources = sources

    def sample(self, tasks: int, generator: torch.Generator) -> Tasks:
        """Choose a source, then draw."""
        choice = int(torch.randint(len(self.sources), (), generator=generator))
        return self.sources[choice].sample(tasks, generator)


class ImageProblem(Problem):
    """Classify images of classes never seen in meta-training.

    Args:
        config: A resolved config; ``data`` is ``"digits"`` or ``"omniglot"``.
    """

    kind = "classification"

    def __init__(self, config: FewShotConfig) -> None:
        self.config = config
        self.loss_per_task = cross_entropy_per_task
        pool, train, held_out = _digits(config) if config.data == "digits" else _omniglot(config)
        turns = (1, 3) if config.data == "digits" else (1, 2, 3)  # a 6 turned half around is a 9: not for digits
        self.known = _pick(pool, train)
        self.pool = rotated(self.known, turns)
        self.held_out = _pick(pool, held_out)
        self.size = int(pool.examples.shape[-1])
        self.start_scale = 6.0 if config.data == "digits" else 32.0
        for shots in config.shots or ():  # refuse what cannot be drawn before anything is written
            self.test_source(shots)
        self.train_source()

    def train_source(self) -> TaskSource:
        """Classes of meta-training, each also turned by quarters as classes of their own."""
        assert self.config.train_ways and self.config.queries and self.config.shots
        jitter = Jitter(2.0) if self.config.data == "digits" else None
        return AlternatingShots(
            [
                ClassTasks(
                    self.pool.examples, self.pool.counts, self.config.train_ways, shots, self.config.queries, jitter
                )
                for shots in self.config.shots
            ]
        )

    def test_source(self, shots: int) -> TaskSource:
        """Classes that were held out, upright."""
        assert self.config.ways and self.config.queries
        return ClassTasks(self.held_out.examples, self.held_out.counts, self.config.ways, shots, self.config.queries)

    def validation_source(self, shots: int) -> TaskSource:
        """Classes of meta-training, upright and as they are."""
        assert self.config.ways and self.config.queries
        return ClassTasks(self.known.examples, self.known.counts, self.config.ways, shots, self.config.queries)

    def build(self, ways: int) -> ConvNet:
        """The base network of every method."""
        if self.size == 8:
            return ConvNet(1, self.size, ways, channels=32, blocks=2, levels=2)
        return ConvNet(1, self.size, ways, channels=64, blocks=4, strided=True)

    def learner(self, method: str) -> Learner:
        """Build a method, newly initialised."""
        assert self.config.ways
        if method == OURS:
            return HyperClassifier(self.build(self.config.ways), self.start_scale)
        if method == "protonet":
            return ProtoNet(self.build(self.config.ways), self.start_scale)
        if method == "centroid":
            return NearestCentroid(self.size * self.size)
        return FromScratch(self.build, self.loss_per_task, steps=50, inner_lr=3e-3)

    def setting(self, shots: int) -> str:
        """Ways and shots."""
        return f"{self.config.ways}-way {shots}-shot"


class SinusoidProblem(Problem):
    """Predict a sinusoid of unknown amplitude and phase from a few points.

    Args:
        config: A resolved config.
    """

    kind = "regression"

    def __init__(self, config: FewShotConfig) -> None:
        self.config = config
        self.loss_per_task = mse_per_task
        self.train_source()

    def train_source(self) -> TaskSource:
        """Half of the tasks with the most shots, half with any number from 1."""
        assert self.config.queries and self.config.shots
        return SinusoidTasks(max(self.config.shots), self.config.queries, ragged=0.5)

    def test_source(self, shots: int) -> TaskSource:
        """New amplitudes and phases."""
        assert self.config.queries
        return SinusoidTasks(shots, self.config.queries)

    def validation_source(self, shots: int) -> TaskSource:
        """New amplitudes and phases."""
        return self.test_source(shots)

    def build(self, outputs: int) -> nn.Module:
        """The base network of every method."""
        return mlp([1, 40, 40, outputs])

    def learner(self, method: str) -> Learner:
        """Build a method, newly initialised."""
        if method == OURS:
            return HyperRegressor(self.build(1))
        return FromScratch(self.build, self.loss_per_task, steps=100, inner_lr=3e-2)

    def setting(self, shots: int) -> str:
        """Shots."""
        return f"{shots}-shot"


def problem_of(config: FewShotConfig) -> Problem:
    """Load what a config asks for.

    Raises:
        DataError: If the data are missing or damaged.
        ConfigError: If ways, shots and queries ask for more than there is.
    """
    return SinusoidProblem(config) if config.data == "sinusoid" else ImageProblem(config)


def _pick(pool: ClassPool, classes: list[int]) -> ClassPool:
    return ClassPool(pool.examples[classes], pool.counts[classes], tuple(pool.names[i] for i in classes))


def _digits(config: FewShotConfig) -> tuple[ClassPool, list[int], list[int]]:
    """The pool, the classes of meta-training and those to be judged on."""
    train, held_out = digits_split(config.split)
    if config.held_out == "validation":
        held_out = [c for c in digits_split((config.split + 1) % 3)[1] if c in train]
        train = [c for c in train if c not in held_out]
    return load_digits(), train, held_out


def _omniglot(config: FewShotConfig) -> tuple[ClassPool, list[int], list[int]]:
    train, held_out = (part.tolist() for part in omniglot_split(config.split))
    return load_omniglot(), *((train[:1100], train[1100:]) if config.held_out == "validation" else (train, held_out))
