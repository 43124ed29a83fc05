"""Keras models as base networks: against the model itself, with each task's values assigned to its variables."""

import copy
import os
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from cases import KERAS_SAVES, LOOPS_INSIDE
from weightloom.base import apply_per_task, specialise
from weightloom.errors import BatchingError, ConfigError, MissingExtraError, ShapeError
from weightloom.forms import RowScale
from weightloom.networks.keras import KerasBase, is_keras

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
if keras.backend.backend() != "torch":
    pytest.skip("needs KERAS_BACKEND=torch", allow_module_level=True)
layers = keras.layers

TASKS = 3


def close(actual, expected, tolerance=1e-5):
    """In float32: Keras on torch multiplies matrices in it, whatever the type of the model (tried with 3.15.1)."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def same_model_every_time():
    keras.utils.set_random_seed(0)


class TwoOfOneName(keras.Model):
    """Subclassed: `call` does not take `training`, and two layers go by one name."""

    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(5, name="d"), layers.Dense(2, name="d")
        self.dropout, self.scale = (
            layers.Dropout(0.5),
            self.add_weight(shape=(2,), name="scale", initializer="ones"),
        )

    def call(self, x):
        return self.second(self.dropout(self.first(x))) * self.scale


def mlp():
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(6, "relu", name="body"), layers.Dense(2, name="head")]
    )


def normed():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(6, name="body"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(2),
        ]
    )
    model.get_layer("norm").moving_mean.assign(torch.randn(6))
    model.get_layer("norm").moving_variance.assign(torch.rand(6) + 0.5)
    return model


def recurrent():
    return keras.Sequential(
        [keras.Input((3, 2)), layers.LSTM(4, name="lstm"), layers.Dense(2, name="head")]
    )


def attention():
    x = keras.Input((3, 4))
    return keras.Model(x, layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 2)(x, x)))


def convolved():
    return keras.Sequential(
        [
            keras.Input((2, 6, 6)),
            layers.Conv2D(3, 3, data_format="channels_first", name="conv"),
            layers.Flatten(),
        ]
    )


def embedded():
    return keras.Sequential(
        [keras.Input((3,), dtype="int32"), layers.Embedding(7, 4), layers.Flatten()]
    )


def subclassed():
    model = TwoOfOneName()
    model(torch.zeros(1, 5))
    return model


def one_layer():
    layer = layers.Dense(2)
    layer.build((None, 5))
    return layer


def x_of(model, tasks=TASKS):
    if model.name.startswith("sequential") and isinstance(model.layers[0], layers.Embedding):
        return torch.randint(7, (tasks, 4, 3))
    shape = model.inputs[0].shape[1:] if hasattr(model, "inputs") and model.inputs else (5,)
    return torch.randn(tasks, 4, *shape)


every_model = pytest.mark.parametrize(
    "build",
    [
        mlp,
        normed,
        recurrent,
        pytest.param(attention, marks=LOOPS_INSIDE),
        convolved,
        embedded,
        subclassed,
        one_layer,
    ],
)


def assigned(model, base, params, x):
    """Task after task, its values are assigned to the variables of the model, which runs as Keras runs it."""
    own = [variable.value.detach().clone() for variable in model.trainable_variables]
    names, outputs = [name for name, _ in base.named_parameters()], []
    for task in range(len(x)):
        for name, variable in zip(names, model.trainable_variables, strict=True):
            variable.assign(params[name][task])
        outputs.append(model(x[task], training=False).detach())
    for variable, value in zip(model.trainable_variables, own, strict=True):
        variable.assign(value)
    return torch.stack(outputs)


def params_of(base, tasks=TASKS):
    return {name: 0.5 * torch.randn(tasks, *own.shape) for name, own in base.named_parameters()}


@every_model
def test_it_equals_the_model_and_every_parameter_gets_the_gradient_of_its_variable(build):
    model = build()
    base, x = KerasBase(model).eval(), x_of(model)[0]
    outputs, expected = base(x), model(x, training=False)
    close(outputs, expected)
    weights = torch.randn_like(outputs)
    found = torch.autograd.grad((outputs * weights).sum(), list(base.parameters()))
    close(
        found,
        torch.autograd.grad(
            (expected * weights).sum(), [v.value for v in model.trainable_variables]
        ),
    )


@every_model
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_every_task_runs_with_its_own_parameters(build, engine):
    model = build()
    base, x = KerasBase(model).eval(), x_of(model)
    params = params_of(base)
    before = [variable.value.detach().clone() for variable in model.variables]
    close(apply_per_task(base, params, x, engine=engine), assigned(model, base, params, x))
    apply_per_task(base, params, x, engine=engine)
    assert all(
        torch.equal(old, now.value) for old, now in zip(before, model.variables, strict=True)
    )


@every_model
def test_gradients_per_task_under_vmap_equal_those_of_a_loop(build):
    model = build()
    base, x = KerasBase(model).eval(), x_of(model)
    params = params_of(base)

    def loss(one, one_x):
        return functional_call(base, one, (one_x,)).square().sum()

    at_once = vmap(grad(loss))(params, x)
    for task in range(TASKS):
        one = {name: value[task].clone().requires_grad_() for name, value in params.items()}
        alone = torch.autograd.grad(loss(one, x[task]), list(one.values()))
        close([value[task] for value in at_once.values()], list(alone))


def test_names_are_the_paths_of_keras_without_the_name_of_the_model():
    assert [name for name, _ in KerasBase(mlp()).named_parameters()] == [
        *("body/kernel", "body/bias", "head/kernel", "head/bias")
    ]
    assert set(dict(KerasBase(normed()).named_buffers())) == {
        "norm/moving_mean",
        "norm/moving_variance",
    }


def test_names_are_each_there_once_and_the_same_in_every_build():
    first, again = KerasBase(subclassed()), KerasBase(subclassed())
    assert [name for name, _ in first.named_parameters()] == [
        *("scale", "d/kernel", "d/bias", "d/kernel_1", "d/bias_1")
    ]
    assert first.state_dict().keys() == again.state_dict().keys()
    again.load_state_dict(first.state_dict())
    x = torch.randn(4, 5)
    assert torch.equal(first.eval()(x), again.eval()(x))


def test_frozen_variables_are_buffers_and_a_layer_frozen_later_stays_a_parameter():
    model = mlp()
    model.get_layer("body").trainable = False
    base = KerasBase(model)
    assert [name for name, _ in base.named_parameters()] == ["head/kernel", "head/bias"]
    assert set(dict(base.named_buffers())) == {"body/kernel", "body/bias"}
    x = torch.randn(4, 5)
    model.trainable = True
    close(base(x), model(x))
    close(KerasBase(model)(x), model(x))


def test_training_it_leaves_the_keras_model_alone_until_it_is_written_back():
    model, x = mlp(), torch.randn(4, 5)
    base, before = KerasBase(model), model(x).detach()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(1)
    assert torch.equal(model(x), before) and not torch.allclose(base(x), before)
    base.write_back()
    assert torch.equal(model(x), base(x))
    with torch.no_grad():
        base.get_parameter("head/bias").add_(1)
    assert not torch.allclose(model(x), base(x))


def test_one_task_can_be_put_into_the_keras_model():
    model = mlp()
    base, x = KerasBase(model), x_of(model)
    params = params_of(base)
    specialise(base, params, 2).write_back()
    close(model(x[2]), apply_per_task(base, params, x)[2])


def test_a_copy_has_its_own_values_and_the_same_keras_model():
    base, x = KerasBase(mlp()), torch.randn(4, 5)
    other = copy.deepcopy(base)
    assert other.keras_model is base.keras_model and torch.equal(other(x), base(x))
    with torch.no_grad():
        other.get_parameter("head/bias").add_(1)
    close(other(x), base(x) + 1)


@KERAS_SAVES
def test_it_survives_pickle_with_the_values_that_it_holds():
    base, x = KerasBase(normed()).eval(), torch.randn(4, 5)
    with torch.no_grad():
        base.get_parameter("body/bias").add_(1)
    again = pickle.loads(pickle.dumps(base))
    assert torch.equal(again(x), base(x)) and again.state_dict().keys() == base.state_dict().keys()


def test_in_eval_mode_nothing_is_written():
    base = KerasBase(normed()).eval()
    before = copy.deepcopy(base.state_dict())
    base(torch.randn(4, 5))
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_in_train_mode_moving_statistics_are_written_as_keras_writes_them():
    model, x = normed(), torch.randn(4, 5)
    base = KerasBase(model).train()
    outputs = base(x)
    close(outputs, model(x, training=True))
    close(base.get_buffer("norm/moving_mean"), model.get_layer("norm").moving_mean.value)
    close(base.get_buffer("norm/moving_variance"), model.get_layer("norm").moving_variance.value)
    outputs.sum().backward()


def test_state_that_differs_from_task_to_task_is_refused_and_each_advice_works():
    base, x = KerasBase(normed()).train(), torch.randn(TASKS, 4, 5)
    params = params_of(base)
    with pytest.raises(
        BatchingError, match=r"writes its buffers \"norm/moving_mean\", \"norm/moving_var"
    ) as caught:
        apply_per_task(base, params, x, engine="vmap")
    assert "call `base.eval()`" in str(caught.value)
    before = {name: value.clone() for name, value in base.named_buffers()}
    assert apply_per_task(base, params, x, statistics="task").isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in base.named_buffers())
    assert apply_per_task(base, params, x, engine="loop").isfinite().all()
    assert apply_per_task(base.eval(), params, x, engine="vmap").isfinite().all()
    with_layer_norm = KerasBase(
        keras.Sequential([keras.Input((5,)), layers.LayerNormalization()])
    ).train()
    assert (
        apply_per_task(with_layer_norm, params_of(with_layer_norm), x, engine="vmap")
        .isfinite()
        .all()
    )


def test_state_cannot_be_written_under_a_gradient_of_torch_func_either():
    base, x = KerasBase(normed()).train(), torch.randn(4, 5)
    with pytest.raises(BatchingError, match=r"call `base\.eval"):
        grad(lambda params: functional_call(base, params, (x,)).sum())(
            dict(base.named_parameters())
        )


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_dropout_is_drawn_for_each_task_apart_and_anew_in_every_run(seed, engine):
    base = KerasBase(
        keras.Sequential([keras.Input((5,)), layers.Dense(100), layers.Dropout(0.5, seed=seed)])
    )
    params = {name: torch.ones(2, *own.shape) for name, own in base.named_parameters()}
    x = torch.zeros(2, 1, 5)
    first, second = (apply_per_task(base, params, x, engine=engine) for _ in range(2))
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, second)
    assert torch.equal(apply_per_task(base.eval(), params, x, engine=engine), torch.ones(2, 1, 100))


def test_dropout_reaches_the_layers_of_a_model_that_does_not_take_training_itself():
    base, x = KerasBase(subclassed()), torch.randn(4, 5)
    assert not torch.equal(base(x), base(x))
    base.eval()
    assert torch.equal(base(x), base(x))


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_several_inputs_go_behind_each_other(engine):
    x, z = keras.Input((5,)), keras.Input((3,))
    model = keras.Model([x, z], layers.Dense(2)(layers.Concatenate()([x, z])))
    base, first, second = KerasBase(model), torch.randn(TASKS, 4, 5), torch.randn(TASKS, 4, 3)
    outputs = apply_per_task(base, {}, first, second, engine=engine)
    close(outputs, torch.stack([model([a, b]) for a, b in zip(first, second, strict=True)]))


def test_metrics_that_come_with_compile_do_not_matter():
    model, x = mlp(), torch.randn(4, 5)
    base = KerasBase(model)
    model.compile(loss="mse", metrics=["mae"])
    model.evaluate(x.numpy(), torch.zeros(4, 2).numpy(), verbose=0)
    close(base(x), model(x))
    assert base.state_dict().keys() == KerasBase(model).state_dict().keys()


def test_a_raw_keras_model_ignores_what_functional_call_gives_it():
    """The reason to refuse it: keras#20279, with Keras 3.15.1. Should this fail, Keras has mended it."""
    model, x = mlp(), torch.randn(4, 5)
    zeros = {name: torch.zeros_like(own) for name, own in model.named_parameters()}
    assert torch.equal(functional_call(model, zeros, (x,)), model(x))


