"""The transformer hypernetwork: a token for each slice of each parameter, beside tokens of the condition."""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from weightloom.conditions.attention import attention
from weightloom.errors import ConfigError
from weightloom.forms import Form
from weightloom.forms.choose import Generate
from weightloom.hypernets.generated import Generated, Init, WritesGenerated, check_init
from weightloom.hypernets.hypernet import HyperNetwork, check_condition
from weightloom.hypernets.saving import Saves, described
from weightloom.hypernets.writer import LARGEST_HEAD, Writer, check_sizes, check_slices, pieces_of
from weightloom.params import Params, Selector


class TransformerHyperNetwork(WritesGenerated, Saves, HyperNetwork):
    """Generate parameters of ``base`` by attention.

    Slices of parameters read the condition and each other.

    Every generated parameter is cut into slices, and every slice has a token, a learned embedding
    of which parameter it is of and where in it. The tokens of the condition join them, a
    transformer encoder runs over all of them, and one linear layer, shared by all slices, writes
    each slice from its token: θ[s] = own[s] + W tokenₛ + b. That layer starts at zero, so at step 0
    every task gets the base network as it stands.

    A condition is one token per task, (tasks, condition_dim), or several, (tasks, tokens,
    condition_dim), such as encoded support points. Tokens of a condition have no order, so what is
    generated does not depend on theirs. Their number may differ from call to call.

    Args:
        base: The base network. Bring any module.
        condition_dim: Width of a condition, or of each of its tokens.
        slice_size: Numbers in a slice. The last slice of a parameter is cropped. Time grows with
            the square of the number of slices.
        width: Width of a token.
        heads: Heads of attention.
        layers: Layers of the encoder.
        generate: Which parameters are generated, as in `MLPHyperNetwork`.
        form: How each generated parameter is held, where ``generate`` does not say; its factors are
            what is sliced.
        freeze: Which of the base's own values are not trained, as in `MLPHyperNetwork`.
        init: How what is generated starts, as in `MLPHyperNetwork`.
        largest_head: As many numbers as the last layer may hold: a larger one is an error, not
            gigabytes.

    Raises:
        ConfigError: If a selector matches no parameter, a form does not fit one, ``init`` is
            unknown, a size is below 1, ``width`` is no multiple of ``heads``, or the last layer
            would be too large.

    Example:
        >>> hyper = TransformerHyperNetwork(nn.Linear(3, 2), condition_dim=4, slice_size=3)
        >>> hyper.slices, hyper(torch.randn(5, 4))["weight"].shape, hyper(torch.randn(5, 7, 4))["bias"].shape
        (3, torch.Size([5, 2, 3]), torch.Size([5, 2]))

    Source:
        Zhmoginov, Sandler and Vladymyrov, "HyperTransformer" (2022), from afar: its weight tokens
        hold slices of a kernel, and are read out by a linear layer as here. It generates layer
        after layer from the activations of the support points, with a transformer for each layer;
        here one transformer writes all layers from a condition. It generates the values; here they
        are a change, added to the base's own.
    """

    def __init__(
        self,
        base: nn.Module,
        condition_dim: int,
        slice_size: int = 256,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        generate: Generate = "*",
        form: Form | None = None,
        freeze: Selector | list[Selector] | None = None,
        init: Init = "bias-hyperinit",
        largest_head: int = LARGEST_HEAD,
    ) -> None:
        super().__init__()
        check_init(init)
        check_sizes(
            condition_dim=condition_dim,
            slice_size=slice_size,
            width=width,
            heads=heads,
            layers=layers,
        )
        if width % heads:
            raise ConfigError(
                f"`width={width}` is no multiple of `heads={heads}`. Each head reads its own part "
                f"of a token. Pass `width={heads * pieces_of(width, heads)}`."
            )
        self.condition_dim = condition_dim
        check_slices(width, slice_size, largest_head)
        self.generated = Generated(base, generate, form, freeze, init)
        self.options = {
            "condition_dim": condition_dim,
            "slice_size": slice_size,
            "width": width,
            "heads": heads,
        }
        self.options |= {"layers": layers, "init": init, "largest_head": largest_head}
        self.options |= described(self.generated.forms, sorted(self.generated.frozen))
        self._lengths = [prod(shape) for shape in self.generated.factors.shapes.values()]
        self.slices = sum(pieces_of(length, slice_size) for length in self._lengths)
        """How many slices are written."""
        self.tokens = nn.Parameter(torch.randn(self.slices, width))
        self.read = nn.Linear(condition_dim, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        for parameter in self.encoder.parameters():
            if parameter.ndim > 1:  # its layers are copies of one another
                nn.init.xavier_uniform_(parameter)
        self.writer = Writer(width, slice_size, self.generated)

    def forward(self, condition: Float[Tensor, "tasks *tokens condition_dim"]) -> Params:
        """Generate parameters for each task.

        Args:
            condition: (tasks, condition_dim), or (tasks, tokens, condition_dim) in any order of
                tokens.

        Raises:
            ShapeError: If the condition is neither.
        """
        check_condition(
            condition,
            self.condition_dim,
            self.tokens,
            "tasks, tokens" if condition.ndim == 3 else "tasks",
        )
        known = self.read(condition if condition.ndim == 3 else condition[:, None])
        tokens = torch.cat([self.tokens.expand(known.shape[0], -1, -1), known], dim=1)
        features = self._encode(tokens)[:, : self.slices]
        params: Params = self.generated(
            self.writer(features, self._lengths, self.generated.start())
        )
        return params

    def _encode(
        self, tokens: Float[Tensor, "tasks tokens width"]
    ) -> Float[Tensor, "tasks tokens width"]:
        """What ``self.encoder(tokens)`` gives; torch's own has no second derivative."""
        for layer in self.encoder.layers:
            assert isinstance(layer, nn.TransformerEncoderLayer)
            its = layer.self_attn
            qkv = linear(layer.norm1(tokens), its.in_proj_weight, its.in_proj_bias).unflatten(
                -1, (3, its.num_heads, -1)
            )
            read = attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)
            tokens = tokens + its.out_proj(read)
            tokens = tokens + layer.linear2(relu(layer.linear1(layer.norm2(tokens))))
        assert self.encoder.norm is not None
        encoded: Tensor = self.encoder.norm(tokens)
        return encoded
