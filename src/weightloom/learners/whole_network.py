"""Whole networks generated from the support set.

Attention over its points, then an MLP or a transformer.
"""

from torch import nn

from weightloom.conditions import SupportAttention
from weightloom.forms import Form
from weightloom.hypernets import HyperNetwork, MLPHyperNetwork, TransformerHyperNetwork
from weightloom.learners.generated import GeneratedLearner


class HyperRegressor(GeneratedLearner):
    """Attention over the support points gives a condition, a hypernetwork writes every parameter of the base from it.

    Args:
        base: The base network; all its parameters are generated.
        x_dim: Width of an input.
        y_dim: Width of a target.
        condition_dim: Width of the condition.
        layers: Rounds of attention.
        form: How a generated parameter is held; None is free numbers. With `FiLM` it is the
            FiLM-only comparator.
        transformer: Write by a transformer over slices of the parameters in the place of an MLP.
        hidden: Width of the encoder.
    """

    def __init__(
        self,
        base: nn.Module,
        x_dim: int = 1,
        y_dim: int = 1,
        condition_dim: int = 64,
        layers: int = 3,
        form: Form | None = None,
        transformer: bool = False,
        hidden: int = 64,
    ) -> None:
        encoder = SupportAttention(x_dim, y_dim, condition_dim, hidden=hidden, layers=layers)
        hyper: HyperNetwork = (
            TransformerHyperNetwork(base, condition_dim, slice_size=64, form=form)
            if transformer
            else MLPHyperNetwork(base, condition_dim, hidden=(128,), form=form)
        )
        super().__init__(base, encoder, hyper)
