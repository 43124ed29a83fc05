"""A parameter that is held as factors, and stands wherever a tensor may."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import register_pytree_node, tree_map

from weightloom.errors import ConfigError, InPlaceError
from weightloom.forms.calls import WINDOW, read_conv
from weightloom.forms.form import Form, Parts, lead_of

NO_SUBCLASS = torch._C.DisableTorchFunctionSubclass


class Factored(Tensor):
    """A generated parameter held as a form's factors: a tensor of the parameter's shape that was never built.

    What its form answers (linear layers, convolutions, embeddings) is computed from the factors. Everything else is
    given the parameter built, so any code that takes a tensor takes this one. Gradients reach the factors.

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
        cls: type["Factored"], form: Form, own: Tensor, factors: Parts, shared: Parts | None = None
    ) -> "Factored":
        """Wrap the factors in a carrier of the parameter's shape, device and dtype, without its memory."""
        shapes = form.factor_shapes(tuple(own.shape))
        if factors.keys() != shapes.keys():
            raise ConfigError(
                f"{form} was given the factors {sorted(factors)}. For a parameter of shape {tuple(own.shape)} it is "
                f"made of {sorted(shapes)}. Pass exactly these."
            )
        name, shape = next(iter(shapes.items()))
        with NO_SUBCLASS():
            whole = torch.Size([*lead_of(factors[name], shape), *own.shape])
            self: Factored = carrier(cls, whole, own.dtype, own.device)
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

    def dense(self) -> Tensor:
        """Build the parameter, ``(*lead, *shape)``."""
        return self.form.dense(self.own, self.parts)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Factored":
        """Return the same with ``function`` applied to every factor."""
        return Factored(self.form, self.own, {n: function(f) for n, f in self.factors.items()}, self.shared)

    def map_all(self, function: Callable[[Tensor], Tensor]) -> "Factored":
        """Return the same with ``function`` applied to every tensor: factors, own and shared."""
        changed = self.map(function)
        return Factored(
            self.form, function(self.own), changed.factors, {n: function(f) for n, f in self.shared.items()}
        )

    def in_use(self) -> "InUse":
        return InUse(self.form, self.own, self.factors, self.shared)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        with NO_SUBCLASS():
            return f"Factored({self.form}, shape={tuple(self.shape)})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Factored":
        return self.map_all(lambda tensor: tensor.detach().clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Factored, (self.form, self.own, self.factors, self.shared)

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
            if func in OF_THE_CARRIER:
                return func(*args, **kwargs)
            if answer := ANSWERS.get(func):
                result = answer(func, *args, **kwargs)
                if result is not NotImplemented:
                    return result
            if not torch.compiler.is_compiling():  # which cannot read a name
                _refuse_in_place(func, args)
            args, kwargs = tree_map(built, (args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Tensor))
            return func(*args, **kwargs)


def _refuse_in_place(func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    name = getattr(func, "__name__", "")
    if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], Factored):
        raise InPlaceError(
            f"`{name}` would change a {args[0]!r} in place. It is computed from its factors and has no memory "
            f"of its own. Use the function that returns a new tensor, `{name.removesuffix('_')}`."
        )


