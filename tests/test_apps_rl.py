"""Runs of reinforcement learning: from config to report, killed and gone on with, and what is refused."""

import json
import signal

import pytest
import torch

from weightloom.apps.rl.config import RLConfig
from weightloom.cli import main
from weightloom.errors import ConfigError, DataError, NonFiniteError
from weightloom.files import load_tensors

pytest.importorskip("sb3_contrib")

from weightloom.apps import experiment, registry
from weightloom.apps.app import Training
from weightloom.apps.rl import judge as judge_room
from weightloom.apps.rl import learning as train_room
from weightloom.apps.rl import show as show_room
from weightloom.apps.rl.agents.build import build_agent
from weightloom.apps.rl.agents.players import ModelPlayer
from weightloom.apps.rl.app import RL
from weightloom.apps.rl.envs.lqr import LQR
from weightloom.apps.rl.envs.worlds import BatchedWorld, world_of
from weightloom.apps.rl.judge import judge, player_of, settings, steps_to
from weightloom.apps.rl.learning import train
from weightloom.runs.metrics import read_rows
from weightloom.runs.record import competes
from weightloom.training import OneProcess

pytestmark = pytest.mark.usefixtures(
    "unchecked"
)  # whole runs: shapes are checked where the rooms are tested

CUBIC = "cubic through optimal gains"
TINY = {
    "evaluate_every": 100,
    "rows": 4,
    "width": 16,
    "hidden": 16,
    "blocks": 1,
    "rank": 2,
    "batch": 16,
    "rollout": 32,
    "warm_up": 20,
}


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    """Ten steps an episode, so that judging is quick."""
    monkeypatch.setattr(LQR, "max_steps", 10)
    monkeypatch.setattr(judge_room, "MOST_STEPS", 20)
    monkeypatch.setattr(show_room, "GRID_POINTS", 4)


def tiny(env="lqr", **options):
    return RLConfig(
        env=env, **{"steps": 120, "comparators": (), "test_contexts": 4, **TINY, **options}
    )


def learned(method, world, config, folder):
    """Let a method learn in a folder; return it, and the signal that ended it early."""
    model = build_agent(method, world, config)
    history = train(
        model, world, config, Training(method, folder, "", OneProcess(), True, lambda model: None)
    )
    return model, history.stopped_by


class StopAt:
    """Pretends that a signal came when a training reached a step."""

    def __init__(self, monkeypatch, step):
        def rollout_start(follower):
            if follower.model.num_timesteps >= step and not follower.caught:
                follower.caught.append(signal.SIGTERM)
            original(follower)

        original = train_room.Follower._on_rollout_start
        monkeypatch.setattr(train_room.Follower, "_on_rollout_start", rollout_start)


def test_a_run_holds_all_its_files_and_a_report_of_the_agent(tmp_path):
    run = tmp_path / "run"
    record = experiment.run(
        RL(),
        tiny(comparators=("film", "none"), target_return=-1e9),
        run,
        command="weightloom rl",
        quiet=True,
    )
    assert {path.name for path in run.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "record.json",
        "report.html",
    }
    assert json.loads((run / "config.json").read_text())["steps"] == 120
    methods = ["hypernetwork", "film", "none", "optimum", CUBIC, "no action"]
    rows = [row for row in record["scores"] if row.get("role") != "untrained"]
    assert [row["method"] for row in rows] == 2 * methods and len(record["scores"]) == len(
        rows
    ) + 2 * 3
    assert [competes(row) for row in rows] == 2 * (3 * [True] + 3 * [False])
    assert {row["setting"] for row in record["scores"]} == {"training ranges", "held-out contexts"}
    ours = record["scores"][0]["also"]
    assert {
        "explained_variance",
        "gain_error",
        "value_error",
        "noisy",
        "changed",
        "steps_to_target",
    } <= ours.keys()
    page = (run / "report.html").read_text()
    for heading in (
        "Return by context",
        "grid of contexts",
        "Episodes in unseen contexts",
        "Values against returns",
    ):
        assert heading in page
    assert "The orange frame holds" in page and "http" not in page.replace("http-equiv", "")
    rows = read_rows(run)
    assert any("return" in row for row in rows) and len(rows[0]["validation_returns"]) == 8


