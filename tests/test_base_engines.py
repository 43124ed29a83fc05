"""How tasks are run must not show: every engine gives what a loop over tasks with built parameters gives."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from cases import BASES, BASES_FOR_THE_LOOP, BATCH, TASKS, Base, bert, symbols_and_2d_mask
from references import run_task_by_task, weighted_sum
from weightloom.base import apply_per_task, choose_engine
from weightloom.errors import BatchingError, ConfigError, ShapeError
from weightloom.forms import Factored, LowRank, RowScale, choose_forms
from weightloom.networks import mlp

every_base = pytest.mark.parametrize("base", BASES)
every_engine = pytest.mark.parametrize("engine", ["auto", "vmap", "aligned", "loop"])
ALIGNED = [
    "mlp",
    "conv2d_with_group_norm",
    "resnet_eval",
    "embedding_with_padding",
    "tied_embedding_with_padding",
]
ALIGNED += [
    "token_and_positions",
    "conv2d_grouped_with_prelu",
    "conv_transpose2d",
    "conv3d",
    "layer_norm",
    "vit",
    "gpt2",
]


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def in_forms(net, generate):
    """A parameter per task in a mix of forms, and everything that it is made of."""
    forms = choose_forms(net, generate, form=LowRank(1))
    params, leaves = {}, []
    for number, (name, form) in enumerate(forms.items()):
        own = net.get_parameter(name)
        if own.ndim > 1 and number % 3 == 0:
            owner = net.get_submodule(name.rpartition(".")[0])
            form = RowScale().fit(tuple(own.shape), owner)
        factors = {
            n: torch.randn(TASKS, *s).double()
            for n, s in form.factor_shapes(tuple(own.shape)).items()
        }
        for factor in factors.values():
            factor.requires_grad_()
        params[name] = form.value(own, factors)
        leaves += factors.values()
    return params, [*leaves, *net.parameters()]


def run(net, params, inputs, engine, weights=None):
    """Outputs, and what `weights` pulls them to, with what it is pulled by."""
    outputs = apply_per_task(net, params, *inputs, engine=engine)
    return outputs, tree_map(torch.randn_like, outputs) if weights is None else weights


def gradients(outputs, weights, leaves):
    return torch.autograd.grad(
        weighted_sum(outputs, weights), leaves, allow_unused=True, materialize_grads=True
    )


@every_base
def test_factors_in_any_engine_equal_a_loop_with_built_parameters(base):
    net = base.net()
    params, leaves = in_forms(net, base.generate)
    inputs = tuple(x.requires_grad_() if x.is_floating_point() else x for x in base.x())
    leaves += [x for x in inputs if x.is_floating_point()]
    built = {n: v.dense() if isinstance(v, Factored) else v for n, v in params.items()}
    expected, weights = run(net, built, inputs, "loop")
    truth = gradients(expected, weights, leaves)
    for engine in ("loop", "vmap", "auto"):
        outputs, _ = run(net, params, inputs, engine, weights)
        close(tree_leaves(outputs), tree_leaves(expected))
        close(gradients(outputs, weights, leaves), truth)
    assert any(gradient.any() for gradient in truth)


@pytest.mark.parametrize("base", [case for case in BASES if case.id in ALIGNED])
@pytest.mark.parametrize("held", ["built", "factors"])
def test_tasks_folded_into_the_batch_equal_a_copy_of_the_base_per_task(base, held):
    net = base.net()
    if held == "factors":
        params, leaves = in_forms(net, base.generate)
    else:
        params = {name: value.requires_grad_() for name, value in base.params().items()}
        leaves = [*params.values()]
    inputs = base.x()
    outputs, weights = run(net, params, inputs, "aligned")
    expected, _ = run(net, params, inputs, "loop", weights)
    close(tree_leaves(outputs), tree_leaves(expected))
    close(gradients(outputs, weights, leaves), gradients(expected, weights, leaves))


@pytest.mark.parametrize("base", BASES_FOR_THE_LOOP)
def test_what_vmap_cannot_run_goes_to_the_loop_and_is_right(base):
    net = base.net()
    params = {name: value.requires_grad_() for name, value in base.params().items()}
    inputs = base.x()
    assert choose_engine(net, params, *inputs).engine == "loop"
    outputs, weights = run(net, params, inputs, "auto")
    expected, expected_gradients = run_task_by_task(
        net,
        params,
        inputs,
        lambda out, task: weighted_sum(out, tree_map(lambda w: w[task], weights)),
    )
    close(tree_leaves(outputs), tree_leaves(expected))
    close(list(gradients(outputs, weights, [*params.values()])), expected_gradients[: len(params)])


def test_bert_with_a_2d_mask_by_name_runs_aligned_as_in_the_loop():
    pytest.importorskip("transformers")
    base = Base(bert, train=False, draw=symbols_and_2d_mask)
    net, params, (symbols, mask) = base.net(), base.params(), base.x()
    kwargs = {"attention_mask": mask, "return_dict": True}
    found, expected = (
        apply_per_task(net, params, symbols, kwargs=kwargs, shared=(), engine=e)
        for e in ("aligned", "loop")
    )
    assert (
        type(found).__name__
        == type(expected).__name__
        == "BaseModelOutputWithPoolingAndCrossAttentions"
    )
    close(found.last_hidden_state, expected.last_hidden_state)


class Outputs(nn.Module):
    """Takes tensors and constants by name, gives a tree with what is no tensor in it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x, *, shift=None, scale=1.0, name=""):
        y = self.layer(x) * scale
        return {
            "y": y if shift is None else y + shift,
            "name": name,
            "nothing": None,
            "both": (y, [y + 1]),
        }


