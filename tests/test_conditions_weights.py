"""An encoder of other models' weights: order of hidden neurons, sides, and the path by hand."""

import itertools

import pytest
import torch

from weightloom.conditions.weights import (
    STATISTICS,
    WeightEncoder,
    layer_statistics,
    linear_path,
)
from weightloom.errors import ConfigError, ShapeError
from weightloom.networks import mlp
from weightloom.params import Params


def chain(*sides, tasks=3, seed=0):
    """Random chains of linear layers with biases, in float64."""
    torch.manual_seed(seed)
    params = Params()
    for number, (columns, rows) in enumerate(itertools.pairwise(sides)):
        params[f"{2 * number}.weight"] = torch.randn(tasks, rows, columns, dtype=torch.float64)
        params[f"{2 * number}.bias"] = torch.randn(tasks, rows, dtype=torch.float64)
    return params


def shuffled(params, layer, order):
    """The same functions with the neurons between two layers in another order."""
    moved = Params(params)
    for end in ("weight", "bias"):
        moved[f"{layer}.{end}"] = params[f"{layer}.{end}"][:, order]
    moved[f"{layer + 2}.weight"] = params[f"{layer + 2}.weight"][:, :, order]
    return moved


@pytest.mark.parametrize("ends", [None, (6, 4)])
def test_the_order_of_hidden_neurons_changes_nothing(ends):
    sources = chain(6, 9, 7, 4)
    encode = WeightEncoder(5, ends, hidden=16).double()
    moved = shuffled(shuffled(sources, 0, torch.randperm(9)), 2, torch.randperm(7))
    assert not torch.equal(moved["0.weight"], sources["0.weight"])
    torch.testing.assert_close(encode(moved), encode(sources), rtol=1e-9, atol=1e-9)


def test_other_weights_are_another_condition():
    encode = WeightEncoder(5, (6, 4), hidden=16).double()
    assert (encode(chain(6, 9, 4)) - encode(chain(6, 9, 4, seed=1))).abs().min() > 1e-4


def test_the_order_of_inputs_is_read_from_the_path_alone():
    sources = chain(6, 9, 4)
    turned = sources | {"0.weight": sources["0.weight"].flip(2)}
    blind, sighted = WeightEncoder(5, hidden=16).double(), WeightEncoder(5, (6, 4), 16).double()
    torch.testing.assert_close(blind(turned), blind(sources), rtol=1e-9, atol=1e-9)
    assert (sighted(turned) - sighted(sources)).abs().max() > 1e-3


def test_a_model_alone_equals_its_row_among_others():
    sources, encode = chain(6, 9, 4), WeightEncoder(5, (6, 4), hidden=16).double()
    torch.testing.assert_close(encode(sources.take(1))[0], encode(sources)[1])


def test_models_of_any_width_and_depth_are_read_by_one_encoder():
    encode = WeightEncoder(5, (6, 4), hidden=16).double()
    for sides in ((6, 4), (6, 90, 4), (6, 9, 8, 7, 4)):
        assert encode(chain(*sides)).shape == (3, 5)


def test_statistics_are_those_of_a_known_matrix():
    weight = torch.diag(torch.tensor([3.0, 4.0]))[None]  # root mean square √(25 / 4) = 2.5
    (found,), _ = layer_statistics({"weight": weight})
    weights, rows, columns, bias, shares, rest = found[0].split([6, 7, 7, 7, 8, 4])
    units = 3 / 2.5, 4 / 2.5, 0, 0
    moments = [sum(unit**power for unit in units) / 4 for power in (1, 1, 3, 4)]
    assert weights.tolist() == pytest.approx([*moments, 0, 4 / 2.5])
    for norms in (rows, columns):  # 3 and 4 of a norm of √2 · 2.5 for an even matrix
        assert norms[[0, -1]].tolist() == pytest.approx([3 / (2.5 * 2**0.5), 4 / (2.5 * 2**0.5)])
    assert not bias.any()
    assert shares.tolist() == pytest.approx([0.8, 0.6, *[0] * 6])  # 4 and 3 of a norm of 5
    assert rest[:1].exp().item() == pytest.approx(2.5)
    assert len(found[0]) == STATISTICS


def test_a_larger_scale_is_one_number():
    sources = chain(6, 4)
    one, ten = (layer_statistics(sources.map(lambda its, by=by: by * its))[0] for by in (1.0, 10.0))
    differs = (ten - one).abs() > 1e-9
    assert differs.sum((1, 2)).tolist() == [1, 1, 1]
    assert (ten - one)[differs].tolist() == pytest.approx([torch.tensor(10.0).log().item()] * 3)


def test_the_path_is_the_function_without_activations():
    sources, x = chain(6, 9, 7, 4), torch.randn(6, dtype=torch.float64)
    for task in range(3):
        y = x
        for name in ("0", "2", "4"):
            y = sources[f"{name}.weight"][task] @ y
        torch.testing.assert_close(linear_path(sources)[task] @ x, y)


def test_kernels_have_statistics_and_no_path():
    sources = {"0.weight": torch.randn(2, 5, 3, 3, 3), "2.weight": torch.randn(2, 4, 5)}
    assert WeightEncoder(6, hidden=8)(sources).shape == (2, 6)
    with pytest.raises(ConfigError, match=r"`0.weight` is \(5, 3, 3, 3\).*`ends=None`"):
        linear_path(sources)
    with pytest.raises(ConfigError, match=r"`2.weight` is \(4, 5\) after \(9, 6\)"):
        linear_path({"0.weight": torch.ones(1, 9, 6), "2.weight": torch.ones(1, 4, 5)})


def test_a_source_of_other_ends_is_refused_by_name():
    encode = WeightEncoder(5, (6, 4), hidden=16).double()
    with pytest.raises(ShapeError, match=r"reads 8 inputs and knows 4 labels, .* 6 inputs and 4"):
        encode(chain(8, 9, 4))
    with pytest.raises(ShapeError, match=r"knows 3 labels.*`ends=\(6, 3\)`"):
        encode(chain(6, 9, 3))
    assert WeightEncoder(5, (6, 3), 16).double()(chain(6, 9, 3)).shape == (3, 5)  # its advice


def test_parameters_without_a_tasks_axis_are_refused():
    with pytest.raises(ConfigError, match=r"holds no matrix.*`value\[None\]`"):
        WeightEncoder(5)(dict(mlp([6, 4]).named_parameters()))
    with_axis = {name: value[None] for name, value in mlp([6, 4]).named_parameters()}
    assert WeightEncoder(5)(with_axis).shape == (1, 5)
