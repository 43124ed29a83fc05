"""Write generated adapters as folders of `peft`, one per user."""

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from weightloom.errors import CheckpointError, ConfigError, ShapeError, listed
from weightloom.files import TEMPORARY, make_folder
from weightloom.forms import Factored, LowRank
from weightloom.hypernets.saving import digest
from weightloom.params import count_tasks
from weightloom.platforms import move
from weightloom.serving.peft_layers import (
    PREFIX,
    Layout,
    layout_of_shape,
    layouts,
    tied_names,
    to_peft,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Names of the two files of a folder."""


class Adapted(NamedTuple):
    """One weight with an adapter."""

    layout: Layout
    value: Factored
    scaling: float
    """Factor by which `peft` multiplies the product of the two tensors."""


def save_peft(
    params: Mapping[str, Tensor],
    names: Sequence[str],
    folder: str | Path,
    model: nn.Module | None = None,
    alpha: float | None = None,
    rslora: bool = False,
    base_name: str | None = None,
    task_type: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the adapters of several users as folders that `peft` reads, one folder per user.

    A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``, and is written
    completely or not at all. Ranks may differ from weight to weight. Generated biases next to the
    adapters are written as those of ``bias="all"`` or ``"lora_only"``.

    `peft` multiplies the product of the two factors by a scaling of alpha / rank, or alpha / √rank
    with ``rslora``, so one factor is divided by it. By default the scaling is 1, and the files hold
    the factors bit for bit; also if it is a power of two. Else the factor is rounded once.

    The files also hold digests of the model's own values, which `peft` ignores and `load_peft`
    checks.

    Args:
        params: Adapters per task, held as low-rank factors: from `AdapterHyperNetwork`, or any
            hypernetwork with ``form=LowRank(rank)``. `weightloom.forms.to_rank` makes them from
            other values.
        names: Name of the user of each task, which becomes the name of the folder.
        folder: Folder of the users' folders, made if needed.
        model: The model. Without it, weights of two axes are taken for those of linear layers; so
            it is required for embeddings and for the layers of GPT-2, and it lets tied weights be
            found.
        alpha: Alpha of all adapters. Default: the rank of each, its square root with ``rslora``.
        rslora: Scale by the square root of the rank.
        base_name: Name of the model for servers. Default: the name that ``model`` was loaded by.
        task_type: Kind of task in the words of `peft`, such as ``"CAUSAL_LM"``.
        overwrite: Replace the folders of users that exist.

    Returns:
        The folders, in the order of ``names``.

    Raises:
        ShapeError: If the names are not one per task.
        ConfigError: If a parameter is neither a low-rank change of a layer that `peft` adapts nor a
            bias, a weight is tied, a name cannot be a folder or occurs twice, ``alpha`` is not
            positive, or a folder exists.
        CheckpointError: If a folder cannot be written, as on a full disk. Folders written before
            remain, complete; nothing is left of the one that failed, and one that was to be
            replaced is kept.

    Example:
        >>> import tempfile, torch
        >>> from weightloom import AdapterHyperNetwork, LowRank, mlp
        >>> hyper = AdapterHyperNetwork(mlp([8, 16, 4]), condition_dim=3, form=LowRank(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = save_peft(hyper(torch.randn(2, 3)), ["ann", "bob"], folder)
        ...     sorted(file.name for file in paths[1].iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']

    Source:
        Format: `peft` 0.21. Scaling: Hu et al., "LoRA" (2022); Kalajdzievski, "A rank stabilization
        scaling factor for fine-tuning with LoRA" (2023).
    """
    writer = PeftWriter(model, alpha, rslora, base_name, task_type)
    return writer.write(params, [names] if isinstance(names, str) else names, folder, overwrite)


class PeftWriter:
    """`save_peft` for many calls: the model is read once, and must not change in between.

    Args:
        model: As in `save_peft`, like all others.
        alpha: Alpha of all adapters.
        rslora: Scale by the square root of the rank.
        base_name: Name of the model for servers.
        task_type: Kind of task.

    Raises:
        ConfigError: If ``alpha`` is not positive.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        alpha: float | None = None,
        rslora: bool = False,
        base_name: str | None = None,
        task_type: str | None = None,
    ) -> None:
        if alpha is not None and alpha <= 0:
            raise ConfigError(
                f"`alpha={alpha}` is not positive. It scales the adapters. Pass a number above "
                "zero, or leave it out for a scaling of 1."
            )
        self.model, self.scale = model, _Scale(alpha, rslora)
        self.facts = {
            "base_model_name_or_path": base_name or getattr(model, "name_or_path", None) or None,
            "task_type": task_type,
        }
        self._known = layouts(model) if model is not None else None
        self._tied = tied_names(model) if model is not None else {}
        self._digests: dict[str, list[str]] = {}

    def write(
        self,
        params: Mapping[str, Tensor],
        names: Sequence[str],
        folder: str | Path,
        overwrite: bool = False,
    ) -> list[Path]:
        """Write the adapters of several users.

        Args:
            params: Adapters per task.
            names: Name of the user of each task.
            folder: Folder of the users' folders.
            overwrite: Replace the folders of users that exist.

        Returns:
            The folders.

        Raises:
            ShapeError: As `save_peft`.
            ConfigError: As `save_peft`.
            CheckpointError: As `save_peft`.
        """
        folder = Path(folder)
        _check_names(names, count_tasks(params) or 0)
        taken = [name for name in names if os.path.lexists(folder / name)]
        if taken and not overwrite:
            raise ConfigError(
                f"`{folder}` already holds {listed(taken)}. Existing files are kept. Pass "
                "`overwrite=True` to replace them, or another folder."
            )
        adapted, biases = self._sorted_out(params)
        config = _config(adapted, biases, self.model, self.scale) | self.facts
        content = json.dumps(config, indent=2, sort_keys=True).encode()
        own = {f"{path}.weight": self._digest(path, its) for path, its in adapted.items()}
        facts = {"format": "pt", "weightloom": json.dumps({"own": own})}
        make_folder(folder, "folder")
        for task, name in enumerate(names):
            tensors = _tensors(adapted, biases, task)
            _write(folder / name, {CONFIG: content, WEIGHTS: to_bytes(tensors, facts)}, task)
        return [folder / name for name in names]

    def _digest(self, path: str, its: Adapted) -> list[str]:
        """Dtype and digest of the model's own value of a weight."""
        if path not in self._digests:
            own = its.value.own
            self._digests[path] = [str(own.dtype).removeprefix("torch."), digest(own)]
        return self._digests[path]

    def _sorted_out(
        self, params: Mapping[str, Tensor]
    ) -> tuple[dict[str, Adapted], dict[str, Tensor]]:
        """Adapters by the name of their layer, and biases by their own name, on the CPU.

        Raises:
            ConfigError: If a parameter is neither, or no adapter is left.
        """
        adapted, biases = dict[str, Adapted](), dict[str, Tensor]()
        for name, value in params.items():
            path, _, leaf = name.rpartition(".")
            if path and leaf == "bias" and value.ndim == 2:
                biases[name] = value.detach().cpu()
            else:
                adapted[path] = self._adapted(name, value)
        if not adapted:
            raise ConfigError(
                f"`params` holds no low-rank change, only {listed(params)}. An adapter of `peft` "
                "has one or more. Generate weights with `form=LowRank(rank)`."
            )
        return adapted, biases

    def _adapted(self, name: str, value: Tensor) -> Adapted:
        """Check one weight for an adapter."""
        path, _, leaf = name.rpartition(".")
        if name in self._tied:
            raise ConfigError(
                f"`{name}` is tied: it is also `{self._tied[name]}`. A generated change applies to "
                "both, and an adapter of `peft` to one layer alone. Leave it out, or untie the "
                "model."
            )
        if not isinstance(value, Factored) or not isinstance(value.form, LowRank):
            held = value.form if isinstance(value, Factored) else "a plain tensor"
            raise ConfigError(
                f"`{name}` is held as {held}. An adapter of `peft` is a low-rank change, or a "
                "bias. Generate it with `form=LowRank(rank)`, leave it out of `generate`, or "
                "convert it: `params, error = to_rank(params, rank, own=model)`."
            )
        shape = tuple(value.own.shape)
        layout = layout_of_shape(shape) if self._known is None else self._known.get(path)
        if not path or leaf != "weight" or layout is None:
            raise ConfigError(
                f"`{name}` is not the weight of a layer that `peft` adapts as this library does: "
                "linear layers, embeddings, and convolutions without groups, dilation or circular "
                "padding, each inside the model. Leave it out of `generate`."
            )
        scaling = self.scale.scaling(value.form.rank)
        return Adapted(layout, value.map(lambda factor: factor.detach().cpu()), scaling)


class _Scale(NamedTuple):
    """Alpha and scaling of adapters."""

    alpha: float | None
    by_root: bool

    def of(self, rank: int) -> float:
        """Alpha of an adapter."""
        if self.alpha is not None:
            return self.alpha
        return self.root(rank)

    def scaling(self, rank: int) -> float:
        """Factor by which `peft` multiplies an adapter."""
        return self.of(rank) / self.root(rank)

    def root(self, rank: int) -> float:
        """Divisor of alpha: the rank, or its square root."""
        return math.sqrt(rank) if self.by_root else float(rank)


def _check_names(names: Sequence[str], tasks: int) -> None:
    """Raise unless names are one per task, different, and names of folders."""
    if len(names) != tasks:
        raise ShapeError(
            f"`names` holds {len(names)} names for {tasks} tasks. Each task is the adapter of one "
            "user. Pass one name per task."
        )
    odd = [name for name in names if not is_folder_name(name)]
    odd += [name for name, count in Counter(names).items() if count > 1]
    if odd:
        raise ConfigError(
            f"`names` holds {listed(map(str, odd))}, which cannot be folders: each user has a "
            "folder of that name. Pass different names without slashes that do not begin with a "
            "dot."
        )


def is_folder_name(name: str) -> bool:
    """True for a name that is one folder, inside the one that it is joined to."""
    return bool(name) and name[0] != "." and not set(name) & {"/", "\\", "\0", ":"}


def _config(
    adapted: Mapping[str, Adapted],
    biases: Mapping[str, Tensor],
    model: nn.Module | None,
    scale: _Scale,
) -> dict[str, Any]:
    """The configuration, as `peft` writes it."""
    ranks = {path: its.value.factors["up"].shape[-1] for path, its in adapted.items()}
    most = max(ranks.values())
    others = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != most}
    alphas = {path: _plain(scale.of(rank)) for path, rank in others.items()}
    inside = all(name.rpartition(".")[0] in adapted for name in biases)
    return {
        "peft_type": "LORA",
        "r": most,
        "lora_alpha": _plain(scale.of(most)),
        "rank_pattern": others,
        "alpha_pattern": alphas if scale.alpha is None else {},
        "use_rslora": scale.by_root,
        "target_modules": _targets(list(adapted), model),
        "bias": ("lora_only" if inside else "all") if biases else "none",
        "fan_in_fan_out": all(its.layout == "transposed" for its in adapted.values()),
        "lora_dropout": 0.0,
        "inference_mode": True,
        "init_lora_weights": True,
    }


