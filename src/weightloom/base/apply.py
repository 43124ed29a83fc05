"""Run a base network with parameters per task: `per_task`, and `apply_per_task` in one line.

In:   a base network (any module, method or function of parameters), Params, inputs per task.
Out:  outputs per task.
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
from weightloom.params import count_tasks
from weightloom.replica.tree import open_tree


class PerTask:
    """A base network that takes parameters per task, and runs once for each task.

    Made by `per_task`. Its arguments are the parameters, then those of the base, by position and by
    name, with a tasks axis in front of every tensor at any depth. It returns the outputs of the
    base, with a tasks axis in front of every tensor. Equal to a loop over tasks that gives each
    task a separate copy of the base.
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
            *args: Positional arguments of the base, every tensor ``(tasks, ...)``.
            **kwargs: Named arguments of the base, every tensor ``(tasks, ...)``.

        Returns:
            Outputs of the base, every tensor ``(tasks, ...)``.

        Raises:
            ShapeError: If tensors disagree on the number of tasks.
            ConfigError: If ``params`` names a parameter that the base does not have, devices or
                dtypes are mixed, or a tensor was passed by name and ``shared`` was not given.
            BatchingError: If the base cannot be run for several tasks, or not by this engine.
        """
        return self._run(self._opened(params, args, kwargs))

    def explain(self, params: Tensors, *args: Any, **kwargs: Any) -> Choice:
        """Return the engine that a call with these arguments runs with, and the reason; printable.

        Arguments and errors as for the call itself.
        """
        call = self._opened(params, args, kwargs)
        return choice_of(call, self._plan(call), self.engine, self.statistics, self._tuning)

    def by_row(
        self, params: Tensors, task_of_row: Int[Tensor, " rows"], *args: Any, **kwargs: Any
    ) -> Any:
        """Run a batch whose rows belong to several tasks, each row with its task's parameters.

        Every row is run by itself, so tasks may have different numbers of rows, in any order, or
        none.

        Args:
            params: Generated parameters per task, each ``(tasks, *shape)``.
            task_of_row: Number of each row's task, ``(rows,)``, from 0.
            *args: Positional arguments of the base, every tensor ``(rows, ...)``.
            **kwargs: Named arguments of the base, every tensor ``(rows, ...)``.

        Returns:
            Outputs of the base, every tensor ``(rows, ...)``.

        Raises:
            ShapeError: If ``task_of_row`` is empty, a tensor has another number of rows, or values
                of ``params`` disagree on the number of tasks.
            ConfigError: If ``task_of_row`` holds a number that ``params`` has no task for.
            BatchingError: If an output has no row for each row of the batch.

        Example:
            >>> run = per_task(nn.Linear(3, 2, bias=False))
            >>> run.base.weight.data.zero_()
            tensor([[0., 0., 0.],
                    [0., 0., 0.]])
            >>> params = {"weight": torch.arange(3.0)[:, None, None].expand(3, 2, 3)}
            >>> run.by_row(params, torch.tensor([2, 0, 2, 1]), torch.ones(4, 3))[:, 0]
            tensor([6., 0., 6., 3.])
        """
        call = self._opened(params, args, kwargs)
        check_rows(task_of_row, count_tasks(params) or 0, call.rows)
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
        # rows do not mix, so those of one task may be a batch with its parameters
        present, rows, task, place = laid_out
        its = {name: value[present] for name, value in call.params.items()}
        outputs = open_tree(self._run(call._replace(params=its, rows=[x[rows] for x in call.rows])))
        return outputs.build([leaf.tensor[task, place] for leaf in outputs.leaves])

    def _folds(self, call: Call) -> bool:
        """Return True if it is proved that the base treats rows one by one."""
        plan = self._plan(call)
        return plan.choice.engine == "aligned" and plan.proven

    def _opened(self, params: Tensors, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Find the tensors in the arguments of a call."""
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
    """Return ``base`` as a callable of parameters per task and the base's arguments, for all tasks.

    Equal to a Python loop over tasks that gives each task a separate copy of the base. The base
    itself is never touched: every run is that of a replica. Running statistics of BatchNorm are
    written only with ``statistics="shared"``, or ``engine="loop"``, task after task.

    Args:
        base: Any module; a method of one, such as ``net.encode``; or a function of one task's
            parameters and inputs. Parameters that are not passed stay those of the base and are
            shared by all tasks.
        shared: Names or positions of arguments that all tasks share and that have no tasks axis;
            ``()`` for none. Required before tensors are passed by name. For one call, wrap the
            argument: ``Shared(x)``.
        engine: ``"vmap"``: all tasks in one pass, the tasks axis hidden from the base.
            ``"aligned"``: tasks folded into the batch, right where the base treats rows one by one.
            ``"loop"``: one task after the other, the slow and obvious reference.
            ``"auto"``: the quickest engine that is safe, by the rules in `choose_engine`.
        chunk_size: Number of tasks that run at once, to bound memory. Default: all. `in_chunks`
            bounds the memory of generation too.
        randomness: ``"different"`` random numbers, as of dropout, for each task, or the ``"same"``.
        statistics: Statistics by which a BatchNorm in train mode normalises: ``"task"`` for those
            of each task's batch, leaving running statistics unchanged; ``"shared"`` for those of
            all tasks together, which updates the base's. Default: None, which refuses such a norm,
            except with ``engine="loop"``.
        buffers: Buffers per task by name, each ``(tasks, *shape)``, as from `task_buffers`. A norm
            in train mode updates them in place.
        autotune: Time the safe engines in the first call of each kind, and use the quickest from
            then on, in place of the one that counting operations suggests. Engines differ in
            rounding; `autotuned` keeps the choices in a file.

    Returns:
        The callable; its `by_row` runs rows of several tasks, its `explain` returns the engine.

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
        *inputs: Positional arguments of ``base.forward``, each ``(tasks, batch, *event)``.
            ``tasks`` is kept even when it is 1.
        kwargs: Named arguments of ``base.forward``. Default: none.
        shared: As for `per_task`.
        engine: As for `per_task`.
        chunk_size: As for `per_task`.
        randomness: As for `per_task`.
        statistics: As for `per_task`.
        buffers: As for `per_task`.
        explain: Print the engine chosen, and the reason.

    Returns:
        Outputs of ``base``, every tensor with a leading tasks axis.

    Raises:
        ShapeError: If ``params`` and ``inputs`` disagree on the number of tasks, or a value lacks
            its tasks axis.
        ConfigError: If ``params`` names a parameter that ``base`` does not have, an option is
            unknown, or devices or dtypes are mixed.
        BatchingError: If ``base`` holds a BatchNorm, or an InstanceNorm with running statistics, in
            train mode and ``statistics`` is None, or if it cannot be run for several tasks or by
            the engine.

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
    """Return the engine that ``engine="auto"`` runs, and the reason.

    The rules, in this order:

    1. ``vmap`` inside a transform of `torch.func`.
    2. The loop, if users registered hooks on the base.
    3. The loop, on a CPU, if inputs convolved with generated kernels are large.
    4. The aligned engine, if every function that the base calls treats rows one by one, which is
       proved by watching it run for two tasks, and the outputs are equal to those of ``vmap``. It
       runs some tasks at a time if the bytes of its convolutions would not fit the cache.
    5. Else ``vmap``. A base that does not run under ``vmap``, such as one that branches on whether
       a mask is full, is folded along its proved branches, or runs in the loop.

    The proof is made in the first call, on replicas, and holds as long as the base, its modes, and
    the sizes that it compares are the same.

    Args:
        base: The base network.
        params: As for `apply_per_task`.
        *inputs: As for `apply_per_task`.
        kwargs: As for `apply_per_task`.

    Returns:
        The engine and the reason; printable.

    Example:
        >>> params = {"weight": torch.zeros(5, 2, 3)}
        >>> print(choose_engine(nn.Linear(3, 2), params, torch.randn(5, 7, 3)))
        aligned: every row of a batch is treated by itself, so tasks are folded into the batch
    """
    return PerTask(base, shared=()).explain(params, *inputs, **(kwargs or {}))


def apply_shared(module: nn.Module, x: Tensor) -> Tensor:
    """Run a module that all tasks share, with the tasks folded into the batch.

    Args:
        module: Any module that maps (batch, *event) to (batch, *out), row by row.
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
    """Exclude a function from `torch.compile`, which cannot trace its watching and copying."""
    return _disabled(function) if "torch._dynamo" in sys.modules else function
