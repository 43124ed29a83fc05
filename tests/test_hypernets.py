"""What every hypernetwork promises, and what each is at step 0."""

import copy
import re

import pytest
import torch
from torch import nn

from cases import HYPERNETWORKS, TASKS, Tied, conv, labelled, public_hypernetworks, vectors
from references import least_squares, squared_distances
from weightloom.base import apply_per_task
from weightloom.conditions import class_statistics
from weightloom.errors import ConfigError, ShapeError
from weightloom.forms import FiLM, Full
from weightloom.forms.factored import built
from weightloom.hypernets import HeadHyperNetwork, MLPHyperNetwork
from weightloom.hypernets.head import prototype_head, ridge_head
from weightloom.networks import mlp
from weightloom.params import ParamSpec, sub

every_hyper = pytest.mark.parametrize("hyper", HYPERNETWORKS)


def test_every_public_hypernetwork_is_in_the_bank():
    assert {type(case.values[0].hyper()) for case in HYPERNETWORKS} >= {*public_hypernetworks()}
    assert MLPHyperNetwork in public_hypernetworks()


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(built(actual), built(expected), rtol=tolerance, atol=tolerance)


def generic_loss(params):
    return sum((built(value) * torch.randn_like(value)).sum() for value in params.values())


def trained_by_it(network):
    """What a loss on what is generated trains: neither what the base shares, nor what is another base's."""
    others = list(getattr(network, "architectures", []))[1:]
    of_others = {parameter for other in others for parameter in other.parameters()}
    shared = (
        {network.base.get_parameter(name) for name in network.spec.shared}
        if hasattr(network, "spec")
        else set()
    )
    return [p for p in network.parameters() if p.requires_grad and p not in shared | of_others]


@every_hyper
def test_a_task_alone_equals_its_row_in_a_batch(hyper):
    network, condition = hyper.moved(), hyper.condition(TASKS)
    params = network(*condition)
    for task in range(TASKS):
        alone = network(*(x[task : task + 1] for x in condition))
        assert alone.keys() == params.keys()
        for name, value in params.items():
            close(alone[name], value[task : task + 1])


@every_hyper
def test_tasks_do_not_leak_into_each_other_and_each_reads_its_own_condition(hyper):
    network, condition = hyper.moved(), hyper.condition(TASKS)
    leaves = [x.requires_grad_() for x in condition if x.is_floating_point()]
    for task in range(TASKS):
        row = {name: value[task] for name, value in network(*condition).items()}
        gradients = torch.autograd.grad(generic_loss(row), leaves)
        for gradient in gradients:
            assert gradient[task].any()
            assert not gradient[[other for other in range(TASKS) if other != task]].any()


@every_hyper
def test_every_own_parameter_gets_a_gradient(hyper):
    network, condition = hyper.moved(), hyper.condition(TASKS)
    gradients = torch.autograd.grad(generic_loss(network(*condition)), trained_by_it(network))
    assert all(gradient.any() and gradient.isfinite().all() for gradient in gradients)


@every_hyper
def test_at_the_first_step_gradients_are_finite_and_at_the_second_every_own_parameter_gets_one(
    hyper,
):
    """A layer that starts at zero hides what is before it from the first step, and from no other."""
    network = hyper.hyper()
    for _ in range(2):
        own = trained_by_it(network)
        gradients = torch.autograd.grad(generic_loss(network(*hyper.condition(TASKS))), own)
        assert all(gradient.isfinite().all() for gradient in gradients)
        with torch.no_grad():
            for parameter, gradient in zip(own, gradients, strict=True):
                parameter.sub_(0.01 * gradient)
    assert all(gradient.any() for gradient in gradients)


@every_hyper
def test_a_state_dict_and_a_copy_give_the_same_parameters(hyper):
    network, condition = hyper.moved(), hyper.condition(TASKS)
    params = network(*condition)
    fresh = hyper.hyper()
    fresh.load_state_dict(network.state_dict())
    copied = copy.deepcopy(network)
    for other in (fresh, copied):
        assert all(
            torch.equal(built(other(*condition)[name]), built(value))
            for name, value in params.items()
        )
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    assert all(
        torch.equal(built(network(*condition)[name]), built(value))
        for name, value in params.items()
    )


