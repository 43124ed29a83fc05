"""Choose the engine of a call, by watching the base run once, for two tasks, on replicas.

In:   a checked call.
Out:  a plan.
Watching changes neither the base, nor its buffers and attributes, nor the state of any random
number generator.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weightloom.base.branch_paths import Ways
from weightloom.base.buffers import norms_that_write, refuse_apart, refuse_written, task_buffers
from weightloom.base.call import Call, Result
from weightloom.base.compare_runs import moved, ran_alike, same_outputs
from weightloom.base.engines import Engine
from weightloom.base.plan import Choice, Plan, Statistics
from weightloom.base.sequential import Layer, layers_of
from weightloom.base.trials import Try, random_states, runs_alone, try_call
from weightloom.base.watch_rows import WatchRows
from weightloom.errors import BatchingError, RecomputeError, WeightloomError
from weightloom.forms.factored import Factored
from weightloom.replica.replica import named
from weightloom.replica.tree import open_tree

AS_ASKED = "as asked for"
BY_ROWS = "every row of a batch is treated by itself"


def make_plan(call: Call, engine: Engine, statistics: Statistics | None) -> Plan:
    """Choose how a call runs; the base is left unchanged.

    Args:
        call: A checked call.
        engine: The engine asked for, or ``"auto"``.
        statistics: Normalisation in train mode: per ``"task"``, or ``"shared"`` by all tasks.

    Raises:
        BatchingError: If the base cannot be run for several tasks, or not by this engine.
        ConfigError: If ``statistics="shared"`` is passed with an engine that separates tasks.
    """
    call = call.placed()
    if torch._C._functorch.maybe_current_level() is not None:  # values are hidden: no watching
        return _plan_unwatched(call, engine)
    _refuse_caches(call)
    found = _find(call, engine, statistics)
    if found.written and statistics == "task":
        assert call.scan is not None
        buffers = tuple(found.written)
        of_tasks = task_buffers(call.scan.base, call.tasks, buffers)
        call = call._replace(buffers={**call.buffers, **of_tasks}).placed()
        found = replace(_find(call, engine, statistics, found.dense), buffers=buffers)
    if found.written and statistics == "shared":
        if engine not in ("auto", "aligned"):
            raise refuse_apart(engine)
        why = "all tasks are run as one batch, which writes the base's buffers"
        found.choice = Choice("aligned", why)
    else:
        if set(found.written) - (_of_norms(call) if engine == "loop" else set()):
            raise refuse_written(call.target.name, found.written)
        refuse_failed(call, engine, found.tries)
    return _plan(call, found)


def _plan_unwatched(call: Call, engine: Engine) -> Plan:
    """Plan of a call inside a transform of `torch.func`."""
    if engine == "auto":
        why = "inside a transform of `torch.func` the base is not watched"
        return Plan(Choice("vmap", why), call.places)
    return Plan(Choice(engine, AS_ASKED), call.places, proven=engine != "aligned")


def _refuse_caches(call: Call) -> None:
    """Raise if the base asks for tensor versions, as a cache of derived values does."""
    if call.scan is not None and call.scan.versions and call.params:
        raise BatchingError(
            f"{call.target.name} asks in `forward` how often a tensor was changed (`_version`), as "
            "caches of derived values do. Generated values are new ones in every call, which this "
            "does not show, so a cache would go stale. Compute without the cache, or run the base "
            "by itself."
        )


@dataclass
class _Findings:
    """Outcome of the tries of one call."""

    engine: Engine
    """The engine asked for, or ``"auto"``."""
    choice: Choice
    tries: list[Try]
    dense: frozenset[str]
    """Parameters that were built and copied in these tries."""
    written: list[str]
    """Names of the base's buffers that `forward` writes, except those given per task."""
    buffers: tuple[str, ...] = ()
    """Names of the buffers that were given per task because `forward` writes them."""

    @property
    def watches(self) -> list[WatchRows]:
        """Watches of the tries that had one."""
        return [t.watch for t in self.tries if t.watch is not None]

    @property
    def ways(self) -> Ways | None:
        """Paths along which tasks may be folded, of a base that reads numbers."""
        return next((t.ways for t in self.tries if t.ways is not None), None)

    @property
    def kernels(self) -> frozenset[str]:
        """Names of generated kernels, held as factors, that are quicker built."""
        return frozenset(name for watch in self.watches for name in watch.kernels)

    @property
    def sizes(self) -> bool:
        """True if the base compared sizes in a watched try."""
        return any(watch.sizes for watch in self.watches)

    @property
    def reads(self) -> bool:
        """True if the loop was chosen and the base reads numbers, on which it may branch."""
        return self.choice.engine == "loop" and any(t.reads for t in self.tries)

    @property
    def may_change(self) -> bool:
        """True if the base assigns attributes, keeps values or counts calls."""
        return any(t.assigns or t.keeps or t.counts for t in self.tries)

    @property
    def failed(self) -> bool:
        """True if a try raised an error."""
        return any(t.error is not None for t in self.tries)


