"""The short cut for plain sequences of layers, against the loop; and that it steps aside where it would differ."""

import copy

import pytest
import torch
from torch import nn

from weightloom.base import apply_per_task, engines
from weightloom.base.sequential import BY_NUMBER
from weightloom.forms import Full, LowRank, Template, choose_forms
from weightloom.networks import mlp


@pytest.fixture
def taken(monkeypatch):
    """How often the short cut was taken."""
    calls = []
    run = engines.run_sequential
    monkeypatch.setattr(
        engines, "run_sequential", lambda *arguments: calls.append(1) or run(*arguments)
    )
    return calls


def params_of(net, generate="*", form=None, tasks=3):
    params = {}
    for name, its in choose_forms(net, generate, form).items():
        own = net.get_parameter(name)
        shapes = its.factor_shapes(tuple(own.shape))
        factors = {
            n: torch.randn(tasks, *s, dtype=own.dtype).requires_grad_() for n, s in shapes.items()
        }
        params[name] = its.value(
            own, factors, {n: v.to(own) for n, v in its.shared(tuple(own.shape)).items()}
        )
    return params


@pytest.mark.parametrize("form", [Full(), LowRank(1), Template(2)], ids=repr)
@pytest.mark.parametrize("generate", ["*", "*.bias", "0.*", "2.weight"])
def test_values_and_gradients_equal_those_of_the_loop(form, generate, taken):
    net, x = mlp([5, 6, 6, 2]).double(), torch.randn(3, 4, 5).double().requires_grad_()
    params, weights = params_of(net, generate, form), torch.randn(3, 4, 2).double()
    found = [
        torch.autograd.grad((apply_per_task(net, params, x, engine=engine) * weights).sum(), [x, *net.parameters()],
                            allow_unused=True, materialize_grads=True)
        for engine in ("auto", "loop")
    ]  # fmt: skip
    assert taken
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", BY_NUMBER, ids=lambda kind: kind.__name__)
def test_every_function_between_the_layers_works_number_by_number(kind, taken):
    net, x = (
        nn.Sequential(nn.Linear(5, 6), kind(), nn.Linear(6, 2)).double(),
        torch.randn(3, 4, 5).double(),
    )
    params = params_of(net)
    torch.testing.assert_close(
        apply_per_task(net, params, x),
        apply_per_task(net, params, x, engine="loop"),
        rtol=1e-10,
        atol=1e-10,
    )
    assert taken


def test_tied_layers_stay_tied(taken):
    net, x = (
        nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)).double(),
        torch.randn(3, 4, 5).double(),
    )
    net[2].weight = net[0].weight
    params = params_of(net)
    assert "2.weight" not in params
    torch.testing.assert_close(
        apply_per_task(net, params, x), apply_per_task(net, params, x, engine="loop")
    )
    assert taken


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_is_called_and_what_it_returns_counts(hook, taken):
    net, x = mlp([5, 6, 2]), torch.randn(3, 4, 5)
    params = params_of(net)
    apply_per_task(net, params, x)
    assert taken.pop()
    handle = getattr(net[0], hook)(
        lambda module, args, *output: output[0] * 2 if output else (args[0] * 2,)
    )
    torch.testing.assert_close(
        apply_per_task(net, params, x), apply_per_task(net, params, x, engine="loop")
    )
    assert not taken
    handle.remove()
    apply_per_task(net, params, x)
    assert taken


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(Doubled(5, 2)),
        nn.Sequential(nn.Linear(5, 6), nn.Softmax(dim=-1)),
        nn.Sequential(nn.Sequential(nn.Linear(5, 2))),
        nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6)),
    ],
    ids=["subclass", "softmax", "nested", "norm"],
)
def test_what_is_no_plain_mlp_is_run_as_it_is(net, taken):
    net, x = copy.deepcopy(net), torch.randn(3, 4, 5)
    params = params_of(net)
    torch.testing.assert_close(
        apply_per_task(net, params, x), apply_per_task(net, params, x, engine="loop")
    )
    assert not taken


def test_a_layer_that_was_put_in_place_of_another_is_the_one_that_runs(taken):
    net, x = mlp([5, 6, 2]), torch.randn(3, 4, 5)
    params = params_of(net, "0.*")
    apply_per_task(net, params, x)
    net[1], net[2] = nn.Tanh(), nn.Linear(6, 7)
    torch.testing.assert_close(
        apply_per_task(net, params, x), apply_per_task(net, params, x, engine="loop")
    )


def conv_net(**options):
    return nn.Sequential(
        *(
            nn.Conv2d(2, 4, 3, padding=1, groups=2, **options),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        *(
            nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
            nn.Tanh(),
            nn.AvgPool2d(2, ceil_mode=True),
        ),
        *(nn.Flatten(), nn.Linear(6, 5), nn.ELU(), nn.Linear(5, 2)),
    )


@pytest.mark.parametrize(
    "generate",
    ["*", "*.weight", "0.*", ["0.bias", "4.weight", "1.*"], ["4.*", "8.weight"]],
    ids=str,
)
def test_convolutions_and_what_follows_them_equal_the_loop(generate, taken):
    net, x = conv_net().double(), torch.randn(3, 4, 2, 7, 7).double().requires_grad_()
    params, weights = params_of(net, generate), torch.randn(3, 4, 2).double()
    leaves = [x, *params.values(), *(p for name, p in net.named_parameters() if name not in params)]
    outputs = [apply_per_task(net, params, x, engine=engine) for engine in ("auto", "loop")]
    assert taken
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    found = [torch.autograd.grad((y * weights).sum(), leaves) for y in outputs]
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_a_sequence_may_end_in_space(taken):
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(4)).double()
    x, params = torch.randn(3, 4, 2, 9).double(), params_of(net)
    found = apply_per_task(net, params, x)
    assert taken and found.shape == (3, 4, 3, 4)
    torch.testing.assert_close(
        found, apply_per_task(net, params, x, engine="loop"), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(
    "net",
    [
        conv_net(padding_mode="reflect"),
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(2), nn.Linear(25, 2)),
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).eval(),
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(5, 2)),
    ],
    ids=["padded by reflection", "flattened in part", "batch norm", "linear in space"],
)
def test_other_sequences_are_run_as_they_are(net, taken):
    x, params = torch.randn(3, 4, 2, 7, 7), params_of(net)
    torch.testing.assert_close(
        apply_per_task(net, params, x),
        apply_per_task(net, params, x, engine="loop"),
        rtol=1e-4,
        atol=1e-4,
    )
    assert not taken