@every_hyper
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_are_of_the_dtype_of_the_condition(hyper, dtype):
    def cast(x, dtype):
        return x.to(dtype) if x.is_floating_point() else x

    network, condition = hyper.moved().to(dtype), [cast(x, dtype) for x in hyper.condition(TASKS)]
    in_float64 = hyper.moved()(*(cast(x, torch.float64) for x in condition))
    for name, value in network(*condition).items():
        assert value.dtype == dtype
        torch.testing.assert_close(
            built(value), built(in_float64[name].to(dtype)), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(
    "build", [lambda: mlp([5, 6, 2]), conv, Tied, lambda: nn.Linear(5, 2, bias=False)]
)
@pytest.mark.parametrize("generate", ["*", "*weight"])
def test_at_step_0_every_task_gets_the_base_exactly(build, generate):
    base = build()
    hyper = MLPHyperNetwork(base, condition_dim=4, generate=generate)
    params = hyper(100 * torch.randn(TASKS, 4))
    assert params.keys() == ParamSpec.of(base, generate).shapes.keys()
    for name, value in params.items():
        assert torch.equal(value, base.get_parameter(name).expand(TASKS, *[-1] * (value.ndim - 1)))


@pytest.mark.parametrize("generate", ["*", "*.bias"])
def test_the_parameters_of_the_base_are_in_the_hypernetwork_once(generate):
    base = Tied()
    hyper = MLPHyperNetwork(base, condition_dim=4, generate=generate)
    own = [id(parameter) for parameter in hyper.parameters()]
    assert len(own) == len(set(own)) and set(own) >= {
        id(parameter) for parameter in base.parameters()
    }
    assert copy.deepcopy(hyper).base is not base


def test_a_linear_hypernetwork_adds_a_matrix_times_the_condition():
    base = nn.Linear(3, 2).double()
    hyper, condition = MLPHyperNetwork(base, condition_dim=4, hidden=()).double(), vectors(TASKS)[0]
    nn.init.normal_(hyper.head.weight)
    params = hyper(condition)
    for task in range(TASKS):
        products = (hyper.head.weight * condition[task]).tolist()
        change = torch.tensor([sum(row) for row in products], dtype=torch.float64)
        close(params["weight"][task], base.weight + change[:6].reshape(2, 3))
        close(params["bias"][task], base.bias + change[6:])


def test_hidden_widths_are_those_asked_for():
    hyper = MLPHyperNetwork(nn.Linear(3, 2), condition_dim=4, hidden=(7, 9))
    layers = [layer for layer in hyper.trunk if isinstance(layer, nn.Linear)] + [hyper.head]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(4, 7), (7, 9), (9, 8)]


def test_a_generated_network_can_be_trained_through():
    base = mlp([2, 6, 1])
    hyper = MLPHyperNetwork(base, condition_dim=4, generate="2.*")
    outputs = apply_per_task(base, hyper(torch.randn(TASKS, 4)), torch.randn(TASKS, 5, 2))
    outputs.square().mean().backward()
    assert (
        all(parameter.grad is not None for parameter in hyper.base.parameters())
        and hyper.head.weight.grad.any()
    )


def test_a_glob_that_matches_nothing_is_refused_when_it_is_built():
    with pytest.raises(ConfigError, match=r"`generate='\*\.scale'` matches no parameter"):
        MLPHyperNetwork(mlp([2, 3, 1]), condition_dim=4, generate="*.scale")


def test_a_condition_of_another_width_is_refused_and_both_advices_work(unchecked):
    base, condition = nn.Linear(3, 2), torch.randn(5, 7)
    with pytest.raises(
        ShapeError, match=r"has shape \(5, 7\)\. This hypernetwork reads \(tasks, 4\)\. Build"
    ) as caught:
        MLPHyperNetwork(base, condition_dim=4)(condition)
    built, encoded = (
        int(number) for number in re.findall(r"`condition_dim=(\d)`", str(caught.value))
    )
    assert MLPHyperNetwork(base, condition_dim=built)(condition)["bias"].shape == (5, 2)
    assert MLPHyperNetwork(base, condition_dim=4)(torch.randn(5, encoded))["bias"].shape == (5, 2)


