"""Families of environments in Python: an environment, and a range for each context parameter."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

from weightloom.apps.rl.envs.batched import BatchedEnv
from weightloom.apps.rl.envs.context import ContextFamily, Range, Varied
from weightloom.apps.rl.envs.default_ranges import usual
from weightloom.apps.rl.envs.gymnasium_env import KINDS
from weightloom.apps.rl.envs.maker import Env, Maker
from weightloom.apps.rl.envs.worlds import BatchedWorld, GymWorld, World
from weightloom.errors import ConfigError, nearest


def family(
    env: Env | type[BatchedEnv],
    *,
    held_out: Mapping[str, Range] | None = None,
    max_steps: int | None = None,
    **ranges: Range,
) -> World:
    """Return a family of environments, to train in and to roll out.

    A context holds one number per name. If the constructor or function ``env`` has an argument of
    that name, the number is passed to it and the environment is made anew for every episode.
    Otherwise the number is written to the attribute of that name before every episode.

    Args:
        env: Class of a gymnasium environment, function that returns one, name registered with
            gymnasium, `lqr`, `gyre`, `grid`, or subclass of `BatchedEnv`.
        held_out: Test ranges by name, each disjoint from the training range of that name.
        max_steps: Steps of an episode. Default: the limit of the environment, else 1000.
        **ranges: Training range by name, e.g. ``gravity=(5.0, 15.0)``. Default: preset ranges, if
            ``env`` is a name that has them.

    Raises:
        ConfigError: If a range is empty or overlaps its held-out range, no parameter varies, or
            the environment lacks a parameter.

    Example:
        >>> springs = family("lqr", stiffness=(0.0, 1.0), held_out={"stiffness": (1.0, 2.0)})
        >>> springs.family.names, springs.max_steps
        (('stiffness', 'motor'), 40)
    """
    beyond, varied = _ranges(held_out or {}), _ranges(ranges)
    batched = _batched(env)
    known = {one.name: one for one in usual(env if isinstance(env, str) else "")}
    names = batched.parameters if batched else tuple(varied or known)
    _check_vary([*varied, *beyond], names)
    _check_ranged(names, {*varied, *known})
    contexts = ContextFamily(tuple(_varied(name, varied, beyond, known) for name in names))
    _check_steps(max_steps)
    if not batched:
        return GymWorld(Maker(cast("Env", env), max_steps), contexts)
    made = batched()
    if max_steps is not None:
        made.max_steps = max_steps
    return BatchedWorld(made, contexts)


def _check_vary(typed: Sequence[str], names: Sequence[str]) -> None:
    """Raise a `ConfigError` for a range of a name that does not vary."""
    for name in typed:
        if name not in names:
            raise ConfigError(
                f"`{name}` does not vary in this family. A range belongs to a parameter of the "
                f"context. {nearest(name, names)} To let it vary, pass a training range too, e.g. "
                f"`{name}=(0.5, 1.5)`."
            )


def _check_ranged(names: Sequence[str], ranged: set[str]) -> None:
    """Raise a `ConfigError` unless at least one parameter varies, and each has a training range."""
    if not names:
        raise ConfigError(
            "No parameter varies. A family of environments needs a training range for each "
            "parameter of the context. Pass one, e.g. `gravity=(0.5, 1.5)`."
        )
    for name in names:
        if name not in ranged:
            raise ConfigError(
                f"`{name}` has no range. A family of environments needs a training range for each "
                f"parameter of the context. Pass it, e.g. `{name}=(0.5, 1.5)`."
            )


def _check_steps(max_steps: int | None) -> None:
    """Raise a `ConfigError` for fewer than one step."""
    if max_steps is not None and max_steps < 1:
        raise ConfigError(
            f"`max_steps={max_steps}` is too small. It is a count of steps. Pass 1 or more."
        )


def _varied(
    name: str, varied: Mapping[str, Range], beyond: Mapping[str, Range], known: Mapping[str, Varied]
) -> Varied:
    """Return a parameter with its typed ranges, else the preset ones."""
    if name in varied:
        return Varied(name, varied[name], beyond.get(name))
    return Varied(name, known[name].train, beyond.get(name, known[name].held_out))


def _ranges(given: Mapping[str, Any]) -> dict[str, Range]:
    return {name: _range(name, limits) for name, limits in given.items()}


def _range(name: str, limits: Any) -> Range:
    """Return low and high as numbers."""
    try:
        low, high = (float(limit) for limit in limits)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"`{name}={limits!r}` is no range. A range is two numbers, low and high. Pass them, "
            f"e.g. `{name}=(0.5, 1.5)`."
        ) from error
    return low, high


def _batched(env: Any) -> type[BatchedEnv] | None:
    """Return the class of a batched environment; None for one of gymnasium."""
    if isinstance(env, str):
        return KINDS.get(env)
    return env if inspect.isclass(env) and issubclass(env, BatchedEnv) else None
