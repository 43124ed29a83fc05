"""A family whose environment is not at hand.

Enough to build an agent that was trained in it, and to let it act.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from weightloom.apps.rl.envs.context import ContextFamily
from weightloom.apps.rl.envs.worlds import Player, Rollouts, World
from weightloom.errors import ConfigError


class SpacesOnly(World):
    """What an agent knows of the family that it was trained in.

    Args:
        name: As the environment was called.
        family: What varied.
        state_dim: Numbers of an observation, the context left aside.
        own_actions: Actions as the environment takes them.
        max_steps: Steps of an episode.
    """

    def __init__(
        self,
        name: str,
        family: ContextFamily,
        state_dim: int,
        own_actions: spaces.Space[Any],
        max_steps: int,
    ) -> None:
        self.name, self.family, self.own_actions, self.max_steps = (
            name,
            family,
            own_actions,
            max_steps,
        )
        self.observation_space = spaces.Box(
            -np.inf, np.inf, (len(family.names) + state_dim,), np.float32
        )
        self.action_space = own_actions
        if isinstance(own_actions, spaces.Box):
            self.action_space = spaces.Box(-1.0, 1.0, own_actions.shape, np.float32)

    def training(self, rows: int, seed: int) -> VecEnv:
        """Return rows that say what observations and actions are; none can be stepped."""
        return DummyVecEnv([lambda: _Absent(self)] * rows)

    def rollout(
        self,
        player: Player,
        contexts: Tensor,
        steps: int,
        seed: int,
        noise: float = 0.0,
        change: Tensor | None = None,
    ) -> Rollouts:
        """Refuse.

        Raises:
            ConfigError: Always.
        """
        raise self.absent()

    def absent(self) -> ConfigError:
        """Say that the environment is not at hand."""
        return ConfigError(
            f"`{self.name}` cannot be stepped: the agent was loaded without its environment. It "
            "can act, value and be specialised. To train, build the family anew by `rl.family`."
        )


class _Absent(gymnasium.Env[Any, Any]):
    """Spaces alone."""

    def __init__(self, world: SpacesOnly) -> None:
        self.observation_space, self.action_space, self.world = (
            world.observation_space,
            world.action_space,
            world,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        raise self.world.absent()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        raise self.world.absent()


def plain_space(space: spaces.Space[Any]) -> Any:
    """Describe actions by plain JSON values.

    Limits of numbers, or how many there are to choose from.

    Example:
        >>> plain_space(spaces.Discrete(3)), plain_space(spaces.Box(-2.0, 2.0, (1,)))
        (3, [[-2.0], [2.0]])
    """
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    assert isinstance(space, spaces.Box)
    return [space.low.tolist(), space.high.tolist()]


def space_of(plain: Any) -> spaces.Space[Any]:
    """Undo `plain_space`."""
    if isinstance(plain, int):
        return spaces.Discrete(plain)
    low, high = (np.asarray(limit, np.float32) for limit in plain)
    return spaces.Box(low, high, dtype=np.float32)
