"""What a hypernetwork writes to: which parameters, in which forms, and from where they start."""

from collections.abc import Mapping
from math import prod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.errors import ConfigError, nearest
from weightloom.forms import Form, Full, choose_forms
from weightloom.forms.choose import Generate
from weightloom.params import Params, ParamSpec, Selector, Shape, select, selectors_of

Init = Literal["bias-hyperinit", "hyperfan-in", "hyperfan-out", "magnitude-invariant"]
INITS: tuple[Init, ...] = ("bias-hyperinit", "hyperfan-in", "hyperfan-out", "magnitude-invariant")


class Generated(nn.Module):
    """The generated parameters of a base: one flat vector per task in, Params out.

    Every generated number is where it starts plus what a hypernetwork writes. Free numbers start at the base's own
    values, factors where their form says. Those starts are learned, as is what a form shares among tasks: they are
    parameters of this module, and so are those of the base, once.

    Args:
        base: The base network. Bring any module.
        generate: Which parameters are generated, and as a mapping in which form: see `weightloom.forms.choose_forms`.
        form: Where ``generate`` is no mapping: how each generated parameter is held. None means in full.
        freeze: Which of the base's own values are not trained, as they come pretrained: one selector or several.

    Raises:
        ConfigError: If a selector matches nothing, or a form does not fit.

    Example:
        >>> from weightloom.forms import LowRank
        >>> generated = Generated(nn.Linear(8, 6), form=LowRank(2))
        >>> generated.size, generated(torch.zeros(5, generated.size))["weight"]
        (34, Factored(LowRank(rank=2), shape=(5, 6, 8)))
    """

    def __init__(
        self,
        base: nn.Module,
        generate: Generate = "*",
        form: Form | None = None,
        freeze: Selector | list[Selector] | None = None,
    ) -> None:
        super().__init__()
        self.forms = choose_forms(base, generate, form)
        frozen = {name for s in selectors_of(freeze or []) for name in select(base, s, "freeze")}
        self.base = base
        shapes = {name: tuple(parameter.shape) for name, parameter in base.named_parameters()}
        self.spec = ParamSpec(
            {name: shapes[name] for name in self.forms}, tuple(name for name in shapes if name not in self.forms)
        )
        self.shapes: dict[str, dict[str, Shape]] = {
            name: its.factor_shapes(shapes[name]) for name, its in self.forms.items()
        }
        self.factors = ParamSpec({f"{n}/{f}": s for n, its in self.shapes.items() for f, s in its.items()})
        self.size = self.factors.size
        self._first = next(iter(self.forms))
        self._all_free = all(map(self._starts_at_own, self.forms))
        self._starts, self._shared = nn.ParameterDict(), nn.ParameterDict()
        self._parts: dict[str, list[str]] = {}
        for name, its in self.forms.items():
            own = base.get_parameter(name)
            first = its.starts(shapes[name])
            for factor, shape in self.shapes[name].items():
                if not self._starts_at_own(name):
                    start = first.get(factor, torch.zeros(shape))
                    self._starts[_key(name, factor)] = nn.Parameter(start.to(own))
            shared = its.shared(shapes[name])
            self._parts[name] = list(shared)
            for part, value in shared.items():
                self._shared[_key(name, part)] = nn.Parameter(value.to(own))
        self._owners = {name: _owner(base, name) for name in self.forms}
        for name, parameter in base.named_parameters(remove_duplicate=False):
            if name in frozen:
                parameter.requires_grad_(False)

    def own(self, name: str) -> Tensor:
        """The base's own value of a generated parameter."""
        module, leaf = self._owners[name]
        value = module._parameters[leaf]
        assert value is not None
        return value

    def _starts_at_own(self, name: str) -> bool:
        """Free numbers start at the own value itself: a second start beside it would learn the same."""
        return isinstance(self.forms[name], Full)

    def start(self) -> Float[Tensor, " size"]:
        """Where every generated number starts; add it to what is generated, as a head does with its bias."""
        pieces = []
        for name, shapes in self.shapes.items():
            free = self._starts_at_own(name)
            for factor in shapes:
                start = self.own(name) if free else self._starts[_key(name, factor)]
                pieces.append(start if start.ndim == 1 else start.reshape(-1))
        return torch.cat(pieces)

    def forward(self, flat: Float[Tensor, "tasks size"]) -> Params:
        """Cut a flat vector per task, the starts already added, into Params of the base's own dtype.

        Under autocast a linear head writes in half precision. Parameters stay whole there, as those of any module do:
        norms take nothing else.

        Raises:
            ShapeError: If ``flat`` is not ``(tasks, size)``.
        """
        factors = self.factors.cut(flat.to(self.own(self._first).dtype))
        if self._all_free:
            return Params(zip(self.forms, factors.values(), strict=True))
        return Params({name: self._value(name, factors) for name in self.forms})

    def _value(self, name: str, factors: Mapping[str, Tensor]) -> Tensor:
        if self._starts_at_own(name):
            return factors[f"{name}/change"]
        form = self.forms[name]
        its = {factor: factors[f"{name}/{factor}"] for factor in self.shapes[name]}
        own = self.own(name)
        shared = {part: self._shared[_key(name, part)] for part in self._parts[name]}
        return form.value(own, its, shared)

    @torch.no_grad()
    def scales(self, init: Init) -> Float[Tensor, " size"]:
        """Standard deviation that what is written of each number should have at step 0; zero for bias-HyperInit.

        For free numbers it follows from the base's own values, which for the hyperfan schemes are set to zero: what is
        generated then has their variance, fan by fan. Factors of other forms keep to their starts.

        Raises:
            ConfigError: If ``init`` is unknown.
        """
        check_init(init)
        pieces = []
        for name, shapes in self.shapes.items():
            own = self.own(name)
            for shape in shapes.values():
                free = self._starts_at_own(name) and init != "bias-hyperinit"
                spread = own.square().mean().sqrt() if free else own.new_zeros(())
                if free and init == "hyperfan-out" and own.ndim >= 2:
                    spread = spread * (prod(own.shape[1:]) / (own.shape[0] * prod(own.shape[2:]))) ** 0.5
                if free and init == "magnitude-invariant":
                    spread = 0.1 * spread
                pieces.append(spread.expand(prod(shape)))
            if self._starts_at_own(name) and init.startswith("hyperfan"):
                own.zero_()
        return torch.cat(pieces)


class WritesGenerated:
    """What hypernetworks that write to a `Generated` have in common."""

    generated: Generated

    @property
    def base(self) -> nn.Module:
        """The base network, whose own parameters are part of this module."""
        return self.generated.base

    @property
    def spec(self) -> ParamSpec:
        """Names and shapes of what is generated, and names of what is not."""
        return self.generated.spec


def check_init(init: str) -> None:
    """Raise a `ConfigError` if ``init`` is unknown: before anything of the base is changed."""
    if init not in INITS:
        raise ConfigError(f"`init={init!r}` is unknown. It says how what is generated starts. {nearest(init, INITS)}")


def _owner(base: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter, and its name there: looking it up anew in every step takes its time."""
    path, _, leaf = name.rpartition(".")
    return base.get_submodule(path), leaf


def _key(name: str, part: str) -> str:
    """A name for a parameter of ours: dots would cut it."""
    return f"{name}/{part}".replace(".", ":")
