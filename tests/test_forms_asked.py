"""What a parameter held as factors does with its factors, what it warns of, and what it refuses."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from weightloom.adapt import descend
from weightloom.base import apply_per_task
from weightloom.errors import BuiltWarning, ConfigError
from weightloom.forms import Factored, FiLM, LowRank, RowScale
from weightloom.forms.factored import InUse
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import mlp
from weightloom.params import Params

TASKS, SHAPE = 4, (40, 50)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def factored(form=None, shape=SHAPE, tasks=TASKS):
    form, own = form or LowRank(1), torch.randn(shape).double()
    return Factored(
        form,
        own,
        {n: torch.randn(tasks, *s).double() for n, s in form.factor_shapes(shape).items()},
    )


BY_FACTORS = {
    "list": lambda w: w[[2, 0]],
    "empty list": lambda w: w[[]],
    "range": lambda w: w[range(2)],
    "numbers": lambda w: w[torch.tensor([3, 3, 0])],
    "one number": lambda w: w[torch.tensor(1)],
    "array": lambda w: w[np.array([1, 2])],
    "number of numpy": lambda w: w[np.int64(1)],
    "mask": lambda w: w[torch.tensor([True, False, True, False])],
    "slice and axes": lambda w: w[1:, :, ...],
    "all": lambda w: w[...],
    "no index": lambda w: w[()],
    "index_select": lambda w: torch.index_select(input=w, dim=0, index=torch.tensor([1, 2])),
    "select": lambda w: w.select(0, 1),
    "narrow": lambda w: w.narrow(dim=0, start=1, length=2),
    "chunk": lambda w: torch.cat(w.chunk(2)),
    "chunk from behind": lambda w: torch.chunk(w, 3, dim=-3)[1],
    "split": lambda w: torch.split(w, [1, 3])[1],
    "split by a name": lambda w: w.split(split_size=3)[0],
    "tensor_split": lambda w: w.tensor_split([1, 2])[2],
    "unbind": lambda w: torch.unbind(input=w)[3],
    "iteration": lambda w: [*w][2],
    "repeat_interleave": lambda w: w.repeat_interleave(2, dim=0),
    "cat": lambda w: torch.cat([w, w[:1]], dim=-3),
    "concat": lambda w: torch.concat(tensors=[w, w]),
    "stack": lambda w: torch.stack([w[1], w[0]]),
    "stack from behind": lambda w: torch.stack([*w], dim=-3),
    "clone": lambda w: torch.clone(w, memory_format=torch.contiguous_format),
    "contiguous": lambda w: w.contiguous(),
    "expand": lambda w: w[:1].expand(5, -1, -1),
    "expand to a shape": lambda w: w[:1].expand(size=(5, *SHAPE)),
    "expand_as": lambda w: w[:1].expand_as(w),
    "data": lambda w: w.data,
    "type": lambda w: w.type(torch.float64),
    "to another": lambda w: w.to(torch.ones(1).double()),
    "copy": lambda w: copy.copy(w),
}


@pytest.mark.parametrize("function", BY_FACTORS.values(), ids=BY_FACTORS)
@pytest.mark.parametrize("form", [LowRank(1), RowScale()], ids=repr)
def test_tasks_are_taken_and_joined_by_factors_as_numbers_are(form, function):
    weight = factored(form)
    found = function(weight)
    assert type(found) is Factored
    close(found.dense(), function(weight.dense()))


BY_BUILDING = {
    "an axis of the parameter": lambda w: w[:, 1],
    "another axis in front": lambda w: w[None],
    "a bool": lambda w: w[True],
    "numbers of two axes": lambda w: w[torch.tensor([[0, 1], [2, 3]])],
    "another axis": lambda w: w.index_select(1, torch.tensor([0])),
    "cat along another axis": lambda w: torch.cat([w, w], 1),
    "cat with a tensor": lambda w: torch.cat([w, torch.zeros(1, *SHAPE).double()]),
    "cat into a tensor": lambda w: torch.cat([w, w], out=torch.empty(0).double()),
    "stack of tasks": lambda w: torch.stack([w, w]),
    "expand by an axis": lambda w: w.expand(2, *w.shape),
    "integers": lambda w: w.to(torch.int64),
    "bools": lambda w: w.bool(),
    "arithmetic": lambda w: 2 * w,
    "a product": lambda w: torch.ones(3, 50).double() @ w.mT,
    "equal": lambda w: w == w,
    "where": lambda w: torch.where(w > 0, w, 0.0),
    "array": lambda w: torch.from_numpy(w.numpy().copy()),
    "list": lambda w: torch.tensor(w.tolist()).double(),
    "source of a copy": lambda w: torch.zeros(w.shape).double().copy_(w),
}


@pytest.mark.parametrize("function", BY_BUILDING.values(), ids=BY_BUILDING)
def test_what_is_done_by_building_is_right_and_warns(function):
    weight = factored()
    with pytest.warns(
        BuiltWarning,
        match=r"built Factored\(LowRank\(rank=1\), shape=\(.*MB, where its factors are",
    ):
        found = function(weight)
    assert not isinstance(found, Factored)
    close(found, function(weight.dense()))


def test_a_warning_says_how_much_and_its_advice_does_not_warn():
    weight = factored(tasks=1000)
    with pytest.warns(
        BuiltWarning,
        match=r"`mul` built .*: 16 MB, where its factors are 0\.72 MB\. .*`params\.take\(",
    ):
        weight * 2
    taken = Params(weight=weight).take([3])["weight"].dense()
    close(taken * 2, weight.dense()[3:4] * 2)


def test_one_task_inside_a_run_never_warns_nor_does_what_is_built_where_it_was_asked_for():
    weight = factored()
    close(weight[1] * 2, weight.dense()[1] * 2)
    close(weight[1].in_use() * 2, weight.dense()[1] * 2)
    small = factored(LowRank(2), (4, 5))
    close(small * 2, small.dense() * 2)  # no more than ten times as large


SHAPES_ALONE = [
    lambda w: w.shape,
    lambda w: w.stride(),
    lambda w: w.is_contiguous(),
    lambda w: w.storage_offset(),
    lambda w: w.is_leaf,
    lambda w: w.grad_fn,
    lambda w: w.nbytes,
    lambda w: w.element_size(),
    lambda w: w.get_device(),
    lambda w: w.is_cpu,
    lambda w: w.layout,
    lambda w: torch.zeros_like(w),
    lambda w: torch.full_like(input=w, fill_value=2.0, dtype=torch.float32),
    lambda w: w.new_ones(3),
    lambda w: torch.ones(1, 1, 1).expand_as(w),
    lambda w: torch.ones(2).to(w),
    lambda w: torch.ones(2).type_as(w),
]


@pytest.mark.parametrize("function", SHAPES_ALONE)
def test_what_needs_the_shape_and_the_kind_alone_builds_nothing(function):
    weight = factored()
    found, expected = function(weight), function(weight.dense())
    if isinstance(expected, Tensor):
        assert type(found) is Tensor
        close(found, expected)
    else:
        assert found == expected


def test_what_is_joined_keeps_the_gradient_to_each():
    weight = factored()
    weight.requires_grad_()
    leaves = list(weight.factors.values())
    joined = torch.cat([weight[1:], weight[[0, 0]]])
    found = torch.autograd.grad(joined.dense().square().sum(), leaves)
    dense = weight.dense()
    close(found, torch.autograd.grad(torch.cat([dense[1:], dense[[0, 0]]]).square().sum(), leaves))


def test_own_values_that_get_a_gradient_each_are_not_taken_for_one():
    one = factored()
    other = Factored(one.form, one.own.clone(), one.factors)
    assert isinstance(torch.cat([one, other]), Factored)  # equal, and of no gradient
    other.own.requires_grad_()
    with pytest.warns(BuiltWarning):
        joined = torch.cat([one, other])
    close(torch.autograd.grad(joined.sum(), other.own)[0], torch.full(SHAPE, float(TASKS)).double())


def test_a_copy_is_not_reached_by_later_changes():
    weight = factored()
    before, copied = weight.dense().clone(), weight.clone()
    for tensor in (weight.own, *weight.factors.values()):
        tensor.add_(1)
    close(copied.dense(), before)


REFUSED = {
    "in place": (lambda w: w.mul_(2), r"`mul_` would change.*`mul`"),
    "+=": (lambda w: w.__iadd__(1), "would change"),
    "item": (lambda w: w.__setitem__(0, 0.0), r"`value = value\.dense\(\)`"),
    "copy_": (lambda w: w.copy_(w.dense()), "`copy_` would change"),
    "set_": (lambda w: w.set_(torch.ones(3).double()), r"`set_` was called on.*value\.dense\(\)"),
    "as_subclass of nothing": (lambda w: w.share_memory_(), "`share_memory_` would change"),
    "out": (
        lambda w: torch.add(torch.ones(TASKS, *SHAPE).double(), 1, out=w),
        "as `out`.*without `out`",
    ),
    "outs": (lambda w: torch.max(torch.ones(3, 4), 0, out=(w, w)), "as `out`"),
    "inplace": (lambda w: F.relu(w, inplace=True), "without `inplace`"),
    "init.normal_": (lambda w: nn.init.normal_(w), "`normal_` would change"),
    "init.zeros_": (lambda w: nn.init.zeros_(w), "`zero_` would change"),
    "init.xavier_uniform_": (lambda w: nn.init.xavier_uniform_(w), "`uniform_` would change"),
    "init.kaiming_uniform_": (
        lambda w: nn.init.kaiming_uniform_(w),
        "`kaiming_uniform_` would change",
    ),
    "data": (
        lambda w: setattr(w, "data", torch.ones(2)),
        r"`\.data = …` would change.*value\.factors\[name\]\.data",
    ),
    "grad to": (lambda w: setattr(w, "grad", torch.ones(2)), r"`\.grad = …` would change"),
    "grad": (
        lambda w: w.grad,
        r"`\.grad` was used on.*value\.factors\[name\]\.grad.*tree_leaves\(params\)",
    ),
    "hook": (lambda w: w.register_hook(print), r"`\.register_hook` was used on"),
    "retain_grad": (lambda w: w.retain_grad(), r"`\.retain_grad` was used on"),
    "data_ptr": (lambda w: w.data_ptr(), "`data_ptr` was called on.*keep `dense` alive"),
    "parameter": (
        lambda w: nn.Parameter(w),
        r"`nn\.Parameter` was given.*nn\.Parameter\(value\.dense\(\)\)",
    ),
    "frozen parameter": (
        lambda w: nn.Parameter(w, requires_grad=False),
        r"`nn\.Parameter` was given",
    ),
    "optimiser": (lambda w: torch.optim.SGD([w]).zero_grad(), r"`\.grad` was used on"),
    "autograd.grad": (
        lambda w: torch.autograd.grad(w.own.sum(), [w]),
        "`grad` was asked for.*descend",
    ),
    "autograd.backward": (
        lambda w: torch.autograd.backward(w.own.sum(), inputs=[w]),
        "`backward` was asked for",
    ),
    "backward": (
        lambda w: w.own.sum().backward(inputs=[w]),
        "`backward` was asked for.*tree_flatten",
    ),
}


@pytest.mark.parametrize(("function", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("kind", ["of tasks", "in use"])
def test_what_it_cannot_do_is_refused_with_what_to_type(kind, function, words):
    weight = factored() if kind == "of tasks" else factored()[0].in_use()
    before = weight.dense().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BuiltWarning)
        with pytest.raises(ConfigError, match=words):
            function(weight)
    close(weight.dense(), before)


def test_a_gradient_is_taken_by_the_factors_as_the_message_says():
    weight = factored(LowRank(2), (6, 5))
    leaves, tree = torch.utils._pytree.tree_flatten({"weight": weight})
    leaves = [leaf.requires_grad_() for leaf in leaves]
    loss = torch.utils._pytree.tree_unflatten(leaves, tree)["weight"].dense().square().sum((1, 2))
    steps = torch.autograd.grad(loss.sum(), leaves)
    by_hand = [leaf - 0.1 * step for leaf, step in zip(leaves, steps, strict=True)]
    adapted = descend(
        Params(weight=weight), lambda its: its["weight"].dense().square().sum((1, 2)), 1, 0.1
    )
    close(list(adapted["weight"].factors.values()), by_hand)


def test_numbers_are_read_only_where_they_are_built():
    weight = factored()
    close(weight.as_subclass(Tensor), weight.dense())
    assert format(weight) == repr(weight) == f"{weight!r}"
    assert (
        f"{Factored(RowScale(), torch.ones(1, 1), {'gain': torch.ones(1, 1)})[0].sum():.1f}"
        == "2.0"
    )


@pytest.mark.parametrize("form", [FiLM(), RowScale(), LowRank(1)], ids=repr)
def test_a_value_in_use_is_mapped_over_its_own_axes(form):
    value = factored(form, (3, 4, 4))[1].in_use()
    x = torch.randn(2, 4).double()
    assert type(value) is InUse and value.shape == (3, 4, 4) and value.lead == 0
    found = torch.vmap(lambda w: torch.tanh(x @ w))(value)
    close(found, torch.stack([torch.tanh(x @ w) for w in value.dense()]))
    gradient = torch.func.grad(lambda w: (w**3).sum())(value)
    assert type(gradient) is Tensor
    close(gradient, 3 * value.dense() ** 2)
    close(
        torch.func.jacrev(lambda w: torch.func.grad(lambda its: (its**3).sum())(w).sum((1, 2)))(
            value
        ).sum(0),
        6 * value.dense(),
    )
    curve = torch.func.jacrev(
        torch.func.jacrev(lambda s: torch.func.grad(lambda w: s**2 * w.sum())(value).sum())
    )
    close(curve(x[0, 0]), torch.tensor(2.0 * value.numel()).double())
    assert torch.utils._pytree.tree_flatten(value)[0][0].shape == (3, 4, 4)


class Experts(nn.Module):
    """Small layers side by side, of one parameter."""

    def __init__(self, count=3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, 4, 4).double())

    def forward(self, x):
        return torch.vmap(lambda w: torch.tanh(x @ w))(self.weight).mean(0)


@pytest.mark.parametrize("form", [FiLM(), RowScale(), LowRank(1)], ids=repr)
def test_a_base_that_maps_over_a_parameter_in_use_is_right(form):
    base, x = Experts(), torch.randn(2, 4).double()
    value = factored(form, (3, 4, 4))
    leaves = [leaf.requires_grad_() for leaf in value.factors.values()]
    for task in range(TASKS):
        found = functional_call(base, {"weight": value[task].in_use()}, (x,))
        expected = functional_call(base, {"weight": value.dense()[task]}, (x,))
        close(found, expected)
        pairs = [torch.autograd.grad(its.square().sum(), leaves) for its in (found, expected)]
        close(*pairs)


def test_a_value_in_use_is_answered_by_its_form():
    value, x = factored(LowRank(1)), torch.randn(7, 50).double()
    one = value[2].in_use()
    close(F.linear(x, one), x @ value.dense()[2].T)
    assert type(one.detach()) is type(one.float().double()) is type(copy.deepcopy(one)) is InUse
    assert repr(one) == "InUse(LowRank(rank=1), shape=(40, 50))"


class Whole(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.base = mlp([4, 8, 2])
        self.hyper = MLPHyperNetwork(self.base, condition_dim=5, form=form)
        nn.init.normal_(self.hyper.head.weight, std=0.1)

    def forward(self, condition, x):
        return apply_per_task(self.base, self.hyper(condition), x)


@pytest.mark.parametrize("form", [LowRank(1), FiLM()], ids=repr)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_hypernetwork_and_base_are_exported_together_for_any_number_of_tasks(form, unchecked):
    whole = Whole(form)
    tasks = torch.export.Dim("tasks", min=2, max=100)
    few, many = [(torch.randn(count, 5), torch.randn(count, 4, 4)) for count in (3, 7)]
    fixed = torch.export.export(whole, few)
    close(fixed.module()(*few), whole(*few), 1e-5)
    free = torch.export.export(whole, few, dynamic_shapes=({0: tasks}, {0: tasks}))
    for inputs in (few, many):
        close(free.module()(*inputs), whole(*inputs), 1e-5)
