"""Recurrent layers: the numbers of torch's own, alone and for many tasks at once."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from weightloom.base import apply_per_task
from weightloom.errors import ConfigError, ShapeError
from weightloom.networks import recurrent
from weightloom.networks.recurrent import replace_recurrent

LAYERS, CELLS = ("LSTM", "GRU", "RNN"), ("LSTMCell", "GRUCell", "RNNCell")
RELU = pytest.param("RNN", {"nonlinearity": "relu"}, id="relu")
PROJECTED = pytest.param(
    "LSTM", {"proj_size": 2, "num_layers": 2, "bidirectional": True}, id="projected"
)
VARIANTS = [*(pytest.param(kind, {}, id=kind) for kind in (*LAYERS, *CELLS)), RELU, PROJECTED]
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def pair(kind, **options):
    """torch's layer and ours, of the same parameters."""
    theirs = getattr(nn, kind)(3, 4, **options, dtype=torch.float64)
    ours = getattr(recurrent, kind)(3, 4, **options, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def an_input(kind, *batch):
    return torch.randn(*batch, 3).double() if kind in CELLS else torch.randn(5, *batch, 3).double()


def gradients(layer, x, hx):
    """Outputs, and what a weighted sum of them says to every parameter, the input and the states."""
    x, hx = tree_map_only(torch.Tensor, lambda leaf: leaf.clone().requires_grad_(), (x, hx))
    outputs = tree_leaves(layer(x, hx))
    loss = sum(
        (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum()
        for output in outputs
    )
    return outputs, torch.autograd.grad(
        loss, [*layer.parameters(), x, *(tree_leaves(hx) if hx is not None else [])]
    )


@given(st.data())
def test_a_layer_gives_the_numbers_and_gradients_of_torch(data):
    kind = data.draw(st.sampled_from(LAYERS))
    flags = {name: data.draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    extra = {"LSTM": ("proj_size", [0, 2]), "RNN": ("nonlinearity", ["tanh", "relu"])}.get(kind)
    options = {extra[0]: data.draw(st.sampled_from(extra[1]))} if extra else {}
    theirs, ours = pair(kind, num_layers=data.draw(st.integers(1, 3)), **flags, **options)
    steps, batch = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([(), (1,), (2,)]))
    x = torch.randn(*((*batch, steps) if flags["batch_first"] else (steps, *batch)), 3).double()
    hx = tree_map(torch.randn_like, theirs(x)[1]) if data.draw(st.booleans()) else None
    torch.testing.assert_close(gradients(ours, x, hx), gradients(theirs, x, hx), **CLOSE)
    torch.testing.assert_close(ours(x, hx), theirs(x, hx), **CLOSE)  # and they are nested alike


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"), [*((cell, {}) for cell in CELLS), ("RNNCell", {"nonlinearity": "relu"})]
)
def test_a_cell_gives_the_numbers_and_gradients_of_torch(kind, options, start, batch, bias):
    theirs, ours = pair(kind, bias=bias, **options)
    x = an_input(kind, *batch)
    hx = tree_map(torch.randn_like, theirs(x)) if start else None
    torch.testing.assert_close(gradients(ours, x, hx), gradients(theirs, x, hx), **CLOSE)
    torch.testing.assert_close(ours(x, hx), theirs(x, hx), **CLOSE)


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_every_task_gets_what_torch_gives_with_its_parameters(kind, options):
    theirs, ours = pair(kind, **options)
    params = {
        name: torch.randn(3, *value.shape).double() for name, value in theirs.named_parameters()
    }
    x = torch.stack([an_input(kind, 2) for _ in range(3)])
    one = [
        functional_call(theirs, {name: params[name][task] for name in params}, (x[task],))
        for task in range(3)
    ]
    torch.testing.assert_close(
        apply_per_task(ours, params, x), tree_map(lambda *rows: torch.stack(rows), *one), **CLOSE
    )


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_an_inner_step_differentiates_twice_per_task(kind, options):
    """The gradient of a loss behind a gradient step, for all tasks at once and by autograd through torch's layer."""
    theirs, ours = pair(kind, **options)
    params = {
        name: 0.5 * torch.randn(3, *value.shape).double()
        for name, value in theirs.named_parameters()
    }
    x = torch.stack([an_input(kind, 2) for _ in range(3)])

    def loss(params, x):
        return tree_leaves(functional_call(ours, params, (x,)))[0].square().sum()

    def behind_a_step(params, x):
        slopes = grad(loss)(params, x)
        return loss({name: value - 0.1 * slopes[name] for name, value in params.items()}, x)

    together = vmap(grad(behind_a_step))(params, x)
    for task in range(3):
        mine = {name: value[task].clone().requires_grad_() for name, value in params.items()}
        first = tree_leaves(functional_call(theirs, mine, (x[task],)))[0].square().sum()
        slopes = torch.autograd.grad(first, [*mine.values()], create_graph=True)
        moved = {
            name: value - 0.1 * slope
            for (name, value), slope in zip(mine.items(), slopes, strict=True)
        }
        second = tree_leaves(functional_call(theirs, moved, (x[task],)))[0].square().sum()
        for name, slope in zip(mine, torch.autograd.grad(second, [*mine.values()]), strict=True):
            torch.testing.assert_close(together[name][task], slope, **CLOSE)


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_the_same_seed_builds_the_same_layer_and_states_load_both_ways(kind, options):
    torch.manual_seed(1)
    theirs = getattr(nn, kind)(3, 4, **options)
    torch.manual_seed(1)
    ours = getattr(recurrent, kind)(3, 4, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict()) and repr(ours) == repr(theirs)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    getattr(nn, kind)(3, 4, **options).load_state_dict(ours.state_dict())
    assert type(pickle.loads(pickle.dumps(ours))) is getattr(recurrent, kind)


@pytest.mark.parametrize("kind", LAYERS)
def test_dropout_falls_between_layers_and_only_in_training(kind):
    """With p=1 the second layer reads zeros, in both; with p=0.5 it reads twice the half that is left."""
    theirs, ours = pair(kind, num_layers=2, dropout=1.0)
    x = an_input(kind, 2)
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), **CLOSE)
    _, halved = pair(kind, num_layers=2, dropout=0.5)
    with torch.no_grad():
        halved.weight_ih_l1.zero_()
    assert torch.equal(halved(x)[0], halved(x)[0])  # nothing falls behind the last layer
    torch.nn.init.ones_(halved.weight_ih_l1)
    assert not torch.equal(halved(x)[0], halved(x)[0])


