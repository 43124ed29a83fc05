"""Run the base once per task: check the call, look up how it runs, run it."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from weightloom.base.buffers import (
    check_buffers,
    norms_that_write,
    refuse_apart,
    refuse_shared_statistics,
    task_buffers,
)
from weightloom.base.by_row import check_rows, grid, row_by_row, without_batch
from weightloom.base.check import check_call, check_compiled, check_options, check_shared
from weightloom.base.engines import Call, Randomness, Result, in_pieces, run_aligned, run_loop, run_vmap
from weightloom.base.exported import run_exported
from weightloom.base.plans import Choice, Plan, Statistics, kind_of, plan_of
from weightloom.base.rows import WatchRows
from weightloom.base.sizes import plain
from weightloom.base.state import carry_back, state_of, unusable
from weightloom.base.target import Target
from weightloom.base.tries import RUN, Engine, guarded, random_states
from weightloom.base.tuning import Tuning, active
from weightloom.base.ways import Ways
from weightloom.errors import BatchingError, ConfigError, WeightloomError
from weightloom.forms.factored import built
from weightloom.replica import Contents, scan_of
from weightloom.replica.hot import no_type_check
from weightloom.replica.tree import Leaf, Shared, is_plain, open_call, open_tree

Tensors = Mapping[str, Tensor]


class _Taken(NamedTuple):
    """Arguments of a call, sorted by whose they are."""

    rows: list[Tensor]
    build: Callable[[Any], tuple[Any, Any]]
    key: Any
    paths: list[str] | None = None
    common: Sequence[Tensor] = ()


class PerTask:
    """A base network that takes parameters per task, and runs once for each task. Made by `per_task`.

    It takes parameters first and then whatever the base takes, by position and by name, with a tasks axis in front of
    every tensor, at any depth. It returns what the base returns, every tensor with a tasks axis in front. Equal to a
    loop over tasks, each with a copy of the base of its own.
    """

    def __init__(
        self,
        base: nn.Module | Callable[..., Any],
        shared: Collection[str | int] | None = None,
        engine: Engine = "auto",
        chunk_size: int | None = None,
        randomness: Randomness = "different",
        statistics: Statistics | None = None,
        buffers: Tensors | None = None,
        autotune: bool = False,
    ) -> None:
        self._tuning = Tuning() if autotune else None
        check_options(engine, randomness, statistics, chunk_size)
        self._target = Target(base)
        self._shared = check_shared(self._target, shared)
        self.engine, self.chunk_size, self.randomness, self.statistics = engine, chunk_size, randomness, statistics
        self.buffers: Tensors = buffers or {}

    @property
    def base(self) -> Any:
        """The base network, or the function of parameters."""
        return self._target.base

    def __repr__(self) -> str:
        return f"per_task({self._target.name}, engine={self.engine!r})"

    def __call__(self, params: Tensors, *args: Any, **kwargs: Any) -> Any:
        """Run the base for all tasks.

        Args:
            params: Generated parameters per task, each ``(tasks, *shape)``.
            *args: What the base takes, every tensor ``(tasks, ...)``.
            **kwargs: What the base takes by name.

        Raises:
            ShapeError: If tensors disagree on the number of tasks.
            ConfigError: If ``params`` names a parameter that the base does not have, devices or dtypes are mixed, or
                a tensor was passed by name and ``shared`` was not given.
            BatchingError: If the base does something that cannot be run for several tasks, or by this engine.
        """
        return self._run(self._opened(params, args, kwargs))

    def explain(self, params: Tensors, *args: Any, **kwargs: Any) -> Choice:
        """Say which engine such a call runs with, and why, as something to print. Arguments as for the call itself."""
        call = self._opened(params, args, kwargs)
        plan = self._plan(call)
        return self._choice(call, plan, len(next(iter([*call.params.values(), *call.rows]))))

    def by_row(self, params: Tensors, task_of_row: Int[Tensor, " rows"], *args: Any, **kwargs: Any) -> Any:
        """Run a batch of rows that belong to several tasks, each row with the parameters of its own.

        Every row is run by itself, so tasks may have different numbers of rows, in any order, or none.

        Args:
            params: Generated parameters per task, each ``(tasks, *shape)``.
            task_of_row: The task of each row.
            *args: What the base takes, every tensor ``(rows, ...)``.
            **kwargs: What the base takes by name.

        Returns:
            What the base returns, every tensor ``(rows, ...)``.

        Raises:
            ShapeError: If a tensor has not a row for each of ``task_of_row``.
            ConfigError: If a task is not there.

        Example:
            >>> run = per_task(nn.Linear(3, 2))
            >>> params = {"bias": torch.arange(3.0)[:, None].expand(3, 2)}
            >>> zeros = torch.zeros(4, 3)
            >>> (run.by_row(params, torch.tensor([2, 0, 2, 1]), zeros) - run.base(zeros) + run.base.bias)[:, 0]
            tensor([2., 0., 2., 1.], grad_fn=<...>)
        """
        call = self._opened(params, args, kwargs)
        tasks = len(next(iter(params.values()))) if params else 0
        check_rows(task_of_row, tasks, call.rows)
        laid_out = None if self.engine != "auto" or torch.compiler.is_compiling() else grid(task_of_row, call.params)
        if laid_out is None or not self._folds(row_by_row(call, task_of_row, 2)):
            outputs = open_tree(self._run(row_by_row(call, task_of_row)))
            return outputs.build([without_batch(leaf.tensor, self._target.name) for leaf in outputs.leaves])
        present, rows, task, place = laid_out  # rows are apart, so those of a task may share its parameters
        its = {name: value[present] for name, value in call.params.items()}
        outputs = open_tree(self._run(call._replace(params=its, rows=[x[rows] for x in call.rows])))
        return outputs.build([leaf.tensor[task, place] for leaf in outputs.leaves])

    def _folds(self, call: Call) -> bool:
        """Whether it is proved that the base treats rows one by one."""
        plan = self._plan(call)
        return plan.choice.engine == "aligned" and plan.proven

    def _opened(self, params: Tensors, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Find the tensors of a call."""
        if not kwargs and not self._shared and all(map(is_plain, args)):
            its = _Taken(list(args), _of_tensors, len(args))
        else:
            its = self._taken_apart(args, kwargs)
        options = (self.buffers, self.randomness, self.chunk_size)
        more = {"key": its.key, "paths": its.paths, "common": its.common}
        return Call(self._target, self._target.named(params), its.rows, its.build, 0, *options, **more)

    def _taken_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Taken:
        shared = self._shared or frozenset()
        known = self._target.arguments if shared and args else None
        names = known[0] if known is not None else []
        given = [
            (path, Shared(x) if i in shared or (i < len(names) and names[i] in shared) else x)
            for i, (path, x) in enumerate(zip(_paths(len(args)), args, strict=True))
        ]
        opened = open_call(given, {name: Shared(x) if name in shared else x for name, x in kwargs.items()})
        leaves = opened.leaves
        if self._shared is None:
            by_name = [leaf for leaf in leaves[len(leaves) - opened.by_name :] if not leaf.is_shared]
            if by_name:
                raise _unsaid(self._target.name, by_name)
        at = [number for number, leaf in enumerate(leaves) if not leaf.is_shared]
        paths = [leaves[number].path for number in at]
        if len(at) == len(leaves):
            return _Taken([leaf.tensor for leaf in leaves], opened.build, opened.key, paths)
        all_tensors = [leaf.tensor for leaf in leaves]

        @no_type_check
        def build(rows: Any) -> Any:
            tensors: list[Any] = list(all_tensors)
            for number, row in zip(at, rows, strict=True):
                tensors[number] = row
            return opened.build(tensors)

        key = opened.key, tuple([(leaf.tensor.shape, leaf.tensor.dtype) for leaf in leaves if leaf.is_shared])
        common = [leaf.tensor for leaf in leaves if leaf.is_shared]
        return _Taken([leaves[number].tensor for number in at], build, key, paths, common)

    def _scanned(self, call: Call) -> Call:
        if self._target.module is None:
            return call
        scanned = scan_of(self._target.module)
        first = next(iter(call.params.values()), None)
        tasks = len(first) if first is not None else len(call.rows[0]) if call.rows and call.rows[0].ndim else 0
        call.scan, call.state = scanned, state_of(scanned, tasks)
        return call

    def _plan(self, call: Call) -> Plan:
        return plan_of(self._scanned(call), self.engine, self.statistics, self._checked)

    def _run(self, call: Call) -> Any:
        if torch.compiler.is_compiling():
            check_compiled(self._target.module)
            call = self._checked(call)
            if self.engine == "auto":
                return (run_exported if torch.compiler.is_exporting() else run_vmap)(call).outputs
            return in_pieces(RUN[self.engine], call).outputs
        return _uncompiled(PerTask._run_eagerly)(self, call)

    def _run_eagerly(self, call: Call) -> Any:
        call = self._scanned(call)
        plan = plan_of(call, self.engine, self.statistics, self._checked)
        first = next(iter(call.params.values()), None)
        tasks = len(first) if first is not None else len(call.rows[0])
        buffers = call.buffers
        if call.scan is not None and (self.statistics == "task" or plan.buffers):
            buffers = {
                **task_buffers(call.scan.base, tasks),
                **task_buffers(call.scan.base, tasks, plan.buffers),
                **buffers,
            }
        call.buffers = buffers
        result = self._chosen(call, plan, self._choice(call, plan, tasks))
        if call.scan is not None and result.written:
            self._carry(call, result)
        return result.outputs

    def _choice(self, call: Call, plan: Plan, tasks: int) -> Choice:
        """By which engine a call runs: as was counted, or as was timed."""
        call.tasks, call.places, call.dense = tasks, plan.places, plan.dense
        choice, tuning = plan.choice.of_size(call), self._tuning or active()
        return choice if tuning is None or self.engine != "auto" else self._tuned(call, plan, choice, tuning)

    def _chosen(self, call: Call, plan: Plan, choice: Choice) -> Result:
        call.layers = plan.layers if choice.engine == "aligned" else None
        call.batch_major = choice.batch_major
        call.chunk_size = call.chunk_size or choice.at_once
        if choice.engine == "loop" and plan.kernels:
            call.params = {name: built(value) if name in plan.kernels else value for name, value in call.params.items()}
        return self._by(call, plan, choice.engine)

    def _tuned(self, call: Call, plan: Plan, choice: Choice, tuning: Tuning) -> Choice:
        """The quickest of all safe ways to run a call like this, timed once."""
        if not plan.is_free or call.scan is None or call.buffers or call.state or self.statistics is not None:
            return choice
        choices = plan.safe(choice, call.tasks if call.chunk_size is None else 1)
        try:
            plan_of(call._replace(), "vmap", self.statistics, self._checked)
        except WeightloomError:
            choices.pop("vmap", None)

        scanned = call.scan

        def run(choice: Choice) -> None:
            with random_states(call):
                apart = call.apart()
                leaves = [*apart.leaves(), *(p for p in scanned.base.parameters() if p.requires_grad)]
                outputs = open_tree(self._chosen(apart, plan, choice).outputs)
                total = sum(leaf.tensor.sum() for leaf in outputs.leaves if leaf.tensor.requires_grad)
                if isinstance(total, Tensor) and leaves:  # `backward` would leave gradients in the base
                    torch.autograd.grad(total, leaves, allow_unused=True)

        contents = Contents(call.scan.mutable)
        way = tuning.way(kind_of(call), {name: partial(run, its) for name, its in choices.items()})
        contents.restore()
        return choices[way]

    def _by(self, call: Call, plan: Plan, engine: Engine) -> Result:
        if engine == "aligned" and call.scan is not None:
            if call.state:
                call = call._replace(state=unusable(call.state, call.scan, call.tasks, "aligned"))
            if plan.ways is not None:
                return in_pieces(partial(self._along, plan.ways), call)
            if not plan.proven:
                return self._proven(call)
        if plan.reads and call.scan is not None:
            with guarded(call):
                return in_pieces(run_loop, call)
        if engine != "vmap":
            return in_pieces(RUN[engine], call)
        if self.engine != "auto" or call.scan is None or torch._C._functorch.maybe_current_level() is not None:
            return run_vmap(call)
        random = torch.get_rng_state()
        try:
            return run_vmap(call)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # something that was not seen when it was watched; the loop shows it as it is
            torch.set_rng_state(random)
            return in_pieces(run_loop, call)

    def _along(self, ways: Ways, call: Call) -> Result:
        """Run folded along ways that are proved; one task after the other where there are none any more."""
        result = ways.run(call)
        if result is not None:
            return result
        with guarded(call):
            return run_loop(call)

    def _proven(self, call: Call) -> Result:
        """Run folded, and watch that every row is treated by itself; else what was computed is thrown away."""
        random = torch.get_rng_state()
        watch = WatchRows()
        try:
            result = run_aligned(call._replace(watch=watch, chunk_size=None))
        except (BatchingError, RuntimeError, ValueError, TypeError):
            if self.engine == "aligned":
                raise
            watch.mixes = "an error"
        if not watch.mixes and not watch.sizes:
            written = [its._replace(value=tree_map(plain, its.value)) for its in result.written]
            return Result(tree_map(plain, result.outputs), written)
        if self.engine == "aligned":
            raise BatchingError(
                f"{self._target.name} calls {watch.mixes or 'for the size of a batch'}, which may mix the rows of "
                "different tasks. The aligned engine is right only where every row of a batch is treated by itself. "
                'Pass `engine="vmap"` or `engine="loop"`.'
            )
        torch.set_rng_state(random)
        try:
            return run_vmap(call)
        except BatchingError:
            torch.set_rng_state(random)
            return in_pieces(run_loop, call)

    def _carry(self, call: Call, result: Result) -> None:
        """Give the base, and the buffers of each task, what `forward` assigned."""
        assert call.scan is not None
        own = {(number, leaf): name for name, its in call.places if name in call.buffers for number, _, leaf in its}
        rest = []
        for its in result.written:
            name = own.get((its.number, its.name))
            if name is not None:
                value = its.value if its.of_tasks else its.value.expand_as(call.buffers[name])
                call.buffers[name].copy_(value.detach())
            elif self.statistics == "task" and its.name in call.scan.modules[its.number]._buffers:
                continue  # the base's own are left alone
            elif its.of_tasks and its.name in call.scan.modules[its.number]._buffers:
                raise BatchingError(
                    f"`forward` of {self._target.name} assigns its buffer {its.name!r} for each task. One base has one "
                    'buffer: say what is meant. Pass `statistics="task"`, or `buffers=task_buffers(base, tasks, '
                    f'["{its.name}"])` to keep one per task.'
                )
            else:
                rest.append(its)
        carry_back(call.scan, rest, call.tasks)

    def _checked(self, call: Call) -> Call:
        """Check everything there is to check; return the call with its tasks counted and its buffers there."""
        tasks = check_call(self._target, call.params, call.rows, call.paths or _paths(len(call.rows)))
        buffers = call.buffers
        if self._target.module is None:
            return call._replace(tasks=tasks)
        check_buffers(self._target.module, buffers, tasks)
        if self.statistics == "task":
            buffers = {**task_buffers(self._target.module, tasks), **buffers}
        call = call._replace(tasks=tasks, buffers=buffers)
        if self.statistics == "shared":
            _refuse_apart(call, self.engine)
        elif self.engine != "loop":
            refuse_shared_statistics(self._target.module, buffers)
        return call


