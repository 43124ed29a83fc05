"""Gymnasium environments with a context: drawn at every reset, observed before the state."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from weightloom.apps.rl.envs.context import ContextFamily
from weightloom.apps.rl.envs.finite import check_finite
from weightloom.apps.rl.envs.physics import Physics
from weightloom.errors import ConfigError, nearest
from weightloom.texts import shortened


class ContextualEnv(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Wrapper that draws a context at every reset and puts it in front of the observation.

    Training ranges are mapped to [-1, 1].

    Args:
        env: The environment, with flat observations.
        family: Context parameters and their ranges.
        constructed: Parameters that the constructor takes; the environment is created anew for
            each of their values.
        remake: Creates the environment from these parameters.

    Raises:
        ConfigError: If the environment lacks a parameter of the family, or its observations are not
            flat.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        family: ContextFamily,
        constructed: tuple[str, ...] = (),
        remake: Callable[[Mapping[str, float]], gymnasium.Env[Any, Any]] | None = None,
    ) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(
            self, family=family, constructed=constructed, remake=remake
        )
        gymnasium.Wrapper.__init__(self, env)
        self.family, self.constructed, self.remake = family, constructed, remake
        self.attributes = [name for name in family.names if name not in constructed]
        self.physics = Physics(env, self.attributes)
        self.draws = np.random.default_rng()
        """Random generator of contexts, for environments that are created anew at every reset."""
        seen = env.observation_space
        if not isinstance(seen, spaces.Box) or len(seen.shape) != 1:
            raise ConfigError(
                f"Observations of `{type(env.unwrapped).__name__}` are {seen}. The context is put "
                "in front of a flat vector. Wrap the environment in "
                "`gymnasium.wrappers.FlattenObservation` where it is made."
            )
        self.observation_space = spaces.Box(
            -np.inf, np.inf, (len(family.names) + seen.shape[0],), np.float32
        )
        self.episodes = 0
        self.given: list[float] | None = None
        """Context for every reset, in the environment's units; None to draw one."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in a new context, or in ``given``."""
        if seed is not None:
            self.draws = np.random.default_rng(seed)
            self.np_random = np.random.default_rng(seed)
        if self.given is None:
            draws = self.draws if self.constructed else self.np_random
            generator = torch.Generator().manual_seed(int(draws.integers(2**63)))
            self.context = self.family.sample(1, generator)
        else:
            self.context = torch.tensor([self.given])
        self.told = self.family.normalise(self.context)[0].numpy()
        self.episodes += 1
        context = self._by_name(self.context[0].tolist())
        if self.constructed and self.remake:
            self.env.close()
            self.env = self.remake({name: context[name] for name in self.constructed})
            self.physics = Physics(self.env, self.attributes)
            seed = int(self.draws.integers(2**31)) if seed is None else seed
        self.physics.put([context[name] for name in self.attributes])
        state, info = self.env.reset(seed=seed, options=options)
        return self._observe(state), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment.

        Raises:
            NonFiniteError: If the reward or the state is not finite.
        """
        state, given, terminated, truncated, info = self.env.step(action)
        reward = float(given)
        if not (np.isfinite(reward) and np.isfinite(state).all()):
            name = self.env.spec.id if self.env.spec else type(self.env.unwrapped).__name__
            numbers = torch.as_tensor(np.asarray(state, dtype=np.float64))[None]
            check_finite(
                name,
                torch.tensor([reward]),
                numbers,
                self.context,
                self.family.names,
                self.episodes,
            )
        return self._observe(state), reward, terminated, truncated, info

    def change(self, context: list[float]) -> None:
        """Change the physics to another context in mid-episode; the observed context stays."""
        named = self._by_name(context)
        self.physics.put([named[name] for name in self.attributes])

    def _by_name(self, context: list[float]) -> dict[str, float]:
        return dict(zip(self.family.names, context, strict=True))

    def _observe(self, state: Any) -> Any:
        return np.concatenate([self.told, np.asarray(state)], dtype=np.float32)


def make(name: str, max_steps: int | None = None, **arguments: float) -> gymnasium.Env[Any, Any]:
    """Create a registered environment.

    Args:
        name: Registered name, e.g. ``"Pendulum-v1"`` or ``"module:Name-v0"``.
        max_steps: Steps of an episode. Default: the registered limit.
        **arguments: Arguments of the constructor.

    Raises:
        ConfigError: If the name is not registered, or the environment cannot be created.
    """
    known = [
        identity
        for identity in gymnasium.registry
        if not identity.startswith(("GymV", "phys2d", "tabular"))
    ]
    try:
        with _quiet_compiler(name):
            return gymnasium.make(
                name, max_episode_steps=max_steps, disable_env_checker=True, **arguments
            )
    except (
        gymnasium.error.Error,
        ImportError,
        SystemExit,
        ValueError,
    ) as error:  # the part before a colon is imported, and may raise or exit
        said = str(error).partition("\n")[0]
        raise ConfigError(
            f"`--env {shortened(name)}` cannot be made ({shortened(said)}). It is `lqr`, `gyre`, "
            f"`grid`, or the name of an environment that is registered with gymnasium, as "
            f"`module:Name-v0` where a module registers it. "
            f"{nearest(name, known) if name not in known else 'Install its dependencies.'}"
        ) from error


@contextmanager
def _quiet_compiler(name: str) -> Iterator[None]:
    """Silence MuJoCo's warnings on gymnasium's models, and its log file in the user's folder."""
    known = gymnasium.registry.get(name)
    if (
        "mujoco" not in str(known.entry_point if known else "")
        or importlib.util.find_spec("mujoco") is None
    ):
        yield
        return
    mujoco = importlib.import_module("mujoco")
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(None)
