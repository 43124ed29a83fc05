"""Adversarial problems by name, each imported when it is opened.

In:   options.
Out:  a `GanProblem`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from weightloom.apps.gan.presets import PROBLEMS
from weightloom.apps.registry import called
from weightloom.errors import ConfigError

if TYPE_CHECKING:
    from weightloom.apps.gan.config import GanOptions
    from weightloom.apps.gan.problems.problem import GanProblem

OWN_FOLDER = "folder:folder_problem"
"""File and function that open a folder of one's own."""


def problem_of(config: "GanOptions") -> "GanProblem":
    """Open the problem of a run: one of this library, or ``module:Class`` called with the options.

    Raises:
        DataError: If data are missing or damaged.
        MissingExtraError: If an optional package is not installed.
        ConfigError: If options do not fit the data, an own class cannot be called, or it is
            no `GanProblem`.
    """
    if config.data in PROBLEMS or config.is_folder:
        place = OWN_FOLDER if config.is_folder else PROBLEMS[config.data].place
        file, _, name = place.partition(":")
        module = import_module(f"weightloom.apps.gan.problems.{file}")
        problem: GanProblem = getattr(module, name)(config)
        return problem
    from weightloom.apps.gan.problems.problem import GanProblem as Kind  # imports torch

    own = called(config.data, "A problem", "my_samples:MyProblem", config)
    if not isinstance(own, Kind):
        raise ConfigError(
            f"`--data {config.data}` gave a {type(own).__name__}. A problem of your own has "
            "pairs, samples and scores. Inherit from "
            "`weightloom.apps.gan.problems.problem.GanProblem`."
        )
    return own
