"""Attention with derivatives of every order; torch's fused kernels lack them on some devices.

In:   queries, keys, values, and a mask.
Out:  one weighted mean of the values per query.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import scaled_dot_product_attention


def attention(
    q: Float[Tensor, "*lead queries width"],
    k: Float[Tensor, "*lead keys width"],
    v: Float[Tensor, "*lead keys out"],
    mask: Bool[Tensor, "*maskable keys"] | None = None,
) -> Float[Tensor, "*lead queries out"]:
    """Attention softmax(q kᵀ / √width) v, with derivatives of every order and in forward mode.

    Forward and first derivative use torch's fused attention, which is fast and stores no scores.
    Second derivatives, forward mode and the transforms of `torch.func` use plain operations.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: False for keys to ignore; broadcast over queries. None: use all keys.

    Returns:
        For each query, the mean of the values weighted by its attention.

    Example:
        >>> x = torch.randn(2, 5, 4)
        >>> torch.allclose(attention(x, x, x), scaled_dot_product_attention(x, x, x), atol=1e-5)
        True
    """
    if torch.compiler.is_exporting():
        # torch's own exports for a fixed number of tasks only (torch 2.13)
        return _shares(q, k, mask) @ v
    if torch.compiler.is_compiling():
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return _shares(q, k, mask) @ v
    if not torch.is_grad_enabled():
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)
    fused: Callable[..., Tensor] = _Fused.apply
    return fused(q, k, v, mask)


def _shares(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Attention weights, (*lead, queries, keys)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)


class _Fused(torch.autograd.Function):
    """Fused attention, with torch's derivative, or plain operations if that is differentiated."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        with torch.enable_grad():
            q, k, v = ctx.inside = tuple(x.detach().requires_grad_() for x in (q, k, v))
            ctx.read = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        read: Tensor = ctx.read.detach()
        return read

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            with torch.enable_grad():
                # Passing `grad` as `grad_outputs` would make torch import sympy.
                weighted = (ctx.read * grad).sum()
            return (*torch.autograd.grad(weighted, ctx.inside, retain_graph=True), None)
        q, k, v, mask = ctx.saved_tensors
        shares = _shares(q, k, mask)
        of_shares = grad @ v.mT
        of_scores = (
            shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        )
        return of_scores @ k, of_scores.mT @ q, shares.mT @ grad, None
