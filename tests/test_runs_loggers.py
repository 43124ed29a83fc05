"""Loggers: each is read back by the package that it writes for."""

import csv

import pytest

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
