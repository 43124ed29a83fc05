"""A base inside a hypernetwork: frozen there on request, and checked for changes.

In:   a base, and the names of its parameters that are not trained.
Out:  `HoldsBase`, a module that holds the base, or a twin of its module tree if parameters are
      frozen.
Knows nothing of generated parameters.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from weightloom.errors import ConfigError
from weightloom.params import Shape, parameters_by_name
from weightloom.replica import Replica, places_of, scan_of

TWINS = WeakTensorKeyDictionary()
"""Frozen twin of each parameter: a single one for all hypernetworks that hold it, so that models
count it once."""

Holder = TypeVar("Holder", bound="HoldsBase")


class HoldsBase(nn.Module):
    """Module that holds a base and can freeze parameters for itself alone.

    The caller's parameters keep their values and their ``requires_grad``. If no parameter is
    frozen, ``base`` is the caller's module itself. Otherwise it is a twin of its module tree: the
    same kinds of modules with the same attributes, buffers and hooks, in which each frozen
    parameter is an `nn.Parameter` with ``requires_grad=False`` that shares the memory of the
    caller's. Trained parameters are the same objects in both.

    ``to``, ``double``, ``train`` and ``eval`` also change the caller's base, as they change any
    part of a model, with one exception: a base without trained parameters that was in eval mode
    when it was passed stays in eval mode when ``train()`` is called on this module.
    """

    base: nn.Module
    """The base, or its twin."""

    _watch: "Watch | None" = None
    _is_still = False

    def hold(
        self, base: nn.Module, frozen: Collection[str] = (), unused: Collection[str] = ()
    ) -> None:
        """Set ``base``, as a twin if parameters are frozen.

        Args:
            base: The caller's module.
            frozen: Names of parameters that are used but not trained.
            unused: Names of parameters that are neither used nor trained, since generated ones
                replace them.

        Raises:
            ConfigError: If parameters of a base made by `torch.jit` are to be frozen.
        """
        named = parameters_by_name(base)
        of = {
            id(named[n]): twin_parameter(named[n])
            for n in {*frozen, *unused}
            if named[n].requires_grad
        }
        self.base = twin_tree(base, of) if of else base
        still = {id(named[name]) for name in frozen}
        is_trained = any(its.requires_grad and id(its) not in still for its in named.values())
        self._is_still = not is_trained and not any(module.training for module in base.modules())
        self._unused = frozenset(unused)
        self._watch = Watch(base, self.base)

    def check_base(self) -> None:
        """Raise a `ConfigError` if the layers or parameters of the base changed after `hold`."""
        if torch.compiler.is_compiling():
            return
        if self._watch is None:  # in a copy of this module, which has its own copy of the base
            self._watch = Watch(self.base, self.base)
        self._watch.check()

    def is_kept(self, value: Tensor) -> bool | None:
        """True if a parameter or buffer of the base may change in training; None if it is unused.

        Buffers may change, unless the base has no trained parameter and stays in eval mode.
        """
        if not isinstance(value, nn.Parameter):
            return not self._is_still
        if any(value is self.base.get_parameter(name) for name in self._unused):
            return None
        return value.requires_grad

    def train(self: Holder, mode: bool = True) -> Holder:
        """Set the mode of all parts, except of a frozen base that was passed in eval mode."""
        self.training = mode
        for module in self.children():
            if module is not self.base or not self._is_still:
                module.train(mode)
        if self._watch is not None and not self._is_still and self._watch.base is not self.base:
            self._watch.base.train(mode)
        return self

    def _apply(self: Holder, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Holder:
        apply: Callable[..., Any] = super()._apply
        apply(fn, recurse)
        if self._watch is not None:
            self._watch.follow()
        return self


class Watch:
    """Detects changes of a base: replaced modules, and parameters of other names or shapes.

    It is neither copied nor pickled with a hypernetwork, since a copy holds its own base.

    Args:
        base: The caller's base.
        twin: The module that the hypernetwork holds: the base itself, or its twin.
    """

    def __init__(self, base: nn.Module, twin: nn.Module) -> None:
        self.base = base
        self._is_twin = twin is not base
        modules = _changeable([base, twin] if self._is_twin else [base])
        self._edges = [
            (module._modules, name, child)
            for module in modules
            for name, child in module._modules.items()
        ]
        self._parameters = [
            (module._parameters, name, its, its.shape)
            for module in modules
            for name, its in module._parameters.items()
            if its is not None
        ]
        self._shapes = shapes_of(base)
        own = dict(base.named_parameters())
        self._pairs = [(own[n], its) for n, its in twin.named_parameters() if its is not own[n]]

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()

    def follow(self) -> None:
        """Give the caller's parameters the memory of their twins, which were moved or cast."""
        for own, its in self._pairs:
            if _differ(own, its) or own.device != its.device:
                own.data = its.data
                own.grad = None

    def check(self) -> None:
        """Raise a `ConfigError` if a module or parameter was removed or replaced.

        Twins then follow parameters of the caller that were moved or cast.
        """
        for modules, name, child in self._edges:
            if modules.get(name) is not child:
                raise self._error()
        for parameters, name, its, shape in self._parameters:
            now = parameters.get(name)
            if now is None or now.shape != shape or (now is not its and self._is_foreign(now)):
                raise self._error()
        for own, its in self._pairs:
            if _differ(own, its):
                its.data = own.data

    def _is_foreign(self, now: Tensor) -> bool:
        """True for a new parameter in a twin; `functional_call` puts plain tensors there."""
        return self._is_twin and isinstance(now, nn.Parameter)

    def _error(self) -> ConfigError:
        now = shapes_of(self.base)
        said = [
            f"`{n}` has shape {now[n]} and had {s}" if n in now else f"`{n}` is gone"
            for n, s in self._shapes.items()
            if now.get(n) != s
        ]
        change = "; ".join(said[:3]) or "a layer or a parameter of it was replaced"
        return ConfigError(
            f"The base, {type(self.base).__name__}, was changed after this hypernetwork was built: "
            f"{change}. Generated parameters fit the unchanged base only. Change the base first, "
            "then build a new hypernetwork."
        )


