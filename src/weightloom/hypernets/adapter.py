"""The adapter hypernetwork: low-rank changes of a frozen model, for layers of any size and number.

In:   a condition per task, and tokens of the frozen weights' rows and columns.
Out:  Params held as low-rank factors.
Knows nothing of the model's forward pass.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from math import log2, pi, prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.errors import ConfigError, listed, nearest
from weightloom.forms import Factored, Form, LowRank, choose_forms
from weightloom.forms.choose import Generate
from weightloom.hypernets.held import HoldsBase
from weightloom.hypernets.hypernet import HyperNetwork, check_condition
from weightloom.hypernets.saving import Saves, described
from weightloom.hypernets.weight_tokens import weight_tokens
from weightloom.hypernets.writer import check_sizes
from weightloom.params import Params, ParamSpec

FREQUENCIES = 4
"""Number of frequencies that encode the depth of a layer: sines and cosines of 1, 2, 4 and 8 half
turns."""

Kinds = Mapping[str, str]
"""Kinds of weights, or globs for them, and the kind whose learned embedding each uses."""


class AdapterHyperNetwork(Saves, HyperNetwork):
    """Hypernetwork for adapters of a frozen model: θ = W + B(condition) A(condition).

    One generator writes for every layer. It is told the depth of the layer (a number from 0 to 1),
    its kind, such as ``attention.self.query``, and the largest singular directions of its frozen
    weight. From the condition and these it writes coefficients; each row of B is these coefficients
    times features of that row's token (`weight_tokens`), each column of A likewise:

        B[i] = size · C_b φ_b(row i) / √width,    A[:, j] = C_a φ_a(column j) / √(width · columns),

    where size is the usual output of the layer. So the number of own parameters depends neither on
    the width nor on the depth of the model, only on its number of kinds, and permuting the hidden
    neurons of the model permutes its adapters likewise. C_b starts at zero, so every task gets the
    unchanged model at step 0.

    The whole model is frozen: ``hyper.base`` is a twin of its module tree that shares its memory
    (`weightloom.hypernets.held.HoldsBase`). Its weights are read when this is built, and again if
    they are changed in place.

    One generator serves other models: `on` builds a hypernetwork for another base that shares all
    own parameters with this one.

    Args:
        base: The model, any module.
        condition_dim: Width of a condition.
        generate: Selectors of the weights that get an adapter, as in `MLPHyperNetwork`; as a
            mapping, also the rank of each: ``{"*.query.weight": LowRank(8), "*": LowRank(2)}``.
            Parameters that they match but the form does not fit, such as biases, stay the
            model's own.
        form: Form of the adapters, if ``generate`` is not a mapping.
        width: Width of the generator.
        features: Number of singular directions that describe a weight.
        kinds: Kinds that share an embedding: ``{"*.k_proj": "self_attn.q_proj"}``. Default: each
            kind has its own. The kind of a weight is the name of its layer inside its block, which
            is all that follows the last number; without a name, the class of the layer.
        generator: Generator to share, as by `on`.

    Raises:
        ConfigError: If a selector matches no parameter, no weight is left to adapt, a form is not
            `LowRank`, a size is below 1, or a weight holds NaN or infinity.

    Example:
        >>> from weightloom.networks import mlp
        >>> hyper = AdapterHyperNetwork(mlp([16, 64, 16]), condition_dim=4, form=LowRank(2))
        >>> hyper(torch.randn(5, 4))["0.weight"]
        Factored(LowRank(rank=2), shape=(5, 64, 16))
        >>> wide = hyper.on(mlp([16, 256, 256, 16]))
        >>> wide(torch.randn(5, 4))["2.weight"].shape
        torch.Size([5, 256, 256])

    Source:
        One generator told depth and kind of layer: Mahabadi et al., "Parameter-efficient multi-task
        fine-tuning for transformers via shared hypernetworks" (2021); Charakorn et al.,
        "Text-to-LoRA" (2025). Row and column tokens of the frozen weights: "Prompt2Effect" (2026).
        Here depth is continuous, tokens are singular directions, and the condition acts on them by
        coefficients; a written A starts at random as LoRA's own does.
    """

    def __init__(
        self,
        base: nn.Module,
        condition_dim: int,
        generate: Generate = "*",
        form: Form | None = None,
        width: int = 64,
        features: int = 16,
        kinds: Kinds | None = None,
        generator: "AdapterGenerator | Mapping[str, Any] | None" = None,
    ) -> None:
        super().__init__()
        check_sizes(condition_dim=condition_dim, width=width, features=features)
        forms = _low_rank_forms(base, generate, form)
        table = _kinds_of(base, forms, kinds or {})
        if generator is None:
            rank = max(its.rank for its in forms.values())
            names = list(dict.fromkeys(table.values()))
            generator = AdapterGenerator(condition_dim, rank, names, width, features)
        elif isinstance(generator, Mapping):  # from a file
            generator = AdapterGenerator(**generator)
        self.generator = generator
        """The part that is trained, shared by all bases that it serves."""
        self.condition_dim = condition_dim
        _check_served(generator, condition_dim, forms, table)
        self.generated = AdaptedWeights(base, forms, table, generator)
        self.options = {"condition_dim": condition_dim, "generator": generator.sizes}
        self.options |= {"kinds": dict(kinds or {}), **described(forms)}

    @property
    def base(self) -> nn.Module:
        """Frozen twin of the model; it shares the model's memory."""
        return self.generated.base

    @property
    def spec(self) -> ParamSpec:
        """Names and shapes of the adapted weights, and names of the other parameters."""
        return self.generated.spec

    def on(
        self,
        base: nn.Module,
        generate: Generate | None = None,
        form: Form | None = None,
        kinds: Kinds | None = None,
    ) -> "AdapterHyperNetwork":
        """Build a hypernetwork for another model that shares this one's generator.

        Args:
            base: The other model, of any width and depth.
            generate: As for the class. Default: all weights of the kinds that the generator knows.
            form: As for the class. Default: the rank of this generator, which is also the limit.
            kinds: Kind known to this generator for each kind of ``base`` that it does not know, or
                for globs of them: ``{"self_attn.q_proj": "attention.self.query"}``.

        Raises:
            ConfigError: If a kind or a rank is not served, or as for the class.
        """
        if form is None and not isinstance(generate, Mapping):
            form = LowRank(self.generator.rank)
        if generate is None:
            generate = _of_known_kinds(base, kinds or {}, self.generator.kinds)
        return AdapterHyperNetwork(
            base, self.condition_dim, generate, form, kinds=kinds, generator=self.generator
        )

    def forward(self, condition: Float[Tensor, "tasks condition_dim"]) -> Params:
        """Generate an adapter of each weight for each task.

        Args:
            condition: Description of each task, (tasks, condition_dim).

        Returns:
            The adapted weights by name, each (tasks, *shape), held as factors.

        Raises:
            ShapeError: If the condition is not ``(tasks, condition_dim)``.
            ConfigError: If the base was changed after this was built.
        """
        check_condition(condition, self.condition_dim, self.generator.up.weight)
        return self.generated(condition, self.generator)


