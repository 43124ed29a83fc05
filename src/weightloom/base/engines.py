"""How many tasks are run: all at once under ``vmap``, folded into the batch, or one after the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from weightloom.base.aligned import Aligned, fold, unfold
from weightloom.base.branches import Answering
from weightloom.base.check import refused_by_vmap
from weightloom.base.modes import (
    convolutions_in_one_precision,
    padding_unlearned,
    second_derivatives,
    unfused_attention,
)
from weightloom.base.rows import WatchRows
from weightloom.base.sequential import Layer, is_hooked_everywhere, run_sequential
from weightloom.base.state import Carried, is_gone, of_one_task, refuse_different
from weightloom.base.target import Target
from weightloom.errors import BatchingError, RecomputeError
from weightloom.forms.factored import Factored, InUse, built
from weightloom.params import Params
from weightloom.replica import Contents, Scan
from weightloom.replica.hot import no_type_check
from weightloom.replica.replica import Places, Replica, places_of
from weightloom.replica.tree import is_plain, open_tree

Randomness = Literal["different", "same"]
Tensors = Mapping[str, Tensor]


class Result(NamedTuple):
    """Outputs of a run, and what it left."""

    outputs: Any
    written: list[Carried]
    """Attributes that `forward` assigned, of all tasks."""


@dataclass
class Call:
    """One call of a base: what every engine runs. Whoever is given one makes another with `_replace`."""

    target: Target
    params: Tensors
    rows: Sequence[Tensor]
    """Tensors of the call that have a tasks axis."""
    build: Callable[[Sequence[Any]], tuple[Any, Any]]
    """From one task's part of ``rows`` to positional and named arguments."""
    tasks: int
    buffers: Tensors
    randomness: Randomness = "different"
    chunk_size: int | None = None
    scan: Scan | None = None
    """The base as it stands; None while it is compiled, and for a plain function."""
    places: Places = ()
    state: Mapping[tuple[int, str], Any] = field(default_factory=dict)
    """Attributes that an earlier call assigned, of every task."""
    batch_major: bool = False
    """How the aligned engine folds: see `Aligned`."""
    layers: list[Layer] | None = None
    """Of a plain sequence of layers: see `sequential`."""
    watch: WatchRows | Answering | None = None
    """Watches the base run."""
    dense: frozenset[str] = frozenset()
    """Parameters that the base changes in place: built, and copied."""
    key: Any = None
    """Structure of the call, and everything in it that is no tensor."""
    paths: Sequence[str] | None = None
    """Names of the tensors in ``rows``, for messages; None where all were passed by position."""
    extra: Tensors = field(default_factory=dict)
    """Tensors that all tasks share, in the place of the base's own."""
    unhooked: bool = False
    """Leave hooks of users out."""
    clones: list[tuple[str, Tensor, Tensor]] | None = None
    """Name, copy and original of what was given to the base, where it is watched."""
    common: Sequence[Tensor] = ()
    """Tensors of the call that all tasks share."""

    def _replace(self, **changes: Any) -> "Call":
        return Call(**{**self.__dict__, **changes})

    def run(
        self,
        tensors: Tensors,
        rows: Sequence[Any],
        state: Mapping[tuple[int, str], Any],
        replica: Replica | None = None,
    ) -> tuple[Any, list[tuple[int, str, Any]]]:
        """Run the base with ``tensors`` in the place of its own; return outputs, and what `forward` assigned."""
        args, kwargs = self.build(rows)
        if self.target.module is None:
            return self._watched(lambda: self.target.function(Params(tensors), *args, **kwargs), tensors, rows), []
        if self.scan is None:
            return self._watched(lambda: _run_compiled(self.target, tensors, args, kwargs), tensors, rows), []
        if replica is None:
            replica = self.replica(tensors, state)
        invoke = self.target.on(replica.base)
        outputs = self._watched(lambda: invoke(*args, **kwargs), tensors, rows)
        return outputs, replica.written()

    def replica(self, tensors: Tensors, state: Mapping[tuple[int, str], Any]) -> Replica:
        """A replica of the base with tensors in their places."""
        assert self.scan is not None
        return Replica(self.scan, self.places, {**self.extra, **tensors}, state, self.unhooked)

    def placed(self) -> "Call":
        """The same with places for all that it holds."""
        if self.scan is None:
            return self
        return self._replace(places=places_of(self.scan, [*self.params, *self.buffers, *self.extra]))

    def _watched(self, run: Callable[[], Any], tensors: Tensors, rows: Sequence[Any]) -> Any:
        if self.watch is None:
            return run()
        with self.watch.start(rows, [tensors[name] for name in self.params], {**self.extra, **tensors}):
            outputs = run()
        self.watch.finish(outputs)
        return outputs

    def first(self, tasks: int) -> "Call":
        """The same for the first few tasks; buffers are copied."""
        return self._replace(
            params={name: value[:tasks] for name, value in self.params.items()},
            rows=[x[:tasks] for x in self.rows],
            tasks=min(tasks, self.tasks),
            buffers={name: value[:tasks].clone() for name, value in self.buffers.items()},
            state={where: of_one_task(its, slice(0, tasks)) for where, its in self.state.items()},
            chunk_size=None,
        )

    def apart(self) -> "Call":
        """The same numbers, outside of the graph."""
        params = {name: apart(value) for name, value in self.params.items()}
        return self._replace(params=params, rows=[apart(x) for x in self.rows])

    def leaves(self) -> list[Tensor]:
        """Tensors of the call that get a gradient."""
        values = [*self.params.values(), *self.rows]
        parts = [(v.own, *v.parts.values()) if isinstance(v, Factored) else (v,) for v in values]
        return [tensor for several in parts for tensor in several if tensor.requires_grad]

    def of_tasks(self, order: Tensor) -> "Call":
        """The same for some tasks, in this order."""
        return self._replace(
            params={name: value[order] for name, value in self.params.items()},
            rows=[x[order] for x in self.rows],
            buffers={name: value[order] for name, value in self.buffers.items()},
            state={where: of_one_task(its, order) for where, its in self.state.items()},
            tasks=len(order),
        )

    def _one(self, name: str, value: Tensor) -> Tensor:
        """A parameter as one task's base is given it."""
        if name in self.dense:
            value = built(value)
            clone = value.clone()
            if self.clones is not None:
                self.clones.append((name, _unwrapped(clone), _unwrapped(value)))
            clone._is_param = True
            return clone
        if isinstance(value, Factored):
            return value.in_use()
        if not torch.compiler.is_compiling():
            value._is_param = True  # what torch asks before it takes a tensor for an `nn.Parameter`
        return value


