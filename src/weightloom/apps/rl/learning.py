"""Training of one method by Stable-Baselines3, with progress, evaluation and checkpoints."""

import signal
import time
from collections import deque
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from weightloom.apps.app import Training
from weightloom.apps.rl.agents.build import remembers
from weightloom.apps.rl.agents.players import ModelPlayer
from weightloom.apps.rl.checkpoint import keep, take_up
from weightloom.apps.rl.config import RLOptions
from weightloom.apps.rl.envs.worlds import World
from weightloom.files import make_folder
from weightloom.runs.loggers import finalised, send
from weightloom.runs.metrics import append_row, read_rows, rows_up_to, write_rows
from weightloom.runs.progress import TrainingProgress
from weightloom.runs.signals import collected_signals
from weightloom.training import History

VALIDATION_SEED = 3 << 30
"""Seed of the contexts for evaluation during training, disjoint from the test contexts."""
SHOWN = 8
"""Contexts per range to evaluate during training."""
RECENT = 50
"""Number of latest episodes in the logged mean return."""


def train(
    model: Any, world: World, config: RLOptions, training: Training[Any], keeps: bool = True
) -> History:
    """Train a model, from the last checkpoint in the training's folder if one exists.

    Args:
        model: Model of Stable-Baselines3, newly built.
        world: The family to train in.
        config: Resolved options.
        training: Folder of metrics and checkpoints, identity, and progress.
        keeps: Evaluate, and write metrics and checkpoints; else the folder stays untouched.

    Returns:
        Rows of metrics, seconds of training, and the signal that stopped it, if any.

    Raises:
        CheckpointError: If a checkpoint is of another run, or cannot be written or read.
        NonFiniteError: If the environment or the policy gave a number that is not finite.
    """
    model.set_logger(Logger(None, []))
    rows = _go_on(model, training) if keeps else []
    spent_s = float(rows[-1].get("wall_time_s", 0.0)) if rows else 0.0
    left = config.steps - model.num_timesteps
    if left <= 0:
        return History(rows, spent_s)
    with (
        finalised(training.loggers),
        collected_signals() as caught,
        TrainingProgress(config.steps, model.num_timesteps, training.quiet) as progress,
    ):
        follower = Follower(world, config, training, progress, caught, spent_s, keeps)
        follower.went_on = bool(rows)
        # no log_interval: a dump would clear the values that `Follower` reads
        model.learn(left, follower, log_interval=None, reset_num_timesteps=False)
        if not follower.stopped:
            follower.finish()
    rows = read_rows(training.folder) if keeps else []
    return History(rows, follower.spent_s(), caught[0] if follower.stopped else None)


def _go_on(model: Any, training: Training[Any]) -> list[dict[str, Any]]:
    """Restore the last checkpoint of a folder, if one exists; return the metrics up to it."""
    folder, rows = training.folder, []
    checkpoint = folder / "checkpoints" / "last.safetensors"
    make_folder(checkpoint.parent)
    if checkpoint.is_file():
        take_up(checkpoint, model, training.identity)
        rows = rows_up_to(folder, model.num_timesteps)
    write_rows(folder, rows)
    return rows


class Follower(BaseCallback):
    """Callback that logs, evaluates, writes checkpoints and stops a training, between two rollouts.

    Between rollouts the state of the model is complete, so that a checkpoint can resume it.

    Args:
        world: The family to evaluate in.
        config: Resolved options.
        training: Folder of metrics and checkpoints, and identity.
        progress: Progress bar.
        caught: Signals received so far; one of them stops the training.
        before_s: Seconds of training before a resume.
        keeps: Evaluate, and write metrics and checkpoints.
    """

    def __init__(
        self,
        world: World,
        config: RLOptions,
        training: Training[Any],
        progress: TrainingProgress,
        caught: list[signal.Signals],
        before_s: float,
        keeps: bool = True,
    ) -> None:
        super().__init__()
        self.world, self.config, self.progress, self.caught = world, config, progress, caught
        self.keeps = keeps
        self.folder, self.identity = training.folder, training.identity
        self.loggers = training.loggers
        self.evaluate_every = min(config.evaluate_every, max(1, config.steps // 20))
        self.checkpoint_every = min(config.checkpoint_every, max(1, config.steps // 10))
        self.before_s, self.start_s = before_s, time.monotonic()
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.stopped = self.went_on = False
        self.evaluated = self.kept = self.logged = -1
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        self.contexts = [("validation", world.family.sample(SHOWN, generator))]
        if world.family.has_held_out:
            self.contexts.append(("held_out", world.family.sample(SHOWN, generator, held_out=True)))

    def spent_s(self) -> float:
        """Return the seconds of training, including those before a resume."""
        return self.before_s + time.monotonic() - self.start_s

    def _on_training_start(self) -> None:
        done = self.model.num_timesteps
        self.recent.extend(getattr(self.model, "recent_returns", []))
        begun = done or self.went_on  # a resumed run has been evaluated at step 0 already
        self.evaluated = done // self.evaluate_every if begun else -1
        self.kept = done // self.checkpoint_every if begun else -1
        self.logged = done * 500 // self.config.steps

    def _on_rollout_start(self) -> None:
        step = self.model.num_timesteps
        self._log(step)
        if step // self.evaluate_every > self.evaluated:
            self.evaluated = step // self.evaluate_every
            self._evaluate(step)
        if step // self.checkpoint_every > self.kept or self.caught:
            self.kept = step // self.checkpoint_every
            self._keep()
        self.stopped = bool(self.caught)

    def _on_step(self) -> bool:
        self.recent += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return not self.stopped

    def finish(self) -> None:
        """Log, evaluate and write a checkpoint at the end of the training."""
        self._log(self.model.num_timesteps, last=True)
        self._evaluate(self.model.num_timesteps)
        self._keep()

    def _keep(self) -> None:
        if self.keeps:
            model: Any = self.model
            model.recent_returns = list(self.recent)  # a resumed run logs the same mean
            keep(self.folder / "checkpoints" / "last.safetensors", self.model, self.identity)

    def _log(self, step: int, last: bool = False) -> None:
        """Show the mean return, and log it about 500 times per run."""
        values = self.model.logger.name_to_value
        loss = values.get("train/critic_loss", values.get("train/value_loss"))
        share = step * 500 // self.config.steps
        if loss is None or not self.recent:
            return
        mean = sum(self.recent) / len(self.recent)
        self.progress.note = f"  return {mean:.4g}"
        self.progress.step(min(step, self.config.steps), float(loss))
        if share > self.logged or last:
            self.logged = share
            self._write({"step": step, "loss": float(loss), "return": mean})

    def _evaluate(self, step: int) -> None:
        """Log the return in each validation context, without an effect on the training."""
        if not self.keeps:
            return
        player = ModelPlayer(self.model, remembers(self.config), self.config.reward_scale)
        row: dict[str, Any] = {"step": step, "score_name": "return"}
        for name, contexts in self.contexts:
            played = self.world.rollout(player, contexts, self.world.max_steps, VALIDATION_SEED)
            row[f"{name}_score"] = played.returns().mean().item()
            row[f"{name}_returns"] = played.returns().tolist()
        self._write(row)

    def _write(self, row: dict[str, Any]) -> None:
        if not self.keeps:
            return
        row["wall_time_s"] = round(self.spent_s(), 3)
        append_row(self.folder, row)
        send(self.loggers, row)
