"""Conditional neural processes: the condition goes into the network as an input, not into its parameters."""

from torch import Tensor, nn

from weightloom.apps.fewshot.learner import Learner, Support
from weightloom.apps.fewshot.methods.conditioned import Conditioned
from weightloom.base import apply_per_task
from weightloom.params import Params


class ConditionalNeuralProcess(Learner):
    """Encode the support set, and let one network that all tasks share read the code beside every input.

    Args:
        encoder: ``(support_x, support_y, support_mask)`` to a condition (tasks, condition_dim), such as `DeepSets`,
            which is the encoder of the paper.
        base: The shared network.

    Source:
        Garnelo et al., "Conditional neural processes" (2018); the mean is predicted, the variance left out.
    """

    base: Conditioned

    def __init__(self, encoder: nn.Module, base: Conditioned) -> None:
        super().__init__()
        self.encoder, self.base = encoder, base

    def condition(self, support: Support) -> Tensor:
        """Encode the support set, (tasks, condition_dim)."""
        condition: Tensor = self.encoder(support.x, support.y, support.mask)
        return condition

    def adapt(self, support: Support) -> Params:
        """The code is all that is of the task."""
        return {"condition": self.condition(support)}

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Run the shared network on each input and the code of its task."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs
