"""Reinforcement learning in families of environments: policy and value generated from the context.

In:   a config: environment, ranges of the context, and the methods to train with the same budget.
Out:  a run's folder: config, metrics, checkpoints, record and report; from Python, an `Agent`.
The algorithms are those of Stable-Baselines3, with networks of this library.
Start at `family` and `train`, or at `app.RL`, then read `agents.nets` for the generated networks.
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
    """Import a public name from its module on first access.

    Raises:
        AttributeError: If the name is not public.
        MissingExtraError: If a package of the extra `rl` is not installed.
    """
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
