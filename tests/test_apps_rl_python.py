"""Reinforcement learning from Python: families of one's own, training, acting, and plain policies."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from weightloom.apps import experiment, rl
from weightloom.errors import CheckpointError, ConfigError, DataError, MissingExtraError, ShapeError

pytest.importorskip("sb3_contrib")

import gymnasium
from gymnasium import spaces
from stable_baselines3 import SAC, TD3

from weightloom.apps.rl.adapted import adapt_run, context_of
from weightloom.apps.rl.app import RL
from weightloom.apps.rl.envs.lqr import LQR
from weightloom.apps.rl.envs.worlds import world_of
from weightloom.apps.rl.presets import RUNS
from weightloom.runs.metrics import read_rows

pytestmark = pytest.mark.usefixtures("unchecked")  # whole runs, and modules that are traced

TINY = {
    "steps": 60,
    "rows": 4,
    "warm_up": 20,
    "width": 16,
    "hidden": 16,
    "blocks": 1,
    "rank": 2,
    "batch": 16,
}
TINY |= {"rollout": 32, "learning_rate": 1e-2, "quiet": True}
CONTEXT = {"stiffness": 1.5, "motor": 0.8}


class Hover(gymnasium.Env):
    """Speed up against gravity, which the constructor turns into a weight, and against drag, an attribute."""

    drag = 0

    def __init__(self, gravity=10.0):
        self.weight = 2 * gravity
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-2.0, 6.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=2).astype(np.float32)
        return self.state, {}

    def step(self, action):
        self.took = np.array(action)
        pull = np.float32(float(action[0]) - self.weight - self.drag * self.state[1])
        self.state = self.state + np.array([0.01 * self.state[1], 0.01 * pull], np.float32)
        return self.state, -float(abs(self.state[0])), False, False, {}


class Choose(Hover):
    """The same with two actions to choose from, one of which is right."""

    def __init__(self, gravity=10.0):
        super().__init__(gravity)
        self.action_space = spaces.Discrete(2)

    def step(self, action):
        return super().step([10.0 * action])


class Short(Hover):
    """Ends its episodes by itself."""

    def reset(self, **options):
        self.left = 3
        return super().reset(**options)

    def step(self, action):
        self.left -= 1
        assert self.left >= 0, "stepped after its end"
        state, reward, _, _, info = super().step(action)
        return state, reward, False, self.left == 0, info


def trained(env="lqr", **options):
    family = env if not isinstance(env, str) else rl.family(env)
    return rl.train(family, **{**TINY, **options})


def seen_states(rows=9, numbers=2):
    return np.random.default_rng(0).normal(size=(rows, numbers)).astype(np.float32)


def envs_of(family, rows=1):
    return family.training(rows, seed=0).envs


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = "import sys; from weightloom.apps import rl; dir(rl); "
    code += "print({'torch', 'gymnasium', 'numpy'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_a_missing_extra_says_what_to_type(monkeypatch):
    monkeypatch.delitem(vars(rl), "train", raising=False)
    monkeypatch.setattr(rl, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'Type `pip install "weightloom\[rl\]"`'):
        rl.train  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rl.trian  # noqa: B018


def test_a_context_goes_to_the_constructor_where_it_takes_one_and_else_to_an_attribute():
    family = rl.family(Hover, gravity=(5, 15), drag=(0.25, 0.75), held_out={"gravity": (15, 20)})
    (monitor,) = envs_of(family)
    monitor.reset(seed=0)
    weights = []
    for _ in range(5):
        monitor.reset()
        told = monitor.env.context[0].tolist()
        assert (
            monitor.unwrapped.weight == 2 * told[0] and monitor.unwrapped.drag == told[1]
        )  # though it was an int
        weights.append(monitor.unwrapped.weight)
    assert len(set(weights)) == 5 and 10 <= min(weights) <= max(weights) <= 30
    assert family.max_steps == 1000 and not family.can_change


def test_episodes_of_an_environment_made_anew_follow_from_the_seed():
    def starts(seed):
        rows = rl.family(Hover, gravity=(5, 15), max_steps=2).training(2, seed)
        return np.concatenate([rows.reset(), *(rows.step(np.zeros((2, 1)))[0] for _ in range(5))])

    np.testing.assert_array_equal(starts(1), starts(1))
    first, other = starts(1), starts(2)
    assert (
        not np.allclose(first, other) and len(np.unique(first[:, 0])) == 6
    )  # two rows, three episodes


def test_a_registered_environment_has_its_attributes_set_or_is_made_with_an_argument():
    gymnasium.register("Hover-python-v0", Hover, max_episode_steps=7)
    try:
        for family in (
            rl.family("Hover-python-v0", gravity=(5, 15)),
            world_of("Hover-python-v0", ("gravity=5:15",)),
        ):
            assert family.constructed == ("gravity",) and family.max_steps == 7
            (monitor,) = envs_of(family)
            monitor.reset(seed=3)
            assert monitor.unwrapped.weight == 2 * monitor.env.context.item()
    finally:
        del gymnasium.registry["Hover-python-v0"]
    assert (
        rl.family("Pendulum-v1", g=(6, 14)).constructed == ()
    )  # an attribute too, which is quicker


def test_functions_and_batched_environments_are_families_too():
    family = rl.family(
        lambda gravity: gymnasium.wrappers.TimeLimit(Hover(gravity), 5), gravity=(1, 2)
    )
    played = family.rollout(Nothing(), torch.tensor([[1.5]]), 20, seed=0)
    assert len(played.rewards) == 5
    springs = rl.family(LQR, stiffness=(0, 1), motor=(1, 2), max_steps=4)
    assert (
        springs.family.names == ("stiffness", "motor")
        and springs.max_steps == 4
        and LQR.max_steps == 40
    )


class Nothing:
    """A player that does nothing."""

    def begin(self, rows):
        self.rows = rows

    def act(self, observations, rewards):
        return np.zeros((self.rows, 1), np.float32)


def test_an_environment_that_ends_an_episode_is_not_stepped_on():
    family = rl.family(Short, gravity=(5, 15))
    played = family.rollout(Nothing(), torch.tensor([[6.0], [7.0]]), 20, seed=0)
    assert played.alive.shape == (3, 2) and played.alive.all()


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (
            Hover,
            {"gravty": (1, 2)},
            "`gravty` is neither an argument of `Hover` nor .* Did you mean `gravity`",
        ),
        (lambda gravity: Hover(gravity), {"gravty": (1, 2)}, "Did you mean `gravity`"),
        (lambda track: Hover(), {"drag": (1, 2)}, r"cannot be called .*missing 1 required"),
        (Hover, {"gravity": (2, 1)}, r"The range \(2.0, 1.0\) of `gravity`"),
        (Hover, {"gravity": (1, float("inf"))}, "is empty or infinite"),
        (Hover, {"gravity": 3.0}, "`gravity=3.0` is no range"),
        (Hover, {"gravity": ("a", 1)}, "is no range"),
        (Hover, {}, "No parameter varies"),
        (
            Hover,
            {"gravity": (1, 2), "held_out": {"gravity": (1.5, 3)}},
            "overlaps the training range",
        ),
        (
            Hover,
            {"gravity": (1, 2), "held_out": {"gravty": (2, 3)}},
            "`gravty` does not vary .* Did you mean `gravity`",
        ),
        (Hover, {"gravity": (1, 2), "max_steps": 0}, "`max_steps=0` is too small"),
        (Hover(), {"gravity": (1, 2)}, "Training creates several copies"),
        (int, {"drag": (1, 2)}, "`int` returned int"),
        ("lqr", {"mass": (1, 2)}, "`mass` does not vary"),
        (type("Mine", (LQR,), {}), {"motor": (1, 2)}, "`stiffness` has no range"),
    ],
)
def test_families_that_cannot_work_are_refused(env, options, message):
    with pytest.raises(ConfigError, match=message):
        rl.family(env, **options)


def test_actions_without_limits_and_of_other_shapes_are_refused():
    class Unbounded(Hover):
        def __init__(self, space):
            super().__init__()
            self.action_space = space

    with pytest.raises(ConfigError, match="finite `low` and `high`"):
        rl.family(lambda: Unbounded(spaces.Box(-np.inf, np.inf, (1,))), drag=(0, 1))
    for space in (spaces.Box(-1, 1, (2, 2)), spaces.Discrete(3, start=1)):
        with pytest.raises(ConfigError, match="a flat vector, or an index that starts at 0"):
            trained(rl.family(lambda space=space: Unbounded(space), drag=(0, 1)))


@pytest.mark.parametrize(
    ("algorithm", "method"), [(a, m) for a in ("td3", "sac", "ppo") for m in RUNS[a]]
)
def test_every_method_acts_as_its_plain_policy_does(algorithm, method):
    agent = trained(method=method, algorithm=algorithm, unit=method == "film")
    states, policy = seen_states(), agent.specialise(**CONTEXT)
    actions = agent.act(states, **CONTEXT)
    assert actions.std() > 0 and abs(actions).max() <= LQR.action_limit
    given = policy(torch.from_numpy(states)).numpy()
    np.testing.assert_allclose(given, actions, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        policy(torch.from_numpy(states[0])), actions[0], rtol=1e-5, atol=1e-5
    )
    other = agent.specialise(**{**CONTEXT, "stiffness": 0.1})(torch.from_numpy(states)).numpy()
    assert np.allclose(other, given) is (method == "none")


def test_an_action_is_that_of_the_model_in_the_environments_own_units():
    """Truth from Stable-Baselines3's own prediction, and from what the environment got in a rollout."""
    family = rl.family(Hover, gravity=(5, 15), max_steps=20)
    agent, state = trained(family), np.array([0.3, -1.2], np.float32)
    raw, _ = agent.model.predict(
        np.array([[0.4, *state]], np.float32), deterministic=True
    )  # 12 of 5 to 15 is 0.4
    np.testing.assert_allclose(agent.act(state, gravity=12.0), -2 + 8 * (raw[0] + 1) / 2, rtol=1e-5)
    played = family.rollout(agent.player, torch.tensor([[12.0]]), 1, seed=0)
    first = agent.act(played.observations[0, 0, 1:], gravity=12.0)
    np.testing.assert_allclose(family.rollout_rows[0].unwrapped.took, first, rtol=1e-5)
    assert first.dtype == np.float32 and family.own_actions.contains(first)


