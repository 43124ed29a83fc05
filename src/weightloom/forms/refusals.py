"""What a parameter held as factors refuses, and what it warns of.

In:   a function of torch, and what it was called with.
Out:  an error or a warning that says what to type; nothing where the call is one that can be right.
"""

import warnings
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from weightloom.errors import BuiltWarning, ConfigError
from weightloom.forms.factored import NO_SUBCLASS, Factored


def warn_of_building(func: Callable[..., Any], value: Factored) -> None:
    """Warn that a function had the values of all tasks built."""
    with NO_SUBCLASS():
        megabytes = [
            numbers * value.dtype.itemsize / 1e6 for numbers in (value.numel(), value.numbers)
        ]
    warnings.warn(
        f"`{_name(func)}` built {value!r}: {megabytes[0]:,.3g} MB, where its factors are "
        f"{megabytes[1]:,.3g} MB. It is "
        "none of the operations that are done with the factors of all tasks. Take the tasks that "
        "you need first, `params.take(index)`, or type `value.dense()` where the whole is meant.",
        BuiltWarning,
        stacklevel=3,
    )


IN_PLACE = {
    f"__i{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
}
"""Operators that change a tensor; ``w += 1`` is ``w.__iadd__(1)``."""


def refuse_writing(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise a `ConfigError` if a call would write into a value that is held as factors, or into what is built of it."""
    name = _name(func)
    first = next(iter((*args, *kwargs.values())), None)
    if any(
        isinstance(leaf, Factored)
        for leaf in tree_leaves(kwargs.get("out"), is_leaf=torch.is_tensor)
    ):
        raise ConfigError(
            f"`{name}` was given a value that is held as factors as `out`. It has no memory of its "
            f"own to write to. Take what `{name}` returns, without `out`."
        )
    if not isinstance(first, Factored):
        return
    if name in ("__set__", "__delete__"):
        attribute = getattr(getattr(func, "__self__", None), "__name__", "an attribute")
        raise ConfigError(
            f"`.{attribute} = …` would change {first!r} in place. It is computed from its factors, "
            f"and has no memory nor gradient of its own. Change those, "
            f"`value.factors[name].{attribute} = …`, or build it by "
            "`value.dense()`."
        )
    if name == "__setitem__":
        raise ConfigError(
            f"`value[…] = …` would change {first!r} in place. It is computed from its factors and "
            "has no memory of its own. Build it first: `value = value.dense()`."
        )
    written = name.endswith("_") and not name.endswith("__")
    if name in IN_PLACE or written or kwargs.get("inplace") is True:
        plain = f"`{name.removesuffix('_')}`" if written else "`value = value + …`"
        plain = "without `inplace`" if kwargs.get("inplace") is True else plain
        raise ConfigError(
            f"`{name}` would change a {first!r} in place. It is computed from its factors and has "
            f"no memory of its own. Use the function that returns a new tensor, {plain}."
        )


def refuse_differentiating(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse a gradient with respect to what is held.

    Nothing is computed from it, but from its factors.
    """
    given = signature(func).bind(*args, **kwargs).arguments.get("inputs")
    held = [
        leaf for leaf in tree_leaves(given, is_leaf=torch.is_tensor) if isinstance(leaf, Factored)
    ]
    if not held:
        return NotImplemented
    raise ConfigError(
        f"`{_name(func)}` was asked for the gradient of {held[0]!r}. It is held as factors, and "
        "what the base computes depends on these. Ask for theirs, `leaves, tree = "
        "torch.utils._pytree.tree_flatten(params)`, and put the step back together by "
        "`tree_unflatten(leaves, tree)`; `weightloom.adapt.descend` does both."
    )


def refuse_gradient(func: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse what asks for a gradient of the value's own."""
    name = getattr(getattr(func, "__self__", None), "__name__", _name(func))
    raise ConfigError(
        f"`.{name}` was asked of {tensor!r}. It is held as factors, and gradients reach these: it "
        f"has none of its own. Ask the factors, `value.factors[name].{name}`, or take all by "
        "`torch.utils._pytree.tree_leaves(params)`."
    )


def refuse_memory(func: Any, tensor: Any, *args: Any) -> Any:
    """Refuse what asks for the value's own memory."""
    raise ConfigError(
        f"`{_name(func)}` was asked of {tensor!r}. It is computed from its factors and has no "
        "memory of its own. Build it first, `dense = value.dense()`, and keep what you built as "
        "long as you use its memory."
    )


def _name(func: Callable[..., Any]) -> str:
    return str(getattr(func, "__name__", func))
