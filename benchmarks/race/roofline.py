"""Roofline of a step: its operations per second over those of one large matrix product.

In:   a step, and its seconds.
Out:  its floating-point operations; the rate of a matrix product; the step's share of that rate.
Independent of the step's contents.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.race.timing import Clock, alternate

SIDE = 1024
"""Side of the square matrices whose product sets the rate."""


def flops(step: Callable[[], object]) -> int:
    """Count floating-point operations of one call: matrix products, convolutions, attention.

    Additions, activations, norms and elementwise products are left out, as is usual: memory limits
    them. Torch counts the backward pass of a grouped convolution as if it were not grouped,
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
    """Return operations per second of a product of two 1024x1024 float32 matrices.

    The time is the median over the rounds.

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
    """Return ``operations / seconds`` over ``rate``.

    Example:
        >>> share(operations=300, seconds=2.0, rate=600.0)
        0.25
    """
    return operations / seconds / rate


def _attention_on_cpu() -> dict[Any, Any]:
    """Return operation counts of CPU attention kernels, which torch's table lacks."""

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        return sdpa_flop_count(query, key, value)

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        return sdpa_backward_flop_count(gradient, query, key, value)

    ops = torch.ops.aten
    return {
        ops._scaled_dot_product_flash_attention_for_cpu: forward,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
