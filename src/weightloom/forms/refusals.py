"""Errors and warnings for operations that a parameter held as factors cannot or should not run.

In:   a function of torch and its arguments.
Out:  an error or a warning with advice; or no effect, if the call is allowed.
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
    """Issue a `BuiltWarning`: a function built the parameter of all tasks."""
    with NO_SUBCLASS():
        megabytes = [
            numbers * value.dtype.itemsize / 1e6 for numbers in (value.numel(), value.numbers)
        ]
    warnings.warn(
        f"`{_name(func)}` built {value!r}: {megabytes[0]:,.3g} MB, where its factors are "
        f"{megabytes[1]:,.3g} MB. It is "
        "none of the operations that are computed from the factors of all tasks. Take the tasks "
        "that you need first, `params.take(index)`, or type `value.dense()` to build all of them.",
        BuiltWarning,
        stacklevel=4,  # the caller of `Factored.__torch_function__`
    )


IN_PLACE = {
    f"__i{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
}
"""In-place operators: ``w += 1`` calls ``w.__iadd__(1)``."""


def refuse_writing(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise a `ConfigError` if a call would write into a `Factored` value, which has no memory.

    Args:
        func: The function of torch that is called.
        args: Its positional arguments.
        kwargs: Its keyword arguments, of which ``out`` and ``inplace`` matter.
    """
    name = _name(func)
    if _held_in(kwargs.get("out")):
        raise ConfigError(
            f"`{name}` was given a value that is held as factors as `out`. It has no memory to "
            f"write to. Use the return value of `{name}`, without `out`."
        )
    first = next(iter((*args, *kwargs.values())), None)
    if not isinstance(first, Factored):
        return
    if name in ("__set__", "__delete__"):
        attribute = getattr(getattr(func, "__self__", None), "__name__", "an attribute")
        raise ConfigError(
            f"`.{attribute} = …` would change {first!r} in place. It is computed from its factors, "
            f"and has neither memory nor gradient. Change the factors, "
            f"`value.factors[name].{attribute} = …`, or build it by "
            "`value.dense()`."
        )
    if name == "__setitem__":
        raise ConfigError(
            f"`value[…] = …` would change {first!r} in place. It is computed from its factors and "
            "has no memory. Build it first: `value = value.dense()`."
        )
    plain = _out_of_place(name, kwargs)
    if plain is not None:
        raise ConfigError(
            f"`{name}` would change a {first!r} in place. It is computed from its factors and has "
            f"no memory. Use the function that returns a new tensor, {plain}."
        )


def _out_of_place(name: str, kwargs: dict[str, Any]) -> str | None:
    """Call that returns a new tensor, for one that changes its tensor; None for other calls."""
    if kwargs.get("inplace") is True:
        return "without `inplace`"
    if name in IN_PLACE:
        return "`value = value + …`"
    if name.endswith("_") and not name.endswith("__"):
        return f"`{name.removesuffix('_')}`"
    return None


def _held_in(tree: Any) -> list[Factored]:
    """All `Factored` values in a tree."""
    leaves = tree_leaves(tree, is_leaf=torch.is_tensor)
    return [leaf for leaf in leaves if isinstance(leaf, Factored)]


def refuse_differentiating(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Raise a `ConfigError` if a gradient with respect to a `Factored` value is requested.

    The base is computed from the factors, so only these have gradients.
    """
    given = signature(func).bind(*args, **kwargs).arguments.get("inputs")
    held = _held_in(given)
    if not held:
        return NotImplemented
    raise ConfigError(
        f"`{_name(func)}` was asked for the gradient of {held[0]!r}. It is held as factors, and "
        "the base is computed from these. Ask for their gradients, `leaves, tree = "
        "torch.utils._pytree.tree_flatten(params)`, and put the step back together by "
        "`tree_unflatten(leaves, tree)`; `weightloom.adapt.descend` does both."
    )


def refuse_gradient(func: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
    """Raise a `ConfigError`: a `Factored` value has no gradient, only its factors have."""
    name = getattr(getattr(func, "__self__", None), "__name__", _name(func))
    raise ConfigError(
        f"`.{name}` was used on {tensor!r}. It is held as factors, and only these have gradients. "
        f"Use the factors, `value.factors[name].{name}`, or get all of them by "
        "`torch.utils._pytree.tree_leaves(params)`."
    )


def refuse_memory(func: Any, tensor: Any, *args: Any) -> Any:
    """Raise a `ConfigError`: a `Factored` value has no memory."""
    raise ConfigError(
        f"`{_name(func)}` was called on {tensor!r}. It is computed from its factors and has no "
        "memory. Build it first, `dense = value.dense()`, and keep `dense` alive as "
        "long as you use its memory."
    )


def _name(func: Callable[..., Any]) -> str:
    return str(getattr(func, "__name__", func))
