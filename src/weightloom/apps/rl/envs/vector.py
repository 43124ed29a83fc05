"""Batched environments as vector environments of Stable-Baselines3, one context per row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from weightloom.apps.rl.envs.batched import BatchedEnv
from weightloom.apps.rl.envs.context import ContextFamily
from weightloom.apps.rl.envs.finite import check_finite

FAR = 1e6
"""Bound of the observation space, larger than any observation."""


def spaces_of(env: BatchedEnv, family: ContextFamily) -> tuple[spaces.Box, spaces.Space[Any]]:
    """Return the observation space, [context | state], and the action space.

    Actions are numbers in [-1, 1], or indices.
    """
    width = len(family.names) + env.observation_dim
    seen = spaces.Box(-FAR, FAR, (width,), np.float32)
    if env.action_limit is None:
        return seen, spaces.Discrete(env.actions)
    return seen, spaces.Box(-1.0, 1.0, (env.actions,), np.float32)


def physical(env: BatchedEnv, action: Tensor) -> Tensor:
    """Scale actions from [-1, 1] to the environment's units; indices stay unchanged."""
    return action if env.action_limit is None else env.action_limit * action.clamp(-1.0, 1.0)


class BatchedVecEnv(VecEnv):
    """Vector environment that steps all rows by one tensor operation; each episode draws a context.

    Args:
        env: The environment.
        family: Context parameters and their ranges.
        rows: Number of parallel episodes.
        seed: Seed of contexts and initial states.
    """

    def __init__(self, env: BatchedEnv, family: ContextFamily, rows: int, seed: int) -> None:
        self.env, self.family = env, family
        self.generator = torch.Generator().manual_seed(seed)
        self.render_mode = None
        super().__init__(rows, *spaces_of(env, family))
        self.context = torch.zeros(rows, len(family.names))
        self.state = torch.zeros(rows, env.state_dim)
        self.steps = torch.zeros(rows, dtype=torch.long)
        self.returns = torch.zeros(rows, dtype=torch.float64)
        self.episodes = 0
        self._actions: Any = None

    def reset(self) -> Any:
        """Start an episode in every row; return the observations."""
        self._start(torch.arange(self.num_envs))
        self.episodes = self.num_envs
        return self._observe().numpy()

    def step_async(self, actions: Any) -> None:
        """Store the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
        """Step all rows; a row whose episode ended starts another.

        Raises:
            NonFiniteError: If a reward or a state is not finite.
        """
        step = self.env.advance(
            self.state, physical(self.env, torch.as_tensor(self._actions)), self.context
        )
        check_finite(
            self.env.name, step.reward, step.state, self.context, self.family.names, self.episodes
        )
        self.state, self.steps = step.state, self.steps + 1
        self.returns += step.reward
        limit = self.steps >= self.env.max_steps
        ended = step.terminated | limit
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        rows = ended.nonzero().flatten()
        if len(rows):
            last = self._observe().numpy()
            for row in rows.tolist():
                infos[row] = {
                    "terminal_observation": last[row].copy(),
                    "TimeLimit.truncated": bool(limit[row] & ~step.terminated[row]),
                    "episode": {"r": float(self.returns[row]), "l": int(self.steps[row]), "t": 0.0},
                }
            self._start(rows)
            self.episodes += len(rows)
        return self._observe().numpy(), step.reward.float().numpy(), ended.numpy(), infos

    def kept(self) -> dict[str, Tensor]:
        """Return the full state, random generator included, for a checkpoint."""
        return {
            "context": self.context,
            "state": self.state,
            "steps": self.steps,
            "returns": self.returns,
            "episodes": torch.tensor(self.episodes),
            "generator": self.generator.get_state(),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore a state that `kept` returned."""
        self.context, self.state = tensors["context"].clone(), tensors["state"].clone()
        self.steps, self.returns = tensors["steps"].clone(), tensors["returns"].clone()
        self.episodes = int(tensors["episodes"])
        self.generator.set_state(tensors["generator"])

    def _start(self, rows: Tensor) -> None:
        self.context[rows] = self.family.sample(len(rows), self.generator)
        self.state[rows] = self.env.start(self.context[rows], self.generator)
        self.steps[rows], self.returns[rows] = 0, 0.0

    def _observe(self) -> Tensor:
        seen = self.env.observe(self.state, self.context)
        return torch.cat([self.family.normalise(self.context), seen], 1).float()

    def close(self) -> None:
        """Do nothing: no resource is held."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute once per row; all rows share it."""
        return [getattr(self, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute, which all rows share."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method once; return its result once per row."""
        return [getattr(self, method_name)(*args, **kwargs)] * len(self._rows(indices))

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return False for every row."""
        return [False] * len(self._rows(indices))

    def _rows(self, indices: Any) -> Sequence[int]:
        return list(self._get_indices(indices))
