"""The parameters that a hypernetwork writes: selection, forms, initial values and layout."""

from collections.abc import Iterable, Mapping
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
"""Names of the initialisations, as explained at `MLPHyperNetwork`."""

INITS: tuple[Init, ...] = ("bias-hyperinit", "hyperfan-in", "hyperfan-out", "magnitude-invariant")


class Generated(HoldsBase):
    """The generated parameters of a base: one flat vector per task in, Params out.

    Each generated number is its start plus the number that a hypernetwork writes. Free numbers
    start at the base's own values, factors at the initial values of their form. Starts and a form's
    shared tensors are trained: they are parameters of this module, as are those of the base.

    The caller's base is left unchanged; if any parameter is frozen, ``self.base`` is a twin of it
    (see `HoldsBase`). Parameters are generated in the dtype of the base's own, complex numbers as
    pairs of real ones, always in full.

    Args:
        base: The base network, any module.
        generate: Selectors of the generated parameters, or a mapping from selectors to forms, as
            in `weightloom.forms.choose_forms`.
        form: Form of each generated parameter, if ``generate`` is not a mapping. None means `Full`.
        freeze: Selectors of own values that are not trained, such as pretrained ones: one selector
            or several.
        init: Initialisation, as in `MLPHyperNetwork`. With the hyperfan schemes free numbers start
            at zero, and the base's own values are neither used nor trained.

    Raises:
        ConfigError: If a selector matches no parameter, a form does not fit, or ``init`` is
            unknown.

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
        self.frozen = _matched(base, freeze)
        """Names of the parameters that ``freeze`` selects."""
        from_zero = init.startswith("hyperfan")
        self._in_full = frozenset(name for name, its in self.forms.items() if its.is_free)
        self.hold(base, self.frozen, self._in_full if from_zero else ())
        self._at_own = frozenset() if from_zero else self._in_full
        """Names of parameters that start at the own value itself and need no separate start."""
        self._all_full = len(self._in_full) == len(self.forms)
        self.spec = _spec_of(base, self.forms)
        self._owners = {name: _owner(self.base, name) for name in self.forms}
        self.shapes: dict[str, dict[str, Shape]] = {
            name: self._factor_shapes(name) for name in self.forms
        }
        """Shapes of the generated factors of each parameter; complex numbers add an axis of two."""
        self.factors = ParamSpec(
            {f"{n}/{f}": s for n, its in self.shapes.items() for f, s in its.items()}
        )
        self.size = self.factors.size
        self._starts, self._shared = nn.ParameterDict(), nn.ParameterDict()
        self._parts: dict[str, list[str]] = {}
        for name in self.forms:
            self._add_starts(name)
            self._add_shared(name)

    def _factor_shapes(self, name: str) -> dict[str, Shape]:
        pair = (2,) if self.own(name).is_complex() else ()
        shapes = self.forms[name].factor_shapes(self.spec.shapes[name])
        return {factor: (*shape, *pair) for factor, shape in shapes.items()}

    def _add_starts(self, name: str) -> None:
        """Add the learned starts of a parameter's factors, unless it starts at the own value."""
        initial = self.forms[name].starts(self.spec.shapes[name])
        if name in self._at_own:
            return
        is_learned = name not in self.frozen or name not in self._in_full
        for factor, shape in self.shapes[name].items():
            start = self._like_own(name, initial.get(factor, torch.zeros(shape)))
            self._starts[_key(name, factor)] = nn.Parameter(start, requires_grad=is_learned)

    def _add_shared(self, name: str) -> None:
        """Add the tensors that a parameter's form shares among tasks."""
        shared = self.forms[name].shared(self.spec.shapes[name])
        self._parts[name] = list(shared)
        for part, value in shared.items():
            self._shared[_key(name, part)] = nn.Parameter(self._like_own(name, value))

    def _like_own(self, name: str, value: Tensor) -> Tensor:
        """Move a tensor to the device and the real dtype of an own value."""
        own = self.own(name)
        return value.to(own.device, own.dtype.to_real() if own.is_complex() else own.dtype)

    def own(self, name: str) -> Tensor:
        """Return the base's own value of a generated parameter."""
        module, leaf = self._owners[name]
        value = module._parameters[leaf]
        assert value is not None
        return value

    def slices(self) -> dict[str, slice]:
        """Slice of each generated parameter in the flat vector, by name."""
        ends = list(accumulate(sum(map(prod, its.values())) for its in self.shapes.values()))
        return dict(zip(self.shapes, map(slice, [0, *ends], ends), strict=False))

    def owned(self) -> dict[str, list[nn.Parameter]]:
        """Own parameter, starts and shared tensors of each parameter of the base, by its name."""
        keys = {
            name: [_key(name, part) for part in [*its, *self._parts[name]]]
            for name, its in self.shapes.items()
        }
        kept = {**self._starts, **self._shared}
        return {
            name: [own, *(kept[key] for key in keys.get(name, ()) if key in kept)]
            for name, own in self.base.named_parameters()
        }

    def start(self) -> Float[Tensor, " size"]:
        """Start of every generated number, in the widest dtype among them.

        Hypernetworks add it to the numbers that they write, as a bias.

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
        """Cut a flat vector per task into Params, each in the dtype of the base's own parameter.

        Under autocast a linear head writes half precision; the parameters are cast back, because
        norms accept full precision only.

        Args:
            flat: Generated numbers with the starts already added.

        Returns:
            The parameters by name, each (tasks, *shape), built or held as factors.

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
        # a value built under autocast may be in half precision
        return value if isinstance(value, Factored) else value.to(dtype)

    @torch.no_grad()
    def scales(self) -> Float[Tensor, " size"]:
        """Standard deviation at step 0 of each number that a hypernetwork writes.

        Zero for bias-HyperInit, and for factors, which keep their starts. For free numbers of the
        other schemes it follows from the base's own values: the hyperfan schemes give generated
        numbers the same variance, fan by fan.
        """
        pieces = []
        for name, shapes in self.shapes.items():
            spread = self._spread(name)
            pieces += [spread.expand(prod(shape)) for shape in shapes.values()]
        return torch.cat(pieces)

    def _spread(self, name: str) -> Tensor:
        """Standard deviation of the numbers written for one parameter, a scalar."""
        own = self.own(name)
        real = torch.view_as_real(own) if own.is_complex() else own
        if not self.forms[name].is_free or self.init == "bias-hyperinit":
            return real.new_zeros(())
        spread = real.square().mean().sqrt()
        if self.init == "hyperfan-out" and own.ndim >= 2:
            fan_in, fan_out = prod(own.shape[1:]), own.shape[0] * prod(own.shape[2:])
            return spread * (fan_in / fan_out) ** 0.5
        if self.init == "magnitude-invariant":
            return 0.1 * spread
        return spread


