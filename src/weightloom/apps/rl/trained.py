"""A trained agent from Python: train it in a family, act for a context, take the policy of one context along."""

import math
from collections.abc import Mapping
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
"""Options of a run that are options of `train`: all but those that the family has, and those of a
table of methods."""
FILE = "agent.safetensors"
"""What an agent is kept in."""


def train(
    family: World,
    *,
    method: str = OURS,
    steps: int | None = None,
    seed: int = 0,
    quiet: bool = False,
    run: Path | str | None = None,
    resume: bool = False,
    **options: Any,
) -> "Agent":
    """Let one agent learn in a family of environments.

    Global sources of randomness are seeded, as Stable-Baselines3 does. The number of CPU threads is
    put back.

    Args:
        family: As `family` returns it.
        method: What is generated, or read: a name in `weightloom.apps.rl.presets.METHODS`.
        steps: Environment steps. None: what suits the environment.
        seed: Everything random follows from it.
        quiet: Show no progress.
        run: A folder to keep options, metrics, checkpoints and the agent in; it must be empty.
            None: nothing is kept.
        resume: Go on in a folder whose training was stopped.
        **options: Any other of `weightloom.apps.rl.config.RLConfig`, as in ``learning_rate=1e-3``.

    Returns:
        The trained agent.

    Raises:
        ConfigError: If an option is unknown or cannot work, so few steps would teach nothing, or
            the folder is not empty.
        NonFiniteError: If the environment or the policy gave a number that is not finite.
        KeyboardInterrupt: If Ctrl-C stopped it; what was learned is in the folder, if there is one.
    """
    for name in options:
        if name not in OPTIONS:
            raise ConfigError(
                f"`{name}` is no option of `rl.train`. It trains one method in one family. "
                f"{nearest(name, OPTIONS)}"
            )
    if isinstance(family.action_space, spaces.Discrete) and preset(family.name, None)[
        "algorithm"
    ] in ("td3", "sac"):
        options.setdefault("algorithm", "ppo")  # the others need actions that are numbers
    config = RLConfig.from_dict(
        {"env": family.name, "method": method, "comparators": [], "steps": steps, "seed": seed}
        | {"vary": _texts(family, "train"), "held_out": _texts(family, "held_out")}
        | options
    )
    folder = None if run is None else Path(run)
    threads = torch.get_num_threads()
    try:
        made = experiment.train_model(
            _Given(family, folder is not None), config, folder, quiet, resume
        )
    finally:
        torch.set_num_threads(threads)
    agent = Agent(made.model, family, made.config)
    if folder is not None:
        agent.save(folder)
    return agent


class _Given(RL):
    """The application, in a family that is made already."""

    def __init__(self, family: World, keeps: bool) -> None:
        self.family, self.keeps = family, keeps

    def open(self, config: RLOptions) -> World:
        build_agent(
            config.method, self.family, config
        )  # what cannot work is said before anything is written
        return self.family

    def train(
        self, model: Any, problem: World, config: RLOptions, training: Training[Any]
    ) -> History:
        config.check_learns()  # steps may have come from `minutes`
        return learn(model, problem, config, training, self.keeps)


