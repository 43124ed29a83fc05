"""Data of the report: returns over the grid of contexts, episodes, values against returns."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightloom.apps.app import Shown
from weightloom.apps.rl.agents.players import ModelPlayer, Oracle
from weightloom.apps.rl.config import RLOptions
from weightloom.apps.rl.envs.batched import BatchedEnv
from weightloom.apps.rl.envs.gyre import DoubleGyre
from weightloom.apps.rl.envs.lqr import LQR
from weightloom.apps.rl.envs.worlds import BatchedWorld, Player, Rollouts, World
from weightloom.apps.rl.judge import MOST_STEPS, TEST_SEED, discounted

GRID_POINTS = 13
"""Points per axis of the grid of contexts in batched environments; 5 in those of gymnasium."""
SHOWN_EPISODES = 4
"""Episodes to draw, one per context."""
POINTS = 600
"""Maximum number of values to draw against discounted returns."""
SHOW_SEED = TEST_SEED - 1
"""Seed of the contexts to draw, disjoint from those of the table."""


def showcase(players: dict[str, Player], world: World, config: RLOptions) -> Shown:
    """Return the tensors and facts of the report: grid, episodes, and values of the first player.

    Args:
        players: Players by method, the report's method first.
        world: The family.
        config: Resolved options.
    """
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"kind": "rl", "left_out": {}, "parameters": list(world.family.names)}
    facts["task"] = "context"
    facts["ranges"] = [
        [one.name, list(one.train), list(one.held_out or ())] for one in world.family.varied
    ]
    points = GRID_POINTS if isinstance(world, BatchedWorld) else 5
    first, second, contexts = world.family.grid(points)
    facts |= {"grid_first": first, "grid_second": second, "grid_methods": list(players)}
    grids = [
        world.rollout(player, contexts, world.max_steps, SHOW_SEED).returns()
        for player in players.values()
    ]
    tensors["grid_returns"] = torch.stack(grids)
    tensors |= _episodes(players, world, config, facts)
    ours = next(iter(players.values()))
    if isinstance(ours, ModelPlayer):
        tensors |= _values(ours, world, config)
    return tensors, facts


def _episodes(
    players: dict[str, Player], world: World, config: RLOptions, facts: dict[str, Any]
) -> dict[str, Tensor]:
    """Return rewards of episodes in unseen contexts, and paths if the environment draws them."""
    generator = torch.Generator().manual_seed(SHOW_SEED)
    contexts = world.family.sample(SHOWN_EPISODES, generator, held_out=world.family.has_held_out)
    shown = dict(list(players.items())[:2])
    if isinstance(world, BatchedWorld) and isinstance(world.env, LQR):
        shown["optimum"] = Oracle(world, config.discount)
    facts["episode_methods"] = list(shown)
    facts["episode_titles"] = [_title(world.family.names, context) for context in contexts.tolist()]
    played = [
        world.rollout(player, contexts, world.max_steps, SHOW_SEED) for player in shown.values()
    ]
    tensors = {
        "episode_rewards": torch.stack([_padded(one.rewards, world.max_steps) for one in played])
    }
    if isinstance(world, BatchedWorld):
        tensors |= _paths(world.env, played, facts)
    return tensors


def _title(names: Sequence[str], context: list[float]) -> str:
    """Return a context in words."""
    return ", ".join(f"{name} {value:.3g}" for name, value in zip(names, context, strict=True))


def _paths(env: BatchedEnv, played: list[Rollouts], facts: dict[str, Any]) -> dict[str, Tensor]:
    """Return the paths of episodes, (players, episodes, steps, 2), if the environment draws them.

    Axes and target are added to ``facts``.
    """
    states = [one.states for one in played if one.states is not None]
    drawn = [[env.draw(one[:, row]) for row in range(SHOWN_EPISODES)] for one in states]
    if isinstance(env, DoubleGyre):
        facts["episode_target"] = list(env.target)
    if drawn[0][0] is None:
        return {}
    facts["episode_axes"] = drawn[0][0][1]
    paths = [torch.stack([path[0] for path in rows if path]) for rows in drawn]
    return {"episode_paths": torch.stack(paths)}


def _values(player: ModelPlayer, world: World, config: RLOptions) -> dict[str, Tensor]:
    """Return values and the discounted returns that followed, of at most `POINTS` states.

    Contexts are held out if the family has held-out ranges.
    """
    generator = torch.Generator().manual_seed(SHOW_SEED)
    contexts = world.family.sample(20, generator, held_out=world.family.has_held_out)
    steps = min(3 * world.max_steps, MOST_STEPS)
    played = world.rollout(player, contexts, steps, SHOW_SEED)
    truth = discounted(played, config.discount)
    count = max(1, min(world.max_steps, len(truth) // 2))
    if player.memory:
        values = torch.stack(player.values[:count])
    else:
        values = torch.stack([player.value(seen) for seen in played.observations[:count].float()])
    kept = played.alive[:count]
    truth, values = truth[:count][kept], values[kept]
    chosen = torch.randperm(len(truth), generator=generator)[:POINTS]
    return {"value_truth": truth[chosen], "value_given": values[chosen]}


def _padded(rewards: Tensor, steps: int) -> Tensor:
    """Pad rewards of episodes that ended early with zeros, to (steps, rows)."""
    return torch.nn.functional.pad(rewards, (0, 0, 0, steps - len(rewards)))
