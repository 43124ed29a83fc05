"""What does not fit together is named before anything runs, with advice that works."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from cases import Tied
from weightloom.base import Shared, apply_per_task, per_task, specialise
from weightloom.errors import ConfigError, ShapeError


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_a_different_number_of_tasks_is_named_and_the_advice_works():
    net, params, x = (
        nn.Linear(3, 2),
        {"weight": torch.randn(5, 2, 3), "bias": torch.randn(5, 2)},
        torch.randn(4, 7, 3),
    )
    with pytest.raises(ShapeError) as caught:
        apply_per_task(net, params, x)
    assert str(caught.value) == (
        "`x` holds 4 tasks but `params['weight']` holds 5. "
        "Each task needs its own parameters and its own inputs, on axis 0. "
        "To give every task the same inputs, pass `Shared(x[0])`."
    )
    advice = re.search(r"pass `(.*)`", str(caught.value)).group(1)
    outputs = apply_per_task(net, params, eval(advice, {"x": x, "Shared": Shared}))
    close(
        outputs,
        torch.stack([x[0] @ params["weight"][i].T + params["bias"][i] for i in range(5)]),
        1e-5,
    )


def test_inputs_that_disagree_among_themselves_are_named():
    x, z = torch.randn(5, 4, 3), torch.randn(4, 4, 3)
    with pytest.raises(
        ShapeError, match=r"`inputs\[1\]` holds 4 tasks but `inputs\[0\]` holds 5\."
    ):
        apply_per_task(nn.Bilinear(3, 3, 2), {}, x, z)


def test_params_that_disagree_among_themselves_are_named():
    params = {"weight": torch.randn(5, 2, 3), "bias": torch.randn(4, 2)}
    with pytest.raises(
        ShapeError, match=r"`params\['weight'\]` holds 5 tasks but `params\['bias'\]` holds 4"
    ):
        apply_per_task(nn.Linear(3, 2), params, torch.randn(5, 7, 3))


@pytest.mark.parametrize(
    "run", [lambda net, p: apply_per_task(net, p, torch.randn(5, 7, 3)), specialise]
)
def test_a_name_that_the_base_lacks_is_answered_with_the_nearest(run):
    with pytest.raises(
        ConfigError, match=r"`params` names 'wieght', which Linear does not have.*mean `weight`\?"
    ):
        run(nn.Linear(3, 2), {"wieght": torch.randn(5, 2, 3)})


def test_a_parameter_without_its_tasks_axis_is_named_and_the_advice_works():
    net, value, x = nn.Linear(3, 2), torch.randn(2), torch.randn(1, 7, 3)
    with pytest.raises(
        ShapeError, match=r"`params\['bias'\]` has shape \(2,\).*pass `value\[None\]`"
    ):
        apply_per_task(net, {"bias": value}, x)
    assert apply_per_task(net, {"bias": value[None]}, x).shape == (1, 7, 2)


@pytest.mark.parametrize("keep", [True, False])
def test_a_parameter_that_is_a_single_number_is_named(keep):
    net, value, x = nn.Linear(3, 2), torch.tensor(1.0), torch.randn(4, 7, 3)
    if keep:  # attributes with a tasks axis, left by a call before, are looked up by tasks
        net.register_forward_pre_hook(lambda module, inputs: setattr(module, "kept", inputs[0]))
        apply_per_task(net, {"bias": torch.randn(4, 2)}, x, engine="loop")
    with pytest.raises(ShapeError, match=r"`params\['bias'\]` has shape \(\).*axis more"):
        apply_per_task(net, {"bias": value}, x)
    with pytest.raises(ShapeError, match=r"`params\['bias'\]` is a single number"):
        per_task(net).by_row({"bias": value}, torch.tensor([0, 0, 0, 0]), x)


def test_nothing_that_has_tasks_and_scalar_inputs_are_refused():
    with pytest.raises(ShapeError, match="the number of tasks is unknown"):
        apply_per_task(nn.Linear(3, 2), {}, Shared(torch.randn(7, 3)))
    with pytest.raises(ShapeError, match=r"`x` is a scalar.*`x\[None\]`"):
        apply_per_task(nn.Linear(3, 2), {"bias": torch.randn(5, 2)}, torch.tensor(1.0))


def test_a_keras_model_is_refused_wherever_it_is_and_its_place_is_named():
    class Model(nn.Linear):
        pass

    Model.__module__ = "keras.src.models"
    for base, place in ((Model(3, 2), "base"), (nn.Sequential(nn.ReLU(), Model(3, 2)), "base.1")):
        with pytest.raises(
            ConfigError,
            match=rf"`{place}` is a Keras model, Model.*Wrap it: `weightloom\.KerasBase",
        ):
            apply_per_task(base, {}, torch.randn(5, 7, 3))


@pytest.mark.parametrize(
    ("to", "words"),
    [
        (
            torch.float64,
            r"`base\.weight` is torch\.float64 but `params\['bias'\]` is torch\.float32.*Convert the base",
        ),
        (
            "meta",
            r"`base\.weight` is on meta but `params\['bias'\]` is on cpu.*Move the base: `\.to\('cpu'\)`",
        ),
    ],
)
def test_what_the_base_shares_is_of_the_same_device_and_dtype(to, words):
    net, params, x = nn.Linear(3, 2), {"bias": torch.randn(5, 2)}, torch.randn(5, 7, 3)
    with pytest.raises(ConfigError, match=words):
        apply_per_task(copy.deepcopy(net).to(to), params, x)
    assert apply_per_task(net, params, x).shape == (5, 7, 2)
    everything = {**params, "weight": torch.randn(5, 2, 3)}
    assert apply_per_task(copy.deepcopy(net).to(to), everything, x).shape == (
        5,
        7,
        2,
    )  # nothing of the base is used


def test_generated_parameters_of_two_dtypes_are_named():
    params = {"weight": torch.randn(5, 2, 3), "bias": torch.randn(5, 2).double()}
    with pytest.raises(
        ConfigError, match=r"`params\['bias'\]` is torch\.float64 but `params\['weight'\]`"
    ):
        apply_per_task(nn.Linear(3, 2), params, torch.randn(5, 7, 3))


def test_an_input_that_is_no_tensor_is_named_and_the_advice_works(unchecked):
    net, params, x = nn.Linear(3, 2), {"bias": torch.randn(5, 2)}, torch.randn(5, 7, 3).numpy()
    with pytest.raises(ConfigError, match=r"`x` is a ndarray.*`torch\.as_tensor\(x\)`"):
        apply_per_task(net, params, x)
    assert apply_per_task(net, params, torch.as_tensor(x)).shape == (5, 7, 2)


@pytest.mark.parametrize("engine", ["auto", "vmap", "aligned", "loop"])
def test_two_values_for_one_tied_parameter_are_refused(engine):
    net, value, x = Tied(), torch.randn(5, 5, 5).double(), torch.randn(5, 7, 5).double()
    with pytest.raises(
        ConfigError, match=r"are one parameter of the base, tied.*Pass `first\.weight` alone"
    ):
        apply_per_task(
            net.double(), {"first.weight": value, "second.weight": -value}, x, engine=engine
        )
    outputs = apply_per_task(net, {"first.weight": value, "second.weight": value}, x, engine=engine)
    close(outputs, apply_per_task(net, {"second.weight": value}, x, engine=engine))


@pytest.mark.parametrize("engine", ["auto", "vmap", "aligned", "loop"])
def test_tasks_are_counted_in_every_call_and_not_only_in_the_first(engine):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(x)

    net = Wrapped()
    params = {name: torch.randn(3, *own.shape) for name, own in net.named_parameters()}
    for batch in (5, 7):
        assert apply_per_task(net, params, torch.randn(3, batch, 4), engine=engine).shape == (
            3,
            batch,
            2,
        )
    for tasks in (2, 6):
        with pytest.raises(ShapeError, match=f"`x` holds {tasks} tasks but"):
            apply_per_task(net, params, torch.randn(tasks, 5, 4), engine=engine)


@pytest.mark.parametrize(
    "value", [np.zeros((3, 2, 2)), 3.0, [1.0, 2.0]], ids=["array", "float", "list"]
)
@pytest.mark.parametrize("engine", ["auto", "loop", "rows"])
def test_a_parameter_that_is_no_tensor_is_named(value, engine, unchecked):
    net, x = nn.Linear(2, 2), torch.ones(3, 4, 2)
    with pytest.raises(ConfigError, match=r"`params\['weight'\]` is a .*, not a tensor.*as_tensor"):
        if engine == "rows":
            per_task(net).by_row({"weight": value}, torch.zeros(4, dtype=torch.long), x[0])
        else:
            apply_per_task(net, {"weight": value}, x, engine=engine)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("engine", ["auto", "aligned", "vmap", "loop"])
def test_parameters_that_are_not_finite_give_outputs_that_are_not(bad, engine):
    net = nn.Sequential(nn.Linear(2, 3), nn.Softplus(), nn.Linear(3, 2))
    params = {"0.bias": torch.tensor([[0.0, 1.0, 2.0], [bad, 0.0, 0.0]])}
    y = apply_per_task(net, params, torch.ones(2, 4, 2), engine=engine)
    assert y[0].isfinite().all() and not y[1].isfinite().any()
