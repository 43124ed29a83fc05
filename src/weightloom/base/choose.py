"""Choose the engine of a call, by watching the base run once, for two tasks, on replicas.

In:   a checked call.
Out:  a plan.
Watching leaves the base, what it keeps, and every source of random numbers as they were.
"""

from dataclasses import replace

import torch

from weightloom.base.branch_paths import Ways
from weightloom.base.buffers import norms_that_write, refuse_apart, refuse_written, task_buffers
from weightloom.base.call import Call, Result
from weightloom.base.compare_runs import moved, same_outputs
from weightloom.base.engines import Engine
from weightloom.base.plan import Choice, Plan, Statistics
from weightloom.base.sequential import layers_of
from weightloom.base.trials import Try, random_states, runs_alone, try_call
from weightloom.errors import BatchingError, RecomputeError, WeightloomError
from weightloom.forms.factored import Factored
from weightloom.replica.replica import named
from weightloom.replica.tree import open_tree


def make_plan(call: Call, engine: Engine, statistics: Statistics | None) -> Plan:
    """Find out how a call runs; the base is as it was afterwards."""
    call = call.placed()
    if torch._C._functorch.maybe_current_level() is not None:  # numbers cannot be looked at
        if engine == "auto":
            return Plan(
                Choice("vmap", "inside a transform of `torch.func` nothing is watched"), call.places
            )
        return Plan(Choice(engine, "as asked for"), call.places, proven=engine != "aligned")
    if call.scan is not None and call.scan.versions and call.params:
        raise BatchingError(
            f"{call.target.name} asks in `forward` how often a tensor was changed (`_version`), as "
            "caches of derived values do. Generated values are new ones in every call, which this "
            "does not show, so a cache would go stale. Compute without the cache, or run the base "
            "by itself."
        )
    dense: frozenset[str] = frozenset()
    buffers: tuple[str, ...] = ()
    while True:
        choice, tries = _choose(call, engine, statistics, dense)
        failed = [t.error for t in tries if t.error is not None]
        if (
            failed
            and not dense
            and any(isinstance(value, Factored) for value in call.params.values())
        ):
            built = _choose(call, engine, statistics, frozenset(call.params))
            if not any(t.error is not None for t in built[1]):
                dense, choice, tries = frozenset(call.params), *built
        fresh = sorted({name for t in tries for name in t.written} - call.buffers.keys())
        if fresh and statistics == "task" and not buffers:
            assert call.scan is not None
            buffers = tuple(fresh)
            call = call._replace(
                buffers={**call.buffers, **task_buffers(call.scan.base, call.tasks, fresh)}
            ).placed()
            continue
        if not (fresh and statistics == "shared"):
            if set(fresh) - (_of_norms(call) if engine == "loop" else set()):
                raise refuse_written(call.target.name, fresh)
            refuse_failed(call, engine, tries)
        break
    if fresh and engine not in ("auto", "aligned") and statistics == "shared":
        raise refuse_apart(engine)
    if fresh and statistics == "shared":
        choice = Choice(
            "aligned", "all tasks are run as one batch, which writes the base's buffers"
        )
    dense = dense | {name for t in tries for name in t.dense}
    reads = choice.engine == "loop" and any(
        t.reads for t in tries
    )  # it may do something else for other numbers
    if reads:  # so may a plain value be changed in place; one held as factors says so
        dense = dense | {
            name for name, value in call.params.items() if not isinstance(value, Factored)
        }
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
        choice = Choice(
            "vmap", "the base reads sizes, and may change unseen, so tasks are not folded"
        )
    kernels = frozenset(name for watch in watched for name in watch.kernels)
    is_free = (
        proven
        and not (dense or buffers or reads)
        and not any(t.assigns or t.keeps or t.counts for t in tries)
    )
    return Plan(
        choice, call.places, layers, proven, dense, buffers, sizes, reads, ways, kernels, is_free
    )


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
            f"A hook on {call.target.name} keeps tensors, which under `vmap` cannot be read "
            "afterwards. Hooks see what "
            'the engine runs. Pass `engine="loop"`, where they see one task after the other, or `engine="aligned"`, '
            "where they see all rows."
        )
    if tried.draws_apart and engine != "loop":
        raise BatchingError(
            f"{call.target.name} draws random numbers in `forward` that are not torch's: of "
            "Python, of numpy, or of a generator of its own. All tasks would get the same ones. "
            "Draw them by torch, or pass "
            '`engine="loop"`.'
        )
    if engine == "loop" or (engine == "vmap" and tried.error is None):
        return asked, [tried]
    alone = try_call(call, "loop", unhooked=engine != "aligned")
    convolves = engine == "aligned" and tried.watch is not None and bool(tried.watch.convolved)
    asked = replace(asked, batch_major=convolves)
    if (
        engine == "aligned"
        and tried.reads
        and (ways := _ways_together(call, tried, alone)) is not None
    ):
        return replace(asked, batch_major=False), [tried, replace(alone, ways=ways)]
    if (
        engine == "aligned"
        and tried.result is not None
        and alone.result is not None
        and statistics != "shared"
    ):
        if not (tried.draws or alone.draws) and not _same_in_any_order(
            call, alone.result, tried.result
        ):
            raise BatchingError(
                f"{call.target.name} gives other numbers when tasks are folded into the batch than "
                "task by task. The aligned engine is right only where every row of a batch is "
                "treated by itself. Pass "
                '`engine="vmap"` or `engine="loop"`.'
            )
        assert tried.watch is not None
        if tried.watch.reduces:
            raise BatchingError(
                f"{call.target.name} calls {tried.watch.reduces}, which are those of all tasks "
                "where tasks are folded into the batch. The aligned engine is right only where "
                "every row of a batch is treated by itself. "
                'Pass `engine="vmap"` or `engine="loop"`.'
            )
        if _hides_differences(tried.result):
            watched = tried.watch
            if watched.mixes or watched.sizes:  # whole numbers hide small differences
                raise BatchingError(
                    f"{call.target.name} returns whole numbers alone, and calls "
                    f"{watched.mixes or 'for sizes'}, so it "
                    "cannot be seen whether every row of a batch is treated by itself. The aligned "
                    "engine is right "
                    'only there. Pass `engine="vmap"` or `engine="loop"`.'
                )
    return asked, [tried, alone]


