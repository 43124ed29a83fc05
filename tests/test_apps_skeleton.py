"""One run of any application: whose folder it is, what failed, equal time, a start from another run."""

import importlib.metadata
import json
import shutil
from importlib.metadata import EntryPoint

import pytest

from tiny_app import GuessConfig, Guesses
from weightloom.apps import experiment, registry
from weightloom.cli import main
from weightloom.errors import CheckpointError, ConfigError, DataError
from weightloom.runs.record import role_of

pytestmark = pytest.mark.usefixtures(
    "unchecked"
)  # whole runs: shapes are checked where the rooms are tested
OWN = "tiny_app:Guesses"


@pytest.fixture(autouse=True)
def counted_anew(tmp_path, monkeypatch):
    Guesses.forget()
    monkeypatch.chdir(tmp_path)


def run(folder, resume=False, **options):
    config = GuessConfig(**{"comparators": (), "steps": 30, **options})
    return experiment.run(Guesses(), config, folder, resume=resume, quiet=True)


def told(words, capsys):
    """The message that a command leaves with."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    return capsys.readouterr().err


def test_a_folder_names_its_application_and_every_command_reads_only_its_own(tmp_path, capsys):
    run("run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["app"] == "guess"
    for command in (["report"], ["eval"], ["export", "--task", "0"], ["adapt"]):
        words = [command[0], "run", *command[1:], *(["support"] if command[0] == "adapt" else [])]
        said = told(words, capsys)
        assert "`run` is a run of `guess`, an application that is not installed here" in said
        said = told([*words, "--app", "fewshot"], capsys)
        assert "`run` is a run of `guess`, and `--app fewshot` is `fewshot`" in said
    said = told(["fewshot", "--resume", "run"], capsys)
    assert (
        "`run` is a run of `weightloom guess`, and `weightloom fewshot` was asked to read it"
        in said
    )
    main(["report", "run", "--app", OWN])
    main(["eval", "--number", "9", "run", "--app", OWN])  # the folder may stand anywhere
    assert "hypernetwork" in capsys.readouterr().out
    for words, said in (
        (["export", "run", "--task", "0"], "export --task"),
        (["adapt", "run", "5"], "adapt"),
    ):
        assert f"`weightloom {said}` does not go with a run of `weightloom guess`" in told(
            [*words, "--app", OWN], capsys
        )


def test_a_changed_config_and_checkpoints_of_another_run_or_method_are_refused(tmp_path):
    for name, seed in (("one", 0), ("other", 1)):
        run(tmp_path / name, comparators=("costly",), seed=seed)
    last = "checkpoints/last.safetensors"
    for taken, place in ((f"other/{last}", f"one/{last}"), (f"one/costly/{last}", f"one/{last}")):
        kept = (tmp_path / place).read_bytes()
        shutil.copy(tmp_path / taken, tmp_path / place)
        with pytest.raises(CheckpointError, match="was written by another run or method"):
            experiment.load(Guesses(), tmp_path / "one")
        with pytest.raises(CheckpointError, match="was written by another run or method"):
            run(tmp_path / "one", resume=True, comparators=("costly",))
        (tmp_path / place).write_bytes(kept)
    assert list(experiment.load(Guesses(), tmp_path / "one").models) == ["hypernetwork", "costly"]
    config = tmp_path / "one" / "config.json"
    config.write_text(config.read_text().replace('"number": 3.0', '"number": 4.0'))
    with pytest.raises(DataError, match="was changed after the run began"):
        experiment.load(Guesses(), tmp_path / "one")


def test_every_trained_method_has_a_row_of_what_it_was_before_training(tmp_path):
    record = run(tmp_path / "run", comparators=("costly", "idle", "broken"))
    parts = [(row["method"], role_of(row)) for row in record["scores"]]
    methods = [(name, "method") for name in ("hypernetwork", "costly", "idle", "broken")]
    assert parts == [*methods, ("hypernetwork", "untrained"), ("costly", "untrained")]
    trained, costly, idle, broken, before, _ = (row["mean"] for row in record["scores"])
    assert (
        trained == costly < before == idle
    )  # all begin from one seed; who is not trained stays there
    assert broken != broken and record["scores"][3]["tasks"] == 0  # not a number
    assert "the loss is nan" in record["failures"]["broken"] and "broken failed" in record["notes"]
    kept = json.loads((tmp_path / "run" / "record.json").read_text())["scores"][3]
    assert kept["method"] == "broken" and kept["mean"] is None
    Guesses.forget()
    again = run(tmp_path / "run", resume=True, comparators=("costly", "idle", "broken"))
    assert Guesses.steps.total() == 0  # what ended or failed is not tried again
    assert [row["mean"] for row in again["scores"]][:3] == [trained, costly, idle]


def test_minutes_give_every_trained_method_the_same_processor_time(tmp_path):
    """A step of one costs eight times that of the other: it gets so many fewer."""
    Guesses.cost_s = {"hypernetwork": 0.001, "costly": 0.008}
    record = run(tmp_path / "run", steps=None, minutes=0.01, comparators=("costly",))
    ours, costly = record["cost"]["steps"]["hypernetwork"], record["cost"]["steps"]["costly"]
    assert 2 < ours / costly < 12
    assert 0.5 < Guesses.used_s["hypernetwork"] / Guesses.used_s["costly"] < 2
    for place, steps in (("", ours), ("costly", costly)):
        assert json.loads((tmp_path / "run" / place / "steps.json").read_text())["steps"] == steps
    Guesses.forget()  # steps cost nothing now, yet a run goes on with the number that it began with
    for place in ("", "costly"):
        (tmp_path / "run" / place / "checkpoints" / "last.safetensors").unlink()
    assert run(tmp_path / "run", True, steps=None, minutes=0.01, comparators=("costly",))["cost"][
        "steps"
    ] == {
        "hypernetwork": ours,
        "costly": costly,
    }
    assert Guesses.steps == {"hypernetwork": ours, "costly": costly}


def test_a_run_that_starts_from_another_on_a_related_task_needs_fewer_steps(tmp_path):
    run(tmp_path / "far", steps=150)
    options = {"steps": 150, "evaluate_every": 5, "number": 3.2}
    record = run(tmp_path / "near", start_from=str(tmp_path / "far"), **options)
    facts = record["start_from"]
    assert facts["run"] == str(tmp_path / "far")
    assert (
        facts["steps"] < facts["fresh_steps"]
        and facts["steps_saved"] == facts["fresh_steps"] - facts["steps"]
    )
    assert [(row["method"], role_of(row)) for row in record["scores"]][:2] == [
        ("hypernetwork", "method"),
        ("fresh", "control"),
    ]
    fresh = run(tmp_path / "fresh", **options)
    assert (
        fresh["scores"][0]["mean"] == record["scores"][1]["mean"]
    )  # the arm beside it is that of any run
    with pytest.raises(ConfigError, match="has no method `costly`"):
        run(tmp_path / "odd", method="costly", start_from=str(tmp_path / "far"))


def test_an_application_of_another_package_is_found_by_its_entry_point(
    tmp_path, monkeypatch, capsys
):
    point, original = EntryPoint("guess", OWN, registry.GROUP), importlib.metadata.entry_points

    def with_ours(**asked):
        return [point] if asked.get("group") == registry.GROUP else original(**asked)

    monkeypatch.setattr(importlib.metadata, "entry_points", with_ours)
    main([])
    assert "  guess     Guess a number." in capsys.readouterr().out
    main(["guess", "--steps", "5", "--comparators", "--quiet"])
    assert (tmp_path / "runs" / "guess-001" / "report.html").is_file()
    main(["eval", "runs/guess-001"])  # installed, so a folder may name it
    main(["list"])
    (tmp_path / "runs" / "guess-001" / "record.json").unlink()
    main(["guess", "--resume", "runs/guess-001", "--quiet"])
    assert (tmp_path / "runs" / "guess-001" / "record.json").is_file()
    assert "Did you mean `guess`?" in told(["gues"], capsys)


def test_an_application_is_typed_as_module_and_class(tmp_path, capsys):
    main([OWN, "--steps", "5", "--number", "4", "--comparators", "idle", "--run", "run", "--quiet"])
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["app"] == "guess" and record["config"]["number"] == 4.0
    assert record["command"].startswith(f"weightloom {OWN} --steps 5")
    assert "cannot be imported" in told(["tiny_app:Gueses"], capsys)
    assert "gave a Guess" in told(["tiny_app:GuessConfig"], capsys)


@pytest.mark.slow
def test_engines_are_timed_once_and_agents_start_from_agents_of_related_contexts(
    tmp_path, monkeypatch
):
    pytest.importorskip("sb3_contrib")
    from weightloom.apps.rl.app import RL
    from weightloom.apps.rl.config import RLConfig
    from weightloom.apps.rl.envs.lqr import LQR

    monkeypatch.setattr(LQR, "max_steps", 10)
    small = {
        "rows": 4,
        "width": 8,
        "hidden": 8,
        "blocks": 0,
        "rank": 2,
        "batch": 8,
        "warm_up": 8,
        "updates": 0.25,
    }
    config = RLConfig(env="lqr", steps=40, test_contexts=2, comparators=(), autotune=True, **small)
    experiment.run(RL(), config, tmp_path / "run", quiet=True)
    kept = json.loads((tmp_path / "run" / "engines.json").read_text())
    assert kept and all(
        entry["way"] == min(entry["ms"], key=entry["ms"].get) for entry in kept.values()
    )
    experiment.run(RL(), config, tmp_path / "run", resume=True, quiet=True)
    again = json.loads((tmp_path / "run" / "engines.json").read_text())
    assert {name: again[name] for name in kept} == kept
    related = {
        "vary": ("stiffness=1:2", "motor=0.5:1.5"),
        "evaluate_every": 20,
        "start_from": str(tmp_path / "run"),
    }
    options = {"env": "lqr", "steps": 40, "test_contexts": 2, "comparators": (), **small}
    record = experiment.run(RL(), RLConfig(**options, **related), tmp_path / "related", quiet=True)
    assert record["start_from"]["fresh_steps"] and {"fresh", "hypernetwork"} <= {
        row["method"] for row in record["scores"]
    }


def test_what_was_trained_cannot_be_changed_when_a_run_is_loaded(tmp_path):
    run(tmp_path / "run", steps=5)
    with pytest.raises(
        ConfigError, match=r"Option 'steps' cannot be changed after training.*`number`"
    ):
        experiment.load(Guesses(), tmp_path / "run", {"steps": 3})
