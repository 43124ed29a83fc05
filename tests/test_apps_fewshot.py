import json
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.neighbors import NearestCentroid as SklearnNearestCentroid

from references import tensors_of
from weightloom.apps import experiment
from weightloom.apps.app import Contender
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.export import export_task
from weightloom.apps.fewshot.judge import Scores, draw_test_tasks, judge
from weightloom.apps.fewshot.problems import pools, problem_of
from weightloom.cli import main as cli_main
from weightloom.errors import CheckpointError, ConfigError, NonFiniteError
from weightloom.files import load_tensors
from weightloom.learners.centroid import NearestCentroid
from weightloom.learners.heads import HyperHead
from weightloom.learners.learner import Learner, Support
from weightloom.learners.protonet import ProtoNet
from weightloom.learners.whole_network import HyperRegressor
from weightloom.networks import ConvNet, mlp
from weightloom.runs.record import read_record
from weightloom.tasks.data import ClassPool
from weightloom.tasks.omniglot import BACKGROUND, SMALL1

OURS = "hypernetwork"
SMALL = FewShotConfig(
    data="digits",
    steps=40,
    tasks=4,
    test_tasks=20,
    queries=5,
    evaluate_every=20,
    checkpoint_every=10,
)


def trained(record):
    """Rows of a record, those of untrained twins left out."""
    return [row for row in record["scores"] if row.get("role") != "untrained"]


def load_run(folder, changes=None):
    loaded = experiment.load(FewShot(), folder, changes, trust=True)
    return loaded.config, loaded.problem, loaded.models


def score_all(learners, problem, config):
    return FewShot().judge(
        [Contender(name, learners.get(name)) for name in config.methods], problem, config, Path()
    )


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "digits"
    record = experiment.run(FewShot(), SMALL, run, command="weightloom fewshot", quiet=True)
    return run, record


def mean_of(record, method, setting):
    return next(
        r["mean"] for r in record["scores"] if (r["method"], r["setting"]) == (method, setting)
    )


def test_a_run_leaves_config_metrics_checkpoint_record_and_report(digits_run):
    run, record = digits_run
    for name in (
        "config.json",
        "metrics.jsonl",
        "checkpoints/last.safetensors",
        "record.json",
        "report.html",
    ):
        assert (run / name).stat().st_size > 0
    assert json.loads((run / "record.json").read_text()) == {"format": 1, **record}
    assert json.loads((run / "config.json").read_text())["ways"] == [3]  # resolved, not None


def test_every_method_is_judged_in_every_setting_with_interval_recall_and_f1(digits_run):
    _, record = digits_run
    methods = {OURS, "protonet", "probe", "centroid", "scratch", "shuffled"}
    assert {(r["method"], r["setting"]) for r in record["scores"]} == {
        (m, s) for m in methods for s in ("3-way 1-shot", "3-way 5-shot")
    }
    first, *others = (
        row for row in record["scores"] if row["setting"] == record["scores"][0]["setting"]
    )
    for row in others:
        if row["method"] != "shuffled":
            assert row["ours_ahead"]["mean"] == pytest.approx(first["mean"] - row["mean"], abs=1e-6)
    for row in record["scores"]:
        assert 0 <= row["mean"] <= 1 and 0 < row["ci95"] < 0.2 and row["adapt_time_s"] > 0
        # as many queries of each class: macro recall is accuracy
        assert row["also"]["macro_recall"]["mean"] == pytest.approx(row["mean"], abs=1e-6)


def test_trained_methods_beat_chance_and_the_shuffled_control_does_not(digits_run):
    _, record = digits_run
    assert mean_of(record, OURS, "3-way 5-shot") > 0.7
    assert mean_of(record, "shuffled", "3-way 5-shot") < 0.55


def test_judging_a_run_again_gives_its_own_numbers(digits_run):
    run, record = digits_run
    config, problem, learners = load_run(run)
    again = score_all(learners, problem, config)
    assert [r["mean"] for r in again] == [r["mean"] for r in trained(record)]


def test_a_run_can_be_judged_with_other_ways_and_shots(digits_run):
    run, _ = digits_run
    config, problem, learners = load_run(
        run, {"ways": [2], "shots": [3], "comparators": ["centroid"]}
    )
    assert {r["setting"] for r in score_all(learners, problem, config)} == {"2-way 3-shot"}


