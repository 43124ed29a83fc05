"""Families of equations by name, methods in the order of the table, and default options.

Torch is not imported.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

OURS = "generated"
"""Default `--method`."""


class KnownFamily(NamedTuple):
    """A family of equations of `weightloom fields`."""

    about: str
    """Equation and ranges in one line."""
    rates: Mapping[str, float]
    """Learning rates of single methods, each swept on validation functions."""
    options: Mapping[str, Any]
    """Default options, as fields of `FieldsConfig`, tuned on validation functions."""


class FieldMethod(NamedTuple):
    """A method of `weightloom fields`."""

    name: str
    """Name on the command line."""
    about: str
    """The idea in one line."""


ABOUT = (
    FieldMethod("generated", "all parameters of a coordinate network, written from the condition"),
    FieldMethod("generated-film", "gains and shifts of a wider coordinate network, generated"),
    FieldMethod("generated-lowrank", "changes of rank 8 of a wider coordinate network, generated"),
    FieldMethod("deeponet", "last layer of a coordinate network, generated: branch times trunk"),
    FieldMethod("concat", "one network that reads condition and position"),
    FieldMethod("concat-equal", "the same, with as many parameters as `generated`"),
    FieldMethod("nearest", "nearest training solutions, interpolated; nothing is trained"),
    FieldMethod("kernel", "principal components and kernel ridge regression; nothing is trained"),
)
"""Methods, in the order of lists."""

METHODS = tuple(its.name for its in ABOUT)
"""Names of the methods."""

COMMON: dict[str, Any] = {
    "comparators": ("concat", "concat-equal", "deeponet", "nearest", "kernel"),
    "learning_rate": 0.003,
    "functions": 32,
    "points": 96,
    "width": 256,
    "train_functions": 6000,
    "test_functions": 200,
    "evaluate_every": 500,
    "checkpoint_every": 1000,
    "steps": 3000,
}
"""Defaults of options."""

RATES = {"concat": 0.02, "concat-equal": 0.01, "deeponet": 0.01}
"""Learning rates of the rivals, each swept on validation functions."""

FAMILIES: dict[str, KnownFamily] = {
    "burgers": KnownFamily(
        about="u_t + b u u_x = a u_xx on a circle; b from .5 to 1.5, a from .03 to .3",
        rates=RATES,
        options={},
    ),
    "burgers-mild": KnownFamily(
        about="the same, a from .1 to .3",
        rates=RATES,
        options={},
    ),
    "advection-diffusion": KnownFamily(
        about="u_t + b u_x = a u_xx on a circle; b from .5 to 1.5, a from .03 to .3",
        rates=RATES,
        options={},
    ),
}
"""Families by name."""

DATA = tuple(FAMILIES)
"""Names of the families."""


def preset(data: str) -> dict[str, Any]:
    """Return the default options of a family; those of every family for one of your own."""
    return {**COMMON, **(FAMILIES[data].options if data in FAMILIES else {})}


def usual_rates(data: str) -> Mapping[str, float]:
    """Return the learning rates of single methods of a family."""
    return FAMILIES[data].rates if data in FAMILIES else {}
