"""A base network as a graph of its layers, the input of a graph hypernetwork.

In:   any module.
Out:  `LayerGraph`: its layers in order, the edges between them, and features of each layer.
Knows nothing of conditions and generated parameters.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

KINDS: tuple[tuple[type[nn.Module], ...], ...] = (
    (nn.Linear, nn.Bilinear),
    (_ConvTransposeNd,),
    (_ConvNd,),
    (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    (nn.Embedding, nn.EmbeddingBag),
    (nn.RNNBase, nn.RNNCellBase),
    (nn.MultiheadAttention,),
)
"""Kinds of layers that features distinguish; all other layers are one further kind."""

FEATURES = len(KINDS) + 1 + 5
"""Number of features per layer: one-hot kind, 3 logarithms of its shape, its position, and the
depth of the network."""


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """Layers of a base in the order in which data passes them, and the flow between them.

    Example:
        >>> graph = LayerGraph.of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        >>> graph.names, graph.edges, graph.order
        (('0', '2'), ((0, 1),), 'data flow')
    """

    names: tuple[str, ...]
    """Names of the modules that directly hold parameters; ``""`` is the base itself."""
    edges: tuple[tuple[int, int], ...]
    """Edges as pairs of indices: source layer, target layer."""
    order: str
    """``"data flow"`` if `torch.fx` could trace the base, else ``"registration"``: each layer
    then feeds the next."""
    features: Float[Tensor, "layers features"]
    """`FEATURES` numbers per layer."""

    @classmethod
    def of(cls, base: nn.Module) -> "LayerGraph":
        """Read the graph of a base.

        `torch.fx` traces it, which runs its forward pass once on symbols.

        Args:
            base: Any module with parameters.
        """
        holders = [name for name, module in base.named_modules() if _holds(module)]
        edges: list[tuple[str | None, str]]
        try:
            edges, order = list(_edges(base, _Tracer().trace(base))), "data flow"
        except Exception:  # the forward pass of the base may raise anything on symbols
            edges, order = list(pairwise(holders)), "registration"
        met = dict.fromkeys([*(name for edge in edges for name in edge), *holders])
        names = tuple(name for name in met if name in holders)
        rows = [
            _features(base.get_submodule(name), at, len(names)) for at, name in enumerate(names)
        ]
        return cls(names, _numbered(edges, names), order, torch.tensor(rows))

    def means(self) -> Float[Tensor, "2 layers layers"]:
        """Matrices that average over the layers before each layer, and over the layers after it.

        Rows of layers without neighbours are zero.

        Example:
            >>> LayerGraph.of(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))).means()
            tensor([[[0., 0.],
                     [1., 0.]],
            <BLANKLINE>
                    [[0., 1.],
                     [0., 0.]]])
        """
        feeds = torch.zeros(len(self.names), len(self.names))
        for source, target in self.edges:
            feeds[target, source] = 1.0
        both = torch.stack([feeds, feeds.mT])
        return both / both.sum(-1, keepdim=True).clamp(min=1)


def _numbered(
    edges: Sequence[tuple[str | None, str]], names: Sequence[str]
) -> tuple[tuple[int, int], ...]:
    """Edges between different layers by index, without repetitions."""
    index: dict[str | None, int] = {name: number for number, name in enumerate(names)}
    inside = [(a, b) for a, b in edges if a != b and a in index and b in index]
    return tuple(dict.fromkeys((index[a], index[b]) for a, b in inside))


def _holds(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


class _Tracer(fx.Tracer):
    """Tracer that does not enter layers of a known kind, subclasses included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, tuple(kind for kinds in KINDS for kind in kinds))
        return known or super().is_leaf_module(m, module_qualified_name)


def _edges(base: nn.Module, graph: fx.Graph) -> Iterator[tuple[str | None, str]]:
    """Yield pairs of layers between which data flows, in its order; None is the input.

    A layer is passed where it is called, or where an operation reads one of its parameters.
    """
    last: dict[fx.Node, list[str]] = {}
    """Last layers through which each value passed."""
    owner = {
        n: n.target.rpartition(".")[0]
        for n in graph.nodes
        if n.op == "get_attr" and _is_parameter(base, n)
    }
    for node in graph.nodes:
        sources = list(dict.fromkeys(s for n in node.all_input_nodes for s in last.get(n, [])))
        for name in _passed(base, node, owner):
            before: list[str | None] = [*sources] or [None]
            yield from ((source, name) for source in before)
            sources = [name]
        last[node] = sources


def _passed(base: nn.Module, node: fx.Node, owner: Mapping[fx.Node, str]) -> list[str]:
    """Layers that data passes in a node."""
    if node.op == "call_module":
        inside = base.get_submodule(str(node.target)).named_modules(prefix=str(node.target))
        return [name for name, module in inside if _holds(module)]
    return list(dict.fromkeys(owner[n] for n in node.all_input_nodes if n in owner))


def _is_parameter(base: nn.Module, node: fx.Node) -> bool:
    path, _, name = str(node.target).rpartition(".")
    return name in base.get_submodule(path)._parameters


def _features(module: nn.Module, place: int, layers: int) -> list[float]:
    kind = next((i for i, kinds in enumerate(KINDS) if isinstance(module, kinds)), len(KINDS))
    shape: Any = max(
        (tuple(p.shape) for p in module.parameters(recurse=False)), key=lambda s: (len(s), prod(s))
    )
    rows, columns = (*shape, 1, 1)[:2]
    sizes = rows, columns, prod(shape[2:])
    one_hot = [float(kind == i) for i in range(len(KINDS) + 1)]
    return [
        *one_hot,
        *(log(size) / 4 for size in sizes),
        place / max(1, layers - 1),
        log(layers) / 4,
    ]
