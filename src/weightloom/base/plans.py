"""Which engine runs a call: chosen by watching the base run once, for two tasks, on replicas.

In:   a checked call.
Out:  a plan: the engine, why, and what else was found out; it holds as long as the base is what it was.
Watching leaves the base, what it keeps, and every source of random numbers as they were.
"""

import random
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weightloom.base.buffers import norms_that_write, refuse_apart, refuse_written, task_buffers
from weightloom.base.engines import Call, Result, run_aligned, run_loop, run_vmap
from weightloom.base.guard import Guard
from weightloom.base.hot import no_type_check
from weightloom.base.reads import reads_of
from weightloom.base.replica import Places, named
from weightloom.base.rows import WatchRows, WithoutDropout
from weightloom.base.scan import Contents
from weightloom.base.sequential import Layer, layers_of
from weightloom.base.state import is_gone
from weightloom.base.tree import open_tree
from weightloom.errors import BatchingError, RecomputeError, WeightloomError
from weightloom.forms.calls import GROUPED_BELOW
from weightloom.forms.factored import NO_SUBCLASS, Factored
from weightloom.forms.factored import built as _built

Engine = Literal["auto", "vmap", "aligned", "loop"]
Statistics = Literal["task", "shared"]
RUN = {"vmap": run_vmap, "aligned": run_aligned, "loop": run_loop}


@dataclass(frozen=True)
class Choice:
    """How a call is run, and why."""

    engine: Engine
    reason: str
    batch_major: bool = False
    """Whether the aligned engine folds so that the task changes from row to row, as grouped convolutions like it."""

    def __str__(self) -> str:
        return f"{self.engine}: {self.reason}"


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
    call = checked(call)  # in any case: a plan for other sizes says nothing of whether these fit each other
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
    dense = frozenset(call.params) if reads else dense
    layers = None
    if choice.engine == "aligned" and call.scan is not None:
        layers = layers_of(call.scan, call.places, call.params, call.rows, choice.batch_major)
    watched = [t.watch for t in tries if t.watch is not None]
    sizes = engine != "auto" or not watched or any(watch.sizes or watch.work for watch in watched) or bool(buffers)
    unseen = call.scan is not None and (call.scan.unseen or any(t.counts for t in tries))
    proven = layers is not None or engine != "auto" or not unseen
    return Plan(choice, call.places, layers, proven, dense, buffers, sizes, reads)


def guarded(call: Call) -> Guard:
    """A guard for a real run: what all tasks share is not changed in place."""
    assert call.scan is not None
    rest = [
        (f"its own {name!r}", value)
        for name, (_, is_buffer, _, value) in named(call.scan).items()
        if not is_buffer and name not in call.params
    ]
    return Guard(call.target.name, {}, [*rest, *(("an argument", value) for value in call.common)], "loop")


def _of_norms(call: Call) -> set[str]:
    """Running statistics of torch's norms, which the loop writes task after task."""
    if call.scan is None:
        return set()
    names = named(call.scan).items()
    keras = {name for name, (m, is_buffer, _, _) in names if is_buffer and hasattr(m, "random_buffers")}
    return keras | set(task_buffers(call.scan.base, 1))


@dataclass
class Try:
    """One run of a few tasks that left nothing behind, and what was seen."""

    engine: str = ""
    result: Result | None = None
    error: Exception | None = None
    watch: WatchRows | None = None
    written: tuple[str, ...] = ()
    """Buffers that were written."""
    counts: bool = False
    """Whether anything was assigned to attributes, which `forward` may follow the next time."""
    assigns: bool = False
    """Whether tensors were assigned to attributes."""
    dense: tuple[str, ...] = ()
    """Parameters that were changed in place."""
    reads: bool = False
    """Whether numbers were read from tensors."""
    draws: bool = False
    """Whether random numbers of torch were drawn."""
    draws_apart: bool = False
    """Whether others were: those of Python or numpy, or of a generator that the base keeps."""
    keeps: bool = False
    """Whether lists, dicts or objects of the base were changed."""
    kept_by_hooks: bool = False
    """Whether hooks kept tensors."""