def test_keras_is_told_from_torch_without_importing_it(monkeypatch):
    model, layer, base = mlp(), one_layer(), KerasBase(mlp())
    monkeypatch.setitem(sys.modules, "keras", None)
    assert (
        is_keras(model) and is_keras(layer) and is_keras(subclassed.__globals__["TwoOfOneName"]())
    )
    assert not is_keras(base) and not is_keras(nn.Linear(3, 2)) and not is_keras(nn.Sequential())


def test_without_keras_the_message_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(
        MissingExtraError,
        match=r'Type `pip install "weightloom\[keras\]"` and `export KERAS_BACKEND',
    ):
        KerasBase(nn.Linear(3, 2))


def test_another_backend_is_refused(monkeypatch):
    model = mlp()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(
        ConfigError, match=r"Keras runs on the 'jax' backend.*`KERAS_BACKEND=torch`"
    ):
        KerasBase(model)


def test_a_model_that_is_not_built_is_refused_and_each_advice_works():
    model, x = keras.Sequential([layers.Dense(2, name="head")], name="net"), torch.randn(4, 5)
    with pytest.raises(
        ConfigError,
        match=r"`net` is not built.*Call it once on some data, or begin it with `keras.In",
    ):
        KerasBase(model)
    model(x)
    assert torch.equal(KerasBase(model)(x), model(x))
    begun = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    assert torch.equal(KerasBase(begun)(x), begun(x))


