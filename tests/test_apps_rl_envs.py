"""Families of environments, held against closed forms, gymnasium's own dynamics and its checker."""

import math

import pytest
import torch

from weightloom.errors import ConfigError, NonFiniteError

pytest.importorskip("sb3_contrib")

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env

from weightloom.apps.rl.agents.players import Oracle, Still
from weightloom.apps.rl.envs.context import ContextFamily, Varied, family_of
from weightloom.apps.rl.envs.contextual import ContextualEnv, make
from weightloom.apps.rl.envs.default_ranges import usual
from weightloom.apps.rl.envs.grid import GridWorld
from weightloom.apps.rl.envs.gymnasium_env import KINDS, register_all
from weightloom.apps.rl.envs.gyre import DoubleGyre
from weightloom.apps.rl.envs.lqr import LQR
from weightloom.apps.rl.envs.physics import Physics
from weightloom.apps.rl.envs.vector import BatchedVecEnv
from weightloom.apps.rl.envs.worlds import GymWorld, world_of
from weightloom.apps.rl.judge import discounted

CLASSIC = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", KINDS)
def test_batched_environments_pass_gymnasiums_checker(name):
    register_all()
    check_env(gymnasium.make(f"weightloom/{name}-v0").unwrapped)


@pytest.mark.parametrize("name", KINDS)
def test_one_episode_alone_equals_its_row_among_many(name):
    register_all()
    alone = gymnasium.make(f"weightloom/{name}-v0")
    rows = BatchedVecEnv(KINDS[name](), ContextFamily(usual(name)), 5, seed=1)
    rows.reset()
    alone.reset(seed=0, options={"context": rows.context[3].tolist()})
    alone.unwrapped.state = rows.state[3:4].clone()
    for _ in range(4):
        actions = np.stack([rows.action_space.sample() for _ in range(5)])
        many, rewards, _, _ = rows.step(actions)
        one, reward, _, _, _ = alone.step(actions[3])
        np.testing.assert_allclose(one, many[3], rtol=1e-5, atol=1e-6)
        assert reward == pytest.approx(rewards[3], rel=1e-5)


def test_the_riccati_gain_is_a_minimum_of_the_cost_and_its_value_is_what_follows():
    """Truth from rollouts in float64: no gain nearby does better, and P is the discounted cost itself."""
    env = LQR()
    context = torch.tensor([[0.5, 1.2], [2.5, 0.7]], dtype=torch.float64)
    gain, curvature = env.optimum(context, 0.95)
    start = torch.tensor([[0.7, -0.4], [-0.2, 0.9]], dtype=torch.float64)

    def cost(gain):
        state, total = start, torch.zeros(2, dtype=torch.float64)
        for step in range(300):
            after = env.advance(state, -(gain @ state[..., None])[..., 0], context)
            total, state = total - 0.95**step * after.reward, after.state
        return total

    torch.testing.assert_close(
        cost(gain), ((start[:, None] @ curvature)[:, 0] * start).sum(1), rtol=1e-6, atol=0
    )
    for change in ([0.05, 0.0], [-0.05, 0.0], [0.0, 0.05], [0.0, -0.05]):
        assert (cost(gain + torch.tensor(change, dtype=torch.float64)) > cost(gain)).all()


def test_the_oracle_takes_the_riccati_action_and_beats_doing_nothing():
    world = world_of("lqr")
    contexts = world.family.sample(20, seeded(), held_out=True)
    best = world.rollout(Oracle(world, 0.95), contexts, 40, seed=3)
    idle = world.rollout(Still(world), contexts, 40, seed=3)
    gain, _ = world.env.optimum(contexts, 0.95)
    expected = -(gain @ best.states[0][..., None])[..., 0] / world.env.action_limit
    torch.testing.assert_close(best.actions[0], expected, rtol=1e-3, atol=1e-4)
    assert (discounted(best, 0.95)[0] > discounted(idle, 0.95)[0]).all()


