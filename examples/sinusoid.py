"""Sinusoid regression: train the five lines of README to turn ten points into a curve.

Run:     python examples/sinusoid.py
Takes:   less than a minute on one CPU core.
Expect:  on 1,000 new sinusoids a mean squared error under 0.15; as a control, over 2 when each
         task gets the points of another.
Shows:   tasks, conditions, hypernets, base, losses.
"""

import argparse

import torch
from torch import Tensor, nn

from weightloom import (
    DeepSets,
    MLPHyperNetwork,
    SinusoidTasks,
    Tasks,
    apply_per_task,
    mlp,
    mse_per_task,
)


def main(steps: int) -> tuple[float, float]:
    """Train; return the error on new tasks, and that of the control."""
    torch.manual_seed(0)
    source, generator = SinusoidTasks(shots=10), torch.Generator().manual_seed(0)
    base = mlp([1, 40, 40, 1])
    encoder = DeepSets(x_dim=1, y_dim=1, condition_dim=32)
    hyper = MLPHyperNetwork(base, condition_dim=32)
    trained = [*encoder.parameters(), *hyper.parameters()]  # the base's own values are in hyper
    optimiser = torch.optim.Adam(trained, lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    def losses_of(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        condition = encoder(support_x, support_y)  # (tasks, condition_dim)
        params = hyper(condition)  # {name: (tasks, *shape)}
        prediction = apply_per_task(base, params, query_x)  # (tasks, batch, out)
        return mse_per_task(prediction, query_y)  # (tasks,)

    for step in range(steps):
        tasks = source.sample(32, generator)  # new tasks every step
        loss = losses_of(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 500 == 0:
            print(f"step {step + 1}  loss {loss.item():.3f}")

    new: Tasks = source.sample(1000, torch.Generator().manual_seed(1))
    with torch.no_grad():
        error = losses_of(new.support_x, new.support_y, new.query_x, new.query_y).mean().item()
        control = (
            losses_of(new.support_x.roll(1, 0), new.support_y.roll(1, 0), new.query_x, new.query_y)
            .mean()
            .item()
        )
    print(f"error on new sinusoids {error:.3f}; given the points of another task {control:.3f}")
    return error, control


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2500)
    torch.set_num_threads(1)
    error, control = main(parser.parse_args().steps)
    assert error < 0.15, error
    assert control > 2, control
