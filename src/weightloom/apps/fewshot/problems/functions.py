"""Images as functions: from a few pixels to a network from position to grey value."""

import torch

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.inputs import Inputs, Numbers, Targets
from weightloom.apps.fewshot.problems.problem import Problem
from weightloom.learners.cnp import ConditionalNeuralProcess
from weightloom.learners.kernel import kernel_of_images
from weightloom.learners.learner import Learner
from weightloom.networks import FunctionNet
from weightloom.tasks import TaskSource
from weightloom.tasks.functions import FunctionTasks, load_mnist

GREY = (0.0, 1.0)
"""Range of grey values."""
CNP_QUERIES = 128
"""Query pixels per image in the training of a conditional neural process. Unlike a generated head
it runs its whole network for each pixel of each image; with all pixels it would take a sixth of the
steps in the same time."""
TUNING_TASKS = 100
"""Validation images per number of shots that the temperature of kernel regression is chosen by."""


class FunctionProblem(Problem):
    """Problem of completing handwritten digits from a few of their pixels.

    Args:
        config: Resolved options.

    Raises:
        DataError: If the data are missing or damaged.
        ConfigError: If shots ask for more pixels than an image has.
    """

    kind = "regression"
    bounds = GREY
    on_grid = True
    at_once = 1000  # images are drawn without repetition within a pass

    def __init__(self, config: FewShotOptions) -> None:
        self.config = config
        train, test = load_mnist()
        self.train, self.validation = train[:-1000], train[-1000:]
        self.size = int(self.train.shape[-1])
        assert config.test_tasks
        self.held_out = (
            self.validation if config.held_out == "validation" else test[: config.test_tasks]
        )
        for shots in config.shots or ():
            self.test_source(shots)

    def train_source(self, learner: Learner | None = None) -> TaskSource:
        """Return training images with a random number of observed pixels.

        From half the smallest to 1.25 times the largest number of shots.

        Args:
            learner: A conditional neural process gets `CNP_QUERIES` query pixels, others all.
        """
        assert self.config.shots
        fewest, most = max(min(self.config.shots) // 2, 1), max(self.config.shots) * 5 // 4
        queries = CNP_QUERIES if isinstance(learner, ConditionalNeuralProcess) else None
        return FunctionTasks(self.train, most, queries, fewest, together=True)

    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """Return unseen images, each drawn once; all pixels are queries."""
        return FunctionTasks(
            self.held_out, shots, fewest_shots=1 if self.config.uneven_shots else None
        )

    def validation_source(self, shots: int) -> TaskSource:
        """Return images that are not used for training."""
        return FunctionTasks(self.validation, shots)

    def build(self, outputs: int) -> FunctionNet:
        """Build the base network of the hypernetwork, from position to grey value."""
        return FunctionNet(2, outputs, bounds=GREY)

    def kernel(self) -> Learner:
        """Build kernel regression over all training images, tuned on validation images."""
        assert self.config.shots
        drawn = [
            self.validation_source(shots).sample(TUNING_TASKS, torch.Generator().manual_seed(0))
            for shots in self.config.shots
        ]
        return kernel_of_images(self.train, drawn)

    def inputs(self) -> Inputs:
        """Return the preprocessing of positions."""
        return Numbers(
            ("across", "down"),
            about="Position in a picture that runs from -1 to 1, from the upper left.",
        )

    def targets(self) -> Targets:
        """Return the grey value, without scaling."""
        return Targets(("grey",))

    def setting(self, shots: int, ways: int) -> str:
        """Return the setting in words, as in "40 pixels"."""
        return f"{self.up_to(shots)} pixels"
