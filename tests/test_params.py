"""The currency between rooms: cut and joined again, selected by name, counted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cases import Tied, layer_norm
from weightloom.errors import ConfigError, ShapeError
from weightloom.networks import ConvNet, mlp
from weightloom.params import ParamSpec, count_tasks, sub

shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5)


@given(shapes, st.integers(0, 4))
def test_cutting_reads_the_numbers_in_order_and_joining_puts_them_back(shapes, tasks):
    spec = ParamSpec({f"p{number}": shape for number, shape in enumerate(shapes)})
    flat = torch.arange(tasks * spec.size).reshape(tasks, spec.size).double()
    params = spec.cut(flat)
    assert {name: tuple(value.shape) for name, value in params.items()} == {
        name: (tasks, *shape) for name, shape in spec.shapes.items()
    }
    for task in range(tasks):
        read = [number for value in params.values() for number in value[task].flatten().tolist()]
        assert read == flat[task].tolist()
    assert torch.equal(spec.join(params), flat)
    assert torch.equal(spec.join(dict(reversed(params.items()))), flat)


def test_everything_is_generated_by_default_and_the_size_is_the_count_of_numbers():
    net = ConvNet(1, 8, 3, channels=4, blocks=2)
    spec = ParamSpec.of(net)
    assert spec.shapes == {
        name: tuple(parameter.shape) for name, parameter in net.named_parameters()
    }
    assert (
        spec.size == sum(parameter.numel() for parameter in net.parameters()) and spec.shared == ()
    )


@pytest.mark.parametrize(
    ("globs", "names"),
    [
        ("*.bias", ["0.bias", "2.bias"]),
        (["2.bias", "0.*"], ["0.weight", "0.bias", "2.bias"]),
        (("2.weight",), ["2.weight"]),
        ("[02].weight", ["0.weight", "2.weight"]),
        (["*.bias", "*"], ["0.weight", "0.bias", "2.weight", "2.bias"]),
    ],
)
def test_globs_select_in_the_order_of_the_base_and_the_rest_is_shared(globs, names):
    net = mlp([3, 4, 2])
    spec = ParamSpec.of(net, globs)
    assert list(spec.shapes) == names
    assert list(spec.shared) == [name for name, _ in net.named_parameters() if name not in names]


@pytest.mark.parametrize("globs", ["heed.*", ["trunk.*", "heed.*"], "heed.weight"])
def test_a_glob_that_matches_nothing_is_named_with_what_is_known(globs):
    net = nn.ModuleDict({"trunk": nn.Linear(2, 3), "head": nn.Linear(3, 2)})
    with pytest.raises(
        ConfigError,
        match=r"`generate='heed\..*'` matches no parameter of ModuleDict.*`head\.weight`",
    ):
        ParamSpec.of(net, globs)
    assert list(ParamSpec.of(net, "head.*").shapes) == ["head.weight", "head.bias"]


def test_tied_parameters_go_by_the_first_name():
    assert list(ParamSpec.of(Tied()).shapes) == ["first.weight", "first.bias", "second.bias"]
    spec = ParamSpec.of(Tied(), "second.*")
    assert list(spec.shapes) == ["first.weight", "second.bias"] and spec.shared == ("first.bias",)


@pytest.mark.parametrize(
    ("generate", "names"),
    [
        (nn.LayerNorm, ["1.weight", "1.bias"]),
        (lambda name, parameter: parameter.ndim > 1, ["0.weight", "3.weight"]),
        ([nn.LayerNorm, "0.bias"], ["0.bias", "1.weight", "1.bias"]),
        (
            (nn.LayerNorm, lambda name, parameter: name == "3.bias"),
            ["1.weight", "1.bias", "3.bias"],
        ),
        (nn.Module, ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]),
    ],
)
def test_a_kind_of_module_a_predicate_and_a_mix_select_too(generate, names):
    assert list(ParamSpec.of(layer_norm(), generate).shapes) == names


def test_a_kind_selects_what_is_inside_a_module_of_it():
    assert list(ParamSpec.of(nn.Sequential(Tied(), nn.Linear(2, 2)), Tied).shapes) == [
        "0.first.weight",
        "0.first.bias",
        "0.second.bias",
    ]


def test_a_kind_or_a_predicate_that_matches_nothing_is_named_with_what_is_known():
    with pytest.raises(
        ConfigError,
        match=r"`generate=Conv2d` matches no parameter of Sequential.*`(Linear|LayerNorm)`",
    ):
        ParamSpec.of(layer_norm(), nn.Conv2d)

    def large(name, parameter):
        return parameter.numel() > 1000

    with pytest.raises(
        ConfigError,
        match=r"`generate=large` matches no parameter.*called with the name and the param",
    ):
        ParamSpec.of(layer_norm(), large)


@pytest.mark.parametrize("shape", [(5, 7), (8,), (1, 5, 8)])
def test_a_flat_tensor_of_another_size_is_refused_and_the_advice_works(shape, unchecked):
    spec = ParamSpec.of(nn.Linear(3, 2))
    with pytest.raises(
        ShapeError, match=r"holds 8 numbers per task. Pass a tensor of shape \(tasks, 8\)"
    ):
        spec.cut(torch.zeros(shape))
    assert spec.cut(torch.zeros(5, 8)).keys() == {"weight", "bias"}


def test_params_of_other_names_cannot_be_joined_and_the_advice_works():
    spec = ParamSpec.of(nn.Linear(3, 2))
    params = {"weight": torch.zeros(5, 2, 3), "extra": torch.zeros(5, 1)}
    with pytest.raises(
        ShapeError, match=r"differ in \['bias', 'extra'\].*exactly \['weight', 'bias'\]"
    ):
        spec.join(params)
    assert spec.join({"weight": torch.zeros(5, 2, 3), "bias": torch.zeros(5, 2)}).shape == (5, 8)


def test_tasks_are_counted_and_a_mismatch_names_both():
    assert count_tasks({}) is None
    assert count_tasks({"weight": torch.zeros(5, 2, 3), "scale": torch.zeros(5)}) == 5
    with pytest.raises(
        ShapeError, match=r"^`params\['a'\]` holds 5 tasks but `params\['c'\]` holds 4\. "
    ):
        count_tasks({"a": torch.zeros(5), "b": torch.zeros(5, 2), "c": torch.zeros(4, 2)})


def test_a_sub_module_is_taken_by_its_whole_name():
    params = {
        "head.0.bias": torch.zeros(2),
        "header.bias": torch.ones(2),
        "head.weight": torch.ones(2),
    }
    assert list(sub(params, "head")) == ["0.bias", "weight"]
    assert sub(params, "head")["weight"] is params["head.weight"]


def test_a_prefix_that_nothing_has_is_named_with_those_there_are():
    params = {"policy.0.bias": torch.zeros(5, 2), "value.0.bias": torch.zeros(5, 2)}
    with pytest.raises(ConfigError, match=r"`prefix='polici'`.*`policy.0`"):
        sub(params, "polici")
