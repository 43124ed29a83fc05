"""The interface that every hypernetwork keeps."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError, ShapeError
from weightloom.params import Params


class HyperNetwork(nn.Module, ABC):
    """A condition per task in, Params out."""

    condition_dim: int

    @abstractmethod
    def forward(self, condition: Tensor) -> Params:
        """Generate parameters for each task.

        Args:
            condition: What is known of each task, ``(tasks, ..., condition_dim)``.

        Raises:
            ShapeError: If the condition is not of the width this hypernetwork was built for.
        """


def check_condition(condition: Tensor, condition_dim: int, like: Tensor, axes: str = "tasks") -> None:
    """Raise unless a hypernetwork can read ``condition``.

    Args:
        condition: What was passed.
        condition_dim: The width that it should have.
        like: An own parameter of the hypernetwork, whose device and dtype it should have.
        axes: Names of the axes in front, comma-separated.

    Raises:
        ShapeError: If it is not ``(*axes, condition_dim)``.
        ConfigError: If it is of another device or dtype.
    """
    expected = axes.count(",") + 2
    if condition.ndim != expected or condition.shape[-1] != condition_dim:
        if condition.ndim == expected:
            advice = (
                f"Build the hypernetwork with `condition_dim={condition.shape[-1]}`, or the encoder with "
                f"`condition_dim={condition_dim}`."
            )
        elif condition.ndim == expected - 1 and condition.shape[-1] == condition_dim:
            advice = "Pass `condition[None]` for one task."
        else:
            advice = f"Pass {condition_dim} numbers for each of ({axes})."
        raise ShapeError(
            f"`condition` has shape {tuple(condition.shape)}. This hypernetwork reads ({axes}, {condition_dim}). "
            f"{advice}"
        )
    autocast = torch.is_autocast_enabled(like.device.type) and condition.is_floating_point()
    if condition.device != like.device or (condition.dtype != like.dtype and not autocast):
        raise ConfigError(
            f"`condition` is {condition.dtype} on {condition.device} but this hypernetwork is {like.dtype} on "
            f"{like.device}. Numbers meet only in one dtype, on one device. Pass "
            f"`condition.to({str(like.device)!r}, {like.dtype})`, or move the hypernetwork."
        )
