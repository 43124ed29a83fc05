"""The interface of an adversarial problem: real samples, their conditions, and measures.

In:   a config.
Out:  pairs, batches, and scores of samples.
Knows nothing of single problems, tables and reports.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from weightloom.adversarial import AdversarialPair, FunctionGenerator, Penalty
from weightloom.apps.app import Shown
from weightloom.errors import ConfigError

if TYPE_CHECKING:
    from weightloom.apps.gan.config import GanOptions
    from weightloom.runs.record import Better


class Recipe(NamedTuple):
    """Training of one method, beside its rate and steps."""

    penalty: Penalty
    """Weight of the gradient penalty by round."""
    settings: Mapping[str, Any] = {}
    """Settings of both turns, as in `weightloom.training.Turn`."""


class GanProblem(ABC):
    """Real samples with their conditions, the pairs that imitate them, and their measures."""

    score: ClassVar[str]
    """Name of the main score."""
    better: ClassVar["Better"]
    """Direction of the main score."""
    config: "GanOptions"
    """Options of the run."""
    names: Sequence[str]
    """Name of each condition, or of each replica: one score of a row each."""
    notices: Sequence[str] = ()
    """Sentences to print before training."""
    protocol: str = ""
    """Sentences on the evaluation, for the record."""
    shuffles: bool = False
    """Judge each pair with the conditions of others, too: a control."""

    def settings(self) -> Sequence[str]:
        """Return the row groups of the table, such as resolutions. Default: one."""
        return ("samples",)

    @abstractmethod
    def build(self, method: str) -> AdversarialPair:
        """Build the pair of a method, initialised from torch's current seed."""

    @abstractmethod
    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw conditions, (tasks, condition_dim), and real samples, (tasks, count, *shape)."""

    def recipe(self, method: str, steps: int) -> Recipe:
        """Return the training of a method, by default as the options say.

        Args:
            method: Name of the method.
            steps: Steps of the training, two for each round.
        """
        end = self.config.gamma_end if self.config.gamma_end < self.config.gamma else None
        rounds = max(1, steps // 2)
        return Recipe(Penalty(self.config.gamma, end, self.config.penalty_every, rounds))

    @abstractmethod
    def samples(self, model: AdversarialPair, setting: str, shuffled: bool = False) -> Tensor:
        """Draw samples to score, from a fixed seed, with the model in eval mode.

        Args:
            model: A pair.
            setting: Row group.
            shuffled: Each condition gets samples that were drawn for another one.

        Returns:
            Samples of each condition or replica, (names, count, *shape).
        """

    @abstractmethod
    def scores(self, setting: str, samples: Tensor) -> dict[str, Tensor]:
        """Return the scores of samples by name, each (names,), the main score first."""

    def draw_samples(
        self,
        model: AdversarialPair,
        number: int,
        count: int,
        generator: torch.Generator | None = None,
        size: Sequence[int] | None = None,
    ) -> Tensor:
        """Draw samples of one condition, for users.

        Args:
            model: A pair in eval mode.
            number: Number of the condition, as in ``names``.
            count: Number of samples.
            generator: Source of the noise. Default: torch's global one.
            size: Points along each axis, for pairs that draw functions.

        Returns:
            Samples, (count, *shape).

        Raises:
            ConfigError: If ``size`` is given, and the pair draws no functions.
        """
        condition = self.conditions()[number : number + 1]
        if size is None:
            return model.sample(condition, count, generator)[0]
        if not isinstance(model.generator, FunctionGenerator):
            raise ConfigError(
                f"`size={tuple(size)}` with a {type(model.generator).__name__}, whose samples have "
                "one size. Only functions are drawn at any resolution. Leave `size` out, or train "
                "a method that draws functions."
            )
        noise = torch.randn(1, count, model.noise_dim, generator=generator)
        with torch.no_grad():
            drawn: Tensor = model.generator(condition, noise, size)
        return drawn[0]

    @abstractmethod
    def conditions(self) -> Tensor:
        """Return all conditions, (names, condition_dim), such as one-hot classes."""

    def ceilings(self, setting: str) -> Mapping[str, Tensor]:
        """Return real samples by the name of their row, such as a bootstrap of training data."""
        return {}

    def validate(self, model: AdversarialPair) -> float:
        """Return the main score during training, on fewer samples."""
        setting = self.settings()[0]
        values = self.scores(setting, self.samples(model, setting))[self.score]
        return values.mean().item()

    def frame(self, model: AdversarialPair) -> Tensor | None:
        """Return a few samples to show during training, (count, *shape). Default: none."""
        return None

    def show(self, models: Mapping[str, nn.Module]) -> Shown:
        """Return tensors and facts for the figures. Default: none."""
        return {}, {}

    def facts(self) -> dict[str, Any]:
        """Return further entries of the record. Default: none."""
        return {}
