import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

import two_processes
from weightloom.base import apply_per_task
from weightloom.conditions import DeepSets
from weightloom.errors import CheckpointError, ConfigError, NonFiniteError
from weightloom.files import load_tensors, save_tensors
from weightloom.hypernets import MLPHyperNetwork
from weightloom.losses import mse_per_task
from weightloom.networks import mlp
from weightloom.runs.metrics import read_rows
from weightloom.tasks import SinusoidTasks
from weightloom.training import TrainOptions, load_model, train

OPTIONS = TrainOptions(
    steps=24, tasks=4, warmup_steps=4, checkpoint_every=5, evaluate_every=6, seed=3
)
SOURCE = SinusoidTasks(shots=5, queries=10)


class Model(nn.Module):
    """The smallest whole thing: encoder, hypernetwork, base with dropout, so that chance matters."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Sequential(*mlp([1, 8, 1])[:2], nn.Dropout(0.2), nn.Linear(8, 1))
        self.encoder = DeepSets(1, 1, 4, hidden=8)
        self.hyper = MLPHyperNetwork(self.base, 4)

    def forward(self, tasks):
        params = self.hyper(self.encoder(tasks.support_x, tasks.support_y, tasks.support_mask))
        return apply_per_task(self.base, params, tasks.query_x)


def new_model() -> Model:
    torch.manual_seed(0)
    return Model()


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def rows_without_time(run: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "wall_time_s"} for row in read_rows(run)]


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero_along_a_cosine():
    options = TrainOptions(steps=100, outer_lr=2.0, warmup_steps=10)
    assert options.learning_rate(0) == pytest.approx(0.2)
    assert options.learning_rate(50) == pytest.approx(1.0)
    assert options.learning_rate(99) < 0.001


def test_training_lowers_the_loss():
    history = train(
        new_model(), SOURCE, mse_per_task, TrainOptions(steps=300, tasks=8, outer_lr=5e-3)
    )
    losses = [row["loss"] for row in history.rows]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_same_seed_twice_gives_the_same_numbers():
    one, other = new_model(), new_model()
    train(one, SOURCE, mse_per_task, OPTIONS)
    train(other, SOURCE, mse_per_task, OPTIONS)
    assert same(one, other)


@pytest.mark.parametrize("crash_at", [3, 5, 11, 23])
def test_a_run_that_crashed_and_was_resumed_ends_with_the_same_numbers_bit_for_bit(
    tmp_path, crash_at
):
    whole = new_model()
    train(
        whole,
        SOURCE,
        mse_per_task,
        OPTIONS,
        run=tmp_path / "whole",
        evaluate=lambda done: {"validation_score": float(done)},
    )

    calls = 0

    def crash(outputs, targets):
        nonlocal calls
        calls += 1
        if calls > crash_at:
            raise OSError("power cut")
        return mse_per_task(outputs, targets)

    broken = tmp_path / "broken"
    with pytest.raises(OSError, match="power cut"):
        train(
            new_model(),
            SOURCE,
            crash,
            OPTIONS,
            run=broken,
            evaluate=lambda done: {"validation_score": float(done)},
        )
    resumed = new_model()
    torch.manual_seed(99)  # the resumed process has another random state
    resume = (broken / "checkpoints" / "last.safetensors").exists()
    train(
        resumed,
        SOURCE,
        mse_per_task,
        OPTIONS,
        run=broken,
        resume=resume,
        evaluate=lambda done: {"validation_score": float(done)},
    )
    assert same(whole, resumed)
    assert rows_without_time(broken) == rows_without_time(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_resuming_ends_with_the_same_numbers(tmp_path, number):
    before = signal.getsignal(number)

    def interrupt(done):
        os.kill(os.getpid(), number)
        return {}

    model = new_model()
    history = train(model, SOURCE, mse_per_task, OPTIONS, run=tmp_path, evaluate=interrupt)
    assert history.stopped_by == number
    assert load_tensors(tmp_path / "checkpoints" / "last.safetensors")[1]["step"] == 6
    assert signal.getsignal(number) == before
    train(model, SOURCE, mse_per_task, OPTIONS, run=tmp_path, resume=True)
    whole = new_model()
    train(whole, SOURCE, mse_per_task, OPTIONS)
    assert same(model, whole)


def test_a_loss_that_is_not_finite_stops_the_run_before_it_spoils_the_parameters(tmp_path):
    model = new_model()
    seen = []

    def poisoned(outputs, targets):
        losses = mse_per_task(outputs, targets)
        seen.append(losses)
        return losses * torch.tensor([1.0, 1.0, float("nan"), 1.0]) if len(seen) == 8 else losses

    with pytest.raises(
        NonFiniteError, match=r"At step 8 the loss is nan for tasks \[2\].*last\.safetensors"
    ):
        train(model, SOURCE, poisoned, OPTIONS, run=tmp_path)
    assert all(p.isfinite().all() for p in model.parameters())
    tensors, facts = load_tensors(tmp_path / "checkpoints" / "last.safetensors")
    assert facts["step"] == 5
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_data_that_are_not_finite_are_named():
    class Spoilt(SinusoidTasks):
        def sample(self, tasks, generator):
            drawn = super().sample(tasks, generator)
            drawn.query_y[1, 0] = float("inf")
            return drawn

    with pytest.raises(
        NonFiniteError, match=r"for tasks \[1\], and the data hold NaN or infinity in query.y"
    ):
        train(new_model(), Spoilt(shots=5, queries=10), mse_per_task, OPTIONS)


def test_a_gradient_that_is_not_finite_stops_the_run_too():
    def vertical(outputs, targets):  # finite value, infinite slope
        return mse_per_task(outputs, targets) + (outputs.mean((1, 2)) * 0).sqrt()

    with pytest.raises(NonFiniteError, match="norm of the gradient"):
        train(new_model(), SOURCE, vertical, OPTIONS)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(new_model(), SOURCE, mse_per_task, OPTIONS, run=tmp_path)
    with pytest.raises(CheckpointError, match="another model"):
        load_model(tmp_path / "checkpoints" / "last.safetensors", nn.Linear(2, 2))


def test_a_checkpoint_restores_the_model(tmp_path):
    trained, fresh = new_model(), new_model()
    train(trained, SOURCE, mse_per_task, OPTIONS, run=tmp_path)
    assert not same(trained, fresh)
    assert load_model(tmp_path / "checkpoints" / "last.safetensors", fresh) == 24
    assert same(trained, fresh)


def test_a_torn_last_line_of_the_metrics_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_rows(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    save_tensors(path, {"x": torch.ones(3)}, {"step": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_tensors(path, {"x": torch.zeros(3)}, {"step": 2})
    assert load_tensors(path)[1] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_tasks_that_cannot_be_dealt_out_evenly_are_refused():
    class Three(Fabric):
        world_size = 3  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="Pass `tasks=6`"):
        train(
            new_model(), SOURCE, mse_per_task, OPTIONS, fabric=Three(accelerator="cpu", devices=1)
        )


def test_two_processes_take_the_same_steps_as_one(tmp_path):
    """Both processes' gradients are averaged: six steps on two processes equal six on one."""
    script = Path(__file__).parent / "two_processes.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "2")],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    two_processes.run(1, tmp_path / "1")
    one, two = (
        load_tensors(tmp_path / d / "checkpoints" / "last.safetensors")[0] for d in ("1", "2")
    )
    assert one.keys() == two.keys()
    moved = 0.0
    torch.manual_seed(0)
    start = dict(Model().named_parameters())
    for name in (n for n in one if n.startswith("model/")):
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)
        moved = max(moved, (one[name] - start[name.removeprefix("model/")]).abs().max().item())
    assert moved > 1e-3  # they did take steps
    assert len(json.loads((tmp_path / "2" / "world.json").read_text())) == 2


def test_a_signal_for_one_process_stops_both_after_the_same_step(tmp_path):
    script = Path(__file__).parent / "two_processes.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "stopped"], capture_output=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "stopped.json").read_text()) == signal.SIGTERM
    assert load_tensors(tmp_path / "checkpoints" / "last.safetensors")[1]["step"] == 3


def test_a_loss_without_a_number_in_one_process_ends_both(tmp_path):
    script = Path(__file__).parent / "two_processes.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "2"), "spoilt"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode != 0
    assert "At step 3 the loss of another process is not finite" in done.stderr  # the first process
    assert "At step 3 the loss is nan for tasks [1]" in done.stderr  # the second
