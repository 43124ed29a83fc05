"""Properties of modules for a scan: children, slots, hooks, and modules compiled by `torch.jit`."""

import functools
import types
import weakref
from typing import Any

import torch
from torch import nn

from weightloom.replica.hot import no_type_check
from weightloom.replica.tree import behind

STANDARD = frozenset(nn.Module().__dict__)
"""Attributes that every module has."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@no_type_check
def slots_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the slots of a module, which its ``__dict__`` does not hold."""
    kind: Any = type(module)
    return _of_class(kind)


@functools.lru_cache(maxsize=5_000)
def _of_class(kind: Any) -> tuple[str, ...]:
    """Names of the slots of a class."""
    found = [its.__dict__.get("__slots__", ()) for its in kind.__mro__]
    names = [name for its in found for name in ([its] if isinstance(its, str) else its)]
    return tuple([name for name in names if name not in ("__dict__", "__weakref__")])


@no_type_check
def children_of(module: nn.Module) -> list[nn.Module]:
    """Registered children of a module; none for one that `torch.jit` compiled."""
    return (
        []
        if is_script(module)
        else [inner(child) for child in module._modules.values() if child is not None]
    )


@no_type_check
def inner(child: Any) -> Any:
    """The child itself, also if a weak proxy of it is registered."""
    return behind(child) if type(child) in weakref.ProxyTypes else child


@no_type_check
def is_script(module: nn.Module) -> bool:
    """True for a module compiled by `torch.jit`, which can be neither read nor copied."""
    return isinstance(module, torch.jit.ScriptModule)


@no_type_check
def is_torchs_hook(hook: Any) -> bool:
    """True for a hook that is part of torch, such as those of weight normalisation."""
    owner = hook.func if isinstance(hook, functools.partial) else hook
    owner = owner if isinstance(owner, types.FunctionType | types.MethodType) else type(owner)
    return str(getattr(owner, "__module__", "")).startswith("torch.")
