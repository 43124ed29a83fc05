"""From the name of a method to a model of Stable-Baselines3 that is ready to learn."""

from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise

from weightloom.apps.rl.agents.nets import Kind, Sizes
from weightloom.apps.rl.agents.off_policy import GeneratedSACPolicy, GeneratedTD3Policy, NetPlan
from weightloom.apps.rl.agents.on_policy import GeneratedPolicy, RecurrentGeneratedPolicy
from weightloom.apps.rl.config import RLOptions
from weightloom.apps.rl.envs.worlds import World
from weightloom.apps.rl.envs.wrappers import Between, memory_width
from weightloom.errors import ConfigError

KIND: dict[str, Kind] = {"concat-mse": "concat", "recurrent": "concat"}
"""Networks of methods that are not called like them."""
EPOCHS = 4
"""How often PPO goes through a rollout."""


def remembers(config: RLOptions) -> bool:
    """Whether agents of a run have a memory instead of a context."""
    return config.algorithm == "recurrent-ppo"


def build_agent(method: str, world: World, config: RLOptions) -> Any:
    """Build a model with its environment.

    Args:
        method: A name in `METHODS`.
        world: What it learns in.
        config: Resolved options.

    Raises:
        ConfigError: If the algorithm does not fit the actions.
    """
    assert config.rows and config.discount and config.reward_scale and config.steps
    discrete = isinstance(world.action_space, spaces.Discrete)
    if discrete and config.algorithm in ("td3", "sac"):
        raise ConfigError(
            f"`--algorithm {config.algorithm}` does not go with `--env {world.name}`, whose "
            "actions are one of "
            f"{world.action_space.n}. TD3 and SAC climb the critic's slope along an action, so actions must be "  # type: ignore[attr-defined]
            "numbers. Pass `--algorithm ppo`."
        )
    if not discrete and not isinstance(world.action_space, spaces.Box):
        raise ConfigError(
            f"`--env {world.name}` has actions {world.action_space}. Agents here give numbers "
            "(Box) or one of several (Discrete). Wrap the environment so that its actions are one "
            "of the two."
        )
    if (
        len(world.action_space.shape or ()) != (0 if discrete else 1)
        or getattr(world.action_space, "start", 0) != 0
    ):
        raise ConfigError(
            f"`--env {world.name}` has actions {world.action_space}. Agents here give a flat "
            "vector of numbers, or an index from 0 on. Wrap the environment in "
            "`gymnasium.wrappers.TransformAction`."
        )
    env = Between(world.training(config.rows, config.seed), config.reward_scale, remembers(config))
    plan = plan_of(method, world, config)
    known: dict[str, Any] = {
        "gamma": config.discount,
        "seed": config.seed,
        "device": "cpu",
        "verbose": 0,
    }
    known |= {"learning_rate": Falling(config.rate_of(method), config.final_rate or 1.0)}
    kwargs: dict[str, Any] = {"plan": plan, "optimizer_kwargs": {"fused": True}}
    if config.algorithm in ("td3", "sac"):
        return _off_policy(env, config, known, kwargs)
    steps = config.steps_a_round // config.rows
    known |= {
        "n_steps": steps,
        "n_epochs": EPOCHS,
        "batch_size": max(2, steps * config.rows // 4),
        "ent_coef": config.entropy,
        "clip_range": config.clip,
    }
    if remembers(config):
        return RecurrentPPO(RecurrentGeneratedPolicy, env, policy_kwargs=kwargs, **known)
    return PPO(GeneratedPolicy, env, policy_kwargs=kwargs, **known)


def plan_of(method: str, world: World, config: RLOptions) -> NetPlan:
    """Say which networks a method has."""
    assert config.width and config.blocks is not None and config.hidden and config.rank
    kind: Kind = KIND.get(method, method)  # type: ignore[arg-type]
    return NetPlan(
        kind,
        len(world.family.names),
        world.state_dim,
        Sizes(config.width, config.blocks, config.hidden, config.rank, bool(config.unit)),
        huber=method != "concat-mse",
        extra=memory_width(world.action_space) if remembers(config) else 0,
    )


class Falling:
    """A learning rate that falls linearly.

    Args:
        first: Where it begins.
        share: What is left of it at the end.
    """

    def __init__(self, first: float, share: float) -> None:
        self.first, self.share = first, share

    def __call__(self, left: float | int) -> float:
        """Return the rate where a share of the run is left."""
        left = max(
            left, 0.0
        )  # below zero where the last rollout goes beyond the steps that were asked for
        return self.first * (self.share + (1 - self.share) * left)


def _off_policy(
    env: Between, config: RLOptions, known: dict[str, Any], kwargs: dict[str, Any]
) -> Any:
    assert (
        config.rows
        and config.steps
        and config.updates
        and config.noise is not None
        and config.batch
    )
    known |= {
        "learning_starts": config.warm_up,
        "batch_size": config.batch,
        "buffer_size": config.steps + config.rows,
        "train_freq": 1,
        "gradient_steps": config.updates_a_round,
        "tau": 0.005,
        "policy_kwargs": {**kwargs, "n_critics": config.critics},
    }
    if config.algorithm == "sac":
        return SAC(GeneratedSACPolicy, env, **known)
    shape = env.action_space.shape or ()
    known["action_noise"] = NormalActionNoise(np.zeros(shape), config.noise * np.ones(shape))
    smoothing = config.smoothing or 0.0
    known |= {"target_policy_noise": smoothing, "target_noise_clip": 2.5 * smoothing}
    return TD3(GeneratedTD3Policy, env, **known)
