"""Generated kernels in the memory layout of half-precision training."""

import torch

from weightloom.forms import LowRank
from weightloom.learners import HyperConvs
from weightloom.networks import ResidualTrunk, TrunkNet
from weightloom.tasks import Tasks


def test_generated_kernels_run_in_channels_last_and_bfloat16_as_in_the_usual_layout():
    torch.manual_seed(0)
    base = TrunkNet(ResidualTrunk(1, 16, channels=(4, 8)), ways=2)
    learner = HyperConvs(base, {lambda name, parameter: parameter.ndim > 1: LowRank(2)}).eval()
    labels = torch.arange(4).expand(3, -1) % 2
    tasks = Tasks.of(torch.rand(3, 4, 1, 16, 16), labels, torch.rand(3, 4, 1, 16, 16), labels)
    usual = learner.answer(tasks)
    learner.to(memory_format=torch.channels_last)
    torch.testing.assert_close(learner.answer(tasks), usual, rtol=1e-3, atol=1e-3)
    learner.train()
    with torch.autocast("cpu", torch.bfloat16):
        learner(tasks).mean().backward()
    assert all(p.grad.isfinite().all() for p in learner.hyper.parameters() if p.grad is not None)