def _hides_differences(result: Result) -> bool:
    """Whether a run gave whole numbers alone, which are equal where what they come of is not."""
    leaves = open_tree(result.outputs).leaves
    return not any(leaf.tensor.is_floating_point() or leaf.tensor.is_complex() for leaf in leaves)


def _same_in_any_order(call: Call, alone: Result, folded: Result) -> bool:
    """Whether folding changes nothing.

    Not for the tasks as they are, and not for the last ones first.
    """
    if not _same_results(alone, folded):
        return False
    backwards = call.of_tasks(torch.arange(call.tasks - 1, -1, -1))
    tasks = min(call.chunk_size or call.tasks, call.tasks)
    other, its = (
        try_call(backwards, "loop", unhooked=False),
        try_call(backwards, "aligned", tasks, unhooked=False),
    )
    return other.result is None or (
        its.result is not None and _same_results(other.result, its.result)
    )


def _same_results(alone: Result, folded: Result) -> bool:
    written = [
        sorted(((w.number, w.name, w.value) for w in its.written), key=lambda w: w[:2])
        for its in (alone, folded)
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
            f"{call.target.name} does something with a generated parameter that can be done only "
            "with one that is a leaf of its own, such as to copy it deeply, or to differentiate by "
            "it where gradients are off. A generated parameter is a result of the hypernetwork. "
            "Compute with it in `forward` as with any tensor, or do not generate it."
        ) from error


def _refusal(call: Call, engine: Engine) -> BatchingError:
    return BatchingError(
        f"{call.target.name} runs for one task, but not with `engine={engine!r}`: it does "
        "something that cannot be done for all tasks at once, such as to branch on values, to read "
        "a number from a tensor, or to write to what "
        'all tasks share. Pass `engine="loop"`, or leave the engine to "auto".'
    )


def _choose_freely(call: Call) -> tuple[Choice, list[Try]]:
    if call.scan is not None and call.scan.hooked:
        return Choice("loop", "hooks see one task after the other"), [try_call(call, "loop")]
    shown = _with_two_rows(call)
    tried = try_call(shown, "vmap", watch=True)
    assert tried.watch is not None
    if shown is not call and (
        tried.error is not None or tried.watch.sizes
    ):  # one row may be treated otherwise
        again = try_call(call, "vmap", watch=True)
        if again.error is not None or tried.error is not None:
            tried = again
    if tried.draws_apart:
        return Choice("loop", "random numbers are drawn that are not torch's"), [
            tried,
            try_call(call, "loop"),
        ]
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
        return Choice("vmap", f"{reason}, so tasks are not folded into it", convolved=convolved), [
            tried
        ]
    why = "every row of a batch is treated by itself, so tasks are folded into the batch"
    return Choice("aligned", why, bool(watch.convolved), convolved=convolved), [tried]


def _ways_together(call: Call, tried: Try, alone: Try) -> Ways | None:
    """Ways along which tasks may be folded, of a base that does not run under ``vmap``, as where it reads numbers."""
    if (
        call.scan is None
        or call.scan.unseen
        or call.buffers
        or call.state
        or call.randomness == "same"
    ):
        return None
    if (
        alone.error is not None
        or alone.draws
        or alone.draws_apart
        or isinstance(tried.error, RecomputeError)
    ):
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
    """Compare a few tasks with all of them folded.

    A last check on what watching cannot see, as the size of the batch.

    It is done with parameters moved a little, for a layer that starts at zero would hide what
    stands before it.
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
    keras = {
        name
        for name, (m, is_buffer, _, _) in names
        if is_buffer and getattr(m, "own_statistics", False)
    }
    return keras | set(task_buffers(call.scan.base, 1))