@pytest.mark.parametrize("method", ["hypernetwork", "context-only"])
def test_rows_act_and_are_worth_what_each_is_alone_with_a_context_of_its_own(method):
    agent, states = trained(method=method), seen_states(3)
    stiffness = [0.2, 1.0, 2.5]  # the last lies beyond the training range
    actions = agent.act(states, stiffness=stiffness, motor=1.0)
    values = agent.value(states, stiffness=stiffness, motor=1.0)
    for row in range(3):
        context = {"stiffness": stiffness[row], "motor": 1.0}
        np.testing.assert_allclose(
            agent.act(states[row], **context), actions[row], rtol=1e-4, atol=1e-5
        )
        assert agent.value(states[row].tolist(), **context) == pytest.approx(values[row], rel=1e-4)


@pytest.mark.parametrize("algorithm", ["td3", "sac", "ppo"])
def test_a_value_is_the_lower_of_the_critics_in_the_units_of_rewards(algorithm):
    agent = trained(algorithm=algorithm, reward_scale=0.5)
    rows = torch.tensor(
        [[0.5, -0.4, 0.3, -0.2]]
    )  # the context, training ranges mapped to [-1, 1], and the state
    with torch.no_grad():
        if isinstance(agent.model, TD3 | SAC):
            action = torch.from_numpy(agent.model.predict(rows.numpy(), deterministic=True)[0])
            truth = min(value.item() for value in agent.model.critic(rows, action))
        else:
            truth = agent.model.policy.predict_values(rows).item()
    assert agent.value([0.3, -0.2], stiffness=1.5, motor=0.8) == pytest.approx(2 * truth, rel=1e-4)