def apart(value: Any) -> Any:
    """The same numbers, outside of the graph."""
    if isinstance(value, Factored):
        return value.map_all(apart)
    copied = value.detach().clone()
    return copied.requires_grad_() if value.requires_grad and torch.is_grad_enabled() else copied


def run_vmap(call: Call) -> Result:
    """All tasks in one pass, the tasks axis hidden from the base."""
    generated = {name: value.factors if isinstance(value, Factored) else value for name, value in call.params.items()}
    gone = {where: its for where, its in call.state.items() if is_gone(its)}
    opened = {where: open_tree(its) for where, its in call.state.items() if where not in gone}
    state = {where: [leaf.tensor for leaf in its.leaves] for where, its in opened.items()}
    found: list[Any] = []

    @no_type_check
    def apply_one(factors: Any, buffers: Tensors, rows: Sequence[Tensor], held: Any) -> Any:
        params = {name: call._one(name, _rebuilt(call.params[name], its)) for name, its in factors.items()}
        mine = {where: opened[where].build(its) for where, its in held.items()}
        outputs, written = call.run({**params, **buffers}, rows, {**gone, **mine})
        its = open_tree(outputs)
        assigned = [(number, name, open_tree(value, name)) for number, name, value in written]
        found[:] = [its, assigned, [_alone(leaf.tensor) for _, _, o in assigned for leaf in o.leaves]]
        leaves = [*its.leaves, *(leaf for _, _, o in assigned for leaf in o.leaves)]
        return [built(leaf.tensor) for leaf in leaves]  # vmap passes on nothing else

    run = vmap(apply_one, randomness=call.randomness, chunk_size=call.chunk_size)
    level = torch._C._functorch.maybe_current_level() or 0
    try:
        with (
            unfused_attention(),
            padding_unlearned(call.target.module),
            convolutions_in_one_precision(call.params),
            second_derivatives(level),
            no_recomputing(call),
        ):
            leaves = run(generated, call.buffers, list(call.rows), state)
    except RuntimeError as error:
        if refused := refused_by_vmap(call.target.name, call.target.module, error):
            raise refused from error
        raise
    its, assigned, alone = found
    count = len(its.leaves)
    written = []
    for number, name, opened_value in assigned:
        many = leaves[count : count + len(opened_value.leaves)]
        same = alone[count - len(its.leaves) :][: len(many)]
        count += len(many)
        is_buffer = call.scan is not None and name in call.scan.modules[number]._buffers
        if not many or (is_buffer and all(x is not None for x in same)):  # one for all tasks
            written.append(Carried(number, name, opened_value.build(same), False))
        else:
            written.append(Carried(number, name, opened_value.build(many), True))
    return Result(its.build(leaves), written)


