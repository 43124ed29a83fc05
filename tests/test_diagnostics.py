"""Diagnostics: each against a case whose answer is known, and nothing changed by being looked at."""

import copy
import math

import pytest
import torch
from torch import nn

from cases import resnet
from weightloom.diagnostics import (
    check_scale,
    condition_use,
    effective_rank,
    layer_response,
    plot_condition_use,
    plot_rank,
    plot_response,
    plot_scale,
)
from weightloom.errors import ConfigError, ShapeError
from weightloom.forms import LowRank, RowScale
from weightloom.hypernets import HyperNetwork, MLPHyperNetwork
from weightloom.losses import mse_per_task
from weightloom.networks import mlp

INITS = ["bias-hyperinit", "hyperfan-in", "hyperfan-out", "magnitude-invariant"]


class Says(HyperNetwork):
    """The parameters are the condition, times a factor: what it does is known."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.condition_dim, self.factor, self.base = 2, factor, nn.Linear(1, 2, bias=False).double()

    def forward(self, condition):
        return {"weight": self.factor * condition[..., None]}


def line_tasks(tasks=200):
    """y = c x, for two outputs; the error of a wrong slope is the squared difference of slopes."""
    condition = torch.randn(tasks, 2, dtype=torch.float64)
    x = torch.ones(tasks, 5, 1, dtype=torch.float64)
    return condition, x, condition[:, None].expand(-1, 5, -1)


def test_a_hypernetwork_that_reads_its_condition_is_seen_to():
    """Right: no error. Another's: E (c - c')² = 2 for a standard normal. The mean's: the variance, 1."""
    condition, x, y = line_tasks()
    hyper = Says()
    found = condition_use(hyper, hyper.base, condition, x, lambda out: mse_per_task(out, y))
    assert found.right.mean == 0 and found.used
    assert abs(found.shuffled.mean - 2) < 0.4 and abs(found.averaged.mean - 1) < 0.2
    assert abs(found.averaged.mean - condition.var(0, correction=0).mean().item()) < 1e-12
    assert found.cost_of_shuffling == found.shuffled
    assert "The condition is used: with another task's the loss rises by" in str(found)
    assert "loss over 200 tasks" in str(found)


def test_a_hypernetwork_that_ignores_its_condition_is_seen_to():
    condition, x, y = line_tasks()
    hyper = Says(factor=0.0)
    found = condition_use(hyper, hyper.base, condition, x, lambda out: mse_per_task(out, y))
    assert (
        found.right == found.shuffled == found.averaged
        and found.cost_of_shuffling.mean == 0
        and not found.used
    )
    assert "No use of the condition is seen" in found.verdict


def test_a_condition_that_misleads_is_named():
    condition, x, y = line_tasks()
    hyper = Says(factor=-1.0)
    found = condition_use(hyper, hyper.base, condition, x, lambda out: mse_per_task(out, y))
    assert not found.used and found.verdict.endswith(
        "Are conditions and targets in the same order?"
    )


def test_the_interval_covers_the_true_loss_in_about_95_of_100_draws():
    hyper, covered = Says(factor=0.0), 0
    for _ in range(200):
        condition, x, y = line_tasks(12)
        arm = condition_use(
            hyper, hyper.base, condition, x, lambda out, y=y: mse_per_task(out, y), shuffles=1
        ).right
        covered += abs(arm.mean - 1) <= arm.ci95
    assert 175 <= covered <= 198


@pytest.mark.parametrize("tasks", [2, 3, 10])
def test_no_task_keeps_its_condition(tasks):
    seen = []

    class Watched(Says):
        def forward(self, condition):
            seen.append(condition[:, 0].tolist())
            return super().forward(condition)

    condition = torch.arange(2.0 * tasks, dtype=torch.float64).view(tasks, 2)
    hyper = Watched()
    x = torch.ones(tasks, 1, 1, dtype=torch.float64)
    condition_use(hyper, hyper.base, condition, x, lambda out: out.mean((1, 2)), shuffles=20)
    right, *shuffled = seen[:-1]
    assert len(shuffled) == 20 and seen[-1] == [sum(right) / tasks] * tasks
    for order in shuffled:
        assert sorted(order) == right and not any(a == b for a, b in zip(order, right, strict=True))


