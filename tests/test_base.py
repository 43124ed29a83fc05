"""The base network, once per task: against a copy of it per task, and left as it was found."""

import copy
import pickle
import pickletools
import re

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from cases import BASES, BATCH, TASKS, Base, Tied, batch_norm, dropout
from references import run_task_by_task, weighted_sum
from weightloom.base import apply_per_task, apply_shared, specialise
from weightloom.errors import BatchingError, ConfigError, ShapeError
from weightloom.networks import mlp

every_base = pytest.mark.parametrize("base", BASES)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def picture(net):
    """Everything of a network that must not change."""
    tensors = {n: (id(t), t.clone(), t.grad) for n, t in [*net.named_parameters(), *net.named_buffers()]}
    return tensors, {name: (module.training, set(module.__dict__)) for name, module in net.named_modules()}


def assert_unchanged(before, after):
    assert before[1] == after[1] and before[0].keys() == after[0].keys()
    for (identity, value, grad), (now_identity, now_value, now_grad) in zip(
        before[0].values(), after[0].values(), strict=True
    ):
        assert identity == now_identity and torch.equal(value, now_value) and grad is now_grad


@every_base
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_values_and_gradients_equal_those_of_one_copy_of_the_base_per_task(base, engine):
    net, params = base.net(), base.params()
    params = {name: value.requires_grad_() for name, value in params.items()}
    inputs = tuple(x.requires_grad_() if x.is_floating_point() else x for x in base.x())
    outputs = apply_per_task(net, params, *inputs, engine=engine)
    weights = tree_map(torch.randn_like, outputs)
    expected, expected_gradients = run_task_by_task(
        net, params, inputs, lambda out, task: weighted_sum(out, tree_map(lambda w: w[task], weights))
    )
    leaves = [
        *params.values(),
        *(own for name, own in net.named_parameters() if name not in params),
        *(x for x in inputs if x.is_floating_point()),
    ]
    found = torch.autograd.grad(weighted_sum(outputs, weights), leaves)
    close(tree_leaves(outputs), tree_leaves(expected))
    close(list(found), expected_gradients)
    assert any(gradient.any() for gradient in found)


@every_base
def test_running_a_base_leaves_it_bit_for_bit_as_it_was(base):
    net = base.net()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = picture(net)
    apply_per_task(net, base.params(), *base.x())
    apply_per_task(net, base.params(), *base.x(), engine="loop")
    specialise(net, base.params())
    assert_unchanged(before, picture(net))


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_an_error_inside_forward_leaves_the_base_as_it_was(engine):
    class Breaks(nn.Linear):
        def forward(self, x):
            super().forward(x)
            raise ZeroDivisionError

    net = Breaks(5, 2)
    before = picture(net)
    with pytest.raises(ZeroDivisionError):
        apply_per_task(net, {"weight": torch.randn(3, 2, 5)}, torch.randn(3, 4, 5), engine=engine)
    assert_unchanged(before, picture(net))
    assert torch.backends.mha.get_fastpath_enabled()


@every_base
def test_with_nothing_generated_every_task_runs_the_base_itself(base):
    net, inputs = base.net(), base.x()
    outputs = apply_per_task(net, {}, *inputs)
    for task in range(TASKS):
        alone = net(*(x[task] for x in inputs))
        close(tree_leaves(tree_map(lambda out, one=task: out[one], outputs)), tree_leaves(alone))


@every_base
@pytest.mark.parametrize("chunk_size", [1, 2, 5])
def test_running_some_tasks_at_a_time_gives_the_same(base, chunk_size):
    net, params, inputs = base.net(), base.params(), base.x()
    in_chunks = apply_per_task(net, params, *inputs, chunk_size=chunk_size)
    close(tree_leaves(in_chunks), tree_leaves(apply_per_task(net, params, *inputs)))


def test_no_more_tasks_run_at_once_than_asked_for():
    calls = []
    net = nn.Linear(5, 2)
    net.register_forward_hook(lambda *_: calls.append(1))
    apply_per_task(net, {"bias": torch.randn(5, 2)}, torch.randn(5, 4, 5), engine="vmap", chunk_size=2)
    assert len(calls) == 3


def test_a_task_alone_keeps_its_axis():
    assert apply_per_task(nn.Linear(5, 2), {"bias": torch.zeros(1, 2)}, torch.randn(1, 4, 5)).shape == (1, 4, 2)


