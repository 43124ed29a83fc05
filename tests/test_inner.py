"""The inner loop, against one Adam per task and against what a step of Adam is known to do."""

import copy

import pytest
import torch
from torch import nn

from cases import BASES
from references import adam_task_by_task
from weightloom.adapt import descend, fit_params
from weightloom.base import apply_per_task
from weightloom.errors import ConfigError
from weightloom.forms import Factored, Full, LowRank
from weightloom.hypernets import MLPHyperNetwork
from weightloom.losses import mse_per_task
from weightloom.networks import mlp
from weightloom.params import ParamSpec


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("generate", ["*", "*.bias", "2.*"])
def test_fitting_all_tasks_at_once_equals_one_adam_per_task(generate):
    net, steps = mlp([2, 6, 1], nn.Tanh).double(), 7
    params = {
        n: torch.randn(3, *s, dtype=torch.float64)
        for n, s in ParamSpec.of(net, generate).shapes.items()
    }
    x, y = torch.randn(3, 5, 2, dtype=torch.float64), torch.randn(3, 5, 1, dtype=torch.float64)
    fitted = fit_params(
        net, params, x, lambda outputs: mse_per_task(outputs, y), steps, inner_lr=0.05
    )
    by_hand = adam_task_by_task(
        net, params, x, lambda out, task: ((out - y[task]) ** 2).mean(), steps, lr=0.05
    )
    assert fitted.keys() == by_hand.keys()
    for name, value in fitted.items():
        close(value, by_hand[name])
        assert (value - params[name]).abs().amin() > 1e-6


@pytest.mark.parametrize(
    "base", [case for case in BASES if case.id in ("conv_net_head", "tied", "layer_norm")]
)
def test_other_bases_are_fitted_alike(base):
    net, params, (x,) = base.net(), base.params(), base.x()
    fitted = fit_params(
        net, params, x, lambda out: out.square().flatten(1).mean(1), 3, inner_lr=0.05
    )
    by_hand = adam_task_by_task(net, params, x, lambda out, _: out.square().mean(), 3, lr=0.05)
    for name, value in fitted.items():
        torch.testing.assert_close(value, by_hand[name], rtol=1e-9, atol=1e-9)


def test_the_first_step_moves_every_number_by_the_learning_rate_against_its_gradient():
    """Adam's first step is lr * g / (|g| + eps), however large g is (Kingma and Ba, 2015, section 2.1)."""
    start = torch.tensor([[[3.0]], [[-200.0]], [[1e-3]]], dtype=torch.float64)
    fitted = fit_params(
        Product(), {"weight": start}, torch.ones(3, 1, 1).double(), half_square, 1, inner_lr=0.01
    )
    close(fitted["weight"], start - 0.01 * start / (start.abs() + 1e-8))


def test_on_a_quadratic_it_goes_on_until_it_stands_at_the_minimum():
    start = torch.tensor([[[3.0]], [[-2.0]]], dtype=torch.float64)
    fitted = fit_params(
        Product(), {"weight": start}, torch.ones(2, 1, 1).double(), half_square, 200, inner_lr=0.2
    )
    assert fitted["weight"].abs().max() < 1e-2


def test_no_steps_give_a_copy():
    params = {"weight": torch.randn(3, 1, 1)}
    fitted = fit_params(Product(), params, torch.ones(3, 1, 1), half_square, 0, inner_lr=0.05)
    assert torch.equal(fitted["weight"], params["weight"])
    assert fitted["weight"].data_ptr() != params["weight"].data_ptr()


@pytest.mark.parametrize("grad", [True, False])
def test_what_goes_in_is_left_alone_and_what_comes_out_has_no_history(grad):
    net, params = Product(), {"weight": torch.randn(3, 1, 1, requires_grad=True)}
    before = params["weight"].clone()
    with torch.set_grad_enabled(grad):
        fitted = fit_params(net, params, torch.ones(3, 1, 1), half_square, 2, inner_lr=0.05)
        assert torch.is_grad_enabled() is grad
    assert torch.equal(params["weight"], before) and params["weight"].grad is None
    assert net.weight.grad is None and torch.equal(net.weight, torch.zeros(1, 1))
    assert not fitted["weight"].requires_grad and not torch.equal(fitted["weight"], before)


class Product(nn.Module):
    """y = w x, so that half its square has the curvature 1 in w at x = 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))

    def forward(self, x):
        return x @ self.weight


def half_square(outputs):
    return outputs.square().flatten(1).sum(1) / 2


def test_factors_are_fitted_as_factors_and_what_is_shared_is_left_alone():
    net, x = nn.Linear(5, 4, bias=False).double(), torch.randn(3, 8, 5).double()
    own, target = net.weight.detach().clone(), torch.randn(3, 8, 4).double()
    start = {
        "weight": LowRank(1)
        .value(net.weight, {"up": torch.zeros(3, 4, 1), "down": torch.randn(3, 1, 5)})
        .double()
    }
    loss = lambda y: (y - target).square().mean((1, 2))  # noqa: E731
    fitted = fit_params(net, start, x, loss, 50, 0.05)
    assert isinstance(fitted["weight"], Factored) and torch.equal(net.weight, own)
    assert torch.linalg.matrix_rank(fitted["weight"].dense() - own).tolist() == [1, 1, 1]
    assert (loss(apply_per_task(net, fitted, x)) < loss(apply_per_task(net, start, x))).all()


def test_nothing_to_fit_is_said():
    with pytest.raises(ConfigError, match="`params` is empty"):
        fit_params(nn.Linear(2, 2), {}, torch.randn(3, 4, 2), lambda y: y.mean((1, 2)), 1, 0.1)


def by_hand(net, params, x, y):
    """The loop that every script of meta-learning holds."""
    losses = []
    for _ in range(5):
        per_task = mse_per_task(apply_per_task(net, params, x), y)
        losses.append(per_task.sum().item())
        steps = torch.autograd.grad(per_task.sum(), list(params.values()), create_graph=True)
        params = {
            name: value - 0.1 * step
            for (name, value), step in zip(params.items(), steps, strict=True)
        }
    return params, losses


@pytest.mark.parametrize("form", [Full(), LowRank(1)], ids=repr)
def test_an_inner_loop_by_hand_on_what_was_generated_is_right_or_told_what_to_type(form):
    net = mlp([4, 6, 2], nn.Tanh).double()
    hyper = MLPHyperNetwork(net, condition_dim=5, form=form).double()
    params, (x, y) = (
        hyper(torch.randn(3, 5).double()),
        (torch.randn(3, 4, 4).double(), torch.randn(3, 4, 2).double()),
    )
    if form == Full():
        found, losses = by_hand(net, params, x, y)
        assert losses[-1] < losses[0]
        for task in range(3):
            one = copy.deepcopy(net)
            own = [nn.Parameter(value[task].detach().clone()) for value in params.values()]
            for _ in range(5):
                its = dict(zip(params, own, strict=True))
                loss = (torch.func.functional_call(one, its, (x[task],)) - y[task]).square().mean()
                own = [
                    v - 0.1 * g for v, g in zip(own, torch.autograd.grad(loss, own), strict=True)
                ]
            close(
                [found[name][task].detach() for name in params], [value.detach() for value in own]
            )
        torch.autograd.grad(sum(value.sum() for value in found.values()), hyper.head.weight)
        return
    with pytest.raises(ConfigError, match=r"`grad` was asked for.*descend"):
        by_hand(net, params, x, y)

    def loss(its):
        return mse_per_task(apply_per_task(net, its, x), y)

    assert (loss(descend(params, loss, 5, 0.1)) < loss(params)).all()
