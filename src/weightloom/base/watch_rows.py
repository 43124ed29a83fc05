"""Prove that a base treats the rows of a batch independently, by watching every torch function."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from weightloom.base.branches import Answers, Program
from weightloom.base.row_rules import (
    DROPOUTS,
    OF_THE_SHAPE,
    OVER_AXES,
    READ,
    RULES,
    SIZES,
    argument,
    numbers_of_rows,
    same_in_all,
)
from weightloom.base.watch_sizes import FOLLOWED, SHAPED, Followed, follow, holds_batch, unfollowed
from weightloom.forms.calls import WINDOW, prefers_built
from weightloom.forms.factored import Factored
from weightloom.replica.hot import no_type_check

_NONE: Mapping[str, Tensor] = {}
_LOST = SIZES - FOLLOWED
"""Functions that return sizes which cannot be followed."""


@no_type_check
class WatchRows(TorchFunctionMode):
    """Mode that tracks tensors with the batch on axis 0, and the first call that may mix rows.

    Args:
        answers: Answers of each task to the numbers that the base reads; None if reading a number
            counts as mixing rows.
        program: Records the calls of the base, to compare two runs; None records none.
    """

    def __init__(self, answers: Answers | None = None, program: Program | None = None) -> None:
        super().__init__()
        self.answers, self.program = answers, program
        self.made: list[Any] | None = None
        """Expressions of the outputs, from ``program``."""
        self.mixes: str | None = None
        """First function that may mix rows or has no rule, for messages; None if all keep rows."""
        self.convolved: list[int] = []
        """Bytes of the input or output (the larger one) of each convolution with a generated
        kernel."""
        self.reduces: str | None = None
        """First function that runs over the batch axis of rows, which certainly mixes them."""
        self._followed = Followed()
        self.kernels: set[str] = set()
        """Names of generated kernels that are held as factors and are faster to build."""
        self._names: dict[int, str] = {}
        self._rows: dict[int, Tensor] = {}
        self._others: dict[int, Tensor] = {}
        self._numbers: dict[int, Tensor] = {}
        self._generated: set[int] = set()
        self.batch = -1

    def start(
        self,
        inputs: Sequence[Tensor],
        generated: Sequence[Tensor],
        named: Mapping[str, Tensor] = _NONE,
    ) -> "WatchRows":
        """Set the tensors that enter the base; return the watch itself.

        Args:
            inputs: Inputs of the base, each with the batch on axis 0.
            generated: Parameters that differ from task to task.
            named: All parameters and buffers, by name.
        """
        if self.program is not None:
            self.program.start(inputs, named)
        if self.answers is not None:
            self.answers.start(inputs)
        self._generated = {id(value) for value in generated}
        self._names = {id(value): name for name, value in named.items()}
        self._others = _by_id([part for its in generated for part in (its, *factors_of(its))])
        sizes = _batch_sizes(inputs)
        if -1 in sizes or any(size != sizes[0] for size in sizes):
            self.mixes = "an input without a batch axis"
        self.batch = sizes[0]
        self._rows = _by_id(inputs)
        return self

    def finish(self, outputs: Any) -> None:
        """Check the outputs of the base: each must have the rows of the inputs."""
        leaves = _tensors(outputs)
        if self.program is not None:
            self.made = [self.program.of(leaf) for leaf in leaves]
        if not self.mixes and not all(id(leaf) in self._rows for leaf in leaves):
            self.mixes = "an output whose rows are not those of the input"

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function, then judge by its rule whether it mixes rows."""
        kwargs = kwargs or {}
        if func in _LOST or (func not in SHAPED and holds_batch((args, kwargs))):
            self._followed.exact = True
        args, kwargs = unfollowed(args), unfollowed(kwargs)
        result = self._run(func, args, kwargs)
        tensors = _tensors(args)
        self._note_reduction(func, args, kwargs, tensors, result)
        if func in FOLLOWED and tensors and self.batch >= 0:
            result = follow(result, self.is_row(tensors[0]), self.batch, args, self._followed)
        if self.mixes is None:
            self._judge(func, args, kwargs, result)
        self._follow_mixed(tensors, result)
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.answers is None:
            result = func(*args, **kwargs)
        else:
            result = self.answers.result(func, args, kwargs)
        if self.program is not None:
            self.program.add(func, args, kwargs, result)
        return result

    def _note_reduction(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        result: Any,
    ) -> None:
        """Note the first function that runs over the batch axis of rows."""
        if self.reduces is not None or func not in OVER_AXES:
            return
        if not tensors or not self.is_row(tensors[0]) or self._has_answers([result]):
            return
        position, names = OVER_AXES[func]
        said = argument(args, kwargs, position, names, None)
        several = said if isinstance(said, list | tuple) else [said]
        if any(_covers_batch(axis, tensors[0].ndim) for axis in several):
            self.reduces = f"`{getattr(func, '__name__', func)}` over the rows of a batch"

    def _has_answers(self, results: Sequence[Any]) -> bool:
        """True if one of the results has an answer for each task."""
        return self.answers is not None and any(
            isinstance(result, Tensor) and self.answers.knows(result) for result in results
        )

    def _follow_mixed(self, tensors: list[Tensor], result: Any) -> None:
        """After rows may have mixed, count results of rows with the size of the batch as rows."""
        if self.mixes is not None and any(id(tensor) in self._rows for tensor in tensors):
            rows = [y for y in _tensors(result) if y.ndim and y.shape[0] == self.batch]
            self._rows.update(_by_id(rows))

    def _judge(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = getattr(func, "__name__", str(func))
        tensors, results = _tensors((args, kwargs)), _tensors(result)
        rows = [tensor for tensor in tensors if id(tensor) in self._rows]
        if self._has_stray(tensors):
            self.mixes = "a tensor that an unseen function computed"
            return
        if self._needs_no_rule(func, tensors, rows, results):
            return
        if func in READ:
            self.mixes = f"`{name}`, which reads numbers,"
            return
        if numbers_of_rows(self, func, args, kwargs, self.batch, result):
            self._numbers.update(_by_id(results))
        if not rows:
            alike = same_in_all(func, args, self.batch, result)
            (self._rows if alike else self._others).update(_by_id(results))
        elif self._keeps_rows(func, rows, tensors, args, kwargs, result):
            self._note_convolution(func, tensors, result)
            self._rows.update(_by_id(results))
        else:
            self.mixes = f"`{name}`"

    def _needs_no_rule(
        self, func: Any, tensors: list[Tensor], rows: list[Tensor], results: list[Tensor]
    ) -> bool:
        """True for reads of numbers or results with an answer per task, and questions of shape."""
        if func in READ:
            return self.answers is not None
        if tensors and not results and _asks_shape(func, rows):
            return True
        return self._has_answers(results)

    def _keeps_rows(
        self,
        func: Any,
        rows: list[Tensor],
        tensors: list[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> bool:
        """True if a function of tensors with rows keeps them apart, by its rule and its results."""
        rule = RULES.get(func)
        if rule is None or not rule(self, rows, tensors, args, kwargs, result):
            return False
        return all(leaf.ndim > 0 and leaf.shape[0] == self.batch for leaf in _tensors(result))

    def _note_convolution(self, func: Any, tensors: list[Tensor], result: Any) -> None:
        """Note the bytes of a convolution with a generated kernel."""
        if func not in WINDOW or id(tensors[1]) not in self._generated:
            return
        numbers = max(tensors[0].numel(), result.numel())
        if isinstance(tensors[1], Factored) and prefers_built(func, tensors[0], tensors[1].own):
            self.kernels.add(self._names[id(tensors[1])])
        self.convolved.append(numbers * result.element_size())

    def _has_stray(self, tensors: list[Tensor]) -> bool:
        """True if a tensor that differs from task to task was computed by an unseen function."""
        inside = torch._C._functorch.maybe_current_level() is not None
        return inside and any(map(self._is_stray, tensors))

    def _is_stray(self, tensor: Tensor) -> bool:
        seen = id(tensor) in self._rows or id(tensor) in self._others
        return not seen and not isinstance(tensor, Factored) and _differs_by_task(tensor)

    @property
    def sizes(self) -> bool:
        """True if the base compared a size, or read one that changes when tasks are folded."""
        return self._followed.exact

    def is_row(self, value: Any) -> bool:
        """True for a tensor whose first axis is the batch."""
        return isinstance(value, Tensor) and id(value) in self._rows

    def is_numbers(self, value: Any) -> bool:
        """True for a tensor of row numbers 0, 1, ..., batch - 1, with size 1 on any other axes."""
        return isinstance(value, Tensor) and id(value) in self._numbers


@no_type_check
def _by_id(tensors: Sequence[Tensor]) -> dict[int, Tensor]:
    return {id(tensor): tensor for tensor in tensors}


@no_type_check
def _batch_sizes(inputs: Sequence[Tensor]) -> list[int]:
    """Sizes on axis 0; -1 for a scalar, and in the place of no input."""
    return [x.shape[0] if x.ndim else -1 for x in inputs] or [-1]


@no_type_check
def _covers_batch(axis: Any, axes: int) -> bool:
    """True for an argument that names axis 0, or all axes."""
    return axis is None or (isinstance(axis, int) and axis % axes == 0)


@no_type_check
def _asks_shape(func: Any, rows: list[Tensor]) -> bool:
    """True for a function, or an attribute of rows, that depends on shape, dtype or device only."""
    return func in OF_THE_SHAPE or (bool(rows) and getattr(func, "__name__", "") == "__get__")


class WithoutDropout(TorchFunctionMode):
    """Mode that turns dropout off, so that the outputs of two engines can be compared."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace dropout by the identity, and attention by attention without dropout."""
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args, kwargs = (*args[:4], *([0.0] if len(args) > 4 else []), *args[5:]), {**kwargs}
            kwargs.pop("dropout_p", None)
        return func(*args, **kwargs)


@no_type_check
def _tensors(tree: Any) -> list[Tensor]:
    """Tensors of a call or a result, at any depth; fast for tensors and tuples of tensors."""
    if isinstance(tree, Tensor):
        return [tree]
    if type(tree) is tuple or type(tree) is list:
        found: list[Tensor] = []
        for item in tree:
            if isinstance(item, Tensor):
                found.append(item)
            elif type(item) not in _NUMBERS:
                found += _tensors(item)
        return found
    if type(tree) is dict:
        return _tensors(list(tree.values()))
    return [
        x
        for x in tree_leaves(tree, is_leaf=lambda x: isinstance(x, Tensor))
        if isinstance(x, Tensor)
    ]


_NUMBERS = {
    int,
    float,
    bool,
    str,
    type(None),
    slice,
    torch.dtype,
    torch.device,
    torch.Size,
    type(Ellipsis),
}


@no_type_check
def _differs_by_task(tensor: Tensor) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def factors_of(value: Tensor) -> list[Tensor]:
    """Tensors of a generated parameter: its factors, or the parameter itself."""
    return [*value.factors.values()] if isinstance(value, Factored) else [value]
