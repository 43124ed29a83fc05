"""Loggers: each is read back by the package that it writes for."""

import csv
from pathlib import Path

import pytest
import torch

from weightloom import TrainOptions, Turn, train
from weightloom.apps import fewshot
from weightloom.cli import main
from weightloom.errors import ConfigError, MissingExtraError
from weightloom.runs.loggers import check_loggers, finalised, open_loggers, send
from weightloom.runs.metrics import append_row, read_rows, write_rows

ROWS = [
    {"step": 10, "loss": 0.5, "outer_lr": 1e-3},
    {"step": 20, "loss": 0.25, "outer_lr": 1e-3, "turn": "actor"},
    {"step": 20, "validation_score": 0.75, "score_name": "accuracy", "returns": [1.0, 2.0]},
    {"step": 30, "loss": float("nan"), "outer_lr": 5e-4},
]
LOSS = [(10, 0.5)]
SCORE = [(20, 0.75)]
RATES = [(10, 1e-3), (30, 5e-4)]


def logged(name, folder):
    """The folder of a training after its rows went to a logger."""
    write_rows(folder, [])
    loggers = open_loggers([name], folder, "digits-001/maml")
    with finalised(loggers):
        for row in ROWS:
            append_row(folder, row)
            send(loggers, row)
    return folder


def csv_points(folder, metric):
    with (folder / "csv" / "metrics.csv").open() as file:
        return [
            (int(row["step"]), float(row[metric])) for row in csv.DictReader(file) if row[metric]
        ]


def tensorboard_points(folder, metric):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(its.step, pytest.approx(its.value, rel=1e-6)) for its in events.Scalars(metric)]


def mlflow_points(folder, metric):
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("weightloom").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED" and run.info.run_name == "digits-001/maml"
    history = client.get_metric_history(run.info.run_id, metric)
    return [(its.step, its.value) for its in history]


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


READERS = {"csv": csv_points, "tensorboard": tensorboard_points, "mlflow": mlflow_points}


@pytest.mark.parametrize("name", READERS)
def test_every_number_comes_back_under_its_step(name, places):
    if name != "csv":
        pytest.importorskip(name)
    folder, points = logged(name, places), READERS[name]
    assert points(folder, "loss") == LOSS  # NaN is left out, that of a turn has its name
    assert points(folder, "actor/loss") == [(20, 0.25)]
    assert points(folder, "validation_score") == SCORE
    assert points(folder, "outer_lr") == RATES
    with pytest.raises(Exception, match=r".") if name != "mlflow" else pytest.raises(IndexError):
        points(folder, "score_name")[0]


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_a_resumed_training_has_each_row_once(name, places):
    if name == "tensorboard":
        pytest.importorskip(name)
    folder = logged(name, places)
    write_rows(folder, read_rows(folder)[:1])  # the checkpoint was at step 10
    loggers = open_loggers([name], folder, "again")
    with finalised(loggers):
        for row in ROWS[1:]:
            append_row(folder, row)
            send(loggers, row)
    assert READERS[name](folder, "outer_lr") == RATES


def test_wandb_keeps_a_run_offline(places):
    wandb = pytest.importorskip("wandb")
    folder = logged("wandb", places)
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    wandb.teardown()  # its service has written the file now
    assert b"validation_score" in file.read_bytes() and wandb.run is None


def test_a_logger_is_told_of_a_failure():
    class Mine:
        def log_metrics(self, metrics, step): ...

        def finalize(self, status):
            self.status = status

    mine = Mine()
    with pytest.raises(ZeroDivisionError), finalised([mine]):
        raise ZeroDivisionError
    assert mine.status == "failed"


def test_nothing_is_opened_without_a_row(tmp_path):
    with finalised(open_loggers(["csv"], tmp_path, "none")):
        pass
    assert not list(tmp_path.iterdir())


def test_unknown_loggers_and_absent_packages_are_said(monkeypatch):
    with pytest.raises(ConfigError, match="`tensorboard`"):
        check_loggers(["tensorbord"])
    monkeypatch.setattr("weightloom.runs.loggers.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"weightloom\[loggers\]"):
        check_loggers(["wandb"])


class Kept:
    """A logger that keeps what it was sent."""

    def __init__(self):
        self.rows, self.status = [], None

    def log_metrics(self, metrics, step):
        self.rows.append({"step": step, **metrics})

    def finalize(self, status):
        self.status = status


def test_train_sends_the_rows_that_it_logs():
    kept = Kept()
    model = torch.nn.Linear(1, 1)
    history = train(
        model,
        lambda step, generator: torch.randn(4, 1, generator=generator),
        None,
        TrainOptions(steps=20),
        turns=[Turn("player", lambda model, batch, name: model(batch).square().mean(1))],
        loggers=[kept],
    )
    assert [row["step"] for row in kept.rows] == [10, 20] and kept.status == "success"
    for sent, row in zip(kept.rows, history.rows, strict=True):
        assert sent["player/loss"] == row["loss"] and "turn" not in sent


def test_train_refuses_an_object_that_is_no_logger(unchecked):
    with pytest.raises(ConfigError, match=r"object has no method `log_metrics"):
        train(torch.nn.Linear(1, 1), None, None, TrainOptions(steps=1), loggers=[object()])


def test_the_command_logs_every_method_of_a_run(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    tiny = "--data digits --steps 4 --tasks 2 --test-tasks 4 --queries 2 --comparators protonet"
    main(["fewshot", *tiny.split(), "--run", "run", "--log", "csv", "--quiet"])
    folders = [path.parent for path in Path("run").rglob("metrics.jsonl")]
    assert len(folders) == 2
    for folder in folders:
        losses = [(row["step"], row["loss"]) for row in read_rows(folder) if "loss" in row]
        assert losses and csv_points(folder, "loss") == losses


def test_agents_are_logged_too(tmp_path):
    pytest.importorskip("sb3_contrib")
    from weightloom.apps import rl
    from weightloom.apps.rl.envs.lqr import LQR

    kept, family = Kept(), rl.family(LQR, stiffness=(-1.0, 1.0), motor=(0.5, 1.5))
    rl.train(
        family,
        steps=3000,
        rows=10,
        warm_up=100,
        updates=0.02,
        quiet=True,
        run=tmp_path / "run",
        loggers=[kept],
    )
    assert kept.rows[-1]["step"] == 3000 and "return" in kept.rows[-2] | kept.rows[-1]
    with pytest.raises(ConfigError, match="`loggers` without `run`"):
        rl.train(family, steps=3000, quiet=True, loggers=[kept])


def test_a_logger_that_needs_a_folder_says_so():
    pytest.importorskip("sklearn")
    with pytest.raises(ConfigError, match="no folder is kept"):
        fewshot.train("digits", steps=1, loggers=["csv"])
