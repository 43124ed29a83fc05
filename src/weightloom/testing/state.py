"""What a base holds, to see afterwards what a call has left behind.

In:   a base.
Out:  names of what has changed since; or, in a few words, what should not have.
Knows nothing of engines.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

HOOKS = [
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_load_state_dict_pre_hooks"),
]
PLAIN = (bool, int, float, str, type(None))


class State:
    """Everything that a base holds, by name, as it was when it was last looked at."""

    def __init__(self, base: nn.Module) -> None:
        self.base = base
        self.now = _seen(base)

    def look(self) -> set[str]:
        """Look again, and name what has changed."""
        before, self.now = self.now, _seen(self.base)
        names = {
            name
            for name in before.keys() | self.now.keys()
            if not _same(before.get(name), self.now.get(name))
        }
        return {*names}


def trouble(state: State, allowed: set[str], copies: Sequence[nn.Module]) -> str | None:
    """Say what a call changed in a base though the copies' own forward passes did not, or left unreadable."""
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
                return f"the attribute `{name}` is left with what is not a row for each task"
    return None


def _dead(base: nn.Module) -> set[str]:
    """Attributes that hold what cannot be read."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in base.named_modules()
        for name, value in module.__dict__.items()
        if any(is_dead(tensor) for tensor in _tensors(value))
    }


class _Value:
    """One thing that a base holds: the object, what tells whether it changed in place, and where it is."""

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
            if name == "_parameters":
                found.update({start + leaf: _Value("parameter", p) for leaf, p in thing.items()})
            elif name == "_buffers":
                found.update({start + leaf: _Value("buffer", p) for leaf, p in thing.items()})
            elif name == "_modules":
                found.update(
                    {f"{start}{leaf} (module)": _Value("module", m) for leaf, m in thing.items()}
                )
            elif name in HOOKS:
                found[start + name] = _Value("hooks", thing)
            else:
                found[start + name] = _Value("attribute", thing)
    return found


def _same(before: _Value | None, now: _Value | None) -> bool:
    if before is None or now is None:
        return False
    a, b = before.object, now.object
    if isinstance(a, PLAIN) and isinstance(b, PLAIN):
        return type(a) is type(b) and a == b
    if a is not b:
        return False
    if isinstance(a, Tensor):
        if isinstance(before.inside, Tensor) or isinstance(now.inside, Tensor):
            return before.inside is now.inside
        return torch.equal(before.inside[0], now.inside[0]) and before.inside[1:] == now.inside[1:]
    return bool(before.inside == now.inside)


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
    """Whether a tensor is of a transform that is over, or of a kind that only an engine knows."""
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer, nn.UninitializedParameter)
    return not plain or bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))
