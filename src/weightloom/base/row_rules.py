"""Rules that decide whether a torch function treats the rows of a batch independently.

In:   a call of a torch function, and the set of tensors that have the batch on axis 0.
Out:  True if each row of the result depends on the same row of the inputs, and on no other row.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.forms.calls import WINDOW
from weightloom.replica.hot import no_type_check


@runtime_checkable
class Watched(Protocol):
    """Facts about tensors that the rules ask for; `WatchRows` has them."""

    batch: int
    """Number of rows of the batch."""

    def is_row(self, value: Any) -> bool:
        """True for a tensor whose first axis is the batch."""

    def is_numbers(self, value: Any) -> bool:
        """True for a tensor of row numbers 0, 1, ..., batch - 1, with size 1 on any other axes."""


Rule = Callable[[Watched, list[Tensor], list[Tensor], tuple[Any, ...], dict[str, Any], Any], bool]
"""From the watch, tensors with rows, all tensors, args, kwargs and the result: True if no rows
mix."""


@no_type_check
def argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, names: Sequence[str], default: Any
) -> Any:
    """Look up an argument that may be passed by position or by any of several names."""
    if len(args) > position:
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), default)


@no_type_check
def _each_number(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """Elementwise: rows meet rows with as many axes, or values that are equal for every row."""
    return all(_meets_rows(watch, tensor, result.ndim) for tensor in tensors)


@no_type_check
def _meets_rows(watch: Watched, tensor: Tensor, axes: int) -> bool:
    """True if broadcasting to so many axes keeps the rows of a tensor apart."""
    if watch.is_row(tensor):
        return tensor.ndim == axes
    return tensor.ndim < axes or tensor.shape[0] == 1


@no_type_check
def _last_axis(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """The first input has rows and at least two axes; the others are equal for every row."""
    first = tensors[0]
    return (
        watch.is_row(first)
        and first.ndim >= 2
        and not any(watch.is_row(tensor) for tensor in tensors[1:])
    )


def _channels(axes: int) -> Rule:
    """Rule for an input (batch, channels, *space) with so many axes in all."""

    def rule(
        watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
    ) -> bool:
        return tensors[0].ndim == axes and _last_axis(watch, rows, tensors, args, kwargs, result)

    return rule


def _not_over_the_batch(position: int, names: Sequence[str], default: Any = None) -> Rule:
    """Rule for functions over one or several given axes: the batch is none of them."""

    def rule(
        watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
    ) -> bool:
        said = argument(args, kwargs, position, names, default)
        several = said if isinstance(said, list | tuple) else [said]
        source = tensors[0]
        return bool(several) and all(
            isinstance(one, int) and one % source.ndim != 0 for one in several
        )

    return rule


def _joined(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    dim = argument(args, kwargs, 1, ["dim", "axis"], 0)
    return len(rows) == len(tensors) and dim % result.ndim != 0


def _normalised(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    shape = argument(args, kwargs, 1, ["normalized_shape"], None)
    return _last_axis(watch, rows, tensors, args, kwargs, result) and len(shape) < tensors[0].ndim


def _batch_norm(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    training = argument(args, kwargs, 5, ["training"], False)
    return not training and _last_axis(watch, rows, tensors, args, kwargs, result)


def _flattened(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    return bool(argument(args, kwargs, 1, ["start_dim"], 0) % max(tensors[0].ndim, 1) != 0)


def _regrouped(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """Views of more than one row; `WatchRows` checks that axis 0 of the result is the batch.

    With one row, an axis of size 1 may be another one.
    """
    return bool(watch.batch > 1)


def _expanded(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """Expansion of existing axes: a new axis would come before the rows."""
    return bool(result.ndim == tensors[0].ndim)


def _moved(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """Permutation of axes that leaves the first in place."""
    dims = (
        args[1]
        if len(args) == 2 and isinstance(args[1], list | tuple)
        else args[1:] or kwargs.get("dims", [1])
    )
    return bool(dims[0] % tensors[0].ndim == 0)


def _swapped(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    axes = tensors[0].ndim
    return len(args) == 3 and args[1] % axes != 0 and args[2] % axes != 0


def _indexed(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """Indexing that keeps all rows, with at most one list of positions.

    With two lists, torch may move their axis to the front.
    """
    index = _index(args)
    if index and isinstance(index[0], Tensor):
        return _picked(watch, tensors[0], index)
    if not index or not all(map(_is_static, index)):
        return False
    named = sum(i is not None and i is not Ellipsis for i in index)
    return (
        _is_whole(index[0])
        and named < tensors[0].ndim + (index[0] is not Ellipsis)
        and sum(isinstance(i, list) for i in index) < 2
    )


def _index(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The index of `Tensor.__getitem__`, as a tuple with an entry per axis."""
    return args[1] if isinstance(args[1], tuple) else (args[1],)


