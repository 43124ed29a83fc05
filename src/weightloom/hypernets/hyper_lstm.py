"""The HyperLSTM: an LSTM whose weights a smaller LSTM rescales at every step.

In:   sequences, or one step of them, and initial states.
Out:  hidden states and final states, as from `torch.nn.LSTM`.
Knows nothing of tasks or conditions: the generated scales depend on the sequence, and are used
inside the cell only.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from weightloom.errors import ShapeError
from weightloom.hypernets.writer import check_sizes

GATES = 4
"""Number of gates: input, forget, cell and output, in torch's order."""


class HyperLSTMState(NamedTuple):
    """Recurrent state of a `HyperLSTMCell`."""

    hidden: Float[Tensor, "*batch hidden"]
    """Hidden state, as of `torch.nn.LSTMCell`."""
    cell: Float[Tensor, "*batch hidden"]
    """Cell state, as of `torch.nn.LSTMCell`."""
    hyper_hidden: Float[Tensor, "*batch hyper"]
    """Hidden state of the small LSTM."""
    hyper_cell: Float[Tensor, "*batch hyper"]
    """Cell state of the small LSTM."""


class HyperLSTMCell(nn.Module):
    """LSTM cell whose weight rows are scaled by a smaller LSTM; called like `torch.nn.LSTMCell`.

    It is not a `HyperNetwork`: it reads no condition and returns no Params. It is a recurrent cell
    with a hypernetwork inside, and can be used wherever such a cell can, also in a base network.

    The small LSTM reads [h, x] and outputs ĥ. For each gate y of i, f, g, o, three linear
    embeddings of ĥ scale the rows of the gate's two weights and shift the gate:

        z_h = W_ĥh ĥ + b_ĥh,    z_x = W_ĥx ĥ + b_ĥx,    z_b = W_ĥb ĥ,
        y = LN( (D_h z_h) ⊙ W_h h + (D_x z_x) ⊙ W_x x + D_b z_b + b₀ ),
        c' = σ(f) ⊙ c + σ(i) ⊙ tanh(g),    h' = σ(o) ⊙ tanh(LN(c')).

    W_ĥh and W_ĥx start at 0 and their biases at 1, D_h and D_x at 0.1 / embedding_dim everywhere,
    D_b at 0 and W_ĥb at random, of standard deviation 0.01. So each gate starts as that of an LSTM
    with a tenth of the weights.

    Args:
        input_size: Width of an input.
        hidden_size: Width of the hidden state.
        hyper_size: Width of the small LSTM.
        embedding_dim: Width of each embedding z.
        layer_norm: Apply the layer norms LN, to each gate and to the cell as read by the output, in
            both LSTMs. False omits them.

    Raises:
        ConfigError: If a size is below 1.

    Example:
        >>> cell = HyperLSTMCell(3, 8, hyper_size=4)
        >>> state = cell(torch.randn(5, 3))
        >>> cell(torch.randn(5, 3), state).hidden.shape
        torch.Size([5, 8])

    Source:
        Ha, Dai and Le, "HyperNetworks" (2017), section 3.2 and appendix A.2.2. In the paper the
        embeddings read ĥ of the previous step; here, as in the authors' published code, they read
        ĥ of the current step. Weights are initialised as in `torch.nn.LSTMCell`, whereas the
        authors use orthogonal ones, add 1 to the forget gate, and apply dropout.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        hyper_size: int,
        embedding_dim: int = 4,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size}
        check_sizes(**sizes, hyper_size=hyper_size, embedding_dim=embedding_dim)
        self.input_size, self.hidden_size, self.hyper_size = input_size, hidden_size, hyper_size
        self.embedding_dim = embedding_dim
        self.hyper = nn.LSTMCell(hidden_size + input_size, hyper_size)
        bound = hidden_size**-0.5
        self.weight_hh = nn.Parameter(
            torch.empty(GATES * hidden_size, hidden_size).uniform_(-bound, bound)
        )
        self.weight_ih = nn.Parameter(
            torch.empty(GATES * hidden_size, input_size).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.empty(GATES * hidden_size).uniform_(-bound, bound))
        self.embed_h = nn.Linear(hyper_size, GATES * embedding_dim)
        self.embed_x = nn.Linear(hyper_size, GATES * embedding_dim)
        self.embed_b = nn.Linear(hyper_size, GATES * embedding_dim, bias=False)
        for embed in (self.embed_h, self.embed_x):
            nn.init.zeros_(embed.weight)
            nn.init.ones_(embed.bias)
        nn.init.normal_(self.embed_b.weight, std=0.01)
        rows = GATES, hidden_size, embedding_dim
        self.scale_h = nn.Parameter(torch.full(rows, 0.1 / embedding_dim))
        self.scale_x = nn.Parameter(torch.full(rows, 0.1 / embedding_dim))
        self.shift = nn.Parameter(torch.zeros(rows))
        self.norm = _Norms(hidden_size) if layer_norm else None
        self.hyper_norm = _Norms(hyper_size) if layer_norm else None

    def forward(
        self, input: Float[Tensor, "*batch inputs"], state: HyperLSTMState | None = None
    ) -> HyperLSTMState:
        """Take one step.

        Args:
            input: Inputs of one step, (batch, input_size) or (input_size,).
            state: State returned by the previous step. Default: zeros.

        Returns:
            The next state; its ``hidden`` is the output.

        Raises:
            ShapeError: If the input has another shape.
        """
        if input.ndim not in (1, 2) or input.shape[-1] != self.input_size:
            raise ShapeError(
                f"`input` has shape {tuple(input.shape)}. This cell reads (batch, "
                f"{self.input_size}), one step at a "
                "time. Run a sequence through `HyperLSTM`."
            )
        state = state or self.start(input)
        seen = torch.cat([state.hidden, input], dim=-1)
        its = self.hyper
        hyper_gates = linear(seen, its.weight_ih, its.bias_ih) + linear(
            state.hyper_hidden, its.weight_hh, its.bias_hh
        )
        hyper_hidden, hyper_cell = _advance(hyper_gates, state.hyper_cell, self.hyper_norm)
        of_hidden = self._rows(self.embed_h, self.scale_h, hyper_hidden) * linear(
            state.hidden, self.weight_hh
        )
        of_input = self._rows(self.embed_x, self.scale_x, hyper_hidden) * linear(
            input, self.weight_ih
        )
        gates = (
            of_hidden + of_input + self._rows(self.embed_b, self.shift, hyper_hidden) + self.bias
        )
        return HyperLSTMState(*_advance(gates, state.cell, self.norm), hyper_hidden, hyper_cell)

    def start(self, input: Float[Tensor, "*batch inputs"]) -> HyperLSTMState:
        """Return the initial state, all zeros, for inputs of this batch size, device and dtype."""
        hidden, hyper = (
            input.new_zeros(*input.shape[:-1], size) for size in (self.hidden_size, self.hyper_size)
        )
        return HyperLSTMState(hidden, hidden, hyper, hyper)

    def _rows(self, embed: nn.Linear, weight: Tensor, hyper_hidden: Tensor) -> Tensor:
        """Scale or shift of each row of each gate: W z, gate by gate."""
        z = embed(hyper_hidden).unflatten(-1, (GATES, self.embedding_dim))
        return torch.einsum("...gz,ghz->...gh", z, weight).flatten(-2)


class HyperLSTM(nn.Module):
    """`HyperLSTMCell` run over sequences; called like a one-layer `torch.nn.LSTM`.

    The state, given and returned, is a `HyperLSTMState`: ``hidden`` and ``cell``, (batch,
    hidden_size), ``hyper_hidden`` and ``hyper_cell``, (batch, hyper_size). It consists of plain
    tensor operations, so `apply_per_task` can run it for many tasks in one pass.

    Args:
        input_size: Width of an input.
        hidden_size: Width of the hidden state.
        hyper_size: Width of the small LSTM.
        embedding_dim: Width of each embedding z.
        layer_norm: Normalise gates and cells.
        batch_first: Read sequences as (batch, steps, input_size) instead of (steps, batch,
            input_size).

    Raises:
        ConfigError: If a size is below 1.

    Example:
        >>> output, state = HyperLSTM(3, 8, hyper_size=4, batch_first=True)(torch.randn(5, 7, 3))
        >>> output.shape, state.cell.shape
        (torch.Size([5, 7, 8]), torch.Size([5, 8]))

    Source:
        As for `HyperLSTMCell`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        hyper_size: int,
        embedding_dim: int = 4,
        layer_norm: bool = False,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.cell = HyperLSTMCell(input_size, hidden_size, hyper_size, embedding_dim, layer_norm)
        self.batch_first = batch_first

    def forward(
        self, input: Float[Tensor, "*axes inputs"], state: HyperLSTMState | None = None
    ) -> tuple[Float[Tensor, "*axes hidden"], HyperLSTMState]:
        """Read a sequence, or a batch of them.

        Args:
            input: Sequences, (steps, batch, input_size), or (batch, steps, input_size) if
                ``batch_first``; or one sequence, (steps, input_size).
            state: Initial state, each part (batch, size), without the axis of layers of
                `torch.nn.LSTM`. Default: zeros.

        Returns:
            The hidden state at every step, in the layout of the input, and the final state.

        Raises:
            ShapeError: If the input has no step or another shape.
        """
        time = 1 if self.batch_first and input.ndim == 3 else 0
        if (
            input.ndim not in (2, 3)
            or input.shape[time] == 0
            or input.shape[-1] != self.cell.input_size
        ):
            axes = "batch, steps" if self.batch_first else "steps, batch"
            raise ShapeError(
                f"`input` has shape {tuple(input.shape)}. This layer reads ({axes}, "
                f"{self.cell.input_size}), or (steps, {self.cell.input_size}), with one step or "
                "more. Pass a sequence of that shape."
            )
        hidden: list[Tensor] = []
        for step in input.unbind(time):
            state = self.cell(step, state)
            hidden.append(state.hidden)
        assert state is not None
        return torch.stack(hidden, dim=time), state


class _Norms(nn.Module):
    """Layer norms of the four gates, each with a separate gain and shift, and of the cell."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain, self.shift = (
            nn.Parameter(torch.ones(GATES, size)),
            nn.Parameter(torch.zeros(GATES, size)),
        )
        self.cell = nn.LayerNorm(size)

    def gates(self, gates: Tensor) -> Tensor:
        each = gates.unflatten(-1, self.gain.shape)
        return (layer_norm(each, each.shape[-1:]) * self.gain + self.shift).flatten(-2)


def _advance(gates: Tensor, cell: Tensor, norm: _Norms | None) -> tuple[Tensor, Tensor]:
    """Next hidden state and cell, from the four concatenated gates and the cell."""
    i, f, g, o = (gates if norm is None else norm.gates(gates)).chunk(GATES, dim=-1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * (cell if norm is None else norm.cell(cell)).tanh(), cell
