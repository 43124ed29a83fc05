"""Preset ranges: default context parameters of environments known by name."""

import math

from weightloom.apps.rl.envs.context import Varied

BATCHED = ("lqr", "gyre", "grid")
"""Names of this library's environments, in torch."""

_USUAL: dict[str, tuple[Varied, ...]] = {
    "lqr": (Varied("stiffness", (0.0, 2.0), (2.0, 3.0)), Varied("motor", (0.5, 1.5), (1.5, 2.0))),
    "gyre": (
        Varied("amplitude", (0.1, 0.4), (0.4, 0.6)),
        Varied("frequency", (2 * math.pi / 10, 2 * math.pi / 2)),
    ),
    "grid": (Varied("column", (0.0, 5.0)), Varied("row", (0.0, 5.0))),
    "CartPole-v1": (
        Varied("length", (0.3, 0.8), (0.8, 1.2)),
        Varied("force_mag", (6.0, 14.0), (14.0, 18.0)),
    ),
    "Pendulum-v1": (Varied("g", (6.0, 14.0), (14.0, 18.0)), Varied("m", (0.6, 1.4), (1.4, 1.8))),
    "Acrobot-v1": (
        Varied("LINK_LENGTH_1", (0.7, 1.3), (1.3, 1.6)),
        Varied("LINK_MASS_1", (0.7, 1.3), (1.3, 1.6)),
    ),
    "MountainCarContinuous-v0": (Varied("power", (0.0010, 0.0020), (0.0008, 0.0010)),),
    "HalfCheetah-v5": (
        Varied("gravity", (0.6, 1.4), (1.4, 1.8)),
        Varied("mass", (0.6, 1.4), (1.4, 1.8)),
    ),
    "Hopper-v5": (
        Varied("gravity", (0.6, 1.2), (1.2, 1.4)),
        Varied("mass", (0.7, 1.3), (1.3, 1.5)),
    ),
}


def usual(name: str) -> tuple[Varied, ...]:
    """Return the preset parameters and ranges of an environment; none for an unknown one.

    Example:
        >>> [one.name for one in usual("gyre")]
        ['amplitude', 'frequency']
    """
    return _USUAL.get(name, ())
