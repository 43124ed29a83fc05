"""Who acts in rollouts: a trained model, the optimum where it is known, or nobody."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3 import PPO, SAC, TD3
from torch import Tensor

from weightloom.apps.rl.envs.lqr import LQR
from weightloom.apps.rl.envs.worlds import BatchedWorld, Player, World
from weightloom.apps.rl.envs.wrappers import memory_columns


class ModelPlayer(Player):
    """A trained model, without exploration.

    Args:
        model: A model of Stable-Baselines3.
        memory: Whether it remembers; observations then end with `memory_columns`.
        reward_scale: What the rewards that it remembers are multiplied by, as in training.
    """

    def __init__(self, model: Any, memory: bool, reward_scale: float = 1.0) -> None:
        self.model, self.memory, self.reward_scale = model, memory, reward_scale
        self.begin(0)

    def begin(self, rows: int) -> None:
        """Forget everything."""
        space = self.model.action_space
        self.states: Any = None
        self.first = np.ones(rows, np.float32)
        discrete = isinstance(space, spaces.Discrete)
        self.last = (
            np.zeros(rows, np.int64) if discrete else np.zeros((rows, *space.shape), np.float32)
        )
        self.values: list[Tensor] = []

    def act(self, observations: Any, rewards: Any) -> Any:
        """Choose the most likely action of each row."""
        if self.memory:
            more = memory_columns(
                self.model.action_space, self.last, self.reward_scale * rewards, self.first
            )
            observations = np.concatenate([observations, more], 1)
            self.values.append(self._recurrent_value(observations))
        starts = self.first if self.memory else None
        self.last, self.states = self.model.predict(
            observations, self.states, starts, deterministic=True
        )
        self.first = np.zeros(len(observations), np.float32)
        return self.last

    @torch.no_grad()
    def value(self, observations: Tensor) -> Tensor:
        """Value of states, (rows,), in the units of the environment's rewards.

        For TD3 and SAC the smaller of both critics at the action that the policy would take.
        """
        policy = self.model.policy
        policy.set_training_mode(False)
        if isinstance(self.model, TD3):
            values = (
                torch.cat(self.model.critic(observations, self.model.actor(observations)), 1)
                .min(1)
                .values
            )
        elif isinstance(self.model, SAC):
            action = self.model.actor(observations, deterministic=True)
            values = torch.cat(self.model.critic(observations, action), 1).min(1).values
        else:
            assert isinstance(self.model, PPO)
            values = policy.predict_values(observations)[:, 0]
        return values / self.reward_scale

    @torch.no_grad()
    def _recurrent_value(self, observations: Any) -> Tensor:
        policy = self.model.policy
        rows = len(observations)
        hidden = policy.lstm_actor.hidden_size
        states = self.states or (np.zeros((1, rows, hidden), np.float32),) * 2
        kept = tuple(_as_rows(state) for state in states)
        values: Tensor = policy.predict_values(_as_rows(observations), kept, _as_rows(self.first))
        return values[:, 0] / self.reward_scale


class Still(Player):
    """Nobody: the action is zero, or the first.

    Args:
        world: Says what an action is.
    """

    def __init__(self, world: World) -> None:
        self.space = world.action_space

    def begin(self, rows: int) -> None:
        """Nothing to forget."""

    def act(self, observations: Any, rewards: Any) -> Any:
        """Do nothing."""
        rows = len(observations)
        if isinstance(self.space, spaces.Discrete):
            return np.zeros(rows, np.int64)
        return np.zeros((rows, *(self.space.shape or ())), np.float32)


class Oracle(Player):
    """The optimum of linear-quadratic control, which knows each context.

    Args:
        world: That of `LQR`.
        discount: For which it is the optimum.
    """

    def __init__(self, world: BatchedWorld, discount: float) -> None:
        assert isinstance(world.env, LQR)
        self.env, self.family, self.discount = world.env, world.family, discount

    def begin(self, rows: int) -> None:
        """Contexts follow anew."""
        self.gain: Tensor | None = None

    def act(self, observations: Any, rewards: Any) -> Any:
        """Act by the gain of each row's context, which stays the same until `begin`."""
        seen = torch.as_tensor(observations)
        parameters = len(self.family.names)
        if self.gain is None:
            self.gain = self.gains(seen[:, :parameters])
        return (-(self.gain @ seen[:, parameters:, None])[..., 0] / self.env.action_limit).numpy()

    def gains(self, told: Tensor) -> Tensor:
        """Gains of contexts as they are told, (rows, parameters) to (rows, actions, state)."""
        return self.env.optimum(self.family.restore(told), self.discount)[0]


class FittedOracle(Oracle):
    """Gains that a cubic carries beyond the training ranges, fitted to the exact ones of many training contexts.

    Held-out contexts show it what can be had there by whoever was told the optimum in training, and
    knows no more.

    Args:
        world: That of `LQR`.
        discount: For which the gains are the optimum.
        contexts: How many it was told.
    """

    def __init__(self, world: BatchedWorld, discount: float, contexts: int = 1000) -> None:
        super().__init__(world, discount)
        drawn = self.family.sample(contexts, torch.Generator().manual_seed(0))
        exact = self.env.optimum(drawn, discount)[0]
        terms = _cubic(self.family.normalise(drawn))
        self.weights = least_squares(terms, exact.flatten(1)).unflatten(1, exact.shape[1:])

    def gains(self, told: Tensor) -> Tensor:
        """Gains of contexts by the cubic."""
        return torch.einsum("rt,tas->ras", _cubic(told), self.weights)


def least_squares(
    inputs: Float[Tensor, "*rows n k"], targets: Float[Tensor, "*rows n m"]
) -> Float[Tensor, "*rows k m"]:
    """Solve a regression whose inputs are of full rank, to the same bits whenever it is called.

    The usual driver of torch, ``gelsy``, reads where to pivot from memory that nobody wrote (torch
    2.13): its answers differ in the seventh digit from call to call.
    """
    solution: Tensor = torch.linalg.lstsq(inputs, targets, driver="gels").solution
    return solution


def _cubic(told: Tensor) -> Tensor:
    """All products of up to three of the numbers."""
    padded = torch.cat([torch.ones_like(told[:, :1]), told], 1)
    triples = torch.combinations(torch.arange(padded.shape[1]), 3, with_replacement=True)
    return padded[:, triples].prod(2)


def _as_rows(values: Any) -> Tensor:
    """Take numbers from numpy as float32."""
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)
