"""Proof that a base treats the rows of a batch one by one, by watching every function that it calls."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from weightloom.forms.calls import WINDOW
from weightloom.forms.factored import Factored
from weightloom.replica.hot import no_type_check


@no_type_check
class WatchRows(TorchFunctionMode):
    """While active, follow which tensors have the batch on axis 0, and note the first call that may mix rows."""

    def __init__(self) -> None:
        super().__init__()
        self.mixes: str | None = None
        """The function that may mix rows, or that is not known; None as long as there is none."""
        self.work = 0
        """Multiplications per task in the largest convolution with a generated kernel."""
        self.reduces: str | None = None
        """A function that runs over the batch axis of rows, which is no question of what is known."""
        self.sizes = False
        """Whether the base read a size of something that has the batch on axis 0, or of something else."""
        self._rows: dict[int, Tensor] = {}
        self._others: dict[int, Tensor] = {}
        self._generated: set[int] = set()
        self._batch = -1

    def start(self, inputs: Sequence[Tensor], generated: Sequence[Tensor]) -> "WatchRows":
        """Say what enters: inputs of the base, and parameters that differ from task to task."""
        self._generated = {id(value) for value in generated}
        self._others = {id(part): part for value in generated for part in (value, *factors_of(value))}
        sizes = {x.shape[0] if x.ndim else -1 for x in inputs} or {-1}
        if len(sizes) != 1 or -1 in sizes:
            self.mixes = "an input without a batch axis"
        self._batch = sizes.pop()
        self._rows = {id(x): x for x in inputs}
        return self

    def finish(self, outputs: Any) -> None:
        """Say what leaves the base."""
        leaves = _tensors(outputs)
        if not self.mixes and not all(id(leaf) in self._rows for leaf in leaves):
            self.mixes = "an output whose rows are not those of the input"

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function and judge it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = _tensors(args)
        if self.reduces is None and func in OVER_AXES and tensors and id(tensors[0]) in self._rows:
            position, names = OVER_AXES[func]
            said = _argument(args, kwargs, position, names, None)
            several = said if isinstance(said, list | tuple) else [said]
            if any(axis is None or (isinstance(axis, int) and axis % tensors[0].ndim == 0) for axis in several):
                self.reduces = f"`{getattr(func, '__name__', func)}` over the rows of a batch"
        self.sizes = self.sizes or func in _SIZES
        if self.mixes is None:
            self._judge(func, args, kwargs, result)
        elif any(id(tensor) in self._rows for tensor in tensors):  # what becomes of rows is followed all the same
            self._rows.update({id(y): y for y in _tensors(result) if y.ndim and y.shape[0] == self._batch})
        return result

    def _judge(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = getattr(func, "__name__", str(func))
        tensors = _tensors((args, kwargs))
        rows = [tensor for tensor in tensors if id(tensor) in self._rows]
        results = _tensors(result)
        inside = torch._C._functorch.maybe_current_level() is not None
        if inside and any(self._is_stray(tensor) for tensor in tensors):
            self.mixes = "a tensor that came about unseen"
            return
        if tensors and not results and (name == "__get__" or func in _OF_THE_SHAPE):
            self.sizes = self.sizes or func in _SIZES
            if rows or func in _OF_THE_SHAPE:
                return
        if func in READ:
            self.mixes = f"`{name}`, which reads numbers,"
            return
        if not rows:
            self._others.update({id(leaf): leaf for leaf in results})
            return
        rule = RULES.get(func)
        if rule is None or not rule(self, rows, tensors, args, kwargs, result):
            self.mixes = f"`{name}`"
            return
        if any(leaf.ndim == 0 or leaf.shape[0] != self._batch for leaf in results):
            self.mixes = f"`{name}`"
            return
        if func in WINDOW and id(tensors[1]) in self._generated:
            points = result[0, 0].numel() if func not in _TRANSPOSED else tensors[0][0, 0].numel()
            self.work = max(self.work, self._batch * tensors[1].numel() * points)
        self._rows.update({id(leaf): leaf for leaf in results})

    def _is_stray(self, tensor: Tensor) -> bool:
        """Whether a tensor that differs from task to task was computed by what cannot be watched."""
        seen = id(tensor) in self._rows or id(tensor) in self._others
        return not seen and not isinstance(tensor, Factored) and _differs_by_task(tensor)

    def is_row(self, value: Any) -> bool:
        """Whether a value has the batch as its first axis."""
        return isinstance(value, Tensor) and id(value) in self._rows


class WithoutDropout(TorchFunctionMode):
    """While active, nothing is dropped: what two engines compute can be compared."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Pass on the input of a dropout as it is."""
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args, kwargs = (*args[:4], *([0.0] if len(args) > 4 else []), *args[5:]), {**kwargs}
            kwargs.pop("dropout_p", None)
        return func(*args, **kwargs)


