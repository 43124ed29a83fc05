"""The equivariant hypernetwork: a token for each input of a layer writes that input's column.

Order means nothing.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.conditions.support import AttentionBlock
from weightloom.errors import ConfigError, ShapeError
from weightloom.hypernets.hypernet import HyperNetwork, check_condition
from weightloom.hypernets.writer import check_sizes
from weightloom.params import Params


class EquivariantHyperNetwork(HyperNetwork):
    """Generate a linear layer input by input.

    Permute the inputs, and the columns of its weight are permuted alike.

    What is known of each input is a token. Tokens are mixed by relations between inputs (such as
    their correlations) and by attention, and one network, shared by all inputs, writes each column
    from its token. So there is no first input, and their number may differ from call to call: a
    layer for sensors whose order and meaning are unknown.

    With ``rounds`` the columns are no free numbers but a *signed assignment*: input j takes part in
    output i with the share P⁺ᵢⱼ, or negated with P⁻ᵢⱼ; the shares of an input sum to one, and every
    output gets as much as any other (rounds of Sinkhorn's normalisation, columns last). θ =
    amplitude ⊙ (P⁺ - P⁻), the amplitude of an output being learned. It suits inputs that are the
    outputs in another order; where each input is a blend of many, leave it out.

    At step 0 the weight of every task is zero, or with ``rounds`` nearly so, all shares being
    nearly alike. The outputs are then the bias, which is learned and the same for all tasks.

    Args:
        layer: Name of the linear layer in the base network; ``""`` if the base is that layer.
        outputs: Rows of its weight.
        condition_dim: Width of a token.
        relations: How many relations between inputs are read.
        width: Width of a token inside.
        layers: How many times tokens are mixed.
        heads: Heads of attention.
        rounds: Rounds of Sinkhorn's normalisation; 0 writes free numbers.

    Raises:
        ConfigError: If a size is below 1, ``relations`` or ``rounds`` is negative, or ``width`` is
            no multiple of ``heads``.

    Example:
        >>> hyper = EquivariantHyperNetwork("0", outputs=3, condition_dim=4, width=8)
        >>> {name: tuple(value.shape) for name, value in hyper(torch.randn(5, 7, 4)).items()}
        {'0.weight': (5, 3, 7), '0.bias': (5, 3)}

    Source:
        A network that reads and writes sets of vectors: Zaheer et al., "Deep Sets" (2017); Lee et
        al., "Set Transformer" (2019). The assignment: Sinkhorn and Knopp (1967), as a layer in Mena
        et al., "Learning latent permutations with Gumbel-Sinkhorn networks" (2018), without its
        noise and temperature. Writing columns and signs with it is ours.
    """

    def __init__(
        self,
        layer: str,
        outputs: int,
        condition_dim: int,
        relations: int = 0,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        rounds: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(
            outputs=outputs, condition_dim=condition_dim, width=width, layers=layers, heads=heads
        )
        if relations < 0 or rounds < 0 or width % heads:
            raise ConfigError(
                f"`relations={relations}`, `rounds={rounds}`, `width={width}`, `heads={heads}`. "
                "The first two are counts, and each head reads its own part of a token. Pass 0 or "
                f"more of each, and a `width` that is a multiple of `heads`, as in "
                f"`width={heads * -(-width // heads)}`."
            )
        self.layer, self.condition_dim, self.relations, self.rounds = (
            layer,
            condition_dim,
            relations,
            rounds,
        )
        self.read = nn.Linear(condition_dim, width)
        self.blocks = nn.ModuleList(_Block(width, heads, relations) for _ in range(layers))
        last = nn.Linear(2 * width, 2 * outputs if rounds else outputs)
        if not rounds:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.writer = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), last
        )
        self.amplitude = nn.Parameter(torch.full((outputs,), 0.25)) if rounds else None
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(
        self,
        condition: Float[Tensor, "tasks inputs condition_dim"],
        relations: Float[Tensor, "tasks relations inputs inputs"] | None = None,
    ) -> Params:
        """Generate weight (tasks, outputs, inputs) and bias (tasks, outputs) of the layer.

        Args:
            condition: A token for each input.
            relations: Matrices that say how inputs go together, such as those of
                `input_statistics`; rows whose sizes sum to about one keep the scale.

        Raises:
            ShapeError: If the condition is not of the width, or there are not as many relations, as
                this hypernetwork was built for.
        """
        written = self.writer(self.features(condition, relations)).to(
            self.bias.dtype
        )  # whole, under autocast too
        prefix = f"{self.layer}." if self.layer else ""
        weight = (
            written.mT
            if self.amplitude is None
            else self.amplitude[:, None] * assignment(written, self.rounds)
        )
        return Params(
            {f"{prefix}weight": weight, f"{prefix}bias": self.bias.expand(condition.shape[0], -1)}
        )

    def features(
        self,
        condition: Float[Tensor, "tasks inputs condition_dim"],
        relations: Float[Tensor, "tasks relations inputs inputs"] | None = None,
    ) -> Float[Tensor, "tasks inputs width"]:
        """Mix the tokens: what the columns are written from.

        Arguments and errors as for ``forward``.
        """
        check_condition(condition, self.condition_dim, self.read.weight, "tasks, inputs")
        tasks, inputs = condition.shape[:2]
        wanted = (tasks, self.relations, inputs, inputs)
        if (relations is None) != (self.relations == 0) or (
            relations is not None and relations.shape != wanted
        ):
            got = "none" if relations is None else f"of shape {tuple(relations.shape)}"
            raise ShapeError(
                f"`relations` are {got}. This hypernetwork reads {self.relations} of them, a "
                f"matrix over the {inputs} inputs each. Pass a tensor of shape {wanted}, or build "
                "it with another `relations`."
            )
        tokens: Tensor = self.read(condition)
        for block in self.blocks:
            tokens = block(tokens, relations)
        return tokens


class _Block(nn.Module):
    """Tokens read each other by the relations, then by attention."""

    def __init__(self, width: int, heads: int, relations: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if relations else None
        self.mix = nn.Linear(relations * width, width) if relations else None
        self.attention = AttentionBlock(width, heads)

    def forward(self, tokens: Tensor, relations: Tensor | None) -> Tensor:
        if self.norm is not None and self.mix is not None and relations is not None:
            seen = relations @ self.norm(tokens)[:, None]  # (tasks, relations, inputs, width)
            tokens = tokens + self.mix(seen.transpose(1, 2).flatten(2))
        mixed: Tensor = self.attention(tokens)
        return mixed


def assignment(
    scores: Float[Tensor, "tasks inputs twice"], rounds: int
) -> Float[Tensor, "tasks outputs inputs"]:
    """Turn scores into a signed assignment P⁺ - P⁻, as described at `EquivariantHyperNetwork`.

    Args:
        scores: For each input those of all outputs, then those of all outputs negated.
        rounds: Of Sinkhorn's normalisation.

    Example:
        >>> sure = 50.0 * torch.tensor([[[0.0, 1, 0, 0], [0, 0, 1, 0]]])  # the second input, negated, is the first
        >>> assignment(sure, rounds=2).round()
        tensor([[[ 0., -1.],
                 [ 1.,  0.]]])
    """
    share = scores.softmax(2)
    even = scores.shape[1] / (scores.shape[2] // 2)
    for _ in range(rounds):
        total = share.unflatten(2, (2, -1)).sum((1, 2))
        share = share * (even / (total + 1e-6)).repeat(1, 2)[:, None]
        share = share / share.sum(2, keepdim=True)
    same, negated = share.chunk(2, dim=2)
    return (same - negated).mT


def standardised(
    params: Mapping[str, Tensor],
    layer: str,
    mean: Float[Tensor, "tasks inputs"],
    scale: Float[Tensor, "tasks inputs"],
) -> Params:
    """Fold (x - mean) / scale into a generated linear layer: it then takes inputs as they come.

    Args:
        params: Weight and bias of the layer, as generated for standardised inputs, and whatever
            else.
        layer: Its name, as for `EquivariantHyperNetwork`.
        mean: What is subtracted from each input.
        scale: What each is divided by.

    Returns:
        The parameters, those of the layer replaced.

    Example:
        >>> params = {"weight": torch.tensor([[[6.0]]]), "bias": torch.tensor([[1.0]])}
        >>> standardised(params, "", mean=torch.tensor([[5.0]]), scale=torch.tensor([[2.0]]))
        {'weight': tensor([[[3.]]]), 'bias': tensor([[-14.]])}
    """
    prefix = f"{layer}." if layer else ""
    weight = params[f"{prefix}weight"] / scale[:, None]
    bias = params[f"{prefix}bias"] - (weight @ mean[..., None])[..., 0]
    return Params({**params, f"{prefix}weight": weight, f"{prefix}bias": bias})
