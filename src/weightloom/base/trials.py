"""Trials: run a few tasks on replicas and copies, and record everything that `forward` did.

In:   a checked call, and an engine.
Out:  the result or the error, and findings: buffers written, numbers read, objects changed.
The base, its objects and all sources of random numbers are as before afterwards.
"""

import random
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weightloom.base.call import Call, Result, apart
from weightloom.base.engines import RUN, Engine
from weightloom.base.state import is_gone
from weightloom.base.watch_rows import WatchRows, WithoutDropout
from weightloom.base.watch_values import Guard
from weightloom.errors import BatchingError
from weightloom.forms.factored import Factored, built
from weightloom.replica import Contents, Scan, open_tree
from weightloom.replica.hot import no_type_check
from weightloom.replica.reads import reads_of
from weightloom.replica.replica import named


@dataclass
class Try:
    """Result of a trial run of a few tasks, and the findings about it."""

    engine: str = ""
    result: Result | None = None
    error: Exception | None = None
    watch: WatchRows | None = None
    written: tuple[str, ...] = ()
    """Buffers that were written, except for states of random numbers."""
    counts: bool = False
    """True if attributes were assigned, on which the next `forward` may depend."""
    assigns: bool = False
    """True if tensors were assigned to attributes."""
    dense: tuple[str, ...] = ()
    """Parameters that were changed in place."""
    reads: bool = False
    """True if numbers were read from tensors."""
    draws: bool = False
    """True if torch's global random numbers were drawn."""
    draws_apart: bool = False
    """True if others were drawn: from Python, numpy, or a generator that the base keeps."""
    keeps: bool = False
    """True if lists, dicts or objects of the base were changed."""
    kept_by_hooks: bool = False
    """True if hooks kept tensors."""
    ways: Any = None
    """Control-flow paths along which tasks may be folded, of a base that reads numbers."""


def try_call(
    call: Call,
    engine: Engine,
    tasks: int = 2,
    watch: bool | WatchRows = False,
    unhooked: bool = True,
) -> Try:
    """Run the first tasks of a call on replicas, and restore everything that the run changed.

    Args:
        call: A checked call.
        engine: Engine to run by.
        tasks: Number of tasks to run.
        watch: True, or an own `WatchRows`, to watch whether rows mix.
        unhooked: True to leave out the hooks of users.

    Returns:
        The result or the error of the run, and the findings.

    Raises:
        BatchingError: If `forward` puts tensors into an object where those of tasks would mix.
        torch.OutOfMemoryError: If the run needs too much memory.
    """
    seen = Try(engine, watch=WatchRows() if watch is True else watch or None)
    own = _own_tensors(call)
    clones: list[tuple[str, Tensor, Tensor]] = []
    few = _copied(call, tasks, unhooked)._replace(extra=own.copies, watch=seen.watch, clones=clones)
    guard = Guard(call.target.name, own.replaced, own.named(call), engine)
    guard.clones = clones
    few, objects = few.placed(), _Objects(call)
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
            seen.reads = guard.reads  # before the comparisons below read numbers
            seen.draws, seen.draws_apart = draws()
            changed = objects.changed()
            seen.kept_by_hooks = objects.kept_by_hooks()
            objects.restore()
    seen.keeps = bool(changed)
    for thing, with_tensors in changed:
        if with_tensors:
            raise refuse_kept(call.target.name, thing)
    seen.dense = tuple(guard.changed | {name for name, *both in clones if _was_written(*both)})
    seen.written = own.written(_random_buffers(call))
    _note_assigned(seen, call)
    return seen


class _OwnTensors(NamedTuple):
    """Tensors of a base in a trial."""

    replaced: dict[int, str]
    """Names of own values that generated values or buffers per task replace, by id."""
    shared: dict[str, Tensor]
    """All other parameters and buffers."""
    copies: dict[str, Tensor]
    """Copies of the buffers in ``shared``, with which the trial runs."""
    kept: list[Tensor]
    """Tensors in attributes that are neither, and have no tasks axis."""

    def named(self, call: Call) -> list[tuple[str, Tensor]]:
        """Tensors that all tasks share, with a description for messages."""
        return [
            *((f"its own {name!r}", value) for name, value in self.shared.items()),
            *(("a tensor that it keeps", value) for value in self.kept),
            *(("an argument", value) for value in call.common),
        ]

    def written(self, but: Collection[str]) -> tuple[str, ...]:
        """Names of the buffers whose copies were written, without those in ``but``."""
        return tuple(
            name
            for name, copy in self.copies.items()
            if _was_written(copy, self.shared[name]) and name not in but
        )


def _own_tensors(call: Call) -> _OwnTensors:
    if call.scan is None:
        return _OwnTensors({}, {}, {}, [])
    own = _OwnTensors({}, {}, {}, _kept_tensors(call, call.scan))
    for name, (_, is_buffer, _, value) in named(call.scan).items():
        if name in call.params or name in call.buffers:
            own.replaced[id(value)] = name
            continue
        own.shared[name] = value
        if is_buffer:
            own.copies[name] = value.clone()
    return own