def test_resuming_a_finished_run_changes_nothing_but_times(digits_run):
    run, record = digits_run
    before = (run / "checkpoints" / "last.safetensors").read_bytes()
    again = experiment.run(
        FewShot(), SMALL, run, command="weightloom fewshot", resume=True, quiet=True
    )
    assert [r["mean"] for r in again["scores"]] == [r["mean"] for r in record["scores"]]
    assert (run / "checkpoints" / "last.safetensors").read_bytes() == before


def test_resuming_with_another_config_is_refused_and_the_message_helps(digits_run):
    run, _ = digits_run
    other = FewShotConfig(**{**SMALL.__dict__, "seed": 5})
    with pytest.raises(ConfigError, match="seed is 0 there, 5 was asked for"):
        experiment.run(FewShot(), other, run, resume=True, quiet=True)


def test_a_run_never_writes_over_another(digits_run):
    run, _ = digits_run
    with pytest.raises(ConfigError, match="not empty"):
        experiment.run(FewShot(), SMALL, run, quiet=True)


def test_bad_options_leave_no_folder_behind(tmp_path):
    for bad in ({"ways": (9,)}, {"shots": (500,)}, {"split": 7}):
        with pytest.raises(ConfigError):
            experiment.run(
                FewShot(), FewShotConfig(data="digits", **bad), tmp_path / "run", quiet=True
            )
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_refused(digits_run, tmp_path):
    run, _ = digits_run
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    content = (run / "checkpoints" / "last.safetensors").read_bytes()
    (copy / "checkpoints" / "last.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_run(copy, {"comparators": ["centroid"]})


@pytest.mark.parametrize("shots", [1, 5])
def test_the_exported_network_is_plain_and_equal_to_the_runs_own_answer(
    digits_run, tmp_path, shots
):
    run, _ = digits_run
    config, problem, learners = load_run(run, {"shots": [shots]})
    facts = export_task(learners[OURS], problem, config, "3", tmp_path / "net")
    assert len(facts["classes"]) == 3 and set(facts["classes"]) <= {
        "0",
        "1",
        "2",
    }  # split 0 holds out 0, 1, 2
    tasks = draw_test_tasks(
        problem, shots, min(problem.at_once, config.test_tasks)
    )  # as they are judged
    expected = learners[OURS].eval().answer(tasks)[3]

    program = torch.export.load(tmp_path / "net" / "network.pt2").module()
    torch.testing.assert_close(program(tasks.query_x[3]), expected, rtol=1e-4, atol=1e-5)

    tensors, _ = load_tensors(tmp_path / "net" / "network.safetensors")
    plain = problem.build(3)
    plain.load_state_dict(tensors)
    torch.testing.assert_close(plain(tasks.query_x[3]), expected, rtol=1e-4, atol=1e-5)


def test_the_hypernetwork_learns_sinusoids_from_their_support_sets(tmp_path):
    config = FewShotConfig(
        data="sinusoid", steps=500, test_tasks=100, comparators=(), evaluate_every=250, shots=(10,)
    )
    record = experiment.run(FewShot(), config, tmp_path / "run", quiet=True)
    ours, control = trained(record)
    assert (
        ours["mean"] < 0.4
    )  # the mean of a sinusoid's square is about 4; a constant cannot do better
    assert control["mean"] > 10 * ours["mean"]


@pytest.mark.parametrize("split", [0, 1, 2])
@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_no_class_is_both_trained_on_and_held_out(split, held_out):
    problem = problem_of(FewShotConfig(data="digits", split=split, held_out=held_out).resolved())
    trained = {name.split("@")[0] for name in problem.train.names}
    assert trained.isdisjoint(problem.held_out.names)
    assert not any("@180" in name for name in problem.train.names)  # a 6 turned half around is a 9
    assert problem.pools.validates_on_training == (held_out == "test")
    assert any("of training classes" in its for its in problem.notices) == (held_out == "test")
    if held_out == "validation":
        final = problem_of(FewShotConfig(data="digits", split=split).resolved())
        assert trained.isdisjoint(final.held_out.names)
        assert set(problem.held_out.names).isdisjoint(final.held_out.names)


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_omniglots_other_background_alphabets_validate_and_are_not_trained_on(
    held_out, monkeypatch
):
    """Stub of 30 + 20 alphabets of 2 characters; the sizes of the authors' sets are kept."""
    names = [f"{SMALL1[i] if i < 5 else f'back{i}'}/c{c}" for i in range(30) for c in range(33)]
    names = names[:BACKGROUND] + [f"new{i % 20}/c{i}" for i in range(1623 - BACKGROUND)]
    pool = ClassPool(torch.zeros(1623, 20, 1, 2, 2), torch.full((1623,), 20), tuple(names))
    monkeypatch.setattr(pools, "load_omniglot", lambda: pool)
    config = FewShotConfig(data="omniglot-alphabets", held_out=held_out).resolved()
    found = pools.load_pools(config)
    of = {
        part: {name.split("/")[0] for name in getattr(found, part).names}
        for part in ("train", "validation", "test")
    }
    assert of["train"] == set(SMALL1) and not found.validates_on_training
    assert of["validation"] == {f"back{i}" for i in range(5, 30)}
    assert of["test"] == (
        {f"new{i}" for i in range(20)} if held_out == "test" else of["validation"]
    )
    plain = pools.load_pools(replace(config, data="omniglot"))
    assert plain.validates_on_training == (held_out == "test")
    assert len(plain.train.names) == 4 * (1200 if held_out == "test" else 1100)


def test_every_method_meets_the_same_test_tasks():
    problem = problem_of(SMALL.resolved())
    one, other = draw_test_tasks(problem, 1, 5), draw_test_tasks(problem, 1, 5)
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(other), strict=True))


