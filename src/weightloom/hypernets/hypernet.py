"""The interface that every hypernetwork keeps."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from weightloom.errors import ShapeError
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


def check_condition(condition: Tensor, condition_dim: int, axes: str = "tasks") -> None:
    """Raise a `ShapeError` unless ``condition`` is ``(*axes, condition_dim)``; ``axes`` names them, comma-separated."""
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
