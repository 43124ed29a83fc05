"""Reinforcement learning in families of environments.

Policy and value function, generated from the context.

In:   a config: a family of environments, what varies in it, and the methods to train with the same
      budget.
Out:  a run's folder: config, metrics, checkpoints, record and report; from Python, an `Agent`.
The algorithms are those of Stable-Baselines3, given networks of ours.
Start at `family` and `train`, or at `run.run_rl`, then read `agents.nets` for what is generated.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from weightloom.errors import MissingExtraError

if TYPE_CHECKING:
    from weightloom.apps.rl.families import family as family
    from weightloom.apps.rl.trained import Agent as Agent
    from weightloom.apps.rl.trained import load as load
    from weightloom.apps.rl.trained import train as train

_ROOM_OF = {"family": "families", "train": "trained", "load": "trained", "Agent": "trained"}


def __getattr__(name: str) -> Any:
    """Load a public name from its room, the first time it is asked for."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in ("gymnasium", "stable_baselines3", "sb3_contrib"):
        if find_spec(module) is None:
            raise MissingExtraError(
                f"`{module}` is not installed. `rl.{name}` needs it, and an installation without "
                "extras leaves it out. "
                'Type `pip install "weightloom[rl]"`.'
            )
    value = globals()[name] = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(_ROOM_OF)