def test_a_module_of_torch_is_refused():
    with pytest.raises(ConfigError, match=r"`model` is a Linear\. .*without `KerasBase`"):
        KerasBase(nn.Linear(3, 2))


def test_values_that_keras_would_round_are_refused_and_the_advice_works():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2, name="head")])
    base, x = KerasBase(model), torch.randn(4, 5)
    with pytest.raises(
        ConfigError,
        match=r"`head/kernel` is torch.float64 and the Keras variable is torch.float32.*`base\.to\(torch",
    ):
        copy.deepcopy(base).double()(x)
    assert base.double().to(torch.float32)(x).dtype == torch.float32
    assert base.half()(x).dtype == torch.float32  # nothing is lost on the way up


def test_a_value_of_another_shape_is_refused():
    base = KerasBase(mlp())
    params = {"head/bias": torch.randn(TASKS, 7)}
    with pytest.raises(
        ShapeError, match=r"`head/bias` has shape \(7,\); the Keras variable has shape \(2,\)"
    ):
        apply_per_task(base, params, torch.randn(TASKS, 4, 5))


def test_a_model_that_has_grown_is_refused():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2)], name="net")
    base = KerasBase(model)
    model.add(layers.Dense(3))
    with pytest.raises(
        ConfigError, match=r"`net` holds 4 variables now and held 2.*Make a new `KerasBase`"
    ):
        base(torch.randn(4, 5))