def _try(call: Call, engine: Engine, tasks: int = 2, watch: bool = False, unhooked: bool = True) -> Try:
    """Run a few tasks on replicas: of the base, of its buffers, of everything that it might change.

    Raises:
        BatchingError: If the base keeps tensors where they would mix tasks.
    """
    seen = Try(engine, watch=WatchRows() if watch else None)
    own: dict[str, Tensor] = {}
    shared: dict[str, Tensor] = {}
    replaced: dict[int, str] = {}
    kept: list[Tensor] = []
    mutable: list[Any] = []
    hooks: list[Any] = []
    few = call.first(tasks)
    if call.scan is not None:
        for name, (_, is_buffer, _, value) in named(call.scan).items():
            if name in call.params or name in call.buffers:
                replaced[id(value)] = name
            elif is_buffer:
                own[name] = value.clone()
                shared[name] = value
            else:
                shared[name] = value
        states = [its for its in call.state.values() if not is_gone(its)]
        of_tasks = {id(leaf.tensor) for its in states for leaf in open_tree(its).leaves}
        kept = [value for value in call.scan.tensors if id(value) not in of_tasks]
        mutable, hooks = call.scan.mutable, call.scan.of_hooks
    few = few._replace(
        params={name: _apart(value) for name, value in few.params.items()},
        rows=[_apart(x) for x in few.rows],
        extra=own,
        unhooked=unhooked,
        watch=seen.watch,
        dense=call.dense | {name for name, value in few.params.items() if not isinstance(value, Factored)},
        clones=[],
    ).placed()
    contents, of_hooks = Contents(mutable), Contents(hooks)
    known = [(scope, name, scope.get(name)) for scope, name in (call.scan.globals if call.scan is not None else ())]
    fixed = [(f"its own {name!r}", value) for name, value in shared.items()]
    fixed += [("a tensor that it keeps", value) for value in kept] + [("an argument", value) for value in call.common]
    guard = Guard(call.target.name, replaced, fixed, engine)
    assert few.clones is not None
    guard.clones = few.clones
    with _random_states(few) as draws, WithoutDropout(), guard:
        try:
            seen.result = RUN[engine](few)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            seen.error = error
        else:
            seen.error = guard.refused
        finally:
            seen.reads = guard.reads  # before anything is compared here
            seen.draws, seen.draws_apart = draws()
            changed = contents.changed()
            seen.kept_by_hooks = any(with_tensors for _, with_tensors in of_hooks.changed())
            contents.restore()
            of_hooks.restore()
            for scope, name, before in known:
                if scope.get(name) is not before:
                    scope[name] = before
    seen.keeps = bool(changed)
    for thing, with_tensors in changed:
        if with_tensors:
            raise refuse_kept(call.target.name, thing)
    assert few.clones is not None
    changed_too = {name for name, clone, value in few.clones if clone._version or not torch.equal(clone, value)}
    seen.dense = tuple(changed_too | guard.changed)
    drawn = _random_buffers(call)
    written = [n for n, value in own.items() if value._version or not torch.equal(value, shared[n])]
    seen.written = tuple(n for n in written if n not in drawn)
    if seen.result is not None and call.scan is not None:
        modules = call.scan.modules
        names = {(id(m), leaf): name for name, (m, is_buffer, leaf, _) in named(call.scan).items() if is_buffer}
        for its in seen.result.written:
            buffer = names.get((id(modules[its.number]), its.name))
            if buffer is None:
                seen.counts = True
                seen.assigns = seen.assigns or bool(open_tree(its.value).leaves)
            elif its.of_tasks:
                seen.written = (*seen.written, buffer)
    return seen


def _random_buffers(call: Call) -> set[str]:
    """Buffers that are the state of random numbers."""
    if call.scan is None:
        return set()
    names = named(call.scan).items()
    return {n for n, (m, is_buffer, leaf, _) in names if is_buffer and getattr(m, "random_buffers", "\0") in leaf}


def _reads_more(call: Call) -> bool:
    """Whether the base reads something that changes by itself."""
    return call.scan.unseen if call.scan is not None else reads_of(call.target.function).volatile


