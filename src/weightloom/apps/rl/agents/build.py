"""Models of Stable-Baselines3 by the name of a method."""

from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise

from weightloom.apps.rl.agents.nets import KINDS, Kind, Sizes
from weightloom.apps.rl.agents.off_policy import GeneratedSACPolicy, GeneratedTD3Policy, NetPlan
from weightloom.apps.rl.agents.on_policy import GeneratedPolicy, RecurrentGeneratedPolicy
from weightloom.apps.rl.config import RLOptions
from weightloom.apps.rl.envs.worlds import World
from weightloom.apps.rl.envs.wrappers import Between, memory_width
from weightloom.errors import ConfigError

KIND: dict[str, Kind] = {
    **{kind: kind for kind in KINDS},
    "concat-mse": "concat",
    "recurrent": "concat",
}
"""Kind of network of each method."""
EPOCHS = 4
"""Passes of PPO over each rollout."""


def remembers(config: RLOptions) -> bool:
    """Return whether the agents of a run have a memory in place of the context."""
    return config.algorithm == "recurrent-ppo"


def build_agent(method: str, world: World, config: RLOptions) -> Any:
    """Build an untrained model of Stable-Baselines3, with its environment.

    Args:
        method: A name in `METHODS`.
        world: The family of environments to train in.
        config: Resolved options.

    Raises:
        ConfigError: If the algorithm does not fit the actions.
    """
    _check_actions(world, config.algorithm)
    plan = plan_of(method, world, config)
    env = Between(world.training(config.rows, config.seed), config.reward_scale, remembers(config))
    known: dict[str, Any] = {
        "gamma": config.discount,
        "seed": config.seed,
        "device": "cpu",
        "verbose": 0,
    }
    known |= {"learning_rate": Falling(config.rate_of(method), config.final_rate)}
    kwargs: dict[str, Any] = {"plan": plan, "optimizer_kwargs": {"fused": True}}
    if config.algorithm in ("td3", "sac"):
        return _off_policy(env, config, known, kwargs)
    steps = config.steps_a_round // config.rows
    known |= {
        "n_steps": steps,
        "n_epochs": EPOCHS,
        "batch_size": max(2, steps * config.rows // 4),  # four minibatches per rollout
        "ent_coef": config.entropy,
        "clip_range": config.clip,
    }
    if remembers(config):
        return RecurrentPPO(RecurrentGeneratedPolicy, env, policy_kwargs=kwargs, **known)
    return PPO(GeneratedPolicy, env, policy_kwargs=kwargs, **known)


def _check_actions(world: World, algorithm: str) -> None:
    """Raise a `ConfigError` unless an algorithm can give the actions of an environment."""
    space = world.action_space
    if isinstance(space, spaces.Discrete) and algorithm in ("td3", "sac"):
        raise ConfigError(
            f"`--algorithm {algorithm}` does not go with `--env {world.name}`, which has "
            f"{space.n} discrete actions. TD3 and SAC follow the critic's gradient along the "
            "action, so actions must be continuous. Pass `--algorithm ppo`."
        )
    if not isinstance(space, spaces.Discrete | spaces.Box):
        raise ConfigError(
            f"`--env {world.name}` has actions {space}. Agents give continuous actions (Box) or "
            "one of several (Discrete). Wrap the environment so that its actions are one of the "
            "two."
        )
    axes = 0 if isinstance(space, spaces.Discrete) else 1
    if len(space.shape or ()) != axes or getattr(space, "start", 0) != 0:
        raise ConfigError(
            f"`--env {world.name}` has actions {space}. Agents give a flat vector, or an index "
            "that starts at 0. Wrap the environment in `gymnasium.wrappers.TransformAction`."
        )


def plan_of(method: str, world: World, config: RLOptions) -> NetPlan:
    """Return the networks that a method has in a family of environments."""
    return NetPlan(
        KIND[method],
        len(world.family.names),
        world.state_dim,
        Sizes(config.width, config.blocks, config.hidden, config.rank, config.unit),
        huber=method != "concat-mse",
        extra=memory_width(world.action_space) if remembers(config) else 0,
    )


class Falling:
    """Learning rate with linear decay.

    Args:
        first: Initial rate.
        share: Final rate as a fraction of the initial one.
    """

    def __init__(self, first: float, share: float) -> None:
        self.first, self.share = first, share

    def __call__(self, left: float | int) -> float:
        """Return the rate at a remaining fraction of the run, 1 at its start and 0 at its end."""
        left = max(left, 0.0)  # the last rollout may exceed the run, which makes it negative
        return self.first * (self.share + (1 - self.share) * left)


def _off_policy(
    env: Between, config: RLOptions, known: dict[str, Any], kwargs: dict[str, Any]
) -> Any:
    """Build TD3 or SAC."""
    known |= {
        "learning_starts": config.warm_up,
        "batch_size": config.batch,
        "buffer_size": config.steps + config.rows,  # every transition of the run
        "train_freq": 1,
        "gradient_steps": config.updates_a_round,
        "tau": 0.005,
        "policy_kwargs": {**kwargs, "n_critics": config.critics},
    }
    if config.algorithm == "sac":
        return SAC(GeneratedSACPolicy, env, **known)
    shape = env.action_space.shape or ()
    known["action_noise"] = NormalActionNoise(np.zeros(shape), config.noise * np.ones(shape))
    smoothing = config.smoothing
    # the ratio of TD3's paper: noise 0.2, clipped at 0.5
    known |= {"target_policy_noise": smoothing, "target_noise_clip": 2.5 * smoothing}
    return TD3(GeneratedTD3Policy, env, **known)
