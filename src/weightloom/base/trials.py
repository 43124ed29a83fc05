"""Trials: a few tasks run on replicas of everything that the base might change, and what was seen meanwhile.

In:   a checked call, and an engine.
Out:  what came out, what went wrong, and what `forward` wrote, read, kept and drew.
Nothing is left behind: not in the base, not in what it keeps, not in any source of random numbers.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.base.call import Call, Result, apart
from weightloom.base.engines import RUN, Engine
from weightloom.base.state import is_gone
from weightloom.base.watch_rows import WatchRows, WithoutDropout
from weightloom.base.watch_values import Guard
from weightloom.errors import BatchingError
from weightloom.forms.factored import Factored, built
from weightloom.replica import Contents, open_tree
from weightloom.replica.hot import no_type_check
from weightloom.replica.reads import reads_of
from weightloom.replica.replica import named


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
    ways: Any = None
    """Ways along which tasks may be folded, where the base reads numbers."""


def try_call(
    call: Call,
    engine: Engine,
    tasks: int = 2,
    watch: bool | WatchRows = False,
    unhooked: bool = True,
) -> Try:
    """Run a few tasks on replicas: of the base, of its buffers, of everything that it might change.

    Raises:
        BatchingError: If the base keeps tensors where they would mix tasks.
    """
    seen = Try(engine, watch=WatchRows() if watch is True else watch or None)
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
        params={name: apart(value) for name, value in few.params.items()},
        rows=[apart(x) for x in few.rows],
        extra=own,
        unhooked=unhooked,
        watch=seen.watch,
        dense=call.dense
        | {name for name, value in few.params.items() if not isinstance(value, Factored)},
        clones=[],
    ).placed()
    contents, of_hooks = Contents(mutable), Contents(hooks)
    known = [
        (scope, name, scope.get(name))
        for scope, name in (call.scan.globals if call.scan is not None else ())
    ]
    fixed = [(f"its own {name!r}", value) for name, value in shared.items()]
    fixed += [("a tensor that it keeps", value) for value in kept] + [
        ("an argument", value) for value in call.common
    ]
    guard = Guard(call.target.name, replaced, fixed, engine)
    assert few.clones is not None
    guard.clones = few.clones
    with random_states(few) as draws, WithoutDropout(), guard:
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
    changed_too = {
        name for name, clone, value in few.clones if clone._version or not torch.equal(clone, value)
    }
    seen.dense = tuple(changed_too | guard.changed)
    drawn = _random_buffers(call)
    written = [n for n, value in own.items() if value._version or not torch.equal(value, shared[n])]
    seen.written = tuple(n for n in written if n not in drawn)
    if seen.result is not None and call.scan is not None:
        modules = call.scan.modules
        names = {
            (id(m), leaf): name
            for name, (m, is_buffer, leaf, _) in named(call.scan).items()
            if is_buffer
        }
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
    return {
        n
        for n, (m, is_buffer, leaf, _) in names
        if is_buffer and getattr(m, "random_buffers", "\0") in leaf
    }


def _reads_more(call: Call) -> bool:
    """Whether the base reads something that changes by itself."""
    return call.scan.unseen if call.scan is not None else reads_of(call.target.function).volatile


@contextmanager
def random_states(call: Call) -> Iterator[Callable[[], tuple[bool, bool]]]:
    """All sources of random numbers are afterwards where they were.

    What is given says whether torch's own moved since, and whether any other did.
    """
    devices = {x.device.index for x in call.rows if x.device.type == "cuda"}
    reads_more = _reads_more(call)  # else whoever draws other numbers is not the base
    numpy = sys.modules.get("numpy") if reads_more else None
    kept = [
        (its, its.get_state()) for its in (call.scan.generators if call.scan is not None else ())
    ]
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


def runs_alone(call: Call) -> bool:
    """Whether the base runs with plain parameters of the first task."""
    if call.scan is None:
        return False
    few = call.first(1)
    with random_states(few):
        contents = Contents([*call.scan.mutable, *call.scan.of_hooks])
        try:
            own = {
                n: nn.Parameter(built(value)[0].detach().clone(), value.is_floating_point())
                for n, value in few.params.items()
            }
            buffers = {
                name: value.clone()
                for name, (_, is_buffer, _, value) in named(call.scan).items()
                if is_buffer and name not in few.buffers
            }
            one = few._replace(extra=buffers, unhooked=True, clones=[]).placed()
            one.run(
                {**own, **{n: value[0] for n, value in few.buffers.items()}},
                [apart(x)[0] for x in few.rows],
                {},
            )
        except Exception:
            return False
        finally:
            contents.restore()
    return True


def guarded(call: Call) -> Guard:
    """A guard for a real run: what all tasks share is not changed in place."""
    assert call.scan is not None
    rest = [
        (f"its own {name!r}", value)
        for name, (_, is_buffer, _, value) in named(call.scan).items()
        if not is_buffer and name not in call.params
    ]
    return Guard(
        call.target.name, {}, [*rest, *(("an argument", value) for value in call.common)], "loop"
    )


def refuse_kept(name: str, thing: Any) -> BatchingError:
    """The error for tensors that `forward` puts where those of several tasks would mix."""
    return BatchingError(
        f"`forward` of {name} puts tensors into a {type(thing).__name__} that it keeps. What one "
        "task leaves there would be read by the next. Return them, or assign them to an attribute "
        "of the module: `self.features = h`."
    )