class WritesGenerated:
    """Common attributes of hypernetworks that write to a `Generated`."""

    generated: Generated
    """The generated parameters."""

    @property
    def base(self) -> nn.Module:
        """The base network, or its twin if parameters are frozen; a part of this module."""
        return self.generated.base

    @property
    def spec(self) -> ParamSpec:
        """Names and shapes of generated parameters, and names of shared ones."""
        return self.generated.spec


def check_init(init: str) -> None:
    """Raise a `ConfigError` if ``init`` is unknown."""
    if init not in INITS:
        raise ConfigError(
            f"`init={init!r}` is unknown. It names an initialisation. {nearest(init, INITS)}"
        )


def _matched(base: nn.Module, freeze: Selector | Iterable[Selector] | None) -> set[str]:
    """Names that the selectors of ``freeze`` match."""
    return {name for its in selectors_of(freeze or []) for name in select(base, its, "freeze")}


def _spec_of(base: nn.Module, generated: Iterable[str]) -> ParamSpec:
    """Spec of a base by the first names of its generated parameters."""
    shapes = {name: tuple(parameter.shape) for name, parameter in base.named_parameters()}
    chosen = {name: shapes.pop(name) for name in generated}
    return ParamSpec(chosen, tuple(shapes))


def _owner(base: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Module that holds a parameter, and the parameter's name in it, looked up once for speed."""
    path, _, leaf = name.rpartition(".")
    return base.get_submodule(path), leaf


def _key(name: str, part: str) -> str:
    """Key in a `ParameterDict`, which allows no dots."""
    return f"{name}/{part}".replace(".", ":")
