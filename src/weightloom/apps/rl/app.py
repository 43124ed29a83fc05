"""The application `weightloom rl`, an `App`; its parts are imported when they are used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightloom.apps.app import App, Contender, Listed, Shown, Training
from weightloom.apps.rl.config import RLConfig, RLOptions
from weightloom.apps.rl.presets import METHODS, PRESETS, preset

if TYPE_CHECKING:
    from weightloom.apps.rl.adapted import AdaptedAgent
    from weightloom.apps.rl.envs.worlds import World
    from weightloom.report.run import Run
    from weightloom.report.section import Section
    from weightloom.runs.record import Row
    from weightloom.training import History


class RL(App[RLOptions, "World", Any]):
    """Train agents in a family of environments; judge them in contexts unseen in training."""

    name = "rl"
    about = (
        "Reinforcement learning in families of environments: policy and value function, generated."
    )
    config = RLConfig
    needs = ("gymnasium", "mujoco", "stable_baselines3", "sb3_contrib")
    judged_by = ("test_contexts",)
    columns = ("explained_variance", "gain_error", "value_error", "first_trial", "last_trial")
    unseen = "contexts unseen in training"
    adapts_to = "a context, e.g. gravity=12"

    def label(self, config: RLConfig) -> str:
        """Return the environment's name, without the module and with ``-`` for ``/``."""
        return config.env.split(":")[-1].replace("/", "-")

    def open(self, config: RLOptions) -> "World":
        """Return the family of environments.

        Raises:
            ConfigError: If the environment is unknown, or lacks a parameter that shall vary.
        """
        from weightloom.apps.rl.envs.worlds import world_of

        return world_of(config.env, config.vary, config.held_out)

    def build(self, method: str, problem: "World", config: RLOptions) -> Any:
        """Build a model of Stable-Baselines3.

        Raises:
            ConfigError: If the algorithm does not fit the actions.
        """
        from weightloom.apps.rl.agents.build import build_agent

        return build_agent(method, problem, config)

    def train(
        self, model: Any, problem: "World", config: RLOptions, training: Training[Any]
    ) -> "History":
        """Train a model, from its last checkpoint if one exists."""
        from weightloom.apps.rl.learning import train

        config.check_learns()  # `--minutes` may have set the steps
        return train(model, problem, config, training)

    def trial_steps(self, config: RLOptions) -> tuple[int, int]:
        """Return two lengths beyond the warm-up, so that both include updates."""
        first = config.rollout if "ppo" in config.algorithm else config.warm_up + 20 * config.rows
        return first, 2 * first

    def load(self, model: Any, checkpoint: Path, identity: str) -> None:
        """Load the networks of a checkpoint."""
        from weightloom.apps.rl.checkpoint import load_policy

        load_policy(checkpoint, model, identity=identity)

    def judge(
        self,
        contenders: Sequence[Contender[Any]],
        problem: "World",
        config: RLOptions,
        folder: Path,
    ) -> "list[Row]":
        """Judge models by episodes in the training ranges and in the held-out ranges."""
        from weightloom.apps.rl.judge import score_all

        return score_all(contenders, problem, config, folder)

    def show(
        self, models: Mapping[str, Any], problem: "World", config: RLOptions, early: bool
    ) -> Shown:
        """Return episodes, returns over the grid of contexts, and values, for the report."""
        from weightloom.apps.rl.judge import player_of
        from weightloom.apps.rl.show import showcase

        return showcase(
            {name: player_of(model, config) for name, model in models.items()}, problem, config
        )

    def adapt(
        self, model: Any, problem: "World", config: RLOptions, support: str
    ) -> "AdaptedAgent":
        """Return the agent with the policy of one context, e.g. ``"gravity=12"``."""
        from weightloom.apps.rl.adapted import adapt_run

        return adapt_run(model, problem, config, support)

    def sections(self, run: "Run") -> "list[Section]":
        """Return the sections of the report."""
        from weightloom.apps.rl.figures import sections

        return sections(run)

    def notes(self, config: RLOptions) -> str:
        """Return the protocol in three sentences."""
        return (
            "Returns are those of whole episodes, without exploration. Intervals are 95 % over "
            "contexts. Every method took the same environment steps and updates; all have as many "
            "parameters as ours."
        )

    def listed(self) -> list[Listed]:
        """Return the tables of environments and methods."""
        envs = [
            (name, preset(name, None)["algorithm"], f"{preset(name, None)['steps']:,} steps")
            for name in PRESETS
        ]
        rows = [(method.name, method.about, " ".join(method.algorithms)) for method in METHODS]
        return [
            Listed("weightloom rl --env …", ("environment", "algorithm", "default"), envs),
            Listed("weightloom rl --method …", ("method", "description", "algorithms"), rows),
        ]