class AdapterGenerator(nn.Module):
    """The trained part of `AdapterHyperNetwork`, which knows no model.

    Args:
        condition_dim: Width of a condition.
        rank: Largest rank that it writes.
        kinds: Names of the kinds of weights, each with a learned embedding.
        width: Width of all of its layers.
        features: Number of features of a token.
    """

    def __init__(
        self, condition_dim: int, rank: int, kinds: Iterable[str], width: int, features: int
    ) -> None:
        super().__init__()
        self.rank, self.kinds, self.features = rank, list(kinds), features
        self.sizes = {
            "condition_dim": condition_dim,
            "rank": rank,
            "kinds": self.kinds,
            "width": width,
            "features": features,
        }
        """Arguments that build a generator of the same shape."""
        self.condition = _normalised(condition_dim, width)
        self.depth = _normalised(2 * FREQUENCIES, width)
        self.kind = nn.Embedding(len(self.kinds), width)
        self.kind_norm = nn.LayerNorm(width)
        self.facts = _normalised(features + 2, width)
        self.blocks = nn.ModuleList(_block(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.rows, self.columns = nn.Linear(features, width), nn.Linear(features, width)
        self.place_of_rows = nn.Linear(width, width, bias=False)
        self.place_of_columns = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, rank * width), nn.Linear(width, rank * width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(
        self, condition: Float[Tensor, "tasks condition_dim"], group: "SameShape"
    ) -> tuple[Float[Tensor, "tasks layers rows rank"], Float[Tensor, "tasks layers rank columns"]]:
        """Write the factors of all weights of one shape, B and A."""
        dtype = self.up.weight.dtype
        rows, columns, facts, depth = (
            its.to(condition.device, dtype)
            for its in (group.rows, group.columns, group.facts, group.depth)
        )
        place = self.depth(depth) + self.kind_norm(self.kind(group.kinds)) + self.facts(facts)
        state = self.condition(condition)[:, None] + place
        for block in self.blocks:
            state = state + block(state)
        state = self.norm(state)
        of_rows = self.rows(rows) + self.place_of_rows(place)[:, None]
        of_columns = self.columns(columns) + self.place_of_columns(place)[:, None]
        up = self._written(self.up(state), of_rows) * group.sizes.to(of_rows)[:, None, None]
        return up.mT, self._written(self.down(state), of_columns) / columns.shape[1] ** 0.5

    def _written(
        self,
        coefficients: Float[Tensor, "tasks layers numbers"],
        features: Float[Tensor, "layers tokens width"],
    ) -> Float[Tensor, "tasks layers rank tokens"]:
        """Combine the features of each token by each task's coefficients, one set per rank."""
        tasks, layers, width = *coefficients.shape[:2], features.shape[-1]
        by_layer = coefficients.view(tasks, layers, self.rank, width).transpose(0, 1)
        numbers = by_layer.flatten(1, 2) @ nn.functional.silu(features).mT / width**0.5
        return numbers.unflatten(1, (tasks, self.rank)).transpose(0, 1)


class AdaptedWeights(HoldsBase):
    """A frozen model, and the tokens of its weights that get adapters.

    Args:
        base: The model.
        forms: Form of the adapter of each weight.
        kinds: Kind of each weight.
        generator: The generator that will write them.
    """

    def __init__(
        self,
        base: nn.Module,
        forms: Mapping[str, LowRank],
        kinds: Mapping[str, str],
        generator: AdapterGenerator,
    ) -> None:
        super().__init__()
        self.forms, self.kinds = dict(forms), dict(kinds)
        self.spec = ParamSpec.of(base, list(forms))
        self.hold(base, frozen=set(dict(base.named_parameters())))
        depths = _depths({name: _kind(base, name) for name in forms})
        shapes: dict[tuple[int, int], list[str]] = {}
        for name in forms:
            shape = self.spec.shapes[name]
            shapes.setdefault((shape[0], prod(shape[1:])), []).append(name)
        self.groups = nn.ModuleList(
            SameShape(
                {name: self.base.get_parameter(name) for name in names},
                [generator.kinds.index(kinds[name]) for name in names],
                [depths[name] for name in names],
                generator.features,
            )
            for names in shapes.values()
        )

    def forward(self, condition: Tensor, generator: AdapterGenerator) -> Params:
        """Generate the factors of all weights, each in the dtype of the weight."""
        self.check_base()
        values: dict[str, Tensor] = {}
        for group in self.groups:
            assert isinstance(group, SameShape)
            owns = {name: self.base.get_parameter(name) for name in group.names}
            group.follow(owns)
            ups, downs = generator(condition, group)
            for (name, own), up, down in zip(
                owns.items(), ups.unbind(1), downs.unbind(1), strict=True
            ):
                form = self.forms[name]
                factors = {"up": up[..., : form.rank], "down": down[:, : form.rank]}
                values[name] = Factored(
                    form, own, {factor: its.to(own.dtype) for factor, its in factors.items()}
                )
        return Params({name: values[name] for name in self.forms})


class SameShape(nn.Module):
    """Tokens of all weights of one shape, stacked.

    Args:
        weights: The weights by name.
        kinds: Number of the kind of each.
        depths: Depth of each, from 0 to 1.
        features: Number of features of a token.
    """

    rows: Tensor
    """Tokens of rows, (layers, rows, features)."""
    columns: Tensor
    """Tokens of columns, (layers, columns, features)."""
    facts: Tensor
    """Spectrum and sides of each weight, (layers, features + 2)."""
    depth: Tensor
    """Sines and cosines of the depth, (layers, 2 · FREQUENCIES)."""
    kinds: Tensor
    """Number of the kind of each weight, (layers,)."""
    sizes: Tensor
    """Root mean square of the outputs of each layer for inputs of variance 1, (layers,)."""

    def __init__(
        self, weights: Mapping[str, Tensor], kinds: list[int], depths: list[float], features: int
    ) -> None:
        super().__init__()
        self.names, self.features = list(weights), features
        device = next(iter(weights.values())).device
        angles = torch.tensor(depths, device=device)[:, None] * pi
        angles = angles * 2.0 ** torch.arange(FREQUENCIES, device=device)
        depth = torch.cat([angles.sin(), angles.cos()], dim=1)
        self._keep("depth", depth.to(torch.get_default_dtype()))
        self._keep("kinds", torch.tensor(kinds, device=device))
        self._read(weights)

    def follow(self, weights: Mapping[str, Tensor]) -> None:
        """Read the weights again if they were changed in place, as by `load_state_dict`."""
        if not torch.compiler.is_compiling() and _versions(weights) != self._read_at:
            self._read(weights)

    def _read(self, weights: Mapping[str, Tensor]) -> None:
        tokens = [weight_tokens(weight, self.features) for weight in weights.values()]
        norms = torch.stack([its.norm for its in tokens])
        height, across = len(tokens[0].rows), len(tokens[0].columns)
        sides = norms.new_tensor([log2(height), log2(across)]) / 10
        tables = {
            "rows": torch.stack([its.rows for its in tokens]),
            "columns": torch.stack([its.columns for its in tokens]),
            "facts": torch.stack([torch.cat([its.spectrum, sides]) for its in tokens]),
            "sizes": norms.where(norms > 0, across**0.5) / height**0.5,
        }
        for table, value in tables.items():
            self._keep(table, value.to(self.depth))
        self._read_at = _versions(weights)

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)


def _versions(weights: Mapping[str, Tensor]) -> list[int]:
    """Number of changes in place of each weight; those of inference mode are not counted."""
    return [0 if its.is_inference() else its._version for its in weights.values()]


def _normalised(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width))


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
    )


