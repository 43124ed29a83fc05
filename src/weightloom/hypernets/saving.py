"""A hypernetwork in a file: its own numbers and what was trained in its base, not what is frozen.

In:   a hypernetwork over a base, and a path.
Out:  one file as of `weightloom.files`; and from it and an equal base the hypernetwork as it was.
Nothing that is loaded can execute code: what is generated is written by name, and forms by their
names and options.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
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
    """Hypernetworks over a base that can be saved and loaded."""

    options: dict[str, Any]
    """Arguments of the constructor beside the base, as a file holds them: see `described`."""

    def save(self, path: str | Path) -> None:
        """Write this hypernetwork to one file, whole or not at all.

        It holds the hypernetwork's own numbers and what is trained in the base. Of what is frozen
        it holds a digest, so a hypernetwork over a large pretrained network makes a small file.

        Args:
            path: Where, as in ``"hyper.safetensors"``; its folder must exist.

        Raises:
            CheckpointError: If it cannot be written. What was at ``path`` is still there.
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
        """Read what `save` wrote: the hypernetwork as it was, over ``base``.

        What was trained in the base is written into it; what was frozen must be equal. Dtypes are
        those of the file, the base's apart; devices are those of a hypernetwork that is built over
        ``base``.

        Args:
            path: The file.
            base: The base that the hypernetwork was built over, as it was then; several where it
                holds several.
            **options: Arguments of the constructor that take the place of those in the file.

        Raises:
            CheckpointError: If the file is missing, truncated, changed since it was written or
                holds something else, or if ``base`` is another.
            ConfigError: If the file does not hold what is generated, as with a form of your own,
                and ``generate`` is not passed.
        """
        path = Path(path)
        tensors, facts = load_tensors(path)
        _check_kind(path, facts, cls.__name__)
        bases = [base] if isinstance(base, nn.Module) else list(base)
        _check_shapes(path, facts["bases"], bases)
        with torch.random.fork_rng():  # what is drawn is overwritten
            hyper = cls(base, **_arguments(path, facts["options"], options))  # type: ignore[call-arg]
        assert isinstance(hyper, nn.Module)
        state = hyper.state_dict(keep_vars=True)
        for name, (dtype, its) in facts["frozen"].items():
            if (
                name not in state
                or digest(state[name], getattr(torch, dtype.removeprefix("torch."))) != its
            ):
                raise CheckpointError(
                    f"`base` holds another `{_in_base(name)}` than the one that `{path}` was "
                    "trained over. It is frozen, so the file does not hold it, and another start "
                    "gives another network. Load the base as it was, then the hypernetwork."
                )
        if odd := [
            n for n, its in tensors.items() if n not in state or state[n].shape != its.shape
        ]:
            raise CheckpointError(
                f"`{path}` holds {odd[0]!r}, which a {cls.__name__} of these options does not have "
                "in that shape. It was written with other options, or by another version of the "
                "library. Pass the options that it was built with."
            )
        if lacking := sorted(_parts(hyper)[0].keys() - tensors.keys() - facts["frozen"].keys()):
            raise CheckpointError(
                f"`{path}` lacks {lacking[0]!r}, which a {cls.__name__} of these options has. It "
                "was written with other options, or by another version of the library. Pass the "
                "options that it was built with."
            )
        of_bases = {
            id(value)
            for held in _bases(hyper)
            for value in held.state_dict(keep_vars=True).values()
        }
        with torch.no_grad():
            for name, value in tensors.items():
                if id(state[name]) in of_bases:
                    state[name].copy_(value)
                else:
                    state[name].data = value.to(
                        state[name].device, copy=True
                    )  # aligned, as memory of its own is
        return hyper


