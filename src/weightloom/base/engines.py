"""How many tasks are run: all at once under ``vmap``, folded into the batch, or one after the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from weightloom.base.aligned import Aligned, fold, unfold
from weightloom.base.check import refused_by_vmap
from weightloom.base.rows import WatchRows
from weightloom.base.sequential import Layer, is_hooked_everywhere, run_sequential
from weightloom.base.slots import Places, Slots
from weightloom.errors import BatchingError
from weightloom.forms.calls import WINDOW
from weightloom.forms.factored import Factored
from weightloom.params import Params

Randomness = Literal["different", "same"]


class Call(NamedTuple):
    """One call of `apply_per_task`, checked: what every engine runs. A tuple, since one is made in every step."""

    base: nn.Module
    params: Params
    inputs: Sequence[Tensor]
    kwargs: Mapping[str, Any]
    tasks: int
    buffers: Params
    randomness: Randomness = "different"
    chunk_size: int | None = None
    slots: Slots | None = None
    """Where the base keeps its parameters; None while it is compiled."""
    places: Places = ()
    batch_major: bool = False
    """How the aligned engine folds: see `Aligned`."""
    layers: list[Layer] | None = None
    """Of a plain sequence of layers: see `sequential`."""
    watch: WatchRows | None = None
    """Watches the base run."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Keyword inputs that have a row for each task."""
        return {name: value for name, value in self.kwargs.items() if isinstance(value, Tensor)}

    @property
    def constants(self) -> dict[str, Any]:
        """Keyword inputs that are the same for all tasks."""
        return {name: value for name, value in self.kwargs.items() if not isinstance(value, Tensor)}

    def run(self, tensors: Params, inputs: Sequence[Tensor], kwargs: Mapping[str, Any]) -> Any:
        """Run the base with ``tensors`` in the place of its own."""
        if self.slots is None:
            return functional_call(self.base, tensors, tuple(inputs), {**self.constants, **kwargs})
        with self.slots.filled(self.places, tensors):
            if self.watch is None:
                return self.base(*inputs, **self.constants, **kwargs)
            generated = [tensors[name] for name in self.params]
            with self.watch.start([*inputs, *kwargs.values()], generated):
                outputs = self.base(*inputs, **self.constants, **kwargs)
            self.watch.finish(outputs)
            return outputs

    def first(self, tasks: int) -> "Call":
        """The same for the first few tasks; buffers are copied."""
        return self._replace(
            params={name: value[:tasks] for name, value in self.params.items()},
            inputs=[x[:tasks] for x in self.inputs],
            kwargs={name: value[:tasks] if isinstance(value, Tensor) else value for name, value in self.kwargs.items()},
            tasks=min(tasks, self.tasks),
            buffers={name: value[:tasks].clone() for name, value in self.buffers.items()},
            chunk_size=None,
        )


def run_vmap(call: Call) -> Any:
    """All tasks in one pass, the tasks axis hidden from the base."""
    generated = {name: value.factors if isinstance(value, Factored) else value for name, value in call.params.items()}
    constants: list[Any] = []
    structure: Any = None

    def apply_one(factors: Any, buffers: Params, inputs: Sequence[Tensor], tensors: Params) -> Any:
        nonlocal constants, structure
        params = {name: _rebuilt(call.params[name], its) for name, its in factors.items()}
        leaves, structure = tree_flatten(call.run({**params, **buffers}, inputs, tensors))
        constants = [Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]  # vmap passes on nothing else

    run = vmap(apply_one, randomness=call.randomness, chunk_size=call.chunk_size)
    try:
        with no_fused_attention(), padding_unlearned(call.base), convolutions_in_one_precision():
            outputs = iter(run(generated, call.buffers, tuple(call.inputs), call.tensors))
    except RuntimeError as error:
        if refused := refused_by_vmap(call.base, error):
            raise refused from error
        raise
    return tree_unflatten([next(outputs) if leaf is Tensor else leaf for leaf in constants], structure)


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
        kwargs = {name: row[task] for name, row in tensors.items()}
        rows.append(call.run({**its, **buffers}, [x[task] for x in inputs], kwargs))
    return tree_map(lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *rows)


