"""What one run of reinforcement learning is: every option once, with its default and its check."""

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

from weightloom.apps.rl.presets import RUNS, preset
from weightloom.errors import ConfigError
from weightloom.runs.options import RunOptions

Algorithm = Literal["td3", "sac", "ppo", "recurrent-ppo"]


@dataclass(frozen=True)
class RLConfig(RunOptions):
    """One run of reinforcement learning.

    Every field is also a command-line flag of the same name.
    """

    command: ClassVar[str] = "rl"
    imports: ClassVar[tuple[str, ...]] = (*RunOptions.imports, "env")
    swept: ClassVar[tuple[str, ...]] = (
        "learning_rate",
        "entropy",
        "clip",
        "noise",
        "smoothing",
        "final_rate",
        "updates",
    )

    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "Environments and contexts": (
            *("env", "vary", "held_out", "test_contexts", "validation", "target_return"),
        ),
        "Methods": ("width", "blocks", "hidden", "rank", "unit"),
        "Training": ("algorithm", "learning_rate", "final_rate", "discount", "batch", "rows"),
        "TD3 and SAC": ("warm_up", "updates", "critics", "noise", "smoothing", "reward_scale"),
        "PPO": ("rollout", "entropy", "clip"),
    }

    env: str = "lqr"
    """Which family: `lqr`, `gyre`, `grid`, or the name of an environment that is registered with
    gymnasium, as `module:Name-v0` where a module registers it."""
    vary: tuple[str, ...] = ()
    """What varies and its training range, as in `gravity=8:12`. Nothing: what suits the
    environment."""
    held_out: tuple[str, ...] = ()
    """Ranges that training never sees, as in `gravity=12:14`. Nothing: what suits the
    environment."""
    algorithm: Algorithm | None = None
    """Stable-Baselines3's algorithm; `recurrent-ppo` where the context is not given. None: what
    suits."""
    rows: int | None = None
    """Episodes that run side by side. None: what suits the environment."""
    warm_up: int | None = None
    """Steps with random actions at first; TD3 and SAC. None: what suits the environment."""
    updates: float | None = None
    """Optimiser steps for each environment step; TD3 and SAC. None: what suits the environment."""
    critics: int | None = None
    """Critics of TD3 and SAC; the lowest value counts, which is biased low from two on. None: what
    suits."""
    learning_rate: float | None = None
    """Of Adam, for everything that is trained. None: what suits the environment."""
    final_rate: float | None = None
    """Share of the learning rate that is left at the end; it falls linearly. None: what suits the
    environment."""
    discount: float | None = None
    """What a reward counts one step later. None: what suits the environment."""
    batch: int | None = None
    """Transitions of one update. None: what suits the environment."""
    rollout: int | None = None
    """Environment steps between updates, all rows together; PPO. None: what suits the
    environment."""
    entropy: float | None = None
    """What the entropy of a policy counts beside its return; PPO. None: what suits the
    environment."""
    clip: float | None = None
    """How far the chance of an action may move in one update, as a share of it; PPO. None: what
    suits."""
    noise: float | None = None
    """Standard deviation of what TD3 adds to actions, which are within [-1, 1]. None: what suits
    the environment."""
    smoothing: float | None = None
    """Standard deviation of what TD3 adds to target actions; values hold the cost of it. None: what
    suits."""
    reward_scale: float | None = None
    """What rewards are multiplied by in training. None: what suits the environment."""
    width: int | None = None
    """Width of the trunk that reads state and context. None: what suits the environment."""
    blocks: int | None = None
    """Residual blocks of the trunk. None: what suits the environment."""
    hidden: int | None = None
    """Hidden units of generated networks. None: what suits the environment."""
    rank: int | None = None
    """Rank of what is generated of large matrices. None: what suits the environment."""
    unit: bool | None = None
    """Whether the trunk's features are brought to length one, for states with large numbers. None:
    what suits."""
    test_contexts: int | None = None
    """Contexts of each range that methods are judged on. None: what suits the environment."""
    target_return: float | None = None
    """A return; the record then says after how many steps each method first reached it on
    validation contexts."""
    validation: bool = False
    """Judge on contexts of the training ranges that no table is computed from, to tune on."""

    def __post_init__(self) -> None:
        """Check what can be checked without the environment."""
        super().__post_init__()
        self.check_distinct("vary", "held_out")
        self.check_counts(
            "rows", "batch", "rollout", "width", "hidden", "rank", "critics", "test_contexts"
        )
        self.check_not_negative("warm_up", "blocks", "entropy", "noise", "smoothing")
        self.check_positive("learning_rate", "reward_scale", "updates", "final_rate", "clip")
        if self.final_rate is not None and self.final_rate > 1:
            raise ConfigError(
                f"`--final-rate {self.final_rate}` is above 1. It is the share of the learning "
                "rate that is left at the end, and the rate falls. Type `--final-rate 1` to keep "
                "it."
            )
        if self.discount is not None and not 0 < self.discount < 1:
            raise ConfigError(
                f"`--discount {self.discount}` is not between 0 and 1. Rewards count less the "
                "later they come. Type `--discount 0.99`."
            )
        fit = preset(self.env, self.algorithm)
        self.check_methods(
            RUNS[fit["algorithm"]], f"--algorithm {fit['algorithm']}", fit["comparators"]
        )

    def validating(self) -> "RLConfig":
        """Return the options of a run that is judged on contexts of its own."""
        return replace(self, validation=True)

    def resolved(self) -> "RLOptions":
        """Fill in what was left to the environment.

        Raises:
            ConfigError: If so few steps leave nothing to learn from: below the warm-up, or below
                one rollout of PPO.
        """
        known = preset(self.env, self.algorithm)
        steps = self.steps or known["steps"]
        known |= {"evaluate_every": max(1, steps // 20), "checkpoint_every": max(1, steps // 10)}
        missing = {name: value for name, value in known.items() if getattr(self, name) is None}
        if "comparators" in missing:
            missing["comparators"] = tuple(
                name for name in missing["comparators"] if name != self.method
            )
        whole = RLOptions(
            **{**{field.name: getattr(self, field.name) for field in fields(self)}, **missing}
        )
        whole.check_learns()
        return whole


@dataclass(frozen=True, kw_only=True)
class RLOptions(RLConfig):
    """The same, every option filled in."""

    algorithm: Algorithm
    comparators: tuple[str, ...]
    steps: int
    rows: int
    warm_up: int
    updates: float
    critics: int
    learning_rate: float
    final_rate: float
    discount: float
    batch: int
    rollout: int
    entropy: float
    clip: float
    noise: float
    smoothing: float
    reward_scale: float
    width: int
    blocks: int
    hidden: int
    rank: int
    unit: bool
    evaluate_every: int
    checkpoint_every: int
    test_contexts: int

    def resolved(self) -> "RLOptions":
        """Return them as they are."""
        return self

    @property
    def steps_a_round(self) -> int:
        """Environment steps between updates: one of each row, or a rollout of PPO."""
        return self.rows * (max(2, self.rollout // self.rows) if "ppo" in self.algorithm else 1)

    @property
    def updates_a_round(self) -> int:
        """Optimiser steps of TD3 and SAC after each step of all rows."""
        return max(1, round(self.updates * self.rows))

    def check_learns(self) -> None:
        """Raise a `ConfigError` unless the policy is updated at least once."""
        if "ppo" in self.algorithm:
            if self.steps < self.steps_a_round:
                shorter = max(2 * self.rows, self.steps // 10)
                advice = (
                    f", or `--rollout {shorter}` for shorter ones" if self.steps >= shorter else ""
                )
                raise ConfigError(
                    f"`--steps {self.steps}` is below one rollout of {self.steps_a_round:,} steps, "
                    "so nothing would be learned within them. PPO updates after whole rollouts. "
                    f"Type `--steps {10 * self.steps_a_round}`{advice}."
                )
            return
        rounds = -(-self.steps // self.rows) - self.warm_up // self.rows
        needed = 2 if self.algorithm == "td3" else 1  # TD3 moves the policy at every second update
        if rounds * self.updates_a_round < needed:
            advice = f", or `--warm-up {self.steps // 10}`" if self.steps >= 10 * self.rows else ""
            raise ConfigError(
                f"`--steps {self.steps}` with `--warm-up {self.warm_up}` would not update the "
                "policy once: actions are random during the warm-up, and nothing is learned before "
                f"its end. Steps should be several times as many. Type `--steps "
                f"{10 * max(self.warm_up, self.rows)}`{advice}."
            )