def test_a_condition_without_its_tasks_axis_is_refused_and_the_advice_works(unchecked):
    hyper, condition = MLPHyperNetwork(nn.Linear(3, 2), condition_dim=4), torch.randn(4)
    with pytest.raises(ShapeError, match=r"Pass `condition\[None\]` for one task"):
        hyper(condition)
    assert hyper(condition[None])["bias"].shape == (1, 2)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_a_condition_of_other_axes_is_told_what_to_pass(shape, unchecked):
    with pytest.raises(ShapeError, match=r"Pass 4 numbers for each of \(tasks\)"):
        MLPHyperNetwork(nn.Linear(3, 2), condition_dim=4)(torch.zeros(shape))


def test_a_head_of_class_means_decides_by_squared_distance():
    """Scores differ from -|f - c|² only by what is the same for all classes."""
    support, query, labels = (
        torch.randn(12, 5).double(),
        torch.randn(6, 5).double(),
        torch.arange(12) % 4,
    )
    weight, bias = prototype_head(class_statistics(support[None], labels[None]).mean)
    distances = squared_distances(support, labels.tolist(), query, ways=4)
    close((query @ weight[0].T + bias[0]).softmax(1), (-distances).softmax(1))


@pytest.mark.parametrize("features", [3, 30])
def test_a_ridge_head_fits_labels_as_the_normal_equations_do(features):
    x, labels, there = labelled(TASKS, features=features)
    ridge = torch.tensor([1e-3, 0.5, 20.0], dtype=torch.float64)
    weight, bias, _ = ridge_head(x, labels, there, 3, ridge)
    for task in range(TASKS):
        kept = there[task]
        expected = least_squares(x[task, kept], labels[task, kept].tolist(), 3, ridge[task].item())
        close(weight[task], expected[0], 1e-9)
        close(bias[task], expected[1], 1e-9)


@pytest.mark.parametrize(("shots", "share"), [(1, 0.0041), (5, 0.711)])
def test_at_step_0_the_head_is_a_mixture_that_depends_on_the_shots_alone(shots, share):
    x, labels, _ = labelled(TASKS, shots=shots)
    params = HeadHyperNetwork().double()(x, labels)
    for task in range(TASKS):
        weight, bias = prototype_head(
            class_statistics(x[task : task + 1], labels[task : task + 1]).mean
        )
        ridge = least_squares(x[task], labels[task].tolist(), 3, 0.5)
        mixed = [
            (1 - share) / 6 * of_means[0] + 10 * share * of_ridge
            for of_means, of_ridge in zip((weight, bias), ridge, strict=True)
        ]
        factor = params["head.weight"][task, 0, 0] / mixed[0][0, 0]  # the task's temperature
        assert 0.09 < factor < 11 and (shots > 1 or abs(factor - 1) < 1e-2)
        close(params["head.weight"][task], factor * mixed[0], 1e-2)
        close(params["head.bias"][task], factor * mixed[1], 1e-2)


def test_classes_by_another_number_get_their_rows_there_and_points_have_no_order():
    hyper, (x, labels, there) = HYPERNETWORKS[-1].values[0].moved(), labelled(TASKS)
    renamed, order = torch.tensor([2, 0, 1]), torch.randperm(12)
    params = hyper(x, labels, there)
    other = hyper(x[:, order], renamed[labels[:, order]], there[:, order])
    for name, value in params.items():
        close(other[name][:, renamed], value, 1e-9)


def test_features_in_another_order_get_their_columns_in_that_order():
    hyper, (x, labels, there), order = (
        HYPERNETWORKS[-1].values[0].moved(),
        labelled(TASKS),
        torch.randperm(6),
    )
    params, other = hyper(x, labels, there), hyper(x[:, :, order], labels, there)
    close(other["head.weight"], params["head.weight"][:, :, order], 1e-9)
    close(other["head.bias"], params["head.bias"], 1e-9)