def _unwrapped(tensor: Tensor) -> Tensor:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return torch._C._functorch.get_unwrapped(tensor) if wrapped else tensor


def _alone(tensor: Tensor) -> Tensor | None:
    """A tensor that no task has changed; None for one that ``vmap`` holds."""
    return None if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or isinstance(tensor, Factored) else tensor


def run_loop(call: Call) -> Result:
    """One task after the other: slow and obvious, the reference for the others."""
    params = {name: value.unbind() for name, value in call.params.items()}
    rows = [x.unbind() for x in call.rows]
    random = torch.get_rng_state() if call.randomness == "same" else None
    contents = Contents(call.scan.mutable) if call.scan is not None and call.scan.mutable else None
    several: list[Any] = []
    assigned: list[list[tuple[int, str, Any]]] = []
    replica: Replica | None = None
    with second_derivatives(torch._C._functorch.maybe_current_level() or 0):
        for task in range(call.tasks):
            if random is not None:
                torch.set_rng_state(random)
            if contents is not None and task:
                contents.restore()  # as if each task had a copy of its own
            its = {name: call._one(name, row[task]) for name, row in params.items()}
            tensors = {**its, **{name: value[task] for name, value in call.buffers.items()}}
            state = {where: of_one_task(value, task) for where, value in call.state.items()}
            replica = _next(call, replica, tensors, state)
            outputs, written = call.run(tensors, [row[task] for row in rows], state, replica)
            several.append(outputs)
            assigned.append(written)
    return Result(join(several, torch.stack, call.target.name), _gathered(call, assigned))


def _next(call: Call, replica: Replica | None, tensors: Tensors, state: Any) -> Replica | None:
    """A replica for the next task: the last one with other values, where nobody holds it."""
    if call.scan is None:
        return None
    if replica is not None and not state and replica.refill(call.places, {**call.extra, **tensors}):
        return replica
    made = call.replica(tensors, state)
    made.count_references()
    return made