def planned(env, context, steps, candidates=64, ahead=20, tries=2):
    """Return of a planner that knows the current: draw plans around the best, take the first action, plan again."""
    rows, generator = len(context), seeded()
    state, mean, total = (
        env.start(context, generator),
        torch.zeros(rows, ahead, 2),
        torch.zeros(rows),
    )
    each = context.repeat_interleave(candidates, 0)
    for _ in range(steps):
        spread = torch.full_like(mean, 0.15)
        for _ in range(tries):
            plans = mean[:, None] + spread[:, None] * torch.randn(
                rows, candidates, ahead, 2, generator=generator
            )
            plans = plans.clamp(-env.action_limit, env.action_limit)
            at, worth = state.repeat_interleave(candidates, 0), torch.zeros(rows * candidates)
            for step in range(ahead):
                at, reward, _ = env.advance(at, plans[:, :, step].flatten(0, 1), each)
                worth += reward
            best = worth.view(rows, candidates).topk(12, 1).indices[:, :, None, None]
            kept = plans.gather(1, best.expand(-1, -1, ahead, 2))
            mean, spread = kept.mean(1), kept.std(1) + 0.01
        state, reward, _ = env.advance(state, mean[:, 0], context)
        total += reward
        mean = torch.cat([mean[:, 1:], torch.zeros(rows, 1, 2)], 1)
    return total


@pytest.mark.slow
def test_whoever_knows_the_current_can_stay_at_the_target_in_contexts_held_out():
    env, family = DoubleGyre(), ContextFamily(usual("gyre"))
    context = family.sample(6, seeded(), held_out=True)
    assert (
        planned(env, context, env.max_steps).mean() > -40
    )  # 200 steps at 0.45 of the target, on average
    env.target = (1.0, 0.25)  # between the whirls
    assert planned(env, context, env.max_steps).mean() < -50


def test_the_current_of_the_gyre_is_the_curl_of_its_stream_function():
    env = DoubleGyre()
    place = torch.rand(40, 2, generator=seeded(), dtype=torch.float64) * torch.tensor([2.0, 1.0])
    context = torch.stack([torch.linspace(0.1, 0.6, 40), torch.linspace(0.6, 3, 40)], 1).double()
    time_s = torch.linspace(0, 9, 40, dtype=torch.float64)

    def stream(place):
        x, y = place.unbind(1)
        tilt = 0.25 * torch.sin(context[:, 1] * time_s)
        return (
            context[:, 0]
            * torch.sin(math.pi * (tilt * x**2 + (1 - 2 * tilt) * x))
            * torch.sin(math.pi * y)
        )

    slope = torch.func.jacrev(lambda p: stream(p).sum())(place)
    expected = torch.stack([-slope[:, 1], slope[:, 0]], 1)
    torch.testing.assert_close(
        env.current(place, time_s, context), expected, rtol=1e-10, atol=1e-12
    )


def test_a_vehicle_that_does_nothing_stays_inside_and_keeps_its_stream_function_when_the_current_stands_still():
    """With ω = 0 the current is steady, and a particle keeps its value of ψ."""
    env = DoubleGyre()
    context = torch.tensor([[0.3, 0.0]], dtype=torch.float64)
    state = torch.tensor([[0.4, 0.3, 0.0]], dtype=torch.float64)

    def stream(state):
        return 0.3 * torch.sin(math.pi * state[:, 0]) * torch.sin(math.pi * state[:, 1])

    first = stream(state)
    for _ in range(50):
        state = env.advance(state, torch.zeros(1, 2, dtype=torch.float64), context).state
        assert 0 <= state[0, 0] <= 2 and 0 <= state[0, 1] <= 1
    assert stream(state).item() == pytest.approx(first.item(), rel=1e-3)
    assert state[0, 2].item() == pytest.approx(50 * 0.4)


