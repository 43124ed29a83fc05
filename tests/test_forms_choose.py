"""Which parameter gets which form: by selectors, and by what may be spent."""

import re

import pytest
import torch
from torch import nn

from cases import Tied, conv, layer_norm
from weightloom.base import apply_per_task
from weightloom.errors import ConfigError
from weightloom.forms import Factored, FiLM, Full, LowRank, RowScale, Template, budget, choose_forms
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import mlp

WIDE = mlp([16, 24, 24, 4])


def test_one_form_is_given_to_all_that_it_fits_and_the_rest_is_generated_in_full():
    forms = choose_forms(layer_norm(), form=LowRank(1))
    assert forms == {
        "0.weight": LowRank(1),
        **dict.fromkeys(["0.bias", "1.weight", "1.bias"], Full()),
        "3.weight": LowRank(1),
        "3.bias": Full(),
    }
    assert list(forms) == [name for name, _ in layer_norm().named_parameters()]


def test_the_first_selector_of_a_mapping_that_matches_counts():
    forms = choose_forms(
        layer_norm(), {"3.*": Full(), nn.Linear: FiLM(), lambda name, _: name[0] == "1": Full()}
    )
    assert (
        forms["3.weight"] == Full()
        and forms["0.weight"] == RowScale()
        and forms["0.bias"] == Full()
    )
    assert list(forms) == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert list(choose_forms(layer_norm(), {"3.weight": LowRank(1)})) == ["3.weight"]


def test_a_tied_parameter_has_one_form_by_whichever_name_it_is_selected():
    assert choose_forms(Tied(), {"second.weight": LowRank(2)}) == {"first.weight": LowRank(2)}
    assert choose_forms(Tied(), {"*.weight": LowRank(2)}) == {"first.weight": LowRank(2)}
    with pytest.raises(
        ConfigError, match=r"are one parameter, tied, but were given .*Name `first\.weight` alone"
    ):
        choose_forms(Tied(), {"first.weight": LowRank(2), "second.weight": Full()})


def test_a_form_that_does_not_fit_is_named_with_what_it_needs_and_the_advice_works():
    with pytest.raises(
        ConfigError,
        match=r"LowRank\(rank=2\) does not fit `0\.bias`, which has shape \(6,\).*`Full\(\)`",
    ):
        choose_forms(layer_norm(), {"0.weight": LowRank(2), "0.bias": LowRank(2)})
    assert choose_forms(layer_norm(), {"0.bias": Full(), "0.weight": LowRank(2)})[
        "0.weight"
    ] == LowRank(2)


def test_a_form_beside_a_mapping_and_a_selector_without_a_match_are_refused():
    with pytest.raises(
        ConfigError, match=r"`form=Full\(\)` was given with a mapping.*Leave `form` out"
    ):
        choose_forms(layer_norm(), {"*": Full()}, form=Full())
    with pytest.raises(
        ConfigError, match=r"`generate='0\.wait'` matches no parameter.*`0\.weight`"
    ):
        choose_forms(layer_norm(), {"0.wait": Full()})


def test_what_is_frozen_gets_no_gradient_and_everything_else_does():
    hyper = MLPHyperNetwork(layer_norm(), 4, form=LowRank(1), freeze=["0.weight", nn.LayerNorm])
    frozen = [
        name for name, parameter in hyper.base.named_parameters() if not parameter.requires_grad
    ]
    assert frozen == ["0.weight", "1.weight", "1.bias"]
    apply_per_task(
        hyper.base, hyper(torch.randn(3, 4)), torch.randn(3, 4, 5)
    ).square().sum().backward()
    for name, parameter in hyper.named_parameters():
        assert (parameter.grad is None) == (name.removeprefix("generated.base.") in frozen), name
    with pytest.raises(ConfigError, match=r"`freeze='9\.\*'` matches no parameter"):
        MLPHyperNetwork(layer_norm(), 4, freeze="9.*")


def spent(plan, base, width):
    """Parameters of a hypernetwork that are neither its trunk's nor the base's, counted one by one."""
    hyper = MLPHyperNetwork(base, 3, generate=plan, hidden=(width,))
    not_counted = {id(p) for part in (hyper.trunk, hyper.base) for p in part.parameters()}
    return sum(p.numel() for p in hyper.parameters() if id(p) not in not_counted)


