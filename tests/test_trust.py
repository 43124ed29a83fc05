"""Code that a run of somebody else names: nothing of it is imported before it was typed, or trusted."""

import re
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest

from weightloom.apps import experiment, fewshot
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.registry import all_apps, imported
from weightloom.cli import main
from weightloom.errors import ConfigError, WeightloomError
from weightloom.option_help import field_texts
from weightloom.runs.folder import held_folder

NAMED = {
    "method": {"method": "stranger:Mine", "comparators": ()},
    "comparators": {"method": "polynomial", "comparators": ("stranger:Mine",)},
    "data": {"data": "stranger:Mine", "comparators": ()},
    "base": {"base": "stranger:Mine", "comparators": ()},
}
"""Options that name code, each alone."""
COMMANDS = {
    "eval": "eval run",
    "adapt": "adapt run support.csv",
    "export": "export run --task 0",
    "whole": "export run --whole",
    "resume": "fewshot --resume run",
    "config": "fewshot --config run/config.json --run other",
}


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module in the working directory that leaves a trace when it is imported; returns the trace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "stranger.py").write_text("from pathlib import Path\nPath('trace').touch()\n")
    yield tmp_path / "trace"
    sys.modules.pop("stranger", None)


def make_run(place, **options):
    with held_folder(
        place, "fewshot", FewShotConfig(**{"data": "sinusoid", **options}).resolved(), resume=False
    ):
        pass


def refused(words, capsys):
    with pytest.raises(SystemExit) as left:
        main(words.split())
    assert left.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", NAMED)
def test_a_run_that_names_code_is_refused_before_it_is_imported(
    option, command, stranger, tmp_path, capsys
):
    make_run(tmp_path / "run", **NAMED[option])
    if option == "comparators" and command in ("adapt", "export", "whole"):
        pytest.skip("they load the run's method alone")
    said = refused(COMMANDS[command], capsys)
    assert f"names code: `--{option} stranger:Mine`" in said and "--trust" in said
    assert not stranger.exists() and not (tmp_path / "other").exists()
    refused(f"{COMMANDS[command]} --trust", capsys)
    assert (
        stranger.exists()
    )  # the advice helps: it was imported, and then turned out to hold no such class


@pytest.mark.parametrize("option", NAMED)
@pytest.mark.parametrize("typed", ["--{} stranger:Mine", "--{}=stranger:Mine"])
def test_what_is_typed_again_is_trusted(option, typed, stranger, tmp_path, capsys):
    make_run(tmp_path / "run", **NAMED[option])
    assert "cannot be imported" in refused(f"fewshot --resume run {typed.format(option)}", capsys)
    assert stranger.exists()


def test_what_is_typed_is_no_trust_in_the_rest(stranger, tmp_path, capsys):
    make_run(tmp_path / "run", method="mine:Mine", comparators=(), data="stranger:Mine")
    said = refused("fewshot --resume run --method mine:Mine", capsys)
    assert "names code: `--data stranger:Mine`. " in said and not stranger.exists()


OWN = """
import torch
from weightloom.learners.learner import Learner


class Mine(Learner):
    trained = False

    def __init__(self, problem):
        super().__init__()
        self.base = torch.nn.Identity()

    def adapt(self, support):
        return {"mean": support.y.mean(1, keepdim=True)}

    def predict(self, params, x):
        return params["mean"].expand(len(x), x.shape[1], 1)
"""


def test_a_run_of_ones_own_is_judged_again_where_it_is_trusted(stranger, tmp_path, capsys):
    (tmp_path / "stranger.py").write_text(OWN)
    main(
        [
            "fewshot",
            "--data",
            "sinusoid",
            "--method",
            "stranger:Mine",
            "--comparators",
            "--shots",
            "2",
            "--test-tasks",
            "5",
            "--run",
            "run",
        ]
    )
    first = capsys.readouterr().out.splitlines()
    assert "names code" in refused("eval run", capsys)
    main(["eval", "run", "--trust"])
    again = capsys.readouterr().out.splitlines()
    scores = [
        [line.split()[:2] for line in lines if "stranger:Mine" in line] for lines in (first, again)
    ]
    assert scores[0] and scores[0] == scores[1]