@every_engine
def test_arguments_by_name_are_cut_if_tensors_and_passed_on_as_they_are_if_not(engine):
    net, params, x = Outputs(), {"layer.weight": torch.randn(3, 2, 5)}, torch.randn(3, 4, 5)
    shift = torch.randn(3, 4, 2)
    kwargs = {"shift": shift, "scale": 2.0, "name": "any"}
    outputs = apply_per_task(net, params, x, kwargs=kwargs, shared=(), engine=engine)
    assert (
        outputs["name"] == "any"
        and outputs["nothing"] is None
        and set(outputs) == {"y", "name", "nothing", "both"}
    )
    for task in range(3):
        y = 2 * (x[task] @ params["layer.weight"][task].T + net.layer.bias)
        close([outputs["y"][task], outputs["both"][0][task]], [y + shift[task], y], 1e-5)
        close(outputs["both"][1][0][task], y + 1, 1e-5)
    with pytest.raises(ShapeError, match=r"`kwargs\['shift'\]` holds 2 tasks"):
        apply_per_task(net, params, x, kwargs={"shift": shift[:2]}, shared=(), engine=engine)


@every_engine
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_randomness_is_the_same_or_different_for_all_tasks(engine, chunk_size):
    net = nn.Sequential(nn.Linear(5, 50), nn.Dropout(0.5))
    params, x = {"0.bias": torch.ones(5, 50)}, torch.zeros(5, 4, 5)
    options = {"engine": engine, "chunk_size": chunk_size}
    different = apply_per_task(net, params, x, **options)
    assert len({tuple(row.flatten().tolist()) for row in different}) == 5
    if engine == "aligned":
        with pytest.raises(
            BatchingError,
            match=r"`randomness=\"same\"` was given with the aligned.*Pass `engine=\"vmap",
        ):
            apply_per_task(net, params, x, randomness="same", **options)
        return
    same = apply_per_task(net, params, x, randomness="same", **options)
    assert all(torch.equal((row == 0), (same[0] == 0)) for row in same)
    for _ in range(2):
        torch.manual_seed(3)
        first = apply_per_task(net, params, x, **options)
        torch.manual_seed(3)
        assert torch.equal(apply_per_task(net, params, x, **options), first)


@every_engine
@pytest.mark.parametrize(
    "base", [case for case in BASES if case.id in ("mlp", "two_inputs", "embedding")]
)
def test_some_tasks_at_a_time_give_the_same_in_every_engine(base, engine):
    net, inputs = base.net(), base.x()
    params, _ = in_forms(net, base.generate)
    if engine == "aligned" and base.inputs == 2:
        pytest.skip("a parameter that is one number")
    whole = apply_per_task(net, params, *inputs, engine="loop")
    parts = apply_per_task(net, params, *inputs, engine=engine, chunk_size=2)
    close(tree_leaves(parts), tree_leaves(whole))


