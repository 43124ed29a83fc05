"""Copies of an environment: one that is registered with gymnasium, or a class or a function of yours."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import RescaleAction, TimeLimit

from weightloom.apps.rl.envs.context import ContextFamily, Varied
from weightloom.apps.rl.envs.contextual import ContextualEnv, make
from weightloom.apps.rl.envs.physics import parameters_of
from weightloom.errors import ConfigError, nearest

MOST_STEPS = 1000
"""Steps of an episode where neither the environment nor its user sets a limit."""

Env = str | Callable[..., gymnasium.Env[Any, Any]]
"""A name that is registered with gymnasium, or whatever returns an environment when it is
called."""


class Maker:
    """Makes an environment as often as it is asked to, with a context given to its constructor or to its attributes.

    Of a class or function of yours the constructor comes first: what it derives from a parameter is
    then derived anew in every episode. A registered environment is made once, and its attributes
    are set; what it has no attribute for goes to its constructor.

    Args:
        env: Its registered name, its class, or a function that returns one.
        max_steps: Steps of an episode. None: the limit that it comes with, or 1000.

    Raises:
        ConfigError: If it is neither, or an environment that is made already.
    """

    def __init__(self, env: Env, max_steps: int | None = None) -> None:
        if not isinstance(env, str) and not (callable(env) and not isinstance(env, gymnasium.Env)):
            raise ConfigError(
                f"`env` is {env!r}. Training steps several copies side by side, so it must be "
                "possible to make them. Pass a class, a function that returns an environment as in "
                "`lambda: MyEnv()`, or a registered name."
            )
        self.env, self.max_steps = env, max_steps
        self.name = env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)

    def __call__(
        self, arguments: Mapping[str, float], endless: bool = False
    ) -> gymnasium.Env[Any, Any]:
        """Make one.

        Args:
            arguments: What its constructor is given.
            endless: Lift its time limit, where it is one of gymnasium's or ours.

        Raises:
            ConfigError: If it cannot be made.
        """
        if isinstance(self.env, str):
            return make(self.env, 10**9 if endless else self.max_steps, **arguments)
        try:
            made = self.env(**arguments)
        except TypeError as error:
            given = ", ".join(f"{name}={value:g}" for name, value in arguments.items())
            names = ", ".join(arguments) or "**context"
            raise ConfigError(
                f"`{self.name}({given})` cannot be called ({error}). It is given the numbers of a "
                f"context. Pass a function that knows the rest, as in `lambda {names}: "
                f"{self.name}(...)`."
            ) from error
        if not isinstance(made, gymnasium.Env):
            raise ConfigError(
                f"`{self.name}` returned {type(made).__name__}. It must return an environment of "
                "gymnasium. Derive the class from `gymnasium.Env`, or return one from the function."
            )
        limit = self.max_steps or _own_limit(made) or MOST_STEPS
        return made if endless else TimeLimit(made, limit)

    def steps_of(self, env: gymnasium.Env[Any, Any]) -> int:
        """Steps of an episode of one that was made."""
        return self.max_steps or _own_limit(env) or MOST_STEPS

    @cached_property
    def arguments(self) -> list[str]:
        """Numbers that its constructor takes by name."""
        if not isinstance(self.env, str):
            return _arguments_of(self.env)
        env = make(self.env)
        entry = env.spec.entry_point if env.spec else None
        return _arguments_of(entry if callable(entry) else type(env.unwrapped))

    def constructed(self, family: ContextFamily) -> tuple[str, ...]:
        """Names of a family that go to the constructor; the others are attributes.

        Raises:
            ConfigError: If the environment has neither an argument nor an attribute of a name.
        """
        takes = [one for one in family.varied if one.name in self.arguments]
        registered = isinstance(self.env, str)
        unknown = [name for name in family.names if name not in self.arguments]
        try:
            has = parameters_of(self({} if registered else middle_of(takes)))
        except ConfigError as error:
            if (
                registered
                or not unknown
                or not nearest(unknown[0], self.arguments).startswith("Did you mean")
            ):
                raise
            raise self._lacks(
                unknown[0], self.arguments
            ) from error  # a slip in what the constructor asks for
        for name in unknown:
            if name not in has:
                raise self._lacks(name, [*self.arguments, *has])
        return tuple(one.name for one in takes if not (registered and one.name in has))

    def _lacks(self, name: str, known: Iterable[str]) -> ConfigError:
        return ConfigError(
            f"`{name}` is neither an argument of `{self.name}` nor a number among its attributes. "
            f"What varies is given to the constructor, or set before an episode. "
            f"{nearest(name, dict.fromkeys(known))}"
        )


def middle_of(varied: Iterable[Varied]) -> dict[str, float]:
    """Return the middle of each training range."""
    return {one.name: sum(one.train) / 2 for one in varied}


def make_contextual(
    maker: Maker, family: ContextFamily, given: tuple[str, ...], endless: bool = False
) -> ContextualEnv:
    """Make an environment that draws a context at every reset, its actions within [-1, 1] where they are numbers.

    Args:
        maker: Makes it.
        family: Where contexts come from.
        given: Names that go to its constructor.
        endless: Lift its time limit.

    Raises:
        ConfigError: If its actions have no finite limits.
    """

    def make_one(context: Mapping[str, float]) -> gymnasium.Env[Any, Any]:
        return _within_one(maker(context, endless))

    middle = middle_of(one for one in family.varied if one.name in given)
    return ContextualEnv(make_one(middle), family, given, make_one)


def _within_one(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    if not isinstance(env.action_space, gymnasium.spaces.Box):
        return env
    if not env.action_space.is_bounded():
        raise ConfigError(
            f"Actions of `{type(env.unwrapped).__name__}` are {env.action_space}. Agents act "
            "within limits. Give the action space a finite `low` and `high`."
        )
    return RescaleAction(env, np.float32(-1.0), np.float32(1.0))


def _own_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    return env.spec.max_episode_steps if env.spec else None


def _arguments_of(maker: Any) -> list[str]:
    """Numbers that a class or function takes by name, those that a class hands on to its parents included."""
    found: list[str] = []
    for one in maker.__mro__ if inspect.isclass(maker) else (maker,):
        if inspect.isclass(one) and "__init__" not in vars(one):
            continue
        parameters = inspect.signature(
            one.__init__ if inspect.isclass(one) else one
        ).parameters.values()
        found += [parameter.name for parameter in parameters if _is_number(parameter)]
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _is_number(parameter: inspect.Parameter) -> bool:
    """Say whether an argument can be given by name and may be a number, as its default goes."""
    named = parameter.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    default = parameter.default
    none = default is None or default is inspect.Parameter.empty
    fits = none or (isinstance(default, int | float) and not isinstance(default, bool))
    return named and fits and parameter.name not in ("self", "render_mode")