def test_condition_use_refuses_what_it_cannot_compare():
    hyper, x = Says(), torch.ones(3, 4, 1, dtype=torch.float64)
    condition = torch.randn(3, 2, dtype=torch.float64)
    with pytest.raises(ShapeError, match=r"holds 1 task.*Pass two or more"):
        condition_use(hyper, hyper.base, condition[:1], x[:1], lambda out: out.mean((1, 2)))
    with pytest.raises(ShapeError, match=r"gave \(\) for 3 tasks.*as `mse_per_task` does"):
        condition_use(hyper, hyper.base, condition, x, lambda out: out.mean())
    with pytest.raises(ConfigError, match="`shuffles=0` is below 1"):
        condition_use(hyper, hyper.base, condition, x, lambda out: out.mean((1, 2)), shuffles=0)


def test_the_response_of_a_linear_hypernetwork_is_its_matrix():
    """θ = start + M c: the spread follows from the spread of c, the step is the root mean square of M."""
    hyper = MLPHyperNetwork(mlp([3, 4, 2]), 5, hidden=()).double()
    with torch.no_grad():
        hyper.head.weight.normal_()
        hyper.head.weight[12:16] = 0  # of the first bias
    condition = torch.randn(40, 5, dtype=torch.float64)
    found = layer_response(hyper, condition)
    matrices = dict(zip(hyper.spec.shapes, hyper.head.weight.split([12, 4, 8, 2]), strict=True))
    for name, matrix in matrices.items():
        row, own = found[name], hyper.base.get_parameter(name).flatten()
        assert math.isclose(row.step, matrix.square().mean().sqrt().item(), rel_tol=1e-9)
        mean = own + matrix @ condition.mean(0)
        away = (condition - condition.mean(0)) @ matrix.mT
        assert math.isclose(row.size, mean.square().mean().sqrt().item(), rel_tol=1e-9)
        assert math.isclose(
            row.spread, away.square().mean().sqrt().item(), rel_tol=1e-9, abs_tol=1e-12
        )
    assert found["0.bias"].response == found["0.bias"].sensitivity == 0
    assert found["0.weight"].sensitivity == found["0.weight"].step / found["0.weight"].size
    assert len(str(found).splitlines()) == 5


@pytest.mark.parametrize("form", [None, LowRank(1), RowScale()], ids=repr)
@pytest.mark.parametrize("init", INITS)
def test_the_step_agrees_with_small_steps_in_every_direction(form, init):
    hyper = MLPHyperNetwork(mlp([4, 5, 3]), 3, form=form, init=init).double()
    nn.init.normal_(hyper.head.weight)
    condition, size = torch.randn(6, 3, dtype=torch.float64), 1e-6
    squares = []
    for direction in size * torch.eye(3, dtype=torch.float64):
        there, back = (
            torch.as_tensor(hyper(condition + sign * direction)["0.weight"] + 0) for sign in (1, -1)
        )
        squares.append(((there - back) / (2 * size)).square().mean())
    expected = torch.stack(squares).mean().sqrt().item()
    for chunk_size in (None, 2):
        assert math.isclose(
            layer_response(hyper, condition, chunk_size)["0.weight"].step, expected, rel_tol=1e-6
        )


def test_what_responds_to_nothing_has_no_response_and_a_mean_of_zero_an_infinite_one():
    class AroundZero(Says):
        def forward(self, condition):
            return {"weight": condition - condition.mean(0), "bias": torch.zeros(len(condition), 2)}

    found = layer_response(AroundZero(), torch.tensor([[1.0], [-1.0]]))
    assert found["weight"].response == math.inf and found["bias"].response == 0
    with pytest.raises(ShapeError, match="holds 1 task"):
        layer_response(Says(), torch.zeros(1, 2))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_an_even_mixture_of_k_directions_has_rank_k(k):
    """±e₁ … ±eₖ: k equal variances, about any own value, in any basis, at any scale."""
    basis = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64))[0][:k]
    theta = torch.randn(30, dtype=torch.float64) + 1e-3 * torch.cat([basis, -basis])
    found = effective_rank(
        {"weight": theta.view(2 * k, 5, 6), "bias": torch.ones(2 * k, 4), "gain": theta[:, 0]}
    )
    assert math.isclose(found["weight"].rank, k, rel_tol=1e-6) and found["weight"].components() == k
    assert found["bias"].rank == 0 and found["bias"].components() == 0
    assert math.isclose(found["gain"].rank, 1, rel_tol=1e-9) and found["gain"].components() == 1
    assert found["weight"].numbers == 30 and found.all.numbers == 35 and found.tasks == 2 * k


