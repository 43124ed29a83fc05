"""Which engine runs a call: chosen by watching the base run once, for two tasks, on replicas.

In:   a checked call.
Out:  a plan: the engine, why, and what else was found out; it holds as long as the base is what it was.
Watching leaves the base, what it keeps, and every source of random numbers as they were.
"""

import hashlib
import math
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from weightloom.base.branch_paths import Ways
from weightloom.base.buffers import norms_that_write, refuse_apart, refuse_written, task_buffers
from weightloom.base.call import Call, Result
from weightloom.base.compare_runs import moved, same_outputs
from weightloom.base.engines import Engine
from weightloom.base.sequential import Layer, layers_of
from weightloom.base.trials import Try, random_states, runs_alone, try_call
from weightloom.errors import BatchingError, RecomputeError, WeightloomError
from weightloom.forms.calls import GROUPED_BYTES, TURN_BYTES
from weightloom.forms.factored import NO_SUBCLASS, Factored
from weightloom.replica.replica import Places, named
from weightloom.replica.tree import open_tree

Statistics = Literal["task", "shared"]


@dataclass(frozen=True)
class Choice:
    """How a call is run, and why."""

    engine: Engine
    reason: str
    batch_major: bool = False
    """Whether the aligned engine folds so that the task changes from row to row, as grouped convolutions like it."""
    at_once: int | None = None
    """How many tasks are run at once, so that what is convolved stays in the cache; None means all."""
    convolved: tuple[float, float] | None = None
    """Bytes that convolutions with generated kernels read or write, over those of the first input: mean and most."""

    def of_size(self, call: Call) -> "Choice":
        """The choice for inputs of these sizes: so many tasks at once that what is convolved stays in the cache."""
        x = call.rows[0] if call.rows else None
        if self.convolved is None or x is None or x.device.type != "cpu" or not x.numel():
            return self
        mean, most = (its * x.numel() * x.element_size() for its in self.convolved)
        tasks = len(x)
        if mean > TURN_BYTES * tasks:
            return Choice("loop", "what is convolved with generated kernels is large, so tasks are run in turn")
        pieces = math.ceil(most / GROUPED_BYTES)
        return replace(self, at_once=math.ceil(tasks / pieces)) if pieces > 1 else self

    def __str__(self) -> str:
        pieces = f", {self.at_once} at a time" if self.at_once is not None else ""
        return f"{self.engine}: {self.reason}{pieces}"


@dataclass(frozen=True)
class Plan:
    """What was found out about a call, and holds for every call alike."""

    choice: Choice
    places: Places = ()
    layers: list[Layer] | None = None
    proven: bool = True
    """Whether what the base does cannot change unseen; else every aligned run is watched."""
    dense: frozenset[str] = frozenset()
    """Parameters that the base changes in place."""
    buffers: tuple[str, ...] = ()
    """Buffers that the base writes, which each task is given its own of."""
    sizes: bool = True
    """Whether it holds for these sizes only."""
    reads: bool = False
    """Whether the base reads numbers and runs in the loop: then it is guarded in every run."""
    ways: Ways | None = None
    """Where the base reads numbers and is folded all the same."""
    kernels: frozenset[str] = frozenset()
    """Parameters held as factors that are built for all tasks before they are run in turn."""
    is_free: bool = False
    """Whether other engines give the same."""

    def safe(self, choice: Choice, tasks: int) -> dict[str, Choice]:
        """Every choice that gives the same, the one that was counted the quickest first.

        Args:
            choice: The one that was counted.
            tasks: How many tasks there are to be run some at a time.
        """
        found = [choice]
        if self.choice.engine == "aligned":
            pieces = {None, *(math.ceil(tasks / 2**power) for power in range(1, 4) if tasks >= 2**power)}
            halves = sorted(pieces, key=lambda size: -(size or tasks)) if self.choice.convolved is not None else [None]
            found += [replace(self.choice, at_once=size) for size in halves]
        if self.ways is None:
            found.append(Choice("vmap", "timed"))
        found.append(Choice("loop", "timed"))
        named: dict[str, Choice] = {}
        for its in found:
            name = its.engine if its.at_once is None else f"{its.engine}, {its.at_once} at a time"
            named.setdefault(name, its)
        return named


