"""Proof that a base treats the rows of a batch one by one, by watching every function that it calls."""

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
"""What gives sizes that cannot be followed."""


@no_type_check
class WatchRows(TorchFunctionMode):
    """While active, follow which tensors have the batch on axis 0, and note the first call that may mix rows."""

    def __init__(self, answers: Answers | None = None, program: Program | None = None) -> None:
        super().__init__()
        self.answers, self.program = answers, program
        self.made: list[Any] | None = None
        """What the outputs are made of, if that is followed."""
        self.mixes: str | None = None
        """The function that may mix rows, or that is not known; None as long as there is none."""
        self.convolved: list[int] = []
        """Bytes of input or output, whichever is larger, of every convolution with a generated
        kernel."""
        self.reduces: str | None = None
        """A function that runs over the batch axis of rows, which is no question of what is
        known."""
        self._followed = Followed()
        self.kernels: set[str] = set()
        """Names of generated kernels that are held as factors and are quicker built."""
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
        """Say what enters: inputs of the base, parameters that differ from task to task, and all that has a name."""
        if self.program is not None:
            self.program.start(inputs, named)
        if self.answers is not None:
            self.answers.start(inputs)
        self._generated = {id(value) for value in generated}
        self._names = {id(value): name for name, value in named.items()}
        self._others = {
            id(part): part for value in generated for part in (value, *factors_of(value))
        }
        sizes = [x.shape[0] if x.ndim else -1 for x in inputs] or [-1]
        if -1 in sizes or any(size != sizes[0] for size in sizes):
            self.mixes = "an input without a batch axis"
        self.batch = sizes[0]
        self._rows = {id(x): x for x in inputs}
        return self

    def finish(self, outputs: Any) -> None:
        """Say what leaves the base."""
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
        """Run the function and judge it."""
        kwargs = kwargs or {}
        if func in _LOST or (func not in SHAPED and holds_batch((args, kwargs))):
            self._followed.exact = True
        args, kwargs = unfollowed(args), unfollowed(kwargs)
        result = (
            func(*args, **kwargs)
            if self.answers is None
            else self.answers.result(func, args, kwargs)
        )
        if self.program is not None:
            self.program.add(func, args, kwargs, result)
        tensors = _tensors(args)
        known = (
            self.answers is not None and isinstance(result, Tensor) and self.answers.knows(result)
        )
        if (
            self.reduces is None
            and not known
            and func in OVER_AXES
            and tensors
            and id(tensors[0]) in self._rows
        ):
            position, names = OVER_AXES[func]
            said = argument(args, kwargs, position, names, None)
            several = said if isinstance(said, list | tuple) else [said]
            if any(
                axis is None or (isinstance(axis, int) and axis % tensors[0].ndim == 0)
                for axis in several
            ):
                self.reduces = f"`{getattr(func, '__name__', func)}` over the rows of a batch"
        if func in FOLLOWED and tensors and self.batch >= 0:
            result = follow(result, self.is_row(tensors[0]), self.batch, args, self._followed)
        if self.mixes is None:
            self._judge(func, args, kwargs, result)
        if self.mixes is not None and any(
            id(tensor) in self._rows for tensor in tensors
        ):  # is followed all the same
            self._rows.update(
                {id(y): y for y in _tensors(result) if y.ndim and y.shape[0] == self.batch}
            )
        return result

    def _judge(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = getattr(func, "__name__", str(func))
        tensors = _tensors((args, kwargs))
        rows = [tensor for tensor in tensors if id(tensor) in self._rows]
        results = _tensors(result)
        inside = torch._C._functorch.maybe_current_level() is not None
        if inside and any(self._is_stray(tensor) for tensor in tensors):
            self.mixes = "a tensor that came about unseen"
            return
        if tensors and not results and (func in OF_THE_SHAPE or (rows and name == "__get__")):
            return
        if func in READ:
            if self.answers is None:
                self.mixes = f"`{name}`, which reads numbers,"
            return
        if self.answers is not None and any(map(self.answers.knows, results)):
            return
        if numbers_of_rows(self, func, args, kwargs, self.batch, result):
            self._numbers.update({id(leaf): leaf for leaf in results})
        if not rows and same_in_all(func, args, self.batch, result):
            self._rows.update({id(leaf): leaf for leaf in results})
            return
        if not rows:
            self._others.update({id(leaf): leaf for leaf in results})
            return
        rule = RULES.get(func)
        if rule is None or not rule(self, rows, tensors, args, kwargs, result):
            self.mixes = f"`{name}`"
            return
        if any(leaf.ndim == 0 or leaf.shape[0] != self.batch for leaf in results):
            self.mixes = f"`{name}`"
            return
        if func in WINDOW and id(tensors[1]) in self._generated:
            numbers = max(tensors[0].numel(), result.numel())
            if isinstance(tensors[1], Factored) and prefers_built(func, tensors[0], tensors[1].own):
                self.kernels.add(self._names[id(tensors[1])])
            self.convolved.append(numbers * result.element_size())
        self._rows.update({id(leaf): leaf for leaf in results})

    def _is_stray(self, tensor: Tensor) -> bool:
        """Whether a tensor that differs from task to task was computed by what cannot be watched."""
        seen = id(tensor) in self._rows or id(tensor) in self._others
        return not seen and not isinstance(tensor, Factored) and _differs_by_task(tensor)

    @property
    def sizes(self) -> bool:
        """Whether the base compared a size, or read one that is another where tasks are folded."""
        return self._followed.exact

    def is_row(self, value: Any) -> bool:
        """Whether a value has the batch as its first axis."""
        return isinstance(value, Tensor) and id(value) in self._rows

    def is_numbers(self, value: Any) -> bool:
        """Whether a tensor holds the numbers of the rows on its first axis, and has no other axis."""
        return isinstance(value, Tensor) and id(value) in self._numbers


class WithoutDropout(TorchFunctionMode):
    """While active, nothing is dropped: what two engines compute can be compared."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Pass on the input of a dropout as it is."""
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args, kwargs = (*args[:4], *([0.0] if len(args) > 4 else []), *args[5:]), {**kwargs}
            kwargs.pop("dropout_p", None)
        return func(*args, **kwargs)


@no_type_check
def _tensors(tree: Any) -> list[Tensor]:
    """Tensors of a call or a result; most are a tensor, or a tuple of tensors and numbers."""
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
    """The tensors that a generated parameter is made of."""
    return [*value.factors.values()] if isinstance(value, Factored) else [value]
