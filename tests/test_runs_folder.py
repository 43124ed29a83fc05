"""The folder of a run: one process writes there, what a killed one left is taken up or removed, nothing of others."""

import json
import os
import subprocess
import sys

import pytest

from weightloom.errors import ConfigError, DataError
from weightloom.runs.folder import held_folder, is_begun, read_config
from weightloom.runs.metrics import append_row, read_rows, rows_up_to
from weightloom.runs.options import RunOptions

RACES = """
import os, sys, tempfile
from pathlib import Path
import weightloom.files
from weightloom.errors import ConfigError
from weightloom.runs.folder import held_folder
from weightloom.runs.options import RunOptions

def start(folder, resume, gate, said, over):
    os.read(gate, 1)
    try:
        with held_folder(folder, "app", RunOptions(), resume):
            os.write(said, b"w")
            os.read(over, 1)
    except ConfigError as error:
        os.write(said, b"l" if "is in use: another" in str(error) or "is not empty" in str(error) else b"?")
    os._exit(0)

with tempfile.TemporaryDirectory() as place:  # children are then born with all that they import
    for resume in (False, True):
        with held_folder(Path(place) / "run", "app", RunOptions(), resume):
            pass
for number in range(int(sys.argv[1])):
    resume = number % 2 == 1
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        if resume:
            with held_folder(folder, "app", RunOptions(), False):
                pass
        (gate, go), (heard, said), (over, end) = os.pipe(), os.pipe(), os.pipe()
        children = []
        for _ in range(2):
            children.append(os.fork())
            if not children[-1]:
                os.close(go), os.close(end)
                start(folder, resume, gate, said, over)
        os.close(go)
        found = os.read(heard, 1) + os.read(heard, 1)
        os.close(end)
        for child in children:
            os.waitpid(child, 0)
        for each in (gate, heard, said, over):
            os.close(each)
        assert sorted(found) == sorted(b"wl"), (number, found)
        assert sorted(os.listdir(folder)) == ["config.json", "run.json"]
"""


def races(count):
    ran = subprocess.run([sys.executable, "-c", RACES, str(count)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_of_two_that_start_or_resume_at_one_moment_one_wins_and_the_other_gets_a_sentence():
    races(10)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_of_two_that_start_or_resume_at_one_moment_one_wins_500_times():
    races(500)


def started(run, **options):
    with held_folder(run, "app", RunOptions(**options), resume=False):
        pass
    return run


def test_a_run_that_is_running_is_not_resumed_and_one_that_ended_is(tmp_path):
    with (
        held_folder(tmp_path / "run", "app", RunOptions(), resume=False),
        pytest.raises(ConfigError, match="is in use: another process trains there"),
        held_folder(tmp_path / "run", "app", RunOptions(), resume=True),
    ):
        raise AssertionError
    with held_folder(tmp_path / "run", "app", RunOptions(), resume=True) as identity:
        assert identity == json.loads((tmp_path / "run" / "run.json").read_text())["identity"]


@pytest.mark.parametrize(
    "kept", [{"run.json": 0}, {"run.json": 0, "config.json": 1}, {"run.json": 0.5, "config.json": 1}]
)
def test_a_run_killed_while_it_started_is_told_on_resume_and_started_again(kept, tmp_path):
    whole, run = started(tmp_path / "whole", seed=3), tmp_path / "run"
    run.mkdir()
    for name, share in kept.items():
        text = (whole / name).read_text()
        (run / name).write_text(text[: int(share * len(text))])
    (run / ".config.json.4194305.tmp").write_text("{")
    assert not is_begun(run)
    with (
        pytest.raises(DataError, match=r"Nothing was trained yet. Type `weightloom app --run"),
        held_folder(run, "app", RunOptions(seed=3), resume=True),
    ):
        raise AssertionError
    started(run, seed=3)
    assert {path.name: path.read_text() for path in run.iterdir()} == {
        path.name: path.read_text() for path in whole.iterdir()
    }
    assert read_config(run, RunOptions, "app") == RunOptions(seed=3)


@pytest.mark.parametrize("name", ["config.json", "holiday.jpg", ".photo.12.tmp", ".hidden"])
def test_a_folder_of_something_else_is_refused_and_left_as_it_is(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        started(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_what_killed_processes_left_half_written_is_removed_and_runs_further_down_are_left_alone(tmp_path):
    run = started(tmp_path / "run")
    other = started(run / "seed-1")
    (run / "cnp" / "checkpoints").mkdir(parents=True)
    stray = [run / ".record.json.7.tmp", run / "cnp" / "checkpoints" / ".last.safetensors.12345.tmp"]
    kept = [other / ".metrics.jsonl.7.tmp", run / ".notes.tmp", run / "cnp" / "notes.7.tmp"]
    for path in stray + kept:
        path.write_text("half")
    with held_folder(run, "app", RunOptions(), resume=True):
        assert not any(path.exists() for path in stray) and all(path.exists() for path in kept)


def test_rows_behind_a_damaged_line_are_kept_and_the_line_is_told(tmp_path):
    for step in range(1, 6):
        append_row(tmp_path, {"step": step, "loss": 0.5})
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b'{"step": 2, \xff\n', *lines[2:]]))
    with pytest.warns(UserWarning, match=r"holds 1 damaged line\. The 4 rows around are kept"):
        assert [row["step"] for row in rows_up_to(tmp_path, 4)] == [1, 3, 4]


def test_a_last_line_that_a_killed_run_did_not_finish_is_passed_over_in_silence(tmp_path):
    append_row(tmp_path, {"step": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert rows_up_to(tmp_path, 9) == read_rows(tmp_path) == [{"step": 1}]
