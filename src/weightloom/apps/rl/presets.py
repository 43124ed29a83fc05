"""Default options of each environment, and the methods of each algorithm."""

from dataclasses import dataclass
from typing import Any

OURS = "hypernetwork"
"""Default `--method`."""


@dataclass(frozen=True)
class Method:
    """A method: one way for an agent to use the context."""

    name: str
    """Name on the command line."""
    about: str
    """Description in one line."""
    algorithms: tuple[str, ...]
    """Algorithms that can train it."""


_OFF_POLICY = ("td3", "sac")

METHODS = (
    Method(
        "hypernetwork",
        "policy and value function generated from state and context",
        (*_OFF_POLICY, "ppo", "recurrent-ppo"),
    ),
    Method(
        "context-only", "generated from the context alone, once an episode", (*_OFF_POLICY, "ppo")
    ),
    Method("film", "only gains and biases are generated", (*_OFF_POLICY, "ppo", "recurrent-ppo")),
    Method(
        "concat",
        "a plain network reads context and state; nothing is generated",
        (*_OFF_POLICY, "ppo"),
    ),
    Method(
        "concat-mse",
        "as concat, with squared errors in the critic in place of Huber's",
        _OFF_POLICY,
    ),
    Method(
        "input-matched",
        "the same trunk, then plain layers on its features and the state",
        (*_OFF_POLICY, "ppo"),
    ),
    Method(
        "recurrent",
        "a memory of states, actions and rewards, then plain layers",
        ("recurrent-ppo",),
    ),
    Method(
        "none",
        "a plain network that reads the state alone",
        (*_OFF_POLICY, "ppo", "recurrent-ppo"),
    ),
)
"""Every method, in the order of lists and tables."""

RUNS: dict[str, tuple[str, ...]] = {
    algorithm: tuple(method.name for method in METHODS if algorithm in method.algorithms)
    for algorithm in (*_OFF_POLICY, "ppo", "recurrent-ppo")
}
"""Names of the methods that an algorithm can train, by algorithm."""

COMMON: dict[str, Any] = {
    "algorithm": "td3",
    "steps": 60_000,
    "rows": 10,
    "warm_up": 2_000,
    "learning_rate": 3e-4,
    "final_rate": 1.0,
    "discount": 0.99,
    "batch": 256,
    "rollout": 2_048,
    "entropy": 0.01,
    "clip": 0.2,
    "noise": 0.1,
    "smoothing": 0.2,
    "updates": 1.0,
    "critics": 2,
    "width": 128,
    "blocks": 2,
    "hidden": 128,
    "rank": 8,
    "unit": False,
    "reward_scale": 1.0,
    "test_contexts": 100,
}
"""Default options of every environment; `PRESETS` overrides them."""

_MUJOCO: dict[str, Any] = {
    "steps": 300_000,
    "rows": 8,
    "warm_up": 10_000,
    "updates": 0.25,
    "batch": 128,
    "learning_rate": 1e-3,
    "width": 64,
    "blocks": 1,
    "hidden": 64,
    "rank": 4,
    "unit": True,
    "test_contexts": 40,
}

PRESETS: dict[str, dict[str, Any]] = {
    "lqr": {
        "steps": 80_000,
        "warm_up": 4_000,
        "updates": 0.2,
        "critics": 1,
        "noise": 0.3,
        "learning_rate": 1e-3,
        "final_rate": 0.01,
        "discount": 0.95,
        "smoothing": 0.0,
        "width": 64,
        "blocks": 1,
        "hidden": 64,
        "rank": 4,
        "test_contexts": 200,
    },
    "gyre": {"steps": 30_000, "updates": 0.5, "width": 64, "hidden": 64},
    "grid": {
        "algorithm": "recurrent-ppo",
        "steps": 250_000,
        "rows": 64,
        "rollout": 64 * 60,
        "learning_rate": 4e-3,
        "final_rate": 0.1,
        "entropy": 0.03,
        "discount": 0.95,
        "width": 64,
        "blocks": 0,
        "hidden": 32,
        "test_contexts": 200,
    },
    "CartPole-v1": {
        "algorithm": "ppo",
        "steps": 200_000,
        "rows": 8,
        "blocks": 0,
        "width": 64,
        "hidden": 64,
    },
    "Acrobot-v1": {
        "algorithm": "ppo",
        "steps": 200_000,
        "rows": 8,
        "blocks": 0,
        "width": 64,
        "hidden": 64,
    },
    "Pendulum-v1": {
        "steps": 30_000,
        "rows": 4,
        "learning_rate": 1e-3,
        "reward_scale": 0.1,
        "discount": 0.98,
    },
    "MountainCarContinuous-v0": {"algorithm": "sac", "steps": 50_000, "rows": 4},
    "HalfCheetah-v5": _MUJOCO,
    "Hopper-v5": _MUJOCO,
}
"""Default options by environment, where they differ from `COMMON`."""

COMPARATORS: dict[str, tuple[str, ...]] = {
    "td3": ("concat", "film"),
    "sac": ("concat", "film"),
    "ppo": ("concat", "film"),
    "recurrent-ppo": ("recurrent", "none"),
}
"""Default `--comparators` of each algorithm."""


def preset(env: str, algorithm: str | None) -> dict[str, Any]:
    """Return the default options of an environment.

    Args:
        env: Name of the environment; one without an entry in `PRESETS` gets `COMMON`.
        algorithm: Algorithm; None for the environment's default.
    """
    known = {**COMMON, **PRESETS.get(env, {})}
    chosen = algorithm or known["algorithm"]
    return {**known, "algorithm": chosen, "comparators": COMPARATORS[chosen]}
