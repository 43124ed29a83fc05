"""Cameras with crossed wires: from a few labelled pictures that a camera sent to a network that reads all others."""

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
"""Pictures of meta-training and of validation; the 500 that follow, of other writers, are judged
on."""
PIXELS, CODE_DIM = 64, 64
WARP, WARPED_COPIES = Jitter(0.25), 4
"""Changes of the pictures of meta-training, and changed copies of each that the ceiling is fitted
to."""
SETTINGS = ((10, 1), (10, 2), (5, 2), (5, 4))
"""Digits shown and pictures of each: what is judged where nothing else is asked for."""


class CameraProblem(Problem):
    """Read digits through cameras whose wires are crossed, each in its own way.

    Args:
        config: A resolved config.
    """

    kind = "classification"
    pixels, classes = PIXELS, CLASSES
    at_once = 50
    many = 1000

    def __init__(self, config: FewShotOptions) -> None:
        self.config = config
        if config.split:
            raise ConfigError(
                f"`--split {config.split}` with `--data {config.data}`. Its pictures are dealt out "
                "in one way, by writers. Leave `--split` out."
            )
        images, labels = load_digit_images()
        parts = images.split([TRAIN, VALIDATION, len(images) - TRAIN - VALIDATION])
        self.train, self.validation, test = zip(
            parts, labels.split([len(part) for part in parts]), strict=True
        )
        self.held_out = self.validation if config.held_out == "validation" else test
        for ways, shots in self.settings():
            self.test_source(shots, ways)  # refuse what cannot be drawn before anything is written
        self.train_source()

    def settings(self) -> list[tuple[int, int]]:
        """Ten or twenty pictures of a camera, unless other ways or shots are asked for."""
        config, preset = self.config, PRESETS[self.config.kind]
        if (config.ways, config.shots) == (preset["ways"], preset["shots"]):
            return list(SETTINGS)
        return list(product(config.ways or (), config.shots or ()))

    def _source(
        self, part: tuple[Tensor, Tensor], ways: int, shots: int, **options: Any
    ) -> CameraTasks:
        config = self.config
        assert config.queries
        crosstalk, labelled = (
            (0.5 if config.kind == "cameras-crosstalk" else 0.0),
            config.kind != "cameras-unlabelled",
        )
        return CameraTasks(*part, ways, shots, config.queries, crosstalk, labelled, **options)

    def train_source(self, learner: Learner | None = None) -> TaskSource:
        """Cameras with pictures of other writers, a little warped.

        Ways and shots as in the table, chosen by chance.
        """
        ways = (self.config.train_ways,) if self.config.train_ways else self.config.ways or ()
        return MixedTasks(
            [
                self._source(self.train, each, shots, augment=WARP)
                for each, shots in product(ways, self.config.shots or ())
            ]
        )

    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """Cameras with pictures of writers never seen."""
        assert self.config.ways
        fewest = 1 if self.config.uneven_shots and shots > 1 else None
        return self._source(self.held_out, ways or self.config.ways[0], shots, fewest_shots=fewest)

    def validation_source(self, shots: int) -> TaskSource:
        """Cameras with pictures that are neither trained on nor judged on."""
        assert self.config.ways
        return self._source(self.validation, self.config.ways[0], shots)

    def camera_source(self, early: bool, ways: int, shots: int, queries: int) -> CameraTasks:
        """Cameras to look at, with so many queries; ``early``: with pictures of validation."""
        return replace(
            self._source(self.validation if early else self.held_out, ways, shots), queries=queries
        )

    def build(self, outputs: int) -> nn.Sequential:
        """The base network: a layer that restores 64 pixels from 64 wires, and a network that reads them."""
        return nn.Sequential(nn.Linear(PIXELS, PIXELS), *mlp([PIXELS, 256, 128, outputs]))

    def build_coded(self) -> nn.Sequential:
        """The same with a code of each wire as one more input, in the place of weights."""
        return nn.Sequential(
            CodeReader(PIXELS, PIXELS, CODE_DIM), *mlp([PIXELS, 256, 128, CLASSES])
        )

    def images(self) -> tuple[Tensor, Tensor]:
        """Pictures of meta-training as vectors, in [0, 1], and their labels."""
        pictures, labels = self.train
        return pictures.flatten(1).float() / 255, labels

    def taught(self) -> list[TaskSource]:
        """Cameras that a machine may be taught on, for each setting of the table."""
        return [self._source(self.train, ways, shots) for ways, shots in self.settings()]

    def inputs(self) -> Inputs:
        """Rows of 64 numbers, one for each wire."""
        wires = tuple(f"wire {wire}" for wire in range(PIXELS))
        return Numbers(
            wires,
            about="What the wires of a camera send, in the same order for all pictures of it.",
        )

    def labels(self, names: Sequence[Any]) -> tuple[Tensor, tuple[Any, ...]]:
        """A digit is a digit for every camera; without labels all names are left aside."""
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
        """Return readings of uncrossed pictures: by the method's own reader, and by a machine."""
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
        """Pictures of each digit shown, and digits."""
        return f"{self.up_to(shots)} of each of {ways}"


def uncrossed(tasks: Tasks) -> Tasks:
    """The same tasks, as a camera without a fault would have sent their queries."""
    return tasks._replace(query=tasks.query._replace(x=tasks.hidden))