def carrier(kind: type[Tensor], shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Any:
    """Make a tensor of a subclass that has a shape, dtype and device but no memory: one NaN, expanded.

    What bypasses the subclass and reads its numbers gets NaN, which shows.
    """
    if torch.compiler.is_compiling():
        return torch.full((), torch.nan, dtype=dtype, device=device).expand(shape).as_subclass(kind)
    if torch._C._len_torch_dispatch_stack():  # tensors made here may be fake: keep none of them
        nan = torch.full((), torch.nan, dtype=dtype, device=device).expand(shape)
    else:
        nan = _nan(shape, dtype, device)
    return Tensor._make_subclass(kind, nan)


@lru_cache(maxsize=1000)
def _nan(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((), torch.nan, dtype=dtype, device=device).expand(shape)


def built(leaf: Any) -> Any:
    """Return a tensor that is held as factors built, and anything else as it is."""
    return leaf.dense() if isinstance(leaf, Factored) else leaf


_ATTRIBUTES = [
    "shape",
    "ndim",
    "dtype",
    "device",
    "layout",
    "is_sparse",
    "is_cuda",
    "is_meta",
    "is_quantized",
    "is_mkldnn",
]
_METHODS = ["size", "dim", "numel", "nelement", "__len__", "is_floating_point", "is_complex"]

OF_THE_CARRIER: set[Any] = {
    *(getattr(Tensor, name).__get__ for name in _ATTRIBUTES),
    *(getattr(Tensor, name) for name in _METHODS),
}
"""What is asked of the shape, device and dtype alone."""


def _linear(func: Any, input: Tensor, weight: Any, bias: Any = None) -> Any:
    if not isinstance(weight, Factored) or isinstance(input, Factored) or weight.lead:
        return NotImplemented
    rows = input if input.ndim == 2 else input.reshape(-1, input.shape[-1])
    y = weight.form.linear(rows, weight.own, weight.parts, built(bias))
    if y is NotImplemented:
        return y
    return y if input.ndim == 2 else y.view(*input.shape[:-1], -1)


def _convolve(func: Any, *args: Any, **kwargs: Any) -> Any:
    input, weight, bias, conv = read_conv(func, *args, **kwargs)
    window = WINDOW[func]
    alone = input.ndim == window + 1
    if not isinstance(weight, Factored) or isinstance(input, Factored) or weight.lead:
        return NotImplemented
    y = weight.form.conv(input[None] if alone else input, weight.own, weight.parts, conv)
    if y is NotImplemented:
        return y
    if bias is not None:
        y = y + built(bias)[(..., *[None] * window)]
    return y[0] if alone else y


def _embedding(
    func: Any,
    input: Tensor,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    plain = max_norm is None and not scale_grad_by_freq and not sparse
    if not plain or not isinstance(weight, Factored) or weight.lead:
        return NotImplemented
    y = weight.form.embedding(input, weight.own, weight.parts)
    if y is NotImplemented or padding_idx is None:
        return y
    return torch.where((input == padding_idx % len(weight))[..., None], y.detach(), y)


def _index(func: Any, tensor: Any, index: Any) -> Any:
    if not isinstance(tensor, Factored) or tensor.lead != 1 or not isinstance(index, int | slice):
        return NotImplemented
    return tensor.map(lambda factor: factor[index])


def _unbind(func: Any, tensor: Any, dim: int = 0) -> Any:
    if tensor.lead != 1 or dim != 0:
        return NotImplemented
    rows = {name: factor.unbind() for name, factor in tensor.factors.items()}
    tasks = len(next(iter(rows.values())))
    return tuple(
        Factored(tensor.form, tensor.own, {name: row[task] for name, row in rows.items()}, tensor.shared)
        for task in range(tasks)
    )


def _split(func: Any, tensor: Any, size: Any, dim: int = 0) -> Any:
    if tensor.lead != 1 or dim != 0:
        return NotImplemented
    pieces = {name: factor.split(size) for name, factor in tensor.factors.items()}
    return tuple(
        Factored(tensor.form, tensor.own, dict(zip(pieces, its, strict=True)), tensor.shared)
        for its in zip(*pieces.values(), strict=True)
    )


def _map(func: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
    return tensor.map(lambda factor: func(factor, *args, **kwargs))


def _map_all(func: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
    return tensor.map_all(lambda factor: func(factor, *args, **kwargs))


def _requires_grad(func: Any, tensor: Any) -> bool:
    return any(f.requires_grad for f in (tensor.own, *tensor.parts.values()))


ANSWERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    **dict.fromkeys(WINDOW, _convolve),
    F.embedding: _embedding,
    Tensor.__getitem__: _index,
    Tensor.unbind: _unbind,
    torch.unbind: _unbind,
    Tensor.split: _split,
    Tensor.requires_grad_: _map,
    Tensor.requires_grad.__get__: _requires_grad,  # type: ignore[attr-defined]
    **dict.fromkeys([Tensor.detach, torch.detach, Tensor.to, Tensor.cpu, Tensor.cuda], _map_all),
    **dict.fromkeys([Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16], _map_all),
}
"""What is done from the factors, by the function that was called."""


class _Same:
    """Tensors of a form that are not leaves of a tree: compared by identity, which is what a tree's structure needs."""

    def __init__(self, form: Form, own: Tensor, names: tuple[str, ...], shared: Parts) -> None:
        self.form, self.own, self.names, self.shared = form, own, names, shared

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.names == other.names and self.own is other.own

    def __hash__(self) -> int:
        return hash((self.names, id(self.own)))


def _flatten(value: Factored) -> tuple[list[Any], _Same]:
    return list(value.factors.values()), _Same(value.form, value.own, tuple(value.factors), value.shared)


def _unflatten(leaves: Any, same: Any) -> Any:
    factors = dict(zip(same.names, leaves, strict=True))
    if all(isinstance(leaf, Tensor) for leaf in leaves):
        return Factored(same.form, same.own, factors, same.shared)
    return factors  # a tree of something else than tensors


register_pytree_node(Factored, _flatten, _unflatten)


class InUse(Factored):
    """One task's parameter while the base runs: code that opens it gets it built."""


register_pytree_node(InUse, lambda v: ([v.dense()], None), lambda leaves, _: next(iter(leaves)))