def test_in_python_too_a_run_that_names_code_has_to_be_trusted(stranger, tmp_path):
    make_run(tmp_path / "run", **NAMED["data"])
    for load in (fewshot.load, lambda run, **how: experiment.load(FewShot(), run, **how)):
        with pytest.raises(ConfigError, match=r"`--data stranger:Mine`.*`trust=True`"):
            load(tmp_path / "run")
        assert not stranger.exists()
    with pytest.raises(ConfigError, match="cannot be imported"):
        fewshot.load(tmp_path / "run", trust=True)
    assert stranger.exists()


@pytest.mark.parametrize("words", ["eval run", "rl --resume run --quiet"])
def test_an_environment_that_a_module_registers_is_code(words, stranger, tmp_path, capsys):
    pytest.importorskip("sb3_contrib")
    from weightloom.apps import rl
    from weightloom.apps.rl.config import RLConfig

    config = RLConfig(env="stranger:Env-v0", vary=("gravity=1:2",), comparators=()).resolved()
    with held_folder(tmp_path / "run", "rl", config, resume=False):
        pass
    assert "names code: `--env stranger:Env-v0`. " in refused(words, capsys)
    with pytest.raises(ConfigError, match="names code"):
        rl.load(tmp_path / "run")
    assert not stranger.exists()
    with pytest.raises(WeightloomError, match="`--env stranger:Env-v0` cannot be made"):
        rl.load(tmp_path / "run", trust=True)
    assert stranger.exists()


def test_a_report_and_a_run_to_start_from_import_nothing(stranger, tmp_path, capsys):
    make_run(tmp_path / "run", **NAMED["method"])
    main(["report", "run"])
    line = "fewshot --data sinusoid --start-from run --run other --steps 1 --tasks 2 --comparators --quiet"
    assert "has no method `hypernetwork`" in refused(line, capsys)
    assert (tmp_path / "run" / "report.html").exists() and not stranger.exists()


def test_an_application_that_a_folder_names_is_not_imported(stranger, tmp_path, capsys):
    with held_folder(tmp_path / "run", "stranger:Mine", FewShotConfig().resolved(), resume=False):
        pass
    for command in ("eval", "adapt", "export"):
        assert "not imported by itself" in refused(f"{command} run support", capsys)
    assert not stranger.exists()


@pytest.mark.parametrize("name", ["stranger", "stranger:", ":Mine", ""])
def test_what_is_no_module_and_name_is_not_imported(name, stranger):
    with pytest.raises(ConfigError, match=r"is no `module:name`.*as in `--base my_networks:Net`"):
        imported(name, "A base network", "--base my_networks:Net")
    assert not stranger.exists()


def test_every_option_that_takes_a_module_is_known_to_import_it():
    for app in all_apps():
        texts = field_texts(app.config)
        takes = {
            option.name
            for option in fields(app.config)
            if "module:" in texts.get(option.name, "").lower()
        }
        assert takes and takes <= {*app.config.imports}


def test_every_package_is_pinned_to_hashes_but_torch_whose_builds_differ():
    text = (Path(__file__).parents[1] / "constraints.txt").read_text()
    pins = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert len(pins) > 100
    bare = [
        pin.split("==")[0]
        for pin in pins
        if not re.search(r"--hash=sha256:[0-9a-f]{64}$", pin, re.MULTILINE)
    ]
    assert bare == ["torch"]
    assert {"uv", "hatchling", "editables"} <= {pin.split("==")[0] for pin in pins}


def test_options_that_name_no_code_are_asked_for_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:name").mkdir()
    assert FewShotConfig(data="odd:name", method="protonet", comparators=("centroid",)).code() == {}
    make_run(tmp_path / "run", comparators=())
    with suppress(WeightloomError):  # there is no checkpoint, and that is all that is wrong
        fewshot.load(tmp_path / "run")
        raise AssertionError("a run that never began was loaded")
