"""Train on CPU processes, on two of them as ``python two_processes.py FOLDER``. Used by test_train.py."""

import json
import sys
from pathlib import Path

import torch
from lightning_fabric import Fabric

from weightloom.losses import mse_per_task
from weightloom.tasks import SinusoidTasks
from weightloom.train import TrainOptions, train


def run(devices, folder):
    from test_train import Model

    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    torch.manual_seed(0)
    model = Model().eval()
    model.base[2].p = 0.0  # chance inside the network differs between processes, on purpose; not here
    options = TrainOptions(steps=6, tasks=4, warmup_steps=2, outer_lr=1e-2)
    train(model, SinusoidTasks(shots=5, queries=10), mse_per_task, options, run=folder, fabric=fabric)
    ranks = fabric.all_gather(torch.tensor(fabric.global_rank)).flatten().tolist()
    if fabric.global_rank == 0:
        (folder / "world.json").write_text(json.dumps(ranks))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    run(2, Path(sys.argv[1]))