def _unpacked() -> AbstractContextManager[Any]:
    """Nothing of this is seen by a checkpoint around the call, which counts what is saved for the backward pass."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


@contextmanager
def _random_states(call: Call) -> Iterator[Callable[[], tuple[bool, bool]]]:
    """All sources of random numbers are afterwards where they were.

    What is given says whether torch's own moved since, and whether any other did.
    """
    devices = {x.device.index for x in call.rows if x.device.type == "cuda"}
    reads_more = _reads_more(call)  # else whoever draws other numbers is not the base
    numpy = sys.modules.get("numpy") if reads_more else None
    kept = [(its, its.get_state()) for its in (call.scan.generators if call.scan is not None else ())]
    python = random.getstate() if reads_more else None
    arrays: Any = numpy.random.get_state() if numpy is not None else None
    before = torch.get_rng_state()

    @no_type_check
    def moved() -> tuple[bool, bool]:
        others = not all(torch.equal(its.get_state(), state) for its, state in kept)
        others = others or (python is not None and random.getstate() != python)
        if numpy is not None:
            now = numpy.random.get_state()
            others = others or now[2] != arrays[2] or bool((now[1] != arrays[1]).any())
        return not torch.equal(before, torch.get_rng_state()), others

    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield moved
    finally:
        if python is not None:
            random.setstate(python)
        for its, state in kept:
            its.set_state(state)
        if numpy is not None:
            numpy.random.set_state(arrays)


def _apart(value: Any) -> Any:
    """The same numbers, outside of the graph."""
    if isinstance(value, Factored):
        return value.map_all(_apart)
    copied = value.detach().clone()
    return copied.requires_grad_() if value.requires_grad and torch.is_grad_enabled() else copied


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
    tried = _try(call, engine, call.tasks if engine == "aligned" else 2, watch=engine != "loop", unhooked=False)
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
    alone = _try(call, "loop", unhooked=engine != "aligned")
    if engine == "aligned" and tried.result is not None and alone.result is not None and statistics != "shared":
        if not (tried.draws or alone.draws) and not _same_in_any_order(call, alone.result, tried.result):
            raise BatchingError(
                f"{call.target.name} gives other numbers when tasks are folded into the batch than task by task. The "
                "aligned engine is right only where every row of a batch is treated by itself. Pass "
                '`engine="vmap"` or `engine="loop"`.'
            )
        if tried.watch is not None and tried.watch.reduces:
            raise BatchingError(
                f"{call.target.name} calls {tried.watch.reduces}, which are those of all tasks where tasks are folded "
                "into the batch. The aligned engine is right only where every row of a batch is treated by itself. "
                'Pass `engine="vmap"` or `engine="loop"`.'
            )
        leaves = open_tree(tried.result.outputs).leaves
        if not any(leaf.tensor.is_floating_point() or leaf.tensor.is_complex() for leaf in leaves):
            watched = _try(call, "aligned", call.tasks, watch=True).watch
            assert watched is not None
            if watched.mixes or watched.sizes:  # whole numbers hide small differences
                raise BatchingError(
                    f"{call.target.name} returns whole numbers alone, and calls {watched.mixes or 'for sizes'}, so it "
                    "cannot be seen whether every row of a batch is treated by itself. The aligned engine is right "
                    'only there. Pass `engine="vmap"` or `engine="loop"`.'
                )
    return asked, [tried, alone]


def _same_in_any_order(call: Call, alone: Result, folded: Result) -> bool:
    """Whether folding changes nothing: not for the tasks as they are, and not for the last ones first."""
    if not _same_results(alone, folded):
        return False
    backwards = call.backwards()
    other, its = _try(backwards, "loop", unhooked=False), _try(backwards, "aligned", call.tasks, unhooked=False)
    return other.result is None or (its.result is not None and _same_results(other.result, its.result))


def _same_results(alone: Result, folded: Result) -> bool:
    written = [
        sorted(((w.number, w.name, w.value) for w in its.written), key=lambda w: w[:2]) for its in (alone, folded)
    ]
    return _same_outputs(alone.outputs, folded.outputs) and _same_outputs(*written)


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
    if _runs_alone(call):
        raise BatchingError(
            f"{call.target.name} does something with a generated parameter that can be done only with one that is a "
            "leaf of its own, such as to copy it deeply, to ask whether it is an `nn.Parameter`, or to differentiate "
            "by it where gradients are off. A generated parameter is a result of the hypernetwork. Compute with it in "
            "`forward` as with any tensor, or do not generate it."
        ) from error


def _runs_alone(call: Call) -> bool:
    """Whether the base runs with plain parameters of the first task."""
    if call.scan is None:
        return False
    few = call.first(1)
    with _random_states(few):
        contents = Contents([*call.scan.mutable, *call.scan.of_hooks])
        try:
            own = {
                n: nn.Parameter(_built(value)[0].detach().clone(), value.is_floating_point())
                for n, value in few.params.items()
            }
            buffers = {
                name: value.clone()
                for name, (_, is_buffer, _, value) in named(call.scan).items()
                if is_buffer and name not in few.buffers
            }
            one = few._replace(extra=buffers, unhooked=True, clones=[]).placed()
            one.run({**own, **{n: value[0] for n, value in few.buffers.items()}}, [_apart(x)[0] for x in few.rows], {})
        except Exception:
            return False
        finally:
            contents.restore()
    return True


def _refusal(call: Call, engine: Engine) -> BatchingError:
    return BatchingError(
        f"{call.target.name} runs for one task, but not with `engine={engine!r}`: it does something that cannot be "
        "done for all tasks at once, such as to branch on values, to read a number from a tensor, or to write to what "
        'all tasks share. Pass `engine="loop"`, or leave the engine to "auto".'
    )


def _choose_freely(call: Call) -> tuple[Choice, list[Try]]:
    if call.scan is not None and call.scan.hooked:
        return Choice("loop", "hooks see one task after the other"), [_try(call, "loop")]
    shown = _with_two_rows(call)
    tried = _try(shown, "vmap", watch=True)
    assert tried.watch is not None
    if shown is not call and (tried.error is not None or tried.watch.sizes):  # one row may be treated otherwise
        again = _try(call, "vmap", watch=True)
        if again.error is not None or tried.error is not None:
            tried = again
    if tried.draws_apart:
        return Choice("loop", "random numbers are drawn that are not torch's"), [tried, _try(call, "loop")]
    if tried.error is not None:
        alone = _try(call, "loop")
        why = (
            "recomputes in the backward pass"
            if isinstance(tried.error, RecomputeError)
            else "does not run under `vmap`"
        )
        return Choice("loop", f"the base {why}"), [tried, alone]
    watch = tried.watch
    assert watch is not None
    if watch.work >= GROUPED_BELOW and call.rows and call.rows[0].device.type == "cpu":
        return Choice("loop", "large generated kernels convolve quickest one task after the other"), [tried]
    reason = f"{watch.mixes} may mix the rows of a batch" if watch.mixes else ""
    if call.buffers or call.randomness == "same" or tried.assigns or tried.keeps or call.state:
        reason = reason or "something is kept or drawn for each task"
    if tried.dense:
        reason = reason or "a parameter is changed in place"
    if tried.draws:
        reason = reason or "random numbers are drawn"
    if not reason and not _equal_when_folded(call):
        reason = "outputs differ when tasks are folded into the batch"
    if reason:
        return Choice("vmap", f"{reason}, so tasks are not folded into it"), [tried]
    why = "every row of a batch is treated by itself, so tasks are folded into the batch"
    return Choice("aligned", why, batch_major=watch.work > 0), [tried]


def _with_two_rows(call: Call) -> Call:
    """A batch of one row is shown twice, for of one row it cannot be told what is done with it."""
    if any(x.ndim < 2 or x.shape[1] != 1 for x in call.rows):
        return call
    return call._replace(rows=[x.repeat_interleave(2, 1) for x in call.rows])


def _equal_when_folded(call: Call) -> bool:
    """Compare a few tasks with all of them folded: a last check on what watching cannot see, as the size of the batch.

    It is done with parameters moved a little, for a layer that starts at zero would hide what stands before it.
    """
    with _random_states(call):
        whole = call.first(call.chunk_size or call.tasks)
        whole = whole._replace(params={name: _moved(value) for name, value in whole.params.items()})
    few, folded = _try(whole, "vmap"), _try(whole, "aligned", whole.tasks)
    if few.result is None or folded.result is None:
        return False
    return _same_outputs(few.result.outputs, folded.result.outputs)


def _moved(value: Tensor) -> Tensor:
    """A generic value near this one."""
    if isinstance(value, Factored):
        return value.map(_moved)
    value = value.detach()
    return value + torch.randn_like(value) * (0.1 * value.abs().square().mean().sqrt() + 0.01)


def _same_outputs(few: Any, whole: Any) -> bool:
    few, whole = open_tree(few), open_tree(whole)
    return few.key == whole.key and all(
        _close(a.tensor.detach(), b.tensor[: len(a.tensor)].detach())
        for a, b in zip(few.leaves, whole.leaves, strict=True)
    )


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point() and not a.is_complex():
        return torch.equal(a, b)
    kind = a.device.type
    halved = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    tolerance = 0.1 if halved or a.dtype != b.dtype else min(0.1, 100 * torch.finfo(a.dtype).eps ** 0.75)
    scale = a.abs().max() if a.numel() else 0.0
    return bool(torch.allclose(a, b.to(a.dtype), rtol=tolerance, atol=tolerance * float(scale) + 1e-30, equal_nan=True))


def refuse_kept(name: str, thing: Any) -> BatchingError:
    """The error for tensors that `forward` puts where those of several tasks would mix."""
    return BatchingError(
        f"`forward` of {name} puts tensors into a {type(thing).__name__} that it keeps. What one task leaves there "
        "would be read by the next. Return them, or assign them to an attribute of the module: `self.features = h`."
    )
