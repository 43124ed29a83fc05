"""The folder of a run: one process writes there, what a killed one left is taken up or removed, nothing of others."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from weightloom.errors import CheckpointError, ConfigError, DataError
from weightloom.runs import folder as folders
from weightloom.runs.folder import (
    RunFile,
    held_folder,
    identity_of,
    is_begun,
    read_config,
    read_options,
    read_run_file,
)
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
        pytest.raises(ConfigError, match="is in use: another process is training there"),
        held_folder(tmp_path / "run", "app", RunOptions(), resume=True),
    ):
        raise AssertionError
    with held_folder(tmp_path / "run", "app", RunOptions(), resume=True) as identity:
        assert identity == json.loads((tmp_path / "run" / "run.json").read_text())["identity"]


@pytest.mark.parametrize(
    "kept",
    [{"run.json": 0}, {"run.json": 0, "config.json": 1}, {"run.json": 0.5, "config.json": 1}],
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
        pytest.raises(DataError, match=r"before any training\. Type `weightloom app --run"),
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
    assert [path.name for path in tmp_path.iterdir()] == [name] and (
        tmp_path / name
    ).read_text() == "mine"


def test_what_killed_processes_left_half_written_is_removed_and_runs_further_down_are_left_alone(
    tmp_path,
):
    run = started(tmp_path / "run")
    other = started(run / "seed-1")
    (run / "cnp" / "checkpoints").mkdir(parents=True)
    stray = [
        run / ".record.json.7.tmp",
        run / "cnp" / "checkpoints" / ".last.safetensors.12345.tmp",
    ]
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
    with pytest.warns(UserWarning, match=r"holds 1 damaged line\. The 4 other rows are kept"):
        assert [row["step"] for row in rows_up_to(tmp_path, 4)] == [1, 3, 4]


def test_a_last_line_that_a_killed_run_did_not_finish_is_passed_over_in_silence(tmp_path):
    append_row(tmp_path, {"step": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert rows_up_to(tmp_path, 9) == read_rows(tmp_path) == [{"step": 1}]


def test_files_are_laid_out_as_version_1_has_them(tmp_path):
    with held_folder(
        tmp_path / "run", "app", RunOptions(seed=3), False, (4, 5), (6,), ("outer_lr",)
    ) as identity:
        pass
    config = (tmp_path / "run" / "config.json").read_text()
    assert (
        config == json.dumps(json.loads(config), indent=1) + "\n"
        and json.loads(config)["seed"] == 3
    )
    assert (tmp_path / "run" / "run.json").read_text() == (
        f'{{\n "format": 1,\n "app": "app",\n "identity": "{identity}",\n'
        ' "seeds": [\n  4,\n  5\n ],\n "folds": [\n  6\n ],\n "sweep": [\n  "outer_lr"\n ]\n}\n'
    )
    about = read_run_file(tmp_path / "run")
    assert about == RunFile("app", identity, (4, 5), (6,), ("outer_lr",))
    assert read_options(tmp_path / "run") == json.loads(config)
    several = {name: getattr(about, name) for name in folders.SEVERAL}
    assert several == {"seeds": (4, 5), "folds": (6,), "sweep": ("outer_lr",)}
    with pytest.raises(FrozenInstanceError):
        about.app = "other"


def test_everybody_may_read_and_write_who_may_with_other_files(tmp_path):
    (tmp_path / "other").write_text("")
    run = started(tmp_path / "run")
    assert (run / "run.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_order_of_options_leaves_the_identity_as_it_is():
    class Backwards(RunOptions):
        def to_dict(self):
            return dict(reversed(super().to_dict().items()))

    assert identity_of("app", Backwards(seed=3)) == identity_of("app", RunOptions(seed=3))
    assert (
        len(
            {identity_of(app, RunOptions(seed=seed)) for app in ("app", "other") for seed in (3, 4)}
        )
        == 4
    )


def test_a_run_of_another_application_is_refused_by_name(tmp_path):
    with pytest.raises(
        ConfigError,
        match="is a run of `weightloom app`, and `weightloom other` was asked to read it",
    ):
        read_config(started(tmp_path / "run"), RunOptions, "other")


def test_a_run_does_not_go_on_with_another_config(tmp_path):
    run = started(tmp_path / "run", seed=3)
    before = (run / "run.json").read_text()
    with (
        pytest.raises(ConfigError, match=r"with another config: seed is 3 there, 4 was asked for"),
        held_folder(run, "app", RunOptions(seed=4, threads=2), resume=True),
    ):
        raise AssertionError
    assert (run / "run.json").read_text() == before and read_config(
        run, RunOptions, "app"
    ).seed == 3


def test_a_folder_without_a_run_is_not_gone_on_with(tmp_path):
    with (
        pytest.raises(DataError, match=r"run.json` cannot be opened"),
        held_folder(tmp_path, "app", RunOptions(), resume=True),
    ):
        raise AssertionError
    assert not any(tmp_path.iterdir())


def test_longer_rubbish_in_place_of_the_first_file_leaves_nothing_behind(tmp_path):
    whole, run = started(tmp_path / "whole"), tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("x" * 10_000)
    assert (started(run) / "run.json").read_text() == (whole / "run.json").read_text()


def test_a_run_that_began_is_not_started_again(tmp_path):
    run = started(tmp_path / "run", seed=3)
    with pytest.raises(ConfigError, match=r"is not empty. .* --resume"):
        started(run, seed=4)
    assert read_config(run, RunOptions, "app").seed == 3


def test_a_run_that_another_began_meanwhile_is_left_alone(tmp_path, monkeypatch):
    run, lock = tmp_path / "run", folders.lock

    def after_another(file):
        monkeypatch.setattr(folders, "lock", lock)
        (run / "run.json").write_text("{}")
        return lock(file)

    monkeypatch.setattr(folders, "lock", after_another)
    with pytest.raises(ConfigError, match="is not empty"):
        started(run)
    assert (run / "run.json").read_text() == "{}" and [path.name for path in run.iterdir()] == [
        "run.json"
    ]


def test_a_folder_that_cannot_be_opened_or_locked_is_told(tmp_path, monkeypatch):
    (tmp_path / "run" / "run.json").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"run.json` cannot be opened and locked"):
        started(tmp_path / "run")

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(folders, "lock", broken)
    with pytest.raises(
        CheckpointError, match=r"cannot be opened and locked \(Input/output error\)"
    ):
        started(tmp_path / "other")


def test_options_that_do_not_reach_the_disk_leave_a_folder_that_is_as_good_as_empty(
    tmp_path, monkeypatch
):
    run, fsync = tmp_path / "run", os.fsync

    def full(file):
        if (run / "config.json").exists():  # the first file has come there
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            CheckpointError,
            match=r"run.json` could not be written \(No space left on device\)\. .*It needs 0\.0 MB",
        ):
            started(run)
    assert (run / "run.json").read_bytes() == b"" and not is_begun(run)
    assert is_begun(started(run))