class Plans:
    """The plans of one base.

    A base that is another one in every call, such as one that counts its calls, is watched a few times. Then it is
    run in a way that is right whatever it does.
    """

    def __init__(self) -> None:
        self.known: dict[Any, Plan] = {}
        self.watched: dict[Any, int] = {}

    def keep(self, key: Any, plan: Plan) -> None:
        """Keep a plan; the oldest goes where there are many."""
        while len(self.known) >= PLANS_KEPT:
            self.known.pop(next(iter(self.known)), None)
        self.known[key] = plan

    def count(self, shapes: Any) -> int:
        """Count how often one kind of call was watched."""
        while len(self.watched) >= PLANS_KEPT:
            self.watched.pop(next(iter(self.watched)), None)
        self.watched[shapes] = self.watched.get(shapes, 0) + 1
        return self.watched[shapes]


PLANS_KEPT = 200
RESTLESS = 6
"""Watched so often for one kind of call, a base counts as one that changes all the time."""

_of_base: "weakref.WeakKeyDictionary[Any, Plans]" = weakref.WeakKeyDictionary()


def plan_of(call: Call, engine: Engine, statistics: Statistics | None, checked: Callable[[Call], Call]) -> Plan:
    """Look a plan up, or check the call and make one."""
    exact = _signature(call, engine, statistics)
    at_hand: dict[Any, Plan] = call.scan.plans if call.scan is not None else {}
    if (plan := at_hand.get(exact)) is not None:
        return plan
    plans = _plans_of(call)
    kind = _without_sizes(call, exact)
    scanned = call.scan.key if call.scan is not None else None
    for key in ((scanned, kind), (scanned, exact), (RESTLESS, kind)):
        plan = plan or plans.known.get(key)
    if plan is None or not _fits(call, exact):  # a plan for other sizes says nothing of whether these fit each other
        call = checked(call)
        if call.scan is not None:
            if len(call.scan.checked) >= PLANS_KEPT:
                call.scan.checked.clear()
            call.scan.checked.add(_of_params(exact))
    if plan is None:
        with _unpacked():
            plan = make_plan(call, engine, statistics)
        plans.keep((scanned, exact if plan.sizes else kind), plan)
        often = plans.count(kind) >= RESTLESS
        if often and not plan.sizes:
            plans.keep((RESTLESS, kind), replace(plan, proven=False, layers=None))
        elif often and (engine == "aligned" or plan.choice.engine != "aligned"):  # of so many sizes, all were alike
            plans.keep((scanned, kind), plan)
    while len(at_hand) >= PLANS_KEPT:
        at_hand.pop(next(iter(at_hand)), None)
    at_hand[exact] = plan
    return plan


def _of_params(exact: Any) -> Any:
    """What is checked of parameters and buffers, whatever they run on."""
    return exact[0], exact[3], exact[4], exact[6]


def _fits(call: Call, exact: Any) -> bool:
    """Whether all but the sizes of inputs was checked before, and these hold as many tasks."""
    if call.scan is None or not call.params or _of_params(exact) not in call.scan.checked:
        return False
    tasks = len(next(iter(call.params.values())))
    return tasks > 0 and all(x.ndim > 0 and len(x) == tasks for x in call.rows)


def _plans_of(call: Call) -> Plans:
    holder = call.target.function if call.target.module is None else call.target.module
    try:
        return _of_base.setdefault(holder, Plans())
    except TypeError:  # no weak reference can be had to it
        return Plans()


