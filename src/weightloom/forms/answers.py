"""Operations on `Factored` parameters, computed from the factors.

Layers, and functions that select, join or copy tasks.

In:   a function of torch and its arguments.
Out:  its result; or ``NotImplemented``, and the caller builds the parameter.
"""

from collections.abc import Callable, Sequence
from inspect import Signature, signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.forms.calls import WINDOW, prefers_built, read_conv
from weightloom.forms.factored import Factored, Kind, built, made
from weightloom.forms.form import Parts
from weightloom.forms.refusals import refuse_differentiating, refuse_gradient, refuse_memory

_LIKE = ["empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"]


def _linear(func: Any, input: Tensor, weight: Any, bias: Any = None) -> Any:
    if not isinstance(weight, Factored) or isinstance(input, Factored) or weight.lead:
        return NotImplemented
    rows = input if input.ndim == 2 else input.reshape(-1, input.shape[-1])
    y = weight.form.linear(rows, weight.own, weight.parts, built(bias))
    if y is NotImplemented:
        return y
    return y if input.ndim == 2 else y.view(*input.shape[:-1], y.shape[-1])


def _convolve(func: Any, *args: Any, **kwargs: Any) -> Any:
    input, weight, bias, conv = read_conv(func, *args, **kwargs)
    window = WINDOW[func]
    alone = input.ndim == window + 1
    if not isinstance(weight, Factored) or isinstance(input, Factored) or weight.lead:
        return NotImplemented
    if prefers_built(func, input, weight.own):
        return func(input, weight.dense(), built(bias), groups=conv.groups, **dict(conv.options))
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
        index = _first_of(index, tensor.own.ndim)
    index = slice(None) if index is ... else _tasks_of(index)
    return tensor.map(lambda factor: factor[index]) if index is not None else NotImplemented


def _first_of(index: tuple[Any, ...], axes: int) -> Any:
    """Index of the tasks axis; None if the tuple does not leave the ``axes`` behind it whole."""
    first, *rest = index or (...,)
    if rest and first is ...:
        return None
    dots = any(its is ... for its in rest)
    if len(rest) > axes + dots or not all(map(_is_whole, rest)):
        return None
    return first


def _is_whole(index: Any) -> bool:
    return index is ... or (isinstance(index, slice) and index == slice(None))


def _tasks_of(index: Any) -> Any:
    """Index that selects tasks and leaves the parameter's own axes alone; None for any other."""
    if isinstance(index, list | range):
        if not all(isinstance(its, int) for its in index):
            return None
        index = torch.as_tensor(index, dtype=None if len(index) else torch.int64)
    if isinstance(index, Tensor) and not isinstance(index, Factored):
        return index if _takes_tasks(index) else None
    return index if isinstance(index, slice) or _is_number(index) else None


def _takes_tasks(index: Tensor) -> bool:
    if index.dtype == torch.bool:
        return index.ndim == 1
    return index.dtype in _INTEGERS and index.ndim <= 1


def _is_number(index: Any) -> bool:
    return hasattr(index, "__index__") and not isinstance(index, bool | Tensor)


_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8}


def _iterate(func: Any, tensor: Any) -> Any:
    if torch.compiler.is_compiling():
        return iter(tensor.unbind())
    rows = _of_rows(torch.unbind, tensor)
    return rows if rows is NotImplemented else iter(rows)