class Agent:
    """A trained agent: an observation and a context in, an action of the environment out.

    Contexts are given by name, in the environment's own units:
    ``agent.act(observation, gravity=12.0)``. A number may lie beyond the range that was trained in;
    nothing is known there but what a network makes of it. Where observations are rows, a number of
    a context may be one for each row.

    Args:
        model: A model of Stable-Baselines3, with networks of ours.
        world: The family that it was trained in.
        config: Resolved options of the training.
    """

    def __init__(self, model: Any, world: World, config: RLOptions) -> None:
        self.model, self.world, self.config = model, world, config
        self.player = player_of(model, config)

    def begin(self) -> None:
        """Forget what was seen: an episode begins.

        Only agents with a memory need it, those of `recurrent-ppo`.
        """
        self.player.begin(0)

    def act(self, observation: Any, rewards: Any = None, /, **context: Any) -> Any:
        """Choose the best action, without exploration.

        An agent with a memory finds out about the context by itself: it takes none, but the reward
        of its last action, ``agent.act(observation, reward)``, and `begin` before each episode.

        Args:
            observation: (state,), or (rows, state), without the context.
            rewards: Of the last action, a number or (rows,); only for agents with a memory. None:
                zero.
            **context: A number for each that varies, or (rows,) of them.

        Returns:
            An action as the environment takes it, float32 or an index; (rows, ...) of them where
            observations are rows.

        Raises:
            ShapeError: If the observation is not of the environment's.
            ConfigError: If a number of the context is missing, unknown or not finite.
        """
        seen, alone = self._rows(observation, context)
        if self.player.memory and len(self.player.first) == 0:
            self.player.begin(len(seen))
        if self.player.memory and len(self.player.first) != len(seen):
            raise ShapeError(
                f"{len(seen)} observations came, {len(self.player.first)} before. An agent with a "
                "memory goes on with the same episodes. Call `agent.begin()` when others begin."
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
        """Say what a state is worth: the discounted sum of rewards that is expected from there on.

        Args:
            observation: (state,), or (rows, state), without the context.
            **context: A number for each that varies, or (rows,) of them.

        Returns:
            A number, or (rows,) of them, in the units of the environment's rewards.

        Raises:
            ShapeError: If the observation is not of the environment's.
            ConfigError: If a number of the context is missing or unknown, or the agent has a
                memory.
        """
        self._check_no_memory("value of a state")
        seen, alone = self._rows(observation, context)
        values = self.player.value(torch.from_numpy(seen)).numpy()
        return float(values[0]) if alone else values

    def specialise(self, **context: float) -> nn.Module:
        """Return the policy of one context as a plain module.

        Observation in, action of the environment out.

        Where parameters are generated from state and context, it holds the generator, with the
        context folded into its first layer; from the context alone (``method="context-only"``), it
        is one small network.

        Args:
            **context: A number for each that varies.

        Returns:
            A module from (..., state), float32, to (..., actions), or to indices (...). It shares
            nothing with the agent and needs nothing but torch: keep its ``state_dict``, or pass it
            to ``torch.export.export``.

        Raises:
            ConfigError: If a number of the context is missing, unknown or not finite, or the agent
                has a memory.
        """
        self._check_no_memory("policy of one context")
        told = self.world.family.normalise(torch.from_numpy(self._context(context, 1))[0])
        return plain_policy(self.model, told, self.world.own_actions)

    def save(self, folder: Path | str) -> None:
        """Keep the agent in a folder, as ``agent.safetensors``.

        `load` needs nothing else, not even the environment.

        Raises:
            ConfigError: If the folder cannot be made.
            CheckpointError: If it cannot be written.
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
        """Lay out [context | state] as float32 (rows, numbers), and say whether it was one observation alone."""
        state = np.asarray(
            observation.detach().cpu() if isinstance(observation, Tensor) else observation,
            np.float32,
        )
        if state.ndim not in (1, 2) or state.shape[-1] != self.world.state_dim or state.size == 0:
            raise ShapeError(
                f"The observation has shape {state.shape}. One of `{self.world.name}` holds "
                f"{self.world.state_dim} numbers, and the context is not among them. Pass "
                f"({self.world.state_dim},) or rows of it."
            )
        rows = state.reshape(-1, state.shape[-1])
        if self.player.memory:
            if context:
                raise ConfigError(
                    f"`{next(iter(context))}` was passed, but an agent with a memory is not told "
                    "the context. It finds out from states and rewards. Type "
                    "`agent.act(observation, reward)`."
                )
            told = np.zeros((len(rows), len(self.world.family.names)), np.float32)
        else:
            told = self.world.family.normalise(
                torch.from_numpy(self._context(context, len(rows)))
            ).numpy()
        return np.concatenate([told, rows], 1), state.ndim == 1

    def _context(self, context: Mapping[str, Any], rows: int) -> Any:
        """Lay out a context, float32 (rows, parameters), after everything in it was checked."""
        names = self.world.family.names
        for name in context:
            if name not in names:
                raise ConfigError(
                    f"`{name}` is no number of a context of this agent. It was trained for those "
                    f"that vary in its family. {nearest(name, names)}"
                )
        missing = [one for one in self.world.family.varied if one.name not in context]
        if missing:
            typed = ", ".join(f"{one.name}={math.fsum(one.train) / 2:g}" for one in missing)
            raise ConfigError(
                f"The context lacks `{missing[0].name}`. A policy is one for each context, and "
                f"that is all of its numbers. Add it, as in `{typed}`."
            )
        columns = []
        for name in names:
            value = np.asarray(context[name], np.float32)
            if value.shape not in ((), (rows,)) or not np.isfinite(value).all():
                raise ConfigError(
                    f"`{name}={context[name]!r}` does not fit. It is a finite number in the "
                    f"environment's units{f', or one for each of {rows} observations' if rows > 1 else ''}. Pass `{name}="
                    f"{self.world.family.varied[names.index(name)].train[0]:g}`."
                )
            columns.append(np.broadcast_to(value, (rows,)))
        return np.stack(columns, 1)

    def _check_no_memory(self, what: str) -> None:
        if self.player.memory:
            raise ConfigError(
                f"An agent of `recurrent-ppo` has no {what}: it acts by what it remembers of an "
                "episode. "
                'Call `act` step by step, or train with `algorithm="ppo"`, where the context is given.'
            )


def load(folder: Path | str, *, trust: bool = False) -> Agent:
    """Read an agent that `Agent.save`, `train` or ``weightloom rl`` wrote, of a run's folder its `--method`.

    Args:
        folder: Where it is.
        trust: Import the module that registers the environment of a run of
            ``weightloom rl --env module:Name-v0``.

    Raises:
        ConfigError: If the run's options name code, and it is not trusted.
        DataError: If the folder holds none.
        CheckpointError: If a file is not whole.
    """
    folder = Path(folder)
    if not (folder / FILE).is_file():
        if not (folder / "config.json").is_file():
            raise DataError(
                f"`{folder}` holds no agent. That is `{FILE}`, or the folder of a run of "
                "`weightloom rl`. Pass a folder that `agent.save` or `rl.train(..., run=...)` "
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
    """Write ranges as they are typed on the command line."""
    ranges = {one.name: getattr(one, which) for one in family.family.varied}
    return [f"{name}={limits[0]!r}:{limits[1]!r}" for name, limits in ranges.items() if limits]