def per_task(
    base: nn.Module | Callable[..., Any],
    *,
    shared: Collection[str | int] | None = None,
    engine: Engine = "auto",
    chunk_size: int | None = None,
    randomness: Randomness = "different",
    statistics: Statistics | None = None,
    buffers: Tensors | None = None,
    autotune: bool = False,
) -> PerTask:
    """Return ``base`` as a callable that takes parameters per task, then what the base takes, for all tasks at once.

    Equal to a Python loop over tasks, each with a copy of the base of its own. The base itself is never touched: every
    run is that of a replica. Running statistics of BatchNorm are written only where that is asked for: by
    ``statistics="shared"``, or by ``engine="loop"``, task after task.

    Args:
        base: Any module; a method of one, such as ``net.encode``; or a function of one task's parameters and inputs.
            What the parameters lack stays its own and is shared by all tasks.
        shared: Which of its arguments all tasks share, by name or position: these have no tasks axis. ``()`` where
            none is. Needed before tensors are passed by name. For one call, wrap the argument: ``Shared(x)``.
        engine: How tasks are run. ``"vmap"``: in one pass, the tasks axis hidden from the base. ``"aligned"``: folded
            into the batch, right where the base treats rows one by one. ``"loop"``: one after the other, the slow and
            obvious reference. ``"auto"``: the quickest that is safe, by the rules in `choose_engine`.
        chunk_size: How many tasks run at once, to bound memory; None means all. See `in_chunks` for bounding what is
            generated too.
        randomness: Whether dropout draws ``"different"`` numbers for each task or the ``"same"``.
        statistics: What a BatchNorm in train mode normalises by: each ``"task"`` its own batch, leaving running
            statistics alone, or all tasks together, ``"shared"``, which updates the base's.
        buffers: Buffers per task by name, each ``(tasks, *shape)``, as from `task_buffers`. A norm in train mode
            updates them in place.
        autotune: Time the safe engines in the first call of each kind, and take the quickest from then on, where
            counting chooses otherwise. Engines differ in rounding; `autotuned` keeps what was chosen in a file.

    Raises:
        ConfigError: If ``base`` cannot be called, an option is unknown, or ``shared`` names no argument.

    Example:
        >>> run = per_task(nn.Linear(3, 2))
        >>> params = {"weight": torch.zeros(5, 2, 3), "bias": torch.ones(5, 2)}
        >>> run(params, torch.randn(5, 7, 3)).shape
        torch.Size([5, 7, 2])
        >>> print(run.explain(params, torch.randn(5, 7, 3)))
        aligned: every row of a batch is treated by itself, so tasks are folded into the batch

    Source:
        Ha, Dai and Le, "HyperNetworks" (2017), section 3.
    """
    return PerTask(base, shared, engine, chunk_size, randomness, statistics, buffers, autotune)


