"""New tasks by their conditions alone, against the optimum of a convex problem and one Adam per task."""

import copy

import pytest
import torch
from torch import nn

from weightloom.adapt import fit_condition
from weightloom.errors import ShapeError
from weightloom.hypernets import MLPHyperNetwork
from weightloom.losses import mse_per_task
from weightloom.networks import mlp


class Linear(nn.Module):
    """θ = W condition + b, so that a squared error of a linear base is a convex problem in the condition."""

    condition_dim = 2

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3))

    def forward(self, condition):
        return {"weight": (condition @ self.weight.T + self.bias)[:, None]}


class Counts(Linear):
    """Writes into a buffer whenever it is used in train mode, as a BatchNorm does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("uses", torch.zeros(()))

    def forward(self, condition):
        self.uses += self.training
        return super().forward(condition)


def convex():
    hyper, base = Linear().double(), nn.Linear(3, 1, bias=False).double()
    return (
        hyper,
        base,
        torch.randn(4, 6, 3, dtype=torch.float64),
        torch.randn(4, 6, 1, dtype=torch.float64),
    )


def trained():
    """A hypernetwork in a generic state, which generates a part of its base, and data of three new tasks."""
    base = mlp([2, 5, 1], nn.Tanh)
    hyper = MLPHyperNetwork(base, condition_dim=4, generate="*.weight").double()
    with torch.no_grad():
        for parameter in hyper.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return (
        hyper,
        base,
        torch.randn(3, 7, 2, dtype=torch.float64),
        torch.randn(3, 7, 1, dtype=torch.float64),
    )


def against(y):
    return lambda outputs: mse_per_task(outputs, y)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_on_a_convex_problem_it_finds_the_optimum_that_least_squares_gives():
    hyper, base, x, y = convex()
    fitted = fit_condition(hyper, base, x, against(y), steps=600, inner_lr=0.1)
    for task in range(len(x)):
        optimum = torch.linalg.lstsq(
            x[task] @ hyper.weight, y[task] - x[task] @ hyper.bias[:, None]
        ).solution[:, 0]
        close(fitted[task], optimum.detach(), 1e-6)


def test_all_tasks_at_once_equal_one_adam_per_task_on_copies():
    hyper, base, x, y = trained()
    start = torch.randn(3, 4, dtype=torch.float64)
    together = fit_condition(hyper, base, x, against(y), 9, 0.05, start)
    for task in range(len(x)):
        alone = nn.Parameter(start[task].clone())
        optimiser = torch.optim.Adam([alone], lr=0.05)
        for _ in range(9):
            net, params = copy.deepcopy(base), hyper(alone[None])
            out = torch.func.functional_call(
                net, {name: value[0] for name, value in params.items()}, (x[task],)
            )
            optimiser.zero_grad()
            ((out - y[task]) ** 2).mean().backward()
            optimiser.step()
        close(together[task], alone.detach(), 1e-10)
        close(
            fit_condition(hyper, base, x[[task]], against(y[[task]]), 9, 0.05, start[[task]])[0],
            together[task],
        )


def test_a_task_whose_numbers_are_not_finite_spoils_no_other():
    hyper, base, x, y = trained()
    expected = fit_condition(hyper, base, x, against(y), 3, 0.05)
    y[1] = torch.nan
    found = fit_condition(hyper, base, x, against(y), 3, 0.05)
    close(found[[0, 2]], expected[[0, 2]])
    assert found[1].isnan().all()


def test_the_first_step_moves_every_number_by_the_learning_rate_downhill():
    """Adam's first step is lr * g / (|g| + eps), however large g is (Kingma and Ba, 2015, section 2.1)."""
    hyper, base, x, y = convex()
    start = torch.randn(2, dtype=torch.float64)
    gradient = (x @ (hyper.weight @ start + hyper.bias)[:, None] - y).mul(x).mean(1) @ hyper.weight
    close(
        fit_condition(hyper, base, x, against(y), 1, 0.01, start),
        (start - 0.01 * gradient.sign()).detach(),
        1e-6,
    )


@pytest.mark.parametrize("start", [None, torch.ones(2), torch.arange(8.0).view(4, 2)])
def test_no_steps_give_a_copy_of_the_start(start):
    hyper, base, x, y = convex()
    found = fit_condition(hyper, base, x, against(y), 0, 0.1, start)
    close(
        found, torch.zeros(4, 2).double() if start is None else start.double().expand(4, 2).clone()
    )
    assert start is None or found.data_ptr() != start.data_ptr()


def fail_at(step):
    """A loss that raises when it is asked for the given time."""
    calls = []

    def loss(outputs):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return outputs.square().mean((1, 2))

    return loss


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("interrupted", [True, False])
def test_what_is_frozen_stays_bit_for_bit_as_it_was_and_so_do_modes_and_gradients(
    train, interrupted
):
    hyper, base, x, _ = trained()
    hyper.train(train)
    hyper.head.bias.requires_grad_(False)
    hyper.trunk[0].weight.grad = torch.randn_like(hyper.trunk[0].weight)
    start = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    parameters = [*hyper.parameters(), start]
    before = [
        (p.clone(), p.requires_grad, None if p.grad is None else p.grad.clone()) for p in parameters
    ]
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            fit_condition(hyper, base, x, fail_at(3), 5, 0.1, start)
    else:
        fit_condition(hyper, base, x, fail_at(9), 5, 0.1, start)
    for parameter, (value, requires_grad, grad) in zip(parameters, before, strict=True):
        assert torch.equal(parameter, value) and parameter.requires_grad is requires_grad
        assert parameter.grad is None if grad is None else torch.equal(parameter.grad, grad)
    assert all(module.training is train for module in (*hyper.modules(), *base.modules()))


def test_buffers_that_a_hypernetwork_writes_in_train_mode_are_frozen_too():
    hyper, (_, base, x, y) = Counts().double().train(), convex()
    fit_condition(hyper, base, x, against(y), 3, 0.1)
    assert hyper.uses == 0


@pytest.mark.parametrize("grad", [True, False])
def test_the_result_has_no_history_and_the_gradient_mode_is_kept(grad):
    hyper, base, x, y = convex()
    with torch.set_grad_enabled(grad):
        fitted = fit_condition(hyper, base, x, against(y), 2, 0.1)
        assert torch.is_grad_enabled() is grad
    assert not fitted.requires_grad and fitted.any() and fitted.dtype == torch.float64


def test_a_start_of_another_shape_is_refused_and_the_advice_works():
    hyper, base, x, y = convex()
    with pytest.raises(
        ShapeError,
        match=r"`start` has shape \(3,\)\. `x` holds 4 new tasks.*\(2,\), or .* \(4, 2\)",
    ):
        fit_condition(hyper, base, x, against(y), 1, 0.1, torch.zeros(3))
    assert fit_condition(hyper, base, x, against(y), 1, 0.1, torch.zeros(2)).shape == (4, 2)