def _low_rank_forms(base: nn.Module, generate: Generate, form: Form | None) -> dict[str, LowRank]:
    """Form of each adapted weight; parameters that it does not fit are left out."""
    if form is None and not isinstance(generate, Mapping):
        form = LowRank(8)
    for its in generate.values() if isinstance(generate, Mapping) else [form]:
        if its is not None and not isinstance(its, LowRank):
            raise ConfigError(
                f"`{its!r}` was given as the form of an adapter. Adapters are low-rank changes, "
                "written row by row and column by column. Pass `LowRank(rank)`, or use "
                "`MLPHyperNetwork` for other forms."
            )
    chosen = choose_forms(base, generate, form)
    forms = {name: its for name, its in chosen.items() if isinstance(its, LowRank)}
    if not forms:
        raise ConfigError(
            f"No weight is left to adapt: none of {listed(chosen)} is a matrix with both sides "
            f"above the rank, {form or generate}. Select larger weights, or pass a lower rank, as "
            "in `form=LowRank(1)`."
        )
    return forms


def _kinds_of(base: nn.Module, names: Iterable[str], kinds: Kinds) -> dict[str, str]:
    """Kind of each weight, after ``kinds``."""
    found = {name: _kind(base, name) for name in names}
    for pattern in kinds:
        if not any(fnmatchcase(kind, pattern) for kind in found.values()):
            raise ConfigError(
                f"`kinds` holds {pattern!r}, which matches no kind of weight here. A kind is the "
                "name of a layer inside its block. "
                f"{nearest(pattern, dict.fromkeys(found.values()))}"
            )
    return {
        name: next((to for its, to in kinds.items() if fnmatchcase(kind, its)), kind)
        for name, kind in found.items()
    }


