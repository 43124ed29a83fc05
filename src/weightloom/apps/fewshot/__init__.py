"""Few-shot meta-learning: from a support set to a working network in one forward pass.

From Python, start at `train`, or at `compare` for learners of your own. To add a method, inherit
from `weightloom.learners.learner.Learner`. The names below are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightloom.apps.fewshot.adapted import load_adapted as load_adapted
    from weightloom.apps.fewshot.comparison import compare as compare
    from weightloom.apps.fewshot.trained import load as load
    from weightloom.apps.fewshot.trained import train as train

_FILE_OF = {
    "load_adapted": "adapted",
    "compare": "comparison",
    "load": "trained",
    "train": "trained",
}

__all__ = list(_FILE_OF)


def __getattr__(name: str) -> Any:
    """Load a public name from its file on first use."""
    if name in _FILE_OF:
        return getattr(import_module(f"weightloom.apps.fewshot.{_FILE_OF[name]}"), name)
    raise AttributeError(f"module 'weightloom.apps.fewshot' has no attribute {name!r}")
