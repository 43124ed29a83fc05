"""Parameters of the aligned engine: one tensor for all tasks, each applied to the rows of its task.

In:   generated parameters, each ``(tasks, *shape)``; functions of torch that the base calls.
Out:  results with a row for each row of the folded batch, or an error.
No ``vmap``: operations without a generated parameter run once for all rows, by torch's ordinary
kernels, and branches on values are allowed. Right only where the base treats the rows of a batch
one by one.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import register_pytree_node, tree_leaves, tree_map

from weightloom.errors import BatchingError
from weightloom.forms.calls import WINDOW, Conv, look_up, prefers_built, read_conv, shared_linear
from weightloom.forms.factored import NO_SUBCLASS, OF_THE_CARRIER, Factored, carrier


class Aligned(Tensor):
    """A parameter of all tasks that has the shape of one task's, for a folded batch.

    Functions of torch that are given one match its hidden tasks axis to the rows of the input.

    Args:
        value: The parameter per task, ``(tasks, *shape)``, built or as factors.
        rows: Number of rows of the folded batch.
        batch_major: True if the task changes from row to row, which spares grouped convolutions a
            copy; False if the rows of a task are adjacent.
    """

    value: Tensor
    tasks: int
    rows: int
    batch_major: bool
    level: int | None

    @staticmethod
    def __new__(
        cls: type["Aligned"], value: Tensor, rows: int, batch_major: bool = False
    ) -> "Aligned":
        """Wrap the value in a carrier of one task's shape, which has no memory for numbers."""
        self: Aligned = carrier(cls, value.shape[1:], value.dtype, value.device)
        self.tasks = value.shape[0]
        self.value, self.rows, self.batch_major = value, rows, batch_major
        self._is_param = True
        self.level = torch._C._functorch.maybe_current_level()
        return self

    def dense(self) -> Tensor:
        """Build the parameter of every task, ``(tasks, *shape)``."""
        return self.value.dense() if isinstance(self.value, Factored) else self.value

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function on every task's rows and parameter.

        Raises:
            BatchingError: If the function is not known to keep tasks separate.
        """
        with NO_SUBCLASS():
            kwargs = kwargs or {}
            if torch._C._functorch.maybe_current_level() is not None:
                _refuse_inside_vmap(args, kwargs)
            if answer := ANSWERS.get(func):
                result = answer(func, *args, **kwargs)
                if result is not NotImplemented:
                    return result
            if func in OF_THE_CARRIER:
                return func(*args, **kwargs)
            return _on_parameters(func, args, kwargs)


_REQUIRES_GRAD = cast(Any, Tensor).requires_grad.__get__


def _on_parameters(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function without an answer below, if it is given generated parameters alone."""
    leaves = tree_leaves((args, kwargs), is_leaf=_whole)
    own = [leaf for leaf in leaves if isinstance(leaf, Aligned)]
    if func == _REQUIRES_GRAD:
        return own[0].value.requires_grad
    name = getattr(func, "__name__", str(func))
    in_place = name.endswith("_") and not name.endswith("__")
    alone = all(isinstance(leaf, Aligned) for leaf in leaves if isinstance(leaf, Tensor))
    if alone and not in_place:
        return _of_parameters_alone(func, args, kwargs, own)
    raise BatchingError(
        f"`{name}` meets a generated parameter in a way that cannot be matched to the rows of its "
        "task. The aligned engine knows linear layers, convolutions, embeddings, norms and "
        "arithmetic on a batch whose first axis is rows. Pass "
        '`engine="vmap"` or `engine="loop"`.'
    )


def _refuse_inside_vmap(args: Any, kwargs: Any) -> None:
    """Raise inside a transform of `torch.func` that the base runs, for it hides the rows."""
    level = torch._C._functorch.maybe_current_level()
    for leaf in tree_leaves((args, kwargs), is_leaf=_whole):
        if isinstance(leaf, Aligned) and leaf.level != level:
            raise _inside_vmap()


