"""Read adapters from folders of `peft`."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import pad

from weightloom.errors import CheckpointError, listed, nearest
from weightloom.forms import Factored, LowRank
from weightloom.hypernets.saving import digest
from weightloom.params import Params, parameters_by_name
from weightloom.serving.peft_layers import (
    A_AND_B,
    PREFIX,
    from_peft,
    layouts,
    shapes_of_adapter,
    tied_names,
)
from weightloom.serving.peft_saving import CONFIG, WEIGHTS

KEPT_STARTS = ("gaussian", "eva", "orthogonal")
"""Words of ``init_lora_weights`` that leave the model's own values as they are."""

STARTS = ("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config")
"""Options about the start of training, which do not change a trained adapter."""

OTHER_METHODS = (
    "alora_invocation_tokens",
    "layer_replication",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
)
"""Options of adapters that are more than low-rank changes of layers and biases."""

Values = dict[str, Tensor | tuple[Tensor, Tensor]]
"""Biases, and the factors ``up`` and ``down`` of weights, by name."""


def load_peft(
    folder: str | Path | Sequence[str | Path], model: nn.Module, check: bool = True
) -> Params:
    """Read adapters that `peft` or `save_peft` wrote, as Params for ``model``.

    LoRA and rank-stabilised LoRA of linear layers, embeddings and convolutions, with ranks and
    alphas per module and with biases. Each scaling is multiplied into one factor, so that the
    result can be added, averaged, interpolated and merged by `weightloom.specialise`. No code is
    executed: only safetensors files are read.

    Args:
        folder: A folder with ``adapter_config.json`` and ``adapter_model.safetensors``; of several,
            each is a task. They may adapt different weights in different ranks: lower ranks are
            filled up with zeros.
        model: The model that the adapters are for, which is not changed.
        check: Compare the digests of a file of `save_peft` with the model's weights. Weights that
            the model holds in a narrower dtype than then are not compared.

    Returns:
        The adapted weights as low-rank factors and the biases, each ``(tasks, *shape)``, in the
        dtypes of the model.

    Raises:
        CheckpointError: If a folder or a file is missing or cannot be read; if the adapter is of
            another method, such as DoRA; if tensors are missing, unknown or of another shape, as
            for another architecture; if its targets match no layer; or if the model's weights were
            changed since `save_peft`.

    Example:
        >>> import tempfile
        >>> from weightloom import AdapterHyperNetwork, mlp
        >>> from weightloom.serving import save_peft
        >>> model = mlp([8, 16, 4])
        >>> hyper = AdapterHyperNetwork(model, condition_dim=3, form=LowRank(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = save_peft(hyper(torch.randn(2, 3)), ["ann", "bob"], folder)
        ...     load_peft(paths, model)["0.weight"]
        Factored(LowRank(rank=2), shape=(2, 16, 8))

    Source:
        Format: `peft` 0.21.
    """
    folders = [folder] if isinstance(folder, str | Path) else list(folder)
    if not folders:
        raise CheckpointError(
            "`folder` holds no folder. Each is the adapter of one user. Pass one or more."
        )
    target = _Model(model)
    values = [_Folder(Path(its), target, check).values() for its in folders]
    return _joined(values, target.owns)


class _Model:
    """A model, as adapters see it."""

    def __init__(self, model: nn.Module) -> None:
        self.name = type(model).__name__
        self.layouts = layouts(model)
        """Layout of each layer that can have an adapter."""
        self.owns: dict[str, Tensor] = dict(parameters_by_name(model))
        """Parameters by all of their names."""
        self.tied = tied_names(model)
        self._digests: dict[tuple[str, torch.dtype], str] = {}

    def digest(self, name: str, dtype: torch.dtype) -> str:
        """Digest of a parameter in a dtype, computed once."""
        key = name, dtype
        if key not in self._digests:
            self._digests[key] = digest(self.owns[name], dtype)
        return self._digests[key]


