"""A parameter held as factors stands wherever a tensor may: in any function, tree, file, dtype and transformation."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from cases import FORMS, TASKS
from weightloom.base import apply_per_task, per_task
from weightloom.errors import ConfigError
from weightloom.forms import Factored, FiLM, Form, Full, LowRank, RowScale, choose_forms
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import mlp


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def factored(tasks=TASKS, dtype=torch.float64, form=None):
    form = form or LowRank(2)
    own = torch.randn(4, 5, dtype=dtype)
    return Factored(
        form,
        own,
        {n: torch.randn(tasks, *s, dtype=dtype) for n, s in form.factor_shapes((4, 5)).items()},
    )


def params_of(net, form, tasks=TASKS):
    params = {}
    for name, its in choose_forms(net, form=form).items():
        own = net.get_parameter(name).detach()
        factors = {
            n: torch.randn(tasks, *s).to(own)
            for n, s in its.factor_shapes(tuple(own.shape)).items()
        }
        params[name] = its.value(
            own, factors, {n: v.to(own) for n, v in its.shared(tuple(own.shape)).items()}
        )
    return params


def test_it_looks_like_the_parameter_and_prints_what_it_is():
    weight = factored()
    assert (
        weight.shape == (3, 4, 5)
        and weight.ndim == 3
        and weight.dtype == torch.float64
        and len(weight) == 3
    )
    assert weight.numel() == 60 and weight.is_floating_point() and weight.device.type == "cpu"
    assert (
        repr(weight) == "Factored(LowRank(rank=2), shape=(3, 4, 5))"
        and weight.lead == 1
        and weight[0].lead == 0
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda w: w + 1,
        lambda w: 2 * w - w,
        lambda w: w.sum(-1),
        lambda w: w.mT,
        lambda w: w.flatten(1),
        lambda w: torch.einsum("toi,ti->to", w, torch.ones(3, 5).double()),
        lambda w: torch.cat([w, w], -1),
        lambda w: torch.linalg.norm(w, dim=(1, 2)),
        lambda w: w.reshape(-1),
        lambda w: w[:, 0],
        lambda w: w.square().mean((1, 2)),
    ],
)
def test_any_function_is_given_it_built(function):
    weight = factored()
    result = function(weight)
    assert not isinstance(result, Factored)
    close(result, function(weight.dense()))


def test_rows_are_taken_without_building_it():
    weight = factored()
    dense = weight.dense()
    picks = (weight[1], weight[-1], weight[1:], weight.unbind()[2], weight.split(2)[1])
    for part, expected in zip(
        picks, (dense[1], dense[-1], dense[1:], dense[2], dense[2:]), strict=True
    ):
        assert isinstance(part, Factored)
        close(part.dense(), expected)
    with pytest.raises(IndexError):
        weight[3]


def test_it_is_never_changed_in_place():
    weight = factored()
    with pytest.raises(ConfigError, match=r"`mul_` would change a Factored\(.*in place.*`mul`"):
        weight.mul_(2)
    close(weight.mul(2), 2 * weight.dense())


def test_factors_of_other_names_are_refused():
    with pytest.raises(
        ConfigError, match=r"was given the factors \['gain'\].*made of \['down', 'up'\]"
    ):
        Factored(LowRank(2), torch.ones(4, 5), {"gain": torch.ones(3, 4)})


def test_it_moves_between_dtypes_and_off_the_graph_with_everything_it_is_made_of():
    weight = factored()
    weight.factors["up"].requires_grad_()
    assert weight.requires_grad and not weight.detach().requires_grad
    for moved, dtype in (
        (weight.float(), torch.float32),
        (weight.to(torch.bfloat16), torch.bfloat16),
    ):
        assert (
            isinstance(moved, Factored)
            and moved.dtype == moved.own.dtype == moved.factors["up"].dtype == dtype
        )
    assert weight.float().double().dtype == torch.float64
    assert weight.to("meta").device.type == "meta"


@pytest.mark.parametrize("form", FORMS)
def test_params_survive_pickle_copy_and_a_tree(form):
    net, x = mlp([5, 6, 4]).double(), torch.randn(TASKS, 2, 5).double()
    params = params_of(net, form)
    expected = apply_per_task(net, params, x)
    for again in (
        pickle.loads(pickle.dumps(params)),
        copy.deepcopy(params),
        tree_map(torch.clone, params),
    ):
        close(apply_per_task(net, again, x), expected)
        assert {n: type(v) for n, v in again.items()} == {n: type(v) for n, v in params.items()}
    assert all(not isinstance(leaf, Factored) for leaf in tree_leaves(params))


@pytest.mark.parametrize("form", [LowRank(2), RowScale()], ids=repr)
def test_an_inner_step_on_factors_under_vmap_equals_one_by_hand(form):
    net = mlp([5, 6, 4]).double()
    params = params_of(net, form)
    x, y = torch.randn(TASKS, 7, 5).double(), torch.randn(TASKS, 7, 4).double()

    def loss(params, x, y):
        return (functional_call(net, params, (x,)) - y).square().mean()

    def step(params, x, y):
        gradients = grad(loss)(params, x, y)
        return tree_map(lambda p, g: p - 0.1 * g, params, gradients)

    found = vmap(step)(params, x, y)
    for task in range(TASKS):
        one = tree_map(lambda p, task=task: p[task].detach().clone().requires_grad_(), params)
        leaves = tree_leaves(one)
        gradients = torch.autograd.grad(loss(one, x[task], y[task]), leaves)
        for row, leaf, gradient in zip(tree_leaves(found), leaves, gradients, strict=True):
            close(row[task], leaf - 0.1 * gradient)
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in params.items()
    }


@pytest.mark.parametrize("engine", ["auto", "vmap", "aligned", "loop"])
@pytest.mark.parametrize("form", FORMS)
def test_autocast_computes_in_less_and_leaves_gradients_whole(form, engine):
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    params = params_of(net, form)
    leaves = [leaf.requires_grad_() for leaf in tree_leaves(params)]
    x = torch.randn(TASKS, 3, 2, 5)
    expected = apply_per_task(net, params, x, engine="loop")
    with torch.autocast("cpu", torch.bfloat16):
        outputs = apply_per_task(net, params, x, engine=engine)
    assert outputs.dtype in (
        torch.bfloat16,
        torch.float32,
    )  # under vmap torch adds a bias in float32
    assert (outputs - expected).abs().max() < 0.05 * expected.abs().max()
    gradients = torch.autograd.grad(outputs.float().square().mean(), leaves)
    truth = torch.autograd.grad(expected.square().mean(), leaves)
    for found, its in zip(gradients, truth, strict=True):
        assert found.dtype == torch.float32
        assert (found - its).norm() < 0.05 * its.norm() + 1e-6


class Unanswered(Form):
    """A form of three methods."""

    needs = "anything"

    def fit(self, shape, owner):
        return self

    def factor_shapes(self, shape):
        return {"level": ()}

    def dense(self, own, parts):
        return own + parts["level"][(..., *[None] * own.ndim)]


@pytest.mark.parametrize("engine", ["auto", "vmap", "aligned", "loop"])
def test_a_form_that_answers_nothing_is_built_and_right(engine):
    net, x = mlp([5, 6, 4]).double(), torch.randn(TASKS, 2, 5).double()
    params = params_of(net, Unanswered())
    dense = {name: value.dense() for name, value in params.items()}
    close(
        apply_per_task(net, params, x, engine=engine), apply_per_task(net, dense, x, engine="loop")
    )
    assert Unanswered() == Unanswered() and Unanswered() != Full()


COMPILED = """
import torch
from weightloom import LowRank, MLPHyperNetwork, Template, apply_per_task, mlp

