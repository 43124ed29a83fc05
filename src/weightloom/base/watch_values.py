"""Guard against operations that no run of a base may do.

Such as using its own value in the place of a generated one, or changing a shared tensor in place.
"""

import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from weightloom.base.row_rules import READ, getter
from weightloom.errors import BatchingError
from weightloom.replica.hot import no_type_check


@no_type_check
class Guard(TorchFunctionMode):
    """Mode that refuses torch functions that would be wrong for several tasks.

    While it is active, each of these raises `BatchingError`:

    - an own value of the base that is replaced in this run, as an argument of any function;
    - a re-entrant checkpoint;
    - an in-place change of a tensor that all tasks share;
    - a hook for gradients, unless the engine is the loop;
    - under ``vmap``, a read of a number, or of the need for a gradient, from a tensor per task.

    Args:
        name: Name of the base, for messages.
        replaced: Names of own values that are replaced in this run, by id.
        shared: Tensors that all tasks share, each with a description for messages.
        engine: Engine that runs the base.
    """

    def __init__(
        self,
        name: str,
        replaced: Mapping[int, str],
        shared: Sequence[tuple[str, Tensor]],
        engine: str,
    ) -> None:
        super().__init__()
        self.engine = engine
        self.clones: list[tuple[str, Tensor, Tensor]] = []
        """Name, copy and original of every generated value that the base receives."""
        self.changed: set[str] = set()
        """Names of generated values that the base changes in place."""
        self.reads = False
        """True once the base has read a number from a tensor, on which its path may depend."""
        self.refused: BatchingError | None = None
        """First error that was raised, as the base may catch it."""
        self.memory = {_memory(value): its for its, value in shared if _has_memory(value)}
        """Description of each shared tensor, by the address of its storage."""
        self.name, self.replaced = name, replaced
        self.with_gradients = torch.is_grad_enabled()

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Check the arguments, then run the function."""
        kwargs = kwargs or {}
        try:
            self._check(func, args, kwargs)
        except BatchingError as error:
            self.refused = self.refused or error
            raise
        return func(*args, **kwargs)

    def _check(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check_arguments(self.name, self.replaced, args, kwargs)
        self._check_checkpoint()
        self._check_hook(func)
        self._check_asked(func, args)
        self.reads = self.reads or func in READ
        if (self.clones or self.memory) and _writes(func, args):
            self._note_changed(args[0])
            self._check_in_place(args[0])
        self._check_read(func, args)

    def _check_checkpoint(self) -> None:
        if self.with_gradients and not torch.is_grad_enabled() and _in_checkpoint():
            raise BatchingError(
                f"{self.name} uses `torch.utils.checkpoint` with `use_reentrant=True`. Its "
                "backward pass runs through the computation of the generated parameters once for "
                "every block, and loses gradients. Pass `use_reentrant=False`; for a language "
                "model: "
                '`model.gradient_checkpointing_enable({"use_reentrant": False})`.'
            )

    def _check_hook(self, func: Any) -> None:
        if func in _HOOKS and self.engine != "loop":
            raise BatchingError(
                f"{self.name} registers a hook for gradients in `forward` (`{func.__name__}`). It "
                "would see those of all tasks at once. Pass "
                '`engine="loop"`, where it sees one task after the other.'
            )

    def _check_asked(self, func: Any, args: tuple[Any, ...]) -> None:
        if func not in _ASKED or self.engine != "vmap" or not self.with_gradients:
            return
        if _is_hidden(args[0]) and _of_the_base():
            raise BatchingError(
                f"{self.name} asks in `forward` whether a tensor needs a gradient. `vmap` hides "
                "that, and always says no. Pass "
                '`engine="loop"`, or leave the engine to "auto".'
            )

    def _check_read(self, func: Any, args: tuple[Any, ...]) -> None:
        if func in READ and self.engine == "vmap" and any(map(_is_hidden, args)):
            raise BatchingError(
                f"{self.name} reads a number from a tensor in `forward` (`{func.__name__}`); each "
                "task has its own. `vmap` runs all tasks at once. Pass "
                '`engine="loop"`, or leave the engine to "auto".'
            )

    def _note_changed(self, target: Tensor) -> None:
        """Note the generated values that share memory with a tensor changed in place."""
        target = torch._C._functorch.get_unwrapped(target) if _is_hidden(target) else target
        if type(target) in (Tensor, nn.Parameter) and _has_memory(target):
            at = _memory(target)
            self.changed |= {
                name for name, clone, _ in self.clones if clone.numel() and _memory(clone) == at
            }

    def _check_in_place(self, target: Tensor) -> None:
        if not self.memory or type(target) not in (Tensor, nn.Parameter):
            return
        if not _has_memory(target):  # hidden by `vmap`, or sparse
            return
        name = self.memory.get(_memory(target))
        if name is not None:
            raise BatchingError(
                f"`forward` of {self.name} changes {name} in place, which all tasks share. Each "
                "task would change it for the next. Compute a new tensor instead; a parameter may "
                "be generated, a tensor assigned anew."
            )


@no_type_check
def _memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


@no_type_check
def _has_memory(value: Tensor) -> bool:
    return (
        not _is_hidden(value)
        and value.layout is torch.strided
        and not value.is_nested
        and value.numel() > 0
    )


@no_type_check
def _is_hidden(value: Any) -> bool:
    return isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)


@no_type_check
def _of_the_base() -> bool:
    """True if code of the base called the torch function, and not torch's own code."""
    frame: Any = sys._getframe(2)
    while _module(frame).startswith("weightloom.base."):  # the modes, which lie in between
        frame = frame.f_back
    return not _module(frame).startswith("torch.")


@no_type_check
def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


@no_type_check
def _writes(func: Any, args: tuple[Any, ...]) -> bool:
    """True for a function that changes its first argument, a tensor, in place."""
    changes = _is_in_place(func) or func in _SET
    return changes and len(args) > 0 and isinstance(args[0], Tensor)


@no_type_check
def _is_in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name in _ASSIGNED


_ASSIGNED = {
    "__setitem__",
    *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "and", "or", "xor")),
}
_SET = {getattr(Tensor, name).__set__ for name in ("data", "grad", "requires_grad")}
_ASKED = {getter(name) for name in ("requires_grad", "grad_fn", "is_leaf")}
_HOOKS = {Tensor.register_hook, Tensor.register_post_accumulate_grad_hook, Tensor.retain_grad}


@no_type_check
def check_arguments(name: str, replaced: Mapping[int, str], args: Any, kwargs: Any) -> None:
    """Raise `BatchingError` if an argument, or an entry of a list, is an own value in ``replaced``.

    Args:
        name: Name of the base, for messages.
        replaced: Names of own values that are replaced in this run, by id.
        args: Positional arguments of a torch function.
        kwargs: Its named arguments.
    """
    for value in (*args, *kwargs.values()):
        several = value if isinstance(value, list | tuple) else (value,)
        for one in several:
            if isinstance(one, Tensor) and id(one) in replaced:
                raise BatchingError(
                    f"{name} uses its own {replaced[id(one)]!r}, which is generated for each task, "
                    "from a place that cannot be found: a global, or an object that hides it. "
                    f"Every task would get the base's own value. Reach it through the module, as "
                    f"`self.{replaced[id(one)]}`, or do not generate it."
                )


@no_type_check
def _in_checkpoint() -> bool:
    frame: FrameType | None = sys._getframe(2)
    code = CheckpointFunction.forward.__code__
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False