def test_the_centroid_comparator_equals_that_of_scikit_learn():
    """scikit-learn 1.9, NearestCentroid with Euclidean distance."""
    problem = problem_of(SMALL.resolved())
    tasks = draw_test_tasks(problem, 5, 3)
    predicted = NearestCentroid(64).answer(tasks).argmax(2)
    for task in range(3):
        with warnings.catch_warnings():  # it remarks on pixels that are the same in every image
            warnings.simplefilter("ignore")
            x, y = tasks.support_x[task].flatten(1).numpy(), tasks.support_y[task].numpy()
            outside = SklearnNearestCentroid().fit(x, y)
        assert (
            predicted[task].tolist()
            == outside.predict(tasks.query_x[task].flatten(1).numpy()).tolist()
        )


def test_at_the_start_and_with_one_shot_the_generated_head_decides_as_protonet_does():
    """The ridge head's share is 0.004 then, so that only near ties may differ."""
    problem = problem_of(SMALL.resolved())
    tasks = draw_test_tasks(problem, 1, 40)
    base = ConvNet(1, 8, 3, channels=8, blocks=2)
    ours, protonet = HyperHead(base, 6.0).answer(tasks), ProtoNet(base, 6.0).answer(tasks)
    assert (ours.argmax(2) == protonet.argmax(2)).float().mean() > 0.97


def test_support_points_that_are_masked_are_not_read():
    learner = HyperRegressor(mlp([1, 8, 1])).eval()
    x, y = torch.randn(2, 2, 6, 1).unbind()
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    kept = Support(x[:, :4], y[:, :4], torch.ones(2, 4, dtype=torch.bool))
    garbage = Support(x, torch.where(mask[..., None], y, 1e6), mask)
    torch.nn.init.normal_(learner.hyper.head.weight)
    query = torch.randn(2, 3, 1)
    one, other = (learner.predict(learner.adapt(s), query) for s in (kept, garbage))
    torch.testing.assert_close(one, other)


def test_every_task_is_scored_once_however_many_run_at_once():
    problem = problem_of(SMALL.resolved())
    learner = NearestCentroid(64)
    one = judge(learner, problem, 1, 20, at_once=20).per_task["accuracy"]
    assert len(one) == 20 and not math.isnan(one.mean())
    assert len(judge(learner, problem, 1, 20, at_once=7).per_task["accuracy"]) == 20