class _Folder:
    """One folder, checked against a model."""

    def __init__(self, path: Path, model: _Model, check: bool) -> None:
        self.path, self.model = path, model
        self.config = _read_config(path / CONFIG)
        _check_method(path, self.config)
        tensors, own = _read_tensors(path / WEIGHTS)
        self.tensors = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
        self.own = own if check else {}

    def values(self) -> Values:
        """Factors and biases by the model's names."""
        layers = self._layers()
        self._check_keys(layers)
        values: Values = {f"{path}.weight": self._factors(path) for path in sorted(layers)}
        self._check_digests()
        for key, value in self.tensors.items():
            name = key.replace(".base_layer.", ".")
            if name in self.model.owns and name.endswith(".bias"):
                values[name] = self._bias(name, value)
        for path in layers:
            if (bias := self.tensors.get(f"{path}.lora_B.bias")) is not None:
                values[f"{path}.bias"] = self._sum(path, values, bias)
        return values

    def _layers(self) -> set[str]:
        """Layers that the configuration names; if it says all linear ones, those of the file.

        Raises:
            CheckpointError: If no layer matches.
        """
        wanted = self.config["target_modules"]
        if wanted == "all-linear":
            found = {key.rpartition(".lora_")[0] for key in self.tensors}
            return found & self.model.layouts.keys()
        chosen = {name for name in self.model.layouts if _is_target(self.config, name)}
        if not chosen:
            words = [wanted] if isinstance(wanted, str) else list(wanted)
            ends = dict.fromkeys(name.rpartition(".")[2] for name in self.model.layouts)
            raise CheckpointError(
                f"`{self.path}` is for the layers {listed(words)}, which match none of "
                f"{self.model.name}. It was made for another model. "
                f"{nearest(words[0] if words else '', ends)}"
            )
        return chosen

    def _check_keys(self, layers: set[str]) -> None:
        """Raise a `CheckpointError` that lists missing tensors, and those without a place."""
        needed = {f"{path}.{name}" for path in layers for name in A_AND_B[self.model.layouts[path]]}
        missing = sorted(needed - self.tensors.keys())
        allowed = needed | {f"{path}.lora_B.bias" for path in layers}
        extra = sorted(key for key in self.tensors.keys() - allowed if not self._is_own(key))
        if missing or extra:
            said = [f"lacks {listed(missing)}"] if missing else []
            said += [f"holds {listed(extra)}, which have no place there"] if extra else []
            raise CheckpointError(
                f"`{self.path}` does not fit {self.model.name} and its own configuration: it "
                f"{' and '.join(said)}. It was made for another architecture, or is incomplete. "
                "Load it for the model that it was made for."
            )
        if tied := [path for path in sorted(layers) if f"{path}.weight" in self.model.tied]:
            name = f"{tied[0]}.weight"
            raise CheckpointError(
                f"`{self.path}` adapts `{name}` alone, which is tied to `{self.model.tied[name]}` "
                "in the model. One generated value stands for both. Untie the model first."
            )

    def _is_own(self, key: str) -> bool:
        """True for a tensor of the model itself: a bias, or a weight that did not change."""
        name = key.replace(".base_layer.", ".")
        own = self.model.owns.get(name)
        if own is None:
            return False
        if name.endswith(".bias"):
            return self.config.get("bias", "none") != "none"
        kept = self.tensors[key]
        return own.shape == kept.shape and torch.equal(kept.to(own), own.detach())

    def _rank_and_scaling(self, path: str) -> tuple[int, float]:
        """Rank of a layer's adapter, and the factor by which `peft` multiplies it.

        Raises:
            CheckpointError: If they are no positive numbers.
        """
        rank = _of_pattern(self.config.get("rank_pattern"), path, self.config.get("r", 8))
        alpha = _of_pattern(
            self.config.get("alpha_pattern"), path, self.config.get("lora_alpha", 8)
        )
        is_number = isinstance(alpha, int | float) and math.isfinite(alpha)
        if not isinstance(rank, int) or rank < 1 or not is_number:
            raise CheckpointError(
                f"`{self.path}` gives `{path}` the rank {rank!r} and alpha {alpha!r}. A rank is a "
                "positive integer, and alpha a number. Repair its configuration."
            )
        return rank, alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _factors(self, path: str) -> tuple[Tensor, Tensor]:
        """Factors of one weight, after checks of their shapes."""
        layout, shape = self.model.layouts[path], tuple(self.model.owns[f"{path}.weight"].shape)
        rank, scaling = self._rank_and_scaling(path)
        a, b = (self.tensors[f"{path}.{name}"] for name in A_AND_B[layout])
        wanted = shapes_of_adapter(layout, shape, rank)
        if (tuple(a.shape), tuple(b.shape)) != wanted:
            raise CheckpointError(
                f"`{self.path}` holds factors of shapes {tuple(a.shape)} and {tuple(b.shape)} for "
                f"`{path}`. A weight of shape {shape} and rank {rank} needs {wanted[0]} and "
                f"{wanted[1]}. It was made for another model. Load it for that one."
            )
        return from_peft(layout, a, b, scaling)

    def _bias(self, name: str, value: Tensor) -> Tensor:
        """A bias in place of the model's, after a check of its shape."""
        if value.shape != self.model.owns[name].shape:
            raise CheckpointError(
                f"`{self.path}` holds `{name}` of shape {tuple(value.shape)}, and the model has "
                f"{tuple(self.model.owns[name].shape)}. It was made for another model. Load it for "
                "that one."
            )
        return value

    def _sum(self, path: str, values: Values, bias: Tensor) -> Tensor:
        """Bias of a layer plus that of its ``lora_B``, which `peft` scales like the adapter."""
        name = f"{path}.bias"
        if name not in self.model.owns:
            raise CheckpointError(
                f"`{self.path}` adds a bias to `{path}`, a layer without one. A change needs a "
                "parameter to change. Build the model with biases."
            )
        start = values.get(name, self.model.owns[name].detach())
        assert isinstance(start, Tensor)
        return start + self._bias(name, bias).to(start) * self._rank_and_scaling(path)[1]

    def _check_digests(self) -> None:
        """Raise a `CheckpointError` if the model holds other weights than when it was saved."""
        for name, (dtype, then) in self.own.items():
            own = self.model.owns.get(name)
            if own is None or torch.promote_types(own.dtype, dtype) != own.dtype:
                continue  # held in a narrower dtype than then
            if self.model.digest(name, dtype) != then:
                raise CheckpointError(
                    f"`model` holds another `{name}` than when `{self.path}` was written. The "
                    "adapter is a change of that one, so the result would be another network. Load "
                    "the weights that it was made for, or pass `check=False`."
                )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it is a {type(config).__name__}")
        for its in ("target_modules", "exclude_modules", "layers_pattern"):
            _check_words(its, config.get(its))
        for its in ("rank_pattern", "alpha_pattern"):
            _check_words(its, list((config.get(its) or {}).keys()))
        _check_layers(config.get("layers_to_transform"))
        config["target_modules"] = config.get("target_modules") or []
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"`{path}` cannot be read as the configuration of an adapter ({error}). A folder of "
            f"`peft` holds it next to `{WEIGHTS}`. Pass such a folder."
        ) from error
    return config