for form in (LowRank(2), Template(2)):  # answered, and built
    hyper = MLPHyperNetwork(mlp([5, 6, 4]), 4, form=form)
    torch.nn.init.normal_(hyper.head.weight, std=0.1)
    condition, x = torch.randn(3, 4), torch.randn(3, 2, 5)

    def run(condition, x):
        return apply_per_task(hyper.base, hyper(condition), x)

    outputs, expected = torch.compile(run, backend="aot_eager", fullgraph=True)(condition, x), run(condition, x)
    torch.testing.assert_close(outputs, expected)
    found, truth = (torch.autograd.grad(y.square().sum(), list(hyper.parameters())) for y in (outputs, expected))
    torch.testing.assert_close(found, truth)
"""


@pytest.mark.slow
def test_generating_and_running_compiled_equals_eager():
    """In a process of its own, without the checks of annotations, which cannot be compiled."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED], check=True)


@pytest.mark.parametrize("form", [FiLM(), RowScale(), LowRank(2)])
@pytest.mark.parametrize("bias", [True, False])
def test_one_input_of_all_tasks_gives_the_numbers_of_its_copies(form, bias):
    """Outputs, gradients of all parameters and of the input, and second derivatives of these."""
    base = nn.Sequential(nn.Linear(5, 8, bias=bias), nn.Tanh(), nn.Linear(8, 3, bias=bias)).double()
    forms = {"*.weight": form, "*.bias": Full()} if bias else {"*.weight": form}
    hyper = MLPHyperNetwork(base, 4, generate=forms)
    hyper.double()
    nn.init.normal_(hyper.head.weight, std=0.3)
    condition, points = torch.randn(6, 4).double(), torch.randn(7, 5).double()
    found = []
    for spread in (lambda x: x.expand(6, -1, -1), lambda x: x.repeat(6, 1, 1)):
        one = points.clone().requires_grad_()
        y = per_task(base)(hyper(condition), spread(one))
        (slope,) = torch.autograd.grad(y.sin().sum(), one, create_graph=True)
        second = torch.autograd.grad(slope.square().sum(), list(hyper.parameters()))
        found.append([y, slope, *second])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", [RowScale(), LowRank(2)])
def test_the_shared_product_of_one_input_is_computed_once(form):
    """The product with the own weight takes 2 * 7 * 16 * 16 operations; ten tasks share it."""
    own, points = torch.randn(16, 16), torch.randn(7, 16)
    shapes = form.factor_shapes((16, 16))
    parts = {name: torch.randn(10, *shape) for name, shape in shapes.items()}
    counts = []
    for x in (points.expand(10, -1, -1), points.repeat(10, 1, 1)):
        with FlopCounterMode(display=False) as counter:
            form.linear(x, own, parts, torch.randn(10, 1, 16))
        counts.append(counter.get_total_flops())
    assert counts[1] - counts[0] == 9 * 2 * 7 * 16 * 16
