"""How many tasks are run: all at once under ``vmap``, folded into the batch, or one after the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from weightloom.base.aligned import Aligned
from weightloom.base.check import refused_by_vmap
from weightloom.errors import BatchingError
from weightloom.forms.factored import Factored
from weightloom.params import Params

Randomness = Literal["different", "same"]


@dataclass(frozen=True)
class Call:
    """One call of `apply_per_task`, checked: what every engine runs."""

    base: nn.Module
    params: Params
    inputs: Sequence[Tensor]
    kwargs: Mapping[str, Any]
    tasks: int
    buffers: Params = field(default_factory=dict)
    randomness: Randomness = "different"
    chunk_size: int | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Keyword inputs that have a row for each task."""
        return {name: value for name, value in self.kwargs.items() if isinstance(value, Tensor)}

    @property
    def constants(self) -> dict[str, Any]:
        """Keyword inputs that are the same for all tasks."""
        return {name: value for name, value in self.kwargs.items() if not isinstance(value, Tensor)}

    def rows(self, start: int, stop: int) -> "Call":
        """The same for some of the tasks."""
        cut = slice(start, stop)
        return Call(
            self.base,
            {name: value[cut] for name, value in self.params.items()},
            [x[cut] for x in self.inputs],
            {name: value[cut] if isinstance(value, Tensor) else value for name, value in self.kwargs.items()},
            len(range(*cut.indices(self.tasks))),
            {name: value[cut] for name, value in self.buffers.items()},
            self.randomness,
        )


def run_vmap(call: Call) -> Any:
    """All tasks in one pass, the tasks axis hidden from the base."""
    generated = {name: value.factors if isinstance(value, Factored) else value for name, value in call.params.items()}

    def apply_one(factors: Any, buffers: Params, inputs: Sequence[Tensor], tensors: Params) -> Any:
        params = {name: _rebuilt(call.params[name], its) for name, its in factors.items()}
        return functional_call(call.base, {**params, **buffers}, tuple(inputs), {**call.constants, **tensors})

    run = vmap(apply_one, randomness=call.randomness, chunk_size=call.chunk_size)
    try:
        with no_fused_attention():
            return run(generated, call.buffers, tuple(call.inputs), call.tensors)
    except RuntimeError as error:
        if refused := refused_by_vmap(call.base, error):
            raise refused from error
        raise


def run_loop(call: Call) -> Any:
    """One task after the other: slow and obvious, the reference for the others."""
    params = {name: value.unbind() for name, value in call.params.items()}
    tensors = {name: value.unbind() for name, value in call.tensors.items()}
    inputs = [x.unbind() for x in call.inputs]
    state = torch.get_rng_state()
    rows = []
    for task in range(call.tasks):
        if call.randomness == "same":
            torch.set_rng_state(state)
        its = {name: row[task] for name, row in params.items()}
        buffers = {name: value[task] for name, value in call.buffers.items()}
        kwargs = {**call.constants, **{name: row[task] for name, row in tensors.items()}}
        rows.append(functional_call(call.base, {**its, **buffers}, tuple(x[task] for x in inputs), kwargs))
    return tree_map(lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *rows)


def run_aligned(call: Call) -> Any:
    """Fold tasks into the batch; every generated parameter finds the rows of its task."""
    if call.buffers:
        raise BatchingError(
            "`buffers` were given with the aligned engine, which folds all tasks into one batch: a norm in train mode "
            'sees them together. Pass `engine="vmap"` for statistics per task.'
        )
    batches = {x.shape[1] if x.ndim > 1 else 0 for x in (*call.inputs, *call.tensors.values())}
    if len(batches) != 1 or 0 in batches:
        raise BatchingError(
            f"The inputs have batches of {sorted(batches)} rows. The aligned engine folds tasks and batch "
            'into one axis, the same for every input, each (tasks, batch, ...). Pass `engine="vmap"`.'
        )
    rows = call.tasks * batches.pop()
    params: Params = {name: Aligned(value, rows) for name, value in call.params.items()}
    inputs = tuple(x.flatten(0, 1) for x in call.inputs)
    kwargs = {**call.constants, **{name: x.flatten(0, 1) for name, x in call.tensors.items()}}
    outputs = functional_call(call.base, params, inputs, kwargs)

    def unfold(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if isinstance(leaf, Aligned) or not leaf.ndim or leaf.shape[0] != rows:
            raise BatchingError(
                f"{type(call.base).__name__} returns a tensor of shape {tuple(leaf.shape)} for {rows} rows. The "
                "aligned engine runs all tasks as one batch, so what is returned needs a row for each. "
                'Pass `engine="vmap"` or `engine="loop"`.'
            )
        return leaf.unflatten(0, (call.tasks, rows // call.tasks))

    return tree_map(unfold, outputs, is_leaf=lambda leaf: isinstance(leaf, Tensor))


def in_pieces(run: Callable[[Call], Any], call: Call) -> Any:
    """Run some tasks at a time and join the outputs."""
    if call.chunk_size is None or call.chunk_size >= call.tasks:
        return run(call)
    starts = range(0, call.tasks, call.chunk_size)
    parts = [run(call.rows(start, start + call.chunk_size)) for start in starts]
    return tree_map(lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *parts)


def _rebuilt(value: Tensor, its: Any) -> Tensor:
    return Factored(value.form, value.own, its, value.shared) if isinstance(value, Factored) else its


@contextmanager
def no_fused_attention() -> Iterator[None]:
    """Keep attention in eval mode off its fused path, which under ``vmap`` is a loop that has no derivative."""
    if torch.compiler.is_compiling():  # which cannot trace the switch
        yield
        return
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
