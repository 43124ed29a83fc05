"""Interface of all hypernetworks."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError, ShapeError
from weightloom.params import Params

Rows = tuple[Tensor, slice]
"""A parameter of a hypernetwork, and a slice along its first axis; ``slice(None)`` selects all of
it."""


class HyperNetwork(nn.Module, ABC):
    """Abstract hypernetwork: a condition per task in, Params out."""

    condition_dim: int
    """Width of a condition."""

    @abstractmethod
    def forward(self, condition: Tensor) -> Params:
        """Generate parameters for each task.

        Args:
            condition: Description of each task, ``(tasks, ..., condition_dim)``.

        Returns:
            The generated parameters by name, each ``(tasks, *shape)``.

        Raises:
            ShapeError: If the width of the condition is not ``condition_dim``.
        """

    def written_by(self) -> dict[str, list[Rows]]:
        """Rows of own parameters that write one parameter of the base only, by its name.

        `weightloom.training.Turn` uses them to train one part of the base at a time. Every name of
        the base is a key; a parameter that is not generated is written by the base's own. An own
        parameter under no key, such as one of a trunk, contributes to all generated parameters.

        Raises:
            ConfigError: If this kind of hypernetwork has no such rows.
        """
        raise ConfigError(
            f"{type(self).__name__} has no rows of its own parameters that write one parameter of "
            "the base only. `MLPHyperNetwork` and `StaticHyperNetwork` have such rows. Use one of "
            "these, or give each player a separate hypernetwork and name that in `parameters`, as "
            "in "
            '`Turn("critic", loss, parameters=model.critic_hyper)`.'
        )


def check_condition(
    condition: Tensor, condition_dim: int, like: Tensor, axes: str = "tasks"
) -> None:
    """Check shape, device and dtype of a condition.

    Args:
        condition: The condition that was passed.
        condition_dim: Its required width.
        like: An own parameter of the hypernetwork, which has the required device and dtype.
        axes: Names of the leading axes, separated by commas.

    Raises:
        ShapeError: If the condition is not ``(*axes, condition_dim)``.
        ConfigError: If its device differs, or its dtype (allowed under autocast).
    """
    expected = axes.count(",") + 2
    if condition.ndim != expected or condition.shape[-1] != condition_dim:
        if condition.ndim == expected:
            advice = (
                f"Build the hypernetwork with `condition_dim={condition.shape[-1]}`, or the "
                f"encoder with `condition_dim={condition_dim}`."
            )
        elif condition.ndim == expected - 1 and condition.shape[-1] == condition_dim:
            advice = "Pass `condition[None]` for one task."
        else:
            advice = f"Pass {condition_dim} numbers for each of ({axes})."
        raise ShapeError(
            f"`condition` has shape {tuple(condition.shape)}. This hypernetwork reads ({axes}, "
            f"{condition_dim}). {advice}"
        )
    autocast = torch.is_autocast_enabled(like.device.type) and condition.is_floating_point()
    if condition.device != like.device or (condition.dtype != like.dtype and not autocast):
        raise ConfigError(
            f"`condition` is {condition.dtype} on {condition.device} but this hypernetwork is "
            f"{like.dtype} on {like.device}. Both must have one dtype and one device. Pass "
            f"`condition.to({str(like.device)!r}, {like.dtype})`, or move the hypernetwork."
        )