def _gathered(call: Call, assigned: list[list[tuple[int, str, Any]]]) -> list[Carried]:
    """Stack what every task assigned."""
    by_place: dict[tuple[int, str], list[Any]] = {}
    for written in assigned:
        for number, name, value in written:
            by_place.setdefault((number, name), []).append(value)
    carried = []
    for (number, name), values in by_place.items():
        if len(values) != call.tasks:
            raise refuse_different(call.scan, number, name, "is assigned for some tasks and not for others")
        opened = [open_tree(value, name) for value in values]
        if any(its.key != opened[0].key for its in opened):
            raise refuse_different(call.scan, number, name, "differs from task to task and is no tensor")
        module = call.scan.modules[number] if call.scan is not None else None
        same = module is not None and name in module._buffers and all(torch.equal(values[0], v) for v in values)
        if not opened[0].leaves or same:
            carried.append(Carried(number, name, values[-1], False))
        else:
            carried.append(Carried(number, name, join(values, torch.stack, name), True))
    return carried


def run_aligned(call: Call) -> Result:
    """Fold tasks into the batch; every generated parameter finds the rows of its task."""
    if call.layers is not None and call.scan is not None and not is_hooked_everywhere():
        return Result(run_sequential(call.scan.modules, call.layers, call.params, call.rows[0]), [])
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
    batches = [x.shape[1] if x.ndim > 1 else 0 for x in call.rows]
    if not batches or 0 in batches or any(batch != batches[0] for batch in batches):
        raise BatchingError(
            f"The inputs have batches of {sorted({*batches})} rows. The aligned engine folds tasks and batch "
            'into one axis, the same for every input, each (tasks, batch, ...). Pass `engine="vmap"`.'
        )
    rows, batch_major = call.tasks * batches[0], call.batch_major
    params = {name: Aligned(value, rows, batch_major) for name, value in call.params.items()}
    inputs = [fold(x, batch_major) for x in call.rows]
    with second_derivatives(torch._C._functorch.maybe_current_level() or 0):
        outputs, written = call.run(params, inputs, call.state)

    @no_type_check
    def of_tasks(leaf: Tensor) -> Tensor:
        if isinstance(leaf, Aligned):
            return leaf.dense()
        if not leaf.ndim or leaf.shape[0] != rows:
            raise BatchingError(
                f"{call.target.name} returns a tensor of shape {tuple(leaf.shape)} for {rows} rows. The "
                "aligned engine runs all tasks as one batch, so what is returned needs a row for each. "
                'Pass `engine="vmap"` or `engine="loop"`.'
            )
        return unfold(leaf, call.tasks, batch_major)

    @no_type_check
    def unfolded(value: Any) -> tuple[Any, bool]:
        if is_plain(value):
            return of_tasks(value), True
        opened = open_tree(value)
        return opened.build([of_tasks(leaf.tensor) for leaf in opened.leaves]), bool(opened.leaves)

    modules = call.scan.modules if call.scan is not None else ()
    carried = [
        Carried(number, name, value, False)  # of all tasks, as one batch
        if name in modules[number]._buffers
        else Carried(number, name, *unfolded(value))
        for number, name, value in written
    ]
    return Result(unfolded(outputs)[0], carried)


def in_pieces(run: Callable[[Call], Result], call: Call) -> Result:
    """Run some tasks at a time and join the outputs."""
    size = call.chunk_size
    if size is None or size >= call.tasks:
        return run(call)
    random = torch.get_rng_state() if call.randomness == "same" else None
    results = []
    for start in range(0, call.tasks, size):
        if random is not None:
            torch.set_rng_state(random)
        part = slice(start, start + size)
        results.append(
            run(
                call._replace(
                    params={name: value[part] for name, value in call.params.items()},
                    rows=[x[part] for x in call.rows],
                    buffers={name: value[part] for name, value in call.buffers.items()},
                    state={where: of_one_task(its, part) for where, its in call.state.items()},
                    tasks=min(size, call.tasks - start),
                    chunk_size=None,
                )
            )
        )
    outputs = join([result.outputs for result in results], torch.cat, call.target.name)
    written = []
    for several in zip(*(result.written for result in results), strict=True):
        first = several[0]
        value = join([its.value for its in several], torch.cat, first.name) if first.of_tasks else several[-1].value
        written.append(first._replace(value=value))
    return Result(outputs, written)