def test_tasks_drop_different_features():
    _, ours = pair("GRU", num_layers=2, dropout=0.5)
    params = {
        name: value.detach().expand(2, *value.shape) for name, value in ours.named_parameters()
    }
    output, _ = apply_per_task(ours, params, an_input("GRU", 2).expand(2, 5, 2, 3))
    assert not torch.equal(output[0], output[1])


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_a_layer_runs_in_bfloat16_autocast(kind, options):
    _, ours = pair(kind, **options)
    x, ours = an_input(kind, 2).float(), ours.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = tree_leaves(ours(x))
    torch.testing.assert_close(rough, tree_leaves(ours(x)), rtol=0.05, atol=0.05, check_dtype=False)
    sum(leaf.float().sum() for leaf in rough).backward()
    assert all(parameter.grad.isfinite().all() for parameter in ours.parameters())


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_a_layer_is_exported_with_any_batch(kind, options, unchecked):
    _, ours = pair(kind, **options)
    batch = {0 if kind in CELLS else 1: torch.export.Dim("batch")}
    exported = torch.export.export(ours, (an_input(kind, 2),), dynamic_shapes=(batch,)).module()
    x = an_input(kind, 7)
    torch.testing.assert_close(exported(x), ours(x), **CLOSE)


class Factored(torch.Tensor):
    """Stands in for a weight as a product that only `F.linear` knows to apply."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            x, weight, bias = args
            return nn.functional.linear(nn.functional.linear(x, weight.right), weight.left, bias)
        assert getattr(function, "__name__", "") in ("__get__", "__set__"), function
        return super().__torch_function__(function, types, args, kwargs)


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_a_weight_may_answer_for_itself(kind):
    theirs, ours = pair(kind)
    stand_ins, products = {}, {}
    for name, value in theirs.named_parameters():
        if name.startswith("weight"):
            left, right = (
                torch.randn(len(value), 2).double(),
                torch.randn(2, value.shape[1]).double(),
            )
            products[name], stand_ins[name] = (
                left @ right,
                torch.empty_like(value).as_subclass(Factored),
            )
            stand_ins[name].left, stand_ins[name].right = left, right
    x = an_input(kind, 2)
    expected = functional_call(theirs, products, (x,))
    torch.testing.assert_close(functional_call(ours, stand_ins, (x,)), expected, **CLOSE)


class Reader(nn.Module):
    """Holds a layer twice, cells of one weight, a class derived from torch's, and a layer that is already ours."""

    def __init__(self):
        super().__init__()
        self.first = nn.LSTM(3, 3)
        self.again, self.cells = (
            self.first,
            nn.ModuleList([nn.GRUCell(3, 3), nn.GRUCell(3, 3), nn.RNNCell(3, 3)]),
        )
        self.cells[1].weight_hh = self.cells[0].weight_hh
        self.inner = nn.Sequential(nn.GRU(3, 3), nn.RNN(3, 3).eval())
        self.cell, self.derived, self.ours = nn.LSTMCell(3, 3), Derived(3, 3), recurrent.GRU(3, 3)

    def forward(self, x):
        x = self.inner[1](self.inner[0](self.again(self.first(x)[0])[0])[0])[0]
        rows = [self.cells[2](self.cells[1](self.cells[0](row))) for row in x]
        return self.cell(rows[-1])[0]