def test_discrete_actions_are_learned_by_ppo_and_are_indices():
    agent = trained(rl.family(Choose, gravity=(5, 15), max_steps=10))
    assert agent.config.algorithm == "ppo"
    actions = agent.act(seen_states(40), gravity=7.0)
    assert (
        actions.shape == (40,)
        and set(actions.tolist()) <= {0, 1}
        and type(agent.act([0, 0], gravity=7.0)) is int
    )
    policy = agent.specialise(gravity=7.0)
    assert torch.equal(policy(torch.from_numpy(seen_states(40))), torch.from_numpy(actions))


def test_a_policy_written_once_from_the_context_is_one_small_network():
    agent = trained(method="context-only")
    policy = agent.specialise(**CONTEXT)
    assert (
        sum(value.numel() for value in policy.parameters()) == 16 * 2 + 16 + 16 + 16 + 1
    )  # W, gain, bias, last layer
    assert sum(value.numel() for value in agent.specialise(**CONTEXT).parameters()) * 10 < sum(
        value.numel() for value in agent.model.actor.parameters()
    )


def test_a_plain_policy_stays_as_it_is_when_the_agent_does_not():
    agent, states = trained(), torch.from_numpy(seen_states())
    policy = agent.specialise(**CONTEXT)
    before = policy(states)
    with torch.no_grad():
        for value in agent.model.policy.parameters():
            value.add_(1.0)
    assert torch.equal(policy(states), before) and not any(
        value.requires_grad for value in policy.parameters()
    )
    assert len(pickle.dumps(policy)) < 200_000


