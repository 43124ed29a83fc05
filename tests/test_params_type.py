"""Params: a dict and a tree, taken apart and put together along the tasks axis without building what is factors."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map, tree_structure, tree_unflatten

from cases import FORMS, TASKS
from weightloom.errors import ConfigError, ShapeError
from weightloom.forms import Factored, FiLM, Form, Full, LowRank, RowScale, Template
from weightloom.forms.arithmetic import add, squared_norm
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import mlp
from weightloom.params import Params, ParamSpec, sub


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def dense(params):
    return {
        name: value.dense() if isinstance(value, Factored) else value
        for name, value in params.items()
    }


def generated(form, tasks=TASKS, net=None):
    """Params of a hypernetwork that is not at its start, in float64."""
    hyper = MLPHyperNetwork(net or mlp([5, 6, 4]), condition_dim=3, form=form).double()
    for parameter in hyper.parameters():
        nn.init.normal_(parameter, std=0.3)
    return hyper(torch.randn(tasks, 3).double()), hyper


class Unanswered(Form):
    """A form that answers nothing."""

    needs = "anything"

    def fit(self, shape, owner):
        return self

    def factor_shapes(self, shape):
        return {"level": ()}

    def dense(self, own, parts):
        return own * parts["level"][(..., *[None] * own.ndim)]


every_form = pytest.mark.parametrize("form", [*FORMS, Unanswered()], ids=repr)


def test_it_is_a_mapping_and_what_is_made_of_two_is_one_too():
    params, _ = generated(LowRank(2))
    assert isinstance(params, dict) and {
        **params,
        "more": params["0.bias"],
    }.keys() - params.keys() == {"more"}
    for joined in (params | {"more": params["0.bias"]}, {"more": params["0.bias"]} | params):
        assert type(joined) is Params and joined.keys() == params.keys() | {"more"}
    assert type(params.copy()) is Params and params.copy() is not params
    assert params.tasks == TASKS and Params().tasks is None


def test_what_the_library_gives_is_of_the_type():
    params, hyper = generated(LowRank(2))
    given = (
        params,
        hyper.spec.cut(torch.zeros(2, hyper.spec.size)),
        sub(params, "0"),
        add(params, params, own=hyper.base),
    )
    assert all(type(its) is Params for its in given)


def test_a_tree_keeps_names_and_their_order_also_of_leaves_that_are_no_tensors():
    params = Params(b=torch.ones(2), a=torch.zeros(2))
    leaves, structure = tree_flatten(params)
    assert [leaf.sum() for leaf in leaves] == [2, 0]
    again = tree_unflatten(["first", "second"], structure)
    assert type(again) is Params and list(again.items()) == [("b", "first"), ("a", "second")]
    assert type(torch.func.grad(lambda its: its["b"].sum())(params)) is Params
    assert type(torch.vmap(lambda its: its)(params)) is Params


def test_trees_of_other_own_values_or_templates_are_not_mixed_in_silence():
    (params, hyper), (other, _) = generated(Template(2)), generated(Template(2))
    assert tree_structure(params) == tree_structure(hyper(torch.randn(7, 3).double()))
    with pytest.raises(ValueError, match="mismatch"):
        tree_map(torch.add, params, other)
    weight = params["0.weight"]
    same_own = Factored(
        weight.form, weight.own, weight.factors, {n: v.clone() for n, v in weight.shared.items()}
    )
    with pytest.raises(ValueError, match="mismatch"):
        tree_map(torch.add, weight, same_own)
    with pytest.raises(ValueError, match="mismatch"):
        tree_map(
            torch.add, weight, Factored(OtherTemplate(2), weight.own, weight.factors, weight.shared)
        )
    close(
        tree_map(torch.add, params, params)["0.weight"].factors["mixture"],
        2 * weight.factors["mixture"],
    )


class OtherTemplate(Template):
    """Another form with the same factors."""


@pytest.mark.parametrize(
    "index",
    [
        *([2, 0], [-1], [], [True, False, True], range(1, 3), slice(1, None), slice(None, None, 2)),
        *(
            torch.tensor([1, 1, 0]),
            torch.tensor([False, True, True]),
            torch.tensor([2], dtype=torch.int32),
        ),
    ],
    ids=repr,
)
@every_form
def test_tasks_are_taken_as_from_tensors_and_factors_stay(form, index):
    params, _ = generated(form)
    taken = params.take(index)
    assert type(taken) is Params and {n: type(v) for n, v in taken.items()} == {
        n: type(v) for n, v in params.items()
    }
    rows = (
        list(range(TASKS))[index] if isinstance(index, slice) else torch.as_tensor(index).tolist()
    )
    rows = (
        [task for task, its in enumerate(rows) if its]
        if rows and isinstance(rows[0], bool)
        else rows
    )
    for name, value in dense(params).items():
        close(dense(taken)[name], torch.stack([value[row] for row in rows]) if rows else value[:0])


@pytest.mark.parametrize("number", [0, -1, 2, torch.tensor(1)])
def test_one_task_keeps_its_axis(number):
    params, _ = generated(LowRank(2))
    taken = params.take(number)
    assert taken.tasks == 1
    close(taken["0.weight"].dense()[0], params["0.weight"].dense()[int(number)])


def test_gradients_reach_what_was_taken_from():
    params, hyper = generated(LowRank(2))
    loss = sum(value.square().sum() for value in dense(params.take([1, 1])).values())
    truth = sum(2 * value[1].square().sum() for value in dense(params).values())
    weight = [hyper.head.weight]
    close(*(torch.autograd.grad(its, weight, retain_graph=True) for its in (loss, truth)))


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        (3, ShapeError, r"asks for task 3 of 3\. .*from -3 to 2"),
        ([0, -4], ShapeError, "asks for task -4 of 3"),
        (torch.tensor([5]), ShapeError, "asks for task 5"),
        ([True, False], ShapeError, r"bools of shape \(2,\) for 3 tasks.*Pass 3"),
        (torch.ones(2), ConfigError, r"a tensor of shape \(2,\), torch.float32.*Pass task numbers"),
        (torch.zeros(1, 1).long(), ConfigError, "Pass task numbers"),
        ("first", ConfigError, "`index` is 'first'"),
        (True, ConfigError, "`index` is True"),
        (1.5, ConfigError, r"`index` is 1\.5"),
        (None, ConfigError, "`index` is None"),
    ],
)
def test_tasks_that_are_not_there_are_refused(index, error, words, unchecked):
    with pytest.raises(error, match=words):
        generated(LowRank(2))[0].take(index)


@every_form
def test_sets_are_put_one_behind_the_other_as_tensors_are(form):
    params, hyper = generated(form)
    more = hyper(torch.randn(2, 3).double())
    joined = Params.cat([params, more, params.take(0)])
    assert joined.tasks == TASKS + 3 and {n: type(v) for n, v in joined.items()} == {
        n: type(v) for n, v in params.items()
    }
    for name, value in dense(joined).items():
        close(value, torch.cat([dense(params)[name], dense(more)[name], dense(params)[name][:1]]))


@every_form
def test_sets_of_one_task_are_stacked_as_tensors_are(form):
    params, _ = generated(form)
    ones = [{name: value[task] for name, value in params.items()} for task in (2, 0)]
    stacked = Params.stack(ones)
    assert stacked.tasks == 2 and {n: type(v) for n, v in stacked.items()} == {
        n: type(v) for n, v in params.items()
    }
    for name, value in dense(stacked).items():
        close(value, dense(params)[name][[2, 0]])


def test_sets_of_other_hypernetworks_are_built_and_right():
    (params, _), (other, _) = generated(LowRank(2)), generated(LowRank(2))
    joined = Params.cat([params, other])
    close(joined["0.weight"], torch.cat([params["0.weight"].dense(), other["0.weight"].dense()]))


def test_sets_that_cannot_be_joined_are_refused_and_the_advice_works():
    params, _ = generated(LowRank(2))
    with pytest.raises(ShapeError, match=r"Sets 0 and 1 differ in \['2.bias'\]"):
        Params.cat([params, {name: value for name, value in params.items() if name != "2.bias"}])
    for join in (Params.cat, Params.stack):
        with pytest.raises(ShapeError, match="No set of parameters"):
            join([])
    with pytest.raises(ShapeError, match=r"'0.weight' is held as factors of 3 tasks.*Params\.cat"):
        Params.stack([params, params])
    assert Params.cat([params, params]).tasks == 6


def test_a_single_number_is_no_parameter_per_task():
    with pytest.raises(ShapeError, match=r"`params\['scale'\]` is a single number.*shape \(1,\)"):
        Params(scale=torch.ones(())).take(0)


@every_form
def test_it_is_moved_copied_and_taken_off_the_graph(form):
    params, hyper = generated(form)
    before = {name: value.clone() for name, value in dense(params).items()}
    moved, copied, off = params.to(torch.float32), params.clone(), params.detach()
    assert {type(its) for its in (moved, copied, off)} == {Params}
    for name in params:
        assert {type(its[name]) for its in (moved, copied, off)} == {type(params[name])}
        close(dense(moved)[name], before[name].float(), 1e-5)
        assert not off[name].requires_grad and copied[name].requires_grad
    with torch.no_grad():
        for parameter in hyper.parameters():
            parameter.add_(1)
    for name in params:
        close(dense(copied)[name], before[name])


def test_a_function_is_applied_to_tensors_and_factors():
    params, _ = generated(LowRank(2))
    twice = params.map(lambda tensor: 2 * tensor)
    assert type(twice) is Params
    close(twice["0.bias"], 2 * params["0.bias"])
    weight = params["0.weight"]
    close(twice["0.weight"].dense(), weight.own + 4 * (weight.dense() - weight.own))


@every_form
def test_squares_equal_those_of_the_parameters_built_and_so_do_their_gradients(form):
    net = nn.Sequential(
        nn.Conv1d(3, 6, 3), nn.ConvTranspose1d(6, 4, 3), nn.Embedding(7, 5), nn.Linear(5, 4)
    )
    params, hyper = generated(form, net=net)
    by_name = {name: value.flatten(1).square().sum(1) for name, value in dense(params).items()}
    for name, value in params.squared_norm(by="name").items():
        close(value, by_name[name])
    found, truth = params.squared_norm(), sum(by_name.values())
    close(found, truth)
    close(squared_norm(dict(params)), truth)
    weights = torch.randn(TASKS).double()
    leaves = list(hyper.parameters())
    pairs = [
        torch.autograd.grad(its @ weights, leaves, allow_unused=True, retain_graph=True)
        for its in (found, truth)
    ]
    for ours, its in zip(*pairs, strict=True):
        assert (ours is None) == (its is None)
        if its is not None:
            close(ours, its)


def test_squares_of_one_task_without_its_axis_and_of_nothing():
    params, _ = generated(LowRank(2))
    for value in (
        params["0.weight"],
        generated(Unanswered())[0]["0.weight"],
        generated(FiLM())[0]["0.weight"],
    ):
        close(value[1].squared_norm(), value.dense()[1].square().sum())
    with pytest.raises(ShapeError, match="holds no parameter"):
        Params().squared_norm()


def test_squares_of_a_parameter_that_is_almost_zero_are_not_negative():
    up, down = torch.randn(20, 8, 2), torch.randn(20, 2, 8)
    for task in range(20):
        own = -(up[task] @ down[task])
        value = Factored(
            LowRank(2), own, {"up": up[task : task + 1], "down": down[task : task + 1]}
        )
        assert value.squared_norm().item() >= 0


def test_squares_by_something_else_are_refused(unchecked):
    with pytest.raises(ConfigError, match="`by='layer'` is unknown"):
        Params(a=torch.ones(1, 2)).squared_norm(by="layer")


def test_a_sum_is_one_of_changes():
    params, hyper = generated(RowScale(), net=nn.Linear(4, 3, bias=False))
    both = params + params.take(0)
    assert type(both) is Params and isinstance(both["weight"], Factored)
    built, own = params["weight"].dense(), hyper.base.weight
    close(both["weight"].dense(), built + built[:1] - own)
    with pytest.raises(ConfigError, match="is not known: it is held as a plain tensor"):
        Params({"0.bias": torch.zeros(2, 3)}) + {"0.bias": torch.zeros(2, 3)}
    with pytest.raises(TypeError):
        params + 1


def test_a_sub_module_is_taken():
    params, _ = generated(LowRank(2))
    assert (
        list(params.sub("2")) == ["weight", "bias"]
        and params.sub("2")["weight"] is params["2.weight"]
    )


@every_form
def test_it_survives_pickle_copies_and_a_file_of_torch(form):
    params = generated(form)[0].detach()
    again = [copy.copy(params), copy.deepcopy(params)]
    if not isinstance(form, Unanswered):
        file = io.BytesIO()
        torch.save(params, file)
        file.seek(0)
        again += [pickle.loads(pickle.dumps(params)), torch.load(file)]  # of weights only
    for its in again:
        assert type(its) is Params
        for name, value in dense(params).items():
            close(dense(its)[name], value)


def test_a_thousand_tasks_are_taken_without_building_them():
    tasks = 1000
    factors = {"up": torch.zeros(tasks, 384, 1), "down": torch.zeros(tasks, 1, 1536)}
    params = Params(weight=Factored(LowRank(1), torch.zeros(384, 1536), factors))
    whole = tasks * 384 * 1536 * 4
    steps = (
        lambda: params.take(torch.arange(tasks)),
        lambda: params.take([True] * tasks),
        lambda: Params.cat([params, params]),
        lambda: params.clone(),
        lambda: params.squared_norm(),
        lambda: Params.stack([{"weight": row} for row in params["weight"].unbind()]),
    )
    for step in steps:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profiled:
            step()
        spent = sum(max(0, event.self_cpu_memory_usage) for event in profiled.events())
        assert spent < whole / 50  # 2.4 GB would be


def test_full_values_are_plain_tensors():
    params, _ = generated(Full())
    assert not any(isinstance(value, Factored) for value in params.values())
    assert ParamSpec({"a": (2,)}).cut(torch.zeros(3, 2)).tasks == 3
