"""Players for rollouts: a trained model, the known optimum, and no action at all."""

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
    """Player that follows a trained model without exploration.

    Args:
        model: Model of Stable-Baselines3.
        memory: The model has a memory, which reads observations that end with `memory_columns`.
        reward_scale: Factor on rewards in training, applied to those that a memory reads.
    """

    def __init__(self, model: Any, memory: bool, reward_scale: float = 1.0) -> None:
        self.model, self.memory, self.reward_scale = model, memory, reward_scale
        self.begin(0)

    def begin(self, rows: int) -> None:
        """Reset the memory for episodes in ``rows`` environments."""
        space = self.model.action_space
        self.states: Any = None
        self.first = np.ones(rows, np.float32)
        discrete = isinstance(space, spaces.Discrete)
        self.last = (
            np.zeros(rows, np.int64) if discrete else np.zeros((rows, *space.shape), np.float32)
        )
        self.values: list[Tensor] = []

    def act(self, observations: Any, rewards: Any) -> Any:
        """Return the most likely action of each row."""
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
        """Return the value of states, (rows,), in the units of the environment's rewards.

        TD3 and SAC: the minimum over critics at the policy's action. PPO: the value network.

        Args:
            observations: [context | state], (rows, numbers).
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
    """Player without control: action zero, or index 0.

    Args:
        world: The family, for its action space.
    """

    def __init__(self, world: World) -> None:
        self.space = world.action_space

    def begin(self, rows: int) -> None:
        """Do nothing: this player has no state."""

    def act(self, observations: Any, rewards: Any) -> Any:
        """Return zeros."""
        rows = len(observations)
        if isinstance(self.space, spaces.Discrete):
            return np.zeros(rows, np.int64)
        return np.zeros((rows, *(self.space.shape or ())), np.float32)


class Oracle(Player):
    """Optimal linear-quadratic controller of each context.

    Args:
        world: Family of `LQR` environments.
        discount: Discount factor of the optimum.
    """

    def __init__(self, world: BatchedWorld, discount: float) -> None:
        assert isinstance(world.env, LQR)
        self.env, self.family, self.discount = world.env, world.family, discount

    def begin(self, rows: int) -> None:
        """Forget the gains of the last contexts."""
        self.gain: Tensor | None = None

    def act(self, observations: Any, rewards: Any) -> Any:
        """Return -K s for each row, with the gain K of the first context seen since `begin`."""
        seen = torch.as_tensor(observations)
        parameters = len(self.family.names)
        if self.gain is None:
            self.gain = self.gains(seen[:, :parameters])
        return (-(self.gain @ seen[:, parameters:, None])[..., 0] / self.env.action_limit).numpy()

    def gains(self, told: Tensor) -> Tensor:
        """Return optimal gains, (rows, actions, state), of normalised contexts."""
        return self.env.optimum(self.family.restore(told), self.discount)[0]


class FittedOracle(Oracle):
    """Controller with gains by a cubic polynomial, fitted to the optimum of training contexts.

    In held-out contexts it extrapolates: a reference for an agent that has learned the optimum of
    the training ranges exactly.

    Args:
        world: Family of `LQR` environments.
        discount: Discount factor of the optimum.
        contexts: Number of training contexts to fit.
    """

    def __init__(self, world: BatchedWorld, discount: float, contexts: int = 1000) -> None:
        super().__init__(world, discount)
        drawn = self.family.sample(contexts, torch.Generator().manual_seed(0))
        exact = self.env.optimum(drawn, discount)[0]
        terms = _cubic(self.family.normalise(drawn))
        self.weights = least_squares(terms, exact.flatten(1)).unflatten(1, exact.shape[1:])

    def gains(self, told: Tensor) -> Tensor:
        """Return the polynomial's gains of normalised contexts."""
        return torch.einsum("rt,tas->ras", _cubic(told), self.weights)


def least_squares(
    inputs: Float[Tensor, "*rows n k"], targets: Float[Tensor, "*rows n m"]
) -> Float[Tensor, "*rows k m"]:
    """Solve least squares with inputs of full rank; the result is the same in every call.

    Torch's default driver, ``gelsy``, reads its pivots from uninitialised memory (torch 2.13): its
    results differ in the seventh digit from call to call.

    Args:
        inputs: Matrix of regressors.
        targets: Right-hand sides.

    Returns:
        Coefficients that minimise |inputs @ coefficients - targets|.
    """
    solution: Tensor = torch.linalg.lstsq(inputs, targets, driver="gels").solution
    return solution


def _cubic(told: Tensor) -> Tensor:
    """Return all monomials of degree up to 3, (rows, terms)."""
    padded = torch.cat([torch.ones_like(told[:, :1]), told], 1)
    triples = torch.combinations(torch.arange(padded.shape[1]), 3, with_replacement=True)
    return padded[:, triples].prod(2)


def _as_rows(values: Any) -> Tensor:
    """Convert a numpy array to float32."""
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)
