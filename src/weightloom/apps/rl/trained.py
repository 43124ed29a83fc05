"""Trained agents in Python: train in a family, act in a context, export the policy of a context."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from weightloom.apps import experiment
from weightloom.apps.app import Training
from weightloom.apps.rl.agents.build import build_agent
from weightloom.apps.rl.app import RL
from weightloom.apps.rl.config import RLConfig, RLOptions
from weightloom.apps.rl.envs.context import ContextFamily, Varied
from weightloom.apps.rl.envs.spaces_only import SpacesOnly, plain_space, space_of
from weightloom.apps.rl.envs.worlds import World
from weightloom.apps.rl.judge import player_of
from weightloom.apps.rl.learning import train as learn
from weightloom.apps.rl.policy import plain_policy
from weightloom.apps.rl.presets import OURS, preset
from weightloom.errors import ConfigError, DataError, ShapeError, nearest
from weightloom.files import load_tensors, make_folder, save_tensors
from weightloom.runs.loggers import MetricLogger
from weightloom.training import History

OPTIONS = [
    one.name
    for one in fields(RLConfig)
    if one.name
    not in (
        "env",
        "vary",
        "held_out",
        "comparators",
        "rates",
        "test_contexts",
        "target_return",
        "validation",
    )
]
"""Options of `RLConfig` that `train` takes: all but those of the family and the table."""
FILE = "agent.safetensors"
"""File of a saved agent."""


def train(
    family: World,
    *,
    method: str = OURS,
    steps: int | None = None,
    seed: int = 0,
    quiet: bool = False,
    run: Path | str | None = None,
    resume: bool = False,
    loggers: Sequence[str | MetricLogger] = (),
    **options: Any,
) -> "Agent":
    """Train one agent in a family of environments.

    Stable-Baselines3 seeds the global random generators. The number of CPU threads is restored
    afterwards.

    Args:
        family: The family, from `weightloom.apps.rl.family`.
        method: Name of a method in `weightloom.apps.rl.presets.METHODS`.
        steps: Environment steps. Default: the environment's in `weightloom.apps.rl.presets`, else
            60,000.
        seed: Seed of all random numbers.
        quiet: Show no progress.
        run: Empty folder for options, metrics, checkpoints and the agent. Default: no file is kept.
        resume: Continue a stopped training in ``run``.
        loggers: Loggers of metrics, by name (`weightloom.runs.loggers.LOGGERS`) or as objects. They
            need ``run``.
        **options: Other options of `weightloom.apps.rl.config.RLConfig`, e.g.
            ``learning_rate=1e-3``.

    Returns:
        The trained agent.

    Raises:
        ConfigError: If an option is unknown or out of range, ``steps`` ends before the first policy
            update, or the folder is not empty.
        NonFiniteError: If the environment or the policy gave a number that is not finite.
        KeyboardInterrupt: If Ctrl-C stopped the training; ``run`` then holds a checkpoint.
    """
    if loggers and run is None:
        raise ConfigError(
            "`loggers` without `run`. An agent logs the rows of its run's folder, and none is "
            'kept. Pass `run="runs/mine"`, or leave `loggers` out.'
        )
    for name in options:
        if name not in OPTIONS:
            raise ConfigError(
                f"`{name}` is no option of `rl.train`, which trains one method in one family. "
                f"{nearest(name, OPTIONS)}"
            )
    if isinstance(family.action_space, spaces.Discrete) and preset(family.name, None)[
        "algorithm"
    ] in ("td3", "sac"):
        options.setdefault("algorithm", "ppo")  # TD3 and SAC need continuous actions
    config = RLConfig.from_dict(
        {"env": family.name, "method": method, "comparators": [], "steps": steps, "seed": seed}
        | {"vary": _texts(family, "train"), "held_out": _texts(family, "held_out")}
        | options
    )
    folder = None if run is None else Path(run)
    threads = torch.get_num_threads()
    try:
        made = experiment.train_model(
            _Given(family, folder is not None), config, folder, quiet, resume, loggers
        )
    finally:
        torch.set_num_threads(threads)
    agent = Agent(made.model, family, made.config)
    if folder is not None:
        agent.save(folder)
    return agent


class _Given(RL):
    """The application with a given family."""

    def __init__(self, family: World, keeps: bool) -> None:
        self.family, self.keeps = family, keeps

    def open(self, config: RLOptions) -> World:
        build_agent(config.method, self.family, config)  # raises before a file is written
        return self.family

    def train(
        self, model: Any, problem: World, config: RLOptions, training: Training[Any]
    ) -> History:
        config.check_learns()  # `minutes` may have set the steps
        return learn(model, problem, config, training, self.keeps)


class Agent:
    """A trained agent: observation and context in, action of the environment out.

    Context parameters are passed by name, in the environment's units:
    ``agent.act(observation, gravity=12.0)``. Values outside the training range are allowed, and the
    networks then extrapolate. For rows of observations a parameter may have one value per row.

    Args:
        model: Model of Stable-Baselines3 with networks of this library.
        world: The family that it was trained in.
        config: Resolved options of the training.
    """

    def __init__(self, model: Any, world: World, config: RLOptions) -> None:
        self.model, self.world, self.config = model, world, config
        self.player = player_of(model, config)

    def begin(self) -> None:
        """Reset the memory before an episode; only agents of `recurrent-ppo` need it."""
        self.player.begin(0)

    def act(self, observation: Any, rewards: Any = None, /, **context: Any) -> Any:
        """Return the most likely action, without exploration.

        An agent with a memory infers the context. It takes the reward of its last action in place
        of a context, ``agent.act(observation, reward)``, and needs `begin` before each episode.

        Args:
            observation: Observation without the context, (state,) or (rows, state).
            rewards: Reward of the last action, a number or (rows,), for agents with a memory.
                Default: 0.
            **context: Value of each context parameter, a number or (rows,).

        Returns:
            An action of the environment, float32 (actions,) or an index; for rows of observations
            (rows, actions) or (rows,).

        Raises:
            ShapeError: If the observation has another shape than the environment's, or the number
                of rows changes within an episode of an agent with a memory.
            ConfigError: If a context parameter is missing, unknown or not finite, or an agent with
                a memory gets one.
        """
        seen, alone = self._rows(observation, context)
        if self.player.memory and len(self.player.first) == 0:
            self.player.begin(len(seen))
        if self.player.memory and len(self.player.first) != len(seen):
            raise ShapeError(
                f"`observation` has {len(seen)} rows, the last had {len(self.player.first)}. "
                "An agent with a memory continues the same episodes. Call `agent.begin()` before "
                "new ones."
            )
        last = np.broadcast_to(
            np.asarray(0.0 if rewards is None else rewards, np.float32), (len(seen),)
        )
        actions = self.player.act(seen, last)
        own = self.world.own_actions
        if isinstance(own, spaces.Box):
            low, high = (np.asarray(limit, np.float32) for limit in (own.low, own.high))
            actions = (high + low) / 2 + (high - low) / 2 * np.clip(actions, -1.0, 1.0)
            actions = actions.astype(own.dtype)
        if not alone:
            return actions
        return actions[0] if isinstance(own, spaces.Box) else int(actions[0])

    def value(self, observation: Any, /, **context: Any) -> Any:
        """Return the value of a state: its expected discounted return.

        Args:
            observation: Observation without the context, (state,) or (rows, state).
            **context: Value of each context parameter, a number or (rows,).

        Returns:
            A number, or (rows,), in the units of the environment's rewards.

        Raises:
            ShapeError: If the observation has another shape than the environment's.
            ConfigError: If a context parameter is missing, unknown or not finite, or the agent has
                a memory.
        """
        self._check_no_memory("value of a state")
        seen, alone = self._rows(observation, context)
        values = self.player.value(torch.from_numpy(seen)).numpy()
        return float(values[0]) if alone else values

    def specialise(self, **context: float) -> nn.Module:
        """Return the policy of one context as a plain module, from observation to action.

        With parameters generated from state and context, the module holds the hypernetwork, with
        the context folded into its first layer. With ``method="context-only"`` it is one small
        network.

        Args:
            **context: Value of each context parameter, a number.

        Returns:
            A module from (..., state), float32, to (..., actions), or to indices (...). It shares
            no tensor with the agent and needs torch alone: save its ``state_dict``, or pass it to
            ``torch.export.export``.

        Raises:
            ConfigError: If a context parameter is missing, unknown or not finite, or the agent has
                a memory.
        """
        self._check_no_memory("policy of one context")
        told = self.world.family.normalise(torch.from_numpy(self._context(context, 1))[0])
        return plain_policy(self.model, told, self.world.own_actions)

    def save(self, folder: Path | str) -> None:
        """Save the agent as ``agent.safetensors``, which `load` reads without the environment.

        Args:
            folder: Folder to write; created if missing.

        Raises:
            ConfigError: If the folder cannot be created.
            CheckpointError: If the file cannot be written.
        """
        world = self.world
        facts = {
            "config": self.config.to_dict(),
            "name": world.name,
            "varied": [[one.name, one.train, one.held_out] for one in world.family.varied],
            "state_dim": world.state_dim,
            "own_actions": plain_space(world.own_actions),
            "max_steps": world.max_steps,
        }
        folder = Path(folder)
        make_folder(folder, "folder")
        save_tensors(folder / FILE, self.model.policy.state_dict(), facts)

    def _rows(self, observation: Any, context: Mapping[str, Any]) -> tuple[Any, bool]:
        """Return [context | state], float32 (rows, numbers), and whether the input was one row."""
        state = np.asarray(
            observation.detach().cpu() if isinstance(observation, Tensor) else observation,
            np.float32,
        )
        if state.ndim not in (1, 2) or state.shape[-1] != self.world.state_dim or state.size == 0:
            raise ShapeError(
                f"`observation` has shape {state.shape}. An observation of `{self.world.name}` "
                f"holds {self.world.state_dim} numbers, without the context. Pass "
                f"({self.world.state_dim},) or rows of it."
            )
        rows = state.reshape(-1, state.shape[-1])
        if self.player.memory:
            if context:
                raise ConfigError(
                    f"`{next(iter(context))}` was passed, but an agent with a memory takes no "
                    "context. It infers the context from states and rewards. Type "
                    "`agent.act(observation, reward)`."
                )
            told = np.zeros((len(rows), len(self.world.family.names)), np.float32)
        else:
            told = self.world.family.normalise(
                torch.from_numpy(self._context(context, len(rows)))
            ).numpy()
        return np.concatenate([told, rows], 1), state.ndim == 1

    def _context(self, context: Mapping[str, Any], rows: int) -> Any:
        """Check a context and return it as float32 (rows, parameters)."""
        names = self.world.family.names
        for name in context:
            if name not in names:
                raise ConfigError(
                    f"`{name}` is no context parameter of this agent. It was trained for those "
                    f"that vary in its family. {nearest(name, names)}"
                )
        missing = [one for one in self.world.family.varied if one.name not in context]
        if missing:
            typed = ", ".join(f"{one.name}={math.fsum(one.train) / 2:g}" for one in missing)
            raise ConfigError(
                f"The context lacks `{missing[0].name}`. A policy needs the value of every "
                f"parameter. Add it, e.g. `{typed}`."
            )
        columns = [_column(one, context[one.name], rows) for one in self.world.family.varied]
        return np.stack(columns, 1)

    def _check_no_memory(self, wanted: str) -> None:
        if self.player.memory:
            raise ConfigError(
                f"An agent of `recurrent-ppo` has no {wanted}: it acts by its memory of an "
                "episode. Call `act` step by step, or train with "
                '`algorithm="ppo"`, which reads the context.'
            )


def _column(varied: Varied, given: Any, rows: int) -> Any:
    """Check a context parameter and return it as float32 (rows,)."""
    value = np.asarray(given, np.float32)
    if value.shape not in ((), (rows,)) or not np.isfinite(value).all():
        many = f", or one for each of {rows} observations" if rows > 1 else ""
        raise ConfigError(
            f"`{varied.name}={given!r}` does not fit. A context parameter is a finite number in "
            f"the environment's units{many}. Pass `{varied.name}={varied.train[0]:g}`."
        )
    return np.broadcast_to(value, (rows,))


def load(folder: Path | str, *, trust: bool = False) -> Agent:
    """Load an agent that `Agent.save`, `train` or ``weightloom rl`` wrote.

    Args:
        folder: Folder of the agent, or of a run, whose `--method` is then loaded.
        trust: Import the module that registers the environment of a run of
            ``weightloom rl --env module:Name-v0``.

    Raises:
        ConfigError: If the run's options name code, without ``trust``.
        DataError: If the folder holds no agent.
        CheckpointError: If a file is incomplete.
    """
    folder = Path(folder)
    if not (folder / FILE).is_file():
        if not (folder / "config.json").is_file():
            raise DataError(
                f"`{folder}` holds no agent: neither `{FILE}` nor a run of `weightloom rl`. "
                "Pass a folder that `agent.save` or `rl.train(..., run=...)` "
                "wrote."
            )
        made = experiment.load(RL(), folder, only=True, trust=trust)
        return Agent(made.model, made.problem, made.config)
    tensors, facts = load_tensors(folder / FILE)
    config = RLConfig.from_dict(facts["config"]).resolved()
    contexts = ContextFamily(
        tuple(
            Varied(name, tuple(train), tuple(held_out) if held_out else None)
            for name, train, held_out in facts["varied"]
        )
    )
    own_actions = space_of(facts["own_actions"])
    world = SpacesOnly(facts["name"], contexts, facts["state_dim"], own_actions, facts["max_steps"])
    model = build_agent(config.method, world, config)
    model.policy.load_state_dict(tensors)
    return Agent(model, world, config)


def _texts(family: World, which: str) -> list[str]:
    """Return the ranges of a family as texts of the command line."""
    ranges = {one.name: getattr(one, which) for one in family.family.varied}
    return [f"{name}={limits[0]!r}:{limits[1]!r}" for name, limits in ranges.items() if limits]
