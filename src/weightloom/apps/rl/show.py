"""What the report draws: returns over the grid of contexts, episodes in unseen contexts, values against truth."""

from typing import Any

import torch
from torch import Tensor

from weightloom.apps.app import Shown
from weightloom.apps.rl.agents.players import ModelPlayer, Oracle
from weightloom.apps.rl.config import RLOptions
from weightloom.apps.rl.envs.gyre import DoubleGyre
from weightloom.apps.rl.envs.lqr import LQR
from weightloom.apps.rl.envs.worlds import BatchedWorld, Player, World
from weightloom.apps.rl.judge import MOST_STEPS, TEST_SEED, discounted

GRID_POINTS = 13
"""Of each side of the grid of contexts; fewer where an episode takes long."""
SHOWN_EPISODES = 4
POINTS = 600
"""Values that are drawn against discounted returns."""
SHOW_SEED = TEST_SEED - 1
"""Where shown contexts come from: none of those of the table."""


def showcase(players: dict[str, Player], world: World, config: RLOptions) -> Shown:
    """Gather what the report draws: of the first method, and the grid of every method.

    Args:
        players: The methods, the one that the report is about first.
        world: Where they act.
        config: Resolved options.
    """
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"kind": "rl", "left_out": {}, "parameters": list(world.family.names)}
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
    """Whole episodes in unseen contexts.

    Paths where the environment has a plane to draw them in, else rewards.
    """
    assert config.discount
    generator = torch.Generator().manual_seed(SHOW_SEED)
    contexts = world.family.sample(SHOWN_EPISODES, generator, held_out=world.family.has_held_out)
    shown: dict[str, Player] = {next(iter(players)): next(iter(players.values()))}
    if len(players) > 1:
        shown |= dict([list(players.items())[1]])
    if isinstance(world, BatchedWorld) and isinstance(world.env, LQR):
        shown["optimum"] = Oracle(world, config.discount)
    facts["episode_methods"] = list(shown)
    facts["episode_titles"] = [
        ", ".join(
            f"{name} {value:.3g}" for name, value in zip(world.family.names, context, strict=True)
        )
        for context in contexts.tolist()
    ]
    played = [
        world.rollout(player, contexts, world.max_steps, SHOW_SEED) for player in shown.values()
    ]
    tensors = {
        "episode_rewards": torch.stack([_padded(one.rewards, world.max_steps) for one in played])
    }
    if isinstance(world, BatchedWorld) and played[0].states is not None:
        drawn = [
            [world.env.draw(one.states[:, row]) for row in range(SHOWN_EPISODES)]
            for one in played
            if one.states is not None
        ]
        if drawn[0][0] is not None:
            facts["episode_axes"] = drawn[0][0][1]
            tensors["episode_paths"] = torch.stack(
                [torch.stack([path[0] for path in rows if path]) for rows in drawn]
            )
        if isinstance(world.env, DoubleGyre):
            facts["episode_target"] = list(world.env.target)
    return tensors


def _values(player: ModelPlayer, world: World, config: RLOptions) -> dict[str, Tensor]:
    """Values beside the discounted returns that followed, of some states of held-out contexts."""
    assert config.discount
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
    """Fill up with zeros what ended early, (steps, rows)."""
    return torch.nn.functional.pad(rewards, (0, 0, 0, steps - len(rewards)))
