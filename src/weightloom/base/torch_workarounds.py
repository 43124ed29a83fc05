"""Replacements, during a run, for torch functions that fail or err for several tasks at once."""

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
    """Keep the gradient of an embedding's padding row at zero, in every task.

    Under ``vmap`` the tables of all tasks are concatenated, and torch finds the padding row of the
    first task only (torch 2.13).
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Look embeddings up, and detach those of the padding index."""
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
    """`PaddingUnlearned` if a module of the base has a `padding_idx`; else a null context."""
    pads = base is not None and any(
        module.__dict__.get("padding_idx") is not None for module in base.modules()
    )
    return PaddingUnlearned() if pads else nullcontext()


class ConvolutionsInOnePrecision(TorchFunctionMode):
    """Cast the input of a convolution to the dtype of its kernel; in float64, make it contiguous.

    Autocast does not reach convolutions under ``vmap``, but it lowers the precision of their
    inputs. In float64 on a CPU, the backward pass fails if the input has unusual strides along
    axes of size 1 (torch 2.13).
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Convolve in the dtype of the kernel."""
        if func in WINDOW and len(args) > 1:
            x, weight, *rest = args
            x = x.to(weight.dtype)
            if x.dtype == torch.float64:
                x = x.clone(memory_format=torch.contiguous_format)
            args = (x, weight, *rest)
        return func(*args, **(kwargs or {}))


def convolutions_in_one_precision(params: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
    """`ConvolutionsInOnePrecision` under autocast, or for float64 kernels on a CPU."""
    on = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    on = on or any(
        its.ndim > 3 and its.dtype == torch.float64 and its.is_cpu for its in params.values()
    )
    return ConvolutionsInOnePrecision() if on else nullcontext()


class LayerNormWrittenOut(TorchFunctionMode):
    """Compute layer norm by its formula.

    Second derivatives of torch's kernel are wrong if its weight is batched under nested
    `torch.func` transforms (torch 2.13: by 1 to 21 %).
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace layer norm; run any other function unchanged."""
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
    """Make layer norm and attention twice differentiable under transforms of `torch.func`.

    Args:
        level: Depth of the current transform; 0, outside of any, changes no function.
    """
    if not level or torch.compiler.is_compiling():
        yield
        return
    with LayerNormWrittenOut(), unfused_attention():
        yield


class _Unfused:
    """Keep attention off its fused kernels as long as any thread is inside."""

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
    """Keep attention off its fused kernels.

    Under ``vmap``, one of them has no derivative, and the others loop over tasks.
    """
    return (
        nullcontext() if torch.compiler.is_compiling() else _unfused
    )  # the switch cannot be compiled
