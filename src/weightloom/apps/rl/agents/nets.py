"""Networks of agents: what is generated from state and context, and the plain networks it is held against.

In:   rows of numbers, [context | state] for a policy, [context | state | action] for a critic.
Out:  (rows, outputs).
Knows nothing of algorithms; which columns are read for what is said once, by `Columns`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from weightloom.base import apply_per_task
from weightloom.forms import Factored, LowRank
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import mlp
from weightloom.params import Params

Outputs = Mapping[str, int]
"""Numbers that each network gives, by its name."""
Rows = Float[Tensor, "rows numbers"]
Kind = Literal["hypernetwork", "context-only", "film", "input-matched", "concat", "none"]
KINDS: tuple[Kind, ...] = (
    "hypernetwork",
    "context-only",
    "film",
    "input-matched",
    "concat",
    "none",
)


@dataclass(frozen=True)
class Columns:
    """How many numbers of a row are context, state and action, in this order."""

    context: int
    state: int
    action: int = 0

    @property
    def seen(self) -> slice:
        """Context and state: what parameters are generated from."""
        return slice(0, self.context + self.state)

    @property
    def told(self) -> slice:
        """The context."""
        return slice(0, self.context)

    @property
    def acted(self) -> slice:
        """State and action: what a generated network reads."""
        return slice(self.context, self.context + self.state + self.action)


@dataclass(frozen=True)
class Sizes:
    """How large networks are."""

    width: int = 128
    """Of the trunk."""
    blocks: int = 2
    """Residual blocks of the trunk."""
    hidden: int = 128
    """Hidden units of the generated network."""
    rank: int = 8
    """Of what is generated of each matrix that is larger."""
    unit: bool = False
    """Whether what the trunk gives is brought to length one before parameters are generated from
    it."""


class ModulatedLayer(nn.Module):
    """A network of one hidden layer with a gain: last(relu((1 + g) · (W x) + b)).

    Args:
        inputs: Numbers it reads.
        hidden: Hidden units.
        outputs: Numbers it gives.

    Source:
        Sarafian, Keynan and Kraus, "Recomposing the reinforcement learning building blocks with
        hypernetworks" (2021), section 4: the dynamic network, its gain as here 1 + g.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden, bias=False)
        self.gain = nn.Parameter(torch.zeros(hidden))
        self.bias = nn.Parameter((2 * torch.rand(hidden) - 1) / inputs**0.5)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Run it, (batch, inputs) to (batch, outputs)."""
        hidden = relu((1 + self.gain) * self.first(x) + self.bias)
        outputs: Tensor = self.last(hidden)
        return outputs


class ResidualMLP(nn.Module):
    """A linear layer, then blocks of two linear layers whose result is added to what came in.

    Args:
        inputs: Numbers it reads.
        width: Numbers it gives.
        blocks: How many.
    """

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(mlp([width, width, width]) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Read features, (rows, inputs) to (rows, width)."""
        x = self.first(x)
        for block in self.blocks:
            x = x + block(relu(x))
        return relu(x)


class SideBySide(nn.Module):
    """Several networks that read the same numbers; what they give stands side by side.

    Args:
        networks: By name, as ``policy`` and ``value``.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Run all of them, (batch, inputs) to (batch, outputs of all)."""
        outputs = [network(x) for network in self.networks.values()]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


class GeneratedNetwork(nn.Module):
    """y = f(x; h(z)): z is [context | state], or the context alone, and x is [state | action].

    A residual trunk reads z, a linear head writes the parameters of a `ModulatedLayer` for each
    output: matrices as a change of low rank to a shared one, everything else in full. At step 0
    every row gets the same networks. Where z is the context alone, parameters are generated once
    for each different context among the rows, and without gradients they are kept as long as
    contexts and own parameters stay as they are: a policy that acts generates once an episode.

    One step of Adam moves a generated parameter by the learning rate times the sum of the trunk's
    features, where it moves a parameter of a plain network by the learning rate. Where states are
    large, so is that sum: a policy with a tanh at its end is soon at one of its limits, and stays
    there. With ``sizes.unit`` features have length one.

    Args:
        columns: What rows hold.
        outputs: Numbers that each network gives, by its name: one hypernetwork writes all of them.
        sizes: How large it is.
        generate: Which parameters of the `ModulatedLayer` are generated.
        condition: What z is: all that is seen, the context alone, or a context that differs from
            row to row.

    Source:
        Botteghi et al., "HypeRL" (2026), and Sarafian et al. (2021), section 4 and appendix A. Low
        rank, and x with the state beside the action, are ours: theirs generates the matrix in full,
        and its critic reads the action. Policy and value from one hypernetwork: Beck et al.,
        "Recurrent hypernetworks are surprisingly strong in meta-RL" (2023).
    """

    def __init__(
        self,
        columns: Columns,
        outputs: Outputs,
        sizes: Sizes,
        generate: str | list[str] = "*",
        condition: Literal["seen", "context", "memory"] = "seen",
    ) -> None:
        super().__init__()
        self.read, self.condition = (
            columns.acted,
            columns.seen if condition == "seen" else columns.told,
        )
        self.repeats, self.unit = condition == "context", sizes.unit
        self.trunk = ResidualMLP(self.condition.stop, sizes.width, sizes.blocks)
        inputs = columns.state + columns.action
        base = SideBySide(
            {name: ModulatedLayer(inputs, sizes.hidden, count) for name, count in outputs.items()}
        )
        self.hyper = MLPHyperNetwork(
            base, sizes.width, generate, hidden=(), form=LowRank(sizes.rank)
        )
        self._kept: tuple[Tensor, list[int], Params] | None = None

    def generate(self, rows: Rows) -> Params:
        """Generate the parameters of each row's networks."""
        z = rows[:, self.condition]
        if not self.repeats:
            return self._written(z)
        if torch.is_grad_enabled():
            contexts, place = torch.unique(z.detach(), dim=0, return_inverse=True)
            return Params(
                {name: _taken(value, place) for name, value in self._written(contexts).items()}
            )
        versions = [parameter._version for parameter in self.parameters()]
        if self._kept is None or self._kept[1] != versions or not torch.equal(self._kept[0], z):
            self._kept = (z.clone(), versions, self._written(z))
        return self._kept[2]

    def _written(self, z: Rows) -> Params:
        features = self.trunk(z)
        params: Params = self.hyper(normalize(features, dim=1) if self.unit else features)
        return params

    def forward(self, rows: Rows) -> Float[Tensor, "rows outputs"]:
        """Generate networks for each row and run them on that row."""
        outputs: Tensor = apply_per_task(
            self.hyper.base, self.generate(rows), rows[:, None, self.read]
        )
        return outputs[:, 0]


