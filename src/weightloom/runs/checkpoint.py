"""Checkpoints of a run: tied to its options and its method, and whole or refused.

In:   tensors and facts, the identity of the method that is trained.
Out:  a file, and the same from it; an optimiser's state, and an optimiser that goes on from it.
Knows nothing of how a model is trained.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.errors import CheckpointError
from weightloom.files import load_tensors, save_tensors


def write_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], identity: str
) -> None:
    """Write a checkpoint that knows what it holds, and whose it is.

    Args:
        path: Where.
        tensors: By name.
        facts: Anything that JSON can hold.
        identity: Digest of the run and name of the method; empty fits all.

    Raises:
        CheckpointError: If it cannot be written.
    """
    save_tensors(path, tensors, {**facts, "identity": identity, "holds": sorted(tensors)})


def read_checkpoint(path: Path, identity: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_checkpoint` wrote.

    Args:
        path: The file.
        identity: Who reads it; empty reads all.

    Raises:
        CheckpointError: If it is damaged, lacks a part, or is of another run or method, or of none.
    """
    tensors, facts = load_tensors(path)
    wrote = facts.get("identity", "")
    if identity and wrote != identity:
        whose = (
            f"another run or method (digest {wrote}, not {identity})"
            if wrote
            else "no run (it has no digest)"
        )
        raise CheckpointError(
            f"`{path}` was written by {whose}. A checkpoint belongs to the options and the method "
            "that it was trained with. Put back the run's own, or start another run."
        )
    odd = sorted({*facts.get("holds", [])} ^ tensors.keys())
    if odd or not isinstance(facts.get("step", 0), int):
        what = (
            f"{', '.join(odd[:3])} is missing or was added"
            if odd
            else f"its step is {facts['step']!r}"
        )
        raise CheckpointError(
            f"`{path}` does not hold what a checkpoint of its kind was written with ({what}). A "
            "training that went on from it would give other numbers. Use an earlier checkpoint, or "
            "start the run again."
        )
    return tensors, facts


def state_of(optimisers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the state of optimisers for a checkpoint, as ``PLACE/NUMBER/KEY``.

    Args:
        optimisers: By their place in the checkpoint.
    """
    return {
        f"{place}/{number}/{key}": torch.as_tensor(value)
        for place, optimiser in optimisers.items()
        for number, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_state(
    path: Path, tensors: Mapping[str, Tensor], optimisers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Let optimisers go on from the state in a checkpoint.

    Args:
        path: The checkpoint, for the message.
        tensors: All that it holds.
        optimisers: By their place in the checkpoint.

    Raises:
        CheckpointError: If the state is not that of what an optimiser moves, or is of another shape
            or dtype.
    """
    for place, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            its, _, key = name.rpartition("/")
            its, _, number = its.rpartition("/")
            if its == place:
                state.setdefault(int(number), {})[key] = value
        moved = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        keys = {frozenset(own) for own in state.values()}
        if len(keys) > 1 or not all(
            number < len(moved)
            and all(_fits(key, value, moved[number]) for key, value in own.items())
            for number, own in state.items()
        ):
            raise CheckpointError(
                f"`{path}` was written by a run whose optimiser `{place}` moved other parameters, "
                "or in another precision. The state of an optimiser is that of each number that "
                "moves. Use the options that the run began with, or another folder."
            )
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _fits(key: str, value: Tensor, parameter: Tensor) -> bool:
    if key == "step":
        return (
            value.ndim == 0 and value.dtype in (torch.float32, torch.float64) and bool(value >= 0)
        )
    return value.shape == parameter.shape and value.dtype == parameter.dtype


def check_fits(path: Path, own: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    """Raise a `CheckpointError` unless a checkpoint has all tensors of a model, in their shapes and dtypes.

    Args:
        path: The checkpoint, for the message.
        own: Those of the model.
        kept: Those of the checkpoint.
    """
    odd = sorted(own.keys() ^ kept.keys()) or [
        f"{name} ({tuple(kept[name].shape)}, {kept[name].dtype}, not {tuple(value.shape)}, "
        f"{value.dtype})"
        for name, value in own.items()
        if (kept[name].shape, kept[name].dtype) != (value.shape, value.dtype)
    ]
    if odd:
        raise CheckpointError(
            f"`{path}` was written for another model: they differ in {', '.join(odd[:3])}. A "
            "checkpoint fits the model that wrote it. Build the model with the options in the "
            "run's `config.json`."
        )
