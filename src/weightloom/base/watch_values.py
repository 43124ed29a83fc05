"""Watch a first run for what must not happen in any run.

The base's own values where generated ones belong.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from weightloom.base.row_rules import READ
from weightloom.errors import BatchingError
from weightloom.replica.hot import no_type_check


@no_type_check
class Guard(TorchFunctionMode):
    """While active, refuse a replaced value of the base that reaches any function of torch, and re-entrant checkpoints.

    Args:
        name: How the base is called in messages.
        replaced: Own values that others stand for in this run, by id, with their names.
        shared: What all tasks share, with what it is called: to change one in place is refused.
        engine: By which engine the base runs.
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
        """Name and copy of every generated value that the base was given."""
        self.changed: set[str] = set()
        """Names of those that the base changes in place."""
        self.reads = False
        """True once the base has read a number from a tensor: for other numbers it may do something
        else."""
        self.refused: BatchingError | None = None
        """The first refusal, which the base may have caught."""
        self.memory = {_memory(value): its for its, value in shared if _has_memory(value)}
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
        if self.with_gradients and not torch.is_grad_enabled() and _in_checkpoint():
            raise BatchingError(
                f"{self.name} uses `torch.utils.checkpoint` with `use_reentrant=True`. Its "
                "backward pass runs through whatever made the generated parameters, once for every "
                "block, and loses gradients. Pass `use_reentrant=False`; for a language model: "
                '`model.gradient_checkpointing_enable({"use_reentrant": False})`.'
            )
        if func in _HOOKS and self.engine != "loop":
            raise BatchingError(
                f"{self.name} registers a hook for gradients in `forward` (`{func.__name__}`). It "
                "would see those of "
                'all tasks at once. Pass `engine="loop"`, where it sees one task after the other.'
            )
        if (
            func in _ASKED
            and self.engine == "vmap"
            and self.with_gradients
            and _is_hidden(args[0])
            and _of_the_base()
        ):
            raise BatchingError(
                f"{self.name} asks in `forward` whether a tensor needs a gradient. `vmap` hides "
                "that, and always says "
                'no. Pass `engine="loop"`, or leave the engine to "auto".'
            )
        self.reads = self.reads or func in READ
        if (
            self.clones
            and (_is_in_place(func) or func in _SET)
            and args
            and isinstance(args[0], Tensor)
        ):
            target = torch._C._functorch.get_unwrapped(args[0]) if _is_hidden(args[0]) else args[0]
            if type(target) in (Tensor, nn.Parameter) and _has_memory(target):
                at = _memory(target)
                self.changed |= {
                    name for name, clone, _ in self.clones if clone.numel() and _memory(clone) == at
                }
        if (
            self.memory
            and (_is_in_place(func) or func in _SET)
            and args
            and isinstance(args[0], Tensor)
        ):
            self._check_in_place(args[0])
        if func in READ and self.engine == "vmap" and any(map(_is_hidden, args)):
            raise BatchingError(
                f"{self.name} reads a number from a tensor in `forward` (`{func.__name__}`); each "
                "task has its own. "
                '`vmap` runs all tasks at once. Pass `engine="loop"`, or leave the engine to "auto".'
            )

    def _check_in_place(self, target: Tensor) -> None:
        if _is_hidden(target) or type(target) not in (Tensor, nn.Parameter):
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
    """Whether code of the base asks, and not torch's own."""
    frame: Any = sys._getframe(2)
    while str(frame.f_globals.get("__name__", "")).startswith(
        "weightloom.base."
    ):  # modes that watch
        frame = frame.f_back
    return not str(frame.f_globals.get("__name__", "")).startswith("torch.")


@no_type_check
def _is_in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name in _ASSIGNED


_ASSIGNED = {
    "__setitem__",
    *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "and", "or", "xor")),
}
_SET = {getattr(Tensor, name).__set__ for name in ("data", "grad", "requires_grad")}
_ASKED = {getattr(Tensor, name).__get__ for name in ("requires_grad", "grad_fn", "is_leaf")}
_HOOKS = {Tensor.register_hook, Tensor.register_post_accumulate_grad_hook, Tensor.retain_grad}


@no_type_check
def check_arguments(name: str, replaced: Mapping[int, str], args: Any, kwargs: Any) -> None:
    """Raise if one of the arguments is a value that was replaced."""
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
    frame = sys._getframe(2)
    code = CheckpointFunction.forward.__code__
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
