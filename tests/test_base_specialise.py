"""A plain network for one task: equal to its row, and nothing of ours inside."""

import copy
import pickle
import pickletools

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from cases import BASES, BATCH, TASKS, Base, Tied, dropout
from weightloom.base import apply_per_task, specialise
from weightloom.errors import ConfigError
from weightloom.networks import mlp

every_base = pytest.mark.parametrize("base", BASES)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@every_base
def test_a_specialised_network_equals_the_row_of_its_task(base):
    net, params, inputs = base.net(), base.params(), base.x()
    outputs = apply_per_task(net, params, *inputs)
    for task in range(-1, TASKS):
        one = specialise(net, params, task)
        row = tree_map(lambda out, task=task: out[task], outputs)
        close(tree_leaves(one(*(x[task] for x in inputs))), tree_leaves(row))
        assert type(one) is type(net) and one.training == net.training


@every_base
def test_a_specialised_network_is_plain_and_survives_pickle_copy_and_state_dict(base):
    one = specialise(base.net(), base.params(), 1)
    for tensor in [*one.parameters(), *one.buffers()]:
        assert type(tensor) in (nn.Parameter, torch.Tensor) and tensor.grad_fn is None
    written = pickle.dumps(one)
    ours = {
        name for _, name, _ in pickletools.genops(written) if str(name).startswith("weightloom")
    }
    allowed = {
        "weightloom.networks.feedforward",
        "weightloom.networks.keras",
    }  # ours there, the network is the same
    assert ours <= allowed
    inputs = [x[1] for x in base.x()]
    expected = tree_leaves(one(*inputs))
    again = specialise(base.net(), base.params(), 0)
    again.load_state_dict(one.state_dict())
    for copied in (pickle.loads(written), copy.deepcopy(one), again):
        assert all(
            torch.equal(a, b) for a, b in zip(tree_leaves(copied(*inputs)), expected, strict=True)
        )
    # The base takes it too. A recurrent layer of ours adds in another order than torch's, which the
    # network has.
    net = base.net()
    net.load_state_dict(one.state_dict())
    close(tree_leaves(net(*inputs)), expected)


def test_a_specialised_network_shares_no_memory_and_can_be_trained_on():
    net, params = mlp([3, 4, 2]), {"2.bias": torch.randn(5, 2, requires_grad=True)}
    one = specialise(net, params, 3)
    one(torch.randn(6, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in one.parameters())
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(1)
    torch.manual_seed(0)
    fresh = mlp([3, 4, 2])
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), fresh.parameters(), strict=True))
    assert torch.equal(one[2].bias, params["2.bias"][3] + 1)


def test_tied_parameters_stay_tied():
    one = specialise(Tied(), {"first.weight": torch.randn(3, 5, 5)}, 2)
    assert one.first.weight is one.second.weight
    assert len(list(one.parameters())) == len(list(Tied().parameters()))


def test_a_resized_head_says_its_new_size():
    params = {"0.weight": torch.randn(3, 7, 5), "0.bias": torch.randn(3, 7)}
    one = specialise(nn.Sequential(nn.Linear(5, 2)), params, 2)
    assert (one[0].in_features, one[0].out_features) == (5, 7)
    x = torch.randn(3, 4, 5)
    close(one(x[2]), apply_per_task(nn.Sequential(nn.Linear(5, 2)), params, x)[2], 1e-6)


def test_a_task_that_is_not_there_is_refused_and_the_advice_works():
    params = {"bias": torch.randn(3, 2)}
    with pytest.raises(
        ConfigError,
        match=r"`task=3` is out of range. `params` holds 3 tasks. Pass a task from 0 to 2",
    ):
        specialise(nn.Linear(5, 2), params, 3)
    assert torch.equal(specialise(nn.Linear(5, 2), params, 2).bias, params["bias"][2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "base", [Base(lambda: mlp([5, 6, 2])), Base(dropout, train=False)], ids=["mlp", "dropout"]
)
def test_a_specialised_network_can_be_exported(base):
    one, (x,) = specialise(base.net(), base.params(), 1), base.x()
    batch = torch.export.Dim("batch")
    program = torch.export.export(one, (x[1],), dynamic_shapes={"input": {0: batch}})
    close(program.module()(x[1]), one(x[1]))
    longer = torch.cat([x[1], x[2]])
    assert program.module()(longer).shape == (2 * BATCH, 2)
