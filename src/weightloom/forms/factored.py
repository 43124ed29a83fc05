"""`Factored`: a tensor subclass that holds a generated parameter as factors."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.serialization import add_safe_globals
from torch.utils._pytree import register_pytree_node, tree_map

from weightloom.errors import ConfigError
from weightloom.forms.form import Form, Parts, lead_of

NO_SUBCLASS = torch._C.DisableTorchFunctionSubclass

Kind = TypeVar("Kind", bound="Factored")


class Factored(Tensor):
    """A generated parameter held as the factors of its form: a tensor that is built only on demand.

    It has the shape, device and dtype of the built parameter, and any code that takes a tensor
    accepts it. Operations that its form implements (linear layers, convolutions, embeddings) are
    computed from the factors, and tasks are selected, joined and copied as factors. Every other
    operation receives the built parameter; a `BuiltWarning` is issued if it holds the values of all
    tasks and more than ten times the numbers of the factors, except after an explicit `dense`.
    Gradients flow to the factors. Operations that need the tensor's memory, such as in-place
    changes, raise a `ConfigError`.

    Args:
        form: The form, which defines how to build the parameter from the factors.
        own: The base's own value, shared by all tasks.
        factors: Each ``(*lead, *factor_shape)``, with a leading tasks axis, or none for one task.
        shared: The form's tensors that all tasks share; None means an empty dict.

    Raises:
        ConfigError: If the names of ``factors`` are not those of ``form.factor_shapes``.

    Example:
        >>> from weightloom.forms import RowScale
        >>> weight = Factored(RowScale(), torch.ones(2, 3), {"gain": torch.zeros(5, 2)})
        >>> weight.shape, weight.sum().item(), weight[3]
        (torch.Size([5, 2, 3]), 30.0, Factored(RowScale(axis=0), shape=(2, 3)))
    """

    form: Form
    """The form that builds the parameter."""
    own: Tensor
    """The base's own value, of the parameter's shape."""
    factors: Parts
    """Generated factors by name, each ``(*lead, *factor_shape)``."""
    shared: Parts
    """Tensors of the form that all tasks share, by name."""

    @staticmethod
    def __new__(
        cls: type[Kind], form: Form, own: Tensor, factors: Parts, shared: Parts | None = None
    ) -> Kind:
        """Wrap factors in a tensor of the parameter's shape, device and dtype, without memory."""
        shapes = form.factor_shapes(tuple(own.shape))
        if factors.keys() != shapes.keys():
            raise ConfigError(
                f"{form} was given the factors {sorted(factors)}. For a parameter of shape "
                f"{tuple(own.shape)} it is made of {sorted(shapes)}. Pass exactly these."
            )
        name, shape = next(iter(shapes.items()))
        with NO_SUBCLASS():
            whole = torch.Size([*lead_of(factors[name], shape), *own.shape])
            self: Kind = carrier(cls, whole, own.dtype, own.device)
        self.form, self.own, self.factors, self.shared = form, own, factors, shared or {}
        return self

    @property
    def parts(self) -> Parts:
        """Factors and shared tensors in one dict."""
        return {**self.factors, **self.shared}

    @property
    def lead(self) -> int:
        """Number of leading axes: 1 with a tasks axis, 0 for one task."""
        with NO_SUBCLASS():
            return self.ndim - self.own.ndim

    @property
    def numbers(self) -> int:
        """Number of elements in all factors."""
        return sum(factor.numel() for factor in self.factors.values())

    def dense(self) -> Tensor:
        """Build the parameter, ``(*lead, *shape)``."""
        return self.form.dense(self.own, self.parts)

    def squared_norm(self) -> Tensor:
        """Squared L2 norm of the parameter, ``(*lead,)``.

        Computed from the factors if the form can, else built task by task.
        """
        squares = self.form.squared_norm(self.own, self.parts)
        if squares is not NotImplemented:
            return squares
        if not self.lead:
            return self.dense().square().sum()
        return torch.stack([self[task].square().sum() for task in range(len(self))])

    def map(self: Kind, function: Callable[[Tensor], Tensor]) -> Kind:
        """Return a copy with ``function`` applied to every factor."""
        factors = {n: function(f) for n, f in self.factors.items()}
        return made(self, self.form, self.own, factors, self.shared)

    def map_all(self: Kind, function: Callable[[Tensor], Tensor]) -> Kind:
        """Return a copy with ``function`` applied to every tensor: factors, own and shared."""
        factors = {n: function(f) for n, f in self.factors.items()}
        return made(
            self,
            self.form,
            function(self.own),
            factors,
            {n: function(f) for n, f in self.shared.items()},
        )

    def in_use(self) -> "InUse":
        """Return the value as an `InUse`, which `torch.utils._pytree` treats as one built leaf."""
        return InUse(self.form, self.own, self.factors, self.shared)

    def as_subclass(self, cls: Any) -> Any:
        """Build the parameter as a tensor of class ``cls``."""
        return self.dense().as_subclass(cls)

    def set_(self, *args: Any, **kwargs: Any) -> Any:
        """Raise a `ConfigError`: a parameter held as factors has no memory to replace."""
        from weightloom.forms.refusals import refuse_memory

        return refuse_memory(Tensor.set_, self)

    @property
    def _is_param(self) -> bool:
        """True if torch may use this tensor as an `nn.Parameter`: for `InUse` only."""
        return isinstance(self, InUse)

    @_is_param.setter
    def _is_param(self, value: bool) -> None:
        raise ConfigError(
            f"`nn.Parameter` was given {self!r}. It is held as factors, and only these can be "
            "trained. Pass `nn.Parameter(value.dense())`, or register the tensors in "
            "`value.factors` one by one."
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        with NO_SUBCLASS():
            return f"{type(self).__name__}({self.form}, shape={tuple(self.shape)})"

    def __deepcopy__(self: Kind, memo: dict[int, Any]) -> Kind:
        return self.map_all(lambda tensor: tensor.detach().clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), (self.form, self.own, self.factors, self.shared)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch on the factors if possible, else on the built one."""
        kwargs = kwargs or {}
        with NO_SUBCLASS():
            if func in OF_THE_OWN and isinstance(args[0], Factored):
                return func(args[0].own, *args[1:], **kwargs)
            if func in OF_THE_CARRIER:
                return func(*args, **kwargs)
            from weightloom.forms.answers import ANSWERS

            if answer := ANSWERS.get(func):
                result = answer(func, *args, **kwargs)
                if result is not NotImplemented:
                    return result
            if torch.compiler.is_compiling():  # names cannot be read nor warnings issued there
                args, kwargs = tree_map(built, (args, kwargs), is_leaf=_is_tensor)
                return func(*args, **kwargs)
        return _with_built(func, args, kwargs)


def _with_built(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function on built parameters; warn if one is much larger than its factors."""
    from weightloom.forms.refusals import refuse_writing, warn_of_building

    with NO_SUBCLASS():
        refuse_writing(func, args, kwargs)
        heavy: list[Factored] = []

        def build(leaf: Any) -> Any:
            if isinstance(leaf, Factored) and leaf.lead and leaf.numel() > 10 * leaf.numbers:
                heavy.append(leaf)
            return built(leaf)

        args, kwargs = tree_map(build, (args, kwargs), is_leaf=_is_tensor)
    if heavy:
        warn_of_building(func, heavy[0])
    with NO_SUBCLASS():
        return func(*args, **kwargs)


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


class InUse(Factored):
    """A `Factored` parameter of one task, in the form in which a running base holds it.

    In a tree (`torch.utils._pytree`) it is one leaf, the built parameter, where a `Factored` is a
    node of factors. So a base that applies ``torch.vmap`` or ``torch.func.grad`` to its own
    parameter maps over an axis of the parameter, not of its factors.

    Example:
        >>> from weightloom.forms import RowScale
        >>> experts = Factored(RowScale(), torch.ones(3, 2), {"gain": torch.zeros(3)}).in_use()
        >>> torch.vmap(lambda row: row.sum())(experts)
        tensor([2., 2., 2.])
    """


def carrier(kind: type[Tensor], shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Any:
    """Make a tensor of a subclass with a shape, dtype and device but almost no memory.

    It is one NaN, expanded: code that bypasses the subclass and reads the numbers gets NaN.
    """
    if torch.compiler.is_dynamo_compiling():
        return torch.full((), torch.nan, dtype=dtype, device=device).expand(shape).as_subclass(kind)
    if torch._C._len_torch_dispatch_stack():
        # a dispatch mode is active: its tensors are fake or recorded, so none may enter the cache
        with torch._C._DisableTorchDispatch():
            if any(
                isinstance(side, torch.SymInt) for side in shape
            ):  # only meta tensors take these
                nan = torch.empty(shape, dtype=dtype, device="meta")
            else:
                nan = torch.full((), torch.nan, dtype=dtype, device=device).expand(shape)
            return Tensor._make_subclass(kind, nan)
    nan = _nan(shape, dtype, device)
    return Tensor._make_subclass(kind, nan)


@lru_cache(maxsize=1000)
def _nan(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((), torch.nan, dtype=dtype, device=device).expand(shape)


def built(leaf: Any) -> Any:
    """Build a `Factored` value; return any other object unchanged."""
    return leaf.dense() if isinstance(leaf, Factored) else leaf


_ATTRIBUTES = ["shape", "ndim", "dtype", "itemsize", "nbytes"]
_METHODS = [
    "size",
    "dim",
    "numel",
    "nelement",
    "__len__",
    "is_floating_point",
    "is_complex",
    "element_size",
]
_FRESH = ["new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"]
_KINDS = [
    "layout",
    "is_sparse",
    "is_quantized",
    "is_mkldnn",
    "is_nested",
    "device",
    "is_cpu",
    "is_cuda",
    "is_meta",
]

OF_THE_CARRIER: set[Any] = {
    *(getattr(Tensor, name).__get__ for name in _ATTRIBUTES),
    *(getattr(Tensor, name).__get__ for name in _KINDS),
    *(getattr(Tensor, name) for name in _METHODS),
}
"""Functions that read only shape, device and dtype: run on the tensor without memory."""

OF_THE_OWN: set[Any] = {
    *(getattr(Tensor, name).__get__ for name in _KINDS),
    *(getattr(Tensor, name) for name in (*_FRESH, "get_device", "is_pinned", "is_shared")),
}
"""Functions that give the same result on the base's own value: run on that."""


def made(like: Kind, form: Form, own: Tensor, factors: Parts, shared: Parts) -> Any:
    """Make a value of the same class as ``like``; ``type(like)(…)`` cannot be compiled."""
    if isinstance(like, InUse):
        return InUse(form, own, factors, shared)
    return Factored(form, own, factors, shared)


class _Same:
    """Static part of a `Factored` in a tree: form, own value and shared tensors.

    Two are equal if the same factors build the same parameter.
    """

    def __init__(self, value: Factored) -> None:
        self.form, self.own, self.names, self.shared = (
            value.form,
            value.own,
            tuple(value.factors),
            value.shared,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same) or (self.names, self.form) != (other.names, other.form):
            return False
        shared = self.shared.keys() == other.shared.keys()
        return (
            self.own is other.own
            and shared
            and all(self.shared[n] is other.shared[n] for n in self.shared)
        )

    def __hash__(self) -> int:
        return hash((self.names, self.form, id(self.own), *map(id, self.shared.values())))

    def __repr__(self) -> str:
        kept = [
            f"own value at {id(self.own):#x}",
            *(f"{name} at {id(its):#x}" for name, its in self.shared.items()),
        ]
        return f"{self.form} of {', '.join(self.names)}, {', '.join(kept)}"


def _flatten(value: Factored) -> tuple[list[Any], _Same]:
    return list(value.factors.values()), _Same(value)


def _unflatten(leaves: Any, same: Any) -> Any:
    factors = dict(zip(same.names, leaves, strict=True))
    if all(isinstance(leaf, Tensor) for leaf in leaves):
        return Factored(same.form, same.own, factors, same.shared)
    return factors  # leaves of another kind, such as the axes that `vmap` takes


def _flatten_in_use(value: InUse) -> tuple[list[Any], None]:
    level = (
        None if torch.compiler.is_dynamo_compiling() else torch._C._functorch.maybe_current_level()
    )
    tensors = (value.own, *value.parts.values())
    if level is None or level <= max(
        torch._C._functorch.maybe_get_level(tensor) for tensor in tensors
    ):
        return [value.dense()], None
    with temporarily_pop_interpreter_stack():  # a transform begins here, and wraps this leaf itself
        return [value.dense()], None


def _unflatten_in_use(leaves: Any, context: None) -> Any:
    (leaf,) = leaves
    return leaf


register_pytree_node(Factored, _flatten, _unflatten)
register_pytree_node(InUse, _flatten_in_use, _unflatten_in_use)
add_safe_globals([Factored, InUse])  # so that `torch.load` accepts these classes
