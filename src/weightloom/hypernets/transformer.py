"""The transformer hypernetwork: tokens of parameter slices attend to tokens of the condition."""

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
    """Hypernetwork by attention: slices of parameters read the condition and each other.

    Every generated parameter is cut into slices, and each slice has a learned token. A transformer
    encoder runs over these tokens and those of the condition, and one linear layer, shared by all
    slices, writes each slice from its token: θ[s] = own[s] + W tokenₛ + b. With the default
    ``init`` that layer starts at zero, so every task gets the unchanged base network at step 0.

    A condition is one token per task, (tasks, condition_dim), or several, (tasks, tokens,
    condition_dim), such as encoded support points. The result does not depend on the order of
    condition tokens, and their number may differ from call to call.

    Args:
        base: The base network, any module.
        condition_dim: Width of a condition, or of each of its tokens.
        slice_size: Numbers per slice. The last slice of a parameter is cropped. Run time grows with
            the square of the number of slices.
        width: Width of a token.
        heads: Attention heads.
        layers: Layers of the encoder.
        generate: Selectors of the generated parameters, as in `MLPHyperNetwork`.
        form: Form of each generated parameter, if ``generate`` is not a mapping to forms; its
            factors are sliced.
        freeze: Selectors of own values that are not trained, as in `MLPHyperNetwork`.
        init: Initialisation of the generated parameters, as in `MLPHyperNetwork`.
        largest_head: Largest number of elements in the last layer; a larger one raises an error
            before its memory is allocated.

    Raises:
        ConfigError: If a selector matches no parameter, a form does not fit one, ``init`` is
            unknown, a size is below 1, ``width`` is not a multiple of ``heads``, or the last layer
            would be too large.

    Example:
        >>> hyper = TransformerHyperNetwork(nn.Linear(3, 2), condition_dim=4, slice_size=3)
        >>> hyper.slices, hyper(torch.randn(5, 4))["weight"].shape
        (3, torch.Size([5, 2, 3]))
        >>> hyper(torch.randn(5, 7, 4))["bias"].shape
        torch.Size([5, 2])

    Source:
        Zhmoginov, Sandler and Vladymyrov, "HyperTransformer" (2022), loosely: as in the paper,
        weight tokens hold slices of a kernel and a linear layer reads them out. The paper generates
        layer after layer from the activations of the support points, with a transformer per layer;
        here one transformer writes all layers from a condition. The paper generates values; here
        changes are generated and added to the base's own values.
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
                f"`width={width}` is not a multiple of `heads={heads}`. Each head reads its own "
                f"part of a token. Pass `width={heads * pieces_of(width, heads)}`."
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
        """Number of slices."""
        self.tokens = nn.Parameter(torch.randn(self.slices, width))
        self.read = nn.Linear(condition_dim, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        for parameter in self.encoder.parameters():
            if parameter.ndim > 1:  # torch initialises all layers as copies of the first
                nn.init.xavier_uniform_(parameter)
        self.writer = Writer(width, slice_size, self.generated)

    def forward(self, condition: Float[Tensor, "tasks *tokens condition_dim"]) -> Params:
        """Generate parameters for each task.

        Args:
            condition: Description of each task, (tasks, condition_dim), or (tasks, tokens,
                condition_dim).

        Returns:
            The generated parameters by name, each (tasks, *shape).

        Raises:
            ShapeError: If the condition has another shape.
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
        """Compute ``self.encoder(tokens)`` with second derivatives, which torch's own lacks."""
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
