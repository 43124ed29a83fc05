"""Images as functions: from a few pixels to a network that answers at any position."""

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.inputs import Inputs, Numbers, Targets
from weightloom.apps.fewshot.problems.problem import Problem
from weightloom.learners.cnp import ConditionalNeuralProcess
from weightloom.learners.functions import FunctionNet
from weightloom.learners.learner import Learner
from weightloom.tasks import TaskSource
from weightloom.tasks.functions import FunctionTasks, load_mnist

GREY = (0.0, 1.0)
CNP_QUERIES = 128
"""Pixels that a conditional neural process is trained on at a time: unlike a generated head it runs
its whole network for each pixel of each image, and with all pixels it would take a sixth of the
steps in the same time."""


class FunctionProblem(Problem):
    """Complete handwritten digits from a few of their pixels.

    Args:
        config: A resolved config.
    """

    kind = "regression"
    bounds = GREY
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
        """Any number of pixels from half of the fewest that are judged to a quarter more than the most."""
        assert self.config.shots
        fewest, most = max(min(self.config.shots) // 2, 1), max(self.config.shots) * 5 // 4
        queries = CNP_QUERIES if isinstance(learner, ConditionalNeuralProcess) else None
        return FunctionTasks(self.train, most, queries, fewest, together=True)

    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """Images never seen, every one once; all pixels are asked for."""
        return FunctionTasks(
            self.held_out, shots, fewest_shots=1 if self.config.uneven_shots else None
        )

    def validation_source(self, shots: int) -> TaskSource:
        """Images that are not trained on."""
        return FunctionTasks(self.validation, shots)

    def build(self, outputs: int) -> FunctionNet:
        """The base network of the hypernetwork."""
        return FunctionNet(2, outputs, bounds=GREY)

    def inputs(self) -> Inputs:
        """Positions of pixels."""
        return Numbers(
            ("across", "down"),
            about="Position in a picture that runs from -1 to 1, from the upper left.",
        )

    def targets(self) -> Targets:
        """The grey value."""
        return Targets(("grey",))

    def setting(self, shots: int, ways: int) -> str:
        """How many pixels are observed."""
        return f"{self.up_to(shots)} pixels"
