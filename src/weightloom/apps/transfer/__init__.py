"""Transfer: the change of a frozen model's weights, generated from the knowledge of a target.

From Python, start at `train` or `load`. A problem of your own inherits from
`weightloom.apps.transfer.problems.problem.TransferProblem`. The names below are loaded on first
use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightloom.apps.transfer.trained import Trained as Trained
    from weightloom.apps.transfer.trained import load as load
    from weightloom.apps.transfer.trained import train as train

__all__ = ["Trained", "load", "train"]


def __getattr__(name: str) -> Any:
    """Load a public name from its file on first use."""
    if name in __all__:
        return getattr(import_module("weightloom.apps.transfer.trained"), name)
    raise AttributeError(f"module 'weightloom.apps.transfer' has no attribute {name!r}")
