"""One run of reinforcement learning from config to report: let methods learn, judge, record, show."""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from weightloom.apps.rl.agents.build import build_agent, remembers
from weightloom.apps.rl.agents.players import FittedOracle, ModelPlayer, Oracle, Still
from weightloom.apps.rl.checkpoint import load_policy
from weightloom.apps.rl.config import RLConfig
from weightloom.apps.rl.envs.lqr import LQR
from weightloom.apps.rl.envs.worlds import BatchedWorld, Player, World, world_of
from weightloom.apps.rl.judge import judge, row, settings
from weightloom.apps.rl.learning import train
from weightloom.apps.rl.show import write_showcase
from weightloom.report import build_report
from weightloom.runs.folder import prepare_folder, read_config
from weightloom.runs.record import Record, environment, peak_memory_bytes, write_record
from weightloom.training import read_rows


def run_rl(
    config: RLConfig, run: Path, *, command: str = "", resume: bool = False, quiet: bool = False
) -> Record | signal.Signals:
    """Let every method learn, judge all of them in contexts never met, and write the run's folder.

    Args:
        config: What to run.
        run: The run's folder; made here, after everything that can be checked was checked.
        command: What was typed, for the record.
        resume: Go on in a folder that holds an unfinished run of the same config.
        quiet: Show no progress.

    Returns:
        The record, or the signal if Ctrl-C or SIGTERM ended the run early, its checkpoint written.

    Raises:
        ConfigError: If the folder already holds a run, or the environment, a parameter or the algorithm does not fit.
        NonFiniteError: If the environment or a policy gave a number that is not finite; the last checkpoint is whole.
        CheckpointError: If a checkpoint cannot be written or read.
    """
    start_s = time.monotonic()
    config = config.resolved()
    torch.set_num_threads(config.threads)
    world = world_of(config.env, config.vary, config.held_out)
    build_agent(config.method, world, config)  # what cannot work is said before anything is written
    prepare_folder(run, config, resume, "rl")
    players: dict[str, Player] = {}
    spent_s: dict[str, float] = {}
    for method in config.methods:
        if not quiet:
            print(f"{method}: {config.steps:,} steps in {world.name}", file=sys.stderr, flush=True)
        model, seconds, stopped_by = train(method, world, config, method_folder(run, method, config), quiet)
        if stopped_by:
            return stopped_by
        spent_s[method] = round(seconds, 2)
        players[method] = ModelPlayer(model, remembers(config), config.reward_scale or 1.0)
    record: Record = {
        "command": command,
        "config": config.to_dict(),
        "scores": score_all(players, world, config, run),
        "cost": {
            "train_wall_time_s": spent_s,
            "wall_time_s": round(time.monotonic() - start_s, 2),
            "peak_memory_bytes": peak_memory_bytes(),
            **environment(),
        },
        "notes": (
            "Returns are those of whole episodes, without exploration. Intervals are 95 % over contexts. Every method "
            "took the same environment steps and updates; all have as many parameters as ours."
        ),
    }
    record["version"], record["commit"] = record["cost"].pop("weightloom"), record["cost"].pop("commit")
    write_showcase(run, players, world, config)
    write_record(run / "record.json", record)
    build_report(run)
    return record


def score_all(players: dict[str, Player], world: World, config: RLConfig, run: Path) -> list[dict[str, Any]]:
    """Judge every method in every setting, beside whoever does nothing and, where it is known, the optimum."""
    assert config.test_contexts and config.discount
    everyone: dict[str, Player] = dict(players)
    if isinstance(world, BatchedWorld) and isinstance(world.env, LQR):
        everyone["optimum (control)"] = Oracle(world, config.discount)
        everyone["cubic through optimal gains (control)"] = FittedOracle(world, config.discount)
    everyone["no action (control)"] = Still(world)
    rows = []
    for setting in settings(world, config.test_contexts):
        for method, player in everyone.items():
            found = judge(player, world, setting, config.discount)
            made = row(method, setting, found)
            if config.target_return is not None and method in players:
                steps = steps_to(config.target_return, method_folder(run, method, config))
                made["also"]["steps_to_target"] = {"mean": steps, "ci95": None}
            rows.append(made)
    return rows


def steps_to(target: float, folder: Path) -> float | None:
    """Return after how many steps the return on validation contexts first reached a target; None if never."""
    rows = (row for row in read_rows(folder) if "validation_score" in row)
    return next((float(row["step"]) for row in rows if row["validation_score"] >= target), None)


def method_folder(run: Path, method: str, config: RLConfig) -> Path:
    """Where a method's checkpoints are: those of ``--method`` in the run itself, a comparator's in a folder below."""
    return run if method == config.method else run / method


def load_players(run: Path) -> tuple[RLConfig, World, dict[str, ModelPlayer]]:
    """Read the trained methods of a run, ready to act.

    Raises:
        DataError: If the folder holds no run.
        CheckpointError: If a checkpoint is missing or not whole.
    """
    config = read_config(run, RLConfig)
    world = world_of(config.env, config.vary, config.held_out)
    players = {}
    for method in config.methods:
        model = build_agent(method, world, config)
        load_policy(method_folder(run, method, config) / "checkpoints" / "last.safetensors", model)
        players[method] = ModelPlayer(model, remembers(config), config.reward_scale or 1.0)
    return config, world, players
