"""Recurrent layers of `torch.nn` in plain operations, which `torch.func.vmap` can batch over tasks.

In:   sequences, or one step of them, and initial states.
Out:  outputs and final states, equal to those of the layer of the same name in `torch.nn`.
Knows nothing of tasks, nor of the origin of its parameters.

torch's recurrent layers are one fused operation that `vmap` does not support. Each class here is
torch's with another ``forward``; constructor, initialisation, parameter names and ``state_dict``
are inherited. The fused operation is faster, so replace a layer only if its parameters differ
between tasks. Start at `replace_recurrent`.
"""

import copy
from collections.abc import Callable
from typing import Any, NoReturn, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from weightloom.errors import ConfigError, ShapeError

State = tuple[Tensor, ...]
"""State of a layer between steps: (hidden,), or (hidden, cell) of an LSTM."""

Advance = Callable[[Tensor, Tensor, State], State]
"""One step: gate pre-activations from the input, those from the hidden state, and the state, to the
next state."""

Inputs = Float[Tensor, "*axes inputs"]
Outputs = Float[Tensor, "*axes outputs"]
Hidden = Float[Tensor, "states *batch hidden"]
CellState = Float[Tensor, "states *batch cell"]


class LSTM(nn.LSTM):
    """`torch.nn.LSTM` that `vmap` can run.

    Arguments, defaults, initialisation and parameter names are those of `torch.nn.LSTM`, including
    ``proj_size``.

    Example:
        >>> output, (hidden, cell) = LSTM(3, 4, num_layers=2)(torch.randn(5, 7, 3))
        >>> output.shape, hidden.shape, cell.shape
        (torch.Size([5, 7, 4]), torch.Size([2, 7, 4]), torch.Size([2, 7, 4]))
    """

    @overload
    def forward(
        self, input: Inputs, hx: tuple[Hidden, CellState] | None = None
    ) -> tuple[Outputs, tuple[Hidden, CellState]]: ...
    @overload
    def forward(
        self, input: PackedSequence, hx: tuple[Hidden, CellState] | None = None
    ) -> NoReturn: ...
    def forward(
        self, input: Inputs | PackedSequence, hx: tuple[Hidden, CellState] | None = None
    ) -> tuple[Outputs, tuple[Hidden, CellState]]:
        """Run over a sequence, or a batch of sequences.

        Args:
            input: (steps, batch, inputs), or (batch, steps, inputs) if ``batch_first``, or (steps,
                inputs).
            hx: Initial hidden and cell state, each (layers * directions, batch, hidden), without
                ``batch`` if ``input`` has none. Default: zeros.

        Returns:
            The last layer's hidden state at every step, both directions concatenated, and the final
            hidden and cell state.

        Raises:
            ShapeError: If ``input`` or a state does not fit.
            ConfigError: If ``input`` is a PackedSequence.
        """
        output, (hidden, cell) = _run(
            self, _lstm, input, hx, (self.proj_size or self.hidden_size, self.hidden_size)
        )
        return output, (hidden, cell)


class GRU(nn.GRU):
    """`torch.nn.GRU` that `vmap` can run.

    Arguments, defaults, initialisation and parameter names are those of `torch.nn.GRU`.

    Example:
        >>> output, hidden = GRU(3, 4, bidirectional=True)(torch.randn(5, 7, 3))
        >>> output.shape, hidden.shape
        (torch.Size([5, 7, 8]), torch.Size([2, 7, 4]))
    """

    @overload
    def forward(self, input: Inputs, hx: Hidden | None = None) -> tuple[Outputs, Hidden]: ...
    @overload
    def forward(self, input: PackedSequence, hx: Hidden | None = None) -> NoReturn: ...
    def forward(
        self, input: Inputs | PackedSequence, hx: Hidden | None = None
    ) -> tuple[Outputs, Hidden]:
        """Read a sequence, or a batch of them.

        Arguments, results and errors are those of `LSTM.forward`, without a cell.
        """
        output, (hidden,) = _run(
            self, _gru, input, None if hx is None else (hx,), (self.hidden_size,)
        )
        return output, hidden


class RNN(nn.RNN):
    """`torch.nn.RNN` that `vmap` can run.

    Arguments, defaults, initialisation and parameter names are those of `torch.nn.RNN`.

    Example:
        >>> output, hidden = RNN(3, 4, nonlinearity="relu", batch_first=True)(torch.randn(7, 5, 3))
        >>> output.shape, hidden.shape
        (torch.Size([7, 5, 4]), torch.Size([1, 7, 4]))
    """

    @overload
    def forward(self, input: Inputs, hx: Hidden | None = None) -> tuple[Outputs, Hidden]: ...
    @overload
    def forward(self, input: PackedSequence, hx: Hidden | None = None) -> NoReturn: ...
    def forward(
        self, input: Inputs | PackedSequence, hx: Hidden | None = None
    ) -> tuple[Outputs, Hidden]:
        """Read a sequence, or a batch of them.

        Arguments, results and errors are those of `LSTM.forward`, without a cell.
        """
        advance = _ELMAN[self.nonlinearity]
        output, (hidden,) = _run(
            self, advance, input, None if hx is None else (hx,), (self.hidden_size,)
        )
        return output, hidden


