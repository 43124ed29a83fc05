"""Agents: networks against slow references, losses and targets against what the algorithms say."""

import copy

import pytest
import torch
from torch.func import functional_call

from weightloom.apps.rl.config import RLConfig
from weightloom.errors import ConfigError, NonFiniteError

pytest.importorskip("sb3_contrib")

import numpy as np
from stable_baselines3.common.logger import Logger

from weightloom.apps.rl.agents.build import build_agent
from weightloom.apps.rl.agents.nets import KINDS, Columns, GeneratedNetwork, Sizes, network_of
from weightloom.apps.rl.agents.off_policy import Critic
from weightloom.apps.rl.agents.players import ModelPlayer
from weightloom.apps.rl.envs.worlds import world_of
from weightloom.apps.rl.presets import RUNS
from weightloom.forms.factored import built

SMALL = Sizes(width=16, blocks=1, hidden=24, rank=2)
TINY = {
    "steps": 60,
    "rows": 4,
    "warm_up": 8,
    "width": 16,
    "hidden": 16,
    "blocks": 1,
    "rank": 2,
    "batch": 16,
    "rollout": 32,
}


def tiny(env="lqr", **options):
    return RLConfig(env=env, **{"comparators": (), **TINY, **options}).resolved()


def rows_of(columns, count=7):
    total = columns.context + columns.state + columns.action
    return torch.randn(
        count, total, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def moved(network):
    """Generated parameters start equal in all rows; move the head so that they differ."""
    with torch.no_grad():
        torch.manual_seed(0)
        network.hyper.head.weight.normal_(std=0.1)
    return network


@pytest.mark.parametrize("condition", ["seen", "context", "memory"])
@pytest.mark.parametrize("outputs", [{"policy": 3}, {"policy": 3, "value": 1}], ids=len)
def test_a_generated_network_equals_a_loop_over_rows_in_float64(condition, outputs):
    columns = Columns(context=2, state=5, action=1)
    network = moved(GeneratedNetwork(columns, outputs, SMALL, condition=condition).double())
    rows = rows_of(columns)
    rows[3, :2] = rows[1, :2]  # two rows of one context
    params = network.generate(rows)
    slow = []
    for number, row in enumerate(rows):
        alone = {name: built(value)[number] for name, value in params.items()}
        slow.append(functional_call(network.hyper.base, alone, (row[None, columns.acted],))[0])
    torch.testing.assert_close(network(rows), torch.stack(slow), rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(network(rows), torch.stack(slow), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_methods_read_what_they_are_told_to_and_nothing_else(kind):
    columns = Columns(context=2, state=3, action=1)
    network = network_of(kind, columns, {"value": 1}, SMALL).double()
    if isinstance(network, GeneratedNetwork):
        moved(network)
    rows = rows_of(columns).requires_grad_()
    slope = torch.autograd.grad(network(rows).sum(), rows)[0].abs().sum(0)
    assert (slope[2:] > 0).all()
    if (
        kind == "context-only"
    ):  # whose contexts are data: no gradient, but another context gives another value
        other = rows.detach().clone()
        other[:, :2] += 1
        assert not torch.allclose(network(other), network(rows))
    else:
        assert (slope[:2] > 0).all() == (kind != "none")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "context-only"])
def test_all_networks_have_as_many_parameters(kind):
    columns = Columns(context=2, state=4, action=2)
    size = sum(p.numel() for p in network_of(kind, columns, {"value": 1}, Sizes()).parameters())
    ours = sum(
        p.numel() for p in network_of("hypernetwork", columns, {"value": 1}, Sizes()).parameters()
    )
    assert size == pytest.approx(ours, rel=0.02)


def test_parameters_of_a_context_are_generated_once_until_the_context_or_the_hypernetwork_changes():
    columns = Columns(context=2, state=3)
    network = moved(GeneratedNetwork(columns, {"policy": 1}, SMALL, condition="context").double())
    calls = []
    network.trunk.register_forward_hook(lambda *_: calls.append(1))
    rows = rows_of(columns)
    with torch.no_grad():
        first = network(rows)
        rows[:, 2:] += 1
        network(rows)
        assert len(calls) == 1
        rows[0, 0] += 1
        network(rows)
        assert len(calls) == 2
        network.trunk.first.bias += 1
        rows = rows_of(columns)
        assert len(calls) == 2 and not torch.allclose(network(rows), first)
    assert len(calls) == 3


def huber(value, target):
    return sum(torch.nn.functional.huber_loss(one, target) for one in value)


@pytest.mark.parametrize(("algorithm", "scale"), [("td3", 1.0), ("sac", 0.5)])
@pytest.mark.parametrize("method", ["hypernetwork", "concat", "concat-mse"])
def test_the_critic_learns_by_the_huber_loss_unless_told_otherwise(algorithm, scale, method):
    """The algorithm's own squared error, sent back through the critic, against torch's Huber loss."""
    model = build_agent(method, world_of("lqr"), tiny(algorithm=algorithm))
    critic = model.critic
    assert isinstance(critic, Critic)
    seen, actions, target = torch.randn(12, 4), torch.randn(12, 1), 4 * torch.randn(12, 1)
    squared = scale * sum(
        torch.nn.functional.mse_loss(one, target) for one in critic(seen, actions)
    )
    got = torch.autograd.grad(squared, list(critic.parameters()))
    plain = [network(torch.cat([seen, actions], 1)) for network in critic.q_networks]
    loss = (
        huber(plain, target)
        if method != "concat-mse"
        else scale * sum((q - target).square().mean() for q in plain)
    )
    wanted = torch.autograd.grad(loss, list(critic.parameters()))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["td3", "sac"])