def _changeable(trees: Sequence[nn.Module]) -> list[nn.Module]:
    """All modules of some trees, except those of `torch.jit`, which cannot change."""
    every = (module for tree in trees for module in tree.modules())
    return [module for module in every if not isinstance(module, torch.jit.ScriptModule)]


def shapes_of(base: nn.Module) -> dict[str, Shape]:
    """Name and shape of each parameter, tied names included."""
    return {name: tuple(its.shape) for name, its in parameters_by_name(base).items()}


def _differ(a: Tensor, b: Tensor) -> bool:
    """True if two tensors lie in different memory or have different dtypes."""
    return a.data_ptr() != b.data_ptr() or a.dtype != b.dtype


def twin_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """Return the frozen twin of a parameter; both share their memory."""
    if parameter not in TWINS:
        twin = nn.Parameter(parameter.detach(), requires_grad=False)
        twin.__dict__.update(parameter.__dict__)
        TWINS[parameter] = twin
    twin = TWINS[parameter]
    if _differ(twin, parameter):
        twin.data = parameter.data
    return twin


def twin_tree(base: nn.Module, parameters: dict[int, nn.Parameter]) -> nn.Module:
    """Copy a tree of modules, sharing their buffers, attributes and other parameters.

    Args:
        base: The tree, which is not changed.
        parameters: Replacement of each parameter to be replaced, by the ``id`` of the original.

    Returns:
        A replica of ``base``, whose modules refer to each other and to the new parameters as those
        of ``base`` refer to theirs.

    Raises:
        ConfigError: If a module was made by `torch.jit`.
    """
    for module in base.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError(
                f"The base holds a {type(module).__name__}, made by `torch.jit`. Its parameters "
                "cannot be frozen for a hypernetwork alone. Call `base.requires_grad_(False)` "
                "yourself before you pass it, and leave `freeze` out."
            )
    scanned = scan_of(base)
    stands = {
        name: parameters[id(its)] for name, its in base.named_parameters() if id(its) in parameters
    }
    replica = Replica(scanned, places_of(scanned, stands), stands)
    twin: Any
    for twin, module in zip(replica.modules, scanned.modules, strict=True):
        twin.__dict__["_buffers"] = module._buffers  # so that both see assignments
        compiled = vars(module).get("dynamo_ctx")
        if compiled is not None:  # made by `torch.compile`, and bound to the original
            twin.__dict__["forward"] = compiled(twin._orig_mod.__call__)
    return replica.base
