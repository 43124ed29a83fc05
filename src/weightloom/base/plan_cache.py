"""Plans that are kept: looked up for every call, and made anew where the base or the call is another one.

In:   a call.
Out:  its plan, which holds as long as the base is what it was.
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

PLANS_KEPT = 200
RESTLESS = 6
"""Watched so often for one kind of call, a base counts as one that changes all the time."""


class Plans:
    """The plans of one base.

    A base that is another one in every call, such as one that counts its calls, is watched a few
    times. Then it is run in a way that is right whatever it does.
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


_of_base: "weakref.WeakKeyDictionary[Any, Plans]" = weakref.WeakKeyDictionary()


def plan_of(call: Call, engine: Engine, statistics: Statistics | None) -> Plan:
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
    if plan is None or not _fits(
        call, exact
    ):  # a plan for other sizes says nothing of whether these fit each other
        call = check_all(call, engine, statistics)
        if call.scan is not None:
            if len(call.scan.checked) >= PLANS_KEPT:
                call.scan.checked.clear()
            call.scan.checked.add(_of_params(exact))
    if plan is None:
        with _unpacked():
            plan = make_plan(call, engine, statistics)
        plans.keep((scanned, exact if plan.sizes else kind), plan)
        often = plans.count(kind) >= RESTLESS
        if often and not plan.sizes:
            plans.keep((RESTLESS, kind), replace(plan, proven=False, layers=None))
        elif often and (
            engine == "aligned" or plan.choice.engine != "aligned"
        ):  # of so many sizes, all were alike
            plans.keep((scanned, kind), plan)
    while len(at_hand) >= PLANS_KEPT:
        at_hand.pop(next(iter(at_hand)), None)
    at_hand[exact] = plan
    return plan


def _of_params(exact: Any) -> Any:
    """What is checked of parameters and buffers, whatever they run on."""
    return exact[0], exact[3], exact[4], exact[6]


def _fits(call: Call, exact: Any) -> bool:
    """Whether all but the sizes of inputs was checked before, and these hold as many tasks."""
    if call.scan is None or not call.params or _of_params(exact) not in call.scan.checked:
        return False
    tasks = len(next(iter(call.params.values())))
    return tasks > 0 and all(x.ndim > 0 and len(x) == tasks for x in call.rows)


def _plans_of(call: Call) -> Plans:
    holder = call.target.function if call.target.module is None else call.target.module
    try:
        return _of_base.setdefault(holder, Plans())
    except TypeError:  # no weak reference can be had to it
        return Plans()


def _signature(call: Call, engine: Engine, statistics: Statistics | None) -> Any:
    """What a plan holds for: options, modes, and kinds and sizes of everything."""
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
    """A call as a text: base, sizes, forms and whether it learns."""
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
    """The same for calls of other sizes, as far as none of them is one."""
    options, modes, level, names, *kinds = exact
    rest = [
        [(tuple([size == 1 for size in kind[-4]]), *kind[-3:]) for kind in its] for its in kinds
    ]
    return options, modes, level, names, *map(tuple, rest), tuple(call.buffers)


def _unpacked() -> AbstractContextManager[Any]:
    """Nothing of this is seen by a checkpoint around the call, which counts what is saved for the backward pass."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
