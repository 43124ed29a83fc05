"""One way to train in and to roll out any family of environments.

Batched ones in torch, and gymnasium's.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
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
    """Episodes side by side, one row per context."""

    observations: Float[Tensor, "steps rows numbers"]
    """[context | state] before each step."""
    actions: Tensor
    """(steps, rows, ...)."""
    rewards: Float[Tensor, "steps rows"]
    """Zero once an episode has ended."""
    alive: Bool[Tensor, "steps rows"]
    """Whether the episode was still going on before the step."""
    states: Float[Tensor, "steps rows state"] | None = None
    """Where a batched environment stood."""

    def returns(self, steps: int | None = None) -> Float[Tensor, " rows"]:
        """Sum of rewards of the first steps."""
        return self.rewards[:steps].sum(0)


class Player(ABC):
    """Whoever acts in a rollout."""

    @abstractmethod
    def begin(self, rows: int) -> None:
        """Forget everything; as many rows follow."""

    @abstractmethod
    def act(self, observations: Any, rewards: Any) -> Any:
        """Choose an action for each row: numbers within [-1, 1], or indices.

        Args:
            observations: (rows, numbers), [context | state].
            rewards: (rows,), what the last actions gave.
        """


class World(ABC):
    """A family of environments to train in and to roll out."""

    name: str
    family: ContextFamily
    observation_space: spaces.Box
    action_space: spaces.Space[Any]
    """Actions as agents choose them: numbers within [-1, 1], or indices."""
    own_actions: spaces.Space[Any]
    """Actions as the environment takes them."""
    max_steps: int
    can_change: bool = True
    """Physics can be changed in mid-episode."""

    @property
    def state_dim(self) -> int:
        """Numbers of an observation behind the context."""
        return int(self.observation_space.shape[0]) - len(self.family.names)

    @abstractmethod
    def training(self, rows: int, seed: int) -> VecEnv:
        """Return rows of episodes that draw contexts from the training ranges."""

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
        """Run one episode in each context, all from starts that follow from the seed.

        Args:
            player: Who acts.
            contexts: One for each row.
            steps: How many; the time limit that an environment was registered with is not heeded,
                but one that it keeps itself is.
            seed: Of where episodes start, and of noise.
            noise: Standard deviation of what is added to each number of the state that is seen.
            change: Contexts that the physics change to in the middle of the episode, while those
                seen stay.
        """


class BatchedWorld(World):
    """A batched environment in torch.

    Args:
        env: The environment.
        family: What varies.
    """

    def __init__(self, env: BatchedEnv, family: ContextFamily) -> None:
        self.env, self.family, self.name = env, family, env.name
        self.observation_space, self.action_space = spaces_of(env, family)
        limit, self.own_actions = env.action_limit, self.action_space
        if limit is not None:
            self.own_actions = spaces.Box(-limit, limit, (env.actions,), np.float32)
        self.max_steps = env.max_steps

    def training(self, rows: int, seed: int) -> VecEnv:
        """Return rows that are stepped together."""
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
        """Run all rows together."""
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
    """A gymnasium environment, one copy per row.

    Args:
        env: Its registered name, or what makes it.
        family: What varies.

    Raises:
        ConfigError: If it cannot be made, or has no parameter of a name of the family.
    """

    def __init__(self, env: str | Maker, family: ContextFamily) -> None:
        self.maker = Maker(env) if isinstance(env, str) else env
        self.name, self.family = self.maker.name, family
        self.constructed = self.maker.constructed(family)
        self.can_change = not self.constructed
        one = make_contextual(self.maker, family, self.constructed)
        self.observation_space, self.action_space = one.observation_space, one.action_space  # type: ignore[assignment]
        rescaled = isinstance(self.action_space, spaces.Box)
        self.own_actions = one.env.env.action_space if rescaled else self.action_space  # type: ignore[attr-defined]
        self.max_steps = self.maker.steps_of(one)
        self.rollout_rows: list[ContextualEnv] = []

    def training(self, rows: int, seed: int) -> VecEnv:
        """Return rows that are stepped one after the other."""
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
        """Run a copy of the environment for each context."""
        generator = np.random.default_rng(seed)
        while len(self.rollout_rows) < len(contexts):
            self.rollout_rows.append(
                make_contextual(self.maker, self.family, self.constructed, endless=True)
            )
        rows = self.rollout_rows[: len(contexts)]
        seen = []
        for number, (env, context) in enumerate(zip(rows, contexts.tolist(), strict=True)):
            env.given = context
            seen.append(env.reset(seed=seed + number)[0])
        observed = np.stack(seen)
        alive, reward = np.ones(len(rows), bool), np.zeros(len(rows), np.float32)
        kept: list[tuple[Any, ...]] = []
        told = len(self.family.names)
        player.begin(len(rows))
        for step in range(steps):
            if change is not None and step == self.max_steps // 2:
                for env, context in zip(rows, change.tolist(), strict=True):
                    env.change(context)
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


def world_of(name: str, vary: Sequence[str] = (), held_out: Sequence[str] = ()) -> World:
    """Return the world of a name: a batched environment of ours, or what is registered with gymnasium.

    Args:
        name: As in `--env`.
        vary: Training ranges, as in ``"gravity=8:12"``; none for what is usual.
        held_out: Held-out ranges, likewise.

    Raises:
        ConfigError: If there is no such environment, or it lacks a parameter that shall vary.

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
