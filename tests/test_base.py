"""The base network, once per task: against a copy of it per task, and left as it was found."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from cases import BASES, TASKS
from references import run_task_by_task, weighted_sum
from weightloom.base import apply_per_task, apply_shared, specialise
from weightloom.errors import BatchingError, ConfigError

every_base = pytest.mark.parametrize("base", BASES)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def picture(net):
    """Everything of a network that must not change."""
    tensors = {
        n: (id(t), t.clone(), t.grad) for n, t in [*net.named_parameters(), *net.named_buffers()]
    }
    return tensors, {
        name: (module.training, set(module.__dict__)) for name, module in net.named_modules()
    }


def assert_unchanged(before, after):
    assert before[1] == after[1] and before[0].keys() == after[0].keys()
    for (identity, value, grad), (now_identity, now_value, now_grad) in zip(
        before[0].values(), after[0].values(), strict=True
    ):
        assert identity == now_identity and torch.equal(value, now_value) and grad is now_grad


@every_base
@pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
def test_values_and_gradients_equal_those_of_one_copy_of_the_base_per_task(base, engine):
    net, params = base.net(), base.params()
    params = {name: value.requires_grad_() for name, value in params.items()}
    inputs = tuple(x.requires_grad_() if x.is_floating_point() else x for x in base.x())
    outputs = apply_per_task(net, params, *inputs, engine=engine)
    weights = tree_map(torch.randn_like, outputs)
    expected, expected_gradients = run_task_by_task(
        net,
        params,
        inputs,
        lambda out, task: weighted_sum(out, tree_map(lambda w: w[task], weights)),
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
    apply_per_task(
        net, {"bias": torch.randn(5, 2)}, torch.randn(5, 4, 5), engine="vmap", chunk_size=2
    )
    assert len(calls) == 3


def test_a_task_alone_keeps_its_axis():
    assert apply_per_task(
        nn.Linear(5, 2), {"bias": torch.zeros(1, 2)}, torch.randn(1, 4, 5)
    ).shape == (1, 4, 2)


def test_a_generated_head_may_have_more_rows_than_the_base_was_built_with():
    params = {"weight": torch.randn(3, 7, 5), "bias": torch.randn(3, 7)}
    assert apply_per_task(nn.Linear(5, 2), params, torch.randn(3, 4, 5)).shape == (3, 4, 7)


@pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
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


def test_an_unknown_engine_is_answered_with_the_known(unchecked):
    with pytest.raises(ConfigError, match=r"`engine='vmp'` is unknown.*Did you mean `vmap`\?"):
        apply_per_task(
            nn.Linear(3, 2), {"bias": torch.randn(5, 2)}, torch.randn(5, 7, 3), engine="vmp"
        )


@pytest.mark.parametrize("training", [True, False])
def test_a_module_for_all_tasks_equals_a_loop_over_them(training):
    net, x = (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3)).double().train(training),
        torch.randn(3, 4, 2, 5, 5),
    )
    close(apply_shared(net, x.double()), torch.stack([net(one.double()) for one in x]))


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
