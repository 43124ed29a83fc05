"""How a method is judged: in contexts never met, of the training ranges and beyond, the same for every method."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.apps.app import Contender
from weightloom.apps.experiment import method_folder
from weightloom.apps.rl.agents.build import remembers
from weightloom.apps.rl.agents.players import (
    FittedOracle,
    ModelPlayer,
    Oracle,
    Still,
    least_squares,
)
from weightloom.apps.rl.config import RLOptions
from weightloom.apps.rl.envs.grid import GridWorld
from weightloom.apps.rl.envs.lqr import LQR
from weightloom.apps.rl.envs.worlds import BatchedWorld, Player, Rollouts, World
from weightloom.runs.metrics import read_rows
from weightloom.runs.record import Role, Row, failed_row, row_of, summary

TEST_SEED = 1 << 40
"""Where contexts and starts of the table come from: the same for every method and every seed of
training."""
TUNING_SEED = 1 << 31
"""Where contexts come from that options are chosen by. Of a seed a torch generator reads the lower
32 bits only."""
NOISE = 0.1
"""Standard deviation of noise on what is seen, for the measure of robustness."""
TAIL = 0.01
"""What a reward may still count where a discounted sum is broken off."""
MOST_STEPS = 2_000
"""Steps of a rollout that values are held against, at most."""


@dataclass(frozen=True)
class Setting:
    """Contexts that methods are judged in."""

    name: str
    contexts: Float[Tensor, "contexts parameters"]
    others: Float[Tensor, "contexts parameters"]
    """What the physics change to in mid-episode, for the measure of robustness."""


def settings(world: World, contexts: int, validation: bool = False) -> list[Setting]:
    """Draw contexts of the training ranges and of those held out.

    For validation others, none of them held out.
    """
    if validation:
        generator = torch.Generator().manual_seed(TUNING_SEED)
        drawn, others = (world.family.sample(contexts, generator) for _ in range(2))
        return [Setting("validation contexts", drawn, others)]
    made = []
    for held_out in (False, True)[: 1 + world.family.has_held_out]:
        generator = torch.Generator().manual_seed(TEST_SEED + held_out)
        name = "held-out contexts" if held_out else "training ranges"
        drawn = world.family.sample(contexts, generator, held_out)
        made.append(Setting(name, drawn, world.family.sample(contexts, generator)))
    return made


def judge(player: Player, world: World, setting: Setting, discount: float) -> dict[str, Tensor]:
    """Play an episode in each context.

    Args:
        player: Who acts.
        world: Where.
        setting: Contexts.
        discount: What a reward counts one step later, for values.

    Returns:
        Each measure by name, one number per context, or one in all: ``return``, which counts; what
        is left of it with noise on what is seen (``noisy``) and with other physics from mid-episode
        on (``changed``); of a model that gives values ``explained_variance``; of linear-quadratic
        control ``gain_error`` and ``value_error``; of several trials in one episode ``first_trial``
        and ``last_trial``.
    """
    steps = world.max_steps
    played = world.rollout(player, setting.contexts, steps, TEST_SEED)
    found = {"return": played.returns()}
    found["noisy"] = world.rollout(
        player, setting.contexts, steps, TEST_SEED, noise=NOISE
    ).returns()
    if world.can_change:
        found["changed"] = world.rollout(
            player, setting.contexts, steps, TEST_SEED, change=setting.others
        ).returns()
    if isinstance(world, BatchedWorld) and isinstance(world.env, GridWorld):
        trials = played.rewards.unflatten(0, (world.env.trials, -1)).sum(1)
        found |= {"first_trial": trials[0], "last_trial": trials[-1]}
    if isinstance(player, ModelPlayer):
        found["explained_variance"] = value_accuracy(player, world, setting, discount)
    if isinstance(world, BatchedWorld) and isinstance(world.env, LQR):
        found |= linear_errors(player, world, setting, discount)
    return found


def value_accuracy(
    player: ModelPlayer, world: World, setting: Setting, discount: float
) -> Float[Tensor, " 1"]:
    """Return the share of the variance of discounted returns that values explain, over all contexts and steps.

    Episodes are played on beyond their time limit, as values are those of a world without one,
    until what is left counts less than `TAIL`; 1 is perfect, and 0 is what a constant explains.
    """
    more = math.ceil(math.log(TAIL) / math.log(discount))
    steps = min(world.max_steps + more, MOST_STEPS)
    played = world.rollout(player, setting.contexts, steps, TEST_SEED)
    truth = discounted(played, discount)
    count = min(world.max_steps, max(1, len(truth) - more))
    if not player.memory:
        values = torch.stack([player.value(seen) for seen in played.observations[:count].float()])
    else:
        values = torch.stack(player.values[:count])
    kept = played.alive[:count]
    error, truth = (truth[:count] - values)[kept], truth[:count][kept]
    return (1 - error.var() / truth.var().clamp(min=1e-12))[None]


def discounted(played: Rollouts, discount: float) -> Float[Tensor, "steps rows"]:
    """Return the discounted sum of rewards from each step on.

    Example:
        >>> rewards = torch.tensor([[0.0], [1.0], [1.0]])
        >>> played = Rollouts(rewards[..., None], rewards, rewards, rewards > -1, None)
        >>> discounted(played, 0.5).flatten().tolist()
        [0.75, 1.5, 1.0]
    """
    total, sums = torch.zeros_like(played.rewards[0]), []
    for reward in reversed(played.rewards.unbind()):
        total = reward + discount * total
        sums.append(total)
    return torch.stack(sums[::-1])


def linear_errors(
    player: Player, world: BatchedWorld, setting: Setting, discount: float
) -> dict[str, Tensor]:
    """Hold a policy and its values against the optimum of linear-quadratic control.

    Returns:
        ``gain_error``: distance of the gain that fits a context's actions best from the optimal
        gain, as a share of it. ``value_error``: root mean square of the difference from the optimal
        value, as a share of that of the values. Both per context, over 128 states drawn as episodes
        start.
    """
    env = world.env
    assert isinstance(env, LQR) and env.action_limit
    count, contexts = 128, setting.contexts
    generator = torch.Generator().manual_seed(TEST_SEED)
    told = contexts.repeat_interleave(count, 0)
    state = env.start(told, generator)
    seen = torch.cat([world.family.normalise(told), env.observe(state, told)], 1)
    gain, curvature = env.optimum(contexts, discount)
    player.begin(len(seen))
    action = env.action_limit * torch.as_tensor(
        player.act(seen.numpy(), torch.zeros(len(seen)).numpy())
    )
    states, actions = (part.unflatten(0, (-1, count)) for part in (state, action))
    fitted = -least_squares(states, actions).mT
    found = {"gain_error": (fitted - gain).flatten(1).norm(dim=1) / gain.flatten(1).norm(dim=1)}
    if isinstance(player, ModelPlayer) and not player.memory:
        truth = -((states @ curvature) * states).sum(2)
        values = player.value(seen).unflatten(0, (-1, count))
        found["value_error"] = (values - truth).square().mean(1).sqrt() / truth.square().mean(
            1
        ).sqrt()
    elif type(player) is Oracle:
        found["value_error"] = torch.zeros(len(contexts))
    return found


def row(method: str, setting: Setting, found: dict[str, Tensor], role: Role = "method") -> Row:
    """Return a row of the table, as it stands in a record."""
    made = row_of(method, setting.name, "return", found["return"], "higher", role)
    made["per_context"] = found["return"].tolist()
    made["also"] = {name: _summary(values) for name, values in found.items() if name != "return"}
    return made


def score_all(
    contenders: Sequence[Contender[Any]], world: World, config: RLOptions, folder: Path
) -> list[Row]:
    """Judge every contender in every setting, beside whoever does nothing and, where it is known, the optimum."""
    everyone: list[tuple[str, Role, Player | None]] = [
        (one.name, one.role, None if one.model is None else player_of(one.model, config))
        for one in contenders
    ]
    if isinstance(world, BatchedWorld) and isinstance(world.env, LQR):
        everyone.append(("optimum", "control", Oracle(world, config.discount)))
        everyone.append(
            ("cubic through optimal gains", "control", FittedOracle(world, config.discount))
        )
    everyone.append(("no action", "control", Still(world)))
    rows = []
    for setting in settings(world, config.test_contexts, config.validation):
        for name, role, player in everyone:
            if player is None:
                rows.append(failed_row(name, setting.name, "return", "higher"))
                continue
            made = row(name, setting, judge(player, world, setting, config.discount), role)
            if config.target_return is not None and role == "method":
                steps = steps_to(config.target_return, method_folder(folder, name, config))
                made["also"]["steps_to_target"] = {"mean": steps, "ci95": None}
            rows.append(made)
    return rows


def player_of(model: Any, config: RLOptions) -> ModelPlayer:
    """Return a model ready to act, without exploration."""
    return ModelPlayer(model, remembers(config), config.reward_scale)


def steps_to(target: float, folder: Path) -> float | None:
    """Return after how many steps the return on validation contexts first reached a target.

    None if never.
    """
    rows = (row for row in read_rows(folder) if "validation_score" in row)
    return next((float(row["step"]) for row in rows if row["validation_score"] >= target), None)


def _summary(values: Tensor) -> dict[str, float | None]:
    """Mean and interval; one number in all has none."""
    return dict(summary(values)) if len(values) > 1 else {"mean": values.item(), "ci95": None}
