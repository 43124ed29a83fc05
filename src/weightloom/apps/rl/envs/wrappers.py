"""Wrapper between environment and algorithm: scaled rewards, checked actions, memory inputs."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor

from weightloom.errors import NonFiniteError


def memory_width(space: spaces.Space[Any]) -> int:
    """Return the width of a memory's inputs after the state: last action, reward, episode start."""
    return (
        int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or (1,)))
    ) + 2


def memory_columns(space: spaces.Space[Any], actions: Any, rewards: Any, starts: Any) -> Any:
    """Return last action, last reward and episode start, float32 (rows, `memory_width`).

    Discrete actions are one-hot. In the first step of an episode action and reward are 0.

    Args:
        space: Action space.
        actions: Last actions, (rows,) or (rows, actions).
        rewards: Last rewards, (rows,).
        starts: 1 where an episode begins, else 0, (rows,).
    """
    if isinstance(space, spaces.Discrete):
        actions = np.eye(int(space.n), dtype=np.float32)[np.asarray(actions).reshape(-1)]
    going = 1.0 - np.asarray(starts, dtype=np.float32)[:, None]
    columns = [going * actions, going * np.asarray(rewards, dtype=np.float32)[:, None], 1.0 - going]
    return np.concatenate(columns, 1).astype(np.float32)


class Between(VecEnvWrapper):
    """Wrapper that scales rewards, refuses non-finite actions and adds the inputs of a memory.

    Args:
        inner: The environment.
        reward_scale: Factor on rewards.
        memory: Append to observations the last action, the last reward and a flag for the first
            step of an episode, as `memory_columns` builds them.

    Raises:
        NonFiniteError: In a step whose actions are not finite.
    """

    def __init__(self, inner: VecEnv, reward_scale: float, memory: bool) -> None:
        self.reward_scale, self.memory = reward_scale, memory
        space = inner.observation_space
        if memory:
            more = np.full(memory_width(inner.action_space), np.inf, np.float32)
            assert isinstance(space, spaces.Box)
            space = spaces.Box(
                np.concatenate([space.low, -more]),
                np.concatenate([space.high, more]),
                dtype=np.float32,
            )
        super().__init__(inner, observation_space=space)
        self.actions: Any = None

    def reset(self) -> Any:
        """Start an episode in every row."""
        seen = self.venv.reset()
        space, rows = self.action_space, self.num_envs
        none = (
            np.zeros(rows, np.int64)
            if isinstance(space, spaces.Discrete)
            else np.zeros((rows, *(space.shape or ())))
        )
        return self._with(seen, none, np.zeros(rows), np.ones(rows))

    def step_async(self, actions: Any) -> None:
        """Pass the actions on.

        Raises:
            NonFiniteError: If an action is not finite.
        """
        if not np.isfinite(actions).all():
            raise NonFiniteError(
                "The policy gave an action that is not finite: its parameters have diverged. The "
                "learning rate or the rewards were too large. Lower `--learning-rate` or "
                "`--reward-scale`, and start another run."
            )
        self.actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
        """Step all rows; return observations, scaled rewards, ends of episodes and infos."""
        seen, rewards, ended, infos = self.venv.step_wait()
        if self.memory:
            last = memory_columns(
                self.action_space, self.actions, self.reward_scale * rewards, np.zeros(len(ended))
            )
            for row in np.flatnonzero(ended):
                infos[row]["terminal_observation"] = np.concatenate(
                    [infos[row]["terminal_observation"], last[row]]
                )
        return (
            self._with(seen, self.actions, self.reward_scale * rewards, ended),
            self.reward_scale * rewards,
            ended,
            infos,
        )

    def _with(self, seen: Any, actions: Any, rewards: Any, starts: Any) -> Any:
        if not self.memory:
            return seen
        return np.concatenate(
            [seen, memory_columns(self.action_space, actions, rewards, starts)], 1
        )


def kept_of(env: Any) -> dict[str, Tensor] | None:
    """Return the state of an environment for a checkpoint; None for environments of gymnasium."""
    inner = env.venv if isinstance(env, Between) else env
    return inner.kept() if hasattr(inner, "kept") else None


def restore(env: Any, tensors: dict[str, Tensor]) -> None:
    """Restore an environment to a state that `kept_of` returned."""
    inner: Any = env.venv if isinstance(env, Between) else env
    inner.restore(tensors)
