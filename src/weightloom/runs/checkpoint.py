"""Checkpoints of a run, tied to its options and its method; damaged ones are refused.

In:   tensors and facts, the identity of the trained method, optimisers.
Out:  a file, its tensors and facts read back, and optimisers with their state restored.
Knows nothing of training.
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
    """Write a checkpoint with the names of its tensors and the identity of its run.

    Args:
        path: The file.
        tensors: Tensors by name.
        facts: Further values, of types that JSON has.
        identity: Digest of the run and name of the method; a checkpoint with an empty one is
            refused wherever an identity is required.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    save_tensors(path, tensors, {**facts, "identity": identity, "holds": sorted(tensors)})


def read_checkpoint(path: Path, identity: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint that `write_checkpoint` wrote; return tensors and facts.

    Args:
        path: The file.
        identity: Identity that the checkpoint must have; empty accepts any.

    Raises:
        CheckpointError: If the file is damaged, lacks a tensor, has an unexpected one, or has
            another identity or none.
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
        fault = (
            f"{', '.join(odd[:3])} is missing or was added"
            if odd
            else f"its step is {facts['step']!r}"
        )
        raise CheckpointError(
            f"`{path}` does not hold the tensors that it was written with ({fault}). A training "
            "that went on from it would give other numbers. Use an earlier checkpoint, or start "
            "the run again."
        )
    return tensors, facts


def state_of(optimisers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the state of optimisers as tensors for a checkpoint, named ``PLACE/NUMBER/KEY``.

    Args:
        optimisers: Optimisers by their place in the checkpoint.
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
    """Load the state of optimisers from a checkpoint.

    Args:
        path: The checkpoint, for the message.
        tensors: All tensors of the checkpoint.
        optimisers: Optimisers by their place in the checkpoint.

    Raises:
        CheckpointError: If the state does not fit the parameters of an optimiser in number, shape
            or dtype.
    """
    for place, optimiser in optimisers.items():
        state = _state_at(place, tensors)
        if not _fits_optimiser(state, optimiser):
            raise CheckpointError(
                f"`{path}` was written by a run whose optimiser `{place}` moved other parameters, "
                "or in another precision. The state of an optimiser is that of each number that "
                "moves. Use the options that the run began with, or another folder."
            )
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        _lay_out_as_parameters(optimiser)


def _lay_out_as_parameters(optimiser: torch.optim.Optimizer) -> None:
    """Give each state the strides of its parameter, which fused kernels take for granted."""
    for parameter, own in optimiser.state.items():
        for key, value in own.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                own[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _state_at(place: str, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Return the state of one optimiser, by number of the parameter and key."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        its, _, key = name.rpartition("/")
        its, _, number = its.rpartition("/")
        if its == place:
            state.setdefault(int(number), {})[key] = value
    return state


def _fits_optimiser(state: dict[int, dict[str, Tensor]], optimiser: torch.optim.Optimizer) -> bool:
    """Return True if all states have the same keys and each fits its parameter."""
    moved = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    if len({frozenset(own) for own in state.values()}) > 1:
        return False
    return all(
        number < len(moved) and all(_fits(key, value, moved[number]) for key, value in own.items())
        for number, own in state.items()
    )


def _fits(key: str, value: Tensor, parameter: Tensor) -> bool:
    if key == "step":
        return (
            value.ndim == 0 and value.dtype in (torch.float32, torch.float64) and bool(value >= 0)
        )
    return value.shape == parameter.shape and value.dtype == parameter.dtype


def check_fits(path: Path, own: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    """Raise a `CheckpointError` unless a checkpoint fits a model in names, shapes and dtypes.

    Args:
        path: The checkpoint, for the message.
        own: Tensors of the model.
        kept: Tensors of the checkpoint.
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
