"""Data sets as few-shot problems: sources of tasks, base networks and methods.

In:   a resolved `FewShotConfig`.
Out:  a `Problem`.
Knows nothing of how methods are trained, judged or shown. Start at `problem_of`.
"""

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.problems.problem import Problem as Problem
from weightloom.errors import ConfigError


def problem_of(config: FewShotOptions) -> Problem:
    """Load the data of a run as a problem.

    Args:
        config: Resolved options.

    Raises:
        DataError: If the data are missing or damaged.
        MissingExtraError: If an optional package for the data is not installed.
        ConfigError: If the data have too few classes or examples for ways, shots and queries, or
            ``base`` or a method does not go with them.
    """
    if config.base and (config.kind.startswith("cameras") or config.kind == "mnist-functions"):
        raise ConfigError(
            f"`--base {config.base}` with `--data {config.data}`. Methods for these data need "
            "their built-in base networks. Leave `--base` out."
        )
    problem = _problem_of(config)
    if config.base or config.kind == "own":
        problem.check_methods()
    return problem


def _problem_of(config: FewShotOptions) -> Problem:
    from weightloom.apps.fewshot.problems import cameras, classes, curves, functions, own

    if config.kind == "own":
        return own.own_problem(config)
    if config.kind.startswith("cameras"):
        return cameras.CameraProblem(config)
    if config.kind == "mnist-functions":
        return functions.FunctionProblem(config)
    if config.kind in ("sinusoid", "growth-curves", "table"):
        return curves.CurveProblem(config)
    return classes.ClassProblem(config)