def apply_per_task(
    base: nn.Module | Callable[..., Any],
    params: Tensors,
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    shared: Collection[str | int] | None = None,
    engine: Engine = "auto",
    chunk_size: int | None = None,
    randomness: Randomness = "different",
    statistics: Statistics | None = None,
    buffers: Tensors | None = None,
    explain: bool = False,
) -> Any:
    """Run ``base`` once per task, each time with that task's own parameters: `per_task` in one line.

    Args:
        base: As for `per_task`.
        params: Generated parameters per task, as returned by a hypernetwork, each ``(tasks, *shape)``.
        *inputs: What ``base.forward`` takes, each ``(tasks, batch, *event)``. ``tasks`` is kept even when it is 1.
        kwargs: What ``base.forward`` takes by name.
        shared: As for `per_task`.
        engine: As for `per_task`.
        chunk_size: As for `per_task`.
        randomness: As for `per_task`.
        statistics: As for `per_task`.
        buffers: As for `per_task`.
        explain: Print which engine was chosen and why.

    Returns:
        What ``base`` returns, every tensor with a leading tasks axis.

    Raises:
        ShapeError: If ``params`` and ``inputs`` disagree on the number of tasks, or a value has an axis too few.
        ConfigError: If ``params`` names a parameter that ``base`` does not have, an option is unknown, or devices or
            dtypes are mixed.
        BatchingError: If ``base`` holds a BatchNorm, or an InstanceNorm with running statistics, in train mode and
            ``statistics`` does not say what is meant, or if it does something that the engine cannot run.

    Example:
        >>> params = {"weight": torch.zeros(5, 2, 3), "bias": torch.ones(5, 2)}
        >>> apply_per_task(nn.Linear(3, 2), params, torch.randn(5, 7, 3)).shape
        torch.Size([5, 7, 2])
    """
    run = PerTask(base, shared, engine, chunk_size, randomness, statistics, buffers)
    if explain:
        print(f"{run._target.name} runs with engine {run.explain(params, *inputs, **(kwargs or {}))}")
    return run(params, *inputs, **(kwargs or {}))


