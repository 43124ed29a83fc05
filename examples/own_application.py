"""An application of your own: the hypernetwork generates networks that multiply by a given factor.

Run:     python examples/own_application.py; or, in examples: weightloom own_application:Factors
Takes:   a few seconds on one core.
Expect:  a mean squared error below 0.01, against more than 0.1 before training.
Shows:   apps (`App`, `experiment.run`): four methods are enough for a run with table, report,
         resume, seeds and sweeps.
"""

from dataclasses import dataclass
from tempfile import mkdtemp

import torch

from weightloom import MLPHyperNetwork, TrainOptions, mlp, mse_per_task, per_task, train
from weightloom.apps import experiment
from weightloom.apps.app import App
from weightloom.runs.options import RunOptions


@dataclass(frozen=True)
class FactorConfig(RunOptions):
    largest: float = 1.5
    """Upper end of the factors, which are uniform from 0."""
    learning_rate: float = 1e-2


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.base = mlp([1, 8, 1])
        self.hyper = MLPHyperNetwork(self.base, condition_dim=1)

    def forward(self, batch):
        factor, x = batch  # (tasks, 1), (tasks, 10, 1)
        return mse_per_task(per_task(self.base)(self.hyper(factor), x), factor[:, None] * x)


class Factors(App):
    name, about, config = "factors", "Multiply by a factor.", FactorConfig

    def open(self, config):
        return lambda step, chance: (
            config.largest * torch.rand(32, 1, generator=chance),
            torch.rand(32, 10, 1),
        )

    def build(self, method, problem, config):
        return Network()

    def train(self, model, problem, config, training):
        options = TrainOptions(
            config.steps or 500, outer_lr=config.rate_of(training.method), seed=config.seed
        )
        return train(model, problem, None, options, **training.how())

    def judge(self, contenders, problem, config, folder):
        batch = problem(0, torch.Generator().manual_seed(1 << 40))
        return [
            one.row("any factor", "mse", one.model and one.model(batch).detach())
            for one in contenders
        ]


if __name__ == "__main__":
    rows = experiment.run(Factors(), FactorConfig(), f"{mkdtemp()}/run", quiet=True)["scores"]
    trained, untrained = (row["mean"] for row in rows)
    print(f"mean squared error {trained:.4f}, before training {untrained:.4f}")
    assert trained < 0.01 and untrained > 0.1
