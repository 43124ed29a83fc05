"""A parameter that is held as factors, and stands wherever a tensor may."""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from inspect import Signature, signature
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.serialization import add_safe_globals
from torch.utils._pytree import register_pytree_node, tree_leaves, tree_map

from weightloom.errors import BuiltWarning, ConfigError
from weightloom.forms.calls import WINDOW, read_conv
from weightloom.forms.form import Form, Parts, lead_of

NO_SUBCLASS = torch._C.DisableTorchFunctionSubclass

Kind = TypeVar("Kind", bound="Factored")


class Factored(Tensor):
    """A generated parameter held as a form's factors: a tensor of the parameter's shape that was never built.

    What its form answers (linear layers, convolutions, embeddings) is computed from the factors, and tasks are taken,
    put together and copied as factors. Everything else is given the parameter built, so any code that takes a tensor
    takes this one; a `BuiltWarning` says so where that is more than ten times as large, unless you call `dense`.
    Gradients reach the factors. What would need memory of its own, such as a change in place, is refused.

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
    def __new__(cls: type[Kind], form: Form, own: Tensor, factors: Parts, shared: Parts | None = None) -> Kind:
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

    def dense(self) -> Tensor:
        """Build the parameter, ``(*lead, *shape)``."""
        return self.form.dense(self.own, self.parts)

    def squared_norm(self) -> Tensor:
        """Squared L2 norm of the parameter, ``(*lead,)``: from the factors where the form can, else task by task."""
        squares = self.form.squared_norm(self.own, self.parts)
        if squares is not NotImplemented:
            return squares
        if not self.lead:
            return self.dense().square().sum()
        return torch.stack([self[task].square().sum() for task in range(len(self))])

    def map(self: Kind, function: Callable[[Tensor], Tensor]) -> Kind:
        """Return the same with ``function`` applied to every factor."""
        factors = {n: function(f) for n, f in self.factors.items()}
        return _made(self, self.form, self.own, factors, self.shared)

    def map_all(self: Kind, function: Callable[[Tensor], Tensor]) -> Kind:
        """Return the same with ``function`` applied to every tensor: factors, own and shared."""
        factors = {n: function(f) for n, f in self.factors.items()}
        return _made(self, self.form, function(self.own), factors, {n: function(f) for n, f in self.shared.items()})

    def in_use(self) -> "InUse":
        """Return the same as a base holds it while it runs: a tree has it as one leaf, the parameter itself."""
        return InUse(self.form, self.own, self.factors, self.shared)

    def as_subclass(self, cls: Any) -> Any:
        """Build the parameter as a tensor of another class."""
        return self.dense().as_subclass(cls)

    def set_(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse other memory."""
        return _refuse_memory(Tensor.set_, self)

    @property
    def _is_param(self) -> bool:
        """What torch asks before it takes a tensor for an `nn.Parameter`."""
        return False

    @_is_param.setter
    def _is_param(self, value: bool) -> None:
        raise ConfigError(
            f"`nn.Parameter` was given {self!r}. It is held as factors, and what can be trained are these. Pass "
            "`nn.Parameter(value.dense())`, or register the tensors in `value.factors` one by one."
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
            if answer := ANSWERS.get(func):
                result = answer(func, *args, **kwargs)
                if result is not NotImplemented:
                    return result
            if torch.compiler.is_compiling():  # which cannot read a name, nor warn
                args, kwargs = tree_map(built, (args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Tensor))
                return func(*args, **kwargs)
            refuse_writing(func, args, kwargs)
            heavy: list[Factored] = []

            def build(leaf: Any) -> Any:
                if isinstance(leaf, Factored) and leaf.lead and leaf.numel() > 10 * _numbers(leaf):
                    heavy.append(leaf)
                return built(leaf)

            args, kwargs = tree_map(build, (args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Tensor))
        if heavy:
            _warn(func, heavy[0])
        with NO_SUBCLASS():
            return func(*args, **kwargs)


class InUse(Factored):
    """A parameter held as factors, of one task, as the base holds it while it runs.

    It is a `Factored` in all but trees, where it is one leaf: the parameter itself, built. So a base that maps over
    an axis of its parameter, by ``torch.vmap`` or ``torch.func.grad``, maps over that axis, and not over an axis of
    factors.

    Example:
        >>> from weightloom.forms import RowScale
        >>> experts = Factored(RowScale(), torch.ones(3, 2), {"gain": torch.zeros(3)}).in_use()
        >>> torch.vmap(lambda row: row.sum())(experts)
        tensor([2., 2., 2.])
    """


def _numbers(value: Factored) -> int:
    return sum(factor.numel() for factor in value.factors.values())


def _warn(func: Callable[..., Any], value: Factored) -> None:
    with NO_SUBCLASS():
        megabytes = [numbers * value.dtype.itemsize / 1e6 for numbers in (value.numel(), _numbers(value))]
    warnings.warn(
        f"`{_name(func)}` built {value!r}: {megabytes[0]:,.3g} MB, where its factors are {megabytes[1]:,.3g} MB. It is "
        "none of the operations that are done with the factors of all tasks. Take the tasks that you need first, "
        "`params.take(index)`, or type `value.dense()` where the whole is meant.",
        BuiltWarning,
        stacklevel=3,
    )


IN_PLACE = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")}
"""Operators that change a tensor; ``w += 1`` is ``w.__iadd__(1)``."""


def refuse_writing(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise a `ConfigError` if a call would write into a value that is held as factors, or into what is built of it."""
    name = _name(func)
    first = next(iter((*args, *kwargs.values())), None)
    if any(isinstance(leaf, Factored) for leaf in tree_leaves(kwargs.get("out"), is_leaf=torch.is_tensor)):
        raise ConfigError(
            f"`{name}` was given a value that is held as factors as `out`. It has no memory of its own to write to. "
            f"Take what `{name}` returns, without `out`."
        )
    if not isinstance(first, Factored):
        return
    if name in ("__set__", "__delete__"):
        attribute = getattr(getattr(func, "__self__", None), "__name__", "an attribute")
        raise ConfigError(
            f"`.{attribute} = …` would change {first!r} in place. It is computed from its factors, and has no memory "
            f"nor gradient of its own. Change those, `value.factors[name].{attribute} = …`, or build it by "
            "`value.dense()`."
        )
    if name == "__setitem__":
        raise ConfigError(
            f"`value[…] = …` would change {first!r} in place. It is computed from its factors and has no memory of "
            "its own. Build it first: `value = value.dense()`."
        )
    written = name.endswith("_") and not name.endswith("__")
    if name in IN_PLACE or written or kwargs.get("inplace") is True:
        plain = f"`{name.removesuffix('_')}`" if written else "`value = value + …`"
        plain = "without `inplace`" if kwargs.get("inplace") is True else plain
        raise ConfigError(
            f"`{name}` would change a {first!r} in place. It is computed from its factors and has no memory "
            f"of its own. Use the function that returns a new tensor, {plain}."
        )


def _name(func: Callable[..., Any]) -> str:
    return str(getattr(func, "__name__", func))


def carrier(kind: type[Tensor], shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Any:
    """Make a tensor of a subclass that has a shape, dtype and device but no memory: one NaN, expanded.

    What bypasses the subclass and reads its numbers gets NaN, which shows.
    """
    if torch.compiler.is_dynamo_compiling():
        return torch.full((), torch.nan, dtype=dtype, device=device).expand(shape).as_subclass(kind)
    if torch._C._len_torch_dispatch_stack():  # tensors made here are fake, or written down: keep none of them
        with torch._C._DisableTorchDispatch():
            if any(isinstance(side, torch.SymInt) for side in shape):  # a tensor without memory may have such sides
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
_METHODS = ["size", "dim", "numel", "nelement", "__len__", "is_floating_point", "is_complex", "element_size"]
_FRESH = ["new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"]
_LIKE = ["empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"]
_KINDS = ["layout", "is_sparse", "is_quantized", "is_mkldnn", "is_nested", "device", "is_cpu", "is_cuda", "is_meta"]

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
    if not isinstance(tensor, Factored) or tensor.lead != 1:
        return NotImplemented
    if isinstance(index, tuple):
        index, *rest = index or (...,)
        whole = (index is not ... or not rest) and all(
            its is ... or (isinstance(its, slice) and its == slice(None)) for its in rest
        )
        if not whole or len(rest) > tensor.own.ndim + any(its is ... for its in rest):
            return NotImplemented
    index = slice(None) if index is ... else _tasks_of(index)
    return tensor.map(lambda factor: factor[index]) if index is not None else NotImplemented


def _tasks_of(index: Any) -> Any:
    """An index that takes tasks and leaves the parameter's own axes alone; None if it is another."""
    if isinstance(index, list | range):
        kind = None if len(index) else torch.int64
        index = torch.as_tensor(index, dtype=kind) if all(isinstance(its, int) for its in index) else None
    if isinstance(index, Tensor) and not isinstance(index, Factored):
        takes = (index.dtype == torch.bool and index.ndim == 1) or (index.dtype in _INTEGERS and index.ndim <= 1)
        return index if takes else None
    takes = isinstance(index, slice) or (hasattr(index, "__index__") and not isinstance(index, bool | Tensor))
    return index if takes else None


_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8}


def _iterate(func: Any, tensor: Any) -> Any:
    if torch.compiler.is_compiling():
        return iter(tensor.unbind())
    rows = _of_rows(torch.unbind, tensor)
    return rows if rows is NotImplemented else iter(rows)


def _of_rows(func: Any, *args: Any, **kwargs: Any) -> Any:
    """A function along the tasks axis, one result or several: the same of every factor."""
    bound = ALONG[func].bind(*args, **kwargs)
    bound.apply_defaults()
    tensor, dim, rest = bound.args[0], bound.arguments["dim"], bound.args[1:]
    others = any(isinstance(leaf, Factored) for leaf in rest)
    if not isinstance(tensor, Factored) or tensor.lead != 1 or dim not in (0, -tensor.ndim) or others:
        return NotImplemented
    at = list(bound.arguments).index("dim") - 1
    rest = (*rest[:at], 0, *rest[at + 1 :])
    results = {name: func(factor, *rest) for name, factor in tensor.factors.items()}
    if isinstance(next(iter(results.values())), Tensor):
        return _like(tensor, results)
    return tuple(_like(tensor, dict(zip(results, its, strict=True))) for its in zip(*results.values(), strict=True))


def _like(value: Kind, factors: Parts) -> Kind:
    """The same form, own value and shared tensors, with other factors."""
    return _made(value, value.form, value.own, factors, value.shared)


def _made(like: Kind, form: Form, own: Tensor, factors: Parts, shared: Parts) -> Any:
    """A value of the same class; ``type(like)`` cannot be compiled."""
    if isinstance(like, InUse):
        return InUse(form, own, factors, shared)
    return Factored(form, own, factors, shared)


def _cat(func: Any, tensors: Any, dim: Any = 0, **kwargs: Any) -> Any:
    return NotImplemented if kwargs else _joined(torch.cat, tensors, dim, lead=1)


def _stack(func: Any, tensors: Any, dim: Any = 0, **kwargs: Any) -> Any:
    return NotImplemented if kwargs else _joined(torch.stack, tensors, dim, lead=0)


def _joined(func: Callable[..., Tensor], tensors: Sequence[Any], dim: int, lead: int) -> Any:
    first = tensors[0]
    if not all(isinstance(value, Factored) and value.lead == lead for value in tensors):
        return NotImplemented
    axes = first.ndim + (lead == 0)
    if dim not in (0, -axes) or not all(same_held(first, value) for value in tensors[1:]):
        return NotImplemented
    return _like(first, {name: func([value.factors[name] for value in tensors]) for name in first.factors})


def same_held(a: Factored, b: Factored) -> bool:
    """Whether two values differ in their factors alone: one form, own value and shared tensors."""
    if a.form != b.form or a.shared.keys() != b.shared.keys():
        return False
    pairs = [(a.own, b.own), *((a.shared[name], b.shared[name]) for name in a.shared)]
    return all(same_tensor(one, other) for one, other in pairs)


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether one may stand for the other: it is the other, or has equal numbers and neither gets a gradient."""
    if a is b:
        return True
    if a.requires_grad or b.requires_grad or (a.device, a.dtype, a.shape) != (b.device, b.dtype, b.shape):
        return False
    if torch.compiler.is_compiling() or a.is_meta or torch._C._functorch.peek_interpreter_stack() is not None:
        return False  # where numbers cannot be looked at
    return torch.equal(a, b)


def _expand(func: Any, tensor: Any, *sizes: Any, **kwargs: Any) -> Any:
    sizes = sizes or (kwargs["size"],)
    sides = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes
    if tensor.lead != 1 or len(sides) != tensor.ndim:
        return NotImplemented
    if any(side not in (-1, its) for side, its in zip(sides[1:], tensor.own.shape, strict=True)):
        return NotImplemented
    return tensor.map(lambda factor: factor.expand(sides[0], *factor.shape[1:]))


def _expand_as(func: Any, tensor: Any, other: Tensor) -> Any:
    if isinstance(tensor, Factored):
        return _expand(func, tensor, *other.shape)
    return tensor.expand(other.shape)


def _fresh_like(func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    return func(input.own.expand(input.shape), *args, **kwargs)


def _contiguous(func: Any, tensor: Any, memory_format: Any = torch.contiguous_format) -> Any:
    if memory_format != torch.contiguous_format:
        return NotImplemented
    return tensor.map(lambda factor: factor.contiguous())


def _clone(func: Any, input: Any, *, memory_format: Any = torch.preserve_format) -> Any:
    return input.map_all(lambda factor: factor.clone())


def _map(func: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
    return tensor.map(lambda factor: func(factor, *args, **kwargs))


def _map_all(func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    args = tuple(its.own if isinstance(its, Factored) else its for its in args)  # as in `x.to(value)`
    if not isinstance(input, Factored):
        return func(input, *args, **kwargs)
    own = func(input.own, *args, **kwargs)
    if not isinstance(own, Tensor) or own.dtype.is_floating_point != input.own.dtype.is_floating_point:
        return NotImplemented  # factors that are rounded to integers make another parameter
    return input.map_all(lambda factor: func(factor, *args, **kwargs) if factor is not input.own else own)


def _detach(func: Any, input: Any) -> Any:
    return input.map_all(lambda factor: factor.detach())


def _requires_grad(func: Any, tensor: Any) -> bool:
    return any(f.requires_grad for f in (tensor.own, *tensor.parts.values()))


def _is_leaf(func: Any, tensor: Any) -> bool:
    return not _requires_grad(func, tensor)


def _grad_fn(func: Any, tensor: Any) -> Any:
    return NotImplemented if _requires_grad(func, tensor) else None


def _laid_out(func: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
    """Where the numbers would lie, if it were built."""
    return func(torch.empty(tensor.shape, device="meta"), *args, **kwargs)


def _format(func: Any, tensor: Any, spec: str) -> Any:
    return format(repr(tensor), spec) if tensor.ndim else NotImplemented


def _set_requires_grad(func: Any, tensor: Any, value: bool) -> None:
    tensor.map(lambda factor: factor.requires_grad_(value))


def _differentiate(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse a gradient with respect to what is held: nothing is computed from it, but from its factors."""
    given = signature(func).bind(*args, **kwargs).arguments.get("inputs")
    held = [leaf for leaf in tree_leaves(given, is_leaf=torch.is_tensor) if isinstance(leaf, Factored)]
    if not held:
        return NotImplemented
    raise ConfigError(
        f"`{_name(func)}` was asked for the gradient of {held[0]!r}. It is held as factors, and what the base computes "
        "depends on these. Ask for theirs, `leaves, tree = torch.utils._pytree.tree_flatten(params)`, and put the step "
        "back together by `tree_unflatten(leaves, tree)`; `weightloom.inner.descend` does both."
    )


def _refuse_gradient(func: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
    name = getattr(getattr(func, "__self__", None), "__name__", _name(func))
    raise ConfigError(
        f"`.{name}` was asked of {tensor!r}. It is held as factors, and gradients reach these: it has none of its own. "
        f"Ask the factors, `value.factors[name].{name}`, or take all by `torch.utils._pytree.tree_leaves(params)`."
    )


def _refuse_memory(func: Any, tensor: Any, *args: Any) -> Any:
    raise ConfigError(
        f"`{_name(func)}` was asked of {tensor!r}. It is computed from its factors and has no memory of its own. Build "
        "it first, `dense = value.dense()`, and keep what you built as long as you use its memory."
    )


ALONG: dict[Any, Signature] = {
    torch.unbind: signature(lambda input, dim=0: ...),
    Tensor.unbind: signature(lambda input, dim=0: ...),
    torch.chunk: signature(lambda input, chunks, dim=0: ...),
    Tensor.chunk: signature(lambda input, chunks, dim=0: ...),
    torch.split: signature(lambda tensor, split_size_or_sections, dim=0: ...),
    Tensor.split: signature(lambda tensor, split_size, dim=0: ...),
    torch.narrow: signature(lambda input, dim, start, length: ...),
    Tensor.narrow: signature(lambda input, dim, start, length: ...),
    torch.select: signature(lambda input, dim, index: ...),
    Tensor.select: signature(lambda input, dim, index: ...),
    torch.tensor_split: signature(lambda input, indices_or_sections, dim=0: ...),
    Tensor.tensor_split: signature(lambda input, indices_or_sections, dim=0: ...),
    torch.repeat_interleave: signature(lambda input, repeats, dim=None, *, output_size=None: ...),
    Tensor.repeat_interleave: signature(lambda input, repeats, dim=None, *, output_size=None: ...),
    torch.index_select: signature(lambda input, dim, index: ...),
    Tensor.index_select: signature(lambda input, dim, index: ...),
}
"""Arguments of the functions that take tasks from an axis."""

ANSWERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    **dict.fromkeys(WINDOW, _convolve),
    F.embedding: _embedding,
    Tensor.__getitem__: _index,
    Tensor.__iter__: _iterate,
    **dict.fromkeys(ALONG, _of_rows),
    **dict.fromkeys([torch.cat, torch.concat, torch.concatenate], _cat),
    torch.stack: _stack,
    Tensor.expand: _expand,
    Tensor.expand_as: _expand_as,
    **dict.fromkeys((getattr(torch, name) for name in _LIKE), _fresh_like),
    Tensor.contiguous: _contiguous,
    **dict.fromkeys([Tensor.clone, torch.clone], _clone),
    Tensor.requires_grad_: _map,
    Tensor.requires_grad.__get__: _requires_grad,  # type: ignore[attr-defined]
    Tensor.is_leaf.__get__: _is_leaf,  # type: ignore[attr-defined]
    Tensor.grad_fn.__get__: _grad_fn,  # type: ignore[union-attr]
    **dict.fromkeys([Tensor.stride, Tensor.storage_offset, Tensor.is_contiguous], _laid_out),
    Tensor.__format__: _format,
    Tensor.requires_grad.__set__: _set_requires_grad,  # type: ignore[attr-defined]
    **dict.fromkeys([Tensor.detach, torch.detach, Tensor.data.__get__], _detach),  # type: ignore[attr-defined]
    **dict.fromkeys([Tensor.to, Tensor.type, Tensor.type_as, Tensor.cpu, Tensor.cuda], _map_all),
    **dict.fromkeys([Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16], _map_all),
    **dict.fromkeys([torch.autograd.grad, torch.autograd.backward, Tensor.backward], _differentiate),
    **dict.fromkeys(
        [
            *(Tensor.grad.__get__, Tensor.retain_grad, Tensor.register_hook),  # type: ignore[union-attr]
            Tensor.register_post_accumulate_grad_hook,
        ],
        _refuse_gradient,
    ),
    Tensor.data_ptr: _refuse_memory,
}
"""What is done from the factors, by the function that was called."""


class _Same:
    """What of a parameter is no leaf of a tree. Two are equal if their factors mean the same: form, own and shared."""

    def __init__(self, value: Factored) -> None:
        self.form, self.own, self.names, self.shared = value.form, value.own, tuple(value.factors), value.shared

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same) or (self.names, self.form) != (other.names, other.form):
            return False
        shared = self.shared.keys() == other.shared.keys()
        return self.own is other.own and shared and all(self.shared[n] is other.shared[n] for n in self.shared)

    def __hash__(self) -> int:
        return hash((self.names, self.form, id(self.own), *map(id, self.shared.values())))

    def __repr__(self) -> str:
        return f"{self.form} of {', '.join(self.names)}"


def _flatten(value: Factored) -> tuple[list[Any], _Same]:
    return list(value.factors.values()), _Same(value)


def _unflatten(leaves: Any, same: Any) -> Any:
    factors = dict(zip(same.names, leaves, strict=True))
    if all(isinstance(leaf, Tensor) for leaf in leaves):
        return Factored(same.form, same.own, factors, same.shared)
    return factors  # a tree of something else than tensors


def _flatten_in_use(value: InUse) -> tuple[list[Any], None]:
    level = None if torch.compiler.is_dynamo_compiling() else torch._C._functorch.maybe_current_level()
    tensors = (value.own, *value.parts.values())
    if level is None or level <= max(torch._C._functorch.maybe_get_level(tensor) for tensor in tensors):
        return [value.dense()], None
    with temporarily_pop_interpreter_stack():  # a transform begins here, and wraps what it is given
        return [value.dense()], None


def _unflatten_in_use(leaves: Any, nothing: None) -> Any:
    (leaf,) = leaves
    return leaf


register_pytree_node(Factored, _flatten, _unflatten)
register_pytree_node(InUse, _flatten_in_use, _unflatten_in_use)
add_safe_globals([Factored, InUse])  # for `torch.load`, which makes nothing else than it knows
