"""`weightloom transfer` on a problem that is solved by hand, and its check on the support."""

import json
import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightloom.apps.experiment import judge_again, run
from weightloom.apps.transfer.app import Transfer
from weightloom.apps.transfer.config import TransferConfig
from weightloom.apps.transfer.figures import shot_figures, step_figures
from weightloom.cli import main
from weightloom.errors import ConfigError, ShapeError
from weightloom.learners.check import check_on_support

OWN = "tests.own_targets:Lines"
SQUARED_X = 2.0  # mean of x² over -1, 1, 2


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    config = TransferConfig(
        data=OWN,
        comparators=("source", "shared"),
        steps=400,
        learning_rate=0.05,
        evaluate_every=100,
    )
    folder = tmp_path_factory.mktemp("transfer") / "run"
    return folder, run(Transfer(), config, folder, quiet=True)


def row(record, method, setting="3 points", role="method"):
    (found,) = (
        its
        for its in record["scores"]
        if (its["method"], its["setting"], its.get("role", "method")) == (method, setting, role)
    )
    return found


def test_scores_are_those_of_the_exact_slopes(record):
    _, its = record
    errors = [0.25, 1.0, 4.0, 0.0]  # (1 - w)²
    assert row(its, "source")["per_context"] == pytest.approx([2 * error for error in errors])
    assert row(its, "generated")["mean"] < 1e-3  # a line in the condition has the answer
    mean_slope, variance = 2.0, 9 / 12  # of slopes drawn from .5 to 3.5
    assert row(its, "shared")["mean"] == pytest.approx(
        SQUARED_X * sum((mean_slope - w) ** 2 for w in (0.5, 2, 3, 1)) / 4, rel=0.1
    )
    assert variance > 0


def test_controls_read_another_condition_and_the_mean_one(record):
    _, its = record
    swapped = [
        (a - b) ** 2 for a, b in zip((1.0, 0.5, 2.0, 3.0), (0.5, 2.0, 3.0, 1.0), strict=True)
    ]
    shuffled = row(its, "generated, shuffled condition", role="control")
    assert shuffled["per_context"] == pytest.approx([2 * each for each in swapped], rel=0.05)
    mean = row(its, "generated, mean condition", role="control")
    assert mean["per_context"][1] < 1e-3
    assert mean["per_context"][0] == pytest.approx(2 * 1.5**2, rel=0.05)
    assert not [one for one in its["scores"] if one["method"].startswith("shared,")]


def test_steps_on_a_target_have_rows_of_their_own(record):
    _, its = record
    after = row(its, "source", "3 points, 2 steps")["per_context"]
    before = row(its, "source")["per_context"]
    assert after == pytest.approx([each / 16 for each in before])  # each step halves the distance


def test_the_check_takes_the_best_and_makes_no_family_worse(record):
    _, its = record
    checked = row(its, "checked")
    assert checked["mean"] < 1e-3
    assert checked["check"]["families"]["same"] == pytest.approx([0.0, 0.0], abs=1e-3)
    weights = checked["check"]["weights"]
    assert sum(weights.values()) == pytest.approx(1)
    assert max(weights, key=weights.get) == "generated"


def test_the_untrained_row_is_the_source_here(record):
    _, its = record
    untrained = row(its, "generated", role="untrained")
    assert untrained["per_context"] == pytest.approx(row(its, "source")["per_context"])
    assert untrained["trained_ahead"]["mean"] < -2


def test_a_run_is_judged_again_without_the_check(record):
    folder, _ = record
    _, rows = judge_again(Transfer(), folder, {"check": False}, trust=True)
    assert rows and not [one for one in rows if one["method"] == "checked"]


def test_the_report_shows_steps_check_and_layers(record):
    folder, its = record
    page = (folder / "report.html").read_text()
    for words in ("Score against gradient steps", "The check on the support", "Size of the change"):
        assert words in page
    (figure,) = step_figures(its["scores"])
    assert "source 2.62 to 0.164" in figure.alt


def test_scores_are_drawn_against_shots_where_there_are_several():
    rows = [
        {
            "method": "mine",
            "setting": f"{shots}-shot{after}",
            "name": "accuracy",
            "mean": shots / 10,
        }
        for shots in (5, 1)
        for after in ("", ", 20 steps")
    ]
    (figure,) = shot_figures(rows)
    assert figure.alt == "accuracy against labelled examples: mine 0.1 to 0.5"
    assert shot_figures(rows[:2]) == []