def test_masked_points_count_as_little_as_points_that_are_not_there():
    hyper, (x, labels, there) = HYPERNETWORKS[-1].values[0].moved(), labelled(TASKS)
    params = hyper(x, labels, there)
    for task in range(TASKS):
        alone = hyper(x[task : task + 1, there[task]], labels[task : task + 1, there[task]])
        for name, value in params.items():
            close(alone[name][0], value[task], 1e-9)


@pytest.mark.parametrize(
    ("ways", "shots", "features"), [(2, 1, 1), (5, 1, 64), (20, 5, 3), (1, 3, 8)]
)
def test_one_generator_serves_any_number_of_classes_shots_and_features(ways, shots, features):
    hyper, condition = HYPERNETWORKS[-1].values[0].moved(), labelled(TASKS, ways, shots, features)
    params = hyper(*condition)
    assert params["head.weight"].shape == (TASKS, ways, features) and params["head.bias"].shape == (
        TASKS,
        ways,
    )
    generic_loss(params).backward()
    assert all(value.isfinite().all() for value in params.values())
    assert all(p.grad.isfinite().all() for p in hyper.parameters())


def test_identical_support_points_give_a_finite_head_and_finite_gradients():
    hyper, (x, labels, _) = HeadHyperNetwork().double(), labelled(TASKS)
    params = hyper(torch.ones_like(x, requires_grad=True), labels)
    generic_loss(params).backward()
    assert all(value.isfinite().all() for value in params.values())
    assert all(p.grad.isfinite().all() for p in hyper.parameters())


def test_a_class_without_support_is_there_when_ways_says_so():
    x, labels, _ = labelled(TASKS)
    assert HeadHyperNetwork().double()(x, labels, ways=5)["head.weight"].shape == (TASKS, 5, 6)


def test_the_head_is_named_as_asked():
    params = HeadHyperNetwork(name="out.1").double()(*labelled(2))
    assert params.keys() == {"out.1.weight", "out.1.bias"}


def test_several_networks_in_a_module_dict_are_generated_together_and_run_apart():
    bases = nn.ModuleDict({"policy": mlp([4, 6, 2]), "value": mlp([4, 6, 1])}).double()
    hyper = MLPHyperNetwork(bases, 3, generate={"policy.*": Full(), "value.*": FiLM()}).double()
    with torch.no_grad():
        hyper.head.weight.normal_()
    params, x = hyper(torch.randn(5, 3).double()), torch.randn(5, 7, 4).double()
    for name, width in (("policy", 2), ("value", 1)):
        found = apply_per_task(bases[name], sub(params, name), x)
        assert found.shape == (5, 7, width)
        close(found, apply_per_task(bases[name], sub(params, name), x, engine="loop"))


def test_an_error_while_it_is_built_leaves_the_base_as_it_was(unchecked):
    base = mlp([4, 6, 2])
    before = [parameter.detach().clone() for parameter in base.parameters()]
    for options in ({"init": "xavier"}, {"generate": "nothing.*"}, {"freeze": "nothing.*"}):
        with pytest.raises(ConfigError):
            MLPHyperNetwork(base, 3, **{"freeze": "*", **options})
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, base.parameters(), strict=True))


@every_hyper
def test_generating_draws_no_random_numbers(hyper):
    network, condition = hyper.moved(), hyper.condition(TASKS)
    before = torch.get_rng_state()
    network(*condition)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("hyper", [case for case in HYPERNETWORKS if case.id != "head"])
def test_a_condition_of_another_device_or_dtype_is_refused_and_the_advice_works(hyper):
    network, condition = hyper.moved(), hyper.condition(TASKS)
    for other in (condition[0].float(), condition[0].to("meta")):
        with pytest.raises(
            ConfigError, match=r"`condition` is torch\.float.* but this hypernetwork is"
        ) as caught:
            network(other, *condition[1:])
    advice = re.search(r"Pass `(condition\.to\(.*?\))`", str(caught.value)).group(1)
    assert network(
        eval(advice, {"condition": condition[0].float(), "torch": torch}), *condition[1:]
    )
