"""The plain hypernetwork: a trunk of linear layers, and one linear head that writes every generated number."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from weightloom.forms import Form, Full
from weightloom.hypernets.hypernet import HyperNetwork, check_condition
from weightloom.params import Params, ParamSpec


class MLPHyperNetwork(HyperNetwork):
    """Generate parameters of ``base`` by an MLP: θ = own + head(trunk(condition)).

    The base's own parameters are part of this module (``hyper.parameters()`` holds them once) and are trained with
    it: those that are generated as the value that every task starts from, the others as shared by all tasks.

    The head starts at zero, so at step 0 every task gets the base network as it stands (Bias-HyperInit).

    Args:
        base: The base network. Bring any module.
        condition_dim: Width of a condition.
        generate: Which parameters are generated: one glob or several, as in `ParamSpec.of`.
        hidden: Widths of the trunk's layers.
        form: How each generated parameter is held.

    Raises:
        ConfigError: If a glob matches no parameter.

    Example:
        >>> import torch
        >>> hyper = MLPHyperNetwork(nn.Linear(3, 2), condition_dim=4)
        >>> {name: tuple(value.shape) for name, value in hyper(torch.randn(5, 4)).items()}
        {'weight': (5, 2, 3), 'bias': (5, 2)}

    Source:
        Ha, Dai and Le, "HyperNetworks" (2017); initialisation: Beck et al., "Hypernetworks in meta-reinforcement
        learning" (2022), Bias-HyperInit, with the base's own values in the place of the head's bias.
    """

    def __init__(
        self,
        base: nn.Module,
        condition_dim: int,
        generate: str | Sequence[str] = "*",
        hidden: Sequence[int] = (64,),
        form: Form | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.condition_dim = condition_dim
        self.form = form or Full()
        self.spec = ParamSpec.of(base, generate)
        self.factors = ParamSpec(
            {
                f"{name}/{factor}": shape
                for name, own in self.spec.shapes.items()
                for factor, shape in self.form.factor_shapes(own).items()
            }
        )
        layers: list[nn.Module] = []
        width = condition_dim
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(width, self.factors.size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, condition: Float[Tensor, "tasks condition_dim"]) -> Params:
        """Generate parameters for each task.

        Raises:
            ShapeError: If the condition is not ``(tasks, condition_dim)``.
        """
        check_condition(condition, self.condition_dim)
        factors = self.factors.cut(self.head(self.trunk(condition)))
        return {
            name: self.form.dense(
                self.base.get_parameter(name),
                {factor: factors[f"{name}/{factor}"] for factor in self.form.factor_shapes(shape)},
            )
            for name, shape in self.spec.shapes.items()
        }
