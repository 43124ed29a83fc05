"""Our methods: parameters of a working network from the support set, in one forward pass."""

from torch import Tensor, nn

from weightloom.apps.fewshot.learner import Learner, Support
from weightloom.base import apply_per_task, apply_shared
from weightloom.conditions import SupportAttention, class_statistics
from weightloom.hypernets import HeadHyperNetwork, MLPHyperNetwork
from weightloom.networks import ConvNet
from weightloom.params import Params, sub


class HyperRegressor(Learner):
    """Attention over the support points gives a condition, an MLP writes every parameter of the base from it.

    Args:
        base: The base network; all its parameters are generated.
        x_dim: Width of an input.
        y_dim: Width of a target.
        condition_dim: Width of the condition.
        layers: Rounds of attention.
    """

    def __init__(
        self, base: nn.Module, x_dim: int = 1, y_dim: int = 1, condition_dim: int = 64, layers: int = 3
    ) -> None:
        super().__init__()
        self.base = base
        self.encoder = SupportAttention(x_dim, y_dim, condition_dim, hidden=64, layers=layers)
        self.hyper = MLPHyperNetwork(base, condition_dim, hidden=(128,))

    def condition(self, support: Support) -> Tensor:
        """Encode the support set, (tasks, condition_dim)."""
        condition: Tensor = self.encoder(support.x, support.y, support.mask)
        return condition

    def adapt(self, support: Support) -> Params:
        """Generate all parameters of the base."""
        params: Params = self.hyper(self.condition(support))
        return params

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Run the base with each task's parameters."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs


class HyperClassifier(Learner):
    """A shared trunk, and a head generated from its features of the support set.

    Args:
        base: A network with a trunk that is shared and a head that is generated.
        start_scale: How sharp the head is at step 0.
    """

    base: ConvNet

    def __init__(self, base: ConvNet, start_scale: float = 1.0) -> None:
        super().__init__()
        self.base = with_generated_head(base)
        self.hyper = HeadHyperNetwork("head", start_scale=start_scale)

    def condition(self, support: Support) -> Tensor:
        """Mean feature of each class, (tasks, ways, features)."""
        features = apply_shared(self.base.trunk, support.x)
        return class_statistics(features, support.y, support.mask).mean

    def adapt(self, support: Support) -> Params:
        """Generate the head: a row for every class that the support set has."""
        features = apply_shared(self.base.trunk, support.x)
        params: Params = self.hyper(features, support.y, support.mask)
        return params

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Run the shared trunk once on all images, then each task's head."""
        logits: Tensor = apply_per_task(self.base.head, sub(params, "head"), apply_shared(self.base.trunk, x))
        return logits


def with_generated_head(base: ConvNet) -> ConvNet:
    """Put a frozen head of one row of zeros in the place of the own one: every task brings its head, of any ways.

    Training has no use for the own values, and a checkpoint then fits whatever ways it is judged by.
    """
    base.head = nn.utils.skip_init(nn.Linear, base.trunk.features, 1).requires_grad_(False)
    for parameter in base.head.parameters():
        parameter.zero_()
    return base