@pytest.mark.parametrize("algorithm", ["td3", "sac", "ppo", "recurrent-ppo"])
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(algorithm, tmp_path, monkeypatch):
    """Networks, optimisers, replay buffer, environment and everything random: bit for bit."""
    config = tiny(algorithm=algorithm, checkpoint_every=30).resolved()
    world = world_of("lqr")
    (tmp_path / "whole").mkdir(), (tmp_path / "parts").mkdir()
    whole, stopped = learned("hypernetwork", world, config, tmp_path / "whole")
    assert stopped is None
    with monkeypatch.context() as patch:
        StopAt(patch, 60)
        part, stopped = learned("hypernetwork", world, config, tmp_path / "parts")
        assert stopped == signal.SIGTERM and part.num_timesteps < 120
    torch.manual_seed(123)  # whatever happens between the two
    torch.rand(5)
    again, stopped = learned("hypernetwork", world, config, tmp_path / "parts")
    assert stopped is None and again.num_timesteps == whole.num_timesteps
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, again.policy.state_dict()[name]), name
    kept = [
        load_tensors(tmp_path / folder / "checkpoints" / "last.safetensors")[0]
        for folder in ("whole", "parts")
    ]
    assert kept[0].keys() == kept[1].keys() and all(
        torch.equal(kept[0][name], kept[1][name]) for name in kept[0]
    )
    rows = [
        [
            {k: v for k, v in row.items() if k != "wall_time_s"}
            for row in read_rows(tmp_path / folder)
            if "loss" not in row
        ]
        for folder in ("whole", "parts")
    ]
    assert rows[0] == rows[1]


def test_the_same_seed_gives_the_same_agent_and_another_seed_another(tmp_path):
    def numbers(seed, folder):
        (tmp_path / folder).mkdir()
        model, _ = learned(
            "hypernetwork", world_of("lqr"), tiny(seed=seed).resolved(), tmp_path / folder
        )
        return torch.cat([value.flatten() for value in model.policy.state_dict().values()])

    first = numbers(0, "a")
    assert torch.equal(first, numbers(0, "b")) and not torch.equal(first, numbers(1, "c"))


def test_gymnasium_environments_resume_with_new_episodes_and_their_replay_buffer(
    tmp_path, monkeypatch
):
    config = tiny("Pendulum-v1", checkpoint_every=30).resolved()
    (tmp_path / "run").mkdir()
    with monkeypatch.context() as patch:
        StopAt(patch, 60)
        learned("concat", world_of("Pendulum-v1"), config, tmp_path / "run")
    model, _ = learned("concat", world_of("Pendulum-v1"), config, tmp_path / "run")
    assert model.num_timesteps == 120 and model.replay_buffer.size() == 30


def test_steps_to_a_return_are_read_from_the_evaluations(tmp_path):
    rows = [
        {"step": step, "validation_score": score}
        for step, score in ((0, -9.0), (10, -5.0), (20, -1.0))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert steps_to(-5.0, tmp_path) == 10 and steps_to(0.0, tmp_path) is None


def test_a_nan_stops_a_run_with_its_checkpoint_and_it_can_go_on_when_mended(tmp_path, monkeypatch):
    advance = LQR.advance
    taken = []

    def broken(self, state, action, context):
        taken.extend([1] * (len(state) == 4))  # rows of training; evaluations have eight
        step = advance(self, state, action, context)
        return step._replace(reward=step.reward * float("nan")) if len(taken) > 20 else step

    config = tiny(checkpoint_every=20)
    with monkeypatch.context() as patch:
        patch.setattr(LQR, "advance", broken)
        with pytest.raises(
            NonFiniteError,
            match=r"`lqr` gave a reward that is not finite .* its context is stiffness",
        ):
            experiment.run(RL(), config, tmp_path / "run", quiet=True)
    kept = load_tensors(tmp_path / "run" / "checkpoints" / "last.safetensors")[1]["num_timesteps"]
    assert 0 < kept < 120
    record = experiment.run(RL(), config, tmp_path / "run", resume=True, quiet=True)
    assert record["scores"][0]["method"] == "hypernetwork"


def test_trained_agents_can_be_read_back(tmp_path):
    experiment.run(RL(), tiny(steps=60), tmp_path / "run", quiet=True)
    loaded = experiment.load(RL(), tmp_path / "run")
    config, world, player = loaded.config, loaded.problem, player_of(loaded.model, loaded.config)
    (setting, _) = settings(world, config.test_contexts)
    assert isinstance(player, ModelPlayer) and isinstance(world, BatchedWorld)
    score = judge(player, world, setting, config.discount)["return"].mean().item()
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["scores"][0]["mean"] == pytest.approx(score, rel=1e-6)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config.to_dict() | {"width": 8}))
    with pytest.raises(DataError, match="was changed after the run began"):
        experiment.load(RL(), tmp_path / "run")


