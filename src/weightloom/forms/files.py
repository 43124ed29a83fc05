"""Save and load Params, dense or as factors.

In:   Params and a path.
Out:  one file in the format of `weightloom.files`, written completely or not at all; and Params
      with equal numbers from it.
Loading executes no code: a form is stored as its name and options, and only forms of
`weightloom.forms` are built from them. Parameters in a custom form are built when they are saved.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.errors import CheckpointError, ConfigError
from weightloom.files import load_tensors, save_tensors
from weightloom.forms.by_name import form_of, has_name
from weightloom.forms.factored import Factored, built
from weightloom.params import Params, parameters_by_name

KIND = "params-1"


def save_params(path: Path, params: Mapping[str, Tensor], with_own: bool = True) -> None:
    """Write generated parameters to a file, completely or not at all.

    Parameters held as factors are stored as factors, except those in a custom form, which are
    built. Memory that several values share, such as a bank of templates, is stored once.

    Args:
        path: The file, such as ``"task.safetensors"``; its folder must exist.
        params: Generated parameters per task.
        with_own: Also store the base's own values, which factors need to be built. False makes a
            smaller file that holds a digest of each and must be loaded with ``own=base``.

    Raises:
        CheckpointError: If the file cannot be written. An existing file at ``path`` is kept.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save_params(Path(folder) / "a.safetensors", {"bias": torch.ones(5, 2)})
        ...     load_params(Path(folder) / "a.safetensors")["bias"].shape
        torch.Size([5, 2])
    """
    store = _Store()
    values: list[dict[str, Any]] = []  # a list, since objects in JSON have no order
    for name, value in params.items():
        if not isinstance(value, Factored) or not has_name(value.form):
            values.append({"name": name, "value": store.put(f"{name}/value", built(value))})
            continue
        its = {
            "form": type(value.form).__name__,
            "options": value.form.__dict__,
            "factors": {
                factor: store.put(f"{name}/{factor}", tensor)
                for factor, tensor in value.factors.items()
            },
            "shared": {
                part: store.put(f"{name}/shared/{part}", tensor)
                for part, tensor in value.shared.items()
            },
            "own": store.put(f"{name}/own", value.own) if with_own else None,
            "own_digest": _digest(value.own),
        }
        values.append({"name": name, **its})
    save_tensors(Path(path), store.tensors, {"kind": KIND, "values": values})


def load_params(path: Path, own: nn.Module | Mapping[str, Tensor] | None = None) -> Params:
    """Read a file of `save_params`: equal numbers in the same forms, on the CPU.

    Args:
        path: The file.
        own: The base, or its own values by name. Required if the file was written with
            ``with_own=False``. Otherwise these values, which must be equal, replace those in the
            file, to save memory.

    Returns:
        The Params, in the order in which they were saved.

    Raises:
        CheckpointError: If the file is missing, truncated, changed since it was written, or holds
            no Params; if this version of the library lacks a form in it; or if ``own`` differs from
            the values that the parameters were generated for.
        ConfigError: If ``own`` is required and missing.
    """
    tensors, facts = load_tensors(Path(path))
    if facts.get("kind") != KIND:
        raise CheckpointError(
            f"`{path}` holds no Params (kind {facts.get('kind')!r}). It was not written by "
            "`save_params`. Read it with `load_tensors`."
        )
    if isinstance(own, nn.Module):
        own = dict(parameters_by_name(own))
    params = Params()
    for held in facts["values"]:
        name = held["name"]
        if "value" in held:
            params[name] = tensors[held["value"]]
            continue
        its_own = _own(path, name, held, tensors, (own or {}).get(name))
        factors = {factor: tensors[key] for factor, key in held["factors"].items()}
        shared = {part: tensors[key] for part, key in held["shared"].items()}
        params[name] = Factored(
            form_of(path, held["form"], held["options"]), its_own, factors, shared
        )
    return params


class _Store:
    """Tensors by name; views of the same memory with equal layout are stored once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[Any, str] = {}

    def put(self, name: str, tensor: Tensor) -> str:
        """Store a tensor under ``name``, or find it; return the name under which it is stored."""
        memory = (
            tensor.data_ptr(),
            tuple(tensor.shape),
            tensor.stride(),
            tensor.dtype,
            tensor.device,
        )
        taken = self._names.setdefault(memory, name) if tensor.numel() else name
        self.tensors[taken] = tensor
        return taken


def _own(
    path: Path, name: str, held: Any, tensors: Mapping[str, Tensor], given: Tensor | None
) -> Tensor:
    if given is None and held["own"] is not None:
        return tensors[held["own"]]
    if given is None:
        raise ConfigError(
            f"`{path}` was written without own values, and none is given for {name!r}. Its factors "
            "only describe the difference from the base's own value. Pass `own=base`."
        )
    if _digest(given) != held["own_digest"]:
        raise CheckpointError(
            f"`own` holds another {name!r} than the one that `{path}` was generated for. A change "
            "added to another own value gives another network. Load the original base, or save "
            "with `with_own=True`."
        )
    return given


def _digest(own: Tensor) -> str:
    tensor = own.detach().cpu().contiguous()
    digest = hashlib.sha256(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