@pytest.mark.parametrize("parameters", [9_000, 12_000, 30_000, 100_000, 10**7])
@pytest.mark.parametrize("base", [WIDE, conv()], ids=["mlp", "conv"])
def test_a_budget_costs_what_it_says_and_no_more_than_it_may(base, parameters):
    width = 16
    plan = budget(base, parameters, width=width)
    assert plan.cost == spent(plan, base, width) <= parameters
    assert set(plan) == {name for name, _ in base.named_parameters()}


def test_more_to_spend_is_never_spent_on_less():
    costs, generated = [], []
    for parameters in range(9_000, 120_000, 3_000):
        plan = budget(WIDE, parameters, width=16)
        costs.append(plan.cost)
        generated.append(sum(numbers for _, numbers, _ in plan.costs.values()))
    assert costs == sorted(costs) and generated == sorted(generated) and costs[0] < costs[-1]
    assert all(form == Full() for form in budget(WIDE, 10**7, width=16).values())


def test_a_budget_that_is_too_small_names_the_smallest_which_works():
    with pytest.raises(
        ConfigError, match=r"`parameters=10` is too small.*or make `width=16` smaller"
    ) as caught:
        budget(WIDE, 10, width=16)
    least = int(re.search(r"Pass ([\d,]+) or more", str(caught.value)).group(1).replace(",", ""))
    assert budget(WIDE, least, width=16).cost == least
    with pytest.raises(ConfigError, match="too small"):
        budget(WIDE, least - 1, width=16)
    assert budget(WIDE, least, width=8).cost <= least


def test_a_plan_prints_as_a_table_that_adds_up():
    plan = budget(WIDE, 30_000, width=16, generate="*.weight")
    head, *rows, total = str(plan).splitlines()
    assert head.split() == ["parameter", "shape", "form", "per", "task", "hypernetwork"]
    assert [row.split()[0] for row in rows] == ["0.weight", "2.weight", "4.weight"]
    assert sum(int(row.split()[-1].replace(",", "")) for row in rows) == plan.cost
    assert total.split() == ["all", "of", "30,000", total.split()[-2], f"{plan.cost:,}"]


def test_a_plan_is_passed_on_as_what_is_generated():
    plan = budget(WIDE, 30_000, width=64)
    params = MLPHyperNetwork(WIDE, 3, generate=plan)(torch.randn(2, 3))
    for name, value in params.items():
        assert not isinstance(value, Factored) or value.form == plan[name]
    assert apply_per_task(WIDE, params, torch.randn(2, 5, 16)).shape == (2, 5, 4)


def test_what_a_kind_of_module_selects_and_the_form_does_not_fit_is_generated_in_full():
    chosen = choose_forms(mlp([8, 8, 8]), {nn.Linear: LowRank(2)})
    assert chosen == {
        "0.weight": LowRank(2),
        "0.bias": Full(),
        "2.weight": LowRank(2),
        "2.bias": Full(),
    }


@pytest.mark.parametrize("selector", ["*", "[0-9].*", nn.Module, lambda name, parameter: True])
def test_what_is_not_named_in_full_is_chosen_as_by_form(selector):
    """The mapping with one selector for everything, and ``form=``, say the same."""
    for form in (LowRank(2), RowScale(), Template(100)):
        assert choose_forms(layer_norm(), {selector: form}) == choose_forms(layer_norm(), form=form)


@pytest.mark.parametrize("nothing", [None, [], {}])
def test_selecting_nothing_is_refused(nothing, unchecked):
    with pytest.raises(
        ConfigError,
        match=rf"`generate={re.escape(repr(nothing))}` selects no parameter.*Pass `generate=",
    ):
        choose_forms(WIDE, nothing)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": LowRank}, "LowRank"),
        ({"form": "low-rank"}, "'low-rank'"),
        ({"generate": {"*": FiLM}}, "FiLM"),
    ],
)
def test_what_is_no_form_is_named(options, said, unchecked):
    with pytest.raises(
        ConfigError, match=rf"`{said}` was given as a form.*Pass one, as in `LowRank\(4\)`"
    ):
        choose_forms(WIDE, **options)
