"""Judging of methods by episodes in test contexts, the same contexts for every method."""

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
"""Seed of the table's contexts and initial states, for every method and every training seed."""
TUNING_SEED = 1 << 31
"""Seed of validation contexts, to tune options on; torch reads the lower 32 bits of a seed."""
NOISE = 0.1
"""Standard deviation of observation noise in the robustness measure ``noisy``."""
TAIL = 0.01
"""Weight of a reward below which a discounted sum is truncated."""
MOST_STEPS = 2_000
"""Maximum steps of a rollout that values are compared with."""


@dataclass(frozen=True)
class Setting:
    """Test contexts of one table, e.g. those of the training ranges."""

    name: str
    """Name in the table."""
    contexts: Float[Tensor, "contexts parameters"]
    others: Float[Tensor, "contexts parameters"]
    """Contexts to change the physics to in mid-episode, for the robustness measure ``changed``."""


def settings(world: World, contexts: int, validation: bool = False) -> list[Setting]:
    """Draw the contexts of every test setting: training ranges, and held-out ranges if any.

    Args:
        world: The family.
        contexts: Contexts per setting.
        validation: Return one setting of validation contexts, from the training ranges, instead.
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
    """Measure a player by one episode in each context.

    Args:
        player: The player.
        world: The family.
        setting: Contexts of the episodes.
        discount: Discount factor of values.

    Returns:
        Measures by name, (contexts,) or (1,) each: ``return``, the score; ``noisy`` and
        ``changed``, the return with observation noise and with other physics from mid-episode on;
        ``explained_variance`` for models with a value function; ``gain_error`` and ``value_error``
        for `LQR`; ``first_trial`` and ``last_trial`` for `GridWorld`.
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
    """Return the variance of discounted returns explained by the values, over contexts and steps.

    1 is perfect, 0 equals a constant. Values ignore the time limit, so episodes continue beyond it
    until a reward weighs less than `TAIL`, for at most `MOST_STEPS` steps.
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
    """Return the discounted sum of rewards from each step to the end.

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
    """Compare a policy and its values with the optimum of linear-quadratic control.

    Returns:
        ``gain_error``: ``|K - K*| / |K*|`` for the gain K fitted to a context's actions and the
        optimal gain K*. ``value_error``: root mean square error of values, divided by the root mean
        square of the optimal values; for models without a memory and for `Oracle`. Both
        (contexts,), over 128 states drawn like initial states.
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
    """Return a row of the record from the measures of `judge`.

    Args:
        method: Name of the method.
        setting: Contexts of the measures.
        found: Measures by name.
        role: Role of the method, e.g. "control".
    """
    made = row_of(method, setting.name, "return", found["return"], "higher", role)
    made["per_context"] = found["return"].tolist()
    made["also"] = {name: _summary(values) for name, values in found.items() if name != "return"}
    return made


def score_all(
    contenders: Sequence[Contender[Any]], world: World, config: RLOptions, folder: Path
) -> list[Row]:
    """Judge every contender and the controls in every setting.

    Controls are no action and, for `LQR`, the optimum and a cubic through optimal gains.

    Args:
        contenders: Models to judge.
        world: The family.
        config: Resolved options.
        folder: The run's folder, for the metrics of each method.
    """
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
    """Return a player that follows a model without exploration."""
    return ModelPlayer(model, remembers(config), config.reward_scale)


def steps_to(target: float, folder: Path) -> float | None:
    """Return the first logged step whose mean return on validation contexts reaches a target.

    None if none does.

    Args:
        target: The return to reach.
        folder: Folder of the method's metrics.
    """
    rows = (row for row in read_rows(folder) if "validation_score" in row)
    return next((float(row["step"]) for row in rows if row["validation_score"] >= target), None)


def _summary(values: Tensor) -> dict[str, float | None]:
    """Return mean and 95 % interval; the interval of a single number is None."""
    return dict(summary(values)) if len(values) > 1 else {"mean": values.item(), "ci95": None}
