"""The graph hypernetwork: one hypernetwork for many architectures, read as graphs of layers."""

from collections.abc import Mapping, Sequence
from math import pi, prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.errors import ConfigError
from weightloom.forms import Form
from weightloom.forms.choose import Generate
from weightloom.hypernets.generated import Generated
from weightloom.hypernets.hypernet import HyperNetwork, check_condition
from weightloom.hypernets.module_graph import FEATURES, LayerGraph
from weightloom.hypernets.saving import Saves, described
from weightloom.hypernets.writer import LARGEST_HEAD, check_head, check_sizes, pieces_of
from weightloom.params import Params, ParamSpec, Selector, Shape, selectors_of

ROLES = ("weight", "bias", "change", "up", "down", "gain", "mixture", "code")
"""Names of parameters and factors that the decoder distinguishes; all others look alike to it."""

FREQUENCIES = 4
"""Number of frequencies that encode the position of a tile: sines and cosines of 1, 2, 4 … half
turns."""


class GraphHyperNetwork(Saves, HyperNetwork):
    """Hypernetwork for several bases, including unseen ones, by messages between their layers.

    Each layer of a base is a node of a graph, and each flow of data between layers an edge
    (`LayerGraph`: traced by `torch.fx` if possible, else the order of registration;
    ``hyper.architectures[0].graph.order`` says which). With one state per task and node,

        h = E features + trunk(condition),    then ``rounds`` times    h = GRU([before(h), after(h),
        all(h)], h),

    where the brackets hold the means over the layers that feed a node, over those that it feeds,
    and over all. A decoder writes generated numbers in square tiles: they cover matrices and
    kernels along the first two axes, vectors are cut into pieces of ``tile²``, and each tile is
    cropped to fit:

        θ[tile] = own[tile] + scale · (W relu(D [h, role, place]) + b).

    Scale is the standard size of a layer's weights, one over the square root of its inputs. All
    architectures share all of these weights, so bases of other depths or widths can be generated.
    W and b start at zero, so at step 0 every base is generated unchanged.

    Args:
        bases: One base, or several architectures. Their own parameters are part of this module.
        condition_dim: Width of a condition.
        hidden: Width of a node's state, and of the decoder.
        rounds: Rounds of messages; with 0 layers do not exchange any.
        tile: Side of a tile.
        generate: Selectors of generated parameters in every base, as in `MLPHyperNetwork`.
        form: Form of each generated parameter, if ``generate`` is not a mapping to forms.
        freeze: Selectors of own values that are not trained, as in `MLPHyperNetwork`.
        largest_head: Largest number of elements in the layer that writes tiles; a larger one raises
            an error before its memory is allocated.

    Raises:
        ConfigError: If ``bases`` is empty, a selector matches no parameter, a form does not fit
            one, a size is below 1, ``rounds`` is negative, or the layer that writes tiles would be
            too large.

    Example:
        >>> from weightloom.networks import mlp
        >>> hyper = GraphHyperNetwork([mlp([3, 8, 2]), mlp([3, 8, 8, 2])], condition_dim=4)
        >>> list(hyper(torch.randn(5, 4), architecture=1))
        ['0.weight', '0.bias', '2.weight', '2.bias', '4.weight', '4.bias']
        >>> hyper(torch.randn(5, 4), base=mlp([3, 6, 6, 6, 2]))["6.weight"].shape
        torch.Size([5, 2, 6])

    Source:
        Zhang, Ren and Urtasun, "Graph hypernetworks for neural architecture search" (2019); Knyazev
        et al., "Parameter prediction for unseen deep architectures" (2021). Both generate values
        for a graph of operations, without a condition; here changes are generated and added to
        each base's own values, and operations without parameters are omitted. All nodes send their
        messages at once, whereas the papers traverse the graph in order. Knyazev et al. fill a
        large parameter with copies of one tile; here each tile depends on its place. A single mean
        over all nodes replaces their virtual edges by path length.
    """

    def __init__(
        self,
        bases: nn.Module | Sequence[nn.Module],
        condition_dim: int,
        hidden: int = 64,
        rounds: int = 2,
        tile: int = 16,
        generate: Generate = "*",
        form: Form | None = None,
        freeze: Selector | list[Selector] | None = None,
        largest_head: int = LARGEST_HEAD,
    ) -> None:
        super().__init__()
        check_sizes(condition_dim=condition_dim, hidden=hidden, tile=tile)
        check_head(
            (hidden + 1) * tile**2,
            largest_head,
            f"{hidden:,} inputs and a bias for each of {tile**2:,} numbers of a tile",
            f"Write smaller tiles, as in "
            f"`tile={max(1, int((largest_head // (hidden + 1)) ** 0.5))}`",
        )
        every = [bases] if isinstance(bases, nn.Module) else list(bases)
        if not every or rounds < 0:
            raise ConfigError(
                f"`bases` holds {len(every)} networks and `rounds={rounds}`. At least one network "
                "is needed, and rounds cannot be negative. Pass `bases=[base]`, and `rounds=0` for "
                "no messages."
            )
        self.condition_dim, self.rounds, self.tile = condition_dim, rounds, tile
        self._chosen = (
            generate if isinstance(generate, Mapping) else selectors_of(generate),
            form,
            freeze,
        )
        self.options = {
            "condition_dim": condition_dim,
            "hidden": hidden,
            "rounds": rounds,
            "tile": tile,
        }
        self.options |= {"largest_head": largest_head, **described(self._chosen[0], freeze, form)}
        self.architectures = nn.ModuleList()
        """An `Architecture` for each base; `add` appends more."""
        for base in every:
            self.add(base)
        self.trunk = nn.Sequential(
            nn.Linear(condition_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )
        self.embed = nn.Linear(FEATURES, hidden, bias=False)
        self.update = nn.GRUCell(3 * hidden, hidden) if rounds else None
        self.decode = nn.Linear(hidden, hidden)
        self.decode_place = nn.Linear(len(ROLES) + 6 * FREQUENCIES, hidden, bias=False)
        self.write = nn.Linear(hidden, tile**2)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    @property
    def base(self) -> nn.Module:
        """The first base."""
        return self._written(0).base

    @property
    def bases(self) -> list[nn.Module]:
        """All bases, in the order of their architectures."""
        return [self._written(number).base for number in range(len(self.architectures))]

    @property
    def spec(self) -> ParamSpec:
        """Names and shapes of the generated parameters of the first base."""
        return self._written(0).spec

    def add(self, base: nn.Module) -> int:
        """Add a base, whose own parameters become part of this module.

        Returns:
            Its number, to be passed as ``architecture``.

        Raises:
            ConfigError: If a selector matches no parameter of it, or a form does not fit one.
        """
        self.architectures.append(Architecture(Generated(base, *self._chosen), self.tile))
        return len(self.architectures) - 1

    def forward(
        self,
        condition: Float[Tensor, "tasks condition_dim"],
        architecture: int = 0,
        base: nn.Module | None = None,
    ) -> Params:
        """Generate parameters of one base for each task.

        Args:
            condition: Description of each task, (tasks, condition_dim).
            architecture: Number of the base, in the order of ``bases``.
            base: A base that is not part of this hypernetwork, instead of ``architecture``. Its
                graph is read in each call. The result is its own values plus generated changes; it
                is not modified.

        Returns:
            The generated parameters by name, each (tasks, *shape).

        Raises:
            ShapeError: If the condition is not ``(tasks, condition_dim)``.
            ConfigError: If ``architecture`` is unknown, or a form for ``base`` has tensors to
                learn: shared by all tasks, or starts of its factors.
        """
        check_condition(condition, self.condition_dim, self.write.weight)
        if base is None:
            its = self._architecture(architecture)
        else:
            generate, form, _ = self._chosen
            its = Architecture(Generated(base, generate, form), self.tile)
            _check_nothing_learned(its.generated)
        features, means = its.features.to(condition), its.means.to(condition)
        states = self.embed(features) + self.trunk(condition)[:, None]
        for _ in range(self.rounds):
            states = self._round(states, means)
        return its.generated(its.generated.start() + self._tiles(states, its))

    def _round(self, states: Float[Tensor, "tasks layers hidden"], means: Tensor) -> Tensor:
        """One round of messages: update every node by the means of its neighbours' states."""
        assert self.update is not None
        before, after = means[0] @ states, means[1] @ states
        everywhere = states.mean(1, keepdim=True).expand_as(states)
        messages = torch.cat([before, after, everywhere], dim=2)
        return self.update(messages.flatten(0, 1), states.flatten(0, 1)).unflatten(
            0, states.shape[:2]
        )

    def _tiles(self, states: Tensor, its: "Architecture") -> Float[Tensor, "tasks size"]:
        """Decode all tiles of all parameters, and pick each number from its tile."""
        of_layer = self.decode(states)[:, its.layer_of_tile.to(states.device)]
        tiles = self.write(torch.relu(of_layer + self.decode_place(its.places.to(states))))
        return tiles.flatten(1)[:, its.picks.to(states.device)] * its.scales.to(states)

    def _architecture(self, number: int) -> "Architecture":
        if not 0 <= number < len(self.architectures):
            raise ConfigError(
                f"`architecture={number}` is unknown. This hypernetwork holds "
                f"{len(self.architectures)}, counted from "
                "0. Pass one of these numbers, or pass a new network as `base`."
            )
        architecture = self.architectures[number]
        assert isinstance(architecture, Architecture)
        return architecture

    def _written(self, number: int) -> Generated:
        return self._architecture(number).generated


class Architecture(nn.Module):
    """One base as input of the decoder: its graph, and the tiles that cover generated numbers.

    Args:
        generated: The generated parameters of the base.
        tile: Side of a tile.
    """

    features: Tensor
    """Features of each layer, (layers, FEATURES)."""
    means: Tensor
    """Averages over the layers before and after each layer, (2, layers, layers)."""
    layer_of_tile: Tensor
    """Number of the layer of each tile, (tiles,)."""
    places: Tensor
    """Role and position of each tile, (tiles, features)."""
    picks: Tensor
    """Index of each generated number among the numbers of all tiles, (size,)."""
    scales: Tensor
    """Scale of each generated number, (size,)."""

    def __init__(self, generated: Generated, tile: int) -> None:
        super().__init__()
        self.generated = generated
        self.graph = LayerGraph.of(generated.base)
        layers: list[Tensor] = []
        places: list[Tensor] = []
        picks: list[Tensor] = []
        scales: list[Tensor] = []
        first = 0
        for name, shapes in generated.shapes.items():
            owner, _, leaf = name.rpartition(".")
            for factor, shape in shapes.items():
                counts = _counts(shape, tile)
                roles = [float(role in (leaf, factor)) for role in ROLES]
                places.append(
                    torch.cat(
                        [torch.tensor(roles).expand(prod(counts), -1), _places(counts)], dim=1
                    )
                )
                layers.append(torch.full((prod(counts),), self.graph.names.index(owner)))
                picks.append(first * tile**2 + _picks(shape, counts, tile))
                scales.append(
                    _scale(generated.base.get_submodule(owner), factor, shape).expand(prod(shape))
                )
                first += prod(counts)
        tables = {
            "features": self.graph.features,
            "means": self.graph.means(),
            "layer_of_tile": torch.cat(layers),
        }
        tables |= {
            "places": torch.cat(places),
            "picks": torch.cat(picks),
            "scales": torch.cat(scales),
        }
        for table, value in tables.items():
            self.register_buffer(table, value, persistent=False)


def _counts(shape: Shape, tile: int) -> tuple[int, int, int]:
    """Tiles of a factor: along the first axis, along the second, and points of the window."""
    if len(shape) < 2:
        return pieces_of(prod(shape), tile**2), 1, 1
    return pieces_of(shape[0], tile), pieces_of(shape[1], tile), prod(shape[2:])


def _places(counts: tuple[int, int, int]) -> Float[Tensor, "tiles places"]:
    """Position of each tile: sines and cosines of its fraction along each of the three counts."""
    shares = torch.cartesian_prod(*(torch.arange(count) / count for count in counts))
    angles = (shares[..., None] * pi * 2.0 ** torch.arange(FREQUENCIES)).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _picks(shape: Shape, counts: tuple[int, int, int], tile: int) -> Tensor:
    """Index of each number of a factor, in order, among the numbers of the factor's tiles."""
    if len(shape) < 2:
        return torch.arange(prod(shape))
    _, across, points = counts
    row, column, point = torch.meshgrid(
        *map(torch.arange, (shape[0], shape[1], points)), indexing="ij"
    )
    number = ((row // tile) * across + column // tile) * points + point
    return (number * tile**2 + (row % tile) * tile + column % tile).flatten()


def _scale(layer: nn.Module, factor: str, shape: Shape) -> Tensor:
    """Standard size of a layer's weights; 1 for factors that are vectors."""
    if len(shape) < 2 and factor == "change":
        shape = max((tuple(p.shape) for p in layer.parameters(recurse=False)), key=len)
    return torch.tensor(prod(shape[1:]) ** -0.5 if len(shape) >= 2 else 1.0)


def _check_nothing_learned(generated: Generated) -> None:
    for name, form in generated.forms.items():
        shape = generated.spec.shapes[name]
        if form.starts(shape) or form.shared(shape):
            raise ConfigError(
                f"`base` would hold `{name}` as {form}, which learns tensors for each parameter. "
                "Only bases that were added to the hypernetwork have these. Add it first: "
                "`hyper(condition, hyper.add(base))`."
            )