class Derived(nn.GRU):
    pass


def test_a_copy_has_ours_in_place_of_every_layer_of_torch():
    module = Reader().double()
    module.first.register_forward_hook(lambda *_: None)
    before, kinds = copy.deepcopy(module.state_dict()), [type(part) for part in module.modules()]
    replaced = replace_recurrent(module)
    for part, old in zip(replaced.modules(), module.modules(), strict=True):
        theirs = type(old) in (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
        assert type(part) is (getattr(recurrent, type(old).__name__) if theirs else type(old))
        assert part.training == old.training and len(part._forward_hooks) == len(old._forward_hooks)
    assert (
        replaced.again is replaced.first
        and replaced.cells[1].weight_hh is replaced.cells[0].weight_hh
    )
    assert (
        list(replaced.state_dict()) == list(before)
        and replaced.first.weight_ih_l0 is not module.first.weight_ih_l0
    )
    x = torch.randn(5, 2, 3).double()
    torch.testing.assert_close(replaced(x), module(x), **CLOSE)
    with torch.no_grad():
        for parameter in replaced.parameters():
            parameter.zero_()
    assert [type(part) for part in module.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_root_may_be_the_layer_and_an_original_that_cannot_be_copied_is_left_alone():
    layer = nn.LSTM(3, 4)
    assert type(replace_recurrent(layer)) is recurrent.LSTM and type(layer) is nn.LSTM
    layer.buffer = torch.ones(2, requires_grad=True) * 2  # which deepcopy refuses
    with pytest.raises(RuntimeError, match="deepcopy"):
        replace_recurrent(layer)
    assert type(layer) is nn.LSTM


@pytest.mark.parametrize("kind", LAYERS)
def test_a_packed_sequence_is_refused_and_the_advice_holds(kind):
    theirs, ours = pair(kind)
    packed = pack_sequence([torch.randn(5, 3).double(), torch.randn(2, 3).double()])
    with pytest.raises(
        ConfigError,
        match=f"PackedSequence, which weightloom.networks.recurrent.{kind} does not read",
    ):
        ours(packed)
    outputs, lengths = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0])
    padded = ours(nn.utils.rnn.pad_packed_sequence(packed)[0])[0]
    for number, length in enumerate(lengths):
        torch.testing.assert_close(padded[:length, number], outputs[:length, number], **CLOSE)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            recurrent.LSTM(3, 4),
            (5, 2, 1),
            r"shape \(5, 2, 1\). LSTM\(3, 4\) reads \(steps, 3\) or \(steps, batch, 3\)",
        ),
        (
            recurrent.GRU(3, 4, batch_first=True),
            (2, 0, 3),
            r"reads \(steps, 3\) or \(batch, steps, 3\), of one step",
        ),
        (recurrent.RNN(3, 4), (0, 3), "one step or more"),
        (recurrent.RNN(3, 4), (3,), "RNN"),
        (recurrent.LSTMCell(3, 4), (5, 2, 3), r"LSTMCell\(3, 4\) reads \(3,\) or \(batch, 3\)"),
        (recurrent.GRUCell(3, 4), (2,), "input_size"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(layer, shape, message):
    with pytest.raises(ShapeError, match=message):
        layer(torch.randn(shape))


@pytest.mark.parametrize(
    ("layer", "x", "hx", "message"),
    [
        (
            recurrent.GRU(3, 4, 2),
            (5, 2, 3),
            [(1, 2, 4)],
            r"\(1, 2, 4\). With this `input`, GRU.* from \(2, 2, 4\)",
        ),
        (
            recurrent.LSTM(3, 4, proj_size=2),
            (5, 3),
            [(1, 2), (1, 2)],
            r"from \(1, 1, 2\) and \(1, 1, 4\)",
        ),
        (recurrent.LSTMCell(3, 4), (2, 3), [(2, 4), (1, 4)], r"from \(2, 4\) and \(2, 4\)"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(layer, x, hx, message, unchecked):
    states = tuple(torch.randn(shape) for shape in hx)
    with pytest.raises(ShapeError, match=message):
        layer(torch.randn(x), states if len(states) > 1 else states[0])
