"""How close a step comes to what this processor does at best: one large matrix product.

In:   a step, and the seconds it takes.
Out:  its floating-point operations; the rate of a matrix product; the share of that rate that the
      step reaches.
Knows nothing of what the step does.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.race.timing import Clock, alternate

SIDE = 1024
"""Rows and columns of the matrices whose product sets the rate."""


def flops(step: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products, convolutions and attention in one call.

    Additions, activations, norms and products number by number are left out, as is usual: they wait
    for memory. Torch counts the backward pass of a grouped convolution as if it were not grouped,
    so count a step that has none.

    Args:
        step: Called once.

    Example:
        >>> flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5
        True
    """
    with FlopCounterMode(display=False, custom_mapping=_attention_on_cpu()) as counter:
        step()
    return int(counter.get_total_flops())


def product_rate(clock: Clock, rounds: int = 5) -> float:
    """Return the operations a second of a product of two float32 matrices, 1024 by 1024, the median of some rounds.

    Args:
        clock: Returns seconds.
        rounds: Timed products.
    """
    left, right, out = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE), torch.empty(SIDE, SIDE)
    times = alternate(
        {"product": lambda: torch.mm(left, right, out=out)}, rounds, warmup=2, clock=clock
    )
    return 2 * SIDE**3 / median(times["product"])


def share(operations: int, seconds: float, rate: float) -> float:
    """Return the share of ``rate`` that so many operations in so many seconds are.

    Example:
        >>> share(operations=300, seconds=2.0, rate=600.0)
        0.25
    """
    return operations / seconds / rate


def _attention_on_cpu() -> dict[Any, Any]:
    """Attention has kernels of its own on a CPU, which torch's table of counts lacks."""

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        return sdpa_flop_count(query, key, value)

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        return sdpa_backward_flop_count(gradient, query, key, value)

    ops = torch.ops.aten
    return {
        ops._scaled_dot_product_flash_attention_for_cpu: forward,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
