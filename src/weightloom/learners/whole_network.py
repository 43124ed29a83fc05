"""Whole networks generated from the support set, by attention and an MLP or a transformer."""

from torch import nn

from weightloom.conditions import SupportAttention
from weightloom.forms import Form
from weightloom.hypernets import HyperNetwork, MLPHyperNetwork, TransformerHyperNetwork
from weightloom.learners.generated import GeneratedLearner


class HyperRegressor(GeneratedLearner):
    """Generate every parameter of the base from a condition, encoded by attention over the support.

    Args:
        base: The base network; all its parameters are generated.
        x_dim: Width of an input.
        y_dim: Width of a target.
        condition_dim: Width of the condition.
        layers: Number of attention blocks.
        form: Form of the generated parameters; None: unrestricted. `FiLM` makes this the FiLM-only
            comparator.
        transformer: Generate with a transformer over slices of the parameters instead of an MLP.
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
