"""Creation of gymnasium environments from a registered name, a class or a function."""

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
"""Default steps of an episode, where neither environment nor user sets a limit."""

Env = str | Callable[..., gymnasium.Env[Any, Any]]
"""Name registered with gymnasium, or a class or function that returns an environment."""


class Maker:
    """Factory of copies of one environment, with context parameters for constructor or attributes.

    A class or function gets a parameter as an argument if it takes one of that name, so that values
    derived from it are computed in every episode. A registered environment is created once and gets
    parameters as attributes; those without an attribute go to its constructor.

    Args:
        env: Registered name, class, or function that returns an environment.
        max_steps: Steps of an episode. Default: the limit of the environment, else 1000.

    Raises:
        ConfigError: If ``env`` is none of the three, e.g. an environment instance.
    """

    def __init__(self, env: Env, max_steps: int | None = None) -> None:
        if not isinstance(env, str) and not (callable(env) and not isinstance(env, gymnasium.Env)):
            raise ConfigError(
                f"`env` is {env!r}. Training creates several copies of an environment. Pass a "
                "class, a registered name, or a function that returns an environment, e.g. "
                "`lambda: MyEnv()`."
            )
        self.env, self.max_steps = env, max_steps
        self.name = env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)

    def __call__(
        self, arguments: Mapping[str, float], endless: bool = False
    ) -> gymnasium.Env[Any, Any]:
        """Create an environment.

        Args:
            arguments: Arguments of the constructor.
            endless: Remove the time limit, unless the environment itself ends its episodes.

        Raises:
            ConfigError: If the environment cannot be created.
        """
        if isinstance(self.env, str):
            return make(self.env, 10**9 if endless else self.max_steps, **arguments)
        try:
            made = self.env(**arguments)
        except TypeError as error:
            given = ", ".join(f"{name}={value:g}" for name, value in arguments.items())
            names = ", ".join(arguments) or "**context"
            raise ConfigError(
                f"`{self.name}({given})` cannot be called ({error}). It gets the parameters of a "
                f"context. Pass a function that supplies all others, e.g. `lambda {names}: "
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
        """Return the steps of an episode of an environment made here."""
        return self.max_steps or _own_limit(env) or MOST_STEPS

    @cached_property
    def arguments(self) -> list[str]:
        """Names of the constructor's arguments that can be numbers."""
        if not isinstance(self.env, str):
            return _arguments_of(self.env)
        env = make(self.env)
        entry = env.spec.entry_point if env.spec else None
        return _arguments_of(entry if callable(entry) else type(env.unwrapped))

    def constructed(self, family: ContextFamily) -> tuple[str, ...]:
        """Return the parameters of a family that go to the constructor; the others are attributes.

        Raises:
            ConfigError: If the environment has neither an argument nor an attribute of a name.
        """
        takes = [one for one in family.varied if one.name in self.arguments]
        registered = isinstance(self.env, str)
        unknown = [one.name for one in family.varied if one not in takes]
        has = self._attributes({} if registered else middle_of(takes), unknown)
        return tuple(one.name for one in takes if not (registered and one.name in has))

    def _attributes(self, arguments: Mapping[str, float], unknown: list[str]) -> list[str]:
        """Return the numeric attributes of an environment, which must include ``unknown``.

        If the constructor fails for lack of an argument that is misspelt in ``unknown``, the error
        names the misspelt parameter.
        """
        try:
            has = parameters_of(self(arguments))
        except ConfigError as error:
            if isinstance(self.env, str) or not unknown:
                raise
            if not nearest(unknown[0], self.arguments).startswith("Did you mean"):
                raise
            raise self._lacks(unknown[0], self.arguments) from error
        for name in unknown:
            if name not in has:
                raise self._lacks(name, [*self.arguments, *has])
        return has

    def _lacks(self, name: str, known: Iterable[str]) -> ConfigError:
        return ConfigError(
            f"`{name}` is neither an argument of `{self.name}` nor a number among its attributes. "
            "A context parameter is passed to the constructor, or set before an episode. "
            f"{nearest(name, dict.fromkeys(known))}"
        )


def middle_of(varied: Iterable[Varied]) -> dict[str, float]:
    """Return the middle of each training range by name."""
    return {one.name: sum(one.train) / 2 for one in varied}


def make_contextual(
    maker: Maker, family: ContextFamily, given: tuple[str, ...], endless: bool = False
) -> ContextualEnv:
    """Create an environment that draws a context at every reset, with Box actions in [-1, 1].

    Args:
        maker: Factory of the environment.
        family: Context parameters and their ranges.
        given: Parameters that go to the constructor.
        endless: Remove the time limit.

    Raises:
        ConfigError: If a limit of its actions is infinite.
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
            f"Actions of `{type(env.unwrapped).__name__}` are {env.action_space}. Agents need "
            "bounded actions. Give the action space a finite `low` and `high`."
        )
    return RescaleAction(env, np.float32(-1.0), np.float32(1.0))


def _own_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    return env.spec.max_episode_steps if env.spec else None


def _arguments_of(maker: Any) -> list[str]:
    """Return the numeric arguments of a class or function, those of parent classes included."""
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
    """Return whether an argument can be passed by name and its default allows a number."""
    named = parameter.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    default = parameter.default
    none = default is None or default is inspect.Parameter.empty
    fits = none or (isinstance(default, int | float) and not isinstance(default, bool))
    return named and fits and parameter.name not in ("self", "render_mode")
