"""Families of environments to train in and to roll out: batched in torch, and of gymnasium."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction
from jaxtyping import Bool, Float
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from weightloom.apps.rl.envs.batched import BatchedEnv
from weightloom.apps.rl.envs.context import ContextFamily, family_of
from weightloom.apps.rl.envs.contextual import ContextualEnv, make
from weightloom.apps.rl.envs.default_ranges import usual
from weightloom.apps.rl.envs.finite import check_finite
from weightloom.apps.rl.envs.gymnasium_env import KINDS
from weightloom.apps.rl.envs.maker import Maker, make_contextual
from weightloom.apps.rl.envs.physics import parameters_of
from weightloom.apps.rl.envs.vector import BatchedVecEnv, physical, spaces_of


class Rollouts(NamedTuple):
    """Episodes of a rollout, one row per context."""

    observations: Float[Tensor, "steps rows numbers"]
    """[context | state] before each step."""
    actions: Tensor
    """Action of each step, (steps, rows, ...)."""
    rewards: Float[Tensor, "steps rows"]
    """Reward of each step, 0 after the end of an episode."""
    alive: Bool[Tensor, "steps rows"]
    """True until the episode has ended, before each step."""
    states: Float[Tensor, "steps rows state"] | None = None
    """State before each step; None for environments of gymnasium."""

    def returns(self, steps: int | None = None) -> Float[Tensor, " rows"]:
        """Return the sum of rewards over the first ``steps``. Default: all."""
        return self.rewards[:steps].sum(0)


class Player(ABC):
    """Interface of a policy in a rollout."""

    @abstractmethod
    def begin(self, rows: int) -> None:
        """Reset for episodes in ``rows`` environments."""

    @abstractmethod
    def act(self, observations: Any, rewards: Any) -> Any:
        """Return an action for each row: numbers in [-1, 1], or indices.

        Args:
            observations: [context | state], (rows, numbers).
            rewards: Rewards of the last actions, (rows,).
        """


class World(ABC):
    """Interface of a family of environments: spaces, training environments and rollouts."""

    name: str
    """Name of the environment."""
    family: ContextFamily
    """Context parameters and their ranges."""
    observation_space: spaces.Box
    """Observations, [context | state]."""
    action_space: spaces.Space[Any]
    """Actions of agents: numbers in [-1, 1], or indices."""
    own_actions: spaces.Space[Any]
    """Actions of the environment, in its own units."""
    max_steps: int
    """Steps of an episode."""
    can_change: bool = True
    """The physics can change in mid-episode."""

    @property
    def state_dim(self) -> int:
        """Number of state variables in an observation."""
        return int(self.observation_space.shape[0]) - len(self.family.names)

    @abstractmethod
    def training(self, rows: int, seed: int) -> VecEnv:
        """Return ``rows`` training environments, with contexts from the training ranges."""

    @abstractmethod
    def rollout(
        self,
        player: Player,
        contexts: Float[Tensor, "rows parameters"],
        steps: int,
        seed: int,
        noise: float = 0.0,
        change: Float[Tensor, "rows parameters"] | None = None,
    ) -> Rollouts:
        """Run one episode in each context.

        Args:
            player: The policy.
            contexts: Context of each row.
            steps: Maximum number of steps. A registered time limit is ignored, one inside the
                environment is not.
            seed: Seed of initial states and of noise.
            noise: Standard deviation of Gaussian noise on the observed state.
            change: Contexts to change the physics to after half of ``max_steps``; the observed
                context stays the same.
        """


class BatchedWorld(World):
    """Family of a batched environment in torch.

    Args:
        env: The environment.
        family: Context parameters and their ranges.
    """

    def __init__(self, env: BatchedEnv, family: ContextFamily) -> None:
        self.env, self.family, self.name = env, family, env.name
        self.observation_space, self.action_space = spaces_of(env, family)
        limit, self.own_actions = env.action_limit, self.action_space
        if limit is not None:
            self.own_actions = spaces.Box(-limit, limit, (env.actions,), np.float32)
        self.max_steps = env.max_steps

    def training(self, rows: int, seed: int) -> VecEnv:
        """Return a vector environment that steps all rows by one tensor operation."""
        return BatchedVecEnv(self.env, self.family, rows, seed)

    @torch.no_grad()
    def rollout(
        self,
        player: Player,
        contexts: Tensor,
        steps: int,
        seed: int,
        noise: float = 0.0,
        change: Tensor | None = None,
    ) -> Rollouts:
        """Run one episode in each context, all rows together; see `World.rollout`.

        Raises:
            NonFiniteError: If a reward or a state is not finite.
        """
        generator = torch.Generator().manual_seed(seed)
        state = self.env.start(contexts, generator)
        told = self.family.normalise(contexts)
        alive = torch.ones(len(contexts), dtype=torch.bool)
        reward = torch.zeros(len(contexts))
        kept: list[tuple[Tensor, ...]] = []
        player.begin(len(contexts))
        for step in range(steps):
            truth = contexts if change is None or step < self.max_steps // 2 else change
            seen = self.env.observe(state, truth)
            seen = seen + noise * torch.randn(seen.shape, generator=generator)
            observed = torch.cat([told, seen], 1).float()
            action = torch.as_tensor(player.act(observed.numpy(), reward.numpy()))
            after = self.env.advance(state, physical(self.env, action), truth)
            check_finite(
                self.name, after.reward, after.state, truth, self.family.names, len(contexts)
            )
            reward = torch.where(alive, after.reward, 0.0)
            kept.append((observed, action, reward, alive, state))
            state, alive = after.state, alive & ~after.terminated
        return Rollouts(*(torch.stack(parts) for parts in zip(*kept, strict=True)))


class GymWorld(World):
    """Family of a gymnasium environment, with one copy per row.

    Args:
        env: Registered name, or a `Maker`.
        family: Context parameters and their ranges.

    Raises:
        ConfigError: If the environment cannot be created, or lacks a parameter of the family.
    """

    def __init__(self, env: str | Maker, family: ContextFamily) -> None:
        self.maker = Maker(env) if isinstance(env, str) else env
        self.name, self.family = self.maker.name, family
        self.constructed = self.maker.constructed(family)
        self.can_change = not self.constructed
        one = make_contextual(self.maker, family, self.constructed)
        assert isinstance(one.observation_space, spaces.Box)
        self.observation_space, self.action_space = one.observation_space, one.action_space
        self.own_actions = self.action_space
        if isinstance(one.env, RescaleAction):
            self.own_actions = one.env.env.action_space
        self.max_steps = self.maker.steps_of(one)
        self.rollout_rows: list[ContextualEnv] = []

    def training(self, rows: int, seed: int) -> VecEnv:
        """Return a vector environment that steps the rows one after the other."""
        env = DummyVecEnv(
            [lambda: Monitor(make_contextual(self.maker, self.family, self.constructed))] * rows
        )
        env.seed(seed)
        return env

    @torch.no_grad()
    def rollout(
        self,
        player: Player,
        contexts: Tensor,
        steps: int,
        seed: int,
        noise: float = 0.0,
        change: Tensor | None = None,
    ) -> Rollouts:
        """Run one copy of the environment per context; see `World.rollout`.

        Raises:
            NonFiniteError: If a reward or a state is not finite.
        """
        generator = np.random.default_rng(seed)
        while len(self.rollout_rows) < len(contexts):
            self.rollout_rows.append(
                make_contextual(self.maker, self.family, self.constructed, endless=True)
            )
        rows = self.rollout_rows[: len(contexts)]
        observed = _reset_all(rows, contexts, seed)
        alive, reward = np.ones(len(rows), bool), np.zeros(len(rows), np.float32)
        kept: list[tuple[Any, ...]] = []
        told = len(self.family.names)
        player.begin(len(rows))
        for step in range(steps):
            if change is not None and step == self.max_steps // 2:
                _change_all(rows, change)
            shown = observed.copy()
            shown[:, told:] += noise * generator.standard_normal(shown[:, told:].shape)
            action = np.asarray(player.act(shown, reward))
            kept.append((shown, action, reward := np.zeros(len(rows), np.float32), alive.copy()))
            observed = observed.copy()
            for row in np.flatnonzero(alive):
                observed[row], reward[row], ended, cut, _ = rows[row].step(action[row])
                alive[row] = not (ended or cut)
            if not alive.any():
                break
        return Rollouts(*[torch.as_tensor(np.stack(parts)) for parts in zip(*kept, strict=True)])


def _reset_all(rows: Sequence[ContextualEnv], contexts: Tensor, seed: int) -> Any:
    """Start an episode in each context; return the observations."""
    seen = []
    for number, (env, context) in enumerate(zip(rows, contexts.tolist(), strict=True)):
        env.given = context
        seen.append(env.reset(seed=seed + number)[0])
    return np.stack(seen)


def _change_all(rows: Sequence[ContextualEnv], contexts: Tensor) -> None:
    """Change the physics of each row to another context."""
    for env, context in zip(rows, contexts.tolist(), strict=True):
        env.change(context)


def world_of(name: str, vary: Sequence[str] = (), held_out: Sequence[str] = ()) -> World:
    """Return the family of an environment, batched or registered with gymnasium.

    Args:
        name: Name of the environment, as in `--env`.
        vary: Training ranges, e.g. ``"gravity=8:12"``. Default: the preset ranges.
        held_out: Held-out ranges, likewise.

    Raises:
        ConfigError: If the environment is unknown, or lacks a parameter of a range.

    Example:
        >>> world_of("gyre").family.names
        ('amplitude', 'frequency')
    """
    if name in KINDS:
        env = KINDS[name]()
        return BatchedWorld(
            env, family_of(usual(name), vary, held_out, env.parameters, complete=True)
        )
    maker = Maker(name)
    allowed = dict.fromkeys([*parameters_of(make(name)), *maker.arguments])
    return GymWorld(maker, family_of(usual(name), vary, held_out, list(allowed)))
