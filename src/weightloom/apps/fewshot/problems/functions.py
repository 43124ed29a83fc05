"""Images as functions: from a few pixels to a network that answers at any position."""

from collections.abc import Callable

from torch import nn

from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.learner import Learner
from weightloom.apps.fewshot.problems.problem import Problem
from weightloom.tasks import TaskSource
from weightloom.tasks.functions import FunctionTasks, load_mnist


class FunctionProblem(Problem):
    """Complete handwritten digits from a few of their pixels.

    Args:
        config: A resolved config.
    """

    kind = "regression"
    at_once = 1000  # images are drawn without repetition within a pass

    def __init__(self, config: FewShotConfig) -> None:
        self.config = config
        train, test = load_mnist()
        self.train, self.validation = train[:-1000], train[-1000:]
        assert config.test_tasks
        self.judged = self.validation if config.held_out == "validation" else test[: config.test_tasks]
        for shots in config.shots or ():
            self.test_source(shots)

    def train_source(self, ways: int | None = None) -> TaskSource:
        """Any number of pixels from half of the fewest that are judged to a quarter more than the most."""
        assert self.config.shots
        fewest, most = min(self.config.shots) // 2, max(self.config.shots) * 5 // 4
        return FunctionTasks(self.train, most, queries=200, fewest_shots=max(fewest, 1))

    def test_source(self, shots: int, ways: int | None = None) -> TaskSource:
        """Images never seen, every one once; all pixels are asked for."""
        return FunctionTasks(self.judged, shots)

    def validation_source(self, shots: int) -> TaskSource:
        """Images that are not trained on."""
        return FunctionTasks(self.validation, shots)

    def build(self, outputs: int) -> nn.Module:
        """The base network of the hypernetwork."""
        raise NotImplementedError

    def methods(self) -> dict[str, Callable[[], Learner]]:
        """What builds each method."""
        return {}

    def setting(self, shots: int, ways: int) -> str:
        """How many pixels are observed."""
        return f"{shots} pixels"