def _find(
    call: Call,
    engine: Engine,
    statistics: Statistics | None,
    dense: frozenset[str] = frozenset(),
) -> _Findings:
    """Choose an engine by tries; if one fails on factors, again with every parameter built."""
    found = _findings(call, engine, statistics, dense)
    factored = any(isinstance(value, Factored) for value in call.params.values())
    if found.failed and factored and not dense:
        built = _findings(call, engine, statistics, frozenset(call.params))
        if not built.failed:
            return built
    return found


def _findings(
    call: Call, engine: Engine, statistics: Statistics | None, dense: frozenset[str]
) -> _Findings:
    choice, tries = _choose(call._replace(dense=dense), engine, statistics)
    written = {name for t in tries for name in t.written} - call.buffers.keys()
    return _Findings(engine, choice, tries, dense, sorted(written))


def _plan(call: Call, found: _Findings) -> Plan:
    """Put a plan together from the findings."""
    choice, reads, buffers = found.choice, found.reads, found.buffers
    dense = _changed_in_place(call, found)
    layers = _plain_layers(call, choice)
    proven = layers is not None or _is_proven(call, found)
    if not proven and choice.engine == "aligned" and found.sizes:
        why = "the base reads sizes, and may change unseen, so tasks are not folded"
        choice = Choice("vmap", why)
    return Plan(
        choice,
        call.places,
        layers=layers,
        proven=proven,
        dense=dense,
        buffers=buffers,
        sizes=_depends_on_sizes(found),
        reads=reads,
        ways=found.ways,
        kernels=found.kernels,
        is_free=proven and not (dense or buffers or reads or found.may_change),
    )


def _changed_in_place(call: Call, found: _Findings) -> frozenset[str]:
    """Names of the parameters that the base changes in place, or may change on another branch."""
    dense = found.dense | {name for t in found.tries for name in t.dense}
    if not found.reads:
        return dense
    # a change of a value held as factors raises an error, so only plain ones can go unnoticed
    return dense | {name for name, value in call.params.items() if not isinstance(value, Factored)}


def _plain_layers(call: Call, choice: Choice) -> list[Layer] | None:
    """Layers of a base that is a plain sequence of them, for the aligned engine."""
    if choice.engine != "aligned" or call.scan is None:
        return None
    return layers_of(call.scan, call.places, call.params, call.rows, choice.batch_major)


def _depends_on_sizes(found: _Findings) -> bool:
    """Return True if the findings hold for these input sizes only."""
    if found.engine != "auto" or found.buffers or found.sizes:
        return True
    return found.ways.sizes if found.ways is not None else not found.watches


def _is_proven(call: Call, found: _Findings) -> bool:
    """Return False for an engine chosen freely for a base that may change unseen between calls."""
    if found.engine != "auto" or call.scan is None:
        return True
    return not (call.scan.unseen or any(t.counts for t in found.tries))