def described(generate: Any, freeze: Any = None, form: Form | None = None) -> dict[str, Any]:
    """Say as JSON what is generated, in which forms, and what is frozen.

    None stands for what JSON cannot say.

    Args:
        generate: Selectors, or a mapping from them to forms.
        freeze: Selectors, or None.
        form: A form, or None.
    """
    forms = list(generate.values()) if isinstance(generate, Mapping) else []
    selectors = _listed(generate)
    sayable = selectors is not None and all(map(has_name, forms))
    said: dict[str, Any] = {"generate": None}
    if sayable and forms:
        said["generate"] = {
            "in forms": [[s, _named(f)] for s, f in zip(selectors or [], forms, strict=True)]
        }
    elif sayable:
        said["generate"] = {"selectors": selectors}
    if freeze:
        frozen = _listed(freeze)
        said["freeze"] = None if frozen is None else {"selectors": frozen}
    if form is not None:
        said["form"] = _named(form) if has_name(form) else None
    return said


def digest(tensor: Tensor, dtype: torch.dtype | None = None) -> str:
    """Digest of a tensor's shape, dtype and numbers.

    Args:
        tensor: Anything on any device.
        dtype: What it is cast to before.
    """
    plain = tensor.detach().cpu().to(dtype or tensor.dtype).contiguous()
    found = hashlib.sha256(json.dumps([str(plain.dtype), list(plain.shape)]).encode())
    found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _parts(hyper: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is kept in a file, and what is frozen in the bases; a tied tensor once."""
    holders = [
        (f"{at}.base." if at else "base.", m)
        for at, m in hyper.named_modules()
        if isinstance(m, HoldsBase)
    ]
    kept, frozen, seen = dict[str, Tensor](), dict[str, Tensor](), set[int]()
    for name, value in hyper.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or id(value) in seen:
            continue
        seen.add(id(value))
        holder = next((module for start, module in holders if name.startswith(start)), None)
        fate = holder.is_kept(value) if holder else True
        if fate is not None:
            (kept if fate else frozen)[name] = value
    return kept, frozen


def _bases(hyper: Any) -> list[nn.Module]:
    return [module.base for module in hyper.modules() if isinstance(module, HoldsBase)]


def _in_base(name: str) -> str:
    """The name that a tensor of the hypernetwork has in the base."""
    return name.rpartition("generated.base.")[2].removeprefix("base.")


def _listed(selectors: Any) -> list[str] | None:
    """Selectors that are words, listed; None if one of them is not."""
    every = (
        [selectors]
        if isinstance(selectors, str) or not isinstance(selectors, Iterable)
        else list(selectors)
    )
    return every if all(isinstance(selector, str) for selector in every) else None


def _named(form: Form) -> dict[str, Any]:
    return {"form": type(form).__name__, "options": form.__dict__}


def _arguments(path: Path, held: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the constructor, from what the file holds and what was passed."""
    arguments: dict[str, Any] = {}
    for name, value in held.items():
        if name in given:
            continue
        if value is None and name in ("generate", "freeze", "form"):
            raise ConfigError(
                f"`{path}` does not hold `{name}`. A predicate, a kind of module or a form of your "
                f"own is code, which is not written to a file. Pass it as when the hypernetwork "
                f"was built: `load(path, base, {name}=...)`."
            )
        if isinstance(value, dict) and "in forms" in value:
            value = {s: form_of(path, its["form"], its["options"]) for s, its in value["in forms"]}
        elif isinstance(value, dict) and "form" in value:
            value = form_of(path, value["form"], value["options"])
        elif isinstance(value, dict) and "selectors" in value:
            value = value["selectors"]
        elif isinstance(value, list):
            value = tuple(value)
        arguments[name] = value
    return {**arguments, **given}


def _check_kind(path: Path, facts: Mapping[str, Any], wanted: str) -> None:
    if facts.get("kind") != KIND:
        raise CheckpointError(
            f"`{path}` holds no hypernetwork (kind {facts.get('kind')!r}). It was written by "
            "something else than `hyper.save`. Read it with `load_tensors` or `load_params`."
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
            "Each is needed, in the order in which they were taken in. Pass them as a list, "
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
                "What is generated fits that one only. Pass a base of the same layers."
            )
