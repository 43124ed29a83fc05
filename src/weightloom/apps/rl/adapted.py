"""From a run and a context to a plain policy on disk, with nothing of this library left inside."""

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
    """An agent and the one context that it acts in.

    Args:
        agent: The agent.
        context: A number for each that varies, in the environment's own units.

    Raises:
        ConfigError: If a number of the context is missing, unknown or not finite, or the agent has
            a memory.
    """

    def __init__(self, agent: Agent, context: Mapping[str, float]) -> None:
        self.agent, self.context = agent, dict(context)
        self.policy = agent.specialise(**self.context)
        self.about = f"{agent.world.name} with " + ", ".join(
            f"{name} {value:g}" for name, value in context.items()
        )
        """The context in a sentence."""

    def specialise(self) -> nn.Module:
        """Return the policy as a plain module, from observations (..., state) to actions of the environment."""
        return self.policy

    def predict_rows(self, inputs: Sequence[str]) -> list[dict[str, Any]]:
        """Act on observations that a person typed, as in ``"0.1,-2"``: a row of a table for each.

        Raises:
            ConfigError: If one is not made of numbers.
            ShapeError: If one has more or fewer numbers than an observation.
        """
        rows = []
        for text in inputs:
            try:
                observation = [float(number) for number in text.split(",")]
            except ValueError as error:
                raise ConfigError(
                    f"`{text}` cannot be read as an observation. It is "
                    f"{self.agent.world.state_dim} numbers, commas between. Type "
                    f"`{','.join(['0.0'] * self.agent.world.state_dim)}`, with your numbers."
                ) from error
            action = np.asarray(self.agent.act(observation, **self.context))
            rows.append({"observation": text, "action": action.tolist()})
        return rows

    def save(self, folder: Path) -> dict[str, Any]:
        """Write ``policy.safetensors`` (numbers), ``policy.json`` (what they are) and ``policy.pt2`` (a program).

        The program is for ``torch.export.load``, for any number of rows. It is held against the
        agent before the description is written. A program of a stranger can run code when it is
        loaded.

        Args:
            folder: Where to write; made if need be.

        Returns:
            What was written into ``policy.json``.

        Raises:
            ConfigError: If the folder holds a policy already.
            CheckpointError: If it cannot be written.
        """
        if kind_of(folder / "policy.json") != "nothing":
            raise ConfigError(
                f"`{folder}` holds a policy already. It is never written over. Pass another "
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
    """Adapt a trained model to one context.

    Args:
        model: A model of Stable-Baselines3, with networks of ours.
        world: The family of the run.
        config: Its resolved options.
        context: A number for each that varies, as typed: ``"gravity=12.0 length=0.5"``.

    Raises:
        ConfigError: If the text cannot be read, a number is missing or unknown, or the agent has a
            memory.
    """
    return AdaptedAgent(Agent(model, world, config), context_of(context, world.family.names))


def context_of(text: str, names: tuple[str, ...]) -> dict[str, float]:
    """Read a context as it is typed.

    Args:
        text: Names and numbers, as in ``"gravity=12.0 length=0.5"``.
        names: What varies, for the message.

    Raises:
        ConfigError: If a part is no name and number, or a name stands there twice.

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
                f"`{part}` cannot be read. A context is names and numbers. "
                f"Type `{' '.join(f'{one}=1.0' for one in names)}`, with your numbers."
            ) from error
        if name in context:
            raise ConfigError(
                f"`{name}` stands twice in `{text}`. A context has one number of each. Leave one "
                "out."
            )
        context[name] = value
    return context
