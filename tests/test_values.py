"""Params as values: every operation against the same done on built parameters, and factors kept where that is exact."""

import pytest
import torch
from torch import nn

from cases import FORMS
from weightloom.errors import ConfigError, ShapeError
from weightloom.forms import Factored, LowRank, RowScale, Template
from weightloom.forms.arithmetic import add, average, distance, interpolate
from weightloom.forms.form import KINDS
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import mlp

TASKS = 3
STAYS = {
    "LowRank": True,
    "RowScale": True,
    "FiLM": True,
    "Template": True,
    "Full": False,
    "Chunked": False,
}
"""Whether sums and means are held as factors again; others may do as they like."""
every_form = pytest.mark.parametrize("form", FORMS)


def generated(form, tasks=TASKS):
    """Two sets of one hypernetwork, and it, in a generic state."""
    torch.manual_seed(1)
    hyper = MLPHyperNetwork(mlp([16, 15, 14]), 4, form=form).double()
    with torch.no_grad():
        for parameter in hyper.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    a, b = (hyper(torch.randn(tasks, 4, dtype=torch.float64)) for _ in range(2))
    return hyper, a, b


def dense(params):
    return {
        name: value.dense() if isinstance(value, Factored) else value
        for name, value in params.items()
    }


def assert_equal(found, expected, factored=None):
    assert found.keys() == expected.keys()
    for name, value in dense(found).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
    if factored is not None:
        assert isinstance(found["0.weight"], Factored) == factored


@every_form
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_adding_adds_the_changes_and_counts_the_own_value_once(form, scale):
    hyper, a, b = generated(form)
    expected = {
        n: hyper.base.get_parameter(n)
        + (va - hyper.base.get_parameter(n))
        + scale * (dense(b)[n] - hyper.base.get_parameter(n))
        for n, va in dense(a).items()
    }
    assert_equal(add(a, b, hyper.base, scale), expected, STAYS.get(type(form).__name__))


@every_form
def test_taking_away_what_was_added_gives_the_first_set_back(form):
    hyper, a, b = generated(form)
    assert_equal(add(add(a, b, hyper.base), b, hyper.base, scale=-1.0), dense(a))


@every_form
def test_an_average_is_the_mean_of_built_parameters(form):
    _, a, _ = generated(form)
    assert_equal(
        average(a),
        {n: v.mean(0, keepdim=True) for n, v in dense(a).items()},
        STAYS.get(type(form).__name__),
    )