def _choose(call: Call, engine: Engine, statistics: Statistics | None) -> tuple[Choice, list[Try]]:
    """Try the call; choose its engine, or refuse the one asked for."""
    if statistics == "shared" and call.scan is not None and norms_that_write(call.scan.base):
        return Choice("aligned", "all tasks are normalised together, as one batch"), []
    if engine == "auto":
        return _choose_freely(call)
    tasks = _tasks_folded(call) if engine == "aligned" else 2
    tried = try_call(call, engine, tasks, watch=engine != "loop", unhooked=False)
    _refuse_hidden(call, engine, tried)
    if engine == "loop" or (engine == "vmap" and tried.error is None):
        return Choice(engine, AS_ASKED), [tried]
    alone = try_call(call, "loop", unhooked=engine != "aligned")
    if engine == "vmap":
        return Choice(engine, AS_ASKED), [tried, alone]
    return _choose_aligned(call, statistics, tried, alone)


def _refuse_hidden(call: Call, engine: Engine, tried: Try) -> None:
    """Raise if tensors kept by hooks, or foreign random numbers, would be wrong with an engine."""
    if engine == "vmap" and tried.kept_by_hooks:
        raise BatchingError(
            f"A hook on {call.target.name} keeps tensors, which cannot be read after a run under "
            '`vmap`. Hooks see the tensors of the engine. Pass `engine="loop"`, where they see one '
            'task after the other, or `engine="aligned"`, where they see all rows.'
        )
    if tried.draws_apart and engine != "loop":
        raise BatchingError(
            f"{call.target.name} draws random numbers in `forward` that are not torch's: of "
            "Python, of numpy, or of a generator that the base keeps. All tasks would get the same "
            'ones. Draw them by torch, or pass `engine="loop"`.'
        )


def _choose_aligned(
    call: Call, statistics: Statistics | None, tried: Try, alone: Try
) -> tuple[Choice, list[Try]]:
    """Choose the aligned engine as asked for; raise if folding tasks gives wrong results."""
    if tried.reads and (ways := _ways_together(call, tried, alone)) is not None:
        return Choice("aligned", AS_ASKED), [tried, replace(alone, ways=ways)]
    if statistics != "shared" and (problem := _problem_of_folding(call, tried, alone)):
        raise BatchingError(
            f"{call.target.name} {problem}. The aligned engine is right only where every row of a "
            'batch is treated by itself. Pass `engine="vmap"` or `engine="loop"`.'
        )
    assert tried.watch is not None
    return Choice("aligned", AS_ASKED, bool(tried.watch.convolved)), [tried, alone]


def _problem_of_folding(call: Call, tried: Try, alone: Try) -> str:
    """Predicate of a base for which folding tasks is wrong, for a message; else an empty text."""
    if tried.result is None or alone.result is None:
        return ""
    if _differ(call, tried, alone):
        return "gives other numbers when tasks are folded into the batch than task by task"
    assert tried.watch is not None
    if tried.watch.reduces:
        return (
            f"calls {tried.watch.reduces}, which are those of all tasks where tasks are folded "
            "into the batch"
        )
    called = tried.watch.mixes or ("for sizes" if tried.watch.sizes else "")
    if called and _hides_differences(tried.result):
        return (
            f"returns whole numbers alone, and calls {called}, so it cannot be seen whether every "
            "row of a batch is treated by itself"
        )
    return ""


def _differ(call: Call, tried: Try, alone: Try) -> bool:
    """Return True if a folded run and the loop give other numbers, where none are random."""
    if tried.draws or alone.draws:
        return False
    assert tried.result is not None and alone.result is not None
    return not _same_in_any_order(call, alone.result, tried.result)


def _hides_differences(result: Result) -> bool:
    """Return True for outputs of whole numbers alone, which may be equal by rounding."""
    leaves = open_tree(result.outputs).leaves
    return not any(leaf.tensor.is_floating_point() or leaf.tensor.is_complex() for leaf in leaves)


def _same_in_any_order(call: Call, alone: Result, folded: Result) -> bool:
    """Compare a folded run with the loop, for the tasks as given and in reverse order."""
    if not _same_results(alone, folded):
        return False
    backwards = call.of_tasks(torch.arange(call.tasks - 1, -1, -1))
    other = try_call(backwards, "loop", unhooked=False)
    its = try_call(backwards, "aligned", _tasks_folded(call), unhooked=False)
    return other.result is None or (
        its.result is not None and _same_results(other.result, its.result)
    )


