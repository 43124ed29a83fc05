"""What a hypernetwork writes to: which parameters, in which forms, and from where they start."""

from collections.abc import Mapping
from itertools import accumulate
from math import prod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.errors import ConfigError, nearest
from weightloom.forms import Factored, Form, choose_forms
from weightloom.forms.choose import Generate
from weightloom.hypernets.held import HoldsBase
from weightloom.params import Params, ParamSpec, Selector, Shape, select, selectors_of

Init = Literal["bias-hyperinit", "hyperfan-in", "hyperfan-out", "magnitude-invariant"]
INITS: tuple[Init, ...] = ("bias-hyperinit", "hyperfan-in", "hyperfan-out", "magnitude-invariant")


class Generated(HoldsBase):
    """The generated parameters of a base: one flat vector per task in, Params out.

    Every generated number is where it starts plus what a hypernetwork writes. Free numbers start at
    the base's own values, factors where their form says. Those starts are learned, as is what a
    form shares among tasks: they are parameters of this module, and so are those of the base, once.

    The base stays its caller's, as `HoldsBase` says: where something is frozen, ``base`` is a twin
    of it. A parameter is generated in the dtype of the base's own; a complex one as two real
    numbers each, in full.

    Args:
        base: The base network. Bring any module.
        generate: Which parameters are generated, and as a mapping in which form: see
            `weightloom.forms.choose_forms`.
        form: Where ``generate`` is no mapping: how each generated parameter is held. None means in
            full.
        freeze: Which of the base's own values are not trained, as they come pretrained: one
            selector or several.
        init: How what is generated starts. For the hyperfan schemes free numbers start at zero, and
            the base's own values are neither used nor trained.

    Raises:
        ConfigError: If a selector matches nothing, a form does not fit, or ``init`` is unknown.

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
        init: Init = "bias-hyperinit",
    ) -> None:
        super().__init__()
        check_init(init)
        self.forms = choose_forms(base, generate, form)
        self.init = init
        self.frozen = {
            name for s in selectors_of(freeze or []) for name in select(base, s, "freeze")
        }
        """Names of what ``freeze`` selects."""
        from_zero = init.startswith("hyperfan")
        in_full = [name for name, its in self.forms.items() if its.is_free]
        self.hold(base, self.frozen, in_full if from_zero else ())
        self._at_own = frozenset([] if from_zero else in_full)
        """Whose free numbers start at the own value itself: a second start beside it would learn
        the same."""
        self._all_full = len(in_full) == len(self.forms)
        shapes = {name: tuple(parameter.shape) for name, parameter in base.named_parameters()}
        self.spec = ParamSpec(
            {name: shapes[name] for name in self.forms},
            tuple(name for name in shapes if name not in self.forms),
        )
        self._owners = {name: _owner(self.base, name) for name in self.forms}
        pair = {name: (2,) if self.own(name).is_complex() else () for name in self.forms}
        self.shapes: dict[str, dict[str, Shape]] = {
            name: {
                factor: (*shape, *pair[name])
                for factor, shape in its.factor_shapes(shapes[name]).items()
            }
            for name, its in self.forms.items()
        }
        """Shapes of what is generated for each parameter; of complex numbers with a last axis of
        two."""
        self.factors = ParamSpec(
            {f"{n}/{f}": s for n, its in self.shapes.items() for f, s in its.items()}
        )
        self.size = self.factors.size
        self._starts, self._shared = nn.ParameterDict(), nn.ParameterDict()
        self._parts: dict[str, list[str]] = {}
        for name, its in self.forms.items():
            own = base.get_parameter(name)
            kind = own.device, own.dtype.to_real() if own.is_complex() else own.dtype
            first = its.starts(shapes[name])
            for factor, shape in self.shapes[name].items():
                if name not in self._at_own:
                    start = first.get(factor, torch.zeros(shape)).to(*kind)
                    learned = name not in self.frozen or name not in in_full
                    self._starts[_key(name, factor)] = nn.Parameter(start, requires_grad=learned)
            shared = its.shared(shapes[name])
            self._parts[name] = list(shared)
            for part, value in shared.items():
                self._shared[_key(name, part)] = nn.Parameter(value.to(*kind))

    def own(self, name: str) -> Tensor:
        """The base's own value of a generated parameter."""
        module, leaf = self._owners[name]
        value = module._parameters[leaf]
        assert value is not None
        return value

    def slices(self) -> dict[str, slice]:
        """Name by name, where the numbers of a generated parameter lie in the flat vector."""
        ends = list(accumulate(sum(map(prod, its.values())) for its in self.shapes.values()))
        return dict(zip(self.shapes, map(slice, [0, *ends], ends), strict=False))

    def owned(self) -> dict[str, list[nn.Parameter]]:
        """Name by name, of the whole base.

        Its own parameter, and the starts and shared tensors of its form.
        """
        beside = {
            name: [_key(name, part) for part in [*its, *self._parts[name]]]
            for name, its in self.shapes.items()
        }
        kept = {**self._starts, **self._shared}
        return {
            name: [own, *(kept[key] for key in beside.get(name, ()) if key in kept)]
            for name, own in self.base.named_parameters()
        }

    def start(self) -> Float[Tensor, " size"]:
        """Where every generated number starts.

        Add it to what is generated, as a head does with its bias.

        It is of the widest dtype that there is among the starts.

        Raises:
            ConfigError: If the base was changed after this was built.
        """
        self.check_base()
        pieces = []
        for name, shapes in self.shapes.items():
            for factor in shapes:
                start = self.own(name) if name in self._at_own else self._starts[_key(name, factor)]
                start = torch.view_as_real(start) if start.is_complex() else start
                pieces.append(start if start.ndim == 1 else start.reshape(-1))
        return torch.cat(pieces)

    def forward(self, flat: Float[Tensor, "tasks size"]) -> Params:
        """Cut a flat vector per task, the starts already added, into Params, each of the dtype of the base's own.

        Under autocast a linear head writes in half precision. Parameters stay whole there, as those
        of any module do: norms take nothing else.

        Raises:
            ShapeError: If ``flat`` is not ``(tasks, size)``.
        """
        dtypes = [self.own(name).dtype for name in self.forms]
        if len(set(dtypes)) == 1 and not dtypes[0].is_complex:
            factors = self.factors.cut(flat.to(dtypes[0]))
            if self._all_full:
                return Params(zip(self.forms, factors.values(), strict=True))
        else:
            factors = self.factors.cut(flat)
        return Params(
            {n: self._value(n, factors, dtype) for n, dtype in zip(self.forms, dtypes, strict=True)}
        )

    def _value(self, name: str, factors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        if dtype.is_complex:
            pair = factors[f"{name}/change"].to(dtype.to_real())
            return torch.complex(pair[..., 0], pair[..., 1])
        if self.forms[name].is_free:
            return factors[f"{name}/change"].to(dtype)
        its = {factor: factors[f"{name}/{factor}"] for factor in self.shapes[name]}
        if any(value.dtype != dtype for value in its.values()):
            its = {factor: value.to(dtype) for factor, value in its.items()}
        shared = {part: self._shared[_key(name, part)] for part in self._parts[name]}
        value = self.forms[name].value(self.own(name), its, shared)
        return (
            value if isinstance(value, Factored) else value.to(dtype)
        )  # it may have been built under autocast

    @torch.no_grad()
    def scales(self) -> Float[Tensor, " size"]:
        """Standard deviation that what is written of each number should have at step 0.

        Zero for bias-HyperInit.

        For free numbers it follows from the base's own values: what is generated by the hyperfan
        schemes has their variance, fan by fan. Factors of other forms keep to their starts.
        """
        pieces = []
        for name, shapes in self.shapes.items():
            own = self.own(name)
            free = self.forms[name].is_free and self.init != "bias-hyperinit"
            for shape in shapes.values():
                real = torch.view_as_real(own) if own.is_complex() else own
                spread = real.square().mean().sqrt() if free else real.new_zeros(())
                if free and self.init == "hyperfan-out" and own.ndim >= 2:
                    spread = (
                        spread * (prod(own.shape[1:]) / (own.shape[0] * prod(own.shape[2:]))) ** 0.5
                    )
                if free and self.init == "magnitude-invariant":
                    spread = 0.1 * spread
                pieces.append(spread.expand(prod(shape)))
        return torch.cat(pieces)


class WritesGenerated:
    """Hypernetworks that write to a `Generated`: what they have in common."""

    generated: Generated

    @property
    def base(self) -> nn.Module:
        """The base network, or its twin where something is frozen.

        Its own parameters are part of this module.
        """
        return self.generated.base

    @property
    def spec(self) -> ParamSpec:
        """Names and shapes of what is generated, and names of what is not."""
        return self.generated.spec


def check_init(init: str) -> None:
    """Raise a `ConfigError` if ``init`` is unknown: before anything of the base is changed."""
    if init not in INITS:
        raise ConfigError(
            f"`init={init!r}` is unknown. It says how what is generated starts. "
            f"{nearest(init, INITS)}"
        )


def _owner(base: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter, and its name there.

    Looking it up anew in every step takes its time.
    """
    path, _, leaf = name.rpartition(".")
    return base.get_submodule(path), leaf


def _key(name: str, part: str) -> str:
    """A name for a parameter of ours: dots would cut it."""
    return f"{name}/{part}".replace(".", ":")
