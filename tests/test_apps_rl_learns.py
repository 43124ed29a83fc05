"""Runs that would learn nothing are refused before they begin, and rates stay within their schedule."""

import re

import pytest

from weightloom.apps.rl.config import RLConfig, RLOptions
from weightloom.errors import ConfigError

pytest.importorskip("sb3_contrib")

from stable_baselines3.common.logger import Logger

from weightloom.apps.rl.agents.build import Falling, build_agent
from weightloom.apps.rl.envs.worlds import world_of

pytestmark = pytest.mark.usefixtures("unchecked")
SMALL = {
    "env": "lqr",
    "comparators": (),
    "width": 8,
    "hidden": 8,
    "blocks": 0,
    "rank": 2,
    "batch": 4,
}


def policy_moves(config):
    """Let Stable-Baselines3's own loop say whether a policy is another one at the end."""
    model = build_agent("hypernetwork", world_of("lqr"), config)
    model.set_logger(Logger(None, []))
    policy = model.actor if hasattr(model, "actor") else model.policy
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    model.learn(config.steps)
    return any(not value.equal(before[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize(
    ("algorithm", "steps", "rows", "warm_up", "updates"),
    [
        ("td3", 20, 4, 20, 1.0),
        ("td3", 21, 4, 20, 1.0),  # rows are stepped together: 24 steps
        ("td3", 21, 1, 20, 1.0),  # one update, which is the critic's alone
        ("td3", 22, 1, 20, 1.0),
        ("sac", 20, 4, 20, 0.25),
        ("sac", 21, 1, 20, 1.0),
    ],
)
def test_the_steps_that_are_refused_are_those_that_leave_the_policy_as_it_was(
    algorithm, steps, rows, warm_up, updates, monkeypatch
):
    config = RLConfig(
        **SMALL, algorithm=algorithm, steps=steps, rows=rows, warm_up=warm_up, updates=updates
    )
    try:
        config.resolved()
        refused = False
    except ConfigError:
        refused = True
    monkeypatch.setattr(RLOptions, "check_learns", lambda self: None)
    assert policy_moves(config.resolved()) is not refused


@pytest.mark.parametrize("algorithm", ["ppo", "recurrent-ppo"])
def test_a_rollout_is_as_long_as_the_config_says(algorithm):
    config = RLConfig(**SMALL, algorithm=algorithm, steps=30, rows=4, rollout=30).resolved()
    model = build_agent("hypernetwork", world_of("lqr"), config)
    assert model.n_steps * model.n_envs == config.steps_a_round == 28
    with pytest.raises(ConfigError, match="is below one rollout of 28 steps"):
        RLConfig(**SMALL, algorithm=algorithm, steps=27, rows=4, rollout=30).resolved()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1000}, "`--steps 1000` with `--warm-up 4000` would not update the policy once"),
        ({"steps": 50, "warm_up": 60}, "with `--warm-up 60`"),
        ({"algorithm": "sac", "steps": 200}, "with `--warm-up 4000`"),
        ({"algorithm": "ppo", "steps": 1000}, "`--steps 1000` is below one rollout of 2,040 steps"),
        ({"algorithm": "ppo", "steps": 5}, "is below one rollout"),
        ({"steps": 5}, "would not update the policy once"),
    ],
)
def test_what_the_message_says_to_type_is_taken(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        RLConfig(env="lqr", **options).resolved()
    advised = re.findall(r"`--(steps|warm-up|rollout) (\d+)`", str(error.value).split("Type ")[1])
    assert advised[0][0] == "steps"
    for name, value in advised:
        RLConfig(env="lqr", **{**options, name.replace("-", "_"): int(value)}).resolved()


def test_a_rate_falls_to_its_share_and_no_further():
    """A rollout that goes beyond the steps asked for would bring a falling rate below zero: away from what is good."""
    rate = Falling(1.0, 0.1)
    assert rate(1.0) == 1.0 and rate(0.5) == pytest.approx(0.55)
    assert rate(0.0) == rate(-0.9) == pytest.approx(0.1)