def _plain(alpha: float) -> float | int:
    """An integer where it is one, as servers expect."""
    return int(alpha) if alpha.is_integer() else alpha


def _targets(paths: list[str], model: nn.Module | None) -> list[str] | str:
    """Names of the adapted layers; an expression if one also ends the name of another layer."""
    names = [name for name, _ in model.named_modules()] if model is not None else paths
    clash = {name for name in names for path in paths if name.endswith(f".{path}")} - {*paths}
    return "|".join(map(re.escape, paths)) if clash else paths


def _tensors(
    adapted: Mapping[str, Adapted], biases: Mapping[str, Tensor], task: int
) -> dict[str, Tensor]:
    """Tensors of one user, by the names of `peft`."""
    tensors: dict[str, Tensor] = {}
    for path, its in adapted.items():
        up, down = (its.value.factors[name][task] for name in ("up", "down"))
        found = to_peft(its.layout, tuple(its.value.own.shape), up, down, its.scaling)
        tensors |= {f"{PREFIX}{path}.{name}": value for name, value in found.items()}
    for name, value in biases.items():
        path = name.rpartition(".")[0]
        inner = f"{path}.base_layer.bias" if path in adapted else name
        tensors[f"{PREFIX}{inner}"] = value[task].contiguous()
    return tensors


def _write(folder: Path, files: Mapping[str, bytes], done: int) -> None:
    """Write a folder under a temporary name, then move it into place.

    Raises:
        CheckpointError: If writing fails; nothing of the new folder is left.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}{TEMPORARY}")
    before = folder.with_name(f".{folder.name}.{os.getpid()}.before")
    try:
        temporary.mkdir()
        for name, content in files.items():
            with (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if os.path.lexists(folder):
            move(folder, before)
        move(temporary, folder)
    except OSError as error:
        _restore(folder, before)
        size = sum(map(len, files.values())) / 1e3
        raise CheckpointError(
            f"`{folder}` could not be written ({error.strerror or error}). {done} users before it "
            "are complete, and no part of this one was left. It needs "
            f"{size:,.0f} kB in a folder that is writable. Free some space, or pass another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove(before)


def _restore(folder: Path, before: Path) -> None:
    if before.exists() and not folder.exists():
        with suppress(OSError):
            move(before, folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
