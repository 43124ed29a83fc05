"""Cache of plans: looked up for every call, made anew when the base or the kind of call changes.

In:   a call.
Out:  its plan, valid as long as the base stays unchanged.
"""

import hashlib
import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weightloom.base.call import Call
from weightloom.base.check import check_all
from weightloom.base.choose import make_plan
from weightloom.base.engines import Engine
from weightloom.base.plan import Plan, Statistics
from weightloom.forms.factored import NO_SUBCLASS, Factored
from weightloom.params import count_tasks

PLANS_KEPT = 200
RESTLESS = 6
"""Number of times that one kind of call is watched before its base counts as always changing."""


class Plans:
    """Plans of one base.

    A base that changes in every call, such as one that counts its calls, is watched `RESTLESS`
    times. Afterwards it runs under a plan that is right however the base changes.
    """

    def __init__(self) -> None:
        self.known: dict[Any, Plan] = {}
        """Plan by key of the scanned base and kind of call."""
        self.watched: dict[Any, int] = {}
        """Number of times that each kind of call was watched."""

    def keep(self, key: Any, plan: Plan) -> None:
        """Add a plan; past `PLANS_KEPT` plans, drop the oldest."""
        _make_room(self.known)
        self.known[key] = plan

    def count(self, kind: Any) -> int:
        """Count one more watched call of a kind; return the count."""
        _make_room(self.watched)
        self.watched[kind] = self.watched.get(kind, 0) + 1
        return self.watched[kind]


_of_base: "weakref.WeakKeyDictionary[Any, Plans]" = weakref.WeakKeyDictionary()


def plan_of(call: Call, engine: Engine, statistics: Statistics | None) -> Plan:
    """Look up the plan of a call, or check the call and make one.

    Args:
        call: The call, with its base scanned.
        engine: Engine that the caller asked for.
        statistics: Statistics option that the caller asked for.

    Raises:
        WeightloomError: If the call does not fit the base, or cannot run as asked for.
    """
    try:
        exact = _signature(call, engine, statistics)
    except AttributeError:
        count_tasks(call.params)  # names a value that is no tensor
        raise
    at_hand: dict[Any, Plan] = call.scan.plans if call.scan is not None else {}
    if (plan := at_hand.get(exact)) is not None:
        return plan
    plan = _known_or_new(call, engine, statistics, exact)
    _make_room(at_hand)
    at_hand[exact] = plan
    return plan


def _known_or_new(call: Call, engine: Engine, statistics: Statistics | None, exact: Any) -> Plan:
    plans, kind = _plans_of(call), _without_sizes(call, exact)
    scanned = call.scan.key if call.scan is not None else None
    plan: Plan | None = None
    for key in ((scanned, kind), (scanned, exact), (RESTLESS, kind)):
        plan = plan or plans.known.get(key)
    # A plan for other sizes does not say that the sizes of this call fit each other.
    if plan is None or not _fits(call, exact):
        call = check_all(call, engine, statistics)
        _note_checked(call, exact)
    if plan is None:
        with _unpacked():
            plan = make_plan(call, engine, statistics)
        plans.keep((scanned, exact if plan.sizes else kind), plan)
        if plans.count(kind) >= RESTLESS:
            _keep_for_all(plans, plan, engine, scanned, kind)
    return plan


def _keep_for_all(plans: Plans, plan: Plan, engine: Engine, scanned: Any, kind: Any) -> None:
    """Keep the plan of a kind of call that is watched again and again, for all calls of the kind.

    If the plan does not depend on sizes, it was the base that changed: any state of it gets the
    plan, and aligned runs are watched. Else it was the sizes: all of these get the plan.
    """
    if not plan.sizes:
        plans.keep((RESTLESS, kind), replace(plan, proven=False, layers=None))
    elif engine == "aligned" or plan.choice.engine != "aligned":
        plans.keep((scanned, kind), plan)


def _make_room(table: dict[Any, Any]) -> None:
    """Drop the oldest entries of a table until it has room for one more."""
    while len(table) >= PLANS_KEPT:
        table.pop(next(iter(table)), None)


def _of_params(exact: Any) -> Any:
    """Part of a signature that decides whether parameters and buffers fit the base."""
    return exact[0], exact[3], exact[4], exact[6]


def _note_checked(call: Call, exact: Any) -> None:
    """Note in the scan that parameters and buffers of this kind fit the base."""
    if call.scan is None:
        return
    if len(call.scan.checked) >= PLANS_KEPT:
        call.scan.checked.clear()
    call.scan.checked.add(_of_params(exact))


def _fits(call: Call, exact: Any) -> bool:
    """True if all but the input sizes was checked before, and the inputs hold as many tasks."""
    if call.scan is None or not call.params or _of_params(exact) not in call.scan.checked:
        return False
    tasks = len(next(iter(call.params.values())))
    return tasks > 0 and all(x.ndim > 0 and len(x) == tasks for x in call.rows)


def _plans_of(call: Call) -> Plans:
    holder = call.target.function if call.target.module is None else call.target.module
    try:
        return _of_base.setdefault(holder, Plans())
    except TypeError:  # a holder without weak references
        return Plans()


def _signature(call: Call, engine: Engine, statistics: Statistics | None) -> Any:
    """Key of the calls that a plan is valid for: options, modes, kinds and sizes of all tensors."""
    return (
        (
            engine,
            statistics,
            call.randomness,
            call.chunk_size,
            call.target.method,
            bool(call.state),
            call.key,
        ),
        (
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"),
        ),
        torch._C._functorch.maybe_current_level(),
        tuple(call.params),
        tuple([_kind(value) for value in call.params.values()]),
        tuple([_kind(value) for value in call.rows]),
        tuple([(name, *_kind(value)) for name, value in call.buffers.items()])
        if call.buffers
        else (),
    )


def kind_of(call: Call) -> str:
    """Description of a kind of call: base, input sizes, number of generated tensors, pass, hash.

    The hash covers sizes and forms of parameters and inputs, gradient mode and options.
    """
    params = [(name, *_kind(value)) for name, value in call.params.items()]
    rows = [tuple(x.shape) for x in call.rows]
    options = (
        params,
        [_kind(x) for x in call.rows],
        call.chunk_size,
        torch.is_grad_enabled(),
        call.randomness,
    )
    digest = hashlib.blake2s(repr(options).encode()).hexdigest()[:12]
    does = "forward and backward" if torch.is_grad_enabled() else "forward"
    return f"{call.target.name} on {rows}, {len(params)} generated, {does}, {digest}"


def _kind(value: Tensor) -> tuple[Any, ...]:
    if isinstance(value, Factored):
        with NO_SUBCLASS():
            return value.shape, value.dtype, value.device, value.form
    return value.shape, value.dtype, value.device, value.requires_grad


def _without_sizes(call: Call, exact: Any) -> Any:
    """The signature without sizes, except for the axes of size 1, which broadcast."""
    options, modes, level, names, *kinds = exact
    rest = [
        [(tuple([size == 1 for size in kind[-4]]), *kind[-3:]) for kind in its] for its in kinds
    ]
    return options, modes, level, names, *map(tuple, rest), tuple(call.buffers)


def _unpacked() -> AbstractContextManager[Any]:
    """Hide saved tensors from a checkpoint around the call, which counts them."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
