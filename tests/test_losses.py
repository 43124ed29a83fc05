"""One loss per task, against a loop over tasks and points."""

import pytest
import torch

from references import cross_entropy_of_point
from weightloom.losses import cross_entropy_per_task, mse_per_task


@pytest.mark.parametrize("out", [(), (1,), (2, 3)], ids=str)
def test_mean_squared_error_equals_a_loop_over_numbers(out):
    outputs, targets = torch.randn(2, 4, 5, *out, dtype=torch.float64)
    losses = mse_per_task(outputs, targets)
    for task in range(4):
        pairs = zip(outputs[task].flatten().tolist(), targets[task].flatten().tolist(), strict=True)
        squares = [(a - b) ** 2 for a, b in pairs]
        assert losses[task].item() == pytest.approx(sum(squares) / len(squares), rel=1e-12)


def test_cross_entropy_equals_a_loop_over_points():
    logits, labels = 3 * torch.randn(4, 5, 3, dtype=torch.float64), torch.randint(3, (4, 5))
    losses = cross_entropy_per_task(logits, labels)
    for task in range(4):
        points = zip(logits[task].tolist(), labels[task].tolist(), strict=True)
        of_points = [cross_entropy_of_point(point, label) for point, label in points]
        assert losses[task].item() == pytest.approx(sum(of_points) / 5, rel=1e-12)


@pytest.mark.parametrize("loss", [mse_per_task, cross_entropy_per_task])
def test_a_loss_has_one_gradient_per_task(loss):
    outputs = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)
    targets = (
        torch.randint(3, (4, 5))
        if loss is cross_entropy_per_task
        else torch.randn(4, 5, 3).double()
    )
    (gradient,) = torch.autograd.grad(loss(outputs, targets)[2], outputs)
    assert gradient[2].any() and not gradient[[0, 1, 3]].any()


def test_a_certain_mistake_costs_its_margin():
    logits = torch.tensor([[[100.0, 0.0]]])
    assert cross_entropy_per_task(logits, torch.tensor([[1]])).item() == pytest.approx(100.0)
