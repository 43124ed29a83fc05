"""Fields: surrogates of differential equations, as generated coordinate networks.

From Python, start at `train` or `load`; `invert` finds an equation from scattered points of its
solution. The names below are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightloom.apps.fields.inverse import Inverted as Inverted
    from weightloom.apps.fields.inverse import invert as invert
    from weightloom.apps.fields.trained import AdaptedField as AdaptedField
    from weightloom.apps.fields.trained import TrainedField as TrainedField
    from weightloom.apps.fields.trained import load as load
    from weightloom.apps.fields.trained import train as train

_ROOM_OF = {
    "AdaptedField": "trained",
    "Inverted": "inverse",
    "TrainedField": "trained",
    "invert": "inverse",
    "load": "trained",
    "train": "trained",
}

__all__ = ["AdaptedField", "Inverted", "TrainedField", "invert", "load", "train"]


def __getattr__(name: str) -> Any:
    """Load a public name from its file on first use."""
    if name in _ROOM_OF:
        return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