def choose_engine(
    base: nn.Module | Callable[..., Any], params: Tensors, *inputs: Any, kwargs: Mapping[str, Any] | None = None
) -> Choice:
    """Say which engine ``engine="auto"`` runs, and why.

    The rules, in this order: ``vmap`` inside a transform of `torch.func`; the loop where users hooked into the
    base; the loop where, on a CPU, what it convolves with generated kernels is large; the aligned engine where
    every function that the base calls treats rows one by one, which is proved by watching it run for two tasks,
    and where what it computes is equal then, some tasks at a time where bytes say so; else ``vmap``. A base
    that does not run under ``vmap``, as one that asks whether a mask is full, is folded along the ways that it
    goes, or runs in the loop. The proof is made in the first call, on replicas, and holds as long as the base,
    its modes, and the sizes that it compares are the same.

    Args:
        base: The base network.
        params: As for `apply_per_task`.
        *inputs: As for `apply_per_task`.
        kwargs: As for `apply_per_task`.

    Example:
        >>> params = {"weight": torch.zeros(5, 2, 3)}
        >>> print(choose_engine(nn.Linear(3, 2), params, torch.randn(5, 7, 3)))
        aligned: every row of a batch is treated by itself, so tasks are folded into the batch
    """
    return PerTask(base, shared=()).explain(params, *inputs, **(kwargs or {}))


