"""A family of environments from Python.

An environment of your own, and a range for each number that varies.
"""

import inspect
from collections.abc import Mapping
from typing import Any

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
    """Say what varies in an environment: a family to train in and to roll out.

    A context is one number for each name. It is given to the constructor of your class or function
    where that takes an argument of the name: the environment is then made anew for every episode.
    Otherwise it is the attribute of that name, which is set before every episode.

    Args:
        env: A class of gymnasium environments, a function that returns one, a name that is
            registered with gymnasium, `lqr`, `gyre` or `grid`, or a class derived from
            `BatchedEnv`.
        held_out: Ranges that training never meets, by name; each beyond the training range of that
            name.
        max_steps: Steps of an episode. None: the limit that comes with the environment, or 1000.
        **ranges: Training range of each number, as in ``gravity=(5.0, 15.0)``. None at all: those
            usual for a name.

    Raises:
        ConfigError: If a range holds no numbers or overlaps what is held out, nothing varies, or
            the environment has no parameter of a name.

    Example:
        >>> springs = family("lqr", stiffness=(0.0, 1.0), held_out={"stiffness": (1.0, 2.0)})
        >>> springs.family.names, springs.max_steps
        (('stiffness', 'motor'), 40)
    """
    beyond = {name: _range(name, limits) for name, limits in (held_out or {}).items()}
    varied = {name: _range(name, limits) for name, limits in ranges.items()}
    batched = _batched(env)
    known = {one.name: one for one in usual(env if isinstance(env, str) else "")}
    names = batched.parameters if batched else tuple(varied or known)
    for name in [*varied, *beyond]:
        if name not in names:
            raise ConfigError(
                f"`{name}` does not vary in this family. A range is that of a number of a context. "
                f"{nearest(name, names)} To let it vary, pass a training range too, as in "
                f"`{name}=(0.5, 1.5)`."
            )
    missing = [name for name in names if name not in varied and name not in known]
    if missing or not names:
        raise ConfigError(
            f"{f'`{missing[0]}` has no range' if missing else 'Nothing varies'}. A family of "
            f"environments needs a training range for each number of a context. Pass it, as in "
            f"`{(missing or ['gravity'])[0]}=(0.5, 1.5)`."
        )
    contexts = ContextFamily(tuple(_varied(name, varied, beyond, known) for name in names))
    if max_steps is not None and max_steps < 1:
        raise ConfigError(
            f"`max_steps={max_steps}` is too small. It is a count of steps. Pass 1 or more."
        )
    if not batched:
        return GymWorld(Maker(env, max_steps), contexts)  # type: ignore[arg-type]  # no class of a BatchedEnv
    made = batched()
    if max_steps is not None:
        made.max_steps = max_steps
    return BatchedWorld(made, contexts)


def _varied(
    name: str, varied: Mapping[str, Range], beyond: Mapping[str, Range], known: Mapping[str, Varied]
) -> Varied:
    if name in varied:
        return Varied(name, varied[name], beyond.get(name))
    return Varied(name, known[name].train, beyond.get(name, known[name].held_out))


def _range(name: str, limits: Any) -> Range:
    try:
        low, high = (float(limit) for limit in limits)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"`{name}={limits!r}` is no range. It is two numbers, low and high. Pass them as in "
            f"`{name}=(0.5, 1.5)`."
        ) from error
    return low, high


def _batched(env: Any) -> type[BatchedEnv] | None:
    """The class of an environment in torch; None for gymnasium's."""
    if isinstance(env, str):
        return KINDS.get(env)
    return env if inspect.isclass(env) and issubclass(env, BatchedEnv) else None
