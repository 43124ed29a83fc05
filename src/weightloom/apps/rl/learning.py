"""One method learns: progress, evaluation, checkpoints and a way to stop, around Stable-Baselines3's own loop."""

import json
import signal
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from weightloom.apps.rl.agents.build import build_agent, remembers
from weightloom.apps.rl.agents.players import ModelPlayer
from weightloom.apps.rl.checkpoint import keep, take_up
from weightloom.apps.rl.config import RLConfig
from weightloom.apps.rl.envs.worlds import World
from weightloom.files import write_atomically
from weightloom.runs.progress import TrainingProgress
from weightloom.runs.signals import collected_signals
from weightloom.training import read_rows

VALIDATION_SEED = 1 << 41
"""Contexts to watch a training by: none of those that a method is judged on."""
SHOWN = 8
"""Contexts of each range whose returns are followed."""
RECENT = 50
"""Episodes that the return shown is a mean of."""


def train(
    method: str, world: World, config: RLConfig, folder: Path | None, quiet: bool = False
) -> tuple[Any, float, signal.Signals | None]:
    """Let a method learn, from its last checkpoint where there is one.

    Args:
        method: A name in `METHODS`.
        world: What it learns in.
        config: Resolved options.
        folder: Where its metrics and checkpoints are. None: nothing is evaluated, logged or kept.
        quiet: Show no progress.

    Returns:
        The model, seconds spent learning, and the signal that ended it early, if one did.

    Raises:
        NonFiniteError: If the environment or the policy gave a number that is not finite.
    """
    assert config.steps
    model = build_agent(method, world, config)
    model.set_logger(Logger(None, []))
    spent_s = 0.0 if folder is None else _go_on(model, folder)
    left = config.steps - model.num_timesteps
    if left <= 0:
        return model, spent_s, None
    with (
        collected_signals() as caught,
        TrainingProgress(config.steps, model.num_timesteps, quiet) as progress,
    ):
        follower = Follower(world, config, folder, progress, caught, spent_s)
        model.learn(left, follower, log_interval=None, reset_num_timesteps=False)
        if not follower.stopped:
            follower.finish()
    return model, follower.spent_s(), caught[0] if follower.stopped else None


def _go_on(model: Any, folder: Path) -> float:
    """Take up the last checkpoint of a folder, if there is one; return the seconds that were spent before."""
    checkpoint = folder / "checkpoints" / "last.safetensors"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    if checkpoint.is_file():
        take_up(checkpoint, model)
        rows = [row for row in read_rows(folder) if row["step"] <= model.num_timesteps]
    write_atomically(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows[-1]["wall_time_s"] if rows else 0.0


class Follower(BaseCallback):
    """Follows a training from rollout to rollout: between two of them everything that goes on is in one state.

    Args:
        world: To evaluate in.
        config: Resolved options.
        folder: Where metrics and checkpoints go; None for nowhere, and then nothing is evaluated.
        progress: What a person sees.
        caught: Signals; one ends the training.
        before_s: Seconds spent before a resume.
    """

    def __init__(
        self,
        world: World,
        config: RLConfig,
        folder: Path | None,
        progress: TrainingProgress,
        caught: list[signal.Signals],
        before_s: float,
    ) -> None:
        super().__init__()
        self.world, self.config, self.folder, self.progress, self.caught = world, config, folder, progress, caught
        self.before_s, self.start_s = before_s, time.monotonic()
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.stopped = False
        self.evaluated = self.kept = self.logged = -1
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        self.contexts = [("validation", world.family.sample(SHOWN, generator))]
        if world.family.has_held_out:
            self.contexts.append(("held_out", world.family.sample(SHOWN, generator, held_out=True)))

    def spent_s(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.before_s + time.monotonic() - self.start_s

    def _on_training_start(self) -> None:
        assert self.config.evaluate_every and self.config.checkpoint_every
        done = self.model.num_timesteps
        self.evaluated = done // self.config.evaluate_every if done else -1
        self.kept = done // self.config.checkpoint_every if done else -1
        self.logged = done * 500 // max(1, self.config.steps or 1)

    def _on_rollout_start(self) -> None:
        assert self.config.evaluate_every and self.config.checkpoint_every
        step = self.model.num_timesteps
        self._log(step)
        if step // self.config.evaluate_every > self.evaluated:
            self.evaluated = step // self.config.evaluate_every
            self._evaluate(step)
        if step // self.config.checkpoint_every > self.kept or self.caught:
            self.kept = step // self.config.checkpoint_every
            self._keep()
        self.stopped = bool(self.caught)

    def _on_step(self) -> bool:
        self.recent += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return not self.stopped

    def finish(self) -> None:
        """Write down where the training ended."""
        self._log(self.model.num_timesteps, last=True)
        self._evaluate(self.model.num_timesteps)
        self._keep()

    def _keep(self) -> None:
        if self.folder is not None:
            keep(self.folder / "checkpoints" / "last.safetensors", self.model)

    def _log(self, step: int, last: bool = False) -> None:
        """Log about 500 rows a run, and show the return."""
        values = self.model.logger.name_to_value
        loss = values.get("train/critic_loss", values.get("train/value_loss"))
        share = step * 500 // max(1, self.config.steps or 1)
        if loss is None or not self.recent:
            return
        mean = sum(self.recent) / len(self.recent)
        self.progress.note = f"  return {mean:.4g}"
        self.progress.step(min(step, self.config.steps or step), float(loss))
        if share > self.logged or last:
            self.logged = share
            self._write({"step": step, "loss": float(loss), "return": mean})

    def _evaluate(self, step: int) -> None:
        """Play in the contexts that are followed; training goes on as if nothing had been played."""
        if self.folder is None:
            return
        player = ModelPlayer(self.model, remembers(self.config), self.config.reward_scale or 1.0)
        row: dict[str, Any] = {"step": step, "score_name": "return"}
        for name, contexts in self.contexts:
            played = self.world.rollout(player, contexts, self.world.max_steps, VALIDATION_SEED)
            row[f"{name}_score"] = played.returns().mean().item()
            row[f"{name}_returns"] = played.returns().tolist()
        self._write(row)

    def _write(self, row: dict[str, Any]) -> None:
        if self.folder is None:
            return
        row["wall_time_s"] = round(self.spent_s(), 3)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