def test_the_actor_climbs_the_critics_own_slope(algorithm):
    model = build_agent("hypernetwork", world_of("lqr"), tiny(algorithm=algorithm))
    seen = torch.randn(12, 4)
    actions = torch.randn(12, 1, requires_grad=True)
    got = torch.autograd.grad(model.critic(seen, actions)[0].mean(), actions)[0]
    plain = model.critic.q_networks[0](torch.cat([seen, actions], 1)).mean()
    torch.testing.assert_close(got, torch.autograd.grad(plain, actions)[0])


@pytest.mark.parametrize("algorithm", ["td3", "sac"])
def test_an_agent_has_as_many_critics_as_were_asked_for(algorithm):
    config = RLConfig("lqr", algorithm=algorithm, critics=3, steps=20, rows=2, warm_up=0).resolved()
    model = build_agent("hypernetwork", world_of("lqr", (), ()), config)
    assert [len(critic.q_networks) for critic in (model.critic, model.critic_target)] == [3, 3]


def test_targets_equal_their_sources_at_first_and_follow_the_hypernetworks_by_tau():
    model = build_agent("hypernetwork", world_of("lqr"), tiny())
    pairs = [(model.actor, model.actor_target), (model.critic, model.critic_target)]
    for source, target in pairs:
        for name, value in source.state_dict().items():
            assert torch.equal(value, target.state_dict()[name])
    model.set_logger(Logger(None, []))
    model.learn(24)
    before = copy.deepcopy(model.critic_target.state_dict())
    while model._n_updates % model.policy_delay != model.policy_delay - 1:
        model.train(1, 16)
    before = copy.deepcopy(model.critic_target.state_dict())
    model.train(1, 16)  # the update in which targets move
    assert any("hyper.head" in name for name in before)
    for name, value in model.critic_target.state_dict().items():
        expected = (1 - model.tau) * before[name] + model.tau * model.critic.state_dict()[name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("algorithm", "method"), [(a, m) for a, methods in RUNS.items() for m in methods]
)
def test_every_method_of_every_algorithm_learns_acts_and_values(algorithm, method):
    world = world_of("lqr")
    config = tiny(algorithm=algorithm, learning_rate=1e-3)
    model = build_agent(method, world, config)
    model.set_logger(Logger(None, []))
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(40)
    after = model.policy.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(value.isfinite().all() for value in after.values())
    player = ModelPlayer(model, algorithm == "recurrent-ppo")
    played = world.rollout(
        player, world.family.sample(3, torch.Generator().manual_seed(0)), 5, seed=0
    )
    assert played.actions.abs().max() <= 1 or "ppo" in algorithm
    values = player.values[0] if player.memory else player.value(played.observations[0])
    assert values.shape == (3,) and values.isfinite().all()


def test_unit_features_keep_steps_of_adam_small_where_states_are_large():
    def moved(unit):
        """By how much one step moves what a policy gives, against what it moves a plain network of the same size."""
        torch.manual_seed(0)
        columns, rows = Columns(2, 17), torch.randn(64, 19) * torch.tensor([1.0] * 11 + [8.0] * 8)
        sizes = Sizes(64, 1, 64, 4, unit)
        change = []
        for kind in ("hypernetwork", "concat"):
            network = network_of(kind, columns, {"policy": 6}, sizes)
            optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
            before = network(rows)
            before.mean().backward()
            optimizer.step()
            change.append((network(rows) - before).abs().mean().item())
        return change[0] / change[1]

    assert moved(False) > 1.5 and moved(True) < 0.75


def test_length_one_is_what_the_option_says():
    world = world_of("lqr")
    model = build_agent("hypernetwork", world, tiny(unit=True))
    network = model.actor.mu[0]
    rows = torch.cat([torch.randn(5, 2), 100 * torch.randn(5, world.state_dim)], 1)
    features = network.trunk(rows[:, network.condition])
    expected = network.hyper(features / features.norm(dim=1, keepdim=True))
    for name, value in network.generate(rows).items():
        torch.testing.assert_close(built(value), built(expected[name]))


