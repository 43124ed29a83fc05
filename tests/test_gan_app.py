"""`weightloom gan` on two blobs whose centres are known."""

import json
from dataclasses import replace

import pytest
import torch

from tests.own_samples import CENTRES
from weightloom.apps import gan
from weightloom.apps.experiment import judge_again, run
from weightloom.apps.gan.app import Gan
from weightloom.apps.gan.config import GanConfig
from weightloom.apps.gan.training import FRAMES
from weightloom.cli import main
from weightloom.errors import ConfigError, DataError, NonFiniteError
from weightloom.files import load_tensors
from weightloom.runs.metrics import read_rows

OWN = "tests.own_samples:Blobs"
SHORT = {"batch": 64, "noise_dim": 4, "average": 0.9, "evaluate_every": 100}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    config = GanConfig(data=OWN, comparators=("concat",), steps=400, **SHORT)
    folder = tmp_path_factory.mktemp("gan") / "run"
    return folder, run(Gan(), config, folder, quiet=True)


def row(record, method, role="method"):
    (found,) = (
        its
        for its in record["scores"]
        if (its["method"], its.get("role", "method")) == (method, role)
    )
    return found


def test_the_generated_pair_finds_the_centre_of_each_condition(record):
    _, its = record
    assert max(row(its, "generated")["per_context"]) < 0.15
    assert row(its, "generated", role="untrained")["mean"] > 0.7


def test_samples_for_the_other_condition_are_as_far_as_the_centres(record):
    _, its = record
    apart = (CENTRES[0] - CENTRES[1]).norm().item()
    shuffled = row(its, "generated, shuffled condition", role="control")
    assert shuffled["per_context"] == pytest.approx([apart, apart], abs=0.2)


def test_real_samples_are_the_ceiling(record):
    _, its = record
    real = row(its, "real", role="ceiling")
    assert real["mean"] < 0.03
    assert real["also"]["spread"]["mean"] == pytest.approx(0.1, rel=0.1)


def test_the_paired_lead_is_the_difference_of_the_scores(record):
    _, its = record
    ours, concat = row(its, "generated"), row(its, "concat")
    assert concat["ours_ahead"]["mean"] == pytest.approx(ours["mean"] - concat["mean"], abs=1e-6)


def test_the_record_counts_parameters_and_keeps_the_protocol(record):
    _, its = record
    generator, discriminator = 4 * 16 + 16 + 16 * 2 + 2, 2 * 16 + 16 + 16 + 1
    hyper = 2 * 64 + 64 + 65 * (generator + discriminator)
    assert its["facts"]["parameters"]["generated"] == generator + discriminator + hyper
    assert its["protocol"] == "The centre of each blob is known."


def test_both_turns_are_logged_with_loss_and_gradient(record):
    folder, _ = record
    rows = [its for its in read_rows(folder) if "turn" in its]
    assert {its["turn"] for its in rows} == {"discriminator", "generator"}
    assert all(its["gradient_norm"] >= 0 for its in rows)


def test_a_few_samples_are_kept_at_each_evaluation(record):
    folder, _ = record
    frames, _ = load_tensors(folder / FRAMES)
    assert [int(name) for name in sorted(frames)] == [100, 200, 300, 400]
    assert {tuple(its.shape) for its in frames.values()} == {(4, 2)}


def test_a_run_is_judged_again_with_the_same_scores(record):
    folder, its = record
    _, rows = judge_again(Gan(), folder, {}, trust=True)
    assert rows[0]["per_context"] == row(its, "generated")["per_context"]


def test_python_draws_samples_of_a_condition_by_name(record):
    folder, _ = record
    trained = gan.load(folder, trust=True)
    drawn = trained.sample("up", 500, seed=3)
    assert (drawn.mean(0) - CENTRES[1]).norm() < 0.2
    assert torch.equal(drawn, trained.sample("up", 500, seed=3))
    with pytest.raises(ConfigError, match=r"no condition `upp`.*`up`"):
        trained.sample("upp")
    with pytest.raises(ConfigError, match="whose samples have one size"):
        trained.sample("up", size=(2, 2))


def test_arms_of_unequal_length_are_compared_at_equal_steps(tmp_path, monkeypatch):
    config = GanConfig(
        data=OWN, comparators=("concat",), steps=40, **(SHORT | {"evaluate_every": 20})
    )
    app = Gan()
    train = app.train

    def shorter(model, problem, config, training):
        steps = 20 if training.method == "concat" else 40
        return train(model, problem, replace(config, steps=steps), training)

    monkeypatch.setattr(app, "train", shorter)
    its = run(app, config, tmp_path / "run", quiet=True)
    name = "validation score at equal steps"
    for method, folder in (("generated", tmp_path / "run"), ("concat", tmp_path / "run/concat")):
        logged = {one["step"]: one.get("validation_score") for one in read_rows(folder)}
        assert row(its, method)["also"][name]["mean"] == logged[20]


def test_divergence_stops_the_run_and_says_what_to_type(tmp_path):
    config = GanConfig(data=OWN, method="broken", comparators=(), steps=20, **SHORT)
    with pytest.raises(NonFiniteError, match=r"diverge.*--gamma 4.*--learning-rate"):
        run(Gan(), config, tmp_path / "run", quiet=True)


def test_a_comparator_that_diverges_is_a_failed_row(tmp_path):
    config = GanConfig(data=OWN, comparators=("broken",), steps=20, **SHORT)
    its = run(Gan(), config, tmp_path / "run", quiet=True)
    assert row(its, "broken").get("failed", True)


def test_seeds_keep_each_condition(tmp_path):
    words = ["gan", "--data", OWN, "--comparators", "concat", "--steps", "20", "--quiet"]
    main([*words, "--batch", "8", "--seeds", "0", "1", "--run", str(tmp_path / "run")])
    found = json.loads((tmp_path / "run" / "record.json").read_text())
    assert len(found["scores"][0]["per_context"]) == 2
    assert found["protocol"] == "The centre of each blob is known."


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": "digts"}, "did you mean|`digits`"),
        ({"data": "digits", "method": "plain"}, "--data digits"),
        ({"gamma": 1.0, "gamma_end": 2.0}, "--gamma 2.0 --gamma-end 1.0"),
        ({"average": 1.0}, "--average 0.999"),
        ({"gamma": -1.0}, "--gamma"),
        ({"batch": 0}, "--batch"),
        ({"replicas": 0}, "--replicas"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        GanConfig(**options)


def test_gamma_alone_is_a_constant_penalty():
    assert GanConfig(data="grid", gamma=0.5).resolved().gamma_end == 0.5
    assert GanConfig(data="grid").resolved().gamma_end <= GanConfig(data="grid").resolved().gamma


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    config = GanConfig(data=str(tmp_path / "birds")).resolved()
    with pytest.raises(DataError, match="is no folder"):
        Gan().open(config)
