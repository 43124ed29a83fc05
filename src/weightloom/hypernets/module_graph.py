"""A base network as a graph of its layers: what a graph hypernetwork reads of an architecture.

In:   any module.
Out:  `LayerGraph`, its layers in order, the edges between them, and features of each.
Knows nothing of conditions, nor of what is generated.
"""

from collections.abc import Iterator
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
"""Kinds of layers that are told apart; all others are one more kind."""

FEATURES = len(KINDS) + 1 + 5
"""Features of a layer: its kind, the logarithms of its shape, its place, and the depth of the
network."""


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """The layers of a base, in the order in which data meets them, and what flows from which to which.

    Example:
        >>> graph = LayerGraph.of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        >>> graph.names, graph.edges, graph.order
        (('0', '2'), ((0, 1),), 'data flow')
    """

    names: tuple[str, ...]
    """Modules that hold parameters of their own, by name; ``""`` is the base itself."""
    edges: tuple[tuple[int, int], ...]
    """From layer to layer, by index."""
    order: str
    """``"data flow"`` where `torch.fx` could trace the base, else ``"registration"``: each layer
    feeds the next."""
    features: Float[Tensor, "layers features"]
    """`FEATURES` numbers for each layer."""

    @classmethod
    def of(cls, base: nn.Module) -> "LayerGraph":
        """Read the graph of a base. `torch.fx` traces it, which runs its forward pass once on symbols."""
        holders = [name for name, module in base.named_modules() if _holds(module)]
        edges: list[tuple[str | None, str]]
        try:
            edges, order = list(_edges(base, _Tracer().trace(base))), "data flow"
        except Exception:  # whatever the base's own code raises when it is run on symbols
            edges, order = list(pairwise(holders)), "registration"
        met = dict.fromkeys([*(name for edge in edges for name in edge), *holders])
        names = tuple(name for name in met if name in holders)
        index = {name: number for number, name in enumerate(names)}
        pairs = dict.fromkeys(
            (index[a], index[b]) for a, b in edges if a != b and a in index and b in index
        )
        rows = [
            _features(base.get_submodule(name), place, len(names))
            for place, name in enumerate(names)
        ]
        return cls(names, tuple(pairs), order, torch.tensor(rows))

    def means(self) -> Float[Tensor, "2 layers layers"]:
        """Matrices that average over the layers before each layer, and over those after it.

        Zero where there are none.

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


def _holds(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


class _Tracer(fx.Tracer):
    """Looks into no layer of a known kind, those that are built on torch's included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, tuple(kind for kinds in KINDS for kind in kinds))
        return known or super().is_leaf_module(m, module_qualified_name)


def _edges(base: nn.Module, graph: fx.Graph) -> Iterator[tuple[str | None, str]]:
    """Yield pairs of layers between which data flows, in the order in which it does.

    From None where it comes in.

    A layer is met where it is called, and where an operation reads a parameter of it.
    """
    last: dict[fx.Node, list[str]] = {}
    """For each value: the layers that it comes from, with no other layer between."""
    owner = {
        n: n.target.rpartition(".")[0]
        for n in graph.nodes
        if n.op == "get_attr" and _is_parameter(base, n)
    }
    for node in graph.nodes:
        sources = list(dict.fromkeys(s for n in node.all_input_nodes for s in last.get(n, [])))
        if node.op == "call_module":
            inside = base.get_submodule(node.target).named_modules(prefix=node.target)
            layers = [name for name, module in inside if _holds(module)]
        else:
            layers = list(dict.fromkeys(owner[n] for n in node.all_input_nodes if n in owner))
        for name in layers:
            before: list[str | None] = [*sources] or [None]
            yield from ((source, name) for source in before)
            sources = [name]
        last[node] = sources


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