def _tasks_folded(call: Call) -> int:
    """Count the tasks that the aligned engine folds into one batch."""
    return min(call.chunk_size or call.tasks, call.tasks)


def _same_results(alone: Result, folded: Result) -> bool:
    """Compare outputs and assigned attributes."""
    written = [
        sorted(((w.number, w.name, w.value) for w in its.written), key=lambda w: w[:2])
        for its in (alone, folded)
    ]
    return same_outputs(alone.outputs, folded.outputs) and same_outputs(*written)


def refuse_failed(call: Call, engine: Engine, tries: list[Try]) -> None:
    """Raise if the chosen engine failed on generated parameters.

    No error is raised if all tries ran, or if the loop ran and may be chosen.

    Raises:
        BatchingError: If one task alone runs, or the base runs on its own parameters.
        WeightloomError: The error of a try, if it is one of this library.
    """
    errors = {t.engine: t.error for t in tries}
    failed = [error for error in errors.values() if error is not None]
    if not failed:
        return
    in_loop = errors.get("loop", failed[0])
    if in_loop is None and engine in ("auto", "loop"):
        return
    _refuse(call, engine, failed[0], in_loop)


def _refuse(call: Call, engine: Engine, first: Exception, in_loop: Exception | None) -> None:
    """Raise an error of this library for failed tries, if the generated parameters are the cause.

    Args:
        call: The call.
        engine: The engine asked for.
        first: Error of the first try that failed.
        in_loop: Error of the loop; ``first`` if the loop was not tried, None if it ran.
    """
    if isinstance(first, WeightloomError) and engine != "auto":
        raise first
    if in_loop is None:
        raise BatchingError(
            f"{call.target.name} runs for one task, but not with `engine={engine!r}`. Operations "
            "that cannot run for all tasks at once are, for example, a branch on values, a number "
            "read from a tensor, or a write to a value that all tasks share. Pass "
            '`engine="loop"`, or leave the engine to "auto".'
        ) from first
    if isinstance(in_loop, WeightloomError):
        raise in_loop
    if runs_alone(call):
        raise BatchingError(
            f"{call.target.name} uses a generated parameter in a way that needs a leaf of the "
            "graph, such as a deep copy, or a derivative by it where gradients are off. A "
            "generated parameter is a result of the hypernetwork, not a leaf. Compute with it in "
            "`forward` as with any tensor, or do not generate it."
        ) from in_loop


def _choose_freely(call: Call) -> tuple[Choice, list[Try]]:
    """Choose the engine that is expected to be quickest and gives the same as the loop."""
    if call.scan is not None and call.scan.hooked:
        return Choice("loop", "hooks see one task after the other"), [try_call(call, "loop")]
    shown = _with_two_rows(call)
    tried = _try_vmap(call, shown)
    if tried.draws_apart:
        why = "random numbers are drawn that are not torch's"
        return Choice("loop", why), [tried, try_call(call, "loop")]
    if tried.error is not None:
        return _choose_without_vmap(call, tried)
    watch = tried.watch
    assert watch is not None
    convolved = _convolved(watch, shown.rows[0]) if watch.convolved else None
    reason = _reason_against_folding(call, tried, watch)
    if not reason and not _equal_when_folded(_as_folded(call, convolved)):
        reason = "outputs of folded tasks differ from those of `vmap`"
    if reason:
        why = f"{reason}, so tasks are not folded into the batch"
        return Choice("vmap", why, convolved=convolved), [tried]
    why = f"{BY_ROWS}, so tasks are folded into the batch"
    return Choice("aligned", why, bool(watch.convolved), convolved=convolved), [tried]


def _convolved(watch: WatchRows, x: Tensor) -> tuple[float, float]:
    """Mean and maximum of the bytes of each convolution, over those of one task's first input."""
    ratios = [its * len(x) / (x.numel() * x.element_size()) for its in watch.convolved]
    return sum(ratios) / len(ratios), max(ratios)


def _try_vmap(call: Call, shown: Call) -> Try:
    """Try ``shown``, and also ``call`` if its batches of one row may be treated differently."""
    tried = try_call(shown, "vmap", watch=True)
    assert tried.watch is not None
    if shown is call or (tried.error is None and not tried.watch.sizes):
        return tried
    again = try_call(call, "vmap", watch=True)
    return again if again.error is not None or tried.error is not None else tried


