"""The plain hypernetwork: a trunk of linear layers, and one linear head that writes every generated number."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.forms import Form
from weightloom.forms.choose import Generate, advised_budget
from weightloom.hypernets.generated import Generated, Init, WritesGenerated, check_init
from weightloom.hypernets.hypernet import HyperNetwork, Rows, check_condition
from weightloom.hypernets.saving import Saves, described
from weightloom.hypernets.writer import LARGEST_HEAD, check_head
from weightloom.params import Params, Selector


class MLPHyperNetwork(WritesGenerated, Saves, HyperNetwork):
    """Generate parameters of ``base`` by an MLP: θ = own + head(trunk(condition)).

    The base's own parameters are part of this module (``hyper.parameters()`` holds them once) and
    are trained with it: those that are generated as the value that every task starts from, the
    others as shared by all tasks. Their values, flags and modes are left alone when this is built;
    where ``freeze`` or ``init`` keeps some of them from being trained, ``hyper.base`` is a twin of
    the base (`weightloom.hypernets.held.HoldsBase`).

    The head starts at zero, so at step 0 every task gets the base network as it stands
    (Bias-HyperInit). The other initialisations, for networks that shall differ from the start:

    - ``"hyperfan-in"``, ``"hyperfan-out"``: what is generated has the variance of the base's own
      values, for every condition: the trunk's output is normalised. It starts from zero in their
      place; they are not used. With ``-out`` the variance is that of a layer whose fans are
      exchanged, which keeps the scale of gradients.
    - ``"magnitude-invariant"``: the condition is encoded to constant norm, and the generated change
      starts with a tenth of the standard deviation of the base's own values.

    Args:
        base: The base network. Bring any module.
        condition_dim: Width of a condition.
        generate: Which parameters are generated: a glob, a kind of module, a predicate, several of
            them, or a mapping from them to forms, as in `weightloom.forms.choose_forms`.
        hidden: Widths of the trunk's layers.
        form: How each generated parameter is held, where ``generate`` does not say.
        freeze: Which of the base's own values are not trained. A base that is frozen whole, and is
            in eval mode when it is passed, stays in eval mode when ``hyper.train()`` is called.
        init: How what is generated starts.
        largest_head: As many numbers as the head may hold: a larger one is an error, not gigabytes.

    Raises:
        ConfigError: If a selector matches no parameter, a form does not fit one, ``init`` is
            unknown, or the head would be too large.

    Example:
        >>> import torch
        >>> hyper = MLPHyperNetwork(nn.Linear(3, 2), condition_dim=4)
        >>> {name: tuple(value.shape) for name, value in hyper(torch.randn(5, 4)).items()}
        {'weight': (5, 2, 3), 'bias': (5, 2)}

    Source:
        Ha, Dai and Le, "HyperNetworks" (2017). Initialisation: Beck et al., "Hypernetworks in
        meta-reinforcement learning" (2022), with the base's own values in the place of the head's
        bias; Chang, Flokas and Lipson, "Principled weight initialization for hypernetworks" (2020),
        with the base's own variance in the place of He's; Ortiz, Guttag and Dalca, "Magnitude
        invariant parametrizations improve hypernetwork learning" (2024), with unbounded numbers
        squashed to (0, 1) first.
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
        largest_head: int = LARGEST_HEAD,
    ) -> None:
        super().__init__()
        check_init(init)
        self.condition_dim = condition_dim
        self.generated = Generated(base, generate, form, freeze, init)
        self.init = init
        self.options = {"condition_dim": condition_dim, "hidden": list(hidden), "init": init}
        self.options |= {"largest_head": largest_head}
        self.options |= described(self.generated.forms, sorted(self.generated.frozen))
        width = (
            hidden[-1]
            if hidden
            else 2 * condition_dim
            if init == "magnitude-invariant"
            else condition_dim
        )
        numbers = (width + 1) * self.generated.size
        if numbers > largest_head:
            what = (
                f"{width:,} inputs and a bias for each of {self.generated.size:,} generated numbers"
            )
            advice = advised_budget(base, generate, self.generated.forms, largest_head, width)
            check_head(numbers, largest_head, what, advice)
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
            self._spread(self.generated.scales())

    def _spread(self, scales: Float[Tensor, " size"]) -> None:
        """Give every generated number its standard deviation at step 0."""
        power = 1.0
        if (
            self.init == "magnitude-invariant"
        ):  # He's layers keep the mean square of the code, which is a half
            power = 0.5
            for layer in self.trunk:
                if isinstance(layer, nn.Linear):
                    nn.init.kaiming_normal_(layer.weight)
                    nn.init.zeros_(layer.bias)
        with torch.no_grad():
            noise = torch.randn_like(self.head.weight)
            self.head.weight.copy_(
                noise * scales.to(noise)[:, None] / (power * self.head.in_features) ** 0.5
            )

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
        start, weight, bias = self.generated.start(), self.head.weight, self.head.bias
        is_wider = torch.promote_types(start.dtype, weight.dtype) != weight.dtype
        if is_wider or torch.is_autocast_enabled(
            weight.device.type
        ):  # where the head would round the start
            return self.generated.forward(start + nn.functional.linear(known, weight, bias))
        return self.generated.forward(nn.functional.linear(known, weight, bias + start))

    def written_by(self) -> dict[str, list[Rows]]:
        """Name by name, its rows of the head, the base's own value, and the starts and shared tensors of its form."""
        rows, head = self.generated.slices(), (self.head.weight, self.head.bias)
        return {
            name: [(own, slice(None)) for own in owned]
            + [(its, rows[name]) for its in head if name in rows]
            for name, owned in self.generated.owned().items()
        }


def constant_norm(condition: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead double"]:
    """Encode numbers of any size so that the norm of the code is the same for all conditions."""
    angle = torch.sigmoid(condition) * torch.pi / 2
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
