import json
import os
import signal
import subprocess
import sys
import time

import pytest

import weightloom
from weightloom.cli import COMMANDS, main

TINY = [
    "--data",
    "digits",
    "--steps",
    "8",
    "--tasks",
    "4",
    "--test-tasks",
    "10",
    "--queries",
    "5",
    "--comparators",
    "centroid",
]


def leave_code(words):
    with pytest.raises(SystemExit) as left:
        main(words)
    return left.value.code


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def test_the_package_and_the_command_say_one_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"weightloom {weightloom.__version__}\n"


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_names_every_command(word, capsys):
    main([word])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name, capsys):
    assert leave_code([name, "--help"]) == 0
    assert f"weightloom {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fewsho"], "Did you mean `fewshot`?"),
        (["fewshot", "--data", "omniglt"], "Did you mean `omniglot`?"),
        (["fewshot", "--wayz", "3"], "--ways"),
        (["fewshot", "--ways", "11"], "there are 10 classes"),
        (["fewshot", "--data", "digits", "--ways", "9"], "there are 3 classes"),
        (["fewshot", "--shots", "0"], "leaves nothing to adapt on"),
        (["fewshot", "--outer-lr", "nan"], "not a positive number"),
        (
            ["fewshot", "--data", "digits", "--comparators", "protonett"],
            "Did you mean `protonet`, `protonet-unit`?",
        ),
        (["fewshot", "--config", "nowhere.yaml"], "cannot be read"),
        (["fewshot", "--resume", "nowhere"], "holds no run"),
        (["fewshot", "--accelerator", "cuda"], "is not available here"),
        (["eval", "nowhere"], "holds no run"),
        (["report", "nowhere"], "nowhere"),
        (["export", "nowhere", "--task", "0"], "holds no run"),
        (["doctor", "now"], "takes no options"),
    ],
)
def test_bad_input_gets_a_clear_message_and_code_2_and_leaves_nothing_behind(
    words, said, capsys, tmp_path
):
    if "cuda" in words:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is an accelerator")
    assert leave_code(words) == 2
    told = " ".join(capsys.readouterr())
    told = " ".join(told.replace("│", " ").split())
    assert said in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_data_that_are_missing_are_named_with_where_they_were_looked_for(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("weightloom.tasks.omniglot.HOME", "http://127.0.0.1:9", raising=False)
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no network"))
    )
    assert leave_code(["fewshot", "--data", "omniglot"]) == 2
    told = capsys.readouterr().err
    assert str(tmp_path / "data") in told and "WEIGHTLOOM_DATA" in told
    assert not (tmp_path / "runs").exists()


def test_options_can_come_from_yaml_and_flags_win(tmp_path, capsys):
    (tmp_path / "options.yaml").write_text("ways: 2\nseed: 4\nshots: [2]\n")
    main(["fewshot", "--config", "options.yaml", "--seed", "5", "--run", "run", "--quiet", *TINY])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["ways"], config["shots"], config["seed"]) == ([2], [2], 5)
    assert "2-way 2-shot" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wayz: 2\n", "Did you mean `ways`?"),
        ("ways: many\n", "'ways' is 'many'"),
        ("- 1\n", "holds no options"),
    ],
)
def test_a_bad_yaml_file_is_refused(text, said, tmp_path, capsys):
    (tmp_path / "options.yaml").write_text(text)
    assert leave_code(["fewshot", "--config", "options.yaml"]) == 2
    assert said in capsys.readouterr().err


def test_a_run_can_be_listed_judged_reported_exported_and_resumed(tmp_path, capsys):
    main(["fewshot", *TINY])
    assert (tmp_path / "runs" / "digits-001" / "report.html").exists()
    main(["eval", "runs/digits-001", "--shots", "2", "--test-tasks", "5", "--record", "again.json"])
    assert (
        json.loads((tmp_path / "again.json").read_text())["scores"][0]["setting"] == "3-way 2-shot"
    )
    main(["report", "runs/digits-001"])
    main(["export", "runs/digits-001", "--task", "0"])
    assert (tmp_path / "runs" / "digits-001" / "export" / "0" / "network.pt2").exists()
    assert leave_code(["fewshot", "--resume", "runs/digits-001", "--ways", "2"]) == 2
    assert "ways is [3] there, [2] was asked for" in capsys.readouterr().err
    main(["fewshot", "--resume", "runs/digits-001", "--quiet"])
    assert "hypernetwork" in capsys.readouterr().out


def test_list_and_doctor_name_every_data_set(capsys):
    for command in ("list", "doctor"):
        main([command])
        shown = capsys.readouterr().out
        assert all(name in shown for name in ("digits", "omniglot", "sinusoid"))


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path):
    words = ["fewshot", "--data", "sinusoid", "--steps", "100000", "--run", "run", "--comparators"]
    child = subprocess.Popen(
        [sys.executable, "-m", "weightloom", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 600  # of a busy machine
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=600)
    assert child.returncode == 130
    assert "weightloom fewshot --resume run" in told
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()