class LSTMCell(nn.LSTMCell):
    """`torch.nn.LSTMCell` that `vmap` can run: one step of an `LSTM`.

    Arguments, defaults, initialisation and parameter names are those of `torch.nn.LSTMCell`.

    Example:
        >>> hidden, cell = LSTMCell(3, 4)(torch.randn(7, 3))
        >>> hidden.shape, cell.shape
        (torch.Size([7, 4]), torch.Size([7, 4]))
    """

    def forward(
        self, input: Inputs, hx: tuple[Outputs, Outputs] | None = None
    ) -> tuple[Outputs, Outputs]:
        """Take one step.

        Args:
            input: (batch, inputs) or (inputs,).
            hx: Hidden and cell state, each (batch, hidden) or (hidden,). Default: zeros.

        Returns:
            The next hidden and cell state.

        Raises:
            ShapeError: If ``input`` or a state does not fit.
        """
        hidden, cell = _step(self, _lstm, input, hx, count=2)
        return hidden, cell


class GRUCell(nn.GRUCell):
    """`torch.nn.GRUCell` that `vmap` can run: one step of a `GRU`.

    Arguments, defaults, initialisation and parameter names are those of `torch.nn.GRUCell`.

    Example:
        >>> GRUCell(3, 4)(torch.randn(7, 3)).shape
        torch.Size([7, 4])
    """

    def forward(self, input: Inputs, hx: Outputs | None = None) -> Outputs:
        """Take one step; arguments, result and errors as in `LSTMCell.forward`, without a cell."""
        return _step(self, _gru, input, None if hx is None else (hx,))[0]


class RNNCell(nn.RNNCell):
    """`torch.nn.RNNCell` that `vmap` can run: one step of an `RNN`.

    Arguments, defaults, initialisation and parameter names are those of `torch.nn.RNNCell`.

    Example:
        >>> RNNCell(3, 4)(torch.randn(7, 3)).shape
        torch.Size([7, 4])
    """

    def forward(self, input: Inputs, hx: Outputs | None = None) -> Outputs:
        """Take one step; arguments, result and errors as in `LSTMCell.forward`, without a cell."""
        return _step(self, _ELMAN[self.nonlinearity], input, None if hx is None else (hx,))[0]


def replace_recurrent(module: nn.Module) -> nn.Module:
    """Copy ``module`` with every recurrent layer of `torch.nn` replaced by its equivalent here.

    The copy keeps parameters, names, tied parameters, hooks and train or eval mode; ``module`` is
    not changed. Subclasses of torch's layers are not replaced: they may define another ``forward``.

    Args:
        module: Any module, also a recurrent layer itself.

    Example:
        >>> replace_recurrent(nn.ModuleDict({"reader": nn.GRU(3, 4), "head": nn.Linear(4, 2)}))
        ModuleDict(
          (reader): GRU(3, 4)
          (head): Linear(in_features=4, out_features=2, bias=True)
        )
    """
    replaced = copy.deepcopy(module)
    for part in replaced.modules():
        if type(part) in _REPLACED_BY:
            # Only `forward` differs; changing the class keeps every reference to the layer valid.
            part.__class__ = _REPLACED_BY[type(part)]
    return replaced


def original_recurrent(module: nn.Module) -> nn.Module:
    """Undo `replace_recurrent` in place: turn the layers of ``module`` back into torch's own."""
    torchs = {ours: its for its, ours in _REPLACED_BY.items()}
    for part in module.modules():
        if type(part) in torchs:
            part.__class__ = torchs[type(part)]
            if isinstance(part, nn.RNNBase):
                part.flatten_parameters()
    return module


_REPLACED_BY: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
}


