"""What a data set brings to a few-shot run.

Tasks for training and for judging, base networks, methods.

In:   a resolved `FewShotConfig`.
Out:  a `Problem`.
Knows nothing of how methods are trained, judged or shown. Start at `problem_of`.
"""

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.problems.problem import Problem as Problem
from weightloom.errors import ConfigError


def problem_of(config: FewShotOptions) -> Problem:
    """Load what a config asks for.

    Raises:
        DataError: If the data are missing or damaged.
        MissingExtraError: If an optional part that they need is not installed.
        ConfigError: If ways, shots and queries ask for more than there is.
    """
    if config.base and (config.kind.startswith("cameras") or config.kind == "mnist-functions"):
        raise ConfigError(
            f"`--base {config.base}` with `--data {config.data}`. Its methods are made for base "
            "networks of their own. Leave `--base` out."
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