def test_seeds_keep_every_target_and_the_check(tmp_path, monkeypatch, capsys):
    words = ["transfer", "--data", OWN, "--comparators", "source", "--steps", "20", "--quiet"]
    main([*words, "--seeds", "0", "1", "--run", str(tmp_path / "run")])
    found = json.loads((tmp_path / "run" / "record.json").read_text())
    source = next(its for its in found["scores"] if its["method"] == "source")
    assert source["per_context"] == pytest.approx([0.5, 2.0, 8.0, 0.0])
    assert found["protocol"] == "The slope of each target is known."
    paired = found["paired"]["3 points: generated - source"]["over_contexts"]
    assert paired["mean"] == pytest.approx(found["scores"][0]["mean"] - source["mean"])
    checked = next(its for its in found["scores"] if its["method"] == "checked")
    assert sum(checked["check"]["weights"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": "domain"}, "module:Class"),
        ({"data": OWN, "tasks": 0}, "--tasks 0"),
        ({"data": OWN, "learning_rate": -1.0}, "--learning-rate"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        TransferConfig(**options).resolved()


def test_a_class_that_is_no_problem_is_refused():
    config = TransferConfig(data="collections:OrderedDict", comparators=())
    with pytest.raises(ConfigError, match=r"my_targets:MyProblem"):
        Transfer().open(config.resolved())
    config = TransferConfig(data="builtins:repr", comparators=())
    with pytest.raises(ConfigError, match=r"gave a str.*Inherit from"):
        Transfer().open(config.resolved())


@given(
    losses=st.lists(st.lists(st.floats(0.01, 100), min_size=3, max_size=3), min_size=1, max_size=4),
    prior=st.floats(0.1, 10),
    sharpness=st.floats(0, 20),
)
def test_weights_are_the_powers_of_the_losses(losses, prior, sharpness):
    found = check_on_support(
        {
            name: torch.tensor(column)
            for name, column in zip("abc", zip(*losses, strict=True), strict=True)
        },
        "b",
        {"c": prior},
        sharpness,
    )
    for task, (a, b, c) in enumerate(losses):
        powers = [(a / b) ** -sharpness, 1.0, prior * (c / b) ** -sharpness]
        wanted = [each / math.fsum(powers) for each in powers]
        assert found.weights[task].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_infinite_sharpness_chooses_and_nan_counts_for_nothing():
    losses = {
        "source": torch.tensor([1.0, 1.0, torch.nan]),
        "mine": torch.tensor([0.9, torch.nan, torch.inf]),
    }
    found = check_on_support(losses, "source", sharpness=math.inf)
    assert found.weights.tolist() == [[0, 1], [1, 0], [1, 0]]
    assert [found.chosen(task) for task in range(3)] == ["mine", "source", "source"]
    outputs = {"source": torch.ones(3, 2), "mine": torch.full((3, 2), torch.nan)}
    outputs["mine"][0] = 5.0
    assert found.blend(outputs).tolist() == [[5, 5], [1, 1], [1, 1]]


def test_losses_of_examples_are_averaged():
    losses = {"source": torch.tensor([[1.0, 3.0]]), "mine": torch.tensor([[1.0, 1.0]])}
    assert check_on_support(losses, "source").losses.tolist() == [[2.0, 1.0]]


def test_bad_losses_are_refused():
    one, two = torch.ones(1), torch.ones(2)
    with pytest.raises(ConfigError, match="no candidate"):
        check_on_support({"a": one}, "b")
    with pytest.raises(ShapeError, match="one loss per task"):
        check_on_support({"a": one, "b": two}, "a")
    with pytest.raises(ConfigError, match="sharpness"):
        check_on_support({"a": one}, "a", sharpness=-1.0)
    with pytest.raises(ConfigError, match="above 0"):
        check_on_support({"a": one, "b": one}, "a", {"b": 0.0})
    with pytest.raises(ConfigError, match="lacks 'b'"):
        check_on_support({"a": one, "b": one}, "a").blend({"a": one})


def test_transfer_imports_torch_only_at_use():
    import subprocess

    code = "import sys, weightloom.apps.transfer.app; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_method_is_trained_and_loaded_from_python(record, tmp_path):
    from weightloom.apps import transfer

    folder, its = record
    trained = transfer.load(folder, trust=True)
    found = trained.problem.outputs(trained.model, trained.problem.settings()[0])
    errors = trained.problem.scores(None, found.query)["mse"]
    assert errors.tolist() == pytest.approx(row(its, "generated")["per_context"], abs=1e-6)
    assert transfer.train(OWN, steps=2, quiet=True).config.steps == 2
    with pytest.raises(ConfigError, match=r"reads no `mine\.csv`"):
        trained.adapt("mine.csv")
    with pytest.raises(ConfigError, match="--trust"):
        transfer.load(folder)
