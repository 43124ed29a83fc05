"""Cameras with crossed wires: classify all pictures of a faulty camera from a few labelled ones."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.inputs import Inputs, Numbers
from weightloom.apps.fewshot.presets import PRESETS
from weightloom.apps.fewshot.problems.problem import MixedTasks, Problem, Yardstick
from weightloom.errors import ConfigError, DataError
from weightloom.learners.inputs import CLASSES, CodeReader, RestoringLearner
from weightloom.learners.learner import Learner
from weightloom.learners.machines import Unadapted, machine_of
from weightloom.networks import mlp
from weightloom.tasks import CameraTasks, Jitter, Tasks, TaskSource, load_digit_images
from weightloom.tasks.cameras import UNLABELLED

TRAIN, VALIDATION = 1097, 200
"""Number of pictures for meta-training and for validation; the other 500, by other writers, are the
test pictures."""
PIXELS, CODE_DIM = 64, 64
WARP, WARPED_COPIES = Jitter(0.25), 4
"""Augmentation of the pictures of meta-training, and the augmented copies of each picture that the
ceiling is fitted to."""
SETTINGS = ((10, 1), (10, 2), (5, 2), (5, 4))
"""Default settings of the table: digits shown, and pictures of each digit."""


class CameraProblem(Problem):
    """Problem of reading digits through cameras with crossed wires, other wires in each task.

    Args:
        config: Resolved options.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
        ConfigError: If ``split`` is not 0, or ways and shots ask for more pictures than exist.
    """

    kind = "classification"
    pixels, classes = PIXELS, CLASSES
    at_once = 50
    many = 1000

    def __init__(self, config: FewShotOptions) -> None:
        self.config = config
        if config.split:
            raise ConfigError(
                f"`--split {config.split}` with `--data {config.data}`. Its pictures are split "
                "by writers in one way only. Leave `--split` out."
            )
        images, labels = load_digit_images()
        parts = images.split([TRAIN, VALIDATION, len(images) - TRAIN - VALIDATION])
        self.train, self.validation, test = zip(
            parts, labels.split([len(part) for part in parts]), strict=True
        )
        self.held_out = self.validation if config.held_out == "validation" else test
        for ways, shots in self.settings():
            self.test_source(shots, ways)  # raises before any file is written
        self.train_source()

    def settings(self) -> list[tuple[int, int]]:
        """Return ways and shots of every block of the table: typed ones, or else `SETTINGS`."""
        config, preset = self.config, PRESETS[self.config.kind]
        if (config.ways, config.shots) == (preset["ways"], preset["shots"]):
            return list(SETTINGS)
        return list(product(config.ways or (), config.shots or ()))

    def _source(
        self, part: tuple[Tensor, Tensor], ways: int, shots: int, **options: Any
    ) -> CameraTasks:
        config = self.config
        assert config.queries
        crosstalk = 0.5 if config.kind == "cameras-crosstalk" else 0.0
        labelled = config.kind != "cameras-unlabelled"
        return CameraTasks(*part, ways, shots, config.queries, crosstalk, labelled, **options)

    def train_source(self, learner: Learner | None = None) -> TaskSource:
        """Return cameras with augmented pictures of the training writers.

        Each batch has the ways and shots of one block of the table, chosen at random.
        """
        ways = (self.config.train_ways,) if self.config.train_ways else self.config.ways or ()
        return MixedTasks(
            [
                self._source(self.train, each, shots, augment=WARP)
                for each, shots in product(ways, self.config.shots or ())
            ]
        )

    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """Return cameras with pictures of unseen writers."""
        assert self.config.ways
        fewest = 1 if self.config.uneven_shots and shots > 1 else None
        return self._source(self.held_out, ways or self.config.ways[0], shots, fewest_shots=fewest)

    def validation_source(self, shots: int) -> TaskSource:
        """Return cameras with pictures used neither for training nor for the table."""
        assert self.config.ways
        return self._source(self.validation, self.config.ways[0], shots)

    def camera_source(self, early: bool, ways: int, shots: int, queries: int) -> CameraTasks:
        """Return cameras to draw in the report.

        Args:
            early: Use pictures of validation instead of test.
            ways: Digits shown to a camera.
            shots: Pictures of each digit.
            queries: Query pictures of a camera.
        """
        return replace(
            self._source(self.validation if early else self.held_out, ways, shots), queries=queries
        )

    def build(self, outputs: int) -> nn.Sequential:
        """Build the base network: a linear layer from 64 wires to 64 pixels, then a classifier."""
        return nn.Sequential(nn.Linear(PIXELS, PIXELS), *mlp([PIXELS, 256, 128, outputs]))

    def build_coded(self) -> nn.Sequential:
        """Build the base network whose first layer reads a code of each wire as an input."""
        return nn.Sequential(
            CodeReader(PIXELS, PIXELS, CODE_DIM), *mlp([PIXELS, 256, 128, CLASSES])
        )

    def images(self) -> tuple[Tensor, Tensor]:
        """Return the pictures of meta-training as vectors in [0, 1], and their labels."""
        pictures, labels = self.train
        return pictures.flatten(1).float() / 255, labels

    def taught(self) -> list[TaskSource]:
        """Return sources of training cameras without augmentation, one per setting of the table."""
        return [self._source(self.train, ways, shots) for ways, shots in self.settings()]

    def inputs(self) -> Inputs:
        """Return the preprocessing of rows of 64 numbers, one for each wire."""
        wires = tuple(f"wire {wire}" for wire in range(PIXELS))
        return Numbers(
            wires,
            about="Signals on the wires of a camera, in the same order for all its pictures.",
        )

    def labels(self, names: Sequence[Any]) -> tuple[Tensor, tuple[Any, ...]]:
        """Return the digits of examples and all digits as classes.

        With unlabelled cameras the names are ignored.

        Raises:
            DataError: If a name is not a digit.
        """
        digits = tuple(str(digit) for digit in range(CLASSES))
        if self.config.kind == "cameras-unlabelled":
            return torch.full((len(names),), UNLABELLED), digits
        if unknown := [name for name in names if str(name) not in digits]:
            raise DataError(
                f"`{unknown[0]}` is no digit. Cameras send digits, and a 7 is a 7 for every "
                "camera. Name the classes 0 to 9."
            )
        return torch.tensor([digits.index(str(name)) for name in names]), digits

    def yardsticks(self, learner: Learner) -> list[Yardstick]:
        """Return ceilings: classifiers of uncrossed pictures.

        The method's own classifier, if it restores pictures, and a support vector machine.
        """
        pictures, labels = self.train
        rows: list[Yardstick] = []
        if isinstance(learner, RestoringLearner):
            rows.append(Yardstick("reader", "ceiling", Unadapted(learner.base[1:]), uncrossed))
        images, generator = pictures[:, None].float() / 255, torch.Generator().manual_seed(0)
        copies = torch.cat(
            [images, *(WARP(images, generator) for _ in range(WARPED_COPIES))]
        ).flatten(1)
        machine = machine_of(
            copies, labels.repeat(1 + WARPED_COPIES), CLASSES, penalty=10.0, gamma=0.05
        )
        return [*rows, Yardstick("SVM", "ceiling", Unadapted(machine), uncrossed)]

    def setting(self, shots: int, ways: int) -> str:
        """Return the setting in words, as in "2 of each of 10"."""
        return f"{self.up_to(shots)} of each of {ways}"


def uncrossed(tasks: Tasks) -> Tasks:
    """Return the tasks with the queries that a camera without a fault would send."""
    return tasks._replace(query=tasks.query._replace(x=tasks.hidden))
