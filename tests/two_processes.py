"""Train on CPU processes, on two of them as ``python two_processes.py FOLDER``. Used by test_train.py."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from lightning_fabric import Fabric

from weightloom.base import apply_per_task
from weightloom.losses import mse_per_task
from weightloom.params import sub
from weightloom.tasks import SinusoidTasks, TaskSource
from weightloom.training import TrainOptions, train


class Spoilt(TaskSource):
    """Tasks of which the last, which the second process gets, has no number at its third step."""

    def __init__(self):
        self.source, self.seen = SinusoidTasks(shots=5, queries=10), 0

    def sample(self, tasks, generator):
        self.seen += 1
        drawn = self.source.sample(tasks, generator)
        if self.seen == 3:
            drawn.query_y[-1] = float("nan")
        return drawn


class Stopped(TaskSource):
    """The second process gets a signal while it draws for its third step."""

    def __init__(self):
        self.source, self.seen = SinusoidTasks(shots=5, queries=10), 0

    def sample(self, tasks, generator):
        self.seen += 1
        if self.seen == 3 and os.environ.get("LOCAL_RANK") == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return self.source.sample(tasks, generator)


def run(devices, folder, source=None):
    from test_train import Model

    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    torch.manual_seed(0)
    model = Model().eval()
    model.base[
        2
    ].p = 0.0  # chance inside the network differs between processes, on purpose; not here
    options = TrainOptions(steps=6, tasks=4, warmup_steps=2, outer_lr=1e-2)
    source = source or SinusoidTasks(shots=5, queries=10)
    history = train(model, source, mse_per_task, options, run=folder, fabric=fabric)
    ranks = fabric.all_gather(torch.tensor(fabric.global_rank)).flatten().tolist()
    if fabric.global_rank == 0:
        (folder / "world.json").write_text(json.dumps(ranks))
        (folder / "stopped.json").write_text(json.dumps(history.stopped_by))
    if devices > 1:
        torch.distributed.destroy_process_group()  # its threads would be cut off at the end


def loss_of_turn(model, batch, turn):
    """The critic scores rows of data; the generator its own: each turn leaves parameters without a gradient."""
    params = model.generated()
    if turn == "critic":
        return apply_per_task(model.base["critic"], sub(params, "critic"), batch.expand(3, -1, -1))[
            ..., 0
        ].cos()
    return (
        apply_per_task(model.base["generator"], sub(params, "generator"), batch.expand(3, -1, -1))
        .square()
        .mean(2)
    )


def run_turns(devices, folder):
    from test_train_turns import PLAYERS, Pair

    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    batches = list(torch.randn(4, 6, 4, generator=torch.Generator().manual_seed(0)))
    turns = [replace(turn, loss=loss_of_turn) for turn in PLAYERS]
    train(
        Pair(),
        batches,
        None,
        TrainOptions(steps=6, outer_lr=1e-2),
        turns=turns,
        run=folder,
        fabric=fabric,
    )
    if devices > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    source = Spoilt() if "spoilt" in sys.argv else Stopped() if "stopped" in sys.argv else None
    if "turns" in sys.argv:
        run_turns(2, Path(sys.argv[1]))
    else:
        run(2, Path(sys.argv[1]), source)