def test_a_generated_head_may_have_more_rows_than_the_base_was_built_with():
    params = {"weight": torch.randn(3, 7, 5), "bias": torch.randn(3, 7)}
    assert apply_per_task(nn.Linear(5, 2), params, torch.randn(3, 4, 5)).shape == (3, 4, 7)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_dropout_in_train_mode_is_drawn_for_each_task_apart_and_again_from_the_same_seed(engine):
    net, params = nn.Sequential(nn.Linear(5, 100), nn.Dropout(0.5)), {"0.bias": torch.ones(2, 100)}
    x = torch.zeros(2, 1, 5)
    outputs = apply_per_task(net, params, x, engine=engine)
    assert not torch.equal(outputs[0], outputs[1])
    assert set(outputs.unique().tolist()) == {0.0, 2.0}
    torch.manual_seed(7)
    first = apply_per_task(net, params, x, engine=engine)
    torch.manual_seed(7)
    assert torch.equal(apply_per_task(net, params, x, engine=engine), first)


def with_group_norm(net):
    net[1] = nn.GroupNorm(2, 6)
    return net


@pytest.mark.parametrize(
    ("advice", "follow"),
    [
        ("nn.GroupNorm", with_group_norm),
        ("track_running_stats=False", lambda net: batch_norm(track_running_stats=False)),
        ("base.eval()", lambda net: net.eval()),
    ],
)
def test_batch_norm_in_train_mode_is_refused_and_each_advice_works(advice, follow):
    net, params, x = batch_norm(), {"0.bias": torch.randn(3, 6)}, torch.randn(3, 4, 5)
    with pytest.raises(BatchingError, match=r"`1` is a `BatchNorm1d` in train mode.*say which is meant") as caught:
        apply_per_task(net, params, x)
    assert advice in str(caught.value)
    assert apply_per_task(follow(net), params, x).isfinite().all()


def test_batch_norm_in_train_mode_runs_in_a_loop_as_the_message_says():
    net, params, x = batch_norm(), {"0.bias": torch.randn(3, 6)}, torch.randn(3, 4, 5)
    with pytest.raises(BatchingError, match=re.escape('pass `engine="loop"`')):
        apply_per_task(net, params, x)
    assert apply_per_task(net, params, x, engine="loop").shape == (3, 4, 2)


def test_instance_norm_with_statistics_in_train_mode_is_refused_too():
    net = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    with pytest.raises(BatchingError, match="`base` is a `InstanceNorm1d` in train mode"):
        apply_per_task(net, {"bias": torch.randn(3, 2)}, torch.randn(3, 4, 2, 6))
    assert apply_per_task(net.eval(), {"bias": torch.randn(3, 2)}, torch.randn(3, 4, 2, 6)).shape == (3, 4, 2, 6)


def test_a_different_number_of_tasks_is_named_and_the_advice_works():
    net, params, x = nn.Linear(3, 2), {"weight": torch.randn(5, 2, 3), "bias": torch.randn(5, 2)}, torch.randn(4, 7, 3)
    with pytest.raises(ShapeError) as caught:
        apply_per_task(net, params, x)
    assert str(caught.value) == (
        "`x` holds 4 tasks but `params['weight']` holds 5. "
        "Each task needs its own parameters and its own inputs, on axis 0. "
        "To give every task the same inputs, pass `x[:1].expand(5, *x.shape[1:])`."
    )
    advice = re.search(r"pass `(.*)`", str(caught.value)).group(1)
    outputs = apply_per_task(net, params, eval(advice, {"x": x}))
    close(outputs, torch.stack([x[0] @ params["weight"][i].T + params["bias"][i] for i in range(5)]), 1e-5)


def test_inputs_that_disagree_among_themselves_are_named():
    x, z = torch.randn(5, 4, 3), torch.randn(4, 4, 3)
    with pytest.raises(ShapeError, match=r"`inputs\[1\]` holds 4 tasks but `inputs\[0\]` holds 5\."):
        apply_per_task(nn.Bilinear(3, 3, 2), {}, x, z)


def test_params_that_disagree_among_themselves_are_named():
    params = {"weight": torch.randn(5, 2, 3), "bias": torch.randn(4, 2)}
    with pytest.raises(ShapeError, match=r"`params\['weight'\]` holds 5 tasks but `params\['bias'\]` holds 4"):
        apply_per_task(nn.Linear(3, 2), params, torch.randn(5, 7, 3))