def test_the_effective_rank_follows_the_formula_of_the_paper_with_squares():
    theta = torch.randn(8, 20, dtype=torch.float64)
    shares = torch.linalg.svdvals(theta - theta.mean(0)).square()
    shares = shares[:7] / shares.sum()
    expected = torch.exp(-(shares * shares.log()).sum()).item()
    found = effective_rank({"a": theta[:, :6], "b": theta[:, 6:].view(8, 2, 7)})
    assert math.isclose(found.all.rank, expected, rel_tol=1e-9)
    held = shares.cumsum(0)
    assert found.all.components() == int((held < 0.99).sum()) + 1 and found.all.components(0.5) <= 4


def test_components_for_99_percent_leave_out_what_is_small():
    theta = torch.zeros(6, 3, dtype=torch.float64)
    theta[:2, 0], theta[2:4, 1], theta[4:, 2] = (torch.tensor([s, -s]) for s in (1.0, 0.5, 0.01))
    row = effective_rank({"weight": theta})["weight"]
    assert row.components() == 2 and row.components(1.0) == 3
    torch.testing.assert_close(
        torch.tensor(row.shares[:2]), torch.tensor([0.8, 0.2]), rtol=1e-3, atol=1e-3
    )


def test_tasks_that_are_all_the_same_differ_in_no_way():
    theta = torch.randn(1, 50).expand(7, -1)
    found = effective_rank({"weight": theta})
    assert found.all.rank == 0 and "Of 7 tasks" in str(found)
    with pytest.raises(ShapeError, match="hold 1 task"):
        effective_rank({"weight": theta[:1]})


@pytest.mark.parametrize("form", [LowRank(1), RowScale()], ids=repr)
def test_factors_count_as_the_parameters_that_they_stand_for(form):
    hyper = MLPHyperNetwork(nn.Linear(6, 5), 3, form=form).double()
    nn.init.normal_(hyper.head.weight)
    params = hyper(torch.randn(9, 3, dtype=torch.float64))
    built = {name: value + 0 for name, value in params.items()}
    assert effective_rank(params) == effective_rank(built)


def conditions(width=8):
    """One of each norm from a tenth to a hundred."""
    condition = torch.randn(4, width)
    return (
        condition
        / condition.norm(dim=1, keepdim=True)
        * torch.tensor([[0.1], [1.0], [10.0], [100.0]])
    )


def scale_of(base, init, event, **options):
    reference = copy.deepcopy(base)
    hyper = MLPHyperNetwork(base, 8, init=init, **options)
    x = torch.randn(1, 32, *event).expand(4, *[-1] * (len(event) + 1))
    return check_scale(hyper, conditions(), x, reference)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("depth", range(1, 11))
@pytest.mark.parametrize("width", [64, 128])
def test_activations_of_an_mlp_start_within_half_and_twice_the_base_own(init, depth, width):
    """Layers of equal width: hyperfan-out follows the gradients' scale, see below."""
    found = scale_of(mlp([width] * (depth + 1)), init, (width,))
    assert found.ok, str(found)
    assert len(found.rows) == 2 * depth - 1


@pytest.mark.parametrize("init", ["bias-hyperinit", "hyperfan-in", "magnitude-invariant"])
@pytest.mark.parametrize("depth", [1, 3, 10])
@pytest.mark.parametrize("norm", [False, True])
def test_activations_of_a_cnn_start_within_half_and_twice_the_base_own(init, depth, norm):
    layers = []
    for block in range(depth):
        layers += [
            nn.Conv2d(32 if block else 3, 32, 3, padding=1),
            nn.GroupNorm(4, 32) if norm else nn.Identity(),
        ]
        layers += [nn.ReLU()]
    found = scale_of(nn.Sequential(*layers), init, (3, 6, 6))
    assert found.ok, str(found)


def test_hyperfan_out_scales_a_layer_by_the_root_of_its_fans():
    """What keeps the scale of gradients cannot keep that of activations, where a layer widens or narrows."""
    found = scale_of(nn.Linear(16, 256, bias=False), "hyperfan-out", (16,))
    assert (
        all(abs(ratio - 0.25) < 0.03 for ratio in found["Linear"].ratios)
        and not found.ok
        and "!" in str(found)
    )


