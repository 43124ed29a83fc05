"""The interface of a transfer problem: a source model, training targets, and test targets.

In:   a config.
Out:  models, their training, and their outputs for every target.
Knows nothing of single problems, tables and reports.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from weightloom.apps.app import Adapted, Shown, Training
from weightloom.errors import ConfigError

if TYPE_CHECKING:
    from weightloom.apps.transfer.config import TransferOptions
    from weightloom.runs.record import Better
    from weightloom.training import History

Condition = Literal["own", "shuffled", "mean"]
"""Condition that a model reads for each target: its own; that of another target, by a fixed
derangement; or the mean condition of all training targets."""

SOURCE = "source"
"""Name of the unadapted source model, a method of every problem."""


class Setting(NamedTuple):
    """A group of rows of the table: targets, and the gradient steps taken on each."""

    name: str
    """Description of the known data of a target, as in "5-shot"."""
    shots: int = 0
    """Labelled examples, per class where there are classes; 0 without any."""
    steps: int = 0
    """Gradient steps on the target after adapting."""

    @property
    def title(self) -> str:
        """Name of the row group, as in "5-shot, 20 steps"."""
        if not self.steps:
            return self.name
        return f"{self.name}, {self.steps} step{'s' * (self.steps > 1)}"


class Outputs(NamedTuple):
    """Outputs of one model, adapted to every target."""

    query: Tensor
    """Probabilities, quantiles or values, never logits, for the examples that are scored,
    (targets, queries, outputs)."""
    support: Tensor | None
    """The same for the labelled examples, each from a model that was adapted without it,
    (targets, examples, outputs); None if the targets have no labels."""
    time_s: float
    """Median seconds to adapt to one target."""
    change: Mapping[str, Tensor]
    """Norm of the weight change divided by the weight's norm, by layer, each (targets,); empty if
    no weight changes."""


class TransferProblem(ABC):
    """A source model, its targets, and the methods that adapt it."""

    score: ClassVar[str]
    """Name of the main score."""
    better: ClassVar["Better"]
    """Direction of the main score."""
    unadapted: ClassVar[str] = SOURCE
    """Method whose model is left as it is, to which the check compares."""
    names: Sequence[str]
    """Test targets; validation targets if ``config.validation``."""
    families: Sequence[str]
    """Family of each target: the check is judged by family."""
    notices: Sequence[str] = ()
    """Sentences to print before training."""
    protocol: str = ""
    """Sentences on the evaluation, for the record."""
    prior: Mapping[str, float] = {}
    """Prior weights of the check; 1 for methods that are not named."""
    sharpness: float | None = None
    """Sharpness of the check. Default: that of `weightloom.learners.check.check_on_support`."""

    @abstractmethod
    def settings(self) -> Sequence[Setting]:
        """Return the row groups of the table."""

    @abstractmethod
    def build(self, method: str) -> nn.Module:
        """Build the model of a method, initialised from torch's current seed.

        Its attribute ``trained`` says whether it is trained on the training targets, ``reads``
        whether it reads a condition: such a model is also judged with the shuffled and the mean
        condition.
        """

    @abstractmethod
    def train(
        self, model: nn.Module, config: "TransferOptions", training: Training[nn.Module]
    ) -> "History":
        """Train a model on the training targets, from its last checkpoint if it has one.

        Raises:
            NonFiniteError: If a loss or gradient is not finite.
        """

    @abstractmethod
    def outputs(self, model: nn.Module, setting: Setting, condition: Condition = "own") -> Outputs:
        """Adapt a model to every target, and return its outputs."""

    @abstractmethod
    def scores(self, setting: Setting, query: Tensor) -> dict[str, Tensor]:
        """Return the scores of outputs by name, each (targets,), the main score first."""

    def support_loss(self, setting: Setting, support: Tensor) -> Tensor:
        """Return the loss of outputs on the labelled examples, (targets,) or (targets, examples).

        Raises:
            ConfigError: If the targets have no labels, as here.
        """
        raise ConfigError(
            f"`{type(self).__name__}` has no `support_loss`, and its outputs hold a support. The "
            "check weighs methods by their loss on it. Write the method, or leave `support` None."
        )

    def show(self, models: Mapping[str, nn.Module]) -> Shown:
        """Return tensors and facts for the problem's own figures. Default: none."""
        return {}, {}

    def adapt(self, model: nn.Module, target: str) -> Adapted:
        """Adapt a trained model to a target given as text or a path, for `weightloom adapt`.

        Raises:
            ConfigError: If the problem reads no target, as here.
        """
        raise ConfigError(
            f"`weightloom adapt` reads no `{target}` for this run: targets of this problem are "
            "made, not read. `weightloom list transfer` names the data that read your own."
        )

    def facts(self) -> dict[str, Any]:
        """Return further entries of the record, such as the size of the source. Default: none."""
        return {}