@pytest.mark.parametrize("run", [lambda net, p: apply_per_task(net, p, torch.randn(5, 7, 3)), specialise])
def test_a_name_that_the_base_lacks_is_answered_with_the_nearest(run):
    with pytest.raises(ConfigError, match=r"`params` names 'wieght', which Linear does not have.*mean `weight`\?"):
        run(nn.Linear(3, 2), {"wieght": torch.randn(5, 2, 3)})


def test_a_parameter_without_its_tasks_axis_is_named_and_the_advice_works():
    net, value, x = nn.Linear(3, 2), torch.randn(2), torch.randn(1, 7, 3)
    with pytest.raises(ShapeError, match=r"`params\['bias'\]` has shape \(2,\).*pass `value\[None\]`"):
        apply_per_task(net, {"bias": value}, x)
    assert apply_per_task(net, {"bias": value[None]}, x).shape == (1, 7, 2)


def test_no_inputs_and_scalar_inputs_are_refused():
    with pytest.raises(ShapeError, match="was given no inputs"):
        apply_per_task(nn.Linear(3, 2), {"bias": torch.randn(5, 2)})
    with pytest.raises(ShapeError, match=r"`x` is a scalar.*`x\[None\]`"):
        apply_per_task(nn.Linear(3, 2), {"bias": torch.randn(5, 2)}, torch.tensor(1.0))


def test_an_unknown_engine_is_answered_with_the_known(unchecked):
    with pytest.raises(ConfigError, match=r"`engine='vmp'` is unknown.*Did you mean `vmap`\?"):
        apply_per_task(nn.Linear(3, 2), {"bias": torch.randn(5, 2)}, torch.randn(5, 7, 3), engine="vmp")


@pytest.mark.parametrize("training", [True, False])
def test_a_module_for_all_tasks_equals_a_loop_over_them(training):
    net, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3)).double().train(training), torch.randn(3, 4, 2, 5, 5)
    close(apply_shared(net, x.double()), torch.stack([net(one.double()) for one in x]))


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
    ours = {name for _, name, _ in pickletools.genops(written) if str(name).startswith("weightloom")}
    assert ours <= {"weightloom.networks", "weightloom.keras"}  # the base is ours there, the network is the same
    inputs = [x[1] for x in base.x()]
    expected = tree_leaves(one(*inputs))
    again = base.net()
    again.load_state_dict(one.state_dict())
    for copied in (pickle.loads(written), copy.deepcopy(one), again):
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(copied(*inputs)), expected, strict=True))


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
    with pytest.raises(ConfigError, match=r"`task=3` is out of range. `params` holds 3 tasks. Pass a task from 0 to 2"):
        specialise(nn.Linear(5, 2), params, 3)
    assert torch.equal(specialise(nn.Linear(5, 2), params, 2).bias, params["bias"][2])


@pytest.mark.slow
@pytest.mark.parametrize("base", [Base(lambda: mlp([5, 6, 2])), Base(dropout, train=False)], ids=["mlp", "dropout"])
def test_a_specialised_network_can_be_exported(base):
    one, (x,) = specialise(base.net(), base.params(), 1), base.x()
    batch = torch.export.Dim("batch")
    program = torch.export.export(one, (x[1],), dynamic_shapes={"input": {0: batch}})
    close(program.module()(x[1]), one(x[1]))
    longer = torch.cat([x[1], x[2]])
    assert program.module()(longer).shape == (2 * BATCH, 2)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(2, 3)

    def forward(self, x):
        return self.cell(x)[0]


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else x


@pytest.mark.parametrize("base", [Recurrent(), Branching()])
def test_what_cannot_be_batched_is_refused_with_advice_that_works(base):
    x = torch.randn(4, 5, 2, 2) if isinstance(base, Recurrent) else torch.randn(4, 5, 2)
    with pytest.raises(BatchingError, match='Pass `engine="loop"`'):
        apply_per_task(base, {}, x, engine="vmap")
    assert apply_per_task(base, {}, x, engine="loop").shape[0] == 4


def test_an_error_of_the_bases_own_is_passed_on_as_it_is():
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        apply_per_task(nn.Linear(3, 2), {}, torch.randn(4, 5, 2))
