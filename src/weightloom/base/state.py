"""What `forward` assigns to the base while it runs.

Carried back, of every task, and given to that task the next time.

A base may keep something of its last run: features, a hidden state, a count of its calls. What is
the same for all tasks is assigned to the base as it is. A tensor that differs by task is assigned
with a tasks axis in front; in the next call of as many tasks, each gets its own back, as if there
were a copy of the base for each.
"""

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from weightloom.errors import BatchingError
from weightloom.replica.scan import Scan
from weightloom.replica.tree import open_tree

Where = tuple[int, str]


class Carried(NamedTuple):
    """One attribute that `forward` assigned."""

    number: int
    """Of the module."""
    name: str
    value: Any
    of_tasks: bool
    """Whether its tensors have a tasks axis."""


_held: "weakref.WeakKeyDictionary[nn.Module, dict[str, tuple[Any, int]]]" = (
    weakref.WeakKeyDictionary()
)
"""Values with a tasks axis that were assigned to modules, and how many tasks they are of."""


def state_of(scan: Scan, tasks: int) -> dict[Where, Any]:
    """Attributes of a base that an earlier call assigned, with a tasks axis.

    Of other tasks, they cannot be used.
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
    """The same where an engine cannot give each task its own."""
    return {
        (number, name): _Gone.of(
            f"{type(scan.modules[number]).__name__}.{name}", tasks, tasks, engine
        )
        for number, name in state
    }


def is_gone(value: Any) -> bool:
    """Whether a value stands for what cannot be used in this call."""
    return isinstance(value, _Gone)


def of_one_task(value: Any, task: int | slice | Tensor) -> Any:
    """One task's part of something that was assigned, or that of a few."""
    if isinstance(value, _Gone):
        return value
    opened = open_tree(value)
    return opened.build([leaf.tensor[task] for leaf in opened.leaves])


def carry_back(scan: Scan, written: list[Carried], tasks: int) -> None:
    """Assign to the base what its replicas were assigned."""
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
    """The error for an attribute that cannot be carried back."""
    kind = type(scan.modules[number]).__name__ if scan is not None else "the base"
    return BatchingError(
        f"`{name}`, which `forward` of {kind} assigns, {how}. One base stands for all tasks, so "
        "what it keeps must be a tensor of every task, or the same for all. Return it from "
        "`forward`, or keep it as a tensor."
    )


class _Gone(Tensor):
    """Stands for something that an earlier call left, and that cannot be used in this one."""

    why: str

    @staticmethod
    def of(what: str, its_tasks: int, tasks: int, engine: str = "") -> "_Gone":
        gone = Tensor._make_subclass(_Gone, Tensor())
        if engine:
            gone.why = (
                f"`{what}` is what an earlier call left for each of {its_tasks} tasks. The "
                f"{engine} engine folds tasks "
                f'into one batch and cannot give each its own. Pass `engine="vmap"`, or set `{what}` anew.'
            )
        else:
            gone.why = (
                f"`{what}` is what an earlier call of {its_tasks} tasks left; this call is of "
                f"{tasks}. Each task gets back what its own last run left. Set `{what}` anew, as "
                "to None, before a call of other tasks."
            )
        return gone

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse to be used."""
        gone = next((a for a in (*args, *(kwargs or {}).values()) if isinstance(a, _Gone)), None)
        raise BatchingError(
            gone.why if gone is not None else "An earlier call left this for other tasks."
        )
