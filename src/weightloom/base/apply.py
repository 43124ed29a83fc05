"""The base as something that takes parameters per task.

`per_task`, and what is the same in one line.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from weightloom.base.arguments import take
from weightloom.base.by_row import check_rows, grid, row_by_row, without_batch
from weightloom.base.call import Call, Randomness, Tensors
from weightloom.base.check import check_all, check_compiled, check_options, check_shared
from weightloom.base.engines import RUN, Engine, run_vmap
from weightloom.base.exported import run_exported
from weightloom.base.pieces import in_pieces
from weightloom.base.plan import Choice, Plan, Statistics
from weightloom.base.plan_cache import plan_of
from weightloom.base.run_plan import choice_of, run_planned
from weightloom.base.target import Target
from weightloom.base.tuning import Tuning
from weightloom.replica.tree import open_tree


class PerTask:
    """A base network that takes parameters per task, and runs once for each task.

    Made by `per_task`.

    It takes parameters first and then whatever the base takes, by position and by name, with a
    tasks axis in front of every tensor, at any depth. It returns what the base returns, every
    tensor with a tasks axis in front. Equal to a loop over tasks, each with a copy of the base of
    its own.
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
        self.engine, self.chunk_size, self.randomness, self.statistics = (
            engine,
            chunk_size,
            randomness,
            statistics,
        )
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
            ConfigError: If ``params`` names a parameter that the base does not have, devices or
                dtypes are mixed, or a tensor was passed by name and ``shared`` was not given.
            BatchingError: If the base does something that cannot be run for several tasks, or by
                this engine.
        """
        return self._run(self._opened(params, args, kwargs))

    def explain(self, params: Tensors, *args: Any, **kwargs: Any) -> Choice:
        """Say which engine such a call runs with, and why, as something to print.

        Arguments as for the call itself.
        """
        call = self._opened(params, args, kwargs)
        return choice_of(call, self._plan(call), self.engine, self.statistics, self._tuning)

    def by_row(
        self, params: Tensors, task_of_row: Int[Tensor, " rows"], *args: Any, **kwargs: Any
    ) -> Any:
        """Run a batch of rows that belong to several tasks, each row with the parameters of its own.

        Every row is run by itself, so tasks may have different numbers of rows, in any order, or
        none.

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
        laid_out = (
            None
            if self.engine != "auto" or torch.compiler.is_compiling()
            else grid(task_of_row, call.params)
        )
        if laid_out is None or not self._folds(row_by_row(call, task_of_row, 2)):
            outputs = open_tree(self._run(row_by_row(call, task_of_row)))
            return outputs.build(
                [without_batch(leaf.tensor, self._target.name) for leaf in outputs.leaves]
            )
        present, rows, task, place = (
            laid_out  # rows are apart, so those of a task may share its parameters
        )
        its = {name: value[present] for name, value in call.params.items()}
        outputs = open_tree(self._run(call._replace(params=its, rows=[x[rows] for x in call.rows])))
        return outputs.build([leaf.tensor[task, place] for leaf in outputs.leaves])

    def _folds(self, call: Call) -> bool:
        """Whether it is proved that the base treats rows one by one."""
        plan = self._plan(call)
        return plan.choice.engine == "aligned" and plan.proven

    def _opened(self, params: Tensors, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Find the tensors of a call."""
        its = take(self._target, self._shared, args, kwargs)
        options = (self.buffers, self.randomness, self.chunk_size)
        more = {"key": its.key, "paths": its.paths, "common": its.common}
        return Call(
            self._target, self._target.named(params), its.rows, its.build, 0, *options, **more
        )

    def _plan(self, call: Call) -> Plan:
        return plan_of(call.scanned(), self.engine, self.statistics)

    def _run(self, call: Call) -> Any:
        if torch.compiler.is_compiling():
            check_compiled(self._target.module)
            call = check_all(call, self.engine, self.statistics)
            if self.engine == "auto":
                return (run_exported if torch.compiler.is_exporting() else run_vmap)(call).outputs
            return in_pieces(RUN[self.engine], call).outputs
        return _uncompiled(run_planned)(call, self.engine, self.statistics, self._tuning)


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

    Equal to a Python loop over tasks, each with a copy of the base of its own. The base itself is
    never touched: every run is that of a replica. Running statistics of BatchNorm are written only
    where that is asked for: by ``statistics="shared"``, or by ``engine="loop"``, task after task.

    Args:
        base: Any module; a method of one, such as ``net.encode``; or a function of one task's
            parameters and inputs. What the parameters lack stays its own and is shared by all
            tasks.
        shared: Which of its arguments all tasks share, by name or position: these have no tasks
            axis. ``()`` where none is. Needed before tensors are passed by name. For one call, wrap
            the argument: ``Shared(x)``.
        engine: How tasks are run. ``"vmap"``: in one pass, the tasks axis hidden from the base.
            ``"aligned"``: folded into the batch, right where the base treats rows one by one.
            ``"loop"``: one after the other, the slow and obvious reference. ``"auto"``: the
                quickest that is safe, by the rules in `choose_engine`.
        chunk_size: How many tasks run at once, to bound memory; None means all. See `in_chunks` for
            bounding what is generated too.
        randomness: Whether dropout draws ``"different"`` numbers for each task or the ``"same"``.
        statistics: What a BatchNorm in train mode normalises by: each ``"task"`` its own batch,
            leaving running statistics alone, or all tasks together, ``"shared"``, which updates the
            base's.
        buffers: Buffers per task by name, each ``(tasks, *shape)``, as from `task_buffers`. A norm
            in train mode updates them in place.
        autotune: Time the safe engines in the first call of each kind, and take the quickest from
            then on, where counting chooses otherwise. Engines differ in rounding; `autotuned` keeps
            what was chosen in a file.

    Raises:
        ConfigError: If ``base`` cannot be called, an option is unknown, or ``shared`` names no
            argument.

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
    """Run ``base`` once per task, each time with that task's own parameters.

    `per_task` in one line.

    Args:
        base: As for `per_task`.
        params: Generated parameters per task, as returned by a hypernetwork, each
            ``(tasks, *shape)``.
        *inputs: What ``base.forward`` takes, each ``(tasks, batch, *event)``. ``tasks`` is kept
            even when it is 1.
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
        ShapeError: If ``params`` and ``inputs`` disagree on the number of tasks, or a value has an
            axis too few.
        ConfigError: If ``params`` names a parameter that ``base`` does not have, an option is
            unknown, or devices or dtypes are mixed.
        BatchingError: If ``base`` holds a BatchNorm, or an InstanceNorm with running statistics, in
            train mode and ``statistics`` does not say what is meant, or if it does something that
            the engine cannot run.

    Example:
        >>> params = {"weight": torch.zeros(5, 2, 3), "bias": torch.ones(5, 2)}
        >>> apply_per_task(nn.Linear(3, 2), params, torch.randn(5, 7, 3)).shape
        torch.Size([5, 7, 2])
    """
    run = PerTask(base, shared, engine, chunk_size, randomness, statistics, buffers)
    if explain:
        print(
            f"{run._target.name} runs with engine {run.explain(params, *inputs, **(kwargs or {}))}"
        )
    return run(params, *inputs, **(kwargs or {}))


def choose_engine(
    base: nn.Module | Callable[..., Any],
    params: Tensors,
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
) -> Choice:
    """Say which engine ``engine="auto"`` runs, and why.

    The rules, in this order: ``vmap`` inside a transform of `torch.func`; the loop where users
    hooked into the base; the loop where, on a CPU, what it convolves with generated kernels is
    large; the aligned engine where every function that the base calls treats rows one by one, which
    is proved by watching it run for two tasks, and where what it computes is equal then, some tasks
    at a time where bytes say so; else ``vmap``. A base that does not run under ``vmap``, as one
    that asks whether a mask is full, is folded along the ways that it goes, or runs in the loop.
    The proof is made in the first call, on replicas, and holds as long as the base, its modes, and
    the sizes that it compares are the same.

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
    """Run a module that is the same for all tasks, by folding the tasks into the batch.

    The quickest way there is.

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