def _check_words(name: str, value: Any) -> None:
    """Raise a ValueError unless a value is an expression or a list of words, or not set."""
    words = [value] if isinstance(value, str) else value or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"`{name}` is {value!r}")
    try:
        [re.compile(word) for word in words]
    except re.error as error:
        raise ValueError(f"`{name}` holds {value!r}: {error}") from error


def _check_layers(value: Any) -> None:
    """Raise a ValueError unless a value is a number, several, or not set."""
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"`layers_to_transform` is {value!r}")


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, tuple[torch.dtype, str]]]:
    """Tensors by name; dtype and digest of the model's own values, if the file holds them."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        facts = json.loads(header.get("weightloom", "{}"))
        own = {str(n): (getattr(torch, its[0]), its[1]) for n, its in facts.get("own", {}).items()}
        return tensors, own
    except (SafetensorError, OSError, ValueError, AttributeError, LookupError) as error:
        raise CheckpointError(
            f"`{path}` cannot be read ({error}). Adapters are read from safetensors files alone, "
            "since other formats can run code. Save the adapter again with `peft`, whose "
            "`save_pretrained` writes this file."
        ) from error


def _check_method(path: Path, config: Mapping[str, Any]) -> None:
    """Raise a `CheckpointError` unless an adapter is a plain low-rank one."""
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"`{path}` holds an adapter of type {config.get('peft_type')!r}. Only low-rank "
            "changes, `LORA`, are read. Merge others by `peft` (`merge_and_unload`), and use the "
            "result as the model."
        )
    odd = [name for name in OTHER_METHODS if config.get(name)]
    odd += [
        name
        for name, value in config.items()
        if value
        and name not in ("use_rslora", *STARTS)
        and (name.startswith("use_") or name.endswith("_config"))
    ]
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in KEPT_STARTS:
        odd.append(f"init_lora_weights={start}")
    if odd:
        raise CheckpointError(
            f"`{path}` uses {listed(odd)}. Such an adapter is more than a low-rank change of the "
            "model's own weights, and is not read. Merge it by `peft` (`merge_and_unload`), and "
            "use the result as the model."
        )


def _is_target(config: Mapping[str, Any], name: str) -> bool:
    """True if the configuration selects a layer, by the rules of `peft`."""
    if (excluded := config.get("exclude_modules")) and _matches(excluded, name):
        return False
    targets = config["target_modules"]
    if isinstance(targets, str) or name in targets:
        return _matches(targets, name)
    return _matches(targets, name) and _is_in_layers(config, name)


def _matches(targets: str | Iterable[str], name: str) -> bool:
    """True if a name matches an expression, or is or ends with one of several words."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _is_in_layers(config: Mapping[str, Any], name: str) -> bool:
    """True if the number in a name is one of ``layers_to_transform``, or none is given."""
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    words = config.get("layers_pattern") or []
    words = [words] if isinstance(words, str) else words
    patterns = [rf"(?:^|.*?\.){word}\.(\d+)\." for word in words] or [r".*?\.[^.]*\.(\d+)\."]
    found = (re.match(pattern, name) for pattern in patterns)
    number = next((int(match[1]) for match in found if match), None)
    return number in ([layers] if isinstance(layers, int) else layers)


