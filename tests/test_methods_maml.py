"""MAML, ANIL and CAVIA, against hand-derived gradients of a quadratic and against the networks that papers draw."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from weightloom.errors import ConfigError
from weightloom.learners.cavia import CAVIA
from weightloom.learners.learner import Support
from weightloom.learners.maml import ANIL, MAML
from weightloom.learners.modular import (
    LayerwiseHyperNetwork,
    ModularHyperNetwork,
)
from weightloom.losses import masked_loss, soft_cross_entropy_per_task
from weightloom.networks import mlp

ADAM = (0.9, 0.999)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def headed():
    trunk = nn.Sequential(nn.Linear(3, 6), nn.Tanh())
    return nn.Sequential(OrderedDict(trunk=trunk, head=nn.Linear(6, 4)))


def modular():
    base = mlp([3, 6, 4], nn.Tanh)
    return ModularHyperNetwork(
        base, LayerwiseHyperNetwork(base, code_dim=5, hidden=(7,)), inner_steps=3
    )


LEARNERS = {
    "maml": lambda: MAML(mlp([3, 6, 4], nn.Tanh), inner_steps=3, inner_lr=0.1),
    "maml_adam": lambda: MAML(mlp([3, 6, 4], nn.Tanh), inner_steps=3, inner_lr=0.1, momentum=ADAM),
    "maml_learned": lambda: MAML(
        mlp([3, 6, 4], nn.Tanh), inner_steps=3, inner_lr=0.1, learn_inner_lr=True
    ),
    "maml_head": lambda: MAML(mlp([3, 6, 4], nn.Tanh), inner_steps=3, inner_lr=0.1, adapted="2.*"),
    "anil": lambda: ANIL(headed(), inner_steps=3, inner_lr=0.1),
    "cavia": lambda: CAVIA(mlp([3, 6, 4], nn.Tanh), context_dim=2, inner_steps=3),
    "modular": modular,
}
every_learner = pytest.mark.parametrize("build", LEARNERS.values(), ids=LEARNERS.keys())


def draw_support(kind="regression", tasks=3, shots=8):
    x = torch.randn(tasks, shots, 3, dtype=torch.float64)
    numbers = torch.randn(tasks, shots, 4, dtype=torch.float64)
    y = {"regression": numbers, "labels": numbers.argmax(2), "soft": (3 * numbers).softmax(2)}[kind]
    return Support(x, y, torch.ones(tasks, shots, dtype=torch.bool))


def linear_task():
    """A support set and a query of one linear regression; its loss is a quadratic of curvature 2 XᵀX / n."""
    base = nn.Linear(3, 1, bias=False).double()
    x, y = (
        torch.randn(2, 1, 9, 3, dtype=torch.float64),
        torch.randn(2, 1, 9, 1, dtype=torch.float64),
    )
    return base, Support(x[0], y[0], torch.ones(1, 9, dtype=torch.bool)), x[1], y[1]


def gradient_by_hand(w, x, y):
    return 2 * x[0].T @ (x[0] @ w - y[0]) / x.shape[1]


def test_one_step_on_a_linear_model_is_the_closed_form():
    base, support, _, _ = linear_task()
    w = base.weight.detach().T
    adapted = MAML(base, inner_lr=0.1).adapt(support)["weight"][0].T
    close(adapted, w - 0.1 * gradient_by_hand(w, support.x, support.y))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("first_order", [False, True])
def test_the_gradient_through_the_steps_is_the_hand_derived_one(steps, first_order):
    """w_k = (1 - lr A)ᵏ w + …, so the outer gradient is (1 - lr A)ᵏ times that at w_k; first order leaves that out."""
    base, support, query_x, query_y = linear_task()
    maml = MAML(base, inner_steps=steps, inner_lr=0.1, first_order=first_order)
    maml.loss_per_task(maml.predict(maml.adapt(support), query_x), query_y).mean().backward()
    w = base.weight.detach().T
    for _ in range(steps):
        w = w - 0.1 * gradient_by_hand(w, support.x, support.y)
    expected = gradient_by_hand(w, query_x, query_y)
    curvature = 2 * support.x[0].T @ support.x[0] / 9
    for _ in range(0 if first_order else steps):
        expected = expected - 0.1 * curvature @ expected
    close(base.weight.grad.T, expected)


@every_learner
def test_the_outer_gradient_equals_finite_differences(build):
    learner, support, query = build().double(), draw_support(), draw_support()
    parameters = [p for p in learner.parameters() if p.requires_grad]
    directions = [torch.randn_like(p) for p in parameters]

    def outer_loss():
        return learner.loss_per_task(
            learner.predict(learner.adapt(support), query.x), query.y
        ).mean()

    gradients = torch.autograd.grad(outer_loss(), parameters)
    along = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p += step * d
        values.append(outer_loss().item())
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(along.item(), rel=1e-5)


@every_learner
@pytest.mark.parametrize("kind", ["regression", "labels", "soft"])
def test_adapting_lowers_the_support_loss_whatever_the_targets(build, kind):
    learner, support = build().double(), draw_support(kind)
    if kind == "soft":
        learner.loss_per_task = soft_cross_entropy_per_task
        if isinstance(learner, ANIL):
            learner.of_head.loss_per_task = soft_cross_entropy_per_task

    def support_loss():
        outputs = learner.predict(learner.adapt(support), support.x)
        return masked_loss(learner.loss_per_task, outputs, support.y, support.mask)

    after = support_loss()
    inner = learner.of_head if isinstance(learner, ANIL) else learner
    inner.inner_steps = 0
    assert after.mean() < support_loss().mean()


@every_learner
@pytest.mark.parametrize("kind", ["regression", "labels"])
def test_a_point_that_is_not_there_is_as_if_removed(build, kind):
    learner, support = build().double(), draw_support(kind)
    mask = support.mask.clone()
    mask[:, 5:] = False
    spoilt = support.x.masked_fill(~mask[..., None], 1e3)
    masked = learner.adapt(support._replace(x=spoilt, mask=mask))
    removed = learner.adapt(Support(support.x[:, :5], support.y[:, :5], mask[:, :5]))
    for name, value in removed.items():
        close(masked[name], value)


@every_learner
def test_a_task_alone_equals_its_row_in_a_batch(build):
    learner, support = build().double(), draw_support()
    together = learner.adapt(support)
    for task in range(3):
        alone = learner.adapt(Support(*(field[task : task + 1] for field in support)))
        for name, value in together.items():
            close(alone[name][0], value[task])


@every_learner
def test_without_gradients_the_answer_is_the_same_and_has_no_history(build):
    learner, support = build().double(), draw_support()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    trained = learner.adapt(support)
    with torch.no_grad():
        judged = learner.adapt(support)
    for name, value in trained.items():
        close(judged[name], value.detach())
        assert not judged[name].requires_grad
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


@every_learner
def test_every_parameter_gets_a_gradient(build):
    learner, support, query = build().double(), draw_support(), draw_support()
    learner.loss_per_task(
        learner.predict(learner.adapt(support), query.x), query.y
    ).mean().backward()
    trained = [(name, p) for name, p in learner.named_parameters() if p.requires_grad]
    names = [name for name, p in trained if p.grad is None or not p.grad.abs().sum() > 0]
    assert not names


@pytest.mark.parametrize("momentum", [None, ADAM])
def test_learned_lengths_start_as_one_length_for_all(momentum):
    support, base = draw_support(), mlp([3, 6, 4], nn.Tanh).double()
    fixed = MAML(base, inner_steps=3, inner_lr=0.1, momentum=momentum).adapt(support)
    learned = (
        MAML(base, inner_steps=3, inner_lr=0.1, momentum=momentum, learn_inner_lr=True)
        .double()
        .adapt(support)
    )
    for name, value in fixed.items():
        torch.testing.assert_close(learned[name], value, rtol=1e-6, atol=1e-6)


def test_each_tensor_has_a_length_of_its_own():
    support, base = draw_support(), nn.Linear(3, 4).double()
    maml = MAML(base, inner_steps=1, learn_inner_lr=True).double()
    with torch.no_grad():
        maml.log_inner_lr.copy_(torch.tensor([0.2, 0.5]).log())
    steps = {
        name: value - dict(base.named_parameters())[name]
        for name, value in maml.adapt(support).items()
    }
    unit = MAML(base, inner_steps=1, inner_lr=1.0).adapt(support)
    for (name, step), length in zip(steps.items(), (0.2, 0.5), strict=True):
        torch.testing.assert_close(
            step, length * (unit[name] - base.get_parameter(name)), rtol=1e-6, atol=1e-6
        )


def test_anil_is_maml_of_the_head():
    support, base = draw_support("labels"), headed().double()
    anil, maml = (
        ANIL(base, inner_steps=3, inner_lr=0.1),
        MAML(base, inner_steps=3, inner_lr=0.1, adapted="head.*"),
    )
    for name, value in maml.adapt(support).items():
        close(anil.adapt(support)[name], value)
    close(
        anil.predict(anil.adapt(support), support.x), maml.predict(maml.adapt(support), support.x)
    )


def test_only_what_is_adapted_has_a_value_per_task():
    support = draw_support()
    assert MAML(mlp([3, 6, 4]).double(), adapted="2.*").adapt(support).keys() == {
        "2.weight",
        "2.bias",
    }
    assert CAVIA(mlp([3, 6, 4]).double()).adapt(support).keys() == {"0.bias"}
    assert CAVIA(mlp([3, 6, 4]).double(), shifted="*.bias").adapt(support).keys() == {
        "0.bias",
        "2.bias",
    }


def test_cavia_is_a_network_that_reads_the_context_beside_the_input():
    """Zintgraf et al. (2019), figure 1 and equation 2: plain gradient steps on numbers that start at zero."""
    support, cavia = (
        draw_support(),
        CAVIA(mlp([3, 6, 4], nn.Tanh), context_dim=2, inner_steps=3).double(),
    )
    wide = mlp([5, 6, 4], nn.Tanh).double()
    with torch.no_grad():
        wide[0].weight.copy_(torch.cat([cavia.base[0].weight, cavia.read.weight], dim=1))
    wide[0].bias, wide[2] = cavia.base[0].bias, cavia.base[2]
    for task in range(3):
        context = torch.zeros(2, dtype=torch.float64, requires_grad=True)

        def outputs(context, x=support.x[task]):
            return wide(torch.cat([x, context.expand(len(x), 2)], dim=1))

        for _ in range(3):
            loss = (outputs(context) - support.y[task]).square().mean()
            context = context - torch.autograd.grad(loss, context)[0]
        close(cavia.condition(support)[task], context)
        close(cavia.predict(cavia.adapt(support), support.x)[task], outputs(context))


def test_a_base_without_bias_is_said():
    with pytest.raises(ConfigError, match="Linear has no bias"):
        CAVIA(nn.Linear(3, 4, bias=False))
    assert (
        CAVIA(nn.Linear(3, 4, bias=False), shifted="weight")
        .double()
        .adapt(draw_support())["weight"]
        .shape[0]
        == 3
    )
