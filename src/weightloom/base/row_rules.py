"""When a function treats the rows of a batch one by one.

In:   a call of a function of torch, and which of its tensors have the batch on axis 0.
Out:  whether each row of the result comes of the same row of what went in, and of nothing else of
      the batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.forms.calls import WINDOW
from weightloom.replica.hot import no_type_check


@runtime_checkable
class Watched(Protocol):
    """What is known of the tensors that are about."""

    batch: int
    """Rows of the batch."""

    def is_row(self, value: Any) -> bool:
        """Whether a value has the batch as its first axis."""

    def is_numbers(self, value: Any) -> bool:
        """Whether a tensor holds the numbers of the rows on its first axis, and has no other axis."""


Rule = Callable[[Watched, list[Tensor], list[Tensor], tuple[Any, ...], dict[str, Any], Any], bool]


@no_type_check
def argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, names: Sequence[str], default: Any
) -> Any:
    """An argument that may be given by position or by name."""
    if len(args) > position:
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), default)


@no_type_check
def _each_number(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """Arithmetic: rows meet rows of as many axes, or something that is the same for every row."""
    axes = result.ndim
    return all(
        tensor.ndim == axes if watch.is_row(tensor) else tensor.ndim < axes or tensor.shape[0] == 1
        for tensor in tensors
    )


@no_type_check
def _last_axis(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """The first input is rows, of two axes or more, the others are the same for every row."""
    first = tensors[0]
    return (
        watch.is_row(first)
        and first.ndim >= 2
        and not any(watch.is_row(tensor) for tensor in tensors[1:])
    )


def _channels(axes: int) -> Rule:
    """The input is (batch, channels, *space), with so many axes."""

    def rule(
        watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
    ) -> bool:
        return tensors[0].ndim == axes and _last_axis(watch, rows, tensors, args, kwargs, result)

    return rule


def _not_over_the_batch(position: int, names: Sequence[str], default: Any = None) -> Rule:
    """An axis, or several, are said, and the batch is none of them."""

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
    """A view that keeps the first axis; one row would hide how it comes to its size."""
    return bool(watch.batch > 1)


def _expanded(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """Repeated along axes that were there: a new one would stand before the rows."""
    return bool(result.ndim == tensors[0].ndim)


def _moved(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """Axes change places, the first stays."""
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
    """All rows are kept, and no more than one list of positions is given.

    Of two, torch may put theirs first.
    """
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if index and isinstance(index[0], Tensor):
        return _picked(watch, tensors[0], index, result)
    if (
        not all(i is None or i is Ellipsis or isinstance(i, int | slice | list) for i in index)
        or not index
    ):
        return False
    named = sum(i is not None and i is not Ellipsis for i in index)
    whole = index[0] == slice(None) if isinstance(index[0], slice) else index[0] is Ellipsis
    return (
        whole
        and named < tensors[0].ndim + (index[0] is not Ellipsis)
        and sum(isinstance(i, list) for i in index) < 2
    )


def _picked(watch: Watched, source: Tensor, index: tuple[Any, ...], result: Tensor) -> bool:
    """From every row something is picked.

    The first index holds the numbers of the rows, along its first axis.
    """
    numbers = index[0]
    several = [its for its in index if isinstance(its, Tensor)]
    if (
        not watch.is_numbers(numbers)
        or not watch.is_row(source)
        or any(its.dtype == torch.bool for its in several)
    ):
        return False
    if any(
        not (its == slice(None) if isinstance(its, slice) else its is Ellipsis)
        for its in index[len(several) :]
    ):
        return False
    return all(
        its.ndim == numbers.ndim
        if watch.is_row(its)
        else its.ndim < numbers.ndim or its.shape[0] == 1
        for its in several[1:]
    )


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
    """Matrix products: the batch is the axis of many matrices, or of rows against one matrix for all."""
    if len(tensors) != 2:
        return False
    left, right = tensors
    if watch.is_row(left) and watch.is_row(right):
        return left.ndim == right.ndim and left.ndim >= 3
    return watch.is_row(left) and left.ndim >= 2 and right.ndim <= 2


def _turned(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """The last two axes change places, and the batch is none of them."""
    return tensors[0].ndim >= 3


def _attention(
    watch: Watched, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
) -> bool:
    """Heads of rows; a mask of rows has all four axes, for one with fewer would meet the heads."""
    return all(watch.is_row(t) and t.ndim == 4 for t in tensors[:3]) and all(
        t.ndim == 4 if watch.is_row(t) else t.ndim < 4 or t.shape[0] == 1 for t in tensors[3:]
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
"""What gives no tensor, and reads no numbers."""

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
    Tensor.shape.__get__,  # type: ignore[attr-defined]
}
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
"""What makes a number of Python from the numbers of a tensor, which a later call may find
changed."""

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


def _rules() -> dict[Any, Rule]:
    rules: dict[Any, Rule] = {}

    def add(rule: Rule, *functions: Any) -> None:
        rules.update({function: rule for function in functions if function is not None})

    for name in _BY_NUMBER:
        add(_each_number, getattr(torch, name, None), getattr(Tensor, name, None))
    for name in _ACTIVATIONS:
        add(_each_number, getattr(F, name, None), getattr(torch, name, None))
    for window in (1, 2, 3):
        for pool in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool"):
            name = f"{pool}{window}d"
            add(_channels(window + 2), getattr(F, name, None), getattr(torch, name, None))
        add(_channels(window + 2), getattr(F, f"dropout{window}d"))
    for name in _COMPARED:
        add(_each_number, *(getattr(torch, name.strip("_"), None), getattr(Tensor, name, None)))
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
    add(_turned, Tensor.mT.__get__, torch.adjoint, Tensor.adjoint)  # type: ignore[attr-defined]
    add(_attention, F.scaled_dot_product_attention)
    for name in ("softmax", "log_softmax"):
        add(
            _not_over_the_batch(1, ["dim"]),
            getattr(F, name),
            getattr(torch, name),
            getattr(Tensor, name),
        )
    for name in ("mean", "sum", "amax", "amin", "squeeze", "var", "std", "logsumexp", "cumsum"):
        add(_not_over_the_batch(1, ["dim", "axis"]), getattr(torch, name), getattr(Tensor, name))
    for name in ("chunk", "split", "unflatten"):
        position = 1 if name == "unflatten" else 2
        add(_not_over_the_batch(position, ["dim"], 0), getattr(torch, name), getattr(Tensor, name))
    add(_not_over_the_batch(2, ["dim"], 1), F.normalize)
    add(_not_over_the_batch(2, ["dim"], -1), torch.diff, Tensor.diff)
    add(_not_over_the_batch(2, ["dim"]), torch.norm, Tensor.norm)
    return rules


SAME_IN_ALL = {
    *(Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to),
    *(torch.zeros, torch.ones, torch.full, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full),
}
"""What gives the same number in every row, if it makes an axis of rows out of something that has
none."""


def same_in_all(func: Any, args: tuple[Any, ...], batch: int, result: Any) -> bool:
    """Whether a result has the batch as its first axis, and all its rows are alike."""
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
    """Whether a result holds the numbers of the rows along its first axis, and has no other."""
    if func is torch.arange:
        return (
            args in ((batch,), (0, batch))
            and not kwargs.keys() - {"device", "dtype"}
            and not result.is_complex()
        )
    if func is Tensor.__getitem__ and watch.is_numbers(args[0]):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
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
"""Functions that run over an axis, or over all: where the axis is said, and by which names."""

RULES = _rules()
"""When a function treats rows one by one. What is not here counts as mixing them."""
