"""Attributes that `forward` assigns: carried back to the base, and given to each task again.

A base may keep values of its last run: features, a hidden state, a count of its calls. A value
that is equal for all tasks is assigned to the base unchanged. A tensor that differs by task is
assigned with a tasks axis in front; in the next call with as many tasks, each task gets its own
back, as if each had a copy of the base.
"""

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from weightloom.errors import BatchingError
from weightloom.replica.scan import Scan
from weightloom.replica.tree import open_tree

Where = tuple[int, str]
"""Number of the module in the scan, and name of the attribute."""


class Carried(NamedTuple):
    """One attribute that `forward` assigned."""

    number: int
    """Number of the module in the scan."""
    name: str
    value: Any
    of_tasks: bool
    """True if the tensors in ``value`` have a tasks axis."""


_held: "weakref.WeakKeyDictionary[nn.Module, dict[str, tuple[Any, int]]]" = (
    weakref.WeakKeyDictionary()
)
"""Values with a tasks axis that were assigned to modules, by attribute, with their task count."""


def state_of(scan: Scan, tasks: int) -> dict[Where, Any]:
    """Attributes of a base with a tasks axis that an earlier call assigned.

    If that call had another number of tasks, the value is a placeholder that raises `BatchingError`
    when it is used. Values that were overwritten since are dropped.
    """
    if not _held:
        return {}
    found: dict[Where, Any] = {}
    for number, module in enumerate(scan.modules):
        for name, (value, its_tasks) in list(_held.get(module, {}).items()):
            if module.__dict__.get(name) is not value:
                del _held[module][name]
            elif its_tasks == tasks:
                found[number, name] = value
            else:
                found[number, name] = _Gone.of(f"{type(module).__name__}.{name}", its_tasks, tasks)
    return found


def unusable(state: Mapping[Where, Any], scan: Scan, tasks: int, engine: str) -> dict[Where, Any]:
    """Placeholders for the attributes in ``state``, for an engine that runs tasks as one batch.

    Each raises `BatchingError` when it is used.
    """
    return {
        (number, name): _Gone.of(
            f"{type(scan.modules[number]).__name__}.{name}", tasks, tasks, engine
        )
        for number, name in state
    }


def is_gone(value: Any) -> bool:
    """True for a placeholder of a value that this call cannot use."""
    return isinstance(value, _Gone)


def of_one_task(value: Any, task: int | slice | Tensor) -> Any:
    """The part of an assigned value for one task, a slice of tasks, or an index tensor."""
    if isinstance(value, _Gone):
        return value
    opened = open_tree(value)
    return opened.build([leaf.tensor[task] for leaf in opened.leaves])


def carry_back(scan: Scan, written: list[Carried], tasks: int) -> None:
    """Assign to the base the attributes that were assigned to its replicas."""
    for number, name, value, of_tasks in written:
        module = scan.modules[number]
        if not of_tasks and not open_tree(value).leaves:
            scan.assigned(number, name, value)
        if name in module._buffers:
            module._buffers[name] = value
            continue
        module.__dict__[name] = value
        if of_tasks:
            _held.setdefault(module, {})[name] = value, tasks


def refuse_different(scan: Scan | None, number: int, name: str, how: str) -> BatchingError:
    """Error for an attribute that cannot be carried back; ``how`` it differs between tasks."""
    kind = type(scan.modules[number]).__name__ if scan is not None else "the base"
    return BatchingError(
        f"`{name}`, which `forward` of {kind} assigns, {how}. One base stands for all tasks, so "
        "an attribute must be a tensor for every task, or equal for all. Return the value from "
        "`forward`, or keep it as a tensor."
    )


class _Gone(Tensor):
    """Placeholder for a value of an earlier call; raises when this call uses it."""

    why: str

    @staticmethod
    def of(name: str, its_tasks: int, tasks: int, engine: str = "") -> "_Gone":
        gone = Tensor._make_subclass(_Gone, Tensor())
        if engine:
            gone.why = (
                f"`{name}` holds a value for each of {its_tasks} tasks of an earlier call. The "
                f"{engine} engine folds tasks into one batch and cannot give each its own. Pass "
                f'`engine="vmap"`, or set `{name}` anew.'
            )
        else:
            gone.why = (
                f"`{name}` holds values of an earlier call of {its_tasks} tasks; this call is of "
                f"{tasks}. Each task gets back the value of its own last run. Set `{name}` anew, "
                "for example to None, before a call of other tasks."
            )
        return gone

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raise the `BatchingError` that says why the value cannot be used."""
        gone = next((a for a in (*args, *(kwargs or {}).values()) if isinstance(a, _Gone)), None)
        raise BatchingError(
            gone.why if gone is not None else "A value of an earlier call of other tasks is used."
        )
