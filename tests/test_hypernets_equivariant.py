"""The hypernetwork that writes a layer input by input."""

import pytest
import torch

from weightloom.base import apply_per_task
from weightloom.conditions import input_statistics, statistics_of
from weightloom.errors import ConfigError, ShapeError
from weightloom.hypernets import EquivariantHyperNetwork, standardised
from weightloom.hypernets.equivariant import assignment

TASKS, INPUTS, OUTPUTS, WIDTH = 3, 9, 9, 8


def hyper_of(rounds, relations=2, **options):
    torch.manual_seed(0)
    hyper = EquivariantHyperNetwork(
        "0", OUTPUTS, statistics_of(4), relations, width=WIDTH, heads=2, rounds=rounds, **options
    ).double()
    with torch.no_grad():
        for parameter in hyper.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return hyper


def support(inputs=INPUTS):
    torch.manual_seed(1)
    return torch.randn(TASKS, 12, inputs).double().exp(), torch.arange(12).expand(TASKS, -1) % 4


def written(hyper, x, y):
    known = input_statistics(x, y, classes=4)
    return standardised(hyper(known.tokens, known.relations), "0", known.mean, known.scale)


@pytest.mark.parametrize("rounds", [0, 5])
def test_permuted_inputs_permute_the_columns_and_nothing_else(rounds):
    hyper, (x, y) = hyper_of(rounds), support()
    params = written(hyper, x, y)
    for seed in range(100):
        order = torch.randperm(INPUTS, generator=torch.Generator().manual_seed(seed))
        other = written(hyper, x[..., order], y)
        torch.testing.assert_close(
            other["0.weight"], params["0.weight"][..., order], rtol=0, atol=1e-10
        )
        torch.testing.assert_close(other["0.bias"], params["0.bias"], rtol=0, atol=1e-10)


def test_a_permuted_network_says_the_same_of_permuted_inputs():
    hyper, (x, y) = hyper_of(5), support()
    base, order = (
        torch.nn.Sequential(torch.nn.Linear(INPUTS, OUTPUTS)).double(),
        torch.randperm(INPUTS),
    )
    outputs = apply_per_task(base, written(hyper, x, y), x)
    again = apply_per_task(base, written(hyper, x[..., order], y), x[..., order])
    torch.testing.assert_close(again, outputs)


def test_a_positive_gain_and_an_offset_that_all_inputs_share_change_no_output():
    hyper, (x, y) = hyper_of(5), support()
    base = torch.nn.Sequential(torch.nn.Linear(INPUTS, OUTPUTS)).double()
    moved = 7.0 * x - 3.0
    torch.testing.assert_close(
        apply_per_task(base, written(hyper, moved, y), moved),
        apply_per_task(base, written(hyper, x, y), x),
    )


@pytest.mark.parametrize("rounds", [0, 3])
def test_one_hypernetwork_writes_for_any_number_of_inputs(rounds):
    params = written(hyper_of(rounds), *support(inputs=14))
    assert params["0.weight"].shape == (TASKS, OUTPUTS, 14)


@pytest.mark.parametrize("rounds", [0, 5])
def test_at_the_start_the_layer_hardly_looks_at_its_inputs(rounds):
    hyper = EquivariantHyperNetwork("", OUTPUTS, 5, width=WIDTH, heads=2, rounds=rounds)
    params = hyper(torch.randn(TASKS, INPUTS, 5))
    assert params["weight"].abs().max() < (0.05 if rounds else 1e-12)
    assert not params["bias"].any()


def test_shares_sum_to_one_over_outputs_and_alike_over_inputs():
    torch.manual_seed(0)
    scores = 2 * torch.randn(TASKS, 12, 2 * 4).double()
    share = scores.softmax(2)
    assert (assignment(scores, 1).abs().sum(1) <= 1 + 1e-12).all()
    positive = torch.cat([scores[..., :4], torch.full((TASKS, 12, 4), -1e3).double()], dim=2)
    even = assignment(positive, 200)  # nothing negated: these are the shares themselves
    torch.testing.assert_close(even.sum(1), torch.ones(TASKS, 12).double())
    torch.testing.assert_close(
        even.sum(2), torch.full((TASKS, 4), 3.0).double(), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(
        share[..., :4].sum(1), torch.full((TASKS, 4), 3.0).double()
    )  # they were not even before


def test_a_sure_assignment_is_a_signed_permutation_whatever_stood_in_two_places():
    order, sign = torch.randperm(6), torch.tensor([1, -1, 1, 1, -1, -1])
    scores = torch.zeros(1, 6, 12).double()
    for place, (output, plus) in enumerate(zip(order.tolist(), sign.tolist(), strict=True)):
        scores[0, place, output + (0 if plus > 0 else 6)] = 60.0
    expected = torch.zeros(6, 6).double()
    expected[order, torch.arange(6)] = sign.double()
    torch.testing.assert_close(assignment(scores, 5)[0], expected, atol=1e-8, rtol=0)


def test_folding_equals_standardising_beforehand():
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(INPUTS, OUTPUTS)).double()
    params = {
        "0.weight": torch.randn(TASKS, OUTPUTS, INPUTS).double(),
        "0.bias": torch.randn(TASKS, OUTPUTS).double(),
    }
    x, mean, scale = (
        torch.randn(TASKS, 5, INPUTS).double(),
        torch.randn(TASKS, INPUTS).double(),
        torch.rand(TASKS, INPUTS) + 1,
    )
    folded = standardised(params, "0", mean, scale.double())
    beforehand = (x - mean[:, None]) / scale.double()[:, None]
    torch.testing.assert_close(
        apply_per_task(base, folded, x), apply_per_task(base, params, beforehand)
    )


def test_what_does_not_fit_is_refused_and_the_advice_works():
    with pytest.raises(ConfigError, match="multiple of `heads`, as in `width=9`"):
        EquivariantHyperNetwork("0", 2, 5, width=8, heads=3)
    EquivariantHyperNetwork("0", 2, 5, width=9, heads=3)
    with pytest.raises(ConfigError, match="`rounds=-1`"):
        EquivariantHyperNetwork("0", 2, 5, rounds=-1)
    with pytest.raises(ConfigError, match="`outputs=0`"):
        EquivariantHyperNetwork("0", 0, 5)
    hyper = EquivariantHyperNetwork("0", 2, 5, relations=1)
    with pytest.raises(ShapeError, match=r"`relations` are none.*\(3, 1, 7, 7\)"):
        hyper(torch.randn(3, 7, 5))
    with pytest.raises(ShapeError, match="reads \\(tasks, inputs, 5\\)"):
        hyper(torch.randn(3, 7, 4), torch.randn(3, 1, 7, 7))
    hyper(torch.randn(3, 7, 5), torch.randn(3, 1, 7, 7))