@every_engine
def test_a_forward_that_fails_leaves_the_base_as_it_was(engine):
    class Breaks(nn.Sequential):
        def forward(self, x):
            super().forward(x)
            raise ZeroDivisionError

    net = Breaks(nn.Linear(5, 4), nn.BatchNorm1d(4)).eval()
    before = {name: (id(t), t.clone()) for name, t in net.state_dict(keep_vars=True).items()}
    places = [
        (id(module), {n: id(p) for n, p in module._parameters.items()}) for module in net.modules()
    ]
    with pytest.raises(ZeroDivisionError):
        apply_per_task(net, {"0.weight": torch.randn(3, 4, 5)}, torch.randn(3, 4, 5), engine=engine)
    for name, value in net.state_dict(keep_vars=True).items():
        assert id(value) == before[name][0] and torch.equal(value, before[name][1])
    assert places == [
        (id(module), {n: id(p) for n, p in module._parameters.items()}) for module in net.modules()
    ]
    assert torch.backends.mha.get_fastpath_enabled()


@every_engine
def test_no_tasks_and_mixed_kinds_are_refused(engine):
    net, x = nn.Linear(5, 2), torch.randn(3, 4, 5)
    with pytest.raises(
        ShapeError, match=r"holds 0 tasks.*Leave out the call where no task is left"
    ):
        apply_per_task(net, {"bias": torch.randn(0, 2)}, x[:0], engine=engine)
    params = {"bias": torch.randn(3, 2, device="meta")}
    with pytest.raises(
        ConfigError,
        match=r"`x` is on cpu but `params\['bias'\]` is on meta.*Move it: `\.to\('meta'\)`",
    ):
        apply_per_task(net, params, x, engine=engine)
    params = {"bias": torch.randn(3, 2).double()}
    with pytest.raises(
        ConfigError,
        match=r"`x` is torch\.float32 but `params\['bias'\]` is torch\.float64.*Convert it",
    ):
        apply_per_task(net, params, x, engine=engine)
    assert apply_per_task(net.double(), params, x.to(torch.float64), engine=engine).shape == (
        3,
        4,
        2,
    )


class Force(nn.Module):
    """A gradient inside the forward pass, as of an energy by its place."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Linear(5, 1)

    def forward(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.energy(x).tanh().sum(), x, create_graph=True)[0]


def test_a_base_that_takes_gradients_itself_goes_to_the_loop():
    net, params, x = (
        Force(),
        {"energy.weight": torch.randn(3, 1, 5, requires_grad=True)},
        torch.randn(3, 4, 5),
    )
    assert choose_engine(net, params, x).engine == "loop"
    found = apply_per_task(net, params, x)
    close(found, apply_per_task(net, params, x, engine="loop"))
    assert torch.autograd.grad(found.sum(), params["energy.weight"])[0].all()


def test_an_option_that_is_unknown_is_answered_with_the_nearest(unchecked):
    net, x = nn.Linear(5, 2), torch.randn(3, 4, 5)
    unknown = [
        ("engine", "alinged", "aligned"),
        ("randomness", "sane", "same"),
        ("statistics", "tasks", "task"),
    ]
    for option, value, meant in unknown:
        with pytest.raises(ConfigError, match=rf"`{option}='{value}'` is unknown.*`{meant}`"):
            apply_per_task(net, {}, x, **{option: value})
    with pytest.raises(ConfigError, match=r"`chunk_size=0` is below 1"):
        apply_per_task(net, {}, x, chunk_size=0)


def test_the_choice_is_printed_where_it_is_asked_for(capsys):
    net, x = mlp([5, 4, 2]), torch.randn(3, 4, 5)
    apply_per_task(net, {"0.bias": torch.randn(3, 4)}, x, explain=True)
    apply_per_task(net, {"0.bias": torch.randn(3, 4)}, x, explain=True, engine="loop")
    first, second = capsys.readouterr().out.splitlines()
    assert "runs with engine aligned: every row of a batch is treated by itself" in first
    assert second.endswith("runs with engine loop: as asked for") and BATCH == 4
