"""A base that stays its caller's.

Held by a hypernetwork, frozen there where asked for, and watched for changes.

In:   a base, and the names of what is not trained in it.
Out:  `HoldsBase`, a module that holds the base, or where something is frozen a twin of its module
      tree.
Knows nothing of what is generated.
"""

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from weightloom.errors import ConfigError
from weightloom.params import Shape, parameters_by_name
from weightloom.replica import Replica, places_of, scan_of

TWINS = WeakTensorKeyDictionary()
"""The frozen twin of a parameter: one, however many hypernetworks hold it, so that it is counted
once."""

Holder = TypeVar("Holder", bound="HoldsBase")


class HoldsBase(nn.Module):
    """What holds a base: it never switches the ``requires_grad`` of its caller's parameters, nor changes their values.

    Where nothing is frozen, ``base`` is the caller's module itself. Else it is a twin of its module
    tree: modules of the same kinds with the same attributes, buffers and hooks, in which a frozen
    parameter is a `nn.Parameter` that wants no gradient and shares its memory with the caller's.
    What is trained is the same parameter in both.

    Calls that change a module go through to the caller's as to any part of a model: ``to``,
    ``double``, ``train`` and ``eval``. One exception: a base of which nothing is trained, and that
    was in eval mode when the hypernetwork was built, stays in eval mode when ``train()`` is called
    on the hypernetwork.
    """

    base: nn.Module
    """The base, or its twin."""

    _watch: "Watch | None" = None
    _is_still = False

    def hold(
        self, base: nn.Module, frozen: Collection[str] = (), unused: Collection[str] = ()
    ) -> None:
        """Take a base in.

        Args:
            base: The caller's.
            frozen: Names of parameters that are used and not trained.
            unused: Names of parameters that are neither used nor trained, since others stand in
                their place.
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
        """Raise a `ConfigError` if the base was changed after it was taken in.

        What is generated would not fit.
        """
        if torch.compiler.is_compiling():
            return
        if self._watch is None:  # this is a copy, whose base is its own
            self._watch = Watch(self.base, self.base)
        self._watch.check()

    def is_kept(self, value: Tensor) -> bool | None:
        """Whether a parameter or buffer of the base may change in training.

        None if it is not even used.

        A buffer may, unless nothing is trained in the base and it stays in eval mode.
        """
        if not isinstance(value, nn.Parameter):
            return not self._is_still
        if any(value is self.base.get_parameter(name) for name in self._unused):
            return None
        return value.requires_grad

    def train(self: Holder, mode: bool = True) -> Holder:
        """Set the mode, of the base too unless it is frozen and was in eval mode."""
        self.training = mode
        for module in self.children():
            if module is not self.base or not self._is_still:
                module.train(mode)
        if self._watch is not None and not self._is_still and self._watch.base is not self.base:
            self._watch.base.train(mode)
        return self

    def _apply(self: Holder, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Holder:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._watch is not None:
            self._watch.follow()
        return self


class Watch:
    """Tells whether a base is as it was.

    Which module stands where, and which parameters of which shape they hold.

    It is not copied with the hypernetwork, and not pickled: a copy holds a base of its own.

    Args:
        base: The caller's base.
        twin: What the hypernetwork holds: the base itself, or its twin.
    """

    def __init__(self, base: nn.Module, twin: nn.Module) -> None:
        self.base = base
        trees = [base] if twin is base else [base, twin]
        every = (module for tree in trees for module in tree.modules())
        modules = [
            module for module in every if not isinstance(module, torch.jit.ScriptModule)
        ]  # they cannot change
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
        self._is_twin = twin is not base
        own = dict(base.named_parameters())
        self._pairs = [(own[n], its) for n, its in twin.named_parameters() if its is not own[n]]

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()

    def follow(self) -> None:
        """Let the caller's parameters share the memory of their twins, which were moved or cast."""
        for own, its in self._pairs:
            if (
                own.data_ptr() != its.data_ptr()
                or own.dtype != its.dtype
                or own.device != its.device
            ):
                own.data = its.data
                own.grad = None

    def check(self) -> None:
        """Raise a `ConfigError` if a module or a parameter is gone, or another stands in its place."""
        for modules, name, child in self._edges:
            if modules.get(name) is not child:
                raise self._error()
        for parameters, name, its, shape in self._parameters:
            now = parameters.get(name)
            if now is its:
                if now.shape != shape:
                    raise self._error()
            elif (
                now is None
                or now.shape != shape
                or (self._is_twin and isinstance(now, nn.Parameter))
            ):
                raise self._error()  # while a call of `functional_call` runs, tensors stand there
        for own, its in self._pairs:
            if (
                own.data_ptr() != its.data_ptr() or own.dtype != its.dtype
            ):  # the caller moved or cast the base
                its.data = own.data

    def _error(self) -> ConfigError:
        now = shapes_of(self.base)
        said = [
            f"`{n}` has shape {now[n]} and had {s}" if n in now else f"`{n}` is gone"
            for n, s in self._shapes.items()
            if now.get(n) != s
        ]
        what = "; ".join(said[:3]) or "a layer or a parameter of it was put in the place of another"
        return ConfigError(
            f"The base, {type(self.base).__name__}, was changed after this hypernetwork was built: "
            f"{what}. What is "
            "generated fits the base as it was. Change the base first, then build it anew."
        )


def shapes_of(base: nn.Module) -> dict[str, Shape]:
    """Name and shape of each parameter, tied names included."""
    return {name: tuple(its.shape) for name, its in parameters_by_name(base).items()}


def twin_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """Return the frozen twin of a parameter, which shares its memory."""
    if parameter not in TWINS:
        twin = nn.Parameter(parameter.detach(), requires_grad=False)
        twin.__dict__.update(parameter.__dict__)
        TWINS[parameter] = twin
    twin = TWINS[parameter]
    if twin.data_ptr() != parameter.data_ptr() or twin.dtype != parameter.dtype:
        twin.data = parameter.data
    return twin


def twin_tree(base: nn.Module, parameters: dict[int, nn.Parameter]) -> nn.Module:
    """Copy a tree of modules, and nothing else: what its modules hold is held by both.

    Args:
        base: The tree. It is left alone.
        parameters: By the ``id`` of a parameter, what stands in its place in the copy.

    Returns:
        A replica of ``base``: its modules refer to each other, and to the parameters in it, as
        those of ``base`` do.
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
        twin.__dict__["_buffers"] = module._buffers  # what is assigned in one is seen in the other
        if (
            compiled := vars(module).get("dynamo_ctx")
        ) is not None:  # of `torch.compile`, bound to the original
            twin.__dict__["forward"] = compiled(twin._orig_mod.__call__)
    return replica.base