def _of_rows(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a function along the tasks axis to every factor; it returns one tensor or several."""
    bound = ALONG[func].bind(*args, **kwargs)
    bound.apply_defaults()
    tensor, dim, rest = bound.args[0], bound.arguments["dim"], bound.args[1:]
    others = any(isinstance(leaf, Factored) for leaf in rest)
    if (
        not isinstance(tensor, Factored)
        or tensor.lead != 1
        or dim not in (0, -tensor.ndim)
        or others
    ):
        return NotImplemented
    at = list(bound.arguments).index("dim") - 1
    rest = (*rest[:at], 0, *rest[at + 1 :])
    results = {name: func(factor, *rest) for name, factor in tensor.factors.items()}
    if isinstance(next(iter(results.values())), Tensor):
        return _like(tensor, results)
    return tuple(
        _like(tensor, dict(zip(results, its, strict=True)))
        for its in zip(*results.values(), strict=True)
    )


def _like(value: Kind, factors: Parts) -> Kind:
    """Copy with other factors, but the same form, own value and shared tensors."""
    return made(value, value.form, value.own, factors, value.shared)


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
    return _like(
        first, {name: func([value.factors[name] for value in tensors]) for name in first.factors}
    )


def same_held(a: Factored, b: Factored) -> bool:
    """True if two values have the same form, own value and shared tensors; factors may differ."""
    if a.form != b.form or a.shared.keys() != b.shared.keys():
        return False
    pairs = [(a.own, b.own), *((a.shared[name], b.shared[name]) for name in a.shared)]
    return all(same_tensor(one, other) for one, other in pairs)


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """True if two tensors are interchangeable.

    They are if they are one object, or equal numbers of which neither requires a gradient.
    """
    if a is b:
        return True
    if (
        a.requires_grad
        or b.requires_grad
        or (a.device, a.dtype, a.shape) != (b.device, b.dtype, b.shape)
    ):
        return False
    if (
        torch.compiler.is_compiling()
        or a.is_meta
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return False  # the numbers cannot be read here
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
    args = tuple(
        its.own if isinstance(its, Factored) else its for its in args
    )  # as in `x.to(value)`
    if not isinstance(input, Factored):
        return func(input, *args, **kwargs)
    own = func(input.own, *args, **kwargs)
    if (
        not isinstance(own, Tensor)
        or own.dtype.is_floating_point != input.own.dtype.is_floating_point
    ):
        return NotImplemented  # factors rounded to integers would be another parameter
    return input.map_all(
        lambda factor: func(factor, *args, **kwargs) if factor is not input.own else own
    )


def _detach(func: Any, input: Any) -> Any:
    return input.map_all(lambda factor: factor.detach())


def _requires_grad(func: Any, tensor: Any) -> bool:
    return any(f.requires_grad for f in (tensor.own, *tensor.parts.values()))


def _is_leaf(func: Any, tensor: Any) -> bool:
    return not _requires_grad(func, tensor)


def _grad_fn(func: Any, tensor: Any) -> Any:
    return NotImplemented if _requires_grad(func, tensor) else None


def _laid_out(func: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
    """Memory layout that the built parameter would have."""
    return func(torch.empty(tensor.shape, device="meta"), *args, **kwargs)


def _format(func: Any, tensor: Any, spec: str) -> Any:
    return format(repr(tensor), spec) if tensor.ndim else NotImplemented


def _set_requires_grad(func: Any, tensor: Any, value: bool) -> None:
    tensor.map(lambda factor: factor.requires_grad_(value))


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
"""Signatures of the functions that select or repeat along an axis."""


def _reading(name: str) -> Any:
    """Function that torch dispatches when the attribute ``name`` of a tensor is read."""
    return getattr(Tensor, name).__get__


def _setting(name: str) -> Any:
    """Function that torch dispatches when the attribute ``name`` of a tensor is set."""
    return getattr(Tensor, name).__set__


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
    _reading("requires_grad"): _requires_grad,
    _reading("is_leaf"): _is_leaf,
    _reading("grad_fn"): _grad_fn,
    **dict.fromkeys([Tensor.stride, Tensor.storage_offset, Tensor.is_contiguous], _laid_out),
    Tensor.__format__: _format,
    _setting("requires_grad"): _set_requires_grad,
    **dict.fromkeys([Tensor.detach, torch.detach, _reading("data")], _detach),
    **dict.fromkeys([Tensor.to, Tensor.type, Tensor.type_as, Tensor.cpu, Tensor.cuda], _map_all),
    **dict.fromkeys([Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16], _map_all),
    **dict.fromkeys(
        [torch.autograd.grad, torch.autograd.backward, Tensor.backward], refuse_differentiating
    ),
    **dict.fromkeys(
        [
            _reading("grad"),
            Tensor.retain_grad,
            Tensor.register_hook,
            Tensor.register_post_accumulate_grad_hook,
        ],
        refuse_gradient,
    ),
    Tensor.data_ptr: refuse_memory,
}
"""Implementations on factors, by the function of torch that they replace."""