def test_training_is_the_same_with_a_folder_and_without_and_leaves_threads_alone(tmp_path):
    springs = rl.family("lqr", max_steps=3)
    kept = trained(springs, run=tmp_path / "run")
    torch.set_num_threads(2)
    alone = trained(springs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, value in kept.model.policy.state_dict().items():
        torch.testing.assert_close(alone.model.policy.state_dict()[name], value)
    assert threads == 2
    rows = read_rows(tmp_path / "run")
    assert {"run.json", "config.json", "metrics.jsonl", "checkpoints", "agent.safetensors"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    assert any("validation_score" in row for row in rows)
    with pytest.raises(ConfigError, match="is not empty"):
        trained(springs, run=tmp_path / "run")
    again = trained(springs, run=tmp_path / "run", resume=True)
    assert again.model.num_timesteps == 60


def test_an_agent_is_saved_and_loaded_without_its_environment(tmp_path):
    family = rl.family(Hover, gravity=(5, 15), held_out={"gravity": (15, 20)}, max_steps=20)
    agent = trained(family, unit=True)
    agent.save(tmp_path / "agent")
    again, states = rl.load(tmp_path / "agent"), seen_states()
    np.testing.assert_array_equal(again.act(states, gravity=12.0), agent.act(states, gravity=12.0))
    np.testing.assert_array_equal(
        again.value(states, gravity=12.0), agent.value(states, gravity=12.0)
    )
    assert again.world.family == family.family and again.world.own_actions == family.own_actions
    with pytest.raises(ConfigError, match="loaded without its environment"):
        rl.train(again.world, **TINY)
    with pytest.raises(DataError, match="holds no agent"):
        rl.load(tmp_path)
    (tmp_path / "agent" / "agent.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="cannot be read"):
        rl.load(tmp_path / "agent")


def test_a_loaded_agent_of_discrete_actions_acts(tmp_path):
    agent = trained(rl.family(Choose, gravity=(5, 15), max_steps=10))
    agent.save(tmp_path)
    np.testing.assert_array_equal(
        rl.load(tmp_path).act(seen_states(), gravity=7.0), agent.act(seen_states(), gravity=7.0)
    )


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"stiffness": 1.0}, "lacks `motor`.*e.g. `motor=1`"),
        (
            {"stiffness": 1.0, "moter": 1.0},
            "`moter` is no context parameter .* Did you mean `motor`",
        ),
        ({"stiffness": 1.0, "motor": float("nan")}, "`motor=nan` does not fit"),
        ({"stiffness": 1.0, "motor": [1.0, 2.0]}, "does not fit"),
    ],
)
def test_a_context_that_does_not_fit_is_refused_wherever_it_is_given(context, message, lqr_agent):
    for ask in (
        lambda: lqr_agent.act([0.0, 0.0], **context),
        lambda: lqr_agent.specialise(**context),
    ):
        with pytest.raises(ConfigError, match=message):
            ask()


@pytest.fixture(scope="module")
def lqr_agent():
    return trained()


