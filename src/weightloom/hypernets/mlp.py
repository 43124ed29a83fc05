"""The plain hypernetwork: a trunk of linear layers, and one linear head that writes every generated number."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.forms import Form
from weightloom.forms.choose import Generate
from weightloom.hypernets.generated import Generated, Init, WritesGenerated, check_init
from weightloom.hypernets.hypernet import HyperNetwork, check_condition
from weightloom.params import Params, Selector


class MLPHyperNetwork(WritesGenerated, HyperNetwork):
    """Generate parameters of ``base`` by an MLP: θ = own + head(trunk(condition)).

    The base's own parameters are part of this module (``hyper.parameters()`` holds them once) and are trained with
    it: those that are generated as the value that every task starts from, the others as shared by all tasks.

    The head starts at zero, so at step 0 every task gets the base network as it stands (Bias-HyperInit). The other
    initialisations, for networks that shall differ from the start:

    - ``"hyperfan-in"``, ``"hyperfan-out"``: what is generated has the variance of the base's own values, which are set
      to zero, for every condition: the trunk's output is normalised. With ``-out`` the variance is that of a layer
      whose fans are exchanged, which keeps the scale of gradients.
    - ``"magnitude-invariant"``: the condition is encoded to constant norm, and the generated change starts with a
      tenth of the standard deviation of the base's own values.

    Args:
        base: The base network. Bring any module.
        condition_dim: Width of a condition.
        generate: Which parameters are generated: a glob, a kind of module, a predicate, several of them, or a mapping
            from them to forms, as in `weightloom.forms.choose_forms`.
        hidden: Widths of the trunk's layers.
        form: How each generated parameter is held, where ``generate`` does not say.
        freeze: Which of the base's own values are not trained.
        init: How what is generated starts.

    Raises:
        ConfigError: If a selector matches no parameter, a form does not fit one, or ``init`` is unknown.

    Example:
        >>> import torch
        >>> hyper = MLPHyperNetwork(nn.Linear(3, 2), condition_dim=4)
        >>> {name: tuple(value.shape) for name, value in hyper(torch.randn(5, 4)).items()}
        {'weight': (5, 2, 3), 'bias': (5, 2)}

    Source:
        Ha, Dai and Le, "HyperNetworks" (2017). Initialisation: Beck et al., "Hypernetworks in meta-reinforcement
        learning" (2022), with the base's own values in the place of the head's bias; Chang, Flokas and Lipson,
        "Principled weight initialization for hypernetworks" (2020), with the base's own variance in the place of He's;
        Ortiz, Guttag and Dalca, "Magnitude invariant parametrizations improve hypernetwork learning" (2024), with
        unbounded numbers squashed to (0, 1) first.
    """

    def __init__(
        self,
        base: nn.Module,
        condition_dim: int,
        generate: Generate = "*",
        hidden: Sequence[int] = (64,),
        form: Form | None = None,
        freeze: Selector | list[Selector] | None = None,
        init: Init = "bias-hyperinit",
    ) -> None:
        super().__init__()
        check_init(init)
        self.condition_dim = condition_dim
        self.generated = Generated(base, generate, form, freeze)
        self.init = init
        layers: list[nn.Module] = []
        width = 2 * condition_dim if init == "magnitude-invariant" else condition_dim
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(width, self.generated.size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if init != "bias-hyperinit":
            self._spread(self.generated.scales(init))

    def _spread(self, scales: Float[Tensor, " size"]) -> None:
        """Give every generated number its standard deviation at step 0."""
        power = 1.0
        if self.init == "magnitude-invariant":  # He's layers keep the mean square of the code, which is a half
            power = 0.5
            for layer in self.trunk:
                if isinstance(layer, nn.Linear):
                    nn.init.kaiming_normal_(layer.weight)
                    nn.init.zeros_(layer.bias)
        with torch.no_grad():
            noise = torch.randn_like(self.head.weight)
            self.head.weight.copy_(noise * scales[:, None] / (power * self.head.in_features) ** 0.5)

    def forward(self, condition: Float[Tensor, "tasks condition_dim"]) -> Params:
        """Generate parameters for each task.

        Raises:
            ShapeError: If the condition is not ``(tasks, condition_dim)``.
        """
        check_condition(condition, self.condition_dim, self.head.weight)
        if self.init == "magnitude-invariant":
            condition = constant_norm(condition)
        known = self.trunk(condition)
        if self.init.startswith("hyperfan"):
            known = nn.functional.rms_norm(known, known.shape[-1:])
        flat = nn.functional.linear(known, self.head.weight, self.head.bias + self.generated.start())
        return self.generated.forward(flat)


def constant_norm(condition: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead double"]:
    """Encode numbers of any size so that the norm of the code is the same for all conditions."""
    angle = torch.sigmoid(condition) * torch.pi / 2
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
