"""Save and load a hypernetwork: its own tensors and the trained part of its base.

In:   a hypernetwork over a base, and a path.
Out:  one file in the format of `weightloom.files`; and, from it and an equal base, an equal
      hypernetwork.
Loading executes no code: generated parameters are stored by name, forms by name and options.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from weightloom.errors import CheckpointError, ConfigError
from weightloom.files import load_tensors, save_tensors
from weightloom.forms import Form
from weightloom.forms.by_name import form_of, has_name
from weightloom.hypernets.held import HoldsBase, shapes_of

Saved = TypeVar("Saved", bound="Saves")

KIND = "hypernetwork-1"


class Saves:
    """Mixin for hypernetworks over a base: `save` and `load`."""

    options: dict[str, Any]
    """Constructor arguments other than the base, in the JSON form of `described`."""

    def save(self, path: str | Path) -> None:
        """Write this hypernetwork to a file, completely or not at all.

        The file holds the hypernetwork's own tensors and the trained part of the base, but only a
        digest of frozen tensors. So a hypernetwork over a large frozen network makes a small file.

        Args:
            path: The file, such as ``"hyper.safetensors"``; its folder must exist.

        Raises:
            CheckpointError: If the file cannot be written. An existing file at ``path`` is kept.
        """
        kept, frozen = _parts(self)
        facts = {
            "kind": KIND,
            "class": type(self).__name__,
            "options": self.options,
            "bases": [
                {name: list(shape) for name, shape in shapes_of(base).items()}
                for base in _bases(self)
            ],
            "frozen": {name: [str(value.dtype), digest(value)] for name, value in frozen.items()},
        }
        save_tensors(Path(path), kept, facts)

    @classmethod
    def load(
        cls: type[Saved], path: str | Path, base: nn.Module | Sequence[nn.Module], **options: Any
    ) -> Saved:
        """Read a file of `save`: an equal hypernetwork over ``base``.

        The trained part of the base is written into ``base``; its frozen part must be equal to that
        of the saved one. The hypernetwork's own tensors have the dtypes in the file, those of the
        base keep theirs. Devices are those of a new hypernetwork over ``base``.

        Args:
            path: The file.
            base: A base equal to the one over which the hypernetwork was built, before its
                training; a list if there were several.
            **options: Constructor arguments that override those in the file.

        Raises:
            CheckpointError: If the file is missing, truncated, changed since it was written or
                holds no hypernetwork of this class, or if ``base`` does not match it.
            ConfigError: If an argument cannot be stored in a file, such as a form of your own in
                ``generate``, and is not passed here.
        """
        path = Path(path)
        tensors, facts = load_tensors(path)
        _check_kind(path, facts, cls.__name__)
        bases = [base] if isinstance(base, nn.Module) else list(base)
        _check_shapes(path, facts["bases"], bases)
        build: Callable[..., Saved] = cls
        with torch.random.fork_rng():  # random initial values are overwritten below
            hyper = build(base, **_arguments(path, facts["options"], options))
        assert isinstance(hyper, nn.Module)
        state = hyper.state_dict(keep_vars=True)
        _check_frozen(path, facts["frozen"], state)
        _check_tensors(path, cls.__name__, tensors, state)
        _check_complete(path, cls.__name__, {*tensors, *facts["frozen"]}, _parts(hyper)[0])
        _fill(hyper, state, tensors)
        return hyper


def described(generate: Any, freeze: Any = None, form: Form | None = None) -> dict[str, Any]:
    """Arguments ``generate``, ``freeze`` and ``form`` of a hypernetwork as JSON.

    The value None marks an argument that JSON cannot hold: a predicate, a module class, or a form
    that is not of this library.

    Args:
        generate: Selectors, or a mapping from them to forms.
        freeze: Selectors, or None.
        form: A form, or None.

    Returns:
        A dict with ``generate``, and with ``freeze`` and ``form`` where they are given.
    """
    said: dict[str, Any] = {"generate": _described_forms(generate)}
    if freeze:
        frozen = _listed(freeze)
        said["freeze"] = None if frozen is None else {"selectors": frozen}
    if form is not None:
        said["form"] = _named(form) if has_name(form) else None
    return said


def _described_forms(generate: Any) -> dict[str, Any] | None:
    selectors = _listed(generate)
    if selectors is None:
        return None
    forms = list(generate.values()) if isinstance(generate, Mapping) else []
    if not all(map(has_name, forms)):
        return None
    if not forms:
        return {"selectors": selectors}
    return {"in forms": [[s, _named(f)] for s, f in zip(selectors, forms, strict=True)]}


def digest(tensor: Tensor, dtype: torch.dtype | None = None) -> str:
    """SHA-256 digest of a tensor's dtype, shape and values, in hexadecimal.

    Args:
        tensor: Any tensor, on any device.
        dtype: Dtype to which it is cast first. None keeps its own.
    """
    plain = tensor.detach().cpu().to(dtype or tensor.dtype).contiguous()
    found = hashlib.sha256(json.dumps([str(plain.dtype), list(plain.shape)]).encode())
    found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _parts(hyper: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors to store in a file, and frozen tensors of the bases; a tied tensor once."""
    holders = _holders(hyper)
    kept, frozen, seen = dict[str, Tensor](), dict[str, Tensor](), set[int]()
    for name, value in hyper.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or id(value) in seen:
            continue
        seen.add(id(value))
        holder = next((module for start, module in holders.items() if name.startswith(start)), None)
        fate = holder.is_kept(value) if holder else True
        if fate is not None:
            (kept if fate else frozen)[name] = value
    return kept, frozen


