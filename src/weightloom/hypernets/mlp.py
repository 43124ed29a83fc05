"""The plain hypernetwork: an MLP whose linear head writes every generated number."""

from collections.abc import Sequence
from itertools import pairwise

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
    """Hypernetwork by an MLP: θ = own + head(trunk(condition)).

    The base's own parameters are part of this module (once, in ``hyper.parameters()``) and are
    trained with it: generated ones as the common start of all tasks, the others as shared by all
    tasks. Building this module changes neither their values nor their flags or modes; if ``freeze``
    or ``init`` excludes some of them from training, ``hyper.base`` is a twin of the base
    (`weightloom.hypernets.held.HoldsBase`).

    Initialisations:

    - ``"bias-hyperinit"``: the head starts at zero, so every task gets the unchanged base network
      at step 0.
    - ``"hyperfan-in"``, ``"hyperfan-out"``: generated values have the variance of the base's own
      values for every condition, since the trunk's output is normalised. They replace the own
      values, which are not used. With ``-out`` the variance is that of a layer with exchanged
      fans, which preserves the scale of gradients.
    - ``"magnitude-invariant"``: the condition is encoded with constant norm, and generated changes
      start with a tenth of the standard deviation of the base's own values.

    Args:
        base: The base network, any module.
        condition_dim: Width of a condition.
        generate: Selectors of the generated parameters: a glob, a module class, a predicate,
            several of these, or a mapping from them to forms, as in
            `weightloom.forms.choose_forms`.
        hidden: Widths of the trunk's layers.
        form: Form of each generated parameter, if ``generate`` is not a mapping to forms.
        freeze: Selectors of own values that are not trained. A base that is frozen completely and
            in eval mode when it is passed stays in eval mode when ``hyper.train()`` is called.
        init: Initialisation of the generated parameters.
        largest_head: Largest number of elements in the head; a larger one raises an error before
            its memory is allocated.

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
        meta-reinforcement learning" (2022), with the base's own values instead of the head's bias;
        Chang, Flokas and Lipson, "Principled weight initialization for hypernetworks" (2020), with
        the base's own variance instead of He's; Ortiz, Guttag and Dalca, "Magnitude invariant
        parametrizations improve hypernetwork learning" (2024), with unbounded conditions first
        squashed to (0, 1).
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
        widths = [2 * condition_dim if init == "magnitude-invariant" else condition_dim, *hidden]
        numbers = (widths[-1] + 1) * self.generated.size
        if numbers > largest_head:
            content = (
                f"{widths[-1]:,} inputs and a bias for each of {self.generated.size:,} generated "
                "numbers"
            )
            advice = advised_budget(base, generate, self.generated.forms, largest_head, widths[-1])
            check_head(numbers, largest_head, content, advice)
        layers: list[nn.Module] = []
        for width, units in pairwise(widths):
            layers += [nn.Linear(width, units), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], self.generated.size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if init != "bias-hyperinit":
            self._spread(self.generated.scales())

    def _spread(self, scales: Float[Tensor, " size"]) -> None:
        """Initialise the head so that its outputs have the given standard deviations."""
        power = 1.0
        if self.init == "magnitude-invariant":
            power = 0.5  # mean square of the encoded condition, which He's layers preserve
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

        Args:
            condition: Description of each task, (tasks, condition_dim).

        Returns:
            The generated parameters by name, each (tasks, *shape).

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
        if is_wider or torch.is_autocast_enabled(weight.device.type):
            # the head would round the start, so it is added afterwards
            return self.generated.forward(start + nn.functional.linear(known, weight, bias))
        return self.generated.forward(nn.functional.linear(known, weight, bias + start))

    def written_by(self) -> dict[str, list[Rows]]:
        """Rows of the head, own value, starts and shared tensors of each parameter, by its name."""
        rows, head = self.generated.slices(), (self.head.weight, self.head.bias)
        return {
            name: [(own, slice(None)) for own in owned]
            + [(its, rows[name]) for its in head if name in rows]
            for name, owned in self.generated.owned().items()
        }


def constant_norm(condition: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead double"]:
    """Encode unbounded numbers as (cos, sin) of angles, so that all codes have the same norm."""
    angle = torch.sigmoid(condition) * torch.pi / 2
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