def test_a_folder_that_holds_a_run_is_not_written_over_and_a_resume_keeps_its_config(tmp_path):
    experiment.run(RL(), tiny(steps=40), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="is not empty"):
        experiment.run(RL(), tiny(steps=40), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="with another config: steps is 40 there, 80"):
        experiment.run(RL(), tiny(steps=80), tmp_path / "run", resume=True, quiet=True)
    with pytest.raises(DataError, match="holds no run"):
        experiment.run(RL(), tiny(), tmp_path / "nothing", resume=True, quiet=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "`--steps 0` is too small"),
        ({"learning_rate": -1.0}, "`--learning-rate -1.0` is not a positive number"),
        ({"clip": 0.0}, "`--clip 0.0` is not a positive number"),
        ({"final_rate": 1.5}, "`--final-rate 1.5` is above 1"),
        ({"checkpoint_every": 0}, "`--checkpoint-every 0` is too small"),
        ({"rates": ("conct=0.1",)}, "Did you mean `concat`"),
        (
            {"rates": ("concat=0.1",), "comparators": ("film",)},
            "is of a method that is not in this run",
        ),
        ({"rates": ("concat",)}, "`--rates concat` has no learning rate"),
        ({"rates": ("concat=-1",)}, "`--rates concat=-1` has no learning rate"),
        ({"entropy": -0.1}, "`--entropy -0.1` is below 0"),
        ({"discount": 1.0}, "`--discount 1.0` is not between 0 and 1"),
        ({"blocks": -1}, "`--blocks -1` is below 0"),
        ({"method": "hypernetwrk"}, "Did you mean `hypernetwork`"),
        (
            {"comparators": ("recurrent",)},
            "`--comparators recurrent` does not go with `--algorithm td3`",
        ),
        ({"comparators": ("hypernetwork",)}, "is `--method` too"),
        ({"method": "mine:Mine"}, "`mine:Mine` is a method of your own.*Pass one of hypernetwork"),
        ({"comparators": ("mine:Mine",)}, "`weightloom rl` cannot train"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        RLConfig(**options)


def test_the_command_runs_resumes_and_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [
        "--steps",
        "40",
        "--rows",
        "4",
        "--warm-up",
        "8",
        "--width",
        "8",
        "--hidden",
        "8",
        "--test-contexts",
        "4",
    ]
    main(["rl", *flags, "--comparators", "film", "--quiet"])
    assert (
        "4 contexts unseen in training" in (printed := capsys.readouterr().out)
        and "lqr-001" in printed
    )
    (tmp_path / "runs" / "lqr-001" / "record.json").unlink()
    main(["rl", "--resume", "runs/lqr-001", "--quiet"])
    assert (tmp_path / "runs" / "lqr-001" / "record.json").exists()
    for bad, message in (
        (["--env", "Nowhere-v0"], "`--env Nowhere-v0` cannot be made"),
        (["--env", "CartPole-v1", "--algorithm", "td3"], "does not go with `--env CartPole-v1`"),
        (["--vary", "wind=1:2"], "`--vary wind` names no parameter"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["rl", *bad])
        assert left.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "runs" / "CartPole-v1-001").exists()


def test_a_missing_extra_is_named_with_what_to_type(monkeypatch, capsys):
    real = registry.find_spec
    monkeypatch.setattr(
        registry, "find_spec", lambda name: None if name == "gymnasium" else real(name)
    )
    with pytest.raises(SystemExit):
        main(["rl"])
    assert 'Type `pip install "weightloom[rl]"`' in capsys.readouterr().err


def test_nothing_of_it_is_imported_before_it_is_needed():
    import subprocess
    import sys

    code = "import sys, weightloom, weightloom.cli; "
    code += "print({'gymnasium', 'mujoco', 'stable_baselines3'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