@pytest.mark.parametrize(
    "observation", [[0.0], [[0.0, 1.0, 2.0]], 1.0, np.zeros((0, 2)), np.zeros((1, 1, 2))]
)
def test_an_observation_of_another_shape_is_refused(observation, lqr_agent):
    with pytest.raises(ShapeError, match="holds 2 numbers, without the context"):
        lqr_agent.act(observation, **CONTEXT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rat": 1e-3}, "Did you mean `learning_rate`"),
        ({"comparators": ("film",)}, "trains one method"),
        ({"steps": 20}, "would not update the policy once"),
        ({"steps": "many"}, "Option 'steps' is 'many'"),
        ({"method": "hypernetwrk"}, "Did you mean `hypernetwork`"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_written(
    options, message, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        trained(run=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_an_agent_with_a_memory_acts_by_what_it_saw_and_has_no_plain_policy():
    agent = trained(algorithm="recurrent-ppo")
    states = seen_states(3)
    first, second = agent.act(states[0]), agent.act(states[1], -5.0)
    agent.begin()
    np.testing.assert_array_equal(agent.act(states[0]), first)
    assert not np.array_equal(agent.act(states[1], 5.0), second)
    with pytest.raises(ShapeError, match=r"Call `agent.begin\(\)`"):
        agent.act(states)
    agent.begin()
    assert agent.act(states, [1.0, 2.0, 3.0]).shape == (3, 1)
    for ask, message in (
        (lambda: agent.act(states, stiffness=1.0), "takes no context"),
        (lambda: agent.value(states[0]), "no value of a state"),
        (lambda: agent.specialise(**CONTEXT), "no policy of one context"),
    ):
        with pytest.raises(ConfigError, match=message):
            ask()


def test_a_signal_that_ends_a_training_ends_the_program_too(monkeypatch, tmp_path):
    from weightloom.apps.rl import learning

    original = learning.Follower._on_rollout_start

    def rollout_start(follower):
        import signal

        follower.caught.append(signal.SIGINT)
        original(follower)

    monkeypatch.setattr(learning.Follower, "_on_rollout_start", rollout_start)
    with pytest.raises(KeyboardInterrupt):
        trained(run=tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").is_file()


def test_a_run_is_adapted_to_a_context_and_written_as_a_program_that_needs_torch_alone(tmp_path):
    trained(run=tmp_path / "run")
    made = experiment.load(RL(), tmp_path / "run")
    adapted = adapt_run(made.model, made.problem, made.config, "motor=0.8 stiffness=1.5")
    facts = adapted.save(tmp_path / "policy")
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {
        "policy.safetensors",
        "policy.json",
        "policy.pt2",
    }
    states = torch.from_numpy(seen_states())
    expected = rl.load(tmp_path / "run").act(states, **CONTEXT)
    program = torch.export.load(tmp_path / "policy" / "policy.pt2").module()
    np.testing.assert_allclose(program(states), expected, rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "policy" / "policy.json").read_text()) == facts
    assert (
        facts["context"] == CONTEXT
        and facts["output"] == ["rows", 1]
        and facts["actions"] == [[-6.0], [6.0]]
    )
    torch.save(adapted.specialise(), tmp_path / "policy.pt")
    torch.save(states, tmp_path / "states.pt")
    code = (
        "import sys, torch; policy = torch.load('policy.pt', weights_only=False);"
        "torch.save(policy(torch.load('states.pt')), 'actions.pt');"
        "print([name for name in sys.modules if 'weightloom' in name])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert ran.stdout.strip() == "[]"
    np.testing.assert_allclose(torch.load(tmp_path / "actions.pt"), expected, rtol=1e-5, atol=1e-5)
    (row,) = adapted.predict_rows([",".join(map(str, states[2].tolist()))])
    np.testing.assert_allclose(row["action"], expected[2], rtol=1e-5)
    with pytest.raises(ConfigError, match="holds a policy already"):
        adapted.save(tmp_path / "policy")
    with pytest.raises(ConfigError, match=r"Type `0\.0,0\.0`"):
        adapted.predict_rows(["left"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gravity", "cannot be read"),
        ("gravity=x", "Type `gravity=1.0"),
        ("gravity=1 gravity=2", "appears twice"),
    ],
)
def test_a_context_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        context_of(text, ("gravity", "length"))
