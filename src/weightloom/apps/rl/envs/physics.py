"""Context parameters in gymnasium environments: numeric attributes, and the physics of MuJoCo."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from weightloom.errors import ConfigError, nearest

MUJOCO = ("gravity", "mass", "friction", "damping")
"""Context parameters of every MuJoCo environment, as factors on its original physics."""


def parameters_of(env: gymnasium.Env[Any, Any]) -> list[str]:
    """Return the names that can vary: numeric attributes, and `MUJOCO` in MuJoCo environments.

    Example:
        >>> [name for name in parameters_of(gymnasium.make("Pendulum-v1")) if len(name) == 1]
        ['g', 'l', 'm']
    """
    inner: Any = env.unwrapped
    kinds = [kind for kind in type(inner).__mro__ if kind not in gymnasium.Env.__mro__]
    names = {
        *vars(inner),
        *(name for kind in kinds for name in vars(kind) if not _is_fixed(kind, name)),
    }
    found = [
        name
        for name in sorted(names)
        if not name.startswith("_") and _is_number(getattr(inner, name, None))
    ]
    return [*MUJOCO, *found] if _is_mujoco(inner) else found


class Physics:
    """Access to the physics of one environment by name.

    Args:
        env: The environment. Its current MuJoCo physics become the reference of all factors.
        names: Names of the context parameters.

    Raises:
        ConfigError: If the environment lacks a parameter.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], names: Sequence[str]) -> None:
        inner: Any = env.unwrapped
        self.inner = inner
        known = parameters_of(env)
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"`{name}` is no parameter of `{type(self.inner).__name__}`. A context "
                    "parameter is a number that the environment reads in every step. "
                    f"{nearest(name, known)}"
                )
        self.names = tuple(names)
        self.original: dict[str, Any] = {}
        if _is_mujoco(inner):
            model = inner.model
            self.original = {
                "gravity": model.opt.gravity.copy(),
                "mass": model.body_mass.copy(),
                "inertia": model.body_inertia.copy(),
                "friction": model.geom_friction.copy(),
                "damping": model.dof_damping.copy(),
            }

    def put(self, context: Sequence[float]) -> None:
        """Write a context, in the order of the names, into the environment."""
        for name, value in zip(self.names, context, strict=True):
            if name in MUJOCO and self.original:
                self._scale(name, value)
            else:
                kind = type(getattr(self.inner, name))
                setattr(
                    self.inner,
                    name,
                    float(value) if issubclass(kind, int | np.integer) else kind(value),
                )
        inner = self.inner
        if hasattr(inner, "polemass_length"):  # CartPole caches these products
            inner.total_mass = inner.masspole + inner.masscart
            inner.polemass_length = inner.masspole * inner.length

    def _scale(self, name: str, factor: float) -> None:
        model = self.inner.model
        if name == "gravity":
            model.opt.gravity[:] = self.original["gravity"] * factor
        elif name == "mass":
            model.body_mass[:] = self.original["mass"] * factor
            model.body_inertia[:] = self.original["inertia"] * factor
        elif name == "friction":
            model.geom_friction[:, 0] = self.original["friction"][:, 0] * factor
        else:
            model.dof_damping[:] = self.original["damping"] * factor


def _is_mujoco(inner: Any) -> bool:
    return hasattr(inner, "model") and hasattr(inner.model, "body_mass")


def _is_fixed(kind: type, name: str) -> bool:
    """Return whether a class attribute is a property without a setter."""
    value = vars(kind)[name]
    return isinstance(value, property) and value.fset is None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)