def _choose_without_vmap(call: Call, tried: Try) -> tuple[Choice, list[Try]]:
    """Choose between folding along paths and the loop, for a base that fails under ``vmap``."""
    alone = try_call(call, "loop")
    if (ways := _ways_together(call, tried, alone)) is not None:
        why = f"{BY_ROWS}, so tasks that take one branch are folded into the batch"
        return Choice("aligned", why), [replace(alone, ways=ways)]
    recomputes = isinstance(tried.error, RecomputeError)
    does = "recomputes in the backward pass" if recomputes else "does not run under `vmap`"
    return Choice("loop", f"the base {does}"), [tried, alone]


def _reason_against_folding(call: Call, tried: Try, watch: WatchRows) -> str:
    """First reason, if any, that forbids folding tasks after a watched run; else an empty text."""
    assert tried.result is not None
    hides = watch.sizes and _hides_differences(tried.result)
    reasons = (
        (watch.mixes, f"{watch.mixes} may mix the rows of a batch"),
        (
            _has_task_values(call) or tried.assigns or tried.keeps,
            "buffers, attributes or random numbers are handled task by task",
        ),
        (tried.dense, "a parameter is changed in place"),
        (tried.draws, "random numbers are drawn"),
        (hides, "sizes are read, and the outputs would not show a difference"),
    )
    return next((reason for holds, reason in reasons if holds), "")


def _has_task_values(call: Call) -> bool:
    """Return True for buffers or state per task, or random numbers that are the same for each."""
    return bool(call.buffers or call.state) or call.randomness == "same"


def _as_folded(call: Call, convolved: tuple[float, float] | None) -> Call:
    """Return the call of the tasks that the aligned engine runs at once; two for a large one."""
    choice = Choice("aligned", "", convolved=convolved).of_size(call)
    if choice.engine == "loop":
        return call.first(2)  # all at once might not fit into memory
    return call if choice.at_once is None else call.first(max(2, choice.at_once))


def _ways_together(call: Call, tried: Try, alone: Try) -> Ways | None:
    """Paths along which tasks of a base that reads numbers may be folded; None if unproved."""
    if call.scan is None or call.scan.unseen or _has_task_values(call):
        return None
    if alone.error is not None or alone.draws or alone.draws_apart:
        return None
    if isinstance(tried.error, RecomputeError) or not _has_one_batch_size(call):
        return None
    ways = Ways()
    ways.prove(call)
    return None if ways.closed else ways


def _has_one_batch_size(call: Call) -> bool:
    """Return True if all inputs, at least one, are ``(tasks, batch, ...)`` of one batch size."""
    sizes = {x.shape[1] if x.ndim > 1 else None for x in call.rows}
    return len(sizes) == 1 and None not in sizes


def _with_two_rows(call: Call) -> Call:
    """Repeat the row of batches of one, for one row alone does not show a mixing of rows."""
    if any(x.ndim < 2 or x.shape[1] != 1 for x in call.rows):
        return call
    return call._replace(rows=[x.repeat_interleave(2, 1) for x in call.rows])


def _equal_when_folded(call: Call) -> bool:
    """Compare a few tasks under ``vmap`` with all of them folded, on perturbed parameters.

    This catches dependences that watching cannot see, such as one on the size of the batch. The
    perturbation keeps a layer that starts at zero from hiding the layers before it.
    """
    with random_states(call):
        whole = call.first(call.chunk_size or call.tasks)
        whole = whole._replace(params={name: moved(value) for name, value in whole.params.items()})
    few, folded = try_call(whole, "vmap"), try_call(whole, "aligned", whole.tasks)
    return ran_alike(few.result, folded.result)


def _of_norms(call: Call) -> set[str]:
    """Names of the running statistics of norms, which the loop writes task after task."""
    if call.scan is None:
        return set()
    names = named(call.scan).items()
    keras = {
        name
        for name, (m, is_buffer, _, _) in names
        if is_buffer and getattr(m, "own_statistics", False)
    }
    return keras | set(task_buffers(call.scan.base, 1))
