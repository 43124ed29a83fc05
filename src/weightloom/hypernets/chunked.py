"""The chunked hypernetwork: one small generator writes all parameters chunk by chunk."""

import warnings
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.errors import ConfigError
from weightloom.forms import Form
from weightloom.forms.choose import Generate
from weightloom.hypernets.generated import Generated, Init, WritesGenerated, check_init
from weightloom.hypernets.hypernet import HyperNetwork, check_condition
from weightloom.hypernets.mlp import constant_norm
from weightloom.hypernets.saving import Saves, described
from weightloom.hypernets.writer import LARGEST_HEAD, Writer, check_sizes, check_slices, pieces_of
from weightloom.params import Params, Selector


class ChunkedHyperNetwork(WritesGenerated, Saves, HyperNetwork):
    """Hypernetwork that writes parameters in chunks: θ[k] = own[k] + g(condition, eₖ).

    All generated numbers form one flat vector, which is cut into chunks regardless of parameter
    boundaries. One generator g serves all chunks, and each chunk k has a learned embedding eₖ. All
    chunks of all tasks are written in one pass. A chunk costs ``embedding_dim`` parameters, whereas
    the head of `MLPHyperNetwork` costs its width for every number.

    With the default ``init``, every task gets the unchanged base network at step 0. The other
    initialisations are those of `MLPHyperNetwork`, through an additional output layer.
    `weightloom.forms.Chunked` applies the same idea to a single parameter.

    Args:
        base: The base network, any module.
        condition_dim: Width of a condition.
        slice_size: Numbers per chunk. The last chunk is cropped.
        embedding_dim: Width of a chunk's embedding.
        hidden: Widths of the generator's hidden layers, one or more.
        generate: Selectors of the generated parameters, as in `MLPHyperNetwork`.
        form: Form of each generated parameter, if ``generate`` is not a mapping to forms.
        freeze: Selectors of own values that are not trained, as in `MLPHyperNetwork`.
        init: Initialisation of the generated parameters, as in `MLPHyperNetwork`.
        largest_head: Largest number of elements in the last layer; a larger one raises an error
            before its memory is allocated.
        chunk_size: Deprecated name of ``slice_size``.

    Raises:
        ConfigError: If a selector matches no parameter, a form does not fit one, ``init`` is
            unknown, a size is below 1, ``hidden`` is empty, or the last layer would be too large.

    Example:
        >>> from weightloom.networks import mlp
        >>> hyper = ChunkedHyperNetwork(mlp([3, 64, 2]), condition_dim=4, slice_size=100)
        >>> hyper.chunks, hyper(torch.randn(5, 4))["0.weight"].shape
        (4, torch.Size([5, 64, 3]))

    Source:
        von Oswald, Henning, Grewe and Sacramento, "Continual learning with hypernetworks" (2020),
        section 2, chunked hypernetworks. The paper generates the values; here a change is generated
        and added to the base's own values.
    """

    def __init__(
        self,
        base: nn.Module,
        condition_dim: int,
        slice_size: int = 256,
        embedding_dim: int = 8,
        hidden: Sequence[int] = (64,),
        generate: Generate = "*",
        form: Form | None = None,
        freeze: Selector | list[Selector] | None = None,
        init: Init = "bias-hyperinit",
        largest_head: int = LARGEST_HEAD,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if chunk_size is not None:
            warnings.warn(
                f"`chunk_size={chunk_size}` is called `slice_size` now. Elsewhere `chunk_size` "
                f"counts tasks that run at a time. Pass `slice_size={chunk_size}`.",
                DeprecationWarning,
                stacklevel=2,
            )
            slice_size = chunk_size
        check_init(init)
        check_sizes(condition_dim=condition_dim, slice_size=slice_size, embedding_dim=embedding_dim)
        if not hidden:
            raise ConfigError(
                "`hidden=()` leaves no hidden layer. A linear generator adds the same change "
                "to all chunks, for any embeddings. Pass one width or more, as in `hidden=(64,)`."
            )
        self.condition_dim = condition_dim
        check_slices(hidden[-1], slice_size, largest_head)
        self.generated = Generated(base, generate, form, freeze, init)
        self.init = init
        self.options = {
            "condition_dim": condition_dim,
            "slice_size": slice_size,
            "embedding_dim": embedding_dim,
        }
        self.options |= {"hidden": list(hidden), "init": init, "largest_head": largest_head}
        self.options |= described(self.generated.forms, sorted(self.generated.frozen))
        self.chunks = pieces_of(self.generated.size, slice_size)
        """Number of chunks."""
        self.embeddings = nn.Parameter(torch.randn(self.chunks, embedding_dim))
        self._known = 2 * condition_dim if init == "magnitude-invariant" else condition_dim
        self.first = nn.Linear(self._known + embedding_dim, hidden[0])
        layers: list[nn.Module] = [nn.ReLU()]
        for width, units in pairwise(hidden):
            layers += [nn.Linear(width, units), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.writer = Writer(hidden[-1], slice_size, self.generated)

    def forward(self, condition: Float[Tensor, "tasks condition_dim"]) -> Params:
        """Generate parameters for each task.

        Args:
            condition: Description of each task, (tasks, condition_dim).

        Returns:
            The generated parameters by name, each (tasks, *shape).

        Raises:
            ShapeError: If the condition is not ``(tasks, condition_dim)``.
        """
        check_condition(condition, self.condition_dim, self.first.weight)
        if self.init == "magnitude-invariant":
            condition = constant_norm(condition)
        of_condition, of_chunk = self.first.weight.split(
            [self._known, self.embeddings.shape[1]], dim=1
        )
        # computed once per task, not once per chunk
        known = nn.functional.linear(condition, of_condition, self.first.bias)
        features = self.trunk(known[:, None] + self.embeddings @ of_chunk.mT)
        params: Params = self.generated(
            self.writer(features, [self.generated.size], self.generated.start())
        )
        return params
