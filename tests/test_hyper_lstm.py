"""The HyperLSTM against the equations of its paper, gate by gate, and against torch's LSTM at the start."""

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm

from weightloom.base import apply_per_task
from weightloom.errors import ConfigError, ShapeError
from weightloom.hypernets import HyperLSTM, HyperLSTMCell, HyperLSTMState

INPUT, HIDDEN, HYPER, BATCH = 3, 5, 4, 6


def cell_of(**options):
    return HyperLSTMCell(INPUT, HIDDEN, HYPER, embedding_dim=2, **options).double()


def moved(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def state_of(batch=BATCH):
    return HyperLSTMState(
        *(torch.randn(batch, size).double() for size in (HIDDEN, HIDDEN, HYPER, HYPER))
    )


def slow_step(cell, x, state):
    """One row of a batch, gate by gate, as the equations stand."""

    def norm(gate, value, norms):
        if norms is None:
            return value
        return layer_norm(value, value.shape) * norms.gain[gate] + norms.shift[gate]

    def lstm(gates, memory, norms):
        i, f, g, o = (norm(number, gate, norms) for number, gate in enumerate(gates))
        memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
        shown = memory if norms is None else norms.cell(memory)
        return torch.sigmoid(o) * torch.tanh(shown), memory

    def rows(tensor, gate, size):
        return tensor[gate * size : (gate + 1) * size]

    h, c, hyper_h, hyper_c = state
    seen = torch.cat([h, x])
    small = [
        rows(cell.hyper.weight_ih, gate, HYPER) @ seen
        + rows(cell.hyper.weight_hh, gate, HYPER) @ hyper_h
        + rows(cell.hyper.bias_ih + cell.hyper.bias_hh, gate, HYPER)
        for gate in range(4)
    ]
    hyper_h, hyper_c = lstm(small, hyper_c, cell.hyper_norm)
    gates = []
    for gate in range(4):
        z_h = rows(cell.embed_h.weight, gate, 2) @ hyper_h + rows(cell.embed_h.bias, gate, 2)
        z_x = rows(cell.embed_x.weight, gate, 2) @ hyper_h + rows(cell.embed_x.bias, gate, 2)
        z_b = rows(cell.embed_b.weight, gate, 2) @ hyper_h
        d_h, d_x, b = cell.scale_h[gate] @ z_h, cell.scale_x[gate] @ z_x, cell.shift[gate] @ z_b
        of_h, of_x = rows(cell.weight_hh, gate, HIDDEN) @ h, rows(cell.weight_ih, gate, HIDDEN) @ x
        gates.append(d_h * of_h + d_x * of_x + b + rows(cell.bias, gate, HIDDEN))
    return *lstm(gates, c, cell.norm), hyper_h, hyper_c


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_step_follows_the_equations_gate_by_gate(layer_norm):
    cell, x, state = (
        moved(cell_of(layer_norm=layer_norm)),
        torch.randn(BATCH, INPUT).double(),
        state_of(),
    )
    actual = cell(x, state)
    for row in range(BATCH):
        expected = slow_step(cell, x[row], [part[row] for part in state])
        for part, one in zip(actual, expected, strict=True):
            torch.testing.assert_close(part[row], one, rtol=1e-12, atol=1e-12)


def test_at_the_start_it_is_an_lstm_whose_weights_are_a_tenth():
    cell, plain = cell_of(), nn.LSTMCell(INPUT, HIDDEN).double()
    with torch.no_grad():
        plain.weight_ih.copy_(0.1 * cell.weight_ih)
        plain.weight_hh.copy_(0.1 * cell.weight_hh)
        plain.bias_ih.copy_(cell.bias)
        plain.bias_hh.zero_()
    state = state_of()
    expected = state.hidden, state.cell
    for _ in range(4):
        x = torch.randn(BATCH, INPUT).double()
        state, expected = cell(x, state), plain(x, expected)
        torch.testing.assert_close((state.hidden, state.cell), expected)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_gradients_reach_every_parameter(layer_norm):
    """At the start all but those of the embeddings' zero layer and what is before it; after one step these too."""
    layer, x = (
        HyperLSTM(INPUT, HIDDEN, HYPER, layer_norm=layer_norm).double(),
        torch.randn(4, BATCH, INPUT).double(),
    )
    for _ in range(2):
        output, _ = layer(x)
        gradients = torch.autograd.grad(
            (output * torch.randn_like(output)).sum(), list(layer.parameters())
        )
        with torch.no_grad():
            for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
                parameter.sub_(0.1 * gradient)
    assert all(gradient.any() and gradient.isfinite().all() for gradient in gradients)


def test_gradients_are_those_of_finite_differences():
    cell = moved(cell_of(layer_norm=True))
    assert torch.autograd.gradcheck(
        lambda x, *state: cell(x, HyperLSTMState(*state)),
        [value[:2].requires_grad_() for value in (torch.randn(2, INPUT).double(), *state_of(2))],
    )


def test_a_sequence_is_one_step_after_another_whichever_axis_comes_first():
    torch.manual_seed(0)
    layer = moved(HyperLSTM(INPUT, HIDDEN, HYPER).double())
    first = HyperLSTM(INPUT, HIDDEN, HYPER, batch_first=True).double()
    first.load_state_dict(layer.state_dict())
    x, state = torch.randn(7, BATCH, INPUT).double(), state_of()
    output, final = layer(x, state)
    turned, also = first(x.transpose(0, 1), state)
    alone, _ = layer(x[:, 2], HyperLSTMState(*(part[2] for part in state)))
    for step in range(7):
        state = layer.cell(x[step], state)
        assert torch.equal(output[step], state.hidden)
    for part, other, expected in zip(final, also, state, strict=True):
        assert torch.equal(part, expected) and torch.equal(other, expected)
    assert torch.equal(turned.transpose(0, 1), output)
    torch.testing.assert_close(alone, output[:, 2])
    halfway = layer(x[4:], layer(x[:4], state_of())[1])[1]
    assert halfway.hidden.shape == (BATCH, HIDDEN)


def test_it_runs_as_a_base_for_many_tasks_in_one_pass():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = HyperLSTM(INPUT, HIDDEN, HYPER, batch_first=True)

        def forward(self, x):
            return self.layer(x)[0][:, -1]

    base, x = Last().double(), torch.randn(3, BATCH, 4, INPUT).double()
    params = {
        name: torch.randn(3, *value.shape).double() for name, value in base.named_parameters()
    }
    outputs = apply_per_task(base, params, x)
    for task in range(3):
        one = torch.func.functional_call(
            base, {name: value[task] for name, value in params.items()}, (x[task],)
        )
        torch.testing.assert_close(outputs[task], one)


def test_what_does_not_fit_is_refused(unchecked):
    with pytest.raises(
        ShapeError,
        match=r"has shape \(4, 6, 3\)\. This cell reads \(batch, 3\).*through `HyperLSTM`",
    ):
        cell_of()(torch.zeros(4, 6, 3).double())
    with pytest.raises(
        ShapeError, match=r"reads \(batch, steps, 3\), or \(steps, 3\), with one step or more"
    ):
        HyperLSTM(INPUT, HIDDEN, HYPER, batch_first=True)(torch.zeros(4, 0, 3))
    with pytest.raises(ConfigError, match=r"`hyper_size=0` is below 1"):
        HyperLSTM(INPUT, HIDDEN, 0)