def _of_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """Value of the first pattern that matches the end of a name."""
    found = (
        value for its, value in (patterns or {}).items() if re.match(rf"(.*\.)?({its})$", name)
    )
    return next(found, default)


def _joined(tasks: Sequence[Values], owns: Mapping[str, Tensor]) -> Params:
    """Params of several adapters, in the order of the model's parameters."""
    names = {name for values in tasks for name in values}
    return Params({name: _value(name, tasks, owns[name]) for name in owns if name in names})


def _value(name: str, tasks: Sequence[Values], own: Tensor) -> Tensor:
    """One parameter for all tasks; those that lack it get the model's own value."""
    own = own.detach()
    found = [values.get(name) for values in tasks]
    ranks = [its[0].shape[1] for its in found if isinstance(its, tuple)]
    if not ranks:
        return torch.stack([its.to(own) if isinstance(its, Tensor) else own for its in found])
    rank, rows, columns = max(ranks), len(own), own[0].numel()
    nothing = own.new_zeros(rows, 0), own.new_zeros(0, columns)
    pairs = [its if isinstance(its, tuple) else nothing for its in found]
    ups = [pad(up.to(own), (0, rank - up.shape[1])) for up, _ in pairs]
    downs = [pad(down.to(own), (0, 0, 0, rank - len(down))) for _, down in pairs]
    return Factored(LowRank(rank), own, {"up": torch.stack(ups), "down": torch.stack(downs)})
