"""A transfer problem small enough to solve by hand: targets y = w x, and a source y = x."""

import torch
from torch import nn

from weightloom.apps.transfer.problems.problem import Outputs, Setting, TransferProblem
from weightloom.apps.transfer.training import fit

SLOPES = torch.tensor([0.5, 2.0, 3.0, 1.0])
X = torch.tensor([-1.0, 1.0, 2.0])


class Slope(nn.Module):
    """Slope of a target: that of the source, one for all, or written from the support's own."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.trained, self.reads = kind, kind != "source", kind == "generated"
        self.factor = nn.Parameter(torch.zeros(2))

    def slopes(self, seen):
        if self.kind == "source":
            return torch.ones_like(seen)
        return 1 + self.factor[0] + self.factor[1] * seen * (self.kind == "generated")

    def forward(self, slopes):
        return (self.slopes(slopes) - slopes).square()


class Lines(TransferProblem):
    score, better = "mse", "lower"
    names = ("half", "double", "triple", "same")
    families = ("small", "large", "large", "same")
    notices = ("Targets are lines.",)
    protocol = "The slope of each target is known."
    sharpness = 20.0

    def __init__(self, config):
        self.config = config

    def settings(self):
        return [Setting("3 points", 3), Setting("3 points", 3, steps=2)]

    def build(self, method):
        return Slope(method)

    def train(self, model, config, training):
        def draw(step, generator):
            return 0.5 + 3 * torch.rand(8, generator=generator)

        return fit(
            model,
            draw,
            config,
            training,
            score=lambda: model(SLOPES).mean().item(),
            score_name="mse",
        )

    @torch.no_grad()
    def outputs(self, model, setting, condition="own"):
        seen = {"own": SLOPES, "shuffled": SLOPES.roll(1), "mean": torch.full((4,), 2.0)}[condition]
        slopes = model.slopes(seen) if model.reads or condition == "own" else None
        slopes = SLOPES + (slopes - SLOPES) * 0.5**setting.steps
        outputs = (slopes[:, None] * X)[..., None]
        return Outputs(outputs, outputs, 0.001, {"slope": (slopes - 1).abs()})

    def scores(self, setting, query):
        return {"mse": (query[..., 0] - SLOPES[:, None] * X).square().mean(1)}

    def support_loss(self, setting, support):
        return (support[..., 0] - SLOPES[:, None] * X).square() + 1e-4