class PlainNetwork(nn.Module):
    """MLPs that read some of the columns: the context beside the state, or not at all.

    Args:
        read: Which columns they read.
        hidden: Widths of their hidden layers.
        outputs: Numbers that each gives, by its name.
    """

    def __init__(self, read: slice, hidden: list[int], outputs: Outputs) -> None:
        super().__init__()
        self.read = read
        inputs = read.stop - read.start
        self.layers = SideBySide(
            {name: mlp([inputs, *hidden, count]) for name, count in outputs.items()}
        )

    def forward(self, rows: Rows) -> Float[Tensor, "rows outputs"]:
        """Run them."""
        outputs: Tensor = self.layers(rows[:, self.read])
        return outputs


class MatchedNetwork(nn.Module):
    """All that a generated network sees, with nothing generated.

    Trunk features and x side by side, x a second time.

    Args:
        columns: What rows hold.
        outputs: Numbers that each network gives, by its name.
        sizes: How large it is.
        hidden: Hidden units behind the trunk, of each.
    """

    def __init__(self, columns: Columns, outputs: Outputs, sizes: Sizes, hidden: int) -> None:
        super().__init__()
        self.condition, self.read = columns.seen, columns.acted
        self.trunk = ResidualMLP(self.condition.stop, sizes.width, sizes.blocks)
        inputs = sizes.width + columns.state + columns.action
        self.layers = SideBySide(
            {name: mlp([inputs, hidden, count]) for name, count in outputs.items()}
        )

    def forward(self, rows: Rows) -> Float[Tensor, "rows outputs"]:
        """Run it."""
        outputs: Tensor = self.layers(
            torch.cat([self.trunk(rows[:, self.condition]), rows[:, self.read]], 1)
        )
        return outputs


def network_of(
    kind: Kind, columns: Columns, outputs: Outputs, sizes: Sizes, memory: bool = False
) -> nn.Module:
    """Build the network of a method; all are made as wide as gives them the parameters of the one that is generated.

    Args:
        kind: What is generated, or what a plain network reads.
        columns: What rows hold.
        outputs: Numbers that each network gives, by its name.
        sizes: Those of the generated network.
        memory: Whether the context is what a recurrent layer remembers, from which alone parameters
            are generated.

    Example:
        >>> columns, count = Columns(context=2, state=4), lambda net: sum(p.numel() for p in net.parameters())
        >>> nets = {kind: network_of(kind, columns, {"policy": 2}, Sizes()) for kind in ("hypernetwork", "concat")}
        >>> 0.98 < count(nets["concat"]) / count(nets["hypernetwork"]) < 1.02
        True
    """
    condition: Literal["seen", "context", "memory"] = "memory" if memory else "seen"
    if kind == "context-only":
        return GeneratedNetwork(columns, outputs, sizes, condition="context")
    whole = GeneratedNetwork(columns, outputs, sizes, condition=condition)
    if kind == "hypernetwork":
        return whole
    if kind == "film":
        few = ["*.gain", "*.bias"]
        return _widest(
            lambda width: GeneratedNetwork(
                columns, outputs, replace(sizes, width=width), few, condition
            ),
            whole,
        )
    if kind == "input-matched":
        return _widest(lambda hidden: MatchedNetwork(columns, outputs, sizes, hidden), whole)
    total = columns.context + columns.state + columns.action
    read = slice(0, total) if kind == "concat" else slice(columns.context, total)
    return _widest(lambda width: PlainNetwork(read, [width, width], outputs), whole)


def _widest(make: Callable[[int], nn.Module], whole: nn.Module) -> nn.Module:
    """Make the network whose number of parameters comes closest to that of another, by bisection."""
    budget, low, high = _size(whole), 4, 4096
    with torch.device("meta"):
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _size(make(middle)) <= budget else (low, middle)
    return make(low)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _taken(value: Tensor, place: Tensor) -> Tensor:
    """Repeat the parameters of contexts for rows, held as factors where they were."""
    return value.map(lambda factor: factor[place]) if isinstance(value, Factored) else value[place]
