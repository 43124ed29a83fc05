"""A thousand tasks at once: a shared network and a low-rank change of its weights per task.

The tasks: waves that differ in amplitude and phase, known by number and by twenty noisy points
each. A learned embedding per task is the condition; the hypernetwork turns it into factors of rank
2, and the changed weights are never built. Every step trains on all tasks, in chunks, so that
memory does not grow with their number. Then fifty new tasks join: only their embeddings are fitted.

Run:     python examples/thousand_tasks.py
Takes:   less than a minute on one CPU core.
Expect:  on new points a mean squared error under 0.05 for the thousand tasks; as a control, over 1
         when each gets the embedding of another; under 0.1 for the fifty that joined.
Shows:   forms, conditions, hypernets, base with `in_chunks`, fit, losses.
"""

import argparse
import math

import torch
from torch import Tensor

from weightloom import (
    LowRank,
    MLPHyperNetwork,
    TaskEmbedding,
    apply_per_task,
    fit_condition,
    in_chunks,
    mlp,
    mse_per_task,
)

TASKS, CHUNK, CONDITION_DIM = 1000, 250, 8


def waves(tasks: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw a wave per task: 20 noisy points to learn from, 50 points without noise to test on."""
    amplitude = 0.5 + 2 * torch.rand(tasks, 1, 1, generator=generator)
    phase = math.pi * torch.rand(tasks, 1, 1, generator=generator)
    x = 10 * torch.rand(tasks, 70, 1, generator=generator) - 5
    y = amplitude * torch.sin(x + phase)
    noise = 0.1 * torch.randn(tasks, 20, 1, generator=generator)
    return x[:, :20], y[:, :20] + noise, x[:, 20:], y[:, 20:]


def main(steps: int) -> tuple[float, float, float]:
    """Train; return the errors of the known tasks, of the control, and of the tasks that joined."""
    torch.manual_seed(0)
    known_x, known_y, x, y = waves(TASKS, torch.Generator().manual_seed(0))
    base = mlp([1, 40, 40, 1])
    embedding = TaskEmbedding(TASKS, CONDITION_DIM)
    hyper = MLPHyperNetwork(base, CONDITION_DIM, form=LowRank(2))
    print(
        f"generated for each task: {hyper.generated.size} numbers; in the base: {hyper.spec.size}"
    )
    optimiser = torch.optim.Adam(
        [{"params": hyper.parameters(), "lr": 3e-3}, {"params": embedding.parameters(), "lr": 3e-2}]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    numbers = torch.arange(TASKS)

    def predict(condition: Tensor, inputs: Tensor) -> Tensor:
        prediction: Tensor = apply_per_task(base, hyper(condition), inputs)
        return prediction

    for step in range(steps):
        prediction = in_chunks(predict, embedding(numbers), known_x, chunk_size=CHUNK)
        loss = mse_per_task(prediction, known_y).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}  loss {loss.item():.3f}")

    new_x, new_y, new_query_x, new_query_y = waves(50, torch.Generator().manual_seed(1))
    start = embedding.table.weight.detach().mean(0)
    joined = fit_condition(
        hyper, base, new_x, lambda out: mse_per_task(out, new_y), 200, inner_lr=0.1, start=start
    )
    with torch.no_grad():
        condition = embedding(numbers)
        error = mse_per_task(in_chunks(predict, condition, x, chunk_size=CHUNK), y).mean().item()
        control = (
            mse_per_task(in_chunks(predict, condition.roll(1, 0), x, chunk_size=CHUNK), y)
            .mean()
            .item()
        )
        late = mse_per_task(predict(joined, new_query_x), new_query_y).mean().item()
    print(
        f"error on new points {error:.3f}; with another task's embedding {control:.3f}; of tasks "
        f"that joined {late:.3f}"
    )
    return error, control, late


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    torch.set_num_threads(1)
    error, control, late = main(parser.parse_args().steps)
    assert error < 0.05, error
    assert control > 1, control
    assert late < 0.1, late