@no_type_check
def _tensors(tree: Any) -> list[Tensor]:
    """Tensors of a call or a result; most are a tensor, or a tuple of tensors and numbers."""
    if isinstance(tree, Tensor):
        return [tree]
    if type(tree) is tuple or type(tree) is list:
        found: list[Tensor] = []
        for item in tree:
            if isinstance(item, Tensor):
                found.append(item)
            elif type(item) not in _NUMBERS:
                found += _tensors(item)
        return found
    if type(tree) is dict:
        return _tensors(list(tree.values()))
    return [x for x in tree_leaves(tree, is_leaf=lambda x: isinstance(x, Tensor)) if isinstance(x, Tensor)]


_NUMBERS = {int, float, bool, str, type(None), slice, torch.dtype, torch.device, torch.Size, type(Ellipsis)}


@no_type_check
def _differs_by_task(tensor: Tensor) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


Rule = Callable[[WatchRows, list[Tensor], list[Tensor], tuple[Any, ...], dict[str, Any], Any], bool]


@no_type_check
def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, names: Sequence[str], default: Any) -> Any:
    if len(args) > position:
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), default)


@no_type_check
def _each_number(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    """Arithmetic: rows meet rows of as many axes, or something that is the same for every row."""
    axes = result.ndim
    return all(
        tensor.ndim == axes if watch.is_row(tensor) else tensor.ndim < axes or tensor.shape[0] == 1
        for tensor in tensors
    )


@no_type_check
def _last_axis(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    """The first input is rows, of two axes or more, the others are the same for every row."""
    first = tensors[0]
    return watch.is_row(first) and first.ndim >= 2 and not any(watch.is_row(tensor) for tensor in tensors[1:])


def _channels(axes: int) -> Rule:
    """The input is (batch, channels, *space), with so many axes."""

    def rule(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
        return tensors[0].ndim == axes and _last_axis(watch, rows, tensors, args, kwargs, result)

    return rule


def _not_over_the_batch(position: int, names: Sequence[str], default: Any = None) -> Rule:
    """An axis, or several, are said, and the batch is none of them."""

    def rule(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
        said = _argument(args, kwargs, position, names, default)
        several = said if isinstance(said, list | tuple) else [said]
        source = tensors[0]
        return bool(several) and all(isinstance(one, int) and one % source.ndim != 0 for one in several)

    return rule


def _joined(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    dim = _argument(args, kwargs, 1, ["dim", "axis"], 0)
    return len(rows) == len(tensors) and dim % result.ndim != 0


def _normalised(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    shape = _argument(args, kwargs, 1, ["normalized_shape"], None)
    return _last_axis(watch, rows, tensors, args, kwargs, result) and len(shape) < tensors[0].ndim


def _batch_norm(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    training = _argument(args, kwargs, 5, ["training"], False)
    return not training and _last_axis(watch, rows, tensors, args, kwargs, result)


def _flattened(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    return bool(_argument(args, kwargs, 1, ["start_dim"], 0) % max(tensors[0].ndim, 1) != 0)


def _regrouped(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    """A view that keeps the first axis; one row would hide how it comes to its size."""
    return bool(watch._batch > 1)


def _expanded(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    """Repeated along axes that were there: a new one would stand before the rows."""
    return bool(result.ndim == tensors[0].ndim)


def _moved(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    """Axes change places, the first stays."""
    dims = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:] or kwargs.get("dims", [1])
    return bool(dims[0] % tensors[0].ndim == 0)


def _swapped(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    axes = tensors[0].ndim
    return len(args) == 3 and args[1] % axes != 0 and args[2] % axes != 0


def _indexed(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    """All rows are kept, and no more than one list of positions is given: of two, torch may put theirs first."""
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if not all(i is None or i is Ellipsis or isinstance(i, int | slice | list) for i in index) or not index:
        return False
    named = sum(i is not None and i is not Ellipsis for i in index)
    whole = index[0] == slice(None) if isinstance(index[0], slice) else index[0] is Ellipsis
    return (
        whole and named < tensors[0].ndim + (index[0] is not Ellipsis) and sum(isinstance(i, list) for i in index) < 2
    )


def _products(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    """Matrix products: the batch is the axis of many matrices, or of rows against one matrix for all."""
    if len(tensors) != 2:
        return False
    left, right = tensors
    if watch.is_row(left) and watch.is_row(right):
        return left.ndim == right.ndim and left.ndim >= 3
    return watch.is_row(left) and left.ndim >= 2 and right.ndim <= 2


def _attention(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    """Heads of rows; a mask of rows has all four axes, for one with fewer would meet the heads."""
    return all(watch.is_row(t) and t.ndim == 4 for t in tensors[:3]) and all(
        t.ndim == 4 if watch.is_row(t) else t.ndim < 4 or t.shape[0] == 1 for t in tensors[3:]
    )


def _looked_up(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    return watch.is_row(tensors[0]) and not watch.is_row(tensors[1])


def _unsqueezed(watch: WatchRows, rows: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> bool:
    dim = _argument(args, kwargs, 1, ["dim"], None)
    return isinstance(dim, int) and dim % (tensors[0].ndim + 1) != 0


_DROPOUTS = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout),
}

_OF_THE_SHAPE = {
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.__len__, Tensor.stride, Tensor.is_contiguous),
    *(Tensor.is_floating_point, Tensor.is_complex, torch.is_floating_point, torch.is_complex, torch.numel),
    *(Tensor.element_size, Tensor.get_device, Tensor.ndimension, Tensor.is_signed, Tensor.storage_offset),
}
"""What gives no tensor, and reads no numbers."""

_SIZES = {
    *(Tensor.size, Tensor.numel, Tensor.nelement, Tensor.__len__, torch.numel, Tensor.stride, Tensor.storage_offset),
    Tensor.shape.__get__,  # type: ignore[attr-defined]
}
READ = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__),
    *(torch.equal, Tensor.equal, torch.allclose, Tensor.allclose, torch.is_nonzero, Tensor.is_nonzero),
    *(Tensor.__contains__, Tensor.__complex__, Tensor.data_ptr),
}
"""What makes a number of Python from the numbers of a tensor, which a later call may find changed."""

_TRANSPOSED = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
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
    for function, window in WINDOW.items():
        add(_channels(window + 2), function)
    add(_last_axis, F.linear, F.group_norm, torch.group_norm, F.instance_norm, torch.instance_norm, F.interpolate)
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
    add(_attention, F.scaled_dot_product_attention)
    for name in ("softmax", "log_softmax"):
        add(_not_over_the_batch(1, ["dim"]), getattr(F, name), getattr(torch, name), getattr(Tensor, name))
    for name in ("mean", "sum", "amax", "amin", "squeeze", "var", "std", "logsumexp", "cumsum"):
        add(_not_over_the_batch(1, ["dim", "axis"]), getattr(torch, name), getattr(Tensor, name))
    for name in ("chunk", "split", "unflatten"):
        position = 1 if name == "unflatten" else 2
        add(_not_over_the_batch(position, ["dim"], 0), getattr(torch, name), getattr(Tensor, name))
    add(_not_over_the_batch(2, ["dim"], 1), F.normalize)
    add(_not_over_the_batch(2, ["dim"]), torch.norm, Tensor.norm)
    return rules


OVER_AXES = {
    function: (1, ["dim", "axis"])
    for name in ("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "cumsum", "cumprod", "prod", "median", "max")
    for function in (getattr(torch, name), getattr(Tensor, name))
}
"""Functions that run over an axis, or over all: where the axis is said, and by which names."""

RULES = _rules()
"""When a function treats rows one by one. What is not here counts as mixing them."""


def factors_of(value: Tensor) -> list[Tensor]:
    """The tensors that a generated parameter is made of."""
    return [*value.factors.values()] if isinstance(value, Factored) else [value]