def _kept_tensors(call: Call, scan: Scan) -> list[Tensor]:
    states = [its for its in call.state.values() if not is_gone(its)]
    of_tasks = {id(leaf.tensor) for its in states for leaf in open_tree(its).leaves}
    return [value for value in scan.tensors if id(value) not in of_tasks]


def _copied(call: Call, tasks: int, unhooked: bool) -> Call:
    """The first tasks of a call, with copies of its tensors."""
    few = call.first(tasks)
    built_ones = {name for name, value in few.params.items() if not isinstance(value, Factored)}
    return few._replace(
        params={name: apart(value) for name, value in few.params.items()},
        rows=[apart(x) for x in few.rows],
        unhooked=unhooked,
        dense=call.dense | built_ones,
    )


def _was_written(copy: Tensor, original: Tensor) -> bool:
    """True if a copy was changed in place; an inference tensor counts no writes."""
    counted = not copy.is_inference() and bool(copy._version)
    return counted or not torch.equal(copy, original)


class _Objects:
    """Objects and globals that a base may change, to compare and restore."""

    def __init__(self, call: Call) -> None:
        scan = call.scan
        self._of_base = Contents(scan.mutable if scan is not None else [])
        self._of_hooks = Contents(scan.of_hooks if scan is not None else [])
        looked_up = scan.globals if scan is not None else []
        self._globals = [(scope, name, scope.get(name)) for scope, name in looked_up]

    def changed(self) -> list[tuple[Any, bool]]:
        """Objects of the base that changed; True beside each that holds new tensors."""
        return self._of_base.changed()

    def kept_by_hooks(self) -> bool:
        """True if objects of hooks hold new tensors."""
        return any(with_tensors for _, with_tensors in self._of_hooks.changed())

    def restore(self) -> None:
        """Undo all changes."""
        self._of_base.restore()
        self._of_hooks.restore()
        for scope, name, before in self._globals:
            if scope.get(name) is not before:
                scope[name] = before


def _note_assigned(seen: Try, call: Call) -> None:
    """Note the attributes that `forward` assigned: buffers per task, or others."""
    if seen.result is None or call.scan is None:
        return
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


def _random_buffers(call: Call) -> set[str]:
    """Names of buffers that hold the state of random numbers."""
    if call.scan is None:
        return set()
    names = named(call.scan).items()
    return {
        n
        for n, (m, is_buffer, leaf, _) in names
        if is_buffer and getattr(m, "random_buffers", "\0") in leaf
    }


def _reads_more(call: Call) -> bool:
    """True if the base reads values that change by themselves, such as a clock."""
    return call.scan.unseen if call.scan is not None else reads_of(call.target.function).volatile


class _Source(NamedTuple):
    """Source of random numbers other than torch's global ones."""

    moved: Callable[[], bool]
    """True if numbers were drawn since."""
    restore: Callable[[], object]
    """Undo the draws."""


@contextmanager
def random_states(call: Call) -> Iterator[Callable[[], tuple[bool, bool]]]:
    """Restore the states of all random numbers at the end of the block.

    Torch's global ones, the generators that the base keeps, and, if the base reads values that
    change by themselves, those of Python and numpy.

    Yields:
        A function that returns two booleans: True if torch's global random numbers were drawn in
        the block, and True if any others were.
    """
    devices = {x.device.index for x in call.rows if x.device.type == "cuda"}
    others = _other_sources(call)
    before = torch.get_rng_state()

    @no_type_check
    def moved() -> tuple[bool, bool]:
        return not torch.equal(before, torch.get_rng_state()), any(its.moved() for its in others)

    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield moved
    finally:
        for its in others:
            its.restore()


def _other_sources(call: Call) -> list[_Source]:
    kept = call.scan.generators if call.scan is not None else []
    sources = [_of_generator(generator) for generator in kept]
    if _reads_more(call):  # else only other code can draw from these
        sources.append(_of_python())
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            sources.append(_of_numpy(numpy))
    return sources


def _of_generator(generator: torch.Generator) -> _Source:
    state = generator.get_state()
    return _Source(
        lambda: not torch.equal(generator.get_state(), state),
        lambda: generator.set_state(state),
    )


def _of_python() -> _Source:
    state = random.getstate()
    return _Source(lambda: random.getstate() != state, lambda: random.setstate(state))


def _of_numpy(numpy: Any) -> _Source:
    state = numpy.random.get_state()

    @no_type_check
    def moved() -> bool:
        now = numpy.random.get_state()
        return now[2] != state[2] or bool((now[1] != state[1]).any())

    return _Source(moved, lambda: numpy.random.set_state(state))


def runs_alone(call: Call) -> bool:
    """True if the base runs for one task with its generated parameters as leaf parameters."""
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
    """Guard for a run in the loop: refuses to change in place a tensor that all tasks share."""
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
    """Error for tensors that `forward` puts into an object where those of tasks would mix."""
    return BatchingError(
        f"`forward` of {name} puts tensors into a {type(thing).__name__} that it keeps. The "
        "next task would read the tensors of the last one. Return them, or assign them to an "
        "attribute of the module: `self.features = h`."
    )
