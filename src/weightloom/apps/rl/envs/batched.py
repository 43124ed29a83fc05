"""Environments in torch: all contexts are stepped by one tensor operation."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

States = Float[Tensor, "rows state"]
Contexts = Float[Tensor, "rows parameters"]


class Step(NamedTuple):
    """What one step gives."""

    state: States
    reward: Float[Tensor, " rows"]
    terminated: Bool[Tensor, " rows"]


class BatchedEnv(ABC):
    """A family of environments as pure functions.

    State, action and context in, next state and reward out.

    Time limits are not part of it: whoever steps it ends an episode after ``max_steps`` steps.
    """

    name: str
    """As in `--env`."""
    parameters: tuple[str, ...]
    """Names of a context's numbers."""
    state_dim: int
    """Numbers that say all of where a row stands."""
    observation_dim: int
    """Numbers that an agent sees, the context left aside."""
    actions: int
    """How many there are where they are discrete, else how many numbers an action has."""
    action_limit: float | None
    """Largest absolute number of an action; None where actions are discrete."""
    max_steps: int
    """Steps of an episode."""

    @abstractmethod
    def start(self, context: Contexts, generator: torch.Generator) -> States:
        """Draw a state to start from for each row."""

    @abstractmethod
    def advance(self, state: States, action: Tensor, context: Contexts) -> Step:
        """Take a step.

        Args:
            state: Where each row stands.
            action: (rows, actions) numbers, or (rows,) indices where actions are discrete.
            context: The physics of each row.
        """

    def observe(self, state: States, context: Contexts) -> Float[Tensor, "rows observation"]:
        """What an agent sees of a state, without the context."""
        return state

    def draw(self, states: Float[Tensor, "steps state"]) -> tuple[Tensor, list[str]] | None:
        """Return a path in a plane, (steps, 2), and what its axes are; None where there is none."""
        return None
