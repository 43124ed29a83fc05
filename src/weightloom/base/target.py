"""Callable that runs once per task: a module, a method of one, or a function of parameters."""

import inspect
import types
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn

from weightloom.errors import ConfigError


class Target:
    """Callable that runs once per task, with the module that it belongs to.

    Args:
        base: A module; a method of one, ``base.encode``; or a function that takes a dict of
            parameters, then its inputs. A module compiled by `torch.compile` is replaced by its
            original.

    Raises:
        ConfigError: If ``base`` is none of these, or was compiled by `torch.jit`.
    """

    def __init__(self, base: Any) -> None:
        self.module: nn.Module | None = None
        self.method: str | None = None
        self.function: Callable[..., Any] = base
        self.prefix = ""
        if isinstance(base, nn.Module):
            self.module = base
        elif isinstance(base, types.MethodType) and isinstance(base.__self__, nn.Module):
            self.module, self.method = base.__self__, base.__func__.__name__
        elif not callable(base) or isinstance(base, type):
            raise ConfigError(
                f"`base` is a {type(base).__name__}. A base, which runs once per task, is a "
                "`torch.nn.Module`, a method of one, or a function of parameters. Pass `net`, "
                "`net.encode`, or `lambda params, x: …`."
            )
        if isinstance(self.module, torch.jit.ScriptModule):
            raise ConfigError(
                f"`base` was compiled by `torch.jit` ({self.module.original_name}). Its parameters "
                "are fixed in the compiled code. Pass the module as it was before "
                "`torch.jit.script`."
            )
        inner = getattr(self.module, "_orig_mod", None)
        if type(self.module).__name__ == "OptimizedModule" and isinstance(inner, nn.Module):
            self.module, self.prefix = inner, "_orig_mod."

    @property
    def base(self) -> Any:
        """The module; the function if the target belongs to no module."""
        return self.function if self.module is None else self.module

    @property
    def name(self) -> str:
        """Name for messages: class of the module, with the method; or name of the function."""
        if self.module is None:
            return getattr(self.function, "__name__", type(self.function).__name__)
        return type(self.module).__name__ + (f".{self.method}" if self.method else "")

    def on(self, replica: nn.Module) -> Callable[..., Any]:
        """The callable of a replica: the replica itself, or its bound method."""
        return replica if self.method is None else getattr(replica, self.method)

    def named(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Parameters with the prefix removed that `torch.compile` puts before each name."""
        if not self.prefix:
            return params
        return {name.removeprefix(self.prefix): value for name, value in params.items()}

    @cached_property
    def arguments(self) -> tuple[list[str], bool] | None:
        """Names of its arguments, in order, and True if it also takes ``*args`` or ``**kwargs``.

        Without the parameters of a plain function. None if the signature cannot be read.
        """
        call: Any = self.function
        if self.module is not None:
            call = getattr(self.module, self.method or "forward")
        try:
            parameters = list(inspect.signature(call).parameters.values())
        except (TypeError, ValueError):
            return None
        if self.module is None:
            parameters = parameters[1:]
        names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return names, any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