def _holders(hyper: Any) -> dict[str, HoldsBase]:
    """Modules that hold a base, by the prefix of the base's tensors."""
    return {
        f"{name}.base." if name else "base.": module
        for name, module in hyper.named_modules()
        if isinstance(module, HoldsBase)
    }


def _bases(hyper: Any) -> list[nn.Module]:
    return [module.base for module in hyper.modules() if isinstance(module, HoldsBase)]


def _in_base(name: str) -> str:
    """Name of a tensor within the base, from its name in the hypernetwork."""
    return name.rpartition("generated.base.")[2].removeprefix("base.")


def _listed(selectors: Any) -> list[str] | None:
    """List of selectors that are strings; None if one is not."""
    every = (
        [selectors]
        if isinstance(selectors, str) or not isinstance(selectors, Iterable)
        else list(selectors)
    )
    return every if all(isinstance(selector, str) for selector in every) else None


def _named(form: Form) -> dict[str, Any]:
    return {"form": type(form).__name__, "options": form.__dict__}


def _arguments(path: Path, held: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the constructor, from a file and from the caller, who overrides the file."""
    stored = {n: _argument(path, n, value) for n, value in held.items() if n not in given}
    return {**stored, **given}


def _argument(path: Path, name: str, value: Any) -> Any:
    """Argument of the constructor from its JSON form."""
    match value:
        case None if name in ("generate", "freeze", "form"):
            raise ConfigError(
                f"`{path}` does not hold `{name}`. A predicate, a module class or a form of your "
                f"own is code, which is not written to a file. Pass it as when the hypernetwork "
                f"was built: `load(path, base, {name}=...)`."
            )
        case {"in forms": pairs}:
            return {s: form_of(path, its["form"], its["options"]) for s, its in pairs}
        case {"form": kind, "options": options}:
            return form_of(path, kind, options)
        case {"selectors": selectors}:
            return selectors
        case list():
            return tuple(value)
    return value


def _check_frozen(
    path: Path, frozen: Mapping[str, Sequence[str]], state: Mapping[str, Tensor]
) -> None:
    """Check the frozen part of a base against dtype and digest of each tensor in the file."""
    for name, (dtype, its) in frozen.items():
        kind = getattr(torch, dtype.removeprefix("torch."))
        if name not in state or digest(state[name], kind) != its:
            raise CheckpointError(
                f"`base` holds another `{_in_base(name)}` than the one that `{path}` was "
                "trained over. It is frozen, so the file does not hold it, and another own value "
                "gives another network. Load the original base, then the hypernetwork."
            )


def _check_tensors(
    path: Path, kind: str, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Check that a new hypernetwork has each tensor of the file in its shape."""
    for name, value in tensors.items():
        if name not in state or state[name].shape != value.shape:
            raise CheckpointError(
                f"`{path}` holds {name!r}, which a {kind} of these options does not have "
                "in that shape. It was written with other options, or by another version of the "
                "library. Pass the options that it was built with."
            )


def _check_complete(path: Path, kind: str, held: set[str], needed: Mapping[str, Tensor]) -> None:
    """Check that the file holds each tensor of a new hypernetwork."""
    if lacking := sorted(needed.keys() - held):
        raise CheckpointError(
            f"`{path}` lacks {lacking[0]!r}, which a {kind} of these options has. It "
            "was written with other options, or by another version of the library. Pass the "
            "options that it was built with."
        )


@torch.no_grad()
def _fill(hyper: Any, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a hypernetwork and its bases, of which the latter keep their dtypes."""
    of_bases = {
        id(value) for base in _bases(hyper) for value in base.state_dict(keep_vars=True).values()
    }
    for name, value in tensors.items():
        if id(state[name]) in of_bases:
            state[name].copy_(value)
        else:  # a copy, whose memory is aligned
            state[name].data = value.to(state[name].device, copy=True)


def _check_kind(path: Path, facts: Mapping[str, Any], wanted: str) -> None:
    if facts.get("kind") != KIND:
        raise CheckpointError(
            f"`{path}` holds no hypernetwork (kind {facts.get('kind')!r}). It was not written by "
            "`hyper.save`. Read it with `load_tensors` or `load_params`."
        )
    if facts["class"] != wanted:
        raise CheckpointError(
            f"`{path}` holds a {facts['class']}, not a {wanted}. A hypernetwork is read by its own "
            f"class. Type `{facts['class']}.load(path, base)`."
        )


def _check_shapes(path: Path, held: list[dict[str, Any]], bases: list[nn.Module]) -> None:
    if len(held) != len(bases):
        raise CheckpointError(
            f"`{path}` holds a hypernetwork over {len(held)} bases, and {len(bases)} were passed. "
            "All are needed, in their original order. Pass them as a list, "
            "`load(path, bases)`."
        )
    for its, base in zip(held, bases, strict=True):
        shapes = shapes_of(base)
        was = {name: tuple(shape) for name, shape in its.items()}
        odd = next((name for name in {**was, **shapes} if was.get(name) != shapes.get(name)), None)
        if odd is not None:
            now, then = (f"of shape {s[odd]}" if odd in s else "absent" for s in (shapes, was))
            raise CheckpointError(
                f"`base` is another than the one that `{path}` was trained over: `{odd}` is {now} "
                f"and was {then}. "
                "Generated parameters fit that one only. Pass a base of the same layers."
            )
