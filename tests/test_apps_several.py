"""Several runs of any application: seeds, folds, sweeps on validation tasks, stopped and gone on with."""

import json
import math
import signal

import pytest

from tiny_app import GuessConfig, Guesses
from weightloom.apps import experiment, several
from weightloom.apps.several import Several, run_several
from weightloom.cli import main
from weightloom.errors import ConfigError, NonFiniteError
from weightloom.runs.options import RunOptions
from weightloom.runs.record import label

pytestmark = pytest.mark.usefixtures("unchecked")
OWN = "tiny_app:Guesses"
RATES = "learning-rate=0.000001,0.03,0.1"


@pytest.fixture(autouse=True)
def counted_anew(tmp_path, monkeypatch):
    Guesses.forget()
    monkeypatch.chdir(tmp_path)


def run(folder, resume=False, seeds=(), folds=(), sweep=(), **options):
    config = GuessConfig(
        **{"comparators": ("idle",), "steps": 30, "checkpoint_every": 4, **options}
    )
    return run_several(
        Guesses(), config, folder, Several(seeds, folds, sweep), resume=resume, quiet=True
    )


def scores(record):
    return [(label(row), row["mean"], row["ci95"]) for row in record["scores"]]


def alone(seed, **options):
    """The score of one run."""
    config = GuessConfig(comparators=("idle",), steps=30, checkpoint_every=4, seed=seed, **options)
    return experiment.run(Guesses(), config, f"alone-{seed}-{options}", quiet=True)["scores"][0][
        "mean"
    ]