def apply_shared(module: nn.Module, x: Tensor) -> Tensor:
    """Run a module that is the same for all tasks, by folding the tasks into the batch: the quickest way there is.

    Args:
        module: Any module that maps (batch, *event) to (batch, *out).
        x: (tasks, batch, *event).

    Returns:
        (tasks, batch, *out).

    Example:
        >>> apply_shared(nn.Linear(3, 2), torch.randn(5, 7, 3)).shape
        torch.Size([5, 7, 2])
    """
    outputs: Tensor = module(x.flatten(0, 1))
    return outputs.view(*x.shape[:2], *outputs.shape[1:])


@lru_cache(maxsize=1)
def _disabled(function: Callable[..., Any]) -> Any:
    return sys.modules["torch._dynamo"].disable(function)


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep `torch.compile` out of what watches and copies, where it could not follow the call as a whole."""
    return _disabled(function) if "torch._dynamo" in sys.modules else function


def _of_tensors(rows: Any) -> tuple[Any, dict[str, Any]]:
    return tuple(rows), {}


def _paths(count: int) -> list[str]:
    """Names of positional arguments, for messages."""
    return ["x"] if count == 1 else [f"inputs[{i}]" for i in range(count)]


def _unsaid(base: str, by_name: list[Leaf]) -> ConfigError:
    names = list(dict.fromkeys(leaf.path.split("'")[1] for leaf in by_name))
    listed = "{" + ", ".join(f'"{name}"' for name in names) + "}"
    one = len(names) == 1
    return ConfigError(
        f"{', '.join(f'`{name}`' for name in names)} of {base} {'holds' if one else 'hold'} tensors and "
        f"{'was' if one else 'were'} passed by name. A mask, say, may belong to each task or to all, and sizes do not "
        f"tell. Type `per_task(net, shared=())` where each task has its own, on axis 0, or `per_task(net, "
        f"shared={listed})` where all tasks share {'it' if one else 'them'}; `apply_per_task` takes `shared` too."
    )


def _refuse_apart(call: Call, engine: Engine) -> None:
    assert call.target.module is not None
    if not norms_that_write(call.target.module):
        return
    if engine not in ("auto", "aligned"):
        raise refuse_apart(engine)
    if call.chunk_size is not None and call.chunk_size < call.tasks:
        raise ConfigError(
            f'`statistics="shared"` cannot be had with `chunk_size={call.chunk_size}` for {call.tasks} tasks. All '
            "tasks are normalised together, so all of them run at once. Leave `chunk_size` out, or pass "
            '`statistics="task"`.'
        )
