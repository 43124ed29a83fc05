"""Snapshots of a base network's state, to detect side effects of a call.

In:   a base network.
Out:  names of changed attributes; or the first forbidden change, as a phrase.
Independent of engines.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

HOOKS = [
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_load_state_dict_pre_hooks"),
]
REGISTERED = {"_parameters": "parameter", "_buffers": "buffer", "_modules": "module"}
"""Kind of the entries in each dict of ``nn.Module``."""
PLAIN = (bool, int, float, str, type(None))


class State:
    """Snapshot of all parameters, buffers, submodules, hooks and attributes of a base, by name."""

    def __init__(self, base: nn.Module) -> None:
        self.base = base
        self.now = _seen(base)

    def look(self) -> set[str]:
        """Take a new snapshot, and return the names of all changes since the last one."""
        before, self.now = self.now, _seen(self.base)
        return {
            name
            for name in before.keys() | self.now.keys()
            if not _same(before.get(name), self.now.get(name))
        }


def trouble(state: State, allowed: set[str], copies: Sequence[nn.Module]) -> str | None:
    """Describe the first forbidden side effect of a call on a base, or return None.

    Forbidden are tensors that cannot be read any more, changes outside ``allowed``, and tensors
    kept as attributes that are not those of the copies, stacked.

    Args:
        state: Snapshot of the base from before the call.
        allowed: Names that the copies' forward passes changed.
        copies: One copy of the base per task, after the same call.
    """
    changed = state.look()
    if dead := sorted(_dead(state.base) - _dead(copies[0])):
        return f"`{dead[0]}` holds a tensor that cannot be read any more"
    if extra := sorted(changed - allowed):
        return f"the base is changed: `{extra[0]}`"
    for name in sorted(changed):
        value = state.now.get(name)
        if value is not None and isinstance(value.object, Tensor) and value.kind == "attribute":
            theirs = [_seen(copy)[name].object for copy in copies]
            if not _is_stacked(value.object, theirs):
                return f"the attribute `{name}` is left without a row for each task"
    return None


def _dead(base: nn.Module) -> set[str]:
    """Return the names of attributes with a tensor that cannot be read."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in base.named_modules()
        for name, value in module.__dict__.items()
        if any(is_dead(tensor) for tensor in _tensors(value))
    }


class _Value:
    """Entry of a snapshot: kind, object, and a copy or size that reveals changes in place."""

    def __init__(self, kind: str, thing: Any) -> None:
        self.kind, self.object = kind, thing
        self.inside: Any = None
        if isinstance(thing, Tensor):
            self.inside = (
                thing
                if is_dead(thing)
                else (thing.detach().clone(), thing.requires_grad, thing.grad is None)
            )
        elif isinstance(thing, list | dict | set | tuple):
            self.inside = len(thing)


def _seen(base: nn.Module) -> dict[str, _Value]:
    found: dict[str, _Value] = {}
    for prefix, module in base.named_modules():
        start = f"{prefix}." if prefix else ""
        for name, thing in module.__dict__.items():
            if kind := REGISTERED.get(name):
                end = " (module)" if kind == "module" else ""
                found.update({start + leaf + end: _Value(kind, its) for leaf, its in thing.items()})
            else:
                found[start + name] = _Value("hooks" if name in HOOKS else "attribute", thing)
    return found


def _same(before: _Value | None, now: _Value | None) -> bool:
    if before is None or now is None:
        return False
    a, b = before.object, now.object
    if isinstance(a, PLAIN) and isinstance(b, PLAIN):
        return type(a) is type(b) and a == b
    return a is b and _same_inside(before.inside, now.inside)


def _same_inside(before: Any, now: Any) -> bool:
    """Compare the contents: dead tensors by identity, others by value, containers by length."""
    if isinstance(before, Tensor) or isinstance(now, Tensor):
        return before is now
    if isinstance(before, tuple):
        return torch.equal(before[0], now[0]) and bool(before[1:] == now[1:])
    return bool(before == now)


def _is_stacked(value: Tensor, theirs: Sequence[Any]) -> bool:
    if not all(isinstance(x, Tensor) and x.shape == theirs[0].shape for x in theirs):
        return False
    want = torch.stack(list(theirs))
    return value.shape == want.shape and bool(
        torch.allclose(value.detach().to(want), want, rtol=1e-4, atol=1e-4)
    )


def _tensors(value: Any, depth: int = 3) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part, depth - 1)
    elif depth and isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part, depth - 1)


def is_dead(tensor: Tensor) -> bool:
    """Return True for a tensor of a finished transform, or of a subclass internal to an engine."""
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer, nn.UninitializedParameter)
    return not plain or bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))