def test_a_head_of_ordinary_initialisation_is_out_of_scale():
    """The fault that the initialisations are there for: it grows with the condition."""
    base = mlp([64, 64, 64])
    hyper = MLPHyperNetwork(base, 8)
    hyper.head.reset_parameters()
    x = torch.randn(1, 32, 64).expand(4, -1, -1)
    found = check_scale(hyper, conditions(), x)
    assert not found.ok and found["2"].ratios[-1] > 10 and "Not all within" in str(found)


def test_the_ratio_is_the_factor_that_the_weight_was_multiplied_by():
    base = nn.Linear(5, 4, bias=False).double()

    class Times(Says):
        def __init__(self):
            super().__init__()
            self.base = base

        def forward(self, condition):
            return {"weight": condition[:, :1, None] * base.weight}

    factors = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64)
    x = torch.randn(3, 9, 5, dtype=torch.float64)
    (row,) = check_scale(Times(), factors, x).rows
    torch.testing.assert_close(torch.tensor(row.ratios, dtype=torch.float64), factors[:, 0])
    assert math.isclose(row.base, base(x).square().mean().sqrt().item()) and row.layer == "Linear"


def test_nothing_is_changed_by_looking():
    """Neither running statistics nor hooks nor weights, in train mode, and after an exception."""
    base = resnet().double()
    hyper = MLPHyperNetwork(base, 4).double()
    before = copy.deepcopy(base.state_dict())
    condition, x = (
        torch.randn(2, 4, dtype=torch.float64),
        torch.randn(2, 3, 2, 6, 6, dtype=torch.float64),
    )
    assert check_scale(hyper, condition, x).ok
    layer_response(hyper, condition)
    with pytest.raises(RuntimeError, match="channels"):
        check_scale(hyper, condition, x[:, :, :1])
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not any(module._forward_hooks for module in base.modules())
    assert all(parameter.grad is None for parameter in hyper.parameters())


def test_a_layer_that_runs_twice_is_taken_together_and_attention_is_one_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.layer(self.layer(x, x, x)[0], x, x)[0]

    hyper = MLPHyperNetwork(Twice().double(), 4).double()
    found = check_scale(
        hyper, torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    )
    assert [row.layer for row in found.rows] == ["layer"] and found.ok


def test_check_scale_refuses_what_it_cannot_compare():
    base = mlp([5, 6, 2])
    hyper, empty = MLPHyperNetwork(base, 4, init="hyperfan-in"), copy.deepcopy(base)
    condition, x = torch.randn(3, 4), torch.randn(3, 7, 5)
    for parameter in empty.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(
        ConfigError, match=r"zeros only in '0'.*Pass `reference=` such a copy of the base"
    ):
        check_scale(hyper, condition, x, empty)
    assert check_scale(hyper, condition, x).rows == check_scale(hyper, condition, x, base).rows
    with pytest.raises(ConfigError, match="`reference` does not run '2'"):
        check_scale(hyper, condition, x, nn.Sequential(nn.Linear(5, 6), nn.ReLU()))
    with pytest.raises(ShapeError, match=r"`x` holds 2 tasks and `condition` 3.*x\[:1\].expand\(3"):
        check_scale(hyper, condition, x[:2])
    with pytest.raises(ConfigError, match="Linear has no `base`"):
        check_scale(nn.Linear(4, 3), condition, x)


def test_every_finding_is_drawn():
    hyper = MLPHyperNetwork(mlp([3, 4, 2]), 2)
    condition, x = torch.randn(5, 2), torch.randn(5, 6, 3)
    use = condition_use(hyper, hyper.base, condition, x, lambda out: out.square().mean((1, 2)))
    (points,) = plot_condition_use(use).data
    assert list(points.y) == [use.right.mean, use.shuffled.mean, use.averaged.mean]
    response = layer_response(hyper, condition)
    assert [len(points.y) for points in plot_response(response).data] == [4, 4]
    rank = effective_rank(hyper(condition))
    figure = plot_rank(rank)
    assert len(figure.data) == 5 and figure.layout.title.text == "Effective rank 0.0 over all"
    scale = check_scale(hyper, condition, x)
    figure = plot_scale(scale)
    assert len(figure.data[0].y) == 3 * 5 and len(figure.layout.shapes) == 2
    assert "plotly" in figure.to_html(include_plotlyjs=False).lower()
