"""The equivariant hypernetwork: writes each column of a linear layer from a token of its input."""

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
    """Hypernetwork for a linear layer that is equivariant to permutations of the layer's inputs.

    Each input is described by a token. Relations between inputs (such as their correlations) and
    attention mix the tokens, and one network, shared by all inputs, writes each column of the
    weight from its token. Permuted inputs give permuted columns, and the number of inputs may
    differ from call to call. An example is a layer for sensors whose order and meaning are unknown.

    With ``rounds`` above 0, the columns are a *signed assignment* instead of free numbers: input j
    contributes to output i with the share P⁺ᵢⱼ, and negated with P⁻ᵢⱼ. Sinkhorn normalisation makes
    the shares of an input sum to one and gives every output the same total (columns are normalised
    last). Then θ = amplitude ⊙ (P⁺ - P⁻), with a learned amplitude per output. This suits inputs
    that are the outputs in another order; use 0 if each input is a blend of many.

    At step 0 the weight of every task is zero, or with ``rounds`` almost zero, since all shares are
    almost equal. The outputs then equal the bias, which is learned and shared by all tasks.

    Args:
        layer: Name of the linear layer in the base network; ``""`` if the base is that layer.
        outputs: Rows of its weight.
        condition_dim: Width of an input token.
        relations: Number of relation matrices that each call receives.
        width: Width of the tokens inside.
        layers: Number of mixing layers.
        heads: Attention heads.
        rounds: Rounds of Sinkhorn normalisation; 0 writes free numbers.

    Raises:
        ConfigError: If a size is below 1, ``relations`` or ``rounds`` is negative, or ``width`` is
            not a multiple of ``heads``.

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
                f"more for both, and a `width` that is a multiple of `heads`, as in "
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
            relations: Relation matrices between inputs, such as those of `input_statistics`; rows
                whose absolute values sum to about one keep the scale. None if ``self.relations``
                is 0.

        Returns:
            The weight and the bias under their names in the base.

        Raises:
            ShapeError: If the condition is not (tasks, inputs, condition_dim), or the relations are
                not (tasks, self.relations, inputs, inputs).
        """
        written = self.writer(self.features(condition, relations))
        written = written.to(self.bias.dtype)  # autocast computes it in half precision
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
        """Mix the tokens from which columns are written; arguments and errors as in ``forward``."""
        check_condition(condition, self.condition_dim, self.read.weight, "tasks, inputs")
        tasks, inputs = condition.shape[:2]
        wanted = (tasks, self.relations, inputs, inputs)
        if (relations is None) != (self.relations == 0) or (
            relations is not None and relations.shape != wanted
        ):
            got = "none" if relations is None else f"of shape {tuple(relations.shape)}"
            raise ShapeError(
                f"`relations` are {got}. This hypernetwork reads {self.relations} of them, each a "
                f"matrix over the {inputs} inputs. Pass a tensor of shape {wanted}, or build "
                "it with another `relations`."
            )
        tokens: Tensor = self.read(condition)
        for block in self.blocks:
            tokens = block(tokens, relations)
        return tokens


class _Block(nn.Module):
    """Mixing layer: tokens read each other through the relations, then by attention."""

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
    """Signed assignment P⁺ - P⁻ of inputs to outputs, as defined in `EquivariantHyperNetwork`.

    Args:
        scores: Scores of each input for all outputs, then for all negated outputs.
        rounds: Rounds of Sinkhorn normalisation.

    Example:
        >>> # input 0 is output 1; input 1 is output 0, negated
        >>> sure = 50.0 * torch.tensor([[[0.0, 1, 0, 0], [0, 0, 1, 0]]])
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
    """Fold the standardisation (x - mean) / scale into a linear layer, for use with raw inputs.

    Args:
        params: Generated parameters, among them the weight and bias of the layer, generated for
            standardised inputs.
        layer: Name of the layer, as in `EquivariantHyperNetwork`.
        mean: Mean of each input.
        scale: Scale of each input, such as its standard deviation.

    Returns:
        All parameters, with the layer's weight and bias replaced.

    Example:
        >>> params = {"weight": torch.tensor([[[6.0]]]), "bias": torch.tensor([[1.0]])}
        >>> standardised(params, "", mean=torch.tensor([[5.0]]), scale=torch.tensor([[2.0]]))
        {'weight': tensor([[[3.]]]), 'bias': tensor([[-14.]])}
    """
    prefix = f"{layer}." if layer else ""
    weight = params[f"{prefix}weight"] / scale[:, None]
    bias = params[f"{prefix}bias"] - (weight @ mean[..., None])[..., 0]
    return Params({**params, f"{prefix}weight": weight, f"{prefix}bias": bias})
