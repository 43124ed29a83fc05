"""Watches a first run for what must not happen in any run: the base's own values where generated ones belong."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from weightloom.errors import BatchingError


class Guard(TorchFunctionMode):
    """While active, refuse a replaced value of the base that reaches any function of torch, and re-entrant checkpoints.

    Args:
        name: How the base is called in messages.
        replaced: Own values that others stand for in this run, by id, with their names.
    """

    def __init__(self, name: str, replaced: Mapping[int, str]) -> None:
        super().__init__()
        self.name, self.replaced = name, replaced
        self.with_gradients = torch.is_grad_enabled()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Check the arguments, then run the function."""
        kwargs = kwargs or {}
        check_arguments(self.name, self.replaced, args, kwargs)
        if self.with_gradients and not torch.is_grad_enabled() and _in_checkpoint():
            raise BatchingError(
                f"{self.name} uses `torch.utils.checkpoint` with `use_reentrant=True`. Its backward pass runs through "
                "whatever made the generated parameters, once for every block, and loses gradients. Pass "
                "`use_reentrant=False`; for a language model: "
                '`model.gradient_checkpointing_enable({"use_reentrant": False})`.'
            )
        return func(*args, **kwargs)


def check_arguments(name: str, replaced: Mapping[int, str], args: Any, kwargs: Any) -> None:
    """Raise if one of the arguments is a value that was replaced."""
    for value in (*args, *kwargs.values()):
        several = value if isinstance(value, list | tuple) else (value,)
        for one in several:
            if isinstance(one, Tensor) and id(one) in replaced:
                raise BatchingError(
                    f"{name} uses its own {replaced[id(one)]!r}, which is generated for each task, from a place that "
                    "cannot be found: a global, or an object that hides it. Every task would get the base's own "
                    f"value. Reach it through the module, as `self.{replaced[id(one)]}`, or do not generate it."
                )


def _in_checkpoint() -> bool:
    frame = sys._getframe(2)
    code = CheckpointFunction.forward.__code__
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
