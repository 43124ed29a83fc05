"""Transforms of `torch.func` around a call, by every engine, against plain autograd over functional calls."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from cases import BASES, LOOPS_INSIDE, TASKS
from references import copies
from weightloom import FiLM, Full, LowRank, MLPHyperNetwork, RowScale, WeightloomError
from weightloom.base import apply_per_task
from weightloom.forms.factored import built

pytestmark = [
    LOOPS_INSIDE,
    pytest.mark.filterwarnings("ignore:An output with one or more elements was resized"),
    pytest.mark.filterwarnings(
        "ignore:`torch.jit.script` is deprecated"
    ),  # torch's own forward mode
]
ENGINES = ["auto", "vmap", "aligned", "loop"]
QUICK = [
    "linear",
    "mlp",
    "layer_norm",
    "conv2d_with_group_norm",
    "tied",
    "attention_train",
    "token_and_positions",
]


def parts(base):
    """Two scalar functions of one generated parameter: by the library, and task by task in plain torch."""
    net, params, inputs = base.net(), base.params(), base.x()
    name = min(params, key=lambda n: params[n].numel())
    weights = None

    def loss(outputs):
        nonlocal weights
        leaves = [leaf for leaf in tree_leaves(outputs) if leaf.is_floating_point()]
        if weights is None:
            torch.manual_seed(1)
            weights = [torch.randn(leaf.shape).double() for leaf in leaves]
        return sum((leaf.sin() * w).sum() for leaf, w in zip(leaves, weights, strict=True))

    def ours(value, engine):
        return loss(apply_per_task(net, {**params, name: value}, *inputs, engine=engine))

    def plain(value):
        rows = []
        for task in range(TASKS):
            its = {n: (value if n == name else v)[task] for n, v in params.items()}
            rows.append(tree_leaves(functional_call(net, its, tuple(x[task] for x in inputs))))
        return loss([torch.stack(column) for column in zip(*rows, strict=True)])

    value = params[name]
    plain(value)  # draws the weights
    return ours, plain, value


def plain_gradient(plain, value):
    value = value.clone().requires_grad_()
    return torch.autograd.grad(plain(value), value)[0]


@sdpa_kernel(SDPBackend.MATH)  # the others have no second derivative
def plain_hessian(plain, value):
    value = value.clone().requires_grad_()
    (first,) = torch.autograd.grad(plain(value), value, create_graph=True)
    rows = [
        torch.autograd.grad(one, value, retain_graph=True, materialize_grads=True)[0]
        for one in first.flatten()
    ]
    return torch.stack(rows).view(*value.shape, *value.shape)


def by(engine, run):
    """Run, unless the engine refuses in words of ours."""
    try:
        return run()
    except WeightloomError:
        assert engine != "auto", "the default runs wherever anything does"
        return None


def quick_and_slow():
    return [
        pytest.param(
            *param.values,
            id=param.id,
            marks=[*param.marks, *([] if param.id in QUICK else [pytest.mark.slow])],
        )
        for param in BASES
        if param.id != "keras"
    ]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("base", quick_and_slow())
def test_transforms_around_a_call_give_what_plain_autograd_gives(base, engine):
    ours, plain, value = parts(base)
    gradient = plain_gradient(plain, value)
    for name, run, truth in (
        ("grad", lambda: grad(lambda v: ours(v, engine))(value), lambda: gradient),
        ("vmap", lambda: vmap(lambda v: ours(v, engine))(torch.stack([value, -value])),
         lambda: torch.stack([plain(value), plain(-value)])),
        ("vmap of grad", lambda: vmap(grad(lambda v: ours(v, engine)))(torch.stack([value, -value])),
         lambda: torch.stack([gradient, plain_gradient(plain, -value)])),
        ("jacrev", lambda: jacrev(lambda v: ours(v, engine)[None])(value)[0], lambda: gradient),
    ):  # fmt: skip
        found = by(engine, run)
        if found is not None:
            torch.testing.assert_close(
                found, truth(), atol=1e-10, rtol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "base", [p for p in quick_and_slow() if p.id != "vit"]
)  # its norms amplify rounding
def test_hessians_are_those_of_double_backward(base, engine):
    ours, plain, value = parts(base)
    if value.numel() > 60:
        pytest.skip("a matrix of second derivatives of so many numbers takes long")
    found = by(engine, lambda: hessian(lambda v: ours(v, engine))(value))
    if found is not None:
        torch.testing.assert_close(found, plain_hessian(plain, value), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("form", [Full(), LowRank(1)], ids=repr)
@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_of_a_hypernetwork_for_each_sample_are_those_of_one_sample_after_the_other(
    engine, form
):
    base = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    hyper = MLPHyperNetwork(base, condition_dim=5, form=form).double()
    nn.init.normal_(hyper.head.weight, std=0.3)
    own, base = dict(hyper.named_parameters()), base.double()
    conditions, xs = torch.randn(4, 5).double(), torch.randn(4, 3, 4).double()

    def loss(own, condition, x):
        params = functional_call(hyper, own, (condition[None],))
        return apply_per_task(base, params, x[None], engine=engine).square().mean()

    found = vmap(grad(loss), in_dims=(None, 0, 0))(own, conditions, xs)
    for row, (condition, x) in enumerate(zip(conditions, xs, strict=True)):
        params = hyper(condition[None])
        y = functional_call(base, {name: built(value)[0] for name, value in params.items()}, (x,))
        expected = torch.autograd.grad(
            y.square().mean(), [*own.values()], allow_unused=True, materialize_grads=True
        )
        for name, value in zip(own, expected, strict=True):
            torch.testing.assert_close(found[name][row], value, atol=1e-10, rtol=1e-10)


class OneRowAtATime(nn.Module):
    """Maps its layer over the rows of its batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2).double()

    def forward(self, x):
        return vmap(lambda row: self.layer(row[None])[0])(x)


class Experts(nn.Module):
    """Maps over the first axis of a parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 4).double())

    def forward(self, x):
        return vmap(lambda w: torch.tanh(x @ w))(self.weight).mean(0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_base_that_runs_one_row_at_a_time_is_right_or_refused(engine):
    net, x = OneRowAtATime(), torch.randn(TASKS, 5, 3).double()
    params = {
        "layer.weight": torch.randn(TASKS, 2, 3).double(),
        "layer.bias": torch.randn(TASKS, 2).double(),
    }
    expected = torch.stack([its @ w.T + b for its, w, b in zip(x, *params.values(), strict=True)])
    found = by(engine, lambda: apply_per_task(net, params, x, engine=engine))
    if found is not None:
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("form", [Full(), FiLM(), RowScale(), LowRank(1)], ids=repr)
@pytest.mark.parametrize("tasks", [3, 5])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_base_that_maps_over_a_generated_parameter_is_right_or_refused(engine, tasks, form):
    net = Experts()
    hyper = MLPHyperNetwork(net, condition_dim=2, form=form).double()
    nn.init.normal_(hyper.head.weight, std=0.3)
    params, x = hyper(torch.randn(tasks, 2).double()), torch.randn(tasks, 2, 4).double()
    nets = copies(net, {name: built(value) for name, value in params.items()})
    expected = torch.stack([one(its) for one, its in zip(nets, x, strict=True)])
    found = by(engine, lambda: apply_per_task(net, params, x, engine=engine))
    if found is not None:
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