def _inside_vmap() -> BatchingError:
    return BatchingError(
        "The base itself maps over a generated parameter, or over rows that meet one, by a "
        "transform of `torch.func`. The aligned engine keeps all tasks in the rows of one batch, "
        "which such a transform takes apart. Pass "
        '`engine="vmap"` or `engine="loop"`.'
    )


def _of_parameters_alone(func: Any, args: Any, kwargs: Any, own: list[Aligned]) -> Any:
    """Compute a function of parameters alone, such as a softplus, for each task."""
    values = [parameter.dense() for parameter in own]

    def for_one(*one: Tensor) -> Any:
        rest = iter(one)
        its = tree_map(
            lambda leaf: next(rest) if isinstance(leaf, Aligned) else leaf,
            (args, kwargs),
            is_leaf=_whole,
        )
        return func(*its[0], **its[1])

    result = vmap(for_one)(*values)
    return tree_map(
        lambda leaf: (
            Aligned(leaf, own[0].rows, own[0].batch_major) if isinstance(leaf, Tensor) else leaf
        ),
        result,
    )


def _whole(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def fold(x: Tensor, batch_major: bool) -> Tensor:
    """Fold tasks into the batch: (tasks, batch, ...) -> (rows, ...)."""
    return (x.transpose(0, 1) if batch_major else x).flatten(0, 1)


def unfold(x: Tensor, tasks: int, batch_major: bool) -> Tensor:
    """Unfold rows: (rows, ...) -> (tasks, batch, ...); a view where the rows are contiguous."""
    if batch_major:
        return x.reshape(-1, tasks, *x.shape[1:]).transpose(0, 1)
    return x.reshape(tasks, -1, *x.shape[1:])


def _split(x: Tensor, parameter: Aligned) -> Tensor:
    """Unfold rows into tasks: (rows, ...) -> (tasks, batch, ...); a single row is repeated."""
    if x.ndim and x.shape[0] == 1 and parameter.rows != 1:
        x = x.expand(parameter.rows, *x.shape[1:])
    if not x.ndim or x.shape[0] != parameter.rows:
        raise BatchingError(
            f"A generated parameter meets an input of shape {tuple(x.shape)}, but the batch of all "
            f"tasks has {parameter.rows} rows, which the aligned engine looks for on the first "
            "axis. Where the base moves its batch to another axis, pass "
            '`engine="vmap"` or `engine="loop"`.'
        )
    return unfold(x, parameter.tasks, parameter.batch_major)


def _merge(y: Tensor, parameter: Aligned) -> Tensor:
    """Fold results of every task back into rows: (tasks, batch, ...) -> (rows, ...)."""
    return fold(y, parameter.batch_major)


def _rows_of_features(x: Tensor, parameter: Aligned) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Prepare a product over the last axis, and return the inverse for its result.

    (rows, *mid, in) -> (tasks, batch * mid, in). An input of two axes may also be (rows * mid, in),
    from a base that folds its positions into the batch.
    """
    mid = x.shape[1:-1]
    if x.ndim == 2 and x.shape[0] != parameter.rows and x.shape[0] % parameter.rows == 0:
        mid = torch.Size([x.shape[0] // parameter.rows])
    if mid:
        several = _split(x.reshape(-1, *mid, x.shape[-1]), parameter)
        batch, shape = several.shape[1], x.shape[:-1]
        return several.flatten(1, -2), lambda y: _merge(
            y.unflatten(1, (batch, *mid)), parameter
        ).reshape(*shape, -1)
    return _split(x, parameter), lambda y: _merge(y, parameter)


def _any(*values: Any) -> Aligned:
    return next(value for value in values if isinstance(value, Aligned))


def _dense(value: Any) -> Any:
    return value.dense() if isinstance(value, Aligned) else value


def _broadcast(value: Any, before: int, after: int) -> Any:
    """Insert axes to broadcast: ``(tasks, *[1] * before, *shape, *[1] * after)``."""
    if isinstance(value, Aligned):
        dense = value.dense()
        return dense.reshape(dense.shape[0], *[1] * before, *dense.shape[1:], *[1] * after)
    return value if value is None else value.reshape(*value.shape, *[1] * after)


def _linear(func: Any, input: Any, weight: Any, bias: Any = None) -> Any:
    if isinstance(input, Aligned) or input.ndim < 2:
        return NotImplemented
    parameter = _any(weight, bias)
    plain = weight is parameter and not isinstance(weight.value, Factored)
    if plain and input.ndim == 2 and input.shape[0] == weight.rows and not weight.batch_major:
        return _small_linear(input, weight, bias)
    x, back = _rows_of_features(input, parameter)
    shift = _broadcast(bias, 1, 0)
    return back(_product(x, weight, shift))


def _product(x: Tensor, weight: Any, shift: Any) -> Tensor:
    """Multiply ``x``, ``(tasks, batch, in)``, by each task's weight, or by the shared one."""
    if not isinstance(weight, Aligned):
        return shared_linear(x, weight, shift)
    if isinstance(weight.value, Factored):
        y: Any = weight.value.form.linear(x, weight.value.own, weight.value.parts, shift)
        if y is not NotImplemented:
            return y
    matrix = weight.dense().mT
    return x @ matrix if shift is None else torch.baddbmm(shift, x, matrix)


def _small_linear(input: Tensor, weight: Aligned, bias: Any) -> Tensor:
    """Apply a linear layer with a minimum of views, whose cost counts where layers are small."""
    x = input.reshape(weight.tasks, -1, input.shape[1])
    shift = bias.dense()[:, None] if isinstance(bias, Aligned) else bias
    y = x @ weight.value.mT if shift is None else torch.baddbmm(shift, x, weight.value.mT)
    return y.view(input.shape[0], -1)


def _addmm(func: Any, input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    if beta != 1 or alpha != 1 or isinstance(mat1, Aligned):
        return NotImplemented
    x, back = _rows_of_features(mat1, _any(input, mat2))
    return back(x @ _dense(mat2) + _broadcast(input, 1, 0))


def _matmul(func: Any, input: Any, other: Any) -> Any:
    if isinstance(input, Aligned) or other.ndim != 2 or input.ndim < 2:
        return NotImplemented
    x, back = _rows_of_features(input, other)
    return back(x @ other.dense())


def _convolve(func: Any, *args: Any, **kwargs: Any) -> Any:
    input, weight, bias, conv = read_conv(func, *args, **kwargs)
    window = WINDOW[func]
    if isinstance(input, Aligned) or input.ndim != window + 2:
        return NotImplemented
    parameter = _any(weight, bias)
    factored = _convolves_factors(func, input, weight, parameter)
    in_groups = parameter.batch_major and weight is parameter and len(input) == parameter.rows
    if in_groups and not factored:
        return _convolve_groups(conv, input.contiguous(), weight, bias)
    x = _split(input, parameter)
    if factored:
        y = weight.value.form.conv(x, weight.value.own, weight.value.parts, conv)
        if y is not NotImplemented:
            return _merge(y if bias is None else y + _broadcast(bias, 1, window), parameter)
    return _merge(conv(x, _dense(weight), _dense(bias)), parameter)


def _convolves_factors(func: Any, input: Tensor, weight: Any, parameter: Aligned) -> bool:
    """Return True if a kernel is held as factors, and convolving with these is the quicker way."""
    if not (isinstance(weight, Aligned) and isinstance(weight.value, Factored)):
        return False
    return not prefers_built(func, _split(input, parameter)[0], weight.value.own)


def _convolve_groups(conv: Conv, input: Tensor, weight: Aligned, bias: Any) -> Tensor:
    """Convolve with tasks as groups of channels, which copies no rows if they are batch-major."""
    kernel = weight.dense()
    tasks = len(kernel)
    wide = input.view(-1, tasks * input.shape[1], *input.shape[2:])
    y = conv.run(wide, kernel.flatten(0, 1), _for_wide_channels(bias, tasks), tasks * conv.groups)
    return y.reshape(len(input), -1, *y.shape[2:])  # kernels in channels-last give such outputs


def _embedding(
    func: Any,
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if max_norm is not None or scale_grad_by_freq or sparse or isinstance(input, Aligned):
        return NotImplemented
    ids = _split(input, weight)
    y: Any = NotImplemented
    if isinstance(weight.value, Factored):
        y = weight.value.form.embedding(ids, weight.value.own, weight.value.parts)
    if y is NotImplemented:
        y = look_up(ids, weight.dense())
    if padding_idx is not None:  # its row is read, but gets no gradient
        y = torch.where((ids == padding_idx % weight.shape[0])[..., None], y.detach(), y)
    return _merge(y, weight)


def _affine(y: Tensor, weight: Any, bias: Any, before: int, after: int) -> Tensor:
    """Scale and shift normalised rows, ``(rows, ...)``."""
    parameter = _any(weight, bias)
    y = _split(y, parameter)
    scale, shift = _broadcast(weight, before, after), _broadcast(bias, before, after)
    if scale is None:
        return _merge(y + shift, parameter)
    return _merge(y * scale if shift is None else torch.addcmul(shift, y, scale), parameter)


def _layer_norm(
    func: Any,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    if isinstance(input, Aligned) or input.ndim <= len(normalized_shape):
        return NotImplemented
    before = input.ndim - len(normalized_shape)
    return _affine(F.layer_norm(input, normalized_shape, None, None, eps), weight, bias, before, 0)


def _rms_norm(
    func: Any, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None
) -> Any:
    if isinstance(input, Aligned) or input.ndim <= len(normalized_shape):
        return NotImplemented
    return _affine(
        F.rms_norm(input, normalized_shape, None, eps),
        weight,
        None,
        input.ndim - len(normalized_shape),
        0,
    )


def _group_norm(
    func: Any, input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    if isinstance(input, Aligned):
        return NotImplemented
    parameter = _any(weight, bias)
    if parameter.batch_major:  # tasks are groups of channels, as in a grouped convolution
        tasks, channels = parameter.tasks, input.shape[1]
        wide = input.reshape(-1, tasks * channels, *input.shape[2:])
        scale, shift = (_for_wide_channels(value, tasks) for value in (weight, bias))
        return F.group_norm(wide, num_groups * tasks, scale, shift, eps).view(input.shape)
    return _affine(
        F.group_norm(input, num_groups, None, None, eps), weight, bias, 1, input.ndim - 2
    )


def _for_wide_channels(value: Any, tasks: int) -> Any:
    if isinstance(value, Aligned):
        return value.dense().flatten()
    return value if value is None else value.repeat(tasks)


def _batch_norm(
    func: Any,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    *rest: Any,
    **more: Any,
) -> Any:
    if any(isinstance(value, Aligned) for value in (input, running_mean, running_var)):
        return NotImplemented
    y = F.batch_norm(input, running_mean, running_var, None, None, *rest, **more)
    return _affine(y, weight, bias, 1, input.ndim - 2)


def _instance_norm(
    func: Any,
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    *rest: Any,
    **more: Any,
) -> Any:
    if any(isinstance(value, Aligned) for value in (input, running_mean, running_var)):
        return NotImplemented
    y = F.instance_norm(input, running_mean, running_var, None, None, *rest, **more)
    return _affine(y, weight, bias, 1, input.ndim - 2)


def _prelu(func: Any, input: Any, weight: Any) -> Any:
    if isinstance(input, Aligned) or input.ndim < 2:
        return NotImplemented
    x = _split(input, weight)
    slope = _broadcast(weight, 1, input.ndim - 2)
    return _merge(x.clamp(min=0) + slope * x.clamp(max=0), weight)


def _arithmetic(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute number by number; a parameter broadcasts against its task's rows as if alone."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    parameter = _any(*tensors)
    axes = max(value.ndim for value in tensors)
    if any(_has_rows(value, axes, parameter.rows) for value in tensors):
        values = [_unfolded_operand(value, axes, parameter) for value in args]
        if any(value is None for value in values):
            return NotImplemented
        return _merge(func(*values, **kwargs), parameter)
    return _arithmetic_alone(func, args, kwargs, axes, parameter)


def _arithmetic_alone(func: Any, args: Any, kwargs: Any, axes: int, parameter: Aligned) -> Any:
    """Compute a new parameter of all tasks, if all tensors are parameters."""
    if any(isinstance(v, Tensor) and not isinstance(v, Aligned) for v in args):
        return NotImplemented
    values = [_broadcast(v, axes - v.ndim, 0) if isinstance(v, Aligned) else v for v in args]
    return Aligned(func(*values, **kwargs), parameter.rows, parameter.batch_major)


def _has_rows(value: Tensor, axes: int, rows: int) -> bool:
    """Return True for a tensor of ``axes`` axes that has the rows of the batch on the first."""
    if isinstance(value, Aligned) or not axes:
        return False
    return value.ndim == axes and value.shape[0] == rows


def _unfolded_operand(value: Any, axes: int, parameter: Any) -> Any:
    """Give one operand axes for tasks and for their rows.

    None for a parameter whose own first axis would meet the rows.
    """
    if isinstance(value, Aligned):
        if value.ndim < axes:
            return _broadcast(value, axes - value.ndim, 0)
        return value.dense() if value.shape[0] == 1 else None
    if isinstance(value, Tensor) and value.ndim == axes:
        return _split(value, parameter)
    return value


def _expand(func: Any, tensor: Any, *sizes: Any) -> Any:
    """Repeat a parameter for every row, as ``self.token.expand(len(x), -1, -1)`` does."""
    sizes = (
        tuple(sizes[0])
        if len(sizes) == 1 and isinstance(sizes[0], list | tuple | torch.Size)
        else sizes
    )
    if sizes[0] != tensor.rows or (tensor.ndim == len(sizes) and tensor.shape[0] != 1):
        return NotImplemented
    dense = tensor.dense()
    inner = dense.shape[2:] if tensor.ndim == len(sizes) else dense.shape[1:]
    values = dense.reshape(dense.shape[0], 1, *[1] * (len(sizes) - 1 - len(inner)), *inner)
    whole = [
        have if want == -1 else want for have, want in zip(values.shape[2:], sizes[1:], strict=True)
    ]
    return _merge(values.expand(dense.shape[0], tensor.rows // dense.shape[0], *whole), tensor)


def _not_opened(value: Any) -> Any:
    raise _inside_vmap()


register_pytree_node(Aligned, _not_opened, lambda leaves, _: leaves)

_BY_NUMBER = ["add", "sub", "mul", "div", "true_divide", "pow", "maximum", "minimum"]
_OPERATORS = [
    "__add__",
    "__radd__",
    "__sub__",
    "__rsub__",
    "__mul__",
    "__rmul__",
    "__truediv__",
    "__rtruediv__",
]

ANSWERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    **dict.fromkeys([torch.matmul, Tensor.matmul, Tensor.__matmul__], _matmul),
    **dict.fromkeys(WINDOW, _convolve),
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    torch.prelu: _prelu,
    Tensor.expand: _expand,
    **{getattr(torch, name): _arithmetic for name in _BY_NUMBER},
    **{getattr(Tensor, name): _arithmetic for name in [*_BY_NUMBER, *_OPERATORS]},
}
"""Function of torch -> its implementation for a generated parameter of all tasks."""
