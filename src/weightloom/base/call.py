"""One call of a base: its parameters, its inputs, and the settings of its run.

In:   parameters per task, inputs and options, from `apply`.
Out:  a `Call`, which every engine takes; an engine returns a `Result`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from weightloom.base.branches import Answering
from weightloom.base.compiled import run_compiled
from weightloom.base.sequential import Layer
from weightloom.base.state import Carried, of_one_task, state_of
from weightloom.base.target import Target
from weightloom.base.watch_rows import WatchRows
from weightloom.forms.factored import Factored, built
from weightloom.params import Params
from weightloom.replica import Scan, scan_of
from weightloom.replica.replica import Places, Replica, places_of

Randomness = Literal["different", "same"]
Tensors = Mapping[str, Tensor]


class Result(NamedTuple):
    """Outputs of a run, and the attributes that `forward` assigned."""

    outputs: Any
    written: list[Carried]
    """Attributes that `forward` assigned, with the values of all tasks."""


@dataclass
class Call:
    """One call of a base, as every engine runs it.

    Treated as immutable, except by `scanned`: changes are made on a copy, by `_replace`.
    """

    target: Target
    params: Tensors
    rows: Sequence[Tensor]
    """Tensors of the call that have a tasks axis."""
    build: Callable[[Sequence[Any]], tuple[Any, Any]]
    """Maps one task's part of ``rows`` to positional and named arguments."""
    tasks: int
    buffers: Tensors
    randomness: Randomness = "different"
    chunk_size: int | None = None
    scan: Scan | None = None
    """Scan of the base as it is now; None while it is compiled, and for a plain function."""
    places: Places = ()
    state: Mapping[tuple[int, str], Any] = field(default_factory=dict)
    """Attributes that an earlier call assigned, with the values of every task, by number of the
    module and name."""
    batch_major: bool = False
    """Order of the rows that the aligned engine folds: see `Aligned`."""
    layers: list[Layer] | None = None
    """Layers of a base that is a plain sequence of them: see `sequential`."""
    watch: WatchRows | Answering | None = None
    """Mode that is active while the base runs."""
    dense: frozenset[str] = frozenset()
    """Names of parameters that the base changes in place: they are built and copied."""
    key: Any = None
    """Structure of the arguments, and all values in them that are no tensors."""
    paths: Sequence[str] | None = None
    """Names of the tensors in ``rows``, for messages; None where all were passed by position."""
    extra: Tensors = field(default_factory=dict)
    """Tensors that all tasks share, by name, that replace the base's own."""
    unhooked: bool = False
    """True to leave out the hooks of users."""
    clones: list[tuple[str, Tensor, Tensor]] | None = None
    """Name, copy and original of every parameter in ``dense`` that the base was given; None if not
    recorded."""
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
        """Run the base with ``tensors`` in place of its own.

        Args:
            tensors: Parameters and buffers by name.
            rows: Inputs, for ``build``.
            state: Attributes that an earlier call assigned.
            replica: The replica to run; made from ``tensors`` and ``state`` by default.

        Returns:
            Outputs; and number of the module, name and value of each attribute that was assigned.
        """
        args, kwargs = self.build(rows)
        if self.target.module is None:
            outputs = self._watched(
                lambda: self.target.function(Params(tensors), *args, **kwargs), tensors, rows
            )
            return outputs, []
        if self.scan is None:
            outputs = self._watched(
                lambda: run_compiled(self.target, tensors, args, kwargs), tensors, rows
            )
            return outputs, []
        if replica is None:
            replica = self.replica(tensors, state)
        invoke = self.target.on(replica.base)
        outputs = self._watched(lambda: invoke(*args, **kwargs), tensors, rows)
        return outputs, replica.written()

    def replica(self, tensors: Tensors, state: Mapping[tuple[int, str], Any]) -> Replica:
        """Make a replica of the base that holds these tensors."""
        assert self.scan is not None
        return Replica(self.scan, self.places, {**self.extra, **tensors}, state, self.unhooked)

    def scanned(self) -> "Call":
        """Set the scan of the base and the state of an earlier call, in place; return this call."""
        if self.target.module is None:
            return self
        self.scan = scan_of(self.target.module)
        first = next(iter(self.params.values()), self.rows[0] if self.rows else ())
        try:
            tasks = len(first)
        except TypeError:  # a scalar, which `check_call` refuses
            tasks = 0
        self.state = state_of(self.scan, tasks)
        return self

    def placed(self) -> "Call":
        """Return the call with the places in the base of its parameters, buffers and extras."""
        if self.scan is None:
            return self
        return self._replace(
            places=places_of(self.scan, [*self.params, *self.buffers, *self.extra])
        )

    def _watched(self, run: Callable[[], Any], tensors: Tensors, rows: Sequence[Any]) -> Any:
        if self.watch is None:
            return run()
        with self.watch.start(
            rows, [tensors[name] for name in self.params], {**self.extra, **tensors}
        ):
            outputs = run()
        self.watch.finish(outputs)
        return outputs

    def first(self, tasks: int) -> "Call":
        """Return the call for the first tasks, unchunked; buffers are copied."""
        return self._replace(
            params={name: value[:tasks] for name, value in self.params.items()},
            rows=[x[:tasks] for x in self.rows],
            tasks=min(tasks, self.tasks),
            buffers={name: value[:tasks].clone() for name, value in self.buffers.items()},
            state={where: of_one_task(its, slice(0, tasks)) for where, its in self.state.items()},
            chunk_size=None,
        )

    def apart(self) -> "Call":
        """Return the call with copies of parameters and inputs that are leaves of the graph."""
        params = {name: apart(value) for name, value in self.params.items()}
        return self._replace(params=params, rows=[apart(x) for x in self.rows])

    def leaves(self) -> list[Tensor]:
        """Tensors among parameters, factors and inputs that require a gradient."""
        values = [*self.params.values(), *self.rows]
        parts = [(v.own, *v.parts.values()) if isinstance(v, Factored) else (v,) for v in values]
        return [tensor for several in parts for tensor in several if tensor.requires_grad]

    def of_tasks(self, order: Tensor) -> "Call":
        """Return the call for some tasks, ``order`` their numbers, in this order."""
        return self._replace(
            params={name: value[order] for name, value in self.params.items()},
            rows=[x[order] for x in self.rows],
            buffers={name: value[order] for name, value in self.buffers.items()},
            state={where: of_one_task(its, order) for where, its in self.state.items()},
            tasks=len(order),
        )

    def _one(self, name: str, value: Tensor) -> Tensor:
        """Prepare one task's parameter for the base: copied, as factors in use, or itself."""
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
            value._is_param = True  # torch takes a tensor with this for an `nn.Parameter`
        return value


def apart(value: Any) -> Any:
    """Copy a tensor, or each factor, as a leaf of the graph.

    It requires a gradient if the original does and gradients are on.
    """
    if isinstance(value, Factored):
        return value.map_all(apart)
    copied = value.detach().clone()
    return copied.requires_grad_() if value.requires_grad and torch.is_grad_enabled() else copied


def _unwrapped(tensor: Tensor) -> Tensor:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return torch._C._functorch.get_unwrapped(tensor) if wrapped else tensor