def join(trees: Sequence[Any], how: Callable[[list[Tensor]], Tensor], name: str) -> Any:
    """Join what several runs returned, tensor by tensor.

    Raises:
        BatchingError: If they differ in structure, in shapes, or in something that is no tensor.
    """
    if all(is_plain(tree) for tree in trees):
        return _joined(list(trees), how, name)
    opened = [open_tree(tree) for tree in trees]
    first = opened[0]
    if any(its.key != first.key for its in opened):
        raise BatchingError(
            f"What {name} returns differs from task to task in something that is no tensor: a number, a text, or the "
            "structure. Only tensors get a tasks axis. Return a tensor in its place, as in `torch.tensor(number)`."
        )
    columns = zip(*([leaf.tensor for leaf in its.leaves] for its in opened), strict=True)
    return first.build([_joined(list(column), how, name) for column in columns])


def _joined(tensors: list[Tensor], how: Callable[[list[Tensor]], Tensor], name: str) -> Tensor:
    tensors = [built(tensor) for tensor in tensors]
    if len({(tensor.shape[how is torch.cat :], tensor.dtype) for tensor in tensors}) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:3])
        raise BatchingError(
            f"{name} returns tensors of different shapes or dtypes for different tasks ({shapes}). All tasks are "
            "returned as one tensor, which has one shape. Pad them, or run these tasks apart."
        )
    return how(tensors)


def _rebuilt(value: Tensor, its: Any) -> Tensor:
    return InUse(value.form, value.own, its, value.shared) if isinstance(value, Factored) else its


def _run_compiled(target: Target, tensors: Tensors, args: Any, kwargs: Any) -> Any:
    """Run while `torch.compile` or `torch.export` reads along: nothing is swapped when the program runs."""
    assert target.module is not None
    places: dict[str, Tensor] = {}
    by_value: dict[Tensor, list[str]] = {}
    for prefix, module in target.module.named_modules():  # a layer that is used twice has one place
        for leaf, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is not None:
                by_value.setdefault(value, []).append(f"{prefix}.{leaf}" if prefix else leaf)
    known: dict[str, Tensor] = {}
    known.update(target.module.named_parameters(remove_duplicate=False))
    known.update(target.module.named_buffers(remove_duplicate=False))
    for name, value in tensors.items():
        for place in by_value[known[name]]:
            places[place] = value
    if target.method is not None:
        inside = {f"module.{name}": value for name, value in places.items()}
        return functional_call(_Method(target.module, target.method), inside, args, kwargs, tie_weights=False)
    return functional_call(target.module, places, args, kwargs, tie_weights=False)


class _Method(nn.Module):
    """A method of a module, called as a module is."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method."""
        return getattr(self.module, self.method)(*args, **kwargs)


RECOMPUTES = "weightloom: saved tensors are packed by hooks here"


@contextmanager
def no_recomputing(call: Call) -> Iterator[None]:
    """Refuse what packs tensors for the backward pass, as checkpoints do: it unpacks them where `vmap` has ended."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        yield
        return
    said = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
    torch._C._autograd._saved_tensors_hooks_disable(RECOMPUTES, False)  # those of a checkpoint around the call may stay
    try:
        yield
    except RuntimeError as error:
        if RECOMPUTES not in str(error):
            raise
        raise RecomputeError(
            f"{call.target.name} recomputes, or packs, what the backward pass needs, as `torch.utils.checkpoint` and "
            "`save_on_cpu` do. The backward pass runs when the tasks axis is no longer hidden, so `vmap` would give "
            'wrong gradients. Pass `engine="loop"`, or `engine="aligned"` where rows are treated one by one; or put '
            "the checkpoint around the call."
        ) from error
    finally:
        if said is None:
            torch._C._autograd._saved_tensors_hooks_enable()
        else:
            torch._C._autograd._saved_tensors_hooks_disable(said, False)
