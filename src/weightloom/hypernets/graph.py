"""The graph hypernetwork: messages along the layers of a base, so that one hypernetwork serves many architectures."""

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
"""Names of parameters and of factors that the decoder tells apart; to it all others are alike."""

FREQUENCIES = 4
"""How finely the place of a tile is told: by sines of up to ``2 ** (FREQUENCIES - 1)`` half
turns."""


class GraphHyperNetwork(Saves, HyperNetwork):
    """Generate parameters of several bases, and of bases never seen, from the graph of their layers.

    Each layer of a base is a node, and data that flows from layer to layer an edge (`LayerGraph`:
    as traced by `torch.fx`, or else in the order of registration;
    ``hyper.architectures[0].graph.order`` says which). With one state per task and node,

        h = E features + trunk(condition),    then ``rounds`` times    h = GRU([before(h), after(h),
        all(h)], h),

    where the brackets hold the means over the layers that feed a node, over those that it feeds,
    and over all. A decoder writes generated numbers in square tiles: matrices and kernels are
    covered by them along their first two axes, vectors are cut into pieces of ``tile²``, and each
    tile is cropped to fit:

        θ[tile] = own[tile] + scale · (W relu(D [h, role, place]) + b).

    Scale is the standard size of a layer's weights, one over the root of its inputs. All of these
    weights are shared by all architectures, which is what makes a base of another depth or width
    readable. W and b start at zero, so at step 0 every base is generated as it stands.

    Args:
        bases: One base, or several architectures. Their own parameters are part of this module.
        condition_dim: Width of a condition.
        hidden: Width of a node's state, and of the decoder.
        rounds: Rounds of messages; 0 leaves each layer to itself.
        tile: Side of a tile.
        generate: Which parameters are generated, as in `MLPHyperNetwork`, of every base.
        form: How each generated parameter is held, where ``generate`` does not say.
        freeze: Which of the bases' own values are not trained, as in `MLPHyperNetwork`.
        largest_head: As many numbers as the layer that writes tiles may hold: a larger one is an
            error, not gigabytes.

    Raises:
        ConfigError: If there is no base, a selector matches no parameter, a form does not fit one,
            a size is too small, or the layer that writes tiles would be too large.

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
        for a graph of operations, without a condition; here they are changes, added to each base's
        own values, and operations without parameters are left out. All nodes send at once, where
        the papers go through the graph in order. Knyazev et al. fill a large parameter with copies
        of one tile; here each tile is written for its place. Their virtual edges by path length are
        one mean over all nodes.
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
                f"`bases` holds {len(every)} networks and `rounds={rounds}`. One network or more "
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
        """An `Architecture` for each base; more can be added."""
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
        """What is generated for the first base."""
        return self._written(0).spec

    def add(self, base: nn.Module) -> int:
        """Take in one more base, whose own parameters are then part of this module, and return its number.

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
            condition: What is known of each task.
            architecture: Which of the bases, by number.
            base: A base that this hypernetwork does not hold, in the place of ``architecture``. It
                is read anew at each call, and what is generated is added to its own values, which
                it keeps.

        Raises:
            ShapeError: If the condition is not ``(tasks, condition_dim)``.
            ConfigError: If there is no such architecture, or ``base`` needs parameters that are
                learned: those that its form shares among tasks, or a random start.
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
        """Let every node read the means of its neighbours' states."""
        assert self.update is not None
        before, after = means[0] @ states, means[1] @ states
        everywhere = states.mean(1, keepdim=True).expand_as(states)
        messages = torch.cat([before, after, everywhere], dim=2)
        return self.update(messages.flatten(0, 1), states.flatten(0, 1)).unflatten(
            0, states.shape[:2]
        )

    def _tiles(self, states: Tensor, its: "Architecture") -> Float[Tensor, "tasks size"]:
        """Decode all tiles of all parameters, and pick each number from the tile that it lies in."""
        of_layer = self.decode(states)[:, its.layer_of_tile.to(states.device)]
        tiles = self.write(torch.relu(of_layer + self.decode_place(its.places.to(states))))
        return tiles.flatten(1)[:, its.picks.to(states.device)] * its.scales.to(states)

    def _architecture(self, number: int) -> "Architecture":
        if not 0 <= number < len(self.architectures):
            raise ConfigError(
                f"`architecture={number}` is unknown. This hypernetwork holds "
                f"{len(self.architectures)}, counted from "
                "0. Pass one of them, or `base=` a network that it does not hold."
            )
        architecture = self.architectures[number]
        assert isinstance(architecture, Architecture)
        return architecture

    def _written(self, number: int) -> Generated:
        return self._architecture(number).generated


class Architecture(nn.Module):
    """One base as the decoder sees it: its graph, and the tiles that cover what is generated.

    Args:
        generated: What is generated for the base.
        tile: Side of a tile.
    """

    features: Tensor
    means: Tensor
    layer_of_tile: Tensor
    places: Tensor
    picks: Tensor
    scales: Tensor

    def __init__(self, generated: Generated, tile: int) -> None:
        super().__init__()
        self.generated = generated
        self.graph = LayerGraph.of(generated.base)
        layers, places, picks, scales = (
            list[Tensor](),
            list[Tensor](),
            list[Tensor](),
            list[Tensor](),
        )
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
    """How many tiles cover a factor: along its first axis, along its second, and points of its window."""
    if len(shape) < 2:
        return pieces_of(prod(shape), tile**2), 1, 1
    return pieces_of(shape[0], tile), pieces_of(shape[1], tile), prod(shape[2:])


def _places(counts: tuple[int, int, int]) -> Float[Tensor, "tiles places"]:
    """Where each tile lies, as sines and cosines of its share of the way along each of the three."""
    shares = torch.cartesian_prod(*(torch.arange(count) / count for count in counts))
    angles = (shares[..., None] * pi * 2.0 ** torch.arange(FREQUENCIES)).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _picks(shape: Shape, counts: tuple[int, int, int], tile: int) -> Tensor:
    """For each number of a factor, in order.

    Where it stands among the numbers of the factor's tiles.
    """
    if len(shape) < 2:
        return torch.arange(prod(shape))
    _, across, points = counts
    row, column, point = torch.meshgrid(
        *map(torch.arange, (shape[0], shape[1], points)), indexing="ij"
    )
    number = ((row // tile) * across + column // tile) * points + point
    return (number * tile**2 + (row % tile) * tile + column % tile).flatten()


def _scale(layer: nn.Module, factor: str, shape: Shape) -> Tensor:
    """The standard size of a layer's weights; of factors that are vectors, one."""
    if len(shape) < 2 and factor == "change":
        shape = max((tuple(p.shape) for p in layer.parameters(recurse=False)), key=len)
    return torch.tensor(prod(shape[1:]) ** -0.5 if len(shape) >= 2 else 1.0)


def _check_nothing_learned(generated: Generated) -> None:
    for name, form in generated.forms.items():
        shape = generated.spec.shapes[name]
        if form.starts(shape) or form.shared(shape):
            raise ConfigError(
                f"`base` would hold `{name}` as {form}, which learns tensors of its own for each "
                "parameter. A base that is not held has none. Take it in first: `hyper(condition, "
                "hyper.add(base))`."
            )