def test_the_grid_world_pays_on_its_goal_and_takes_the_walker_back_after_each_trial():
    env, context = GridWorld(), torch.tensor([[2.5, 1.2], [0.3, 0.9]])
    assert env.goal(context).tolist() == [[2, 1], [2, 2]]  # the corner is never the goal
    state = env.start(context, seeded())
    rewards = []
    for action in [2, 2, 1, 0]:  # right, right, up, stay
        state, reward, _ = env.advance(state, torch.tensor([action, action]), context)
        rewards.append(reward[0].item())
    assert rewards == pytest.approx([-0.1, -0.1, 1.0, 1.0])
    for _ in range(env.trial_steps - 4):
        state, _, _ = env.advance(state, torch.tensor([0, 0]), context)
    assert state[:, :2].tolist() == [[0, 0], [0, 0]] and state[0, 2] == 15


@pytest.mark.parametrize("name", CLASSIC)
def test_the_nominal_context_gives_gymnasiums_own_dynamics(name):
    names = [one.name for one in usual(name)]
    plain = gymnasium.make(name)
    nominal = [float(getattr(plain.unwrapped, one)) for one in names]
    env = ContextualEnv(make(name), ContextFamily(usual(name)))
    env.given = nominal
    theirs, _ = plain.reset(seed=5)
    ours, _ = env.reset(seed=5)
    plain.action_space.seed(0)
    for _ in range(20):
        action = plain.action_space.sample()
        np.testing.assert_array_equal(ours[len(names) :], theirs.astype(np.float32))
        theirs, reward, ended, _, _ = plain.step(action)
        ours, same, _, _, _ = env.step(action)
        assert same == pytest.approx(float(reward))
        if ended:
            break


def test_another_context_changes_the_physics():
    world = world_of("Pendulum-v1", ["l=0.5:1.5"])
    played = world.rollout(Still(world), torch.tensor([[0.6], [1.4]]), 20, seed=0)
    assert not torch.allclose(played.observations[-1, 0, 1:], played.observations[-1, 1, 1:])


def test_mujoco_says_nothing_of_gymnasiums_models_and_leaves_no_log(tmp_path, monkeypatch, capfd):
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    make("HalfCheetah-v5").close()
    assert "".join(capfd.readouterr()) == "" and not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_mujoco_gets_its_physics_as_factors_and_the_nominal_one_back():
    pytest.importorskip("mujoco")
    env = make("Hopper-v5")
    model = env.unwrapped.model
    mass, pull = model.body_mass.copy(), model.opt.gravity.copy()
    physics = Physics(env, ["gravity", "mass", "friction", "damping"])
    physics.put([2.0, 0.5, 1.5, 3.0])
    np.testing.assert_allclose(model.body_mass, 0.5 * mass)
    np.testing.assert_allclose(model.opt.gravity, 2 * pull)
    physics.put([1.0, 1.0, 1.0, 1.0])
    np.testing.assert_array_equal(model.body_mass, mass)
    np.testing.assert_array_equal(model.opt.gravity, pull)


def test_contexts_keep_to_their_ranges_and_held_out_ones_leave_them_one_at_a_time():
    family = ContextFamily(
        (
            Varied("a", (0.0, 1.0), (1.0, 2.0)),
            Varied("b", (5.0, 6.0), (6.0, 7.0)),
            Varied("c", (0.0, 1.0)),
        )
    )
    inside, beyond = family.sample(500, seeded()), family.sample(500, seeded(), held_out=True)
    assert (family.normalise(inside).abs() <= 1).all()
    outside = family.normalise(beyond).abs() > 1
    assert (outside.sum(1) == 1).all() and not outside[:, 2].any() and outside[:, 0].sum() == 250
    first, second, grid = family.grid(3)
    assert (
        first == [0, 1, 2]
        and second == [5, 6, 7]
        and grid.shape == (9, 3)
        and (grid[:, 2] == 0.5).all()
    )


