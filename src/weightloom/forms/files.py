"""Params in a file: generated parameters as they are held, dense or as factors.

In:   Params, and a path.
Out:  one file as of `weightloom.files`, whole or not there at all; and the Params in it, with equal
      numbers.
Nothing that is loaded can execute code: a form is written as its name and options, and only forms
of `weightloom.forms` are made from them. Parameters held in a form of your own are built when they
are saved.
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
    """Write generated parameters to ``path``, at once or not at all.

    Those held as factors stay factors.

    What several values hold together, such as the own value of tied parameters or a bank of
    templates, is written once.

    Args:
        path: Where, as in ``"task.safetensors"``; its folder must exist.
        params: Generated parameters per task.
        with_own: Write the base's own values too, which factors need to become parameters. Without
            them the file is small, holds a digest of each, and is read with ``own=base``.

    Raises:
        CheckpointError: If it cannot be written. What was at ``path`` is still there.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save_params(Path(folder) / "a.safetensors", {"bias": torch.ones(5, 2)})
        ...     load_params(Path(folder) / "a.safetensors")["bias"].shape
        torch.Size([5, 2])
    """
    store = _Store()
    values: list[dict[str, Any]] = []  # a list keeps the order, which an object in JSON does not
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
    """Read what `save_params` wrote: equal numbers, on the CPU, in the forms that they had.

    Args:
        path: The file.
        own: The base, or its own values by name. Needed if the file was written without own values;
            if it was written with them, the ones given here take their place, so that no memory is
            spent twice. They must be equal.

    Raises:
        CheckpointError: If the file is missing, truncated, changed since it was written, or holds
            no Params; or if ``own`` is another base than the one that the parameters were generated
            for.
        ConfigError: If the file needs ``own`` and it is not given.
    """
    tensors, facts = load_tensors(Path(path))
    if facts.get("kind") != KIND:
        raise CheckpointError(
            f"`{path}` holds no Params (kind {facts.get('kind')!r}). It was written by something "
            "else than `save_params`. Read it with `load_tensors`."
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
    """Tensors by name; the same memory, seen the same way, is kept once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[Any, str] = {}

    def put(self, name: str, tensor: Tensor) -> str:
        """Keep a tensor, and return the name that it is kept under."""
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
            "say how the parameter differs from the base's own. Pass `own=base`."
        )
    if _digest(given) != held["own_digest"]:
        raise CheckpointError(
            f"`own` holds another {name!r} than the one that `{path}` was generated for. A change "
            "that is put on another start gives another network. Load the base as it was, or save "
            "with `with_own=True`."
        )
    return given


def _digest(own: Tensor) -> str:
    tensor = own.detach().cpu().contiguous()
    digest = hashlib.sha256(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