def run_aligned(call: Call) -> Any:
    """Fold tasks into the batch; every generated parameter finds the rows of its task."""
    if call.layers is not None and call.slots is not None and not is_hooked_everywhere():
        return run_sequential(call.slots, call.layers, call.params, call.inputs[0])
    if call.buffers:
        raise BatchingError(
            'Buffers per task (`buffers`, or `statistics="task"`) cannot be had with the aligned engine. It folds all '
            'tasks into one batch, which a norm in train mode sees as a whole. Pass `engine="vmap"`.'
        )
    if call.randomness == "same":
        raise BatchingError(
            '`randomness="same"` was given with the aligned engine, which runs all tasks as one batch: it draws '
            'numbers for every row apart. Pass `engine="vmap"` or `engine="loop"`.'
        )
    batches = {x.shape[1] if x.ndim > 1 else 0 for x in (*call.inputs, *call.tensors.values())}
    if len(batches) != 1 or 0 in batches:
        raise BatchingError(
            f"The inputs have batches of {sorted(batches)} rows. The aligned engine folds tasks and batch "
            'into one axis, the same for every input, each (tasks, batch, ...). Pass `engine="vmap"`.'
        )
    rows, batch_major = call.tasks * batches.pop(), call.batch_major
    params: Params = {name: Aligned(value, rows, batch_major) for name, value in call.params.items()}
    inputs = [fold(x, batch_major) for x in call.inputs]
    outputs = call.run(params, inputs, {name: fold(x, batch_major) for name, x in call.tensors.items()})

    def of_tasks(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if isinstance(leaf, Aligned) or not leaf.ndim or leaf.shape[0] != rows:
            raise BatchingError(
                f"{type(call.base).__name__} returns a tensor of shape {tuple(leaf.shape)} for {rows} rows. The "
                "aligned engine runs all tasks as one batch, so what is returned needs a row for each. "
                'Pass `engine="vmap"` or `engine="loop"`.'
            )
        return unfold(leaf, call.tasks, batch_major)

    if isinstance(outputs, Tensor):
        return of_tasks(outputs)
    return tree_map(of_tasks, outputs, is_leaf=lambda leaf: isinstance(leaf, Tensor))


def in_pieces(run: Callable[[Call], Any], call: Call) -> Any:
    """Run some tasks at a time and join the outputs."""
    size = call.chunk_size
    if size is None or size >= call.tasks:
        return run(call)
    pieces = range(-(-call.tasks // size))
    state = torch.get_rng_state() if call.randomness == "same" else None

    def run_piece(piece: Call) -> Any:
        if state is not None:
            torch.set_rng_state(state)
        return run(piece)

    def split(values: Mapping[str, Any]) -> list[dict[str, Any]]:
        cut = {name: v.split(size) if isinstance(v, Tensor) else [v] * len(pieces) for name, v in values.items()}
        return [{name: its[piece] for name, its in cut.items()} for piece in pieces]

    params, kwargs, buffers = split(call.params), split(call.kwargs), split(call.buffers)
    inputs = [x.split(size) for x in call.inputs]
    parts = [
        run_piece(
            call._replace(
                params=params[piece],
                inputs=[x[piece] for x in inputs],
                kwargs=kwargs[piece],
                buffers=buffers[piece],
                tasks=min(size, call.tasks - piece * size),
                chunk_size=None,
            )
        )
        for piece in pieces
    ]
    return tree_map(lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *parts)


def _rebuilt(value: Tensor, its: Any) -> Tensor:
    return Factored(value.form, value.own, its, value.shared) if isinstance(value, Factored) else its


class PaddingUnlearned(TorchFunctionMode):
    """Keeps the padding row of an embedding without a gradient, in every task.

    Under ``vmap`` all tables are laid end to end, and torch looks for the padding row in the first (torch 2.13).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look up, and let no gradient through where padding was read."""
        kwargs = kwargs or {}
        y = func(*args, **kwargs)
        if func is F.embedding:
            ids, weight, padding_idx = (*args, *(kwargs[n] for n in ("input", "weight") if n in kwargs), None)[:3]
            padding_idx = kwargs.get("padding_idx", padding_idx)
            if padding_idx is not None:
                y = torch.where((ids == padding_idx % weight.shape[0])[..., None], y.detach(), y)
        return y


def padding_unlearned(base: nn.Module) -> AbstractContextManager[Any]:
    """`PaddingUnlearned` where the base has something to pad."""
    pads = any(module.__dict__.get("padding_idx") is not None for module in base.modules())
    return PaddingUnlearned() if pads else nullcontext()


class ConvolutionsInOnePrecision(TorchFunctionMode):
    """Brings the input of a convolution to the precision of its kernel.

    Autocast does not reach convolutions under ``vmap``, but does lower what stands before them (torch 2.13).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Convolve in the precision of the kernel."""
        if func in WINDOW and len(args) > 1:
            x, weight, *rest = args
            args = (x.to(weight.dtype), weight, *rest)
        return func(*args, **(kwargs or {}))


def convolutions_in_one_precision() -> AbstractContextManager[Any]:
    """`ConvolutionsInOnePrecision` where autocast is on."""
    on = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    return ConvolutionsInOnePrecision() if on else nullcontext()


@contextmanager
def no_fused_attention() -> Iterator[None]:
    """Keep attention off its fused paths: under ``vmap`` one has no derivative, and the others are loops over tasks."""
    if torch.compiler.is_compiling():  # which cannot trace the switch
        yield
        return
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