@pytest.mark.parametrize("algorithm", ["td3", "ppo"])
def test_a_method_learns_at_a_rate_of_its_own(algorithm):
    options = {"learning_rate": 1e-3, "rates": ("concat=0.0625",), "comparators": ("concat",)}
    world, config = world_of("lqr"), tiny(algorithm=algorithm, **options)
    for method, expected in (("concat", 0.0625), ("hypernetwork", 1e-3)):
        model = build_agent(method, world, config)
        parts = [model.actor, model.critic] if algorithm == "td3" else [model.policy]
        assert [part.optimizer.param_groups[0]["lr"] for part in parts] == [expected] * len(parts)


@pytest.mark.parametrize("algorithm", ["ppo", "recurrent-ppo"])
def test_clip_bounds_how_far_a_policy_moves(algorithm):
    def share_of_clipped(clip):
        model = build_agent(
            "hypernetwork",
            world_of("lqr"),
            tiny(algorithm=algorithm, clip=clip, learning_rate=1e-2),
        )
        model.set_logger(Logger(None, []))
        model.learn(32)
        return model.logger.name_to_value["train/clip_fraction"]

    assert share_of_clipped(1e-4) > 0.5 > share_of_clipped(100.0) == 0.0


@pytest.mark.parametrize("algorithm", ["ppo", "recurrent-ppo"])
def test_entropy_that_counts_much_keeps_a_policy_random(algorithm):
    def entropy_after(weight):
        config = tiny("grid", algorithm=algorithm, entropy=weight, learning_rate=1e-2)
        model = build_agent("hypernetwork", world_of("grid"), config)
        model.set_logger(Logger(None, []))
        model.learn(320)
        return -model.logger.name_to_value["train/entropy_loss"]

    assert entropy_after(10.0) > entropy_after(0.0)


@pytest.mark.parametrize("algorithm", ["ppo", "recurrent-ppo"])
def test_ppo_takes_discrete_actions(algorithm):
    world = world_of("grid")
    model = build_agent("hypernetwork", world, tiny("grid", algorithm=algorithm))
    model.set_logger(Logger(None, []))
    model.learn(40)
    played = world.rollout(
        ModelPlayer(model, algorithm == "recurrent-ppo"), torch.full((2, 2), 3.5), 4, seed=0
    )
    assert set(played.actions.unique().tolist()) <= {0, 1, 2, 3, 4}


def test_a_memory_does_not_see_the_context_but_what_came_of_its_actions():
    world = world_of("lqr")
    model = build_agent("hypernetwork", world, tiny(algorithm="recurrent-ppo"))
    with torch.no_grad():
        model.policy.mlp_extractor.network.hyper.head.weight.normal_()
    seen = (
        np.random.default_rng(0)
        .normal(size=(2, world.observation_space.shape[0]))
        .astype(np.float32)
    )

    def second_action(change_context=0.0, reward=0.0):
        player = ModelPlayer(model, True)
        player.begin(2)
        told = seen.copy()
        told[:, :2] += change_context
        player.act(told, np.zeros(2, np.float32))
        return player.act(told, np.full(2, reward, np.float32))

    np.testing.assert_array_equal(second_action(), second_action(change_context=1.0))
    assert not np.allclose(second_action(), second_action(reward=3.0))


def test_reading_a_sequence_at_once_equals_reading_it_step_by_step():
    """What is faster than sb3-contrib's own way gives the same numbers."""
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy as Theirs

    model = build_agent("hypernetwork", world_of("lqr"), tiny(algorithm="recurrent-ppo"))
    policy, memory = model.policy, model.policy.lstm_actor
    features = torch.randn(3 * 5, memory.input_size)
    states = (torch.randn(1, 3, memory.hidden_size), torch.zeros(1, 3, memory.hidden_size))
    starts = torch.zeros(3, 5)
    starts[:2, 0] = 1
    for given in (starts, starts.clone().index_fill(1, torch.tensor([3]), 1.0)):
        ours, after = policy._process_sequence(features, states, given.flatten(), memory)
        theirs, then = Theirs._process_sequence(features, states, given.flatten(), memory)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(after[0], then[0])


@pytest.mark.parametrize("algorithm", ["td3", "sac"])
def test_discrete_actions_are_refused_where_actions_must_be_numbers_and_the_advice_works(algorithm):
    world = world_of("CartPole-v1")
    with pytest.raises(
        ConfigError,
        match=rf"`--algorithm {algorithm}` does not go with `--env CartPole-v1`.*2 discrete actions",
    ):
        build_agent("hypernetwork", world, tiny("CartPole-v1", algorithm=algorithm))
    assert build_agent("hypernetwork", world, tiny("CartPole-v1", algorithm="ppo")).n_envs == 4


def test_a_policy_that_is_spoiled_is_not_taken_for_a_broken_environment():
    model = build_agent("concat", world_of("lqr"), tiny(warm_up=0))
    model.set_logger(Logger(None, []))
    with torch.no_grad():
        next(model.actor.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="The policy gave an action that is not finite"):
        model.learn(20)