def _is_static(entry: Any) -> bool:
    """True for an entry of an index that is no tensor."""
    return entry is None or entry is Ellipsis or isinstance(entry, int | slice | list)


def _is_whole(entry: Any) -> bool:
    """True for an entry of an index that keeps whole axes: ``:`` or ``...``."""
    return entry == slice(None) if isinstance(entry, slice) else entry is Ellipsis


def _picked(watch: Watched, source: Tensor, index: tuple[Any, ...]) -> bool:
    """Indexing by tensors that picks entries within every row: ``source[numbers, positions]``.

    The first tensor holds the row numbers along its first axis.
    """
    numbers = index[0]
    several = [its for its in index if isinstance(its, Tensor)]
    if not watch.is_numbers(numbers) or not watch.is_row(source):
        return False
    if any(its.dtype == torch.bool for its in several):
        return False
    if not all(map(_is_whole, index[len(several) :])):
        return False
    return all(_meets_rows(watch, its, numbers.ndim) for its in several[1:])


def _gathered(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    dim = argument(args, kwargs, 1, ["dim"], None)
    return (
        isinstance(dim, int)
        and dim % tensors[0].ndim != 0
        and all(watch.is_row(its) for its in tensors)
    )


def _products(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """Matrix products: of a batch of matrices with a batch, or of rows with one matrix for all."""
    if len(tensors) != 2:
        return False
    left, right = tensors
    if watch.is_row(left) and watch.is_row(right):
        return left.ndim == right.ndim and left.ndim >= 3
    return watch.is_row(left) and left.ndim >= 2 and right.ndim <= 2


def _turned(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """Transposition of the last two axes, none of which is the batch."""
    return tensors[0].ndim >= 3


def _attention(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """Attention over (batch, heads, ...); rows of a mask with fewer axes would meet the heads."""
    return all(watch.is_row(t) and t.ndim == 4 for t in tensors[:3]) and all(
        _meets_rows(watch, t, 4) for t in tensors[3:]
    )


def _looked_up(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    return watch.is_row(tensors[0]) and not watch.is_row(tensors[1])


def _unsqueezed(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    dim = argument(args, kwargs, 1, ["dim"], None)
    return isinstance(dim, int) and dim % (tensors[0].ndim + 1) != 0


def getter(attribute: str) -> Any:
    """Return the function by which torch dispatches reads of a tensor attribute.

    Args:
        attribute: Name of the attribute, such as ``shape``.
    """
    return getattr(Tensor, attribute).__get__


DROPOUTS = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout),
}

OF_THE_SHAPE = {
    *(
        Tensor.size,
        Tensor.dim,
        Tensor.numel,
        Tensor.nelement,
        Tensor.__len__,
        Tensor.stride,
        Tensor.is_contiguous,
    ),
    *(
        Tensor.is_floating_point,
        Tensor.is_complex,
        torch.is_floating_point,
        torch.is_complex,
        torch.numel,
    ),
    *(
        Tensor.element_size,
        Tensor.get_device,
        Tensor.ndimension,
        Tensor.is_signed,
        Tensor.storage_offset,
    ),
}
"""Functions that return no tensor, and read no numbers of one."""

SIZES = {
    *(
        Tensor.size,
        Tensor.numel,
        Tensor.nelement,
        Tensor.__len__,
        torch.numel,
        Tensor.stride,
        Tensor.storage_offset,
    ),
    getter("shape"),
}
"""Functions that return sizes."""
READ = {
    *(
        Tensor.item,
        Tensor.tolist,
        Tensor.numpy,
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.__index__,
    ),
    *(
        torch.equal,
        Tensor.equal,
        torch.allclose,
        Tensor.allclose,
        torch.is_nonzero,
        Tensor.is_nonzero,
    ),
    *(Tensor.__contains__, Tensor.__complex__, Tensor.data_ptr),
}
"""Functions that return a Python value that depends on the numbers of a tensor."""

_BY_NUMBER = [
    "abs",
    "acos",
    "add",
    "addcdiv",
    "addcmul",
    "asin",
    "atan",
    "ceil",
    "clamp",
    "clone",
    "contiguous",
    "cos",
    "cosh",
    "div",
    "double",
    "erf",
    "empty_like",
    "exp",
    "expm1",
    "float",
    "floor",
    "full_like",
    "half",
    "hardshrink",
    "lerp",
    "log",
    "log1p",
    "log2",
    "masked_fill",
    "maximum",
    "minimum",
    "mul",
    "neg",
    "negative",
    "pow",
    "positive",
    "ones_like",
    "prelu",
    "rand_like",
    "randn_like",
    "reciprocal",
    "relu",
    "relu_",
    "round",
    "rsqrt",
    "sigmoid",
    "sigmoid_",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "sub",
    "tan",
    "tanh",
    "tanh_",
    "true_divide",
    "type_as",
    "where",
    "zeros_like",
    "bfloat16",
    "to",
    "detach",
    "add_",
    "mul_",
    "sub_",
    "div_",
    "__add__",
    "__radd__",
    "__sub__",
    "__rsub__",
    "__mul__",
    "__rmul__",
    "__truediv__",
    "__rtruediv__",
    "__pow__",
    "__neg__",
    "__iadd__",
    "__imul__",
]
_COMPARED = [
    *(
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "__eq__",
        "__ne__",
        "__lt__",
        "__le__",
        "__gt__",
        "__ge__",
    ),
    *(
        "logical_and",
        "logical_or",
        "logical_not",
        "bitwise_and",
        "bitwise_or",
        "bitwise_not",
        "isnan",
        "isinf",
    ),
    *("__and__", "__or__", "__rand__", "__ror__", "__invert__", "bool", "long", "int"),
]
_ACTIVATIONS = [
    "celu",
    "elu",
    "elu_",
    "gelu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hardtanh_",
    "leaky_relu",
    "leaky_relu_",
    "logsigmoid",
    "mish",
    "relu",
    "relu_",
    "relu6",
    "rrelu",
    "selu",
    "selu_",
    "sigmoid",
    "silu",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
    "dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
]


_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
_OVER_AN_AXIS = ("mean", "sum", "amax", "amin", "squeeze", "var", "std", "logsumexp", "cumsum")


def _named(names: Iterable[str], *places: Any) -> list[Any]:
    """All functions of these names in modules or classes, where they exist."""
    found = [getattr(place, name, None) for name in names for place in places]
    return [function for function in found if function is not None]


def _rules() -> dict[Any, Rule]:
    rules: dict[Any, Rule] = {}

    def add(rule: Rule, *functions: Any) -> None:
        rules.update(dict.fromkeys(functions, rule))

    add(_each_number, *_named(_BY_NUMBER, torch, Tensor), *_named(_ACTIVATIONS, F, torch))
    for window in (1, 2, 3):
        add(_channels(window + 2), *_named([f"{pool}{window}d" for pool in _POOLS], F, torch))
        add(_channels(window + 2), *_named([f"dropout{window}d"], F))
    add(_each_number, *_named([name.strip("_") for name in _COMPARED], torch))
    add(_each_number, *_named(_COMPARED, Tensor))
    add(_gathered, torch.gather, Tensor.gather)
    for function, window in WINDOW.items():
        add(_channels(window + 2), function)
    add(
        _last_axis,
        F.linear,
        F.group_norm,
        torch.group_norm,
        F.instance_norm,
        torch.instance_norm,
        F.interpolate,
    )
    add(_last_axis, F.pixel_shuffle, F.pixel_unshuffle)
    add(_normalised, F.layer_norm, torch.layer_norm, F.rms_norm)
    add(_batch_norm, F.batch_norm)
    add(_looked_up, F.embedding)
    add(_flattened, torch.flatten, Tensor.flatten)
    add(_unsqueezed, torch.unsqueeze, Tensor.unsqueeze)
    add(_regrouped, Tensor.view, Tensor.reshape, torch.reshape)
    add(_expanded, Tensor.expand)
    add(_moved, Tensor.permute, torch.permute)
    add(_swapped, Tensor.transpose, torch.transpose)
    add(_indexed, Tensor.__getitem__)
    add(_joined, torch.cat, torch.stack)
    add(_products, torch.matmul, Tensor.matmul, Tensor.__matmul__)
    add(_turned, getter("mT"), torch.adjoint, Tensor.adjoint)
    add(_attention, F.scaled_dot_product_attention)
    softmaxes = _named(("softmax", "log_softmax"), F, torch, Tensor)
    add(_not_over_the_batch(1, ["dim"]), *softmaxes)
    add(_not_over_the_batch(1, ["dim", "axis"]), *_named(_OVER_AN_AXIS, torch, Tensor))
    add(_not_over_the_batch(1, ["dim"], 0), torch.unflatten, Tensor.unflatten)
    add(_not_over_the_batch(2, ["dim"], 0), *_named(("chunk", "split"), torch, Tensor))
    add(_not_over_the_batch(2, ["dim"], 1), F.normalize)
    add(_not_over_the_batch(2, ["dim"], -1), torch.diff, Tensor.diff)
    add(_not_over_the_batch(2, ["dim"]), torch.norm, Tensor.norm)
    return rules


SAME_IN_ALL = {
    *(Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to),
    *(torch.zeros, torch.ones, torch.full, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full),
}
"""Functions whose rows are all equal if the input of the result had no axis of rows."""


def same_in_all(func: Any, args: tuple[Any, ...], batch: int, result: Any) -> bool:
    """True for a result whose first axis has the size of the batch, with all rows equal."""
    if (
        func not in SAME_IN_ALL
        or not isinstance(result, Tensor)
        or not result.ndim
        or result.shape[0] != batch
    ):
        return False
    source = args[0] if func.__name__.startswith(("expand", "broadcast")) else None
    return not isinstance(source, Tensor) or source.ndim < result.ndim or source.shape[0] == 1


def numbers_of_rows(
    watch: Watched,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: int,
    result: Any,
) -> bool:
    """True for a result of row numbers 0, 1, ..., batch - 1 on axis 0, and size 1 on other axes."""
    if func is torch.arange:
        return (
            args in ((batch,), (0, batch))
            and not kwargs.keys() - {"device", "dtype"}
            and not result.is_complex()
        )
    if func is Tensor.__getitem__ and watch.is_numbers(args[0]):
        index = _index(args)
        return index[0] == slice(None) and all(its is None for its in index[1:])
    return False


OVER_AXES: dict[Any, tuple[int, list[str]]] = {
    **{
        function: (1, ["dim", "axis"])
        for name in (
            *(
                "mean",
                "sum",
                "amax",
                "amin",
                "var",
                "std",
                "logsumexp",
                "cumsum",
                "cumprod",
                "prod",
                "median",
                "max",
            ),
            *(
                "min",
                "cummax",
                "cummin",
                "logcumsumexp",
                "argmax",
                "argmin",
                "mode",
                "softmax",
                "log_softmax",
            ),
            *("nanmean", "nansum", "nanmedian", "aminmax", "var_mean", "std_mean", "count_nonzero"),
        )
        for function in (getattr(torch, name, None), getattr(Tensor, name, None))
        if function is not None
    },
    **dict.fromkeys((torch.norm, Tensor.norm, torch.roll, Tensor.roll), (2, ["dim", "dims"])),
    **dict.fromkeys((torch.flip, Tensor.flip), (1, ["dims"])),
}
"""Functions that reduce or scan over axes: position and names of the argument for the axis."""

RULES = _rules()
"""Rule of each known torch function; a function without a rule counts as mixing rows."""
