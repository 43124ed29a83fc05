"""Transfer problems by name; each file holds one, imported when it is opened.

In:   options.
Out:  a `Problem`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from weightloom.apps.registry import called
from weightloom.apps.transfer.presets import FILES

if TYPE_CHECKING:
    from weightloom.apps.transfer.config import TransferOptions
    from weightloom.apps.transfer.problems.problem import Problem


def problem_of(config: "TransferOptions") -> "Problem":
    """Open the problem of a run: one of this library, or ``module:Class`` called with the options.

    Raises:
        DataError: If data are missing or damaged.
        MissingExtraError: If an optional package is not installed.
        ConfigError: If options do not fit the data, or an own class cannot be called.
    """
    if ":" in config.data:
        problem: Problem = called(config.data, "A problem", "my_targets:MyProblem", config)
        return problem
    file, name = FILES[config.data]
    made: Problem = getattr(import_module(f"weightloom.apps.transfer.problems.{file}"), name)(
        config
    )
    return made