def test_two_methods_are_held_against_each_other_task_by_task():
    """Their scores rise and fall with how hard a task is, so the interval of the difference is the narrower one."""
    one, other = (
        Scores({"accuracy": torch.tensor([0.5, 0.9, 0.7])}, 0.0),
        Scores({"accuracy": torch.tensor([0.4, 0.8, 0.6])}, 0.0),
    )
    row = other.row("protonet", "3-way 1-shot", ours=one)
    assert row["ours_ahead"]["mean"] == pytest.approx(0.1) and row["ours_ahead"][
        "ci95"
    ] == pytest.approx(0, abs=1e-6)
    assert row["ci95"] > 0.2 and "ours_ahead" not in one.row("hypernetwork", "3-way 1-shot")


class Mine(Learner):
    """A method of a user's own: nearest centroid, by another name."""

    trained = False

    def __init__(self, problem) -> None:
        super().__init__()
        self.centroid = NearestCentroid(problem.train.examples[0, 0].numel())
        self.base = self.centroid.base

    def adapt(self, support):
        return self.centroid.adapt(support)

    def predict(self, params, x):
        return self.centroid.predict(params, x)


def test_a_method_of_ones_own_runs_beside_the_others(tmp_path):
    options = {
        "data": "digits",
        "steps": 2,
        "tasks": 2,
        "test_tasks": 20,
        "shots": (1,),
        "queries": 5,
    }
    config = FewShotConfig(method="test_apps_fewshot:Mine", comparators=("centroid",), **options)
    record = experiment.run(FewShot(), config, tmp_path / "run", quiet=True)
    mine, centroid, control = trained(record)
    assert mine["method"] == "test_apps_fewshot:Mine" and mine["mean"] == centroid["mean"]
    assert (control["method"], control["role"]) == ("shuffled", "control") and abs(
        control["mean"] - 1 / 3
    ) < 0.1


class Bursting(Mine):
    """A method whose parameters are no numbers from its fourth step on."""

    trained = True

    def __init__(self, problem) -> None:
        super().__init__(problem)
        self.scale, self.steps = torch.nn.Parameter(torch.ones(())), 0

    def adapt(self, support):
        self.steps += self.training
        size = self.scale * (math.nan if self.steps > 3 else 1.0)
        return {name: size * value for name, value in super().adapt(support).items()}


BURSTING = "test_apps_fewshot:Bursting"


def test_a_comparator_that_fails_keeps_its_row_and_the_others_go_on(tmp_path, capsys):
    options = {
        "steps": 6,
        "tasks": 2,
        "test_tasks": 20,
        "shots": (1, 2),
        "queries": 5,
        "evaluate_every": 6,
    }
    config = FewShotConfig(data="digits", comparators=(BURSTING, "centroid"), **options)
    run = tmp_path / "run"
    record = experiment.run(FewShot(), config, run, quiet=True)
    assert "Bursting failed, the others go on: At step 4 the loss is nan" in capsys.readouterr().err
    resumed = experiment.run(FewShot(), config, run, resume=True, quiet=True)
    for found in (record, read_record(run / "record.json"), resumed):
        rows = {(row["setting"], row["method"]): row for row in found["scores"]}
        assert len(rows) == 2 * 4 and "loss is nan" in found["failures"][BURSTING]
        for shots in (1, 2):
            lost, kept = (rows[f"3-way {shots}-shot", method] for method in (BURSTING, "centroid"))
            assert lost["tasks"] == 0 and (lost["mean"] is None or math.isnan(lost["mean"]))
            assert kept["mean"] > 1 / 3 and kept["tasks"] == 20
    assert BURSTING not in load_run(run)[2]
    cli_main(["eval", str(run), "--shots", "3", "--trust"])
    assert "failed" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert (
        "<td>failed</td>" in page
        and "Bursting failed: At step 4 the loss is nan for tasks [0, 1]." in page
    )


class Lost(Mine):
    """A method that gives no number for the first of the tasks that it is given together."""

    def predict(self, params, x):
        outputs = super().predict(params, x)
        outputs[0, 1, 2] = math.nan
        return outputs


def test_a_task_without_a_number_counts_as_a_guess_and_is_counted():
    problem = problem_of(FewShotConfig(data="digits").resolved())
    whole, lost = (judge(kind(problem), problem, 5, 30, 3, at_once=10) for kind in (Mine, Lost))
    assert (whole.diverged, lost.diverged) == (0, 3) and lost.row("lost", "3-way 5-shot")[
        "diverged"
    ] == 3
    guesses = torch.zeros(30, dtype=torch.bool)
    guesses[::10] = True
    torch.testing.assert_close(lost.per_task["accuracy"][guesses], torch.full((3,), 1 / 3))
    torch.testing.assert_close(lost.per_task["log_loss"][guesses], torch.full((3,), math.log(3.0)))
    assert torch.equal(lost.per_task["accuracy"][~guesses], whole.per_task["accuracy"][~guesses])