@every_form
def test_weights_say_how_much_each_task_counts(form):
    _, a, _ = generated(form)
    weights = torch.tensor([[1.0, 1.0, 2.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    shares = weights / torch.tensor([[4.0], [3.0]])
    expected = {n: torch.einsum("gt,t...->g...", shares, v) for n, v in dense(a).items()}
    assert_equal(average(a, weights), expected, STAYS.get(type(form).__name__))
    assert_equal(average(a, weights[0]), {n: v[:1] for n, v in expected.items()})


@every_form
@pytest.mark.parametrize(
    "share", [0.0, 0.3, 1.0, torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)], ids=str
)
def test_a_mixture_is_that_of_built_parameters(form, share):
    _, a, b = generated(form)
    pairs = ((n, va, dense(b)[n]) for n, va in dense(a).items())
    along = {
        n: share.view(-1, *[1] * (va.ndim - 1)) if isinstance(share, torch.Tensor) else share
        for n, va in a.items()
    }
    expected = {n: (1 - along[n]) * va + along[n] * vb for n, va, vb in pairs}
    assert_equal(interpolate(a, b, share), expected, STAYS.get(type(form).__name__))


@every_form
def test_one_task_is_paired_with_all(form):
    hyper, a, b = generated(form)
    one = {name: value[:1] for name, value in b.items()}
    same = {n: v[:1].expand_as(v) for n, v in dense(b).items()}
    assert_equal(interpolate(a, one, 0.25), interpolate(dense(a), same, 0.25))
    assert_equal(interpolate(one, a, 0.25), interpolate(same, dense(a), 0.25))
    assert_equal(add(one, a, hyper.base), add(same, dense(a), hyper.base))
    torch.testing.assert_close(distance(a, one), distance(a, same))


@every_form
def test_the_distance_is_the_norm_of_the_flat_difference(form):
    _, a, b = generated(form)
    flat = [torch.cat([v.flatten(1) for v in dense(params).values()], 1) for params in (a, b)]
    torch.testing.assert_close(distance(a, b), (flat[0] - flat[1]).norm(dim=1))
    torch.testing.assert_close(
        distance(a, b, relative=True), (flat[0] - flat[1]).norm(dim=1) / flat[1].norm(dim=1)
    )
    assert not distance(a, a).any()


def test_halfway_is_as_far_from_both_ends():
    _, a, b = generated(LowRank(2))
    half = interpolate(a, b, 0.5)
    torch.testing.assert_close(distance(a, half), distance(b, half))
    torch.testing.assert_close(2 * distance(a, half), distance(a, b))


def test_the_rank_of_a_sum_is_the_sum_of_ranks_until_it_saves_nothing():
    _, a, b = generated(LowRank(2))
    assert add(a, b, generated(LowRank(2))[0].base)["0.weight"].form == LowRank(4)
    assert average(a)["0.weight"].form == LowRank(6)
    _, many, _ = generated(LowRank(5))  # 3 tasks of rank 5 fill 15 rows
    assert not isinstance(average(many)["0.weight"], Factored)
    assert_equal(average(many), {n: v.mean(0, keepdim=True) for n, v in dense(many).items()})


def test_low_ranks_that_differ_are_added_as_factors_and_other_pairs_built():
    own = torch.randn(6, 7, dtype=torch.float64)

    def held(form):
        shapes = form.factor_shapes((6, 7))
        factors = {n: torch.randn(2, *s, dtype=torch.float64) for n, s in shapes.items()}
        return {"weight": Factored(form, own, factors)}

    two, three, gain = held(LowRank(2)), held(LowRank(3)), held(RowScale())
    both = add(two, three)
    assert both["weight"].form == LowRank(5)
    torch.testing.assert_close(
        both["weight"].dense(), dense(two)["weight"] + dense(three)["weight"] - own
    )
    mixed = add(two, gain)["weight"]
    assert not isinstance(mixed, Factored)
    torch.testing.assert_close(mixed, dense(two)["weight"] + dense(gain)["weight"] - own)


def test_templates_of_another_bank_are_built():
    own = torch.randn(6, dtype=torch.float64)
    a, b = (
        {
            "bias": Factored(
                Template(2),
                own,
                {"mixture": torch.randn(2, 2).double()},
                {"templates": torch.randn(2, 6).double()},
            )
        }
        for _ in range(2)
    )
    mixed = interpolate(a, b, 0.5)["bias"]
    assert not isinstance(mixed, Factored)
    torch.testing.assert_close(mixed, (dense(a)["bias"] + dense(b)["bias"]) / 2)


@every_form
def test_gradients_reach_the_hypernetwork_through_every_operation(form):
    hyper, a, b = generated(form)
    weights = torch.ones(TASKS, dtype=torch.float64, requires_grad=True)
    for params in (add(a, b, hyper.base), average(a, weights), interpolate(a, b, 0.3)):
        loss = sum((value * torch.randn_like(value)).sum() for value in dense(params).values())
        found = torch.autograd.grad(loss, hyper.head.weight, retain_graph=True)
        assert found[0].any() and found[0].isfinite().all()
    (found,) = torch.autograd.grad(distance(a, b).sum(), hyper.head.weight, retain_graph=True)
    assert found.any() and found.isfinite().all()
    (found,) = torch.autograd.grad(distance(a, a).sum(), hyper.head.weight)
    assert not found.any()


def test_a_mean_of_networks_whose_units_changed_places_is_another_network():
    """The docstring's warning, seen: the same function twice, and a mean that is neither."""
    net = mlp([3, 8, 1]).double()
    order = torch.randperm(8)
    a = {name: value.detach()[None] for name, value in net.named_parameters()}
    b = {
        "0.weight": a["0.weight"][:, order],
        "0.bias": a["0.bias"][:, order],
        "2.weight": a["2.weight"][..., order],
    }
    b["2.bias"] = a["2.bias"]
    x = torch.randn(20, 3, dtype=torch.float64)

    def run(params):
        return torch.func.functional_call(
            net, {name: value[0] for name, value in params.items()}, (x,)
        )

    torch.testing.assert_close(run(a), run(b))
    assert (run(interpolate(a, b, 0.5)) - run(a)).abs().max() > 0.1


def test_nothing_in_gives_nothing_out():
    assert add({}, {}) == average({}) == interpolate({}, {}, 0.5) == {}
    with pytest.raises(ShapeError, match="hold no parameter"):
        distance({}, {})


def test_what_does_not_fit_is_refused_and_the_message_says_what_to_do():
    a = {"bias": torch.zeros(3, 2)}
    with pytest.raises(
        ShapeError, match=r"differ in \['weight'\].*Generate both by one hypernetwork"
    ):
        interpolate(a, {"weight": torch.zeros(3, 2), **a}, 0.5)
    with pytest.raises(
        ShapeError, match=r"has shape \(3, 2\) and `b\['bias'\]` \(3, 4\).*for the same base"
    ):
        distance(a, {"bias": torch.zeros(3, 4)})
    b = {"bias": torch.zeros(2, 2)}
    with pytest.raises(ShapeError, match=r"`a` holds 3 tasks and `b` 2.*value\[:1\] for name"):
        add(a, b)
    assert distance(a, {name: value[:1] for name, value in b.items()}).shape == (3,)
    with pytest.raises(ShapeError, match=r"`share` has shape \(2,\) for 3 tasks.*of shape \(3,\)"):
        interpolate(a, a, torch.zeros(2))
    with pytest.raises(ShapeError, match=r"`weights` has shape \(2,\).*each of 3 tasks"):
        average(a, torch.ones(2))
    with pytest.raises(ConfigError, match=r"have the sum 0.*sum above zero"):
        average(a, torch.zeros(3))
    with pytest.raises(
        ConfigError, match=r"own value of 'bias' is not known.*Pass `own=hyper.base`"
    ):
        add(a, a)
    assert torch.equal(add(a, a, own={"bias": torch.ones(2)})["bias"], -torch.ones(3, 2))


@pytest.mark.parametrize("operation", [add, lambda a, b: interpolate(a, b, 0.5)])
def test_factors_on_different_bases_are_refused(operation):
    a, b = (
        MLPHyperNetwork(nn.Linear(6, 5), 4, form=RowScale())(torch.randn(2, 4)) for _ in range(2)
    )
    with pytest.raises(ConfigError, match=r"'weight' has another own value.*`value.dense\(\)`"):
        operation({"weight": a["weight"]}, {"weight": b["weight"]})
    built = {"weight": a["weight"].dense()}, {"weight": b["weight"].dense()}
    assert interpolate(*built, 0.5)["weight"].shape == (2, 5, 6)  # the advice works


class Shifted(RowScale):
    """A form of a user's own: linear in its factors, of another kind than any of the library's."""


class Started(Shifted):
    """Affine, but its factors do not start at zero, so that they cannot be summed."""

    def starts(self, shape):
        return {"gain": torch.zeros(shape[0])}


@pytest.mark.parametrize(("form", "held"), [(Shifted(), True), (Started(), False)])
def test_sums_of_a_form_of_ones_own_are_held_where_it_is_linear(form, held):
    own, (a, b) = torch.randn(4, 3).double(), torch.randn(2, 5, 4).double()
    values = [{"w": Factored(form, own, {"gain": gain})} for gain in (a, b)]
    total = add(*values)["w"]
    torch.testing.assert_close(total.dense() if held else total, own * (1 + a + b)[..., None])
    assert isinstance(total, Factored) == held


def test_only_forms_of_the_library_are_registered():
    assert KINDS["LowRank"] is LowRank and "Shifted" not in KINDS and "Form" not in KINDS
    assert list(RowScale.candidates()) == [RowScale()] and LowRank(4) in LowRank.candidates()
