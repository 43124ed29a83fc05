"""Agents adapted to one context, and their export as plain policies that need torch alone."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from weightloom.apps.rl.config import RLOptions
from weightloom.apps.rl.envs.spaces_only import plain_space
from weightloom.apps.rl.envs.worlds import World
from weightloom.apps.rl.trained import Agent
from weightloom.errors import ConfigError
from weightloom.files import check_empty, make_folder, save_tensors, write_atomically
from weightloom.texts import kind_of


class AdaptedAgent:
    """An agent in one fixed context.

    Args:
        agent: The trained agent.
        context: Value of each context parameter, in the environment's units.

    Raises:
        ConfigError: If a parameter is missing, unknown or not finite, or the agent has a memory.
    """

    def __init__(self, agent: Agent, context: Mapping[str, float]) -> None:
        self.agent, self.context = agent, dict(context)
        self.policy = agent.specialise(**self.context)
        self.about = f"{agent.world.name} with " + ", ".join(
            f"{name} {value:g}" for name, value in context.items()
        )
        """Environment and context in words."""

    def specialise(self) -> nn.Module:
        """Return the policy as a plain module, from observations (..., state) to actions."""
        return self.policy

    def predict_rows(self, inputs: Sequence[str]) -> list[dict[str, Any]]:
        """Act on typed observations; return one table row, observation and action, for each.

        Args:
            inputs: Observations as numbers separated by commas, e.g. ``"0.1,-2"``.

        Raises:
            ConfigError: If a text is not made of numbers.
            ShapeError: If a text has more or fewer numbers than an observation.
        """
        rows = []
        for text in inputs:
            try:
                observation = [float(number) for number in text.split(",")]
            except ValueError as error:
                raise ConfigError(
                    f"`{text}` cannot be read as an observation. An observation is "
                    f"{self.agent.world.state_dim} numbers, separated by commas. Type "
                    f"`{','.join(['0.0'] * self.agent.world.state_dim)}`, with your numbers."
                ) from error
            action = np.asarray(self.agent.act(observation, **self.context))
            rows.append({"observation": text, "action": action.tolist()})
        return rows

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the policy as a program, its parameters and a description into a folder.

        ``policy.pt2`` is the program, for ``torch.export.load`` and any number of rows;
        ``policy.safetensors`` holds its parameters and ``policy.json`` the description. The program
        is compared with the agent before the description is written. A program from an unknown
        source can run code when it is loaded.

        Args:
            folder: Folder to write, empty or missing.

        Returns:
            Contents of ``policy.json``.

        Raises:
            ConfigError: If the folder is not empty.
            CheckpointError: If a file cannot be written.
            AssertionError: If program and agent differ by more than 1e-4.
        """
        if kind_of(folder / "policy.json") != "nothing":
            raise ConfigError(
                f"`{folder}` holds a policy already, which is never overwritten. Pass another "
                "`--out`."
            )
        check_empty(folder, "--out")
        world = self.agent.world
        seen = torch.randn(8, world.state_dim, generator=torch.Generator().manual_seed(0))
        make_folder(folder, "--out")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                self.policy, (seen,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
            )
            torch.export.save(program, folder / "policy.pt2")
        given = torch.export.load(folder / "policy.pt2").module()(seen)
        expected = torch.as_tensor(self.agent.act(seen, **self.context))
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
        facts = {
            "environment": world.name,
            "method": self.agent.config.method,
            "context": self.context,
            "trained_in": {one.name: list(one.train) for one in world.family.varied},
            "input": ["rows", world.state_dim],
            "output": ["rows", *given.shape[1:]],
            "actions": plain_space(world.own_actions),
            "parameters": {
                name: list(value.shape) for name, value in self.policy.state_dict().items()
            },
            "largest_difference": float((given - expected).abs().max()),
        }
        save_tensors(folder / "policy.safetensors", self.policy.state_dict(), facts)
        write_atomically(folder / "policy.json", json.dumps(facts, indent=1) + "\n")
        return facts


def adapt_run(model: Any, world: World, config: RLOptions, context: str) -> AdaptedAgent:
    """Return a trained model adapted to one context.

    Args:
        model: Model of Stable-Baselines3 with networks of this library.
        world: The family of the run.
        config: Resolved options of the run.
        context: Value of each context parameter, e.g. ``"gravity=12.0 length=0.5"``.

    Raises:
        ConfigError: If the text cannot be read, a parameter is missing or unknown, or the agent has
            a memory.
    """
    return AdaptedAgent(Agent(model, world, config), context_of(context, world.family.names))


def context_of(text: str, names: tuple[str, ...]) -> dict[str, float]:
    """Parse a typed context into values by name.

    Args:
        text: Names and numbers, e.g. ``"gravity=12.0 length=0.5"``.
        names: Names of the context parameters, for the message.

    Raises:
        ConfigError: If a part is not ``name=number``, or a name appears twice.

    Example:
        >>> context_of("gravity=12.0 length=0.5", ("gravity", "length"))
        {'gravity': 12.0, 'length': 0.5}
    """
    context: dict[str, float] = {}
    for part in text.split():
        name, _, number = part.partition("=")
        try:
            value = float(number)
        except ValueError as error:
            raise ConfigError(
                f"`{part}` cannot be read. A context is made of `name=number`. "
                f"Type `{' '.join(f'{one}=1.0' for one in names)}`, with your numbers."
            ) from error
        if name in context:
            raise ConfigError(
                f"`{name}` appears twice in `{text}`. A context has one value of each parameter. "
                "Leave one out."
            )
        context[name] = value
    return context
