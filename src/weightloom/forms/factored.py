"""A parameter that is held as factors, and stands wherever a tensor may."""

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
    """A generated parameter held as a form's factors.

    A tensor of the parameter's shape that was never built.

    What its form answers (linear layers, convolutions, embeddings) is computed from the factors,
    and tasks are taken, put together and copied as factors. Everything else is given the parameter
    built, so any code that takes a tensor takes this one; a `BuiltWarning` says so where that is
    more than ten times as large, unless you call `dense`. Gradients reach the factors. What would
    need memory of its own, such as a change in place, is refused.

    Args:
        form: What the factors mean.
        own: The base's own value, shared by all tasks.
        factors: Each ``(*lead, *factor_shape)``: with a tasks axis in front, or none for one task.
        shared: What the form keeps for all tasks besides.

    Example:
        >>> from weightloom.forms import RowScale
        >>> weight = Factored(RowScale(), torch.ones(2, 3), {"gain": torch.zeros(5, 2)})
        >>> weight.shape, weight.sum().item(), weight[3]
        (torch.Size([5, 2, 3]), 30.0, Factored(RowScale(axis=0), shape=(2, 3)))
    """

    form: Form
    own: Tensor
    factors: Parts
    shared: Parts

    @staticmethod
    def __new__(
        cls: type[Kind], form: Form, own: Tensor, factors: Parts, shared: Parts | None = None
    ) -> Kind:
        """Wrap the factors in a carrier of the parameter's shape, device and dtype, without its memory."""
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
        """Factors and what is shared, together."""
        return {**self.factors, **self.shared}

    @property
    def lead(self) -> int:
        """How many leading axes there are: 1 with tasks, 0 for one task."""
        with NO_SUBCLASS():
            return self.ndim - self.own.ndim

    @property
    def numbers(self) -> int:
        """How many numbers the factors hold."""
        return sum(factor.numel() for factor in self.factors.values())

    def dense(self) -> Tensor:
        """Build the parameter, ``(*lead, *shape)``."""
        return self.form.dense(self.own, self.parts)

    def squared_norm(self) -> Tensor:
        """Squared L2 norm of the parameter, ``(*lead,)``.

        From the factors where the form can, else task by task.
        """
        squares = self.form.squared_norm(self.own, self.parts)
        if squares is not NotImplemented:
            return squares
        if not self.lead:
            return self.dense().square().sum()
        return torch.stack([self[task].square().sum() for task in range(len(self))])

    def map(self: Kind, function: Callable[[Tensor], Tensor]) -> Kind:
        """Return the same with ``function`` applied to every factor."""
        factors = {n: function(f) for n, f in self.factors.items()}
        return made(self, self.form, self.own, factors, self.shared)

    def map_all(self: Kind, function: Callable[[Tensor], Tensor]) -> Kind:
        """Return the same with ``function`` applied to every tensor: factors, own and shared."""
        factors = {n: function(f) for n, f in self.factors.items()}
        return made(
            self,
            self.form,
            function(self.own),
            factors,
            {n: function(f) for n, f in self.shared.items()},
        )

    def in_use(self) -> "InUse":
        """Return the same as a base holds it while it runs.

        A tree has it as one leaf, the parameter itself.
        """
        return InUse(self.form, self.own, self.factors, self.shared)

    def as_subclass(self, cls: Any) -> Any:
        """Build the parameter as a tensor of another class."""
        return self.dense().as_subclass(cls)

    def set_(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse other memory."""
        from weightloom.forms.refusals import refuse_memory

        return refuse_memory(Tensor.set_, self)

    @property
    def _is_param(self) -> bool:
        """What torch asks before it takes a tensor for an `nn.Parameter`."""
        return isinstance(self, InUse)

    @_is_param.setter
    def _is_param(self, value: bool) -> None:
        raise ConfigError(
            f"`nn.Parameter` was given {self!r}. It is held as factors, and what can be trained "
            "are these. Pass `nn.Parameter(value.dense())`, or register the tensors in "
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
        """Answer from the factors, or build the parameter for everything else."""
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
            if torch.compiler.is_compiling():  # which cannot read a name, nor warn
                args, kwargs = tree_map(
                    built, (args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Tensor)
                )
                return func(*args, **kwargs)
            from weightloom.forms.refusals import refuse_writing, warn_of_building

            refuse_writing(func, args, kwargs)
            heavy: list[Factored] = []

            def build(leaf: Any) -> Any:
                if isinstance(leaf, Factored) and leaf.lead and leaf.numel() > 10 * leaf.numbers:
                    heavy.append(leaf)
                return built(leaf)

            args, kwargs = tree_map(
                build, (args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Tensor)
            )
        if heavy:
            warn_of_building(func, heavy[0])
        with NO_SUBCLASS():
            return func(*args, **kwargs)


class InUse(Factored):
    """A parameter held as factors, of one task, as the base holds it while it runs.

    It is a `Factored` in all but trees, where it is one leaf: the parameter itself, built. So a
    base that maps over an axis of its parameter, by ``torch.vmap`` or ``torch.func.grad``, maps
    over that axis, and not over an axis of factors.

    Example:
        >>> from weightloom.forms import RowScale
        >>> experts = Factored(RowScale(), torch.ones(3, 2), {"gain": torch.zeros(3)}).in_use()
        >>> torch.vmap(lambda row: row.sum())(experts)
        tensor([2., 2., 2.])
    """


def carrier(kind: type[Tensor], shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Any:
    """Make a tensor of a subclass that has a shape, dtype and device but no memory.

    One NaN, expanded.

    What bypasses the subclass and reads its numbers gets NaN, which shows.
    """
    if torch.compiler.is_dynamo_compiling():
        return torch.full((), torch.nan, dtype=dtype, device=device).expand(shape).as_subclass(kind)
    if (
        torch._C._len_torch_dispatch_stack()
    ):  # tensors made here are fake, or written down: keep none of them
        with torch._C._DisableTorchDispatch():
            if any(
                isinstance(side, torch.SymInt) for side in shape
            ):  # a tensor without memory may have such sides
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
    """Return a tensor that is held as factors built, and anything else as it is."""
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
"""What is asked of the shape, device and dtype alone."""

OF_THE_OWN: set[Any] = {
    *(getattr(Tensor, name).__get__ for name in _KINDS),
    *(getattr(Tensor, name) for name in (*_FRESH, "get_device", "is_pinned", "is_shared")),
}
"""What the base's own value has in common with every task's, or makes as well."""


def made(like: Kind, form: Form, own: Tensor, factors: Parts, shared: Parts) -> Any:
    """A value of the same class; ``type(like)`` cannot be compiled."""
    if isinstance(like, InUse):
        return InUse(form, own, factors, shared)
    return Factored(form, own, factors, shared)


class _Same:
    """What of a parameter is no leaf of a tree. Two are equal if their factors mean the same.

    Form, own and shared.
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
    return factors  # a tree of something else than tensors


def _flatten_in_use(value: InUse) -> tuple[list[Any], None]:
    level = (
        None if torch.compiler.is_dynamo_compiling() else torch._C._functorch.maybe_current_level()
    )
    tensors = (value.own, *value.parts.values())
    if level is None or level <= max(
        torch._C._functorch.maybe_get_level(tensor) for tensor in tensors
    ):
        return [value.dense()], None
    with temporarily_pop_interpreter_stack():  # a transform begins here, and wraps what it is given
        return [value.dense()], None


def _unflatten_in_use(leaves: Any, nothing: None) -> Any:
    (leaf,) = leaves
    return leaf


register_pytree_node(Factored, _flatten, _unflatten)
register_pytree_node(InUse, _flatten_in_use, _unflatten_in_use)
add_safe_globals([Factored, InUse])  # for `torch.load`, which makes nothing else than it knows
