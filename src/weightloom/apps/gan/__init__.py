"""Adversarial training: generator and discriminator, both generated from a condition.

From Python, start at `train` or `load`. A problem of your own inherits from
`weightloom.apps.gan.problems.problem.GanProblem`. The names below are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightloom.apps.gan.trained import TrainedPair as TrainedPair
    from weightloom.apps.gan.trained import load as load
    from weightloom.apps.gan.trained import train as train

__all__ = ["TrainedPair", "load", "train"]


def __getattr__(name: str) -> Any:
    """Load a public name from its file on first use."""
    if name in __all__:
        return getattr(import_module("weightloom.apps.gan.trained"), name)
    raise AttributeError(f"module 'weightloom.apps.gan' has no attribute {name!r}")
