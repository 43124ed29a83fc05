"""Families without their environment, enough to rebuild a saved agent and let it act."""

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
    """Family that holds spaces and context ranges, and cannot be stepped.

    Args:
        name: Name of the environment.
        family: Context parameters and their ranges.
        state_dim: Number of state variables in an observation.
        own_actions: Action space of the environment.
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
        """Return a vector environment with spaces alone; a reset or step raises `ConfigError`."""
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
        """Raise, for lack of an environment.

        Raises:
            ConfigError: Always.
        """
        raise self.absent()

    def absent(self) -> ConfigError:
        """Return the error for a call that needs the environment."""
        return ConfigError(
            f"`{self.name}` cannot be stepped: the agent was loaded without its environment. "
            "`act`, `value` and `specialise` work without it. To train, build the "
            "family by `rl.family`."
        )


class _Absent(gymnasium.Env[Any, Any]):
    """Environment with spaces alone; a reset or step raises."""

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
    """Convert an action space to JSON values.

    The number of actions for Discrete, [low, high] for Box.

    Example:
        >>> plain_space(spaces.Discrete(3)), plain_space(spaces.Box(-2.0, 2.0, (1,)))
        (3, [[-2.0], [2.0]])
    """
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    assert isinstance(space, spaces.Box)
    return [space.low.tolist(), space.high.tolist()]


def space_of(plain: Any) -> spaces.Space[Any]:
    """Build an action space from the JSON values of `plain_space`."""
    if isinstance(plain, int):
        return spaces.Discrete(plain)
    low, high = (np.asarray(limit, np.float32) for limit in plain)
    return spaces.Box(low, high, dtype=np.float32)