def test_seeds_give_the_interval_of_students_t(tmp_path):
    record = run(tmp_path / "run", seeds=(0, 1, 2))
    values = [alone(seed) for seed in (0, 1, 2)]
    (ours, *_) = record["scores"]
    middle = sum(values) / 3
    spread = math.sqrt(sum((value - middle) ** 2 for value in values) / 2)
    assert ours["per_seed"] == values and ours["mean"] == pytest.approx(middle)
    assert ours["ci95"] == pytest.approx(
        4.303 * spread / math.sqrt(3)
    )  # t of two degrees of freedom, from a table
    assert record["config"]["seeds"] == [0, 1, 2] and record["config"]["comparators"] == ["idle"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "hypernetwork" in page and "idle" in page
    (pair,) = (
        its for name, its in record["paired"].items() if name.endswith("hypernetwork - idle")
    )
    gaps = [
        run["scores"][0]["mean"] - run["scores"][1]["mean"] for run in singles(tmp_path / "run")
    ]
    assert pair["per_seed"] == pytest.approx(gaps)


def singles(folder):
    return [json.loads((folder / f"seed-{seed}" / "record.json").read_text()) for seed in (0, 1, 2)]


def test_folds_take_the_place_of_the_option_that_deals_data_out(tmp_path):
    record = run(tmp_path / "run", seeds=(0, 1), folds=(0, 2))
    assert {place.name for place in (tmp_path / "run").glob("part-*")} == {
        f"part-{part}-seed-{seed}" for part in (0, 2) for seed in (0, 1)
    }
    each = {(part, seed): alone(seed, part=part) for part in (0, 2) for seed in (0, 1)}
    by_seed = [(each[0, seed] + each[2, seed]) / 2 for seed in (0, 1)]
    assert record["scores"][0]["per_seed"] == pytest.approx(by_seed)
    assert record["config"]["folds"] == [0, 2]


def test_a_sweep_chooses_by_validation_tasks_alone_and_the_chosen_value_is_trained_with(
    tmp_path, monkeypatch
):
    kept, original = {}, several._Study._sweep

    def watched(*given):
        Guesses.forget()
        chosen = original(*given)
        kept.update(Guesses.drawn)
        return chosen

    monkeypatch.setattr(several._Study, "_sweep", watched)
    record = run(tmp_path / "run", sweep=(RATES,), comparators=("costly", "idle"), seeds=(0, 1))
    assert kept.keys() == {"train", "validation"} and kept["train"] == 2 * 3 * 30
    swept = record["sweep"]
    assert swept["option"] == "learning_rate" and list(swept["scores"]) == [
        "hypernetwork",
        "costly",
    ]
    for method, tried in swept["scores"].items():
        assert list(tried) == ["0.000001", "0.03", "0.1"]
        assert swept["chosen"][method] == min(tried, key=tried.get)
    assert (
        swept["chosen"]["hypernetwork"] == "0.1"
    )  # thirty steps of Adam: the largest gets nearest
    assert record["scores"][0]["per_seed"] == [alone(seed, learning_rate=0.1) for seed in (0, 1)]
    one = json.loads((tmp_path / "run" / "seed-1" / "record.json").read_text())
    assert one["chosen"] == {"option": "learning_rate", "chosen": swept["chosen"]}


def test_a_value_that_a_method_fails_with_is_not_chosen(tmp_path):
    record = run(tmp_path / "run", sweep=("learning-rate=1e9,0.05",), comparators=("broken",))
    swept = record["sweep"]
    assert swept["scores"]["hypernetwork"]["1e9"] is None and swept["chosen"] == {
        "hypernetwork": "0.05"
    }
    assert swept["scores"]["broken"] == {
        "1e9": None,
        "0.05": None,
    }  # a comparator's row stays, and says so
    assert [(row["method"], row.get("failed")) for row in record["scores"]][1] == (
        "broken",
        "1 of 1 runs",
    )
    with pytest.raises(
        NonFiniteError, match=r"`broken` failed with every value of `--learning-rate`: 0.05, 0.1"
    ):
        run(tmp_path / "lost", sweep=("learning-rate=0.05,0.1",), method="broken")


def test_every_method_is_swept_within_its_own_budget(tmp_path):
    Guesses.cost_s = {"hypernetwork": 0.0, "costly": 0.004}
    options = {"comparators": ("costly",), "steps": None, "minutes": 0.002}
    run(tmp_path / "run", sweep=("learning-rate=0.05,0.1",), **options)

    def steps(method):
        places = (tmp_path / "run" / "sweep").glob(f"{method}-learning_rate-*/steps.json")
        return [json.loads(place.read_text())["steps"] for place in places]

    assert len(steps("costly")) == 2 and min(steps("hypernetwork")) > 1.5 * max(steps("costly"))


@pytest.mark.parametrize(("stopped_in", "seed"), [("seed", 2), ("sweep", 0)])
def test_what_was_stopped_by_sigterm_goes_on_to_the_same_numbers(stopped_in, seed, tmp_path):
    options = {"seeds": (0, 1, 2)} if stopped_in == "seed" else {"sweep": (RATES,)}
    whole = run(tmp_path / "whole", **options)
    Guesses.forget()
    Guesses.stop_at = (seed, 17)
    assert run(tmp_path / "parts", **options) == signal.SIGTERM
    taken = Guesses.steps.total()
    assert not (tmp_path / "parts" / "record.json").exists()
    resumed = run(tmp_path / "parts", resume=True, **options)
    assert scores(resumed) == scores(whole) and resumed.get("sweep") == whole.get("sweep")
    runs = 3 if stopped_in == "seed" else 4
    assert taken < Guesses.steps.total() == 30 * runs  # no step was taken twice


def test_a_seed_of_a_sweep_that_goes_on_by_itself_keeps_what_was_chosen(tmp_path):
    whole = run(tmp_path / "whole", seeds=(4,), sweep=(RATES,), seed=0)
    Guesses.stop_at = (4, 17)
    assert run(tmp_path / "parts", seeds=(4,), sweep=(RATES,), seed=0) == signal.SIGTERM
    main([OWN, "--resume", "parts/seed-4", "--quiet"])
    one = json.loads((tmp_path / "parts" / "seed-4" / "record.json").read_text())
    assert one["scores"][0]["mean"] == whole["scores"][0]["mean"]


def test_the_command_goes_on_reports_and_says_which_folder_holds_one_run(tmp_path, capsys):
    words = ["--steps", "10", "--comparators", "idle", "--run", "run", "--quiet"]
    main([OWN, *words, "--seeds", "3", "4", "--folds", "1", "2"])
    assert "hypernetwork" in capsys.readouterr().out
    before = (tmp_path / "run" / "record.json").read_text()
    (tmp_path / "run" / "record.json").unlink()
    (tmp_path / "run" / "part-2-seed-4" / "record.json").unlink()
    main([OWN, "--resume", "run", "--quiet"])
    again = json.loads((tmp_path / "run" / "record.json").read_text())
    assert scores(again) == scores(json.loads(before))
    (tmp_path / "run" / "report.html").unlink()
    main(["report", "run", "--app", OWN])
    assert (tmp_path / "run" / "report.html").is_file()
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["eval", "run", "--app", OWN])
    said = capsys.readouterr().err
    assert left.value.code == 2 and "`run` holds several runs" in said
    advised = said.split("as in `")[1].split("`")[0]
    main(["eval", advised, "--app", OWN])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"sweep": ("number=1,2",)},
            "tries `number`. A sweep tries options of training: learning-rate",
        ),
        ({"sweep": ("learning-rate=0.1",)}, "has fewer than two values"),
        ({"sweep": (RATES, RATES)}, "tries several options"),
        ({"sweep": ("learning-rate=fast,slow",)}, "'learning_rate' is 'fast'"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_a_folder_is_made(options, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_an_application_without_validation_tasks_or_folds_has_no_sweep_and_no_folds(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(GuessConfig, "validating", RunOptions.validating)
        with pytest.raises(ConfigError, match="`GuessConfig` has no validation tasks"):
            run(tmp_path / "run", sweep=(RATES,))
    with monkeypatch.context() as patch:
        patch.setattr(Guesses, "folds", "")
        with pytest.raises(ConfigError, match="`--folds` does not go with `weightloom guess`"):
            run(tmp_path / "run", folds=(0, 1))
    assert not (tmp_path / "run").exists()
