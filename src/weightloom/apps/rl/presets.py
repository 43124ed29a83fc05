"""What suits each environment, where nothing was typed; and which methods an algorithm can run."""

from dataclasses import dataclass
from typing import Any

OURS = "hypernetwork"


@dataclass(frozen=True)
class Method:
    """A way to tell agents their context, which can be chosen by name."""

    name: str
    """Its name on the command line."""
    about: str
    """Its idea, in one line."""
    algorithms: tuple[str, ...]
    """The algorithms that can run it."""


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
        "nothing is generated: a plain network reads the context beside the state",
        (*_OFF_POLICY, "ppo"),
    ),
    Method(
        "concat-mse", "the same, its critic with squared errors instead of Huber's", _OFF_POLICY
    ),
    Method(
        "input-matched",
        "the trunk of ours and the state once more, with nothing generated",
        (*_OFF_POLICY, "ppo"),
    ),
    Method(
        "recurrent",
        "a memory of states, actions and rewards, with nothing generated",
        ("recurrent-ppo",),
    ),
    Method(
        "none",
        "a plain network that is not told the context",
        (*_OFF_POLICY, "ppo", "recurrent-ppo"),
    ),
)
"""Every method, in the order of lists."""

RUNS: dict[str, tuple[str, ...]] = {
    algorithm: tuple(method.name for method in METHODS if algorithm in method.algorithms)
    for algorithm in (*_OFF_POLICY, "ppo", "recurrent-ppo")
}
"""Names of the methods that an algorithm can run."""

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
"""What differs from `COMMON`."""

COMPARATORS: dict[str, tuple[str, ...]] = {
    "td3": ("concat", "film"),
    "sac": ("concat", "film"),
    "ppo": ("concat", "film"),
    "recurrent-ppo": ("recurrent", "none"),
}
"""Methods that run beside ours where nothing was typed."""


def preset(env: str, algorithm: str | None) -> dict[str, Any]:
    """Return what suits an environment, with its usual algorithm or the one that was chosen."""
    known = {**COMMON, **PRESETS.get(env, {})}
    chosen = algorithm or known["algorithm"]
    return {**known, "algorithm": chosen, "comparators": COMPARATORS[chosen]}
