"""Interface of environments in torch that step many contexts by one tensor operation."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

States = Float[Tensor, "rows state"]
"""State of each row."""
Contexts = Float[Tensor, "rows parameters"]
"""Context of each row."""


class Step(NamedTuple):
    """Result of one step: next state, reward, and end of the episode, one row per context."""

    state: States
    reward: Float[Tensor, " rows"]
    terminated: Bool[Tensor, " rows"]


class BatchedEnv(ABC):
    """Family of environments as pure functions from state, action and context to the next state.

    Subclasses set the attributes below and implement `start` and `advance`. The caller ends an
    episode after ``max_steps`` steps.
    """

    name: str
    """Name of the environment, as in `--env`."""
    parameters: tuple[str, ...]
    """Names of the context parameters."""
    state_dim: int
    """Number of state variables per row."""
    observation_dim: int
    """Number of observed variables, without the context."""
    actions: int
    """Number of discrete actions, or of numbers in a continuous action."""
    action_limit: float | None
    """Maximum absolute value of a continuous action; None for discrete actions."""
    max_steps: int
    """Steps of an episode."""

    @abstractmethod
    def start(self, context: Contexts, generator: torch.Generator) -> States:
        """Draw the initial state of each row, (rows, state).

        Args:
            context: Context of each row, (rows, parameters).
            generator: Random generator.
        """

    @abstractmethod
    def advance(self, state: States, action: Tensor, context: Contexts) -> Step:
        """Take a step.

        Args:
            state: State of each row, (rows, state).
            action: Action of each row, (rows, actions) in the environment's units, or (rows,)
                indices.
            context: Context of each row, (rows, parameters).
        """

    def observe(self, state: States, context: Contexts) -> Float[Tensor, "rows observation"]:
        """Return the observation of a state, without the context. Default: the state."""
        return state

    def draw(self, states: Float[Tensor, "steps state"]) -> tuple[Tensor, list[str]] | None:
        """Return a path in a plane, (steps, 2), and the names of its axes, for the report.

        Default: None, for no path.

        Args:
            states: States of one episode, (steps, state).
        """
        return None