def _of_known_kinds(base: nn.Module, kinds: Kinds, known: list[str]) -> list[str]:
    """Names of the weights whose kind a generator has learned.

    Raises:
        ConfigError: If there is none.
    """
    matrices = [name for name, its in base.named_parameters() if its.ndim > 1]
    found = _kinds_of(base, matrices, kinds)
    if names := [name for name, kind in found.items() if kind in known]:
        return names
    raise _unknown_kinds(dict.fromkeys(found.values()), known)


def _unknown_kinds(kinds: Iterable[str], known: list[str]) -> ConfigError:
    unknown = sorted(kinds)
    example = unknown[0] if unknown else "q_proj"
    return ConfigError(
        f"This generator has not learned the kinds {listed(unknown)}. Each kind of weight has an "
        f"embedding, and it has those of {listed(known)}. Say which one to use, as in "
        f"`kinds={{{example!r}: {known[0]!r}}}`."
    )


def _kind(base: nn.Module, name: str) -> str:
    """Name of a layer inside its block, such as ``attention.self.query``."""
    path, _, leaf = name.rpartition(".")
    parts = path.split(".")
    last = max((place for place, part in enumerate(parts) if part.isdigit()), default=-1)
    inside = ".".join(parts[last + 1 :]) or type(base.get_submodule(path)).__name__
    return inside if leaf == "weight" else f"{inside}.{leaf}"


def _depths(kinds: Mapping[str, str]) -> dict[str, float]:
    """Depth of each weight among those of its kind, from 0 to 1."""
    names: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        names.setdefault(kind, []).append(name)
    return {
        name: place / max(len(its) - 1, 1)
        for its in names.values()
        for place, name in enumerate(its)
    }


def _check_served(
    generator: AdapterGenerator,
    condition_dim: int,
    forms: Mapping[str, LowRank],
    kinds: Mapping[str, str],
) -> None:
    """Raise a `ConfigError` if a generator cannot write for these weights."""
    if condition_dim != generator.sizes["condition_dim"]:
        raise ConfigError(
            f"`condition_dim={condition_dim}` was given with a generator that reads "
            f"{generator.sizes['condition_dim']} numbers. Both read one condition. Pass the latter."
        )
    if (rank := max(its.rank for its in forms.values())) > generator.rank:
        raise ConfigError(
            f"`{LowRank(rank)}` was given for a generator that writes up to rank {generator.rank}. "
            f"Lower ranks are its first ones. Pass `form=LowRank({generator.rank})` or less."
        )
    if unknown := sorted({kind for kind in kinds.values() if kind not in generator.kinds}):
        raise _unknown_kinds(unknown, generator.kinds)