def _lstm(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    # order of the gates as in torch: i, f, g, o
    enter, keep, candidate, show = (from_input + from_hidden).chunk(4, -1)
    cell = keep.sigmoid() * state[1] + enter.sigmoid() * candidate.tanh()
    return show.sigmoid() * cell.tanh(), cell


def _gru(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    # order of the gates as in torch: r, z, n; r scales only the hidden state's part of n
    reset_x, keep_x, candidate_x = from_input.chunk(3, -1)
    reset_h, keep_h, candidate_h = from_hidden.chunk(3, -1)
    candidate = (candidate_x + (reset_x + reset_h).sigmoid() * candidate_h).tanh()
    return (candidate + (keep_x + keep_h).sigmoid() * (state[0] - candidate),)


_ELMAN: dict[str, Advance] = {
    "tanh": lambda from_input, from_hidden, _: ((from_input + from_hidden).tanh(),),
    "relu": lambda from_input, from_hidden, _: ((from_input + from_hidden).relu(),),
}


def _run(
    layer: nn.RNNBase,
    advance: Advance,
    sequence: Tensor | PackedSequence,
    states: State | None,
    sizes: tuple[int, ...],
) -> tuple[Tensor, State]:
    """Run all layers and directions over a sequence; ``sizes`` are the last axes of the states."""
    x = _checked(layer, sequence)
    if x.ndim == 2:
        alone = None if states is None else tuple(state.unsqueeze(1) for state in states)
        x, states = _run_batch(layer, advance, x.unsqueeze(1), alone, sizes)
        return x.squeeze(1), tuple(state.squeeze(1) for state in states)
    if layer.batch_first:
        x, states = _run_batch(layer, advance, x.transpose(0, 1), states, sizes)
        return x.transpose(0, 1), states
    return _run_batch(layer, advance, x, states, sizes)


def _run_batch(
    layer: nn.RNNBase, advance: Advance, x: Tensor, states: State | None, sizes: tuple[int, ...]
) -> tuple[Tensor, State]:
    """Run all layers and directions over (steps, batch, inputs)."""
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    starts = _starts(
        layer, x, states, [(layer.num_layers * len(directions), x.shape[1], size) for size in sizes]
    )
    start_of_each = zip(*starts, strict=True)
    finals: list[State] = []
    for depth in range(layer.num_layers):
        x = F.dropout(x, layer.dropout, layer.training) if depth else x
        outputs: list[Tensor] = []
        for suffix in directions:
            output, final = _unroll(layer, f"l{depth}{suffix}", advance, x, next(start_of_each))
            outputs.append(output)
            finals.append(final)
        x = torch.cat(outputs, -1) if layer.bidirectional else outputs[0]
    return x, tuple(torch.stack(state) for state in zip(*finals, strict=True))


def _unroll(
    layer: nn.RNNBase, place: str, advance: Advance, x: Tensor, state: State
) -> tuple[Tensor, State]:
    """Run one layer in one direction, (steps, batch, inputs) to (steps, batch, outputs)."""

    def parameter(name: str) -> Any:
        return getattr(layer, f"{name}_{place}", None)

    weight_hh, bias_hh, weight_hr = (
        parameter("weight_hh"),
        parameter("bias_hh"),
        parameter("weight_hr"),
    )
    order = -1 if place.endswith("_reverse") else 1
    outputs: list[Tensor] = []
    for from_input in F.linear(x, parameter("weight_ih"), parameter("bias_ih")).unbind(0)[::order]:
        state = advance(from_input, F.linear(state[0], weight_hh, bias_hh), state)
        if weight_hr is not None:
            state = (F.linear(state[0], weight_hr), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs[::order]), state


def _step(
    cell: nn.RNNCellBase, advance: Advance, x: Tensor, states: State | None, count: int = 1
) -> State:
    """Run one step of a cell whose state is ``count`` tensors."""
    if x.ndim not in (1, 2) or x.shape[-1] != cell.input_size:
        raise _misfit(cell, x, f"({cell.input_size},) or (batch, {cell.input_size})")
    starts = _starts(cell, x, states, [(*x.shape[:-1], cell.hidden_size)] * count)
    from_input = F.linear(x, cell.weight_ih, cell.bias_ih)
    return advance(from_input, F.linear(starts[0], cell.weight_hh, cell.bias_hh), starts)


def _starts(
    module: nn.Module, x: Tensor, states: State | None, shapes: list[tuple[int, ...]]
) -> State:
    """Initial states: the given ones, which must have these shapes, or zeros."""
    if states is None:
        return tuple(x.new_zeros(shape) for shape in shapes)
    if [tuple(state.shape) for state in states] != shapes:
        raise ShapeError(
            f"`hx` has shape {' and '.join(str(tuple(state.shape)) for state in states)}. With "
            f"this `input`, {type(module).__name__}({module.extra_repr()}) starts from "
            f"{' and '.join(map(str, shapes))}. "
            "Pass states of this shape, or leave `hx` out to start from zeros."
        )
    return states


def _checked(layer: nn.RNNBase, x: Tensor | PackedSequence) -> Tensor:
    """The input of a layer, of the right shape and not packed."""
    if isinstance(x, PackedSequence):
        raise ConfigError(
            f"`input` is a PackedSequence, which {__name__}.{type(layer).__name__} does not read. "
            "Its batch shrinks from step to step, but one pass over all tasks needs one shape. "
            "Pass `pad_packed_sequence(input)[0]` and, in a layer that is not bidirectional, use "
            "each output up to its own length; or keep the layer of `torch.nn`."
        )
    if (
        x.ndim not in (2, 3)
        or x.shape[-1] != layer.input_size
        or not x.shape[int(layer.batch_first and x.ndim == 3)]
    ):
        batch = "batch, steps" if layer.batch_first else "steps, batch"
        raise _misfit(
            layer,
            x,
            f"(steps, {layer.input_size}) or ({batch}, {layer.input_size}), of one step or more",
        )
    return x


def _misfit(module: nn.Module, x: Tensor, fits: str) -> ShapeError:
    return ShapeError(
        f"`input` has shape {tuple(x.shape)}. {type(module).__name__}({module.extra_repr()}) reads "
        f"{fits}. Reshape it, or build the layer with the `input_size` of this input."
    )