def _signature(call: Call, engine: Engine, statistics: Statistics | None) -> Any:
    """What a plan holds for: options, modes, and kinds and sizes of everything."""
    return (
        (engine, statistics, call.randomness, call.chunk_size, call.target.method, bool(call.state), call.key),
        (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        torch._C._functorch.maybe_current_level(),
        tuple(call.params),
        tuple([_kind(value) for value in call.params.values()]),
        tuple([_kind(value) for value in call.rows]),
        tuple([(name, *_kind(value)) for name, value in call.buffers.items()]) if call.buffers else (),
    )


def kind_of(call: Call) -> str:
    """A call as a text: base, sizes, forms and whether it learns."""
    params = [(name, *_kind(value)) for name, value in call.params.items()]
    rows = [tuple(x.shape) for x in call.rows]
    options = (params, [_kind(x) for x in call.rows], call.chunk_size, torch.is_grad_enabled(), call.randomness)
    digest = hashlib.blake2s(repr(options).encode()).hexdigest()[:12]
    does = "forward and backward" if torch.is_grad_enabled() else "forward"
    return f"{call.target.name} on {rows}, {len(params)} generated, {does}, {digest}"


def _kind(value: Tensor) -> tuple[Any, ...]:
    if isinstance(value, Factored):
        with NO_SUBCLASS():
            return value.shape, value.dtype, value.device, value.form
    return value.shape, value.dtype, value.device, value.requires_grad


def _without_sizes(call: Call, exact: Any) -> Any:
    """The same for calls of other sizes, as far as none of them is one."""
    options, modes, level, names, *kinds = exact
    rest = [[(tuple([size == 1 for size in kind[-4]]), *kind[-3:]) for kind in its] for its in kinds]
    return options, modes, level, names, *map(tuple, rest), tuple(call.buffers)


def make_plan(call: Call, engine: Engine, statistics: Statistics | None) -> Plan:
    """Find out how a call runs; the base is as it was afterwards."""
    call = call.placed()
    if torch._C._functorch.maybe_current_level() is not None:  # numbers cannot be looked at
        if engine == "auto":
            return Plan(Choice("vmap", "inside a transform of `torch.func` nothing is watched"), call.places)
        return Plan(Choice(engine, "as asked for"), call.places, proven=engine != "aligned")
    if call.scan is not None and call.scan.versions and call.params:
        raise BatchingError(
            f"{call.target.name} asks in `forward` how often a tensor was changed (`_version`), as caches of derived "
            "values do. Generated values are new ones in every call, which this does not show, so a cache would go "
            "stale. Compute without the cache, or run the base by itself."
        )
    dense: frozenset[str] = frozenset()
    buffers: tuple[str, ...] = ()
    while True:
        choice, tries = _choose(call, engine, statistics, dense)
        failed = [t.error for t in tries if t.error is not None]
        if failed and not dense and any(isinstance(value, Factored) for value in call.params.values()):
            built = _choose(call, engine, statistics, frozenset(call.params))
            if not any(t.error is not None for t in built[1]):
                dense, choice, tries = frozenset(call.params), *built
        fresh = sorted({name for t in tries for name in t.written} - call.buffers.keys())
        if fresh and statistics == "task" and not buffers:
            assert call.scan is not None
            buffers = tuple(fresh)
            call = call._replace(buffers={**call.buffers, **task_buffers(call.scan.base, call.tasks, fresh)}).placed()
            continue
        if not (fresh and statistics == "shared"):
            if set(fresh) - (_of_norms(call) if engine == "loop" else set()):
                raise refuse_written(call.target.name, fresh)
            refuse_failed(call, engine, tries)
        break
    if fresh and engine not in ("auto", "aligned") and statistics == "shared":
        raise refuse_apart(engine)
    if fresh and statistics == "shared":
        choice = Choice("aligned", "all tasks are run as one batch, which writes the base's buffers")
    dense = dense | {name for t in tries for name in t.dense}
    reads = choice.engine == "loop" and any(t.reads for t in tries)  # it may do something else for other numbers
    if reads:  # so may a plain value be changed in place; one held as factors says so
        dense = dense | {name for name, value in call.params.items() if not isinstance(value, Factored)}
    layers = None
    if choice.engine == "aligned" and call.scan is not None:
        layers = layers_of(call.scan, call.places, call.params, call.rows, choice.batch_major)
    watched = [t.watch for t in tries if t.watch is not None]
    ways = next((t.ways for t in tries if t.ways is not None), None)
    sizes = engine != "auto" or bool(buffers) or any(watch.sizes for watch in watched)
    sizes = sizes or (ways.sizes if ways is not None else not watched)
    unseen = call.scan is not None and (call.scan.unseen or any(t.counts for t in tries))
    proven = layers is not None or engine != "auto" or not unseen
    if not proven and choice.engine == "aligned" and any(watch.sizes for watch in watched):
        choice = Choice("vmap", "the base reads sizes, and may change unseen, so tasks are not folded")
    kernels = frozenset(name for watch in watched for name in watch.kernels)
    is_free = proven and not (dense or buffers or reads) and not any(t.assigns or t.keeps or t.counts for t in tries)
    return Plan(choice, call.places, layers, proven, dense, buffers, sizes, reads, ways, kernels, is_free)


def _choose(
    call: Call, engine: Engine, statistics: Statistics | None, dense: frozenset[str]
) -> tuple[Choice, list[Try]]:
    """Try the call; choose its engine, or refuse the one that was asked for."""
    call = call._replace(dense=dense)
    if statistics == "shared" and call.scan is not None and norms_that_write(call.scan.base):
        return Choice("aligned", "all tasks are normalised together, as one batch"), []
    if engine == "auto":
        return _choose_freely(call)
    asked = Choice(engine, "as asked for")
    tasks = min(call.chunk_size or call.tasks, call.tasks) if engine == "aligned" else 2
    tried = try_call(call, engine, tasks, watch=engine != "loop", unhooked=False)
    if engine == "vmap" and tried.kept_by_hooks:
        raise BatchingError(
            f"A hook on {call.target.name} keeps tensors, which under `vmap` cannot be read afterwards. Hooks see what "
            'the engine runs. Pass `engine="loop"`, where they see one task after the other, or `engine="aligned"`, '
            "where they see all rows."
        )
    if tried.draws_apart and engine != "loop":
        raise BatchingError(
            f"{call.target.name} draws random numbers in `forward` that are not torch's: of Python, of numpy, or of a "
            "generator of its own. All tasks would get the same ones. Draw them by torch, or pass "
            '`engine="loop"`.'
        )
    if engine == "loop" or (engine == "vmap" and tried.error is None):
        return asked, [tried]
    alone = try_call(call, "loop", unhooked=engine != "aligned")
    convolves = engine == "aligned" and tried.watch is not None and bool(tried.watch.convolved)
    asked = replace(asked, batch_major=convolves)
    if engine == "aligned" and tried.reads and (ways := _ways_together(call, tried, alone)) is not None:
        return replace(asked, batch_major=False), [tried, replace(alone, ways=ways)]
    if engine == "aligned" and tried.result is not None and alone.result is not None and statistics != "shared":
        if not (tried.draws or alone.draws) and not _same_in_any_order(call, alone.result, tried.result):
            raise BatchingError(
                f"{call.target.name} gives other numbers when tasks are folded into the batch than task by task. The "
                "aligned engine is right only where every row of a batch is treated by itself. Pass "
                '`engine="vmap"` or `engine="loop"`.'
            )
        assert tried.watch is not None
        if tried.watch.reduces:
            raise BatchingError(
                f"{call.target.name} calls {tried.watch.reduces}, which are those of all tasks where tasks are folded "
                "into the batch. The aligned engine is right only where every row of a batch is treated by itself. "
                'Pass `engine="vmap"` or `engine="loop"`.'
            )
        if _hides_differences(tried.result):
            watched = tried.watch
            if watched.mixes or watched.sizes:  # whole numbers hide small differences
                raise BatchingError(
                    f"{call.target.name} returns whole numbers alone, and calls {watched.mixes or 'for sizes'}, so it "
                    "cannot be seen whether every row of a batch is treated by itself. The aligned engine is right "
                    'only there. Pass `engine="vmap"` or `engine="loop"`.'
                )
    return asked, [tried, alone]


def _hides_differences(result: Result) -> bool:
    """Whether a run gave whole numbers alone, which are equal where what they come of is not."""
    leaves = open_tree(result.outputs).leaves
    return not any(leaf.tensor.is_floating_point() or leaf.tensor.is_complex() for leaf in leaves)


def _same_in_any_order(call: Call, alone: Result, folded: Result) -> bool:
    """Whether folding changes nothing: not for the tasks as they are, and not for the last ones first."""
    if not _same_results(alone, folded):
        return False
    backwards = call.of_tasks(torch.arange(call.tasks - 1, -1, -1))
    tasks = min(call.chunk_size or call.tasks, call.tasks)
    other, its = try_call(backwards, "loop", unhooked=False), try_call(backwards, "aligned", tasks, unhooked=False)
    return other.result is None or (its.result is not None and _same_results(other.result, its.result))


def _same_results(alone: Result, folded: Result) -> bool:
    written = [
        sorted(((w.number, w.name, w.value) for w in its.written), key=lambda w: w[:2]) for its in (alone, folded)
    ]
    return same_outputs(alone.outputs, folded.outputs) and same_outputs(*written)


def refuse_failed(call: Call, engine: Engine, tries: list[Try]) -> None:
    """Raise in words of ours what failed with generated parameters, and does not with those of one task alone."""
    errors = {t.engine: t.error for t in tries}
    if "loop" in errors and errors["loop"] is None and engine in ("auto", "loop"):
        return
    error = errors.get("loop") or next((its for its in errors.values() if its is not None), None)
    if error is None:
        return
    first = next(t.error for t in tries if t.error is not None)
    if isinstance(first, WeightloomError) and engine != "auto":
        raise first
    if isinstance(error, WeightloomError):
        raise error
    if "loop" in errors and errors["loop"] is None:
        raise _refusal(call, engine) from first
    if runs_alone(call):
        raise BatchingError(
            f"{call.target.name} does something with a generated parameter that can be done only with one that is a "
            "leaf of its own, such as to copy it deeply, or to differentiate by it where gradients are off. A "
            "generated parameter is a result of the hypernetwork. Compute with it in `forward` as with any tensor, or "
            "do not generate it."
        ) from error


def _refusal(call: Call, engine: Engine) -> BatchingError:
    return BatchingError(
        f"{call.target.name} runs for one task, but not with `engine={engine!r}`: it does something that cannot be "
        "done for all tasks at once, such as to branch on values, to read a number from a tensor, or to write to what "
        'all tasks share. Pass `engine="loop"`, or leave the engine to "auto".'
    )


def _choose_freely(call: Call) -> tuple[Choice, list[Try]]:
    if call.scan is not None and call.scan.hooked:
        return Choice("loop", "hooks see one task after the other"), [try_call(call, "loop")]
    shown = _with_two_rows(call)
    tried = try_call(shown, "vmap", watch=True)
    assert tried.watch is not None
    if shown is not call and (tried.error is not None or tried.watch.sizes):  # one row may be treated otherwise
        again = try_call(call, "vmap", watch=True)
        if again.error is not None or tried.error is not None:
            tried = again
    if tried.draws_apart:
        return Choice("loop", "random numbers are drawn that are not torch's"), [tried, try_call(call, "loop")]
    if tried.error is not None:
        alone = try_call(call, "loop")
        if (ways := _ways_together(call, tried, alone)) is not None:
            why = "every row of a batch is treated by itself, so tasks that go one way are folded into the batch"
            return Choice("aligned", why), [replace(alone, ways=ways)]
        why = (
            "recomputes in the backward pass"
            if isinstance(tried.error, RecomputeError)
            else "does not run under `vmap`"
        )
        return Choice("loop", f"the base {why}"), [tried, alone]
    watch = tried.watch
    assert watch is not None
    convolved = None
    if watch.convolved:
        x = shown.rows[0]
        ratios = [its * len(x) / (x.numel() * x.element_size()) for its in watch.convolved]
        convolved = sum(ratios) / len(ratios), max(ratios)
    reason = f"{watch.mixes} may mix the rows of a batch" if watch.mixes else ""
    if call.buffers or call.randomness == "same" or tried.assigns or tried.keeps or call.state:
        reason = reason or "something is kept or drawn for each task"
    if tried.dense:
        reason = reason or "a parameter is changed in place"
    if tried.draws:
        reason = reason or "random numbers are drawn"
    if watch.sizes and tried.result is not None and _hides_differences(tried.result):
        reason = reason or "sizes are read, and what is returned would not show it"
    few = call
    if (at_once := Choice("aligned", "", convolved=convolved).of_size(call)).engine == "loop":
        few = call.first(2)  # all at once might not fit into memory
    elif at_once.at_once is not None:
        few = call.first(max(2, at_once.at_once))
    if not reason and not _equal_when_folded(few):
        reason = "outputs differ when tasks are folded into the batch"
    if reason:
        return Choice("vmap", f"{reason}, so tasks are not folded into it", convolved=convolved), [tried]
    why = "every row of a batch is treated by itself, so tasks are folded into the batch"
    return Choice("aligned", why, bool(watch.convolved), convolved=convolved), [tried]


def _ways_together(call: Call, tried: Try, alone: Try) -> Ways | None:
    """Ways along which tasks may be folded, of a base that does not run under ``vmap``, as where it reads numbers."""
    if call.scan is None or call.scan.unseen or call.buffers or call.state or call.randomness == "same":
        return None
    if alone.error is not None or alone.draws or alone.draws_apart or isinstance(tried.error, RecomputeError):
        return None
    if not call.rows or any(x.ndim < 2 or x.shape[1] != call.rows[0].shape[1] for x in call.rows):
        return None
    ways = Ways()
    ways.prove(call)
    return None if ways.closed else ways


def _with_two_rows(call: Call) -> Call:
    """A batch of one row is shown twice, for of one row it cannot be told what is done with it."""
    if any(x.ndim < 2 or x.shape[1] != 1 for x in call.rows):
        return call
    return call._replace(rows=[x.repeat_interleave(2, 1) for x in call.rows])


def _equal_when_folded(call: Call) -> bool:
    """Compare a few tasks with all of them folded: a last check on what watching cannot see, as the size of the batch.

    It is done with parameters moved a little, for a layer that starts at zero would hide what stands before it.
    """
    with random_states(call):
        whole = call.first(call.chunk_size or call.tasks)
        whole = whole._replace(params={name: moved(value) for name, value in whole.params.items()})
    few, folded = try_call(whole, "vmap"), try_call(whole, "aligned", whole.tasks)
    if few.result is None or folded.result is None:
        return False
    return same_outputs(few.result.outputs, folded.result.outputs)


def _of_norms(call: Call) -> set[str]:
    """Running statistics of torch's norms, which the loop writes task after task."""
    if call.scan is None:
        return set()
    names = named(call.scan).items()
    keras = {name for name, (m, is_buffer, _, _) in names if is_buffer and getattr(m, "own_statistics", False)}
    return keras | set(task_buffers(call.scan.base, 1))


def _unpacked() -> AbstractContextManager[Any]:
    """Nothing of this is seen by a checkpoint around the call, which counts what is saved for the backward pass."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
