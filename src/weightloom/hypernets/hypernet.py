"""The interface that every hypernetwork keeps."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError, ShapeError
from weightloom.params import Params

Rows = tuple[Tensor, slice]
"""An own parameter, and some of its rows, the numbers along its first axis; ``slice(None)`` is all
of it."""


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

    def written_by(self) -> dict[str, list[Rows]]:
        """Name by name, the own parameters and rows that write this parameter of the base and no other.

        Every name of the base is there: of what is not generated, the base's own parameter writes
        it. An own parameter that stands under no name, such as one of a trunk, has a part in all
        that is generated. Training in turns (`weightloom.training.Turn`) asks for it.

        Raises:
            ConfigError: If own parameters cannot be told apart by what they write.
        """
        raise ConfigError(
            f"{type(self).__name__} cannot say which rows of its own parameters write which "
            "parameter of the base. `MLPHyperNetwork` and `StaticHyperNetwork` can: they have rows "
            "for each. Take one of these, or give each player a hypernetwork of its own and name "
            "that in `parameters`, as in "
            '`Turn("critic", loss, parameters=model.critic_hyper)`.'
        )


def check_condition(
    condition: Tensor, condition_dim: int, like: Tensor, axes: str = "tasks"
) -> None:
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
            f"{like.dtype} on {like.device}. Numbers meet only in one dtype, on one device. Pass "
            f"`condition.to({str(like.device)!r}, {like.dtype})`, or move the hypernetwork."
        )