def test_it_prints_the_model_it_stands_for():
    assert repr(KerasBase(keras.Sequential([keras.Input((5,)), layers.Dense(2)], name="net"))) == (
        "KerasBase(Sequential 'net')"
    )


def keras_gate(weight, gate_weight, gate_bias, x, z):
    """Row for row y = (weight @ x) * h(z) with h(z) = gate_weight @ z + gate_bias, in layers of Keras.

    ``weight`` (out, in), ``gate_weight`` (out, conditions), ``gate_bias`` (out,), ``x`` (batch, in)
    and ``z`` (batch, conditions), which is ``x`` itself in the gate as Keras users write it.
    """
    inputs, conditions = keras.Input((weight.shape[1],)), keras.Input((gate_weight.shape[1],))
    outer = layers.Dense(len(weight), use_bias=False, name="outer")
    gate = layers.Dense(len(weight), name="gate")
    model = keras.Model([inputs, conditions], layers.Multiply()([outer(inputs), gate(conditions)]))
    outer.kernel.assign(weight.T)
    gate.kernel.assign(gate_weight.T)
    gate.bias.assign(gate_bias)
    return model([x, z]).detach()


@pytest.mark.parametrize("engine", ["auto", "vmap", "aligned", "loop"])
@pytest.mark.parametrize(
    "own_input", [True, False], ids=["gated by the input itself", "gated by a condition"]
)
def test_the_gate_of_keras_is_row_scale(engine, own_input):
    conditions = 5 if own_input else 3
    weight, gate_weight, gate_bias = torch.randn(2, 5), torch.randn(2, conditions), torch.randn(2)
    x = torch.randn(4, 5)
    z = x if own_input else torch.randn(4, 3)
    expected = keras_gate(weight, gate_weight, gate_bias, x, z)
    gain = nn.functional.linear(z, gate_weight, gate_bias) - 1  # a row of the batch is a task
    params = {"weight": RowScale().value(weight, {"gain": gain})}
    found = apply_per_task(nn.Linear(5, 2, bias=False), params, x[:, None], engine=engine)[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
