"""Transfer problems by name; each folder holds one kind, imported when it is opened.

In:   options.
Out:  a `TransferProblem`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from weightloom.apps.registry import called
from weightloom.apps.transfer.presets import PROBLEMS
from weightloom.errors import ConfigError

if TYPE_CHECKING:
    from weightloom.apps.transfer.config import TransferOptions
    from weightloom.apps.transfer.problems.problem import TransferProblem


def problem_of(config: "TransferOptions") -> "TransferProblem":
    """Open the problem of a run: one of this library, or ``module:Class`` called with the options.

    Raises:
        DataError: If data are missing or damaged.
        MissingExtraError: If an optional package is not installed.
        ConfigError: If options do not fit the data, an own class cannot be called, or it is
            no `TransferProblem`.
    """
    if ":" not in config.data:
        file, _, name = PROBLEMS[config.data].place.partition(":")
        module = import_module(f"weightloom.apps.transfer.problems.{file}")
        problem: TransferProblem = getattr(module, name)(config)
        return problem
    from weightloom.apps.transfer.problems.problem import TransferProblem as Kind  # imports torch

    own = called(config.data, "A problem", "my_targets:MyProblem", config)
    if not isinstance(own, Kind):
        raise ConfigError(
            f"`--data {config.data}` gave a {type(own).__name__}. A problem of your own has "
            "settings, models and outputs. Inherit from "
            "`weightloom.apps.transfer.problems.problem.TransferProblem`."
        )
    return own
