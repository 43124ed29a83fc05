"""Functions of torch that give wrong numbers or errors for several tasks at once, done otherwise while a run lasts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from weightloom.forms.calls import WINDOW


class PaddingUnlearned(TorchFunctionMode):
    """Keeps the padding row of an embedding without a gradient, in every task.

    Under ``vmap`` all tables are laid end to end, and torch looks for the padding row in the first
    (torch 2.13).
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Look up, and let no gradient through where padding was read."""
        kwargs = kwargs or {}
        y = func(*args, **kwargs)
        if func is F.embedding:
            ids, weight, padding_idx = (
                *args,
                *(kwargs[n] for n in ("input", "weight") if n in kwargs),
                None,
            )[:3]
            padding_idx = kwargs.get("padding_idx", padding_idx)
            if padding_idx is not None:
                y = torch.where((ids == padding_idx % weight.shape[0])[..., None], y.detach(), y)
        return y


def padding_unlearned(base: nn.Module | None) -> AbstractContextManager[Any]:
    """`PaddingUnlearned` where the base has something to pad."""
    pads = base is not None and any(
        module.__dict__.get("padding_idx") is not None for module in base.modules()
    )
    return PaddingUnlearned() if pads else nullcontext()


class ConvolutionsInOnePrecision(TorchFunctionMode):
    """Brings the input of a convolution to the precision of its kernel, and in double precision to plain strides.

    Autocast does not reach convolutions under ``vmap``, but does lower what stands before them. In
    double precision, on a CPU, the backward pass of one whose input has odd strides along axes of
    one entry fails (torch 2.13).
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Convolve in the precision of the kernel."""
        if func in WINDOW and len(args) > 1:
            x, weight, *rest = args
            x = x.to(weight.dtype)
            if x.dtype == torch.float64:
                x = x.clone(memory_format=torch.contiguous_format)
            args = (x, weight, *rest)
        return func(*args, **(kwargs or {}))


def convolutions_in_one_precision(params: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
    """`ConvolutionsInOnePrecision` where autocast is on, or kernels are in double precision."""
    on = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    on = on or any(
        its.ndim > 3 and its.dtype == torch.float64 and its.is_cpu for its in params.values()
    )
    return ConvolutionsInOnePrecision() if on else nullcontext()


class LayerNormWrittenOut(TorchFunctionMode):
    """Computes layer norm by its formula.

    Second derivatives of torch's own are wrong where its weight is batched, under nested
    `torch.func` transforms (torch 2.13: by 1 to 21 %).
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Normalise, scale and shift."""
        kwargs = kwargs or {}
        if func is F.layer_norm or func is torch.layer_norm:
            return _layer_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(axes, keepdim=True)
    y = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@contextmanager
def second_derivatives(level: int) -> Iterator[None]:
    """Under transforms of `torch.func`.

    Layer norm written out, and attention that can be differentiated twice.
    """
    if not level or torch.compiler.is_compiling():
        yield
        return
    with LayerNormWrittenOut(), unfused_attention():
        yield


class _Unfused:
    """Attention off its fused paths for as long as any thread is inside."""

    def __init__(self) -> None:
        self.lock, self.inside = Lock(), 0
        self.kernels: Any = None
        self.fast = True

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.fast = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
                self.kernels = sdpa_kernel(SDPBackend.MATH)
                self.kernels.__enter__()
            self.inside += 1

    def __exit__(self, *_: Any) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.kernels.__exit__(None, None, None)
                torch.backends.mha.set_fastpath_enabled(self.fast)


_unfused = _Unfused()


def unfused_attention() -> AbstractContextManager[Any]:
    """Keep attention off its fused paths.

    Under ``vmap`` one has no derivative, and the others are loops over tasks.
    """
    return (
        nullcontext() if torch.compiler.is_compiling() else _unfused
    )  # the switch cannot be compiled