def test_a_method_that_fails_itself_ends_the_run(tmp_path):
    config = FewShotConfig(
        data="digits", method=BURSTING, comparators=(), steps=6, tasks=2, test_tasks=20
    )
    with pytest.raises(NonFiniteError, match="loss is nan"):
        experiment.run(FewShot(), config, tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("nowhere:Mine", "cannot be imported"),
        ("test_apps_fewshot:Other", "cannot be imported"),
        ("json:loads", "gave a"),
    ],
)
def test_a_method_that_is_none_is_refused_before_anything_is_written(
    tmp_path, method, words, monkeypatch
):
    monkeypatch.setattr("json.loads", lambda problem: 3)
    with pytest.raises(ConfigError, match=words):
        experiment.run(
            FewShot(),
            FewShotConfig(data="digits", method=method, comparators=(), steps=1),
            tmp_path / "run",
            quiet=True,
        )


def test_a_method_that_does_not_fit_the_data_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"`--method cnp` does not go with `--data digits`"):
        FewShotConfig(data="digits", method="cnp")
    with pytest.raises(ConfigError, match="is `--method` too"):
        FewShotConfig(data="digits", comparators=("hypernetwork",))


@pytest.mark.parametrize("mode", ["alternating", "bilevel"])
def test_every_mode_runs_and_says_so_in_the_config(tmp_path, mode):
    options = {"steps": 4, "tasks": 2, "test_tasks": 4, "shots": (1,), "comparators": ("protonet",)}
    turns = {"block_steps": 1} if mode == "alternating" else {}
    config = FewShotConfig(data="digits", mode=mode, **options, **turns)
    record = experiment.run(FewShot(), config, tmp_path / "run", quiet=True)
    assert record["config"]["mode"] == mode and math.isfinite(record["scores"][0]["mean"])


def test_unequal_shots_and_several_ways_each_have_a_block_of_the_table(digits_run):
    run, _ = digits_run
    changes = {
        "ways": [2, 3],
        "shots": [1, 4],
        "uneven_shots": True,
        "comparators": ["centroid"],
        "test_tasks": 4,
    }
    config, problem, learners = load_run(run, changes)
    settings = {row["setting"] for row in score_all(learners, problem, config)}
    assert settings == {"2-way 1-shot", "2-way 1-to-4-shot", "3-way 1-shot", "3-way 1-to-4-shot"}
    shots = draw_test_tasks(problem, 4, 50, ways=3).support_mask.view(50, 3, 4).sum(2)
    assert set(shots.flatten().tolist()) == {1, 2, 3, 4}


def test_a_number_of_minutes_gives_every_method_as_many_steps_as_fit(tmp_path):
    config = FewShotConfig(
        data="digits", minutes=0.02, tasks=2, test_tasks=4, shots=(1,), comparators=("protonet",)
    )
    record = experiment.run(FewShot(), config, tmp_path / "run", quiet=True)
    steps = [
        json.loads((tmp_path / "run" / where / "steps.json").read_text())["steps"]
        for where in (".", "protonet")
    ]
    assert min(steps) > 1
    assert all(
        seconds > 0.2 for seconds in record["cost"]["train_wall_time_s"].values()
    )  # asked for 1.2 s
    assert max(steps) < 100_000  # and it ended


@pytest.mark.parametrize(
    ("capabilities", "typed", "chosen"),
    [
        ({"avx512_bf16": False, "amx_bf16": False}, None, "32-true"),
        ({"avx512_bf16": False, "amx_bf16": True}, None, "bf16-mixed"),
        ({"avx512_bf16": False}, "bf16-mixed", "bf16-mixed"),
        ({"avx512_bf16": True}, "32-true", "32-true"),
    ],
)
def test_half_precision_is_chosen_only_where_the_processor_knows_it(
    capabilities, typed, chosen, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert FewShotConfig(data="omniglot", precision=typed).resolved().precision == chosen