def test_rows_draw_other_contexts_in_every_episode_and_repeat_with_their_seed():
    def run(seed):
        env = BatchedVecEnv(LQR(), ContextFamily(usual("lqr")), 3, seed)
        env.reset()
        first = env.context.clone()
        for _ in range(40):
            _, _, ended, infos = env.step(np.zeros((3, 1), np.float32))
        assert ended.all() and infos[0]["TimeLimit.truncated"] and infos[0]["episode"]["l"] == 40
        return torch.cat([first, env.context])

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))
    assert len(run(0).unique(dim=0)) == 6


class Broken(LQR):
    """Gives NaN from the third step on, to the row with the strongest motor."""

    def advance(self, state, action, context):
        step = super().advance(state, action, context)
        bad = context[:, 1] == context[:, 1].max()
        self.count = getattr(self, "count", 0) + 1
        reward = torch.where(bad, float("nan"), step.reward) if self.count > 2 else step.reward
        return step._replace(reward=reward)


def test_a_nan_from_the_environment_is_named_with_episode_and_context():
    env = BatchedVecEnv(Broken(), ContextFamily(usual("lqr")), 4, 0)
    env.reset()
    actions = np.zeros((4, 1), np.float32)
    env.step(actions), env.step(actions)
    motor = env.context[:, 1].max().item()
    with pytest.raises(
        NonFiniteError, match=rf"`lqr` gave a reward .* after 4 episodes .* motor {motor:.4g}"
    ):
        env.step(actions)


def test_a_nan_from_gymnasium_is_named_likewise():
    env = ContextualEnv(make("Pendulum-v1"), ContextFamily((Varied("g", (8.0, 12.0)),)))
    env.reset(seed=0)
    env.unwrapped.state = np.array([np.nan, 0.0])
    with pytest.raises(
        NonFiniteError, match=r"`Pendulum-v1` gave a .* not finite .* context is g "
    ):
        env.step(np.zeros(1, np.float32))


def test_an_environment_that_is_not_registered_is_refused_with_names_like_it():
    with pytest.raises(
        ConfigError, match=r"`--env Pendulm-v1` cannot be made .* Did you mean `Pendulum-v1`"
    ):
        world_of("Pendulm-v1")


@pytest.mark.parametrize("name", ["lqr", "Pendulum-v1"])
def test_a_parameter_that_the_environment_lacks_is_refused(name):
    with pytest.raises(
        ConfigError, match=r"`--vary gravty` names no parameter .* Known: |Did you mean"
    ):
        world_of(name, ["gravty=1:2"])


def test_an_environment_without_anything_that_varies_is_refused_and_the_advice_works():
    with pytest.raises(ConfigError, match="No parameter varies"):
        world_of("MountainCar-v0")
    assert world_of("MountainCar-v0", ["gravity=0.002:0.003"]).family.names == ("gravity",)


@pytest.mark.parametrize("text", ["g", "g=1", "g=1:x", "=:"])
def test_a_range_that_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigError, match="cannot be read"):
        family_of([], [text], [], ["g"])
    with pytest.raises(ConfigError, match="does not vary"):
        family_of(usual("Pendulum-v1"), [], ["length=1:2"], ["g", "m"])
    with pytest.raises(ConfigError, match="is empty or infinite"):
        Varied("g", (2.0, 1.0))
    with pytest.raises(ConfigError, match="No range of `g` is held out"):
        ContextFamily((Varied("g", (1.0, 2.0)),)).sample(1, seeded(), held_out=True)


def test_a_rollout_in_gymnasium_ends_where_the_episode_does():
    world = world_of("CartPole-v1")
    assert isinstance(world, GymWorld)
    played = world.rollout(Still(world), world.family.sample(3, seeded()), 200, seed=0)
    assert len(played.rewards) < 200 and torch.equal(
        played.rewards.sum(0), played.alive.float().sum(0)
    )
