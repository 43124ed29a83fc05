"""What one run of reinforcement learning is: every option once, with its default and its check."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from weightloom.apps.rl.presets import OURS, RUNS, preset
from weightloom.errors import ConfigError, nearest
from weightloom.runs.options import check_rates, config_from, plain_options, rates_of

Algorithm = Literal["td3", "sac", "ppo", "recurrent-ppo"]


@dataclass(frozen=True)
class RLConfig:
    """One run of reinforcement learning. Every field is also a command-line flag of the same name."""

    env: str = "lqr"
    """Which family: `lqr`, `gyre`, `grid`, or the name of an environment that is registered with gymnasium."""
    vary: tuple[str, ...] = ()
    """What varies and its training range, as in `gravity=8:12`. Nothing: what suits the environment."""
    held_out: tuple[str, ...] = ()
    """Ranges that training never sees, as in `gravity=12:14`. Nothing: what suits the environment."""
    algorithm: Algorithm | None = None
    """Stable-Baselines3's algorithm; `recurrent-ppo` where the context is not given. None: what suits."""
    method: str = OURS
    """The method that the report is about."""
    comparators: tuple[str, ...] | None = None
    """The methods to run beside it, with the same budget. None: those that suit the algorithm."""
    steps: int | None = None
    """Environment steps of each method. None: what suits the environment."""
    rows: int | None = None
    """Episodes that run side by side. None: what suits the environment."""
    warm_up: int | None = None
    """Steps with random actions at first; TD3 and SAC. None: what suits the environment."""
    updates: float | None = None
    """Optimiser steps for each environment step; TD3 and SAC. None: what suits the environment."""
    critics: int | None = None
    """Critics of TD3 and SAC; the lowest value counts, which is biased low from two on. None: what suits."""
    learning_rate: float | None = None
    """Of Adam, for everything that is trained. None: what suits the environment."""
    rates: tuple[str, ...] = ()
    """Learning rates of methods that another one suits, as in `recurrent=0.003`."""
    final_rate: float | None = None
    """Share of the learning rate that is left at the end; it falls linearly. None: what suits the environment."""
    discount: float | None = None
    """What a reward counts one step later. None: what suits the environment."""
    batch: int | None = None
    """Transitions of one update. None: what suits the environment."""
    rollout: int | None = None
    """Environment steps between updates, all rows together; PPO. None: what suits the environment."""
    entropy: float | None = None
    """What the entropy of a policy counts beside its return; PPO. None: what suits the environment."""
    clip: float | None = None
    """How far the chance of an action may move in one update, as a share of it; PPO. None: what suits."""
    noise: float | None = None
    """Standard deviation of what TD3 adds to actions, which are within [-1, 1]. None: what suits the environment."""
    smoothing: float | None = None
    """Standard deviation of what TD3 adds to target actions; values hold the cost of it. None: what suits."""
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
    """Whether the trunk's features are brought to length one, for states with large numbers. None: what suits."""
    evaluate_every: int | None = None
    """Steps between evaluations during training. None: a twentieth of all."""
    checkpoint_every: int | None = None
    """Steps between checkpoints. None: a tenth of all."""
    test_contexts: int | None = None
    """Contexts of each range that methods are judged on. None: what suits the environment."""
    target_return: float | None = None
    """A return; the record then says after how many steps each method first reached it on validation contexts."""
    seed: int = 0
    """Everything random follows from it."""
    threads: int = 1
    """CPU threads; for networks as small as these one is quickest."""

    def __post_init__(self) -> None:
        """Check what can be checked without the environment."""
        for name in (
            "steps",
            "rows",
            "batch",
            "rollout",
            "width",
            "hidden",
            "rank",
            "critics",
            "evaluate_every",
            "checkpoint_every",
            "threads",
            "test_contexts",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`--{name.replace('_', '-')} {value}` is too small. It is a count. Pass 1 or more.")
        for name in ("warm_up", "blocks", "entropy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"`--{name.replace('_', '-')} {value}` is below 0 or infinite. Pass 0 or more.")
        for name in ("learning_rate", "reward_scale", "updates", "final_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"`--{name.replace('_', '-')} {value}` is not positive. Pass a number above 0.")
        if self.final_rate is not None and self.final_rate > 1:
            raise ConfigError(
                f"`--final-rate {self.final_rate}` is above 1. It is the share of the learning rate that is left at "
                "the end, and the rate falls. Type `--final-rate 1` to keep it."
            )
        if self.discount is not None and not 0 < self.discount < 1:
            raise ConfigError(
                f"`--discount {self.discount}` is not between 0 and 1. Rewards count less the later they come. "
                "Type `--discount 0.99`."
            )
        fit = preset(self.env, self.algorithm)
        known = RUNS[fit["algorithm"]]
        for flag, names in (("method", (self.method,)), ("comparators", self.comparators or ())):
            for name in names:
                if name not in known:
                    raise ConfigError(
                        f"`--{flag} {name}` does not go with `--algorithm {fit['algorithm']}`. All methods of a run "
                        f"learn by the same algorithm. {nearest(name, known)}"
                    )
        running = (self.method, *(fit["comparators"] if self.comparators is None else self.comparators))
        check_rates(self.rates, running)
        if self.method in (self.comparators or ()):
            raise ConfigError(
                f"`--comparators {self.method}` is `--method` too. Each method has one row. Leave one of them out."
            )

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods of the run, the one that the report is about first."""
        return (self.method, *(self.comparators or ()))

    def rate_of(self, method: str) -> float:
        """Return the learning rate of a method; the options must be resolved.

        Example:
            >>> config = RLConfig(learning_rate=0.01, rates=("concat=0.001",))
            >>> config.rate_of("hypernetwork"), config.rate_of("concat")
            (0.01, 0.001)
        """
        assert self.learning_rate
        return rates_of(self.rates).get(method, self.learning_rate)

    @property
    def steps_a_round(self) -> int:
        """Environment steps of a resolved config between updates: one of each row, or a rollout of PPO."""
        assert self.rows and self.rollout
        return self.rows * (max(2, self.rollout // self.rows) if "ppo" in str(self.algorithm) else 1)

    @property
    def updates_a_round(self) -> int:
        """Optimiser steps of TD3 and SAC after each step of all rows, in a resolved config."""
        assert self.rows and self.updates
        return max(1, round(self.updates * self.rows))

    def resolved(self) -> "RLConfig":
        """Fill in what was left to the environment.

        Raises:
            ConfigError: If so few steps leave nothing to learn from: below the warm-up, or below one rollout of PPO.
        """
        known = preset(self.env, self.algorithm)
        steps = self.steps or known["steps"]
        known |= {"evaluate_every": max(1, steps // 20), "checkpoint_every": max(1, steps // 10)}
        missing = {name: value for name, value in known.items() if getattr(self, name) is None}
        if "comparators" in missing:
            missing["comparators"] = tuple(name for name in missing["comparators"] if name != self.method)
        whole = replace(self, **missing)
        whole._check_learns()
        return whole

    def _check_learns(self) -> None:
        """Raise unless the policy is updated at least once."""
        assert self.steps and self.rows and self.warm_up is not None
        if "ppo" in str(self.algorithm):
            if self.steps < self.steps_a_round:
                shorter = max(2 * self.rows, self.steps // 10)
                advice = f", or `--rollout {shorter}` for shorter ones" if self.steps >= shorter else ""
                raise ConfigError(
                    f"`--steps {self.steps}` is below one rollout of {self.steps_a_round:,} steps, so nothing would be "
                    "learned within them. PPO updates after whole rollouts. "
                    f"Type `--steps {10 * self.steps_a_round}`{advice}."
                )
            return
        rounds = -(-self.steps // self.rows) - self.warm_up // self.rows
        needed = 2 if self.algorithm == "td3" else 1  # TD3 moves the policy at every second update
        if rounds * self.updates_a_round < needed:
            advice = f", or `--warm-up {self.steps // 10}`" if self.steps >= 10 * self.rows else ""
            raise ConfigError(
                f"`--steps {self.steps}` with `--warm-up {self.warm_up}` would not update the policy once: actions are "
                "random during the warm-up, and nothing is learned before its end. Steps should be several times as "
                f"many. Type `--steps {10 * max(self.warm_up, self.rows)}`{advice}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        return plain_options(self)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> "RLConfig":
        """Build a config from JSON or YAML values, every type checked.

        Raises:
            ConfigError: If an option is unknown or of another type.
        """
        return config_from(cls, options, ("vary", "held_out", "comparators", "rates"), "rl")
