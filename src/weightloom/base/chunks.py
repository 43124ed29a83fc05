"""Run a function on chunks of tasks, so that memory does not grow with the number of tasks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from weightloom.errors import ConfigError, ShapeError


def in_chunks(function: Callable[..., Any], *inputs: Any, chunk_size: int) -> Any:
    """Run ``function`` on ``chunk_size`` tasks at a time; join its results along the tasks axis.

    If ``function`` also generates the parameters, no more than a chunk of them ever exists. With
    gradients, intermediate results of a chunk are computed again in the backward pass instead of
    kept, so that the memory of training is bounded too.

    Args:
        function: Takes a chunk of every input and returns tensors, in any tree, with a leading
            tasks axis.
        *inputs: Tensors, or trees of them such as Params, with a leading tasks axis.
        chunk_size: Number of tasks at a time.

    Returns:
        The results of all tasks, in the tree that ``function`` returns.

    Raises:
        ConfigError: If ``chunk_size`` is below 1.
        ShapeError: If the inputs disagree on the number of tasks.

    Example:
        >>> from weightloom.base import apply_per_task
        >>> base = torch.nn.Linear(3, 2)
        >>> generate = lambda condition: {"bias": condition @ torch.ones(4, 2)}
        >>> run = lambda condition, x: apply_per_task(base, generate(condition), x)
        >>> in_chunks(run, torch.randn(100, 4), torch.randn(100, 7, 3), chunk_size=32).shape
        torch.Size([100, 7, 2])

    Source:
        Chen et al., "Training deep nets with sublinear memory cost" (2016).
    """
    if chunk_size < 1:
        raise ConfigError(
            f"`chunk_size={chunk_size}` is below 1. At least one task runs at a time. Pass 1 or "
            "more."
        )
    counts = {len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)}
    if len(counts) != 1:
        raise ShapeError(
            f"The inputs hold {sorted(counts)} tasks. Every one is cut along its first axis, "
            "tasks. Pass inputs of the same number of tasks, and use tensors that all tasks share "
            "inside the function."
        )
    tasks = counts.pop()
    parts = []
    for start in range(0, max(tasks, 1), chunk_size):
        chunk = tree_map(
            lambda leaf, at=start: leaf[at : at + chunk_size] if isinstance(leaf, Tensor) else leaf,
            inputs,
        )
        if torch.is_grad_enabled() and tasks > chunk_size:
            parts.append(checkpoint(function, *chunk, use_reentrant=False))
        else:
            parts.append(function(*chunk))
    return parts[0] if len(parts) == 1 else tree_map(lambda *leaves: torch.cat(leaves), *parts)
