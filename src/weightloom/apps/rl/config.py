"""Options of a reinforcement learning run, with their defaults and checks."""

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

from weightloom.apps.rl.presets import RUNS, preset
from weightloom.errors import ConfigError
from weightloom.runs.options import RunOptions

Algorithm = Literal["td3", "sac", "ppo", "recurrent-ppo"]


@dataclass(frozen=True)
class RLConfig(RunOptions):
    """Options of a reinforcement learning run, as typed.

    Every field is also a command-line flag of the same name. An option left at None gets the
    default of the environment from `resolved`.

    Raises:
        ConfigError: If a value is out of range, or the method does not go with the algorithm.
    """

    command: ClassVar[str] = "rl"
    imports: ClassVar[tuple[str, ...]] = ("env",)
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
    """Environment family: `lqr`, `gyre`, `grid`, or an environment registered with gymnasium;
    `module:Name-v0` imports the module that registers it."""
    vary: tuple[str, ...] = ()
    """Training range of each context parameter, e.g. `gravity=8:12`. Default: preset ranges for
    `lqr`, `gyre`, `grid`, CartPole-v1, Pendulum-v1, Acrobot-v1, MountainCarContinuous-v0,
    HalfCheetah-v5 and Hopper-v5; other environments need this option."""
    held_out: tuple[str, ...] = ()
    """Test range of a context parameter outside its training range, e.g. `gravity=12:14`. Default:
    preset ranges for the environments that have a preset of `--vary`; none for a parameter whose
    range was typed there."""
    algorithm: Algorithm | None = None
    """Stable-Baselines3 algorithm. Default: `td3`; CartPole-v1 and Acrobot-v1 `ppo`;
    MountainCarContinuous-v0 `sac`; `grid` `recurrent-ppo`, which hides the context."""
    rows: int | None = None
    """Environments stepped in parallel. Default: 10; CartPole-v1, Acrobot-v1, HalfCheetah-v5 and
    Hopper-v5 8; Pendulum-v1 and MountainCarContinuous-v0 4; `grid` 64."""
    warm_up: int | None = None
    """Initial environment steps with random actions; TD3 and SAC. Default: 2,000; `lqr` 4,000;
    HalfCheetah-v5 and Hopper-v5 10,000."""
    updates: float | None = None
    """Optimiser steps per environment step; TD3 and SAC. Default: 1; `lqr` 0.2; `gyre` 0.5;
    HalfCheetah-v5 and Hopper-v5 0.25."""
    critics: int | None = None
    """Critics of TD3 and SAC; targets use their minimum, which is biased low from two on. Default:
    2; `lqr` 1."""
    learning_rate: float | None = None
    """Learning rate of Adam, for all trained parameters. Default: 0.0003; `lqr`, Pendulum-v1,
    HalfCheetah-v5 and Hopper-v5 0.001; `grid` 0.004."""
    final_rate: float | None = None
    """Final learning rate as a fraction of the initial one, with linear decay between. Default: 1;
    `lqr` 0.01; `grid` 0.1."""
    discount: float | None = None
    """Discount factor per environment step, between 0 and 1. Default: 0.99; `lqr` and `grid` 0.95;
    Pendulum-v1 0.98."""
    batch: int | None = None
    """Transitions per optimiser step; TD3 and SAC. Default: 256; HalfCheetah-v5 and Hopper-v5
    128."""
    rollout: int | None = None
    """Environment steps per update, summed over rows; PPO. Default: 2,048; `grid` 3,840."""
    entropy: float | None = None
    """Weight of the entropy bonus; PPO. Default: 0.01; `grid` 0.03."""
    clip: float | None = None
    """PPO clip range. Default: 0.2."""
    noise: float | None = None
    """Standard deviation of TD3's exploration noise, on actions in [-1, 1]. Default: 0.1; `lqr`
    0.3."""
    smoothing: float | None = None
    """Standard deviation of TD3's target policy smoothing; values include its cost. Default: 0.2;
    `lqr` 0."""
    reward_scale: float | None = None
    """Factor on rewards in training. Default: 1; Pendulum-v1 0.1."""
    width: int | None = None
    """Width of the trunk that reads state and context. Default: 128; `lqr`, `gyre`, `grid`,
    CartPole-v1, Acrobot-v1, HalfCheetah-v5 and Hopper-v5 64."""
    blocks: int | None = None
    """Residual blocks of the trunk. Default: 2; `lqr`, HalfCheetah-v5 and Hopper-v5 1; `grid`,
    CartPole-v1 and Acrobot-v1 0."""
    hidden: int | None = None
    """Hidden units of generated networks. Default: 128; `lqr`, `gyre`, CartPole-v1, Acrobot-v1,
    HalfCheetah-v5 and Hopper-v5 64; `grid` 32."""
    rank: int | None = None
    """Rank of the generated change to each large matrix. Default: 8; `lqr`, HalfCheetah-v5 and
    Hopper-v5 4."""
    unit: bool | None = None
    """Normalise trunk features to length one, for states with large entries. Default: off;
    HalfCheetah-v5 and Hopper-v5 on."""
    test_contexts: int | None = None
    """Contexts per test setting. Default: 100; `lqr` and `grid` 200; HalfCheetah-v5 and Hopper-v5
    40."""
    target_return: float | None = None
    """Return on validation contexts to time: the record then holds each method's environment steps
    until it is first reached. Default: not recorded."""
    validation: bool = False
    """Judge on validation contexts, drawn from the training ranges and absent from every table, to
    tune options on."""

    def __post_init__(self) -> None:
        """Check all options that need no environment."""
        super().__post_init__()
        self.check_distinct("vary", "held_out")
        self.check_counts(
            "rows", "batch", "rollout", "width", "hidden", "rank", "critics", "test_contexts"
        )
        self.check_not_negative("warm_up", "blocks", "entropy", "noise", "smoothing")
        self.check_positive("learning_rate", "reward_scale", "updates", "final_rate", "clip")
        if self.final_rate is not None and self.final_rate > 1:
            raise ConfigError(
                f"`--final-rate {self.final_rate}` is above 1. It is the final learning rate as a "
                "fraction of the initial one, and the rate decays. Type `--final-rate 1` for a "
                "constant rate."
            )
        if self.discount is not None and not 0 < self.discount < 1:
            raise ConfigError(
                f"`--discount {self.discount}` is not between 0 and 1. It weighs a reward less, "
                "the later it comes. Type `--discount 0.99`."
            )
        fit = preset(self.env, self.algorithm)
        known = RUNS[fit["algorithm"]]
        for method in self.methods:
            if ":" in method:
                raise ConfigError(
                    f"`{method}` is a method of your own, which `weightloom rl` cannot train. It "
                    f"trains methods of this library. Pass one of {', '.join(known)}."
                )
        self.check_methods(known, f"--algorithm {fit['algorithm']}", fit["comparators"])

    def validating(self) -> "RLConfig":
        """Return the options with validation contexts in place of test contexts."""
        return replace(self, validation=True)

    def resolved(self) -> "RLOptions":
        """Return the options with every None replaced by the default of the environment.

        ``evaluate_every`` and ``checkpoint_every`` default to 1/20 and 1/10 of ``steps``.

        Raises:
            ConfigError: If ``steps`` ends before the first policy update: within the warm-up, or
                below one rollout of PPO.
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
    """Options of a reinforcement learning run without a None, from `RLConfig.resolved`."""

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
        """Return the options unchanged."""
        return self

    @property
    def steps_a_round(self) -> int:
        """Environment steps between updates: one per row, or a rollout of PPO."""
        return self.rows * (max(2, self.rollout // self.rows) if "ppo" in self.algorithm else 1)

    @property
    def updates_a_round(self) -> int:
        """Optimiser steps of TD3 and SAC after one environment step per row, at least 1."""
        return max(1, round(self.updates * self.rows))

    def check_learns(self) -> None:
        """Raise a `ConfigError` unless the policy is updated at least once."""
        if "ppo" in self.algorithm:
            if self.steps < self.steps_a_round:
                shorter = max(2 * self.rows, self.steps // 10)
                advice = f", or `--rollout {shorter}`" if self.steps >= shorter else ""
                raise ConfigError(
                    f"`--steps {self.steps}` is below one rollout of {self.steps_a_round:,} steps, "
                    "so the policy would never be updated. PPO updates after whole rollouts. "
                    f"Type `--steps {10 * self.steps_a_round}`{advice}."
                )
            return
        rounds = -(-self.steps // self.rows) - self.warm_up // self.rows
        needed = 2 if self.algorithm == "td3" else 1  # TD3 moves the policy at every second update
        if rounds * self.updates_a_round < needed:
            advice = f", or `--warm-up {self.steps // 10}`" if self.steps >= 10 * self.rows else ""
            raise ConfigError(
                f"`--steps {self.steps}` with `--warm-up {self.warm_up}` would not update the "
                "policy once: actions are random during the warm-up, and updates begin at its end. "
                f"Steps should be several times the warm-up. Type `--steps "
                f"{10 * max(self.warm_up, self.rows)}`{advice}."
            )
