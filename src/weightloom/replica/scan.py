"""Scan of a base: all values that its `forward` may depend on besides its arguments.

In:   a base network in its current state.
Out:  its modules; a key that stays equal as long as the base's behaviour stays the same; and the
      attributes that refer to its modules or parameters outside of torch's own dicts.
Knows nothing of tasks.

A walk through all attributes takes a few microseconds per module. Every call compares the base with
its last scan, and walks again if anything changed.
"""

import enum
import functools
import logging
import types
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.replica.hot import no_type_check
from weightloom.replica.modules import (
    HOOKS,
    STANDARD,
    children_of,
    inner,
    is_script,
    is_torchs_hook,
    slots_of,
)
from weightloom.replica.reads import Reads, reads_of
from weightloom.replica.tree import PLAIN, attributes_of, behind

MOST_NODES = 5_000
"""Maximum of objects that are read outside of torch's own dicts; the rest counts as unseen."""

_NAMES_TOO = {"_non_persistent_buffers_set", "_is_full_backward_hook"}
_TABLES = {"_parameters", "_buffers", "_modules"}
CONSTANT = (
    enum.Enum,
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    logging.Logger,
    torch.Generator,
    property,
)
"""Classes of objects that are compared by themselves, and not read."""


@no_type_check
class Key:
    """Key of all values that a scan read, for lookups; hashed once."""

    def __init__(self, value: Any) -> None:
        self.value, self._hash = value, hash(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Key) and self._hash == other._hash and self.value == other.value
        )


@no_type_check
class Scan:
    """State of a base when it was scanned: its modules, a key, and the objects in attributes.

    Args:
        base: Any module.
    """

    def __init__(self, base: nn.Module) -> None:
        self.modules: list[nn.Module] = [base]
        """Each module once: registered ones in order, then those that attributes refer to."""
        self.kept: list[tuple[int, str]] = []
        """Attributes behind which a reference to an own module or tensor of the base lies: number
        of the module, and name."""
        self.holders: set[int] = set()
        """Ids of the objects between these attributes and the references."""
        self.unseen = False
        """True if `forward` may depend on values that a scan cannot read."""
        self.versions = False
        """True if `forward` reads ``Tensor._version``."""
        self.tensors: list[Tensor] = []
        """Tensors in attributes that are neither parameters nor buffers."""
        self.generators: list[torch.Generator] = []
        """Generators of random numbers in attributes."""
        self.globals: list[tuple[dict[str, Any], str]] = []
        """Global names that the code of the base looks up, with the dict of each."""
        self.mutable: list[Any] = []
        """Lists, dicts, sets, objects and closure cells that attributes refer to."""
        self.of_hooks: list[Any] = []
        """Such objects that only hooks refer to, whose changes are the business of their users."""
        self.hooked = False
        """True if a module has a hook that is not part of torch."""
        self.children: list[tuple[int, str, int]] = []
        """Registered children: number of the parent, name, number of the child."""
        self.number_of: dict[int, int] = {id(base): 0}
        """Number of each module, by id."""
        self.names: Any = None
        """All names of parameters and buffers; None before `replica.named` has read them."""
        self.plans: dict[Any, Any] = {}
        """Plans of calls of this base, valid as long as the scan still holds."""
        self.checked: set[Any] = set()
        """Kinds of parameters and buffers that were checked to fit the base."""
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []
        self._above: dict[int, list[int]] = {}
        self._found: set[int] = set()
        self._lists: list[tuple[list[Any], tuple[Any, ...]]] = []
        self._walked = False
        self._looks: list[tuple[Any, int, str]] = []
        self._reads: list[Reads] = []
        self._beneath: list[Any] = []
        self._first: tuple[type, tuple[str, ...]] = (type(base), ())
        for module in self.modules:  # grows while it is read
            for child in children_of(module):
                self._number(child)
        self.registered = len(self.modules)
        self._own = _own_ids(self.modules)
        self.key = Key(self._walk())
        self._climb()
        self._before = [_snapshot(module) for module in self.modules]
        self.kinds: list[tuple[nn.Module, Any, tuple[str, ...]]] = [
            (m, type(m), slots_of(m)) for m in self.modules
        ]
        self._empty = [held[name] for held, *_ in self._before if held for name in HOOKS]

    @property
    def base(self) -> nn.Module:
        """The scanned base."""
        return self.modules[0]

    def still_holds(self) -> bool:
        """True if the base is unchanged since the scan; False if it changed or may have changed.

        A base with hooks, or with references to its own modules or tensors, is always scanned anew.
        """
        if self.kept or any(self._empty) or not _equal(self._before):
            return False
        return all(tuple(its) == before for its, before in self._lists) and (
            not self._walked or self._same_beneath()
        )

    def _same_beneath(self) -> bool:
        """True if the objects in attributes, and the values that code reads, are unchanged."""
        again = object.__new__(Scan)
        again.__dict__.update(self.__dict__)
        again._seen, again._alive, again._above, again._found, again.tensors = {}, [], {}, set(), []
        again.kept, again.generators, again.globals, again.mutable = [], [], [], []
        again.modules, again.number_of = [*self.modules], {**self.number_of}
        keys = [again._look(*its) for its in self._looks] + [
            again._read(its) for its in self._reads
        ]
        return (
            keys == self._beneath
            and [*map(id, again._alive)] == [*map(id, self._alive)]
            and [*map(id, again.tensors)] == [*map(id, self.tensors)]
        )

    def assigned(self, number: int, name: str, value: Any) -> None:
        """Record a value that a run assigned to a module, so that `still_holds` stays true."""
        _, before, tables = self._before[number]
        for table, its in tables:
            if name in table:
                its[name] = value
                return
        if name in before:
            before[name] = value

    def without_base(self) -> "Scan":
        """A copy without a reference to the base, so that the base can be freed."""
        kept = object.__new__(Scan)
        kept.__dict__.update(self.__dict__)
        kept.modules, kept.kinds = self.modules[1:], self.kinds[1:]
        kept.names = None
        kept._first = self.kinds[0][1:]
        return kept

    def with_base(self, base: nn.Module) -> "Scan":
        """The inverse of `without_base`."""
        whole = object.__new__(Scan)
        whole.__dict__.update(self.__dict__)
        whole.modules, whole.kinds = [base, *self.modules], [(base, *self._first), *self.kinds]
        return whole

    def _number(self, module: nn.Module) -> int:
        number = self.number_of.setdefault(id(module), len(self.modules))
        if number == len(self.modules):
            self.modules.append(module)
        return number

    def _walk(self) -> Any:
        """Read every module; return a key of all values that were read."""
        rows: list[Any] = []
        ties: dict[int, int] = {}
        reads: dict[type, Reads] = {}
        for number, module in enumerate(self.modules):  # grows while it is read
            kind: Any = type(module)
            if is_script(module):
                rows.append(kind)
                continue
            rows.append(self._row(number, module, ties))
            if not kind.__module__.startswith("torch.nn"):
                reads[kind] = reads_of(kind)
        self._reads = [its for its in reads.values() if its.steady or its.volatile or its.versions]
        self._beneath += [self._read(its) for its in self._reads]
        return (*rows, *self._beneath[len(self._looks) :])

    def _row(self, number: int, module: nn.Module, ties: dict[int, int]) -> tuple[Any, ...]:
        """Read one module; return a key of its attributes."""
        kind: Any = type(module)
        row: list[Any] = [kind, len(module.__dict__)]
        hidden = ("_compiled_call_impl", *getattr(kind, "not_walked", ()))
        for name, value in module.__dict__.items():
            if type(value) in PLAIN:
                row.append(value)
            elif name in _TABLES:
                row.append(tuple(value))
                if value:
                    row += self._table(number, name, value, ties)
            elif name in STANDARD:
                if value and name not in _NAMES_TOO:
                    row.append(self._hooks(number, name, value))
            elif _is_plain_sequence(value):
                row.append(self._plain_sequence(value))
            elif name not in hidden:
                row.append(self._attribute(value, number, name))
        return tuple(row)

    def _table(
        self, number: int, name: str, table: dict[str, Any], ties: dict[int, int]
    ) -> list[int]:
        """Numbers of a module's tied parameters, or of its children; none for buffers."""
        if name == "_parameters":
            return [ties.setdefault(id(value), len(ties)) for value in table.values()]
        if name != "_modules":
            return []
        added = [
            (number, its, self._number(inner(child)))
            for its, child in table.items()
            if child is not None
        ]
        self.children += added
        return [child for _, _, child in added]

    def _plain_sequence(self, value: Any) -> tuple[Any, ...]:
        plain = tuple(value)
        if type(value) is list:
            self._lists.append((value, plain))
            self.mutable.append(value)
        return plain

    def _attribute(self, value: Any, number: int, name: str) -> Any:
        self._looks.append((value, -1 - number, name))
        self._beneath.append(self._look(value, -1 - number, name))
        return self._beneath[-1]

    def _hooks(self, number: int, name: str, hooks: Any) -> Any:
        if name in HOOKS and any(not is_torchs_hook(hook) for hook in hooks.values()):
            self.hooked = True
        mutable = len(self.mutable)
        key = (
            tuple([self._look(hook, -1 - number, name) for hook in hooks.values()])
            if name in HOOKS
            else len(hooks)
        )
        self.of_hooks += self.mutable[mutable:]
        del self.mutable[mutable:]
        return key

    def _read(self, reads: Reads) -> Any:
        self.unseen = self.unseen or reads.volatile
        self.versions = self.versions or reads.versions
        self.globals += [
            (holder, name) for holder, name in reads.steady if isinstance(holder, dict)
        ]
        self._walked = True
        return self._each(reads.values(), 0)

    def _look(self, value: Any, above: int, name: str = "") -> Any:
        """Read one object; return its key.

        ``above`` is the object that refers to it: ``-1 - number`` for a module, an id for any
        other, 0 for code.
        """
        kind = type(value)
        if kind in PLAIN:
            return value
        self._walked = True
        if kind in weakref.ProxyTypes:
            me = id(value)
            self._hold(me, above, name)
            return kind, self._look(behind(value), me)
        if isinstance(value, nn.Module):
            return self._module(value, above, name)
        if isinstance(value, Tensor):
            return self._tensor(value, above, name)
        if isinstance(value, CONSTANT):
            if isinstance(value, torch.Generator):
                self.generators.append(value)
            return value
        me = id(value)
        self._hold(me, above, name)
        if me in self._seen:
            return "seen", self._seen[me]
        self._seen[me] = len(self._seen)
        self._alive.append(value)
        if len(self._alive) > MOST_NODES:
            self.unseen = True
            return kind, me
        return kind, self._inside(value, me)

    def _module(self, value: nn.Module, above: int, name: str) -> Any:
        if above == 0 and id(value) not in self.number_of:  # a global: not part of the base
            self.unseen = True
            return value
        return self._reference(value, above, name, ("module", self._number(value)))

    def _tensor(self, value: Tensor, above: int, name: str) -> Any:
        key = (type(value), value.dtype, tuple(value.shape) if not value.is_nested else None)
        if id(value) in self._own:
            return self._reference(value, above, name, key)
        self.tensors.append(value)
        return key

    def _inside(self, value: Any, me: int) -> Any:
        if isinstance(value, weakref.ref):
            return self._look(value(), me)
        if isinstance(value, types.MethodType):
            return self._look(value.__func__, me), self._look(value.__self__, me)
        if isinstance(value, functools.partial):
            return self._each([value.func, *value.args, *value.keywords.values()], me), tuple(
                value.keywords
            )
        if isinstance(value, types.FunctionType):
            return self._function(value, me)
        if type(value).__module__ == "numpy":
            return self._array(value)
        if hasattr(value, "tobytes") and hasattr(value, "typecode"):
            return value.tobytes()
        return self._object(value, me)

    def _object(self, value: Any, me: int) -> Any:
        items = self._items(value, me)
        attributes = attributes_of(value)
        if items is None and attributes is None:
            return self._opaque(value)
        key: list[Any] = items or []
        if attributes:
            key += [tuple(attributes), self._each(list(attributes.values()), me)]
        if not isinstance(value, tuple | frozenset) or attributes:
            self.mutable.append(value)
        return tuple(key)

    def _items(self, value: Any, me: int) -> list[Any] | None:
        """Keys of the items of a container; None for any other object."""
        if isinstance(value, dict):
            return [self._each(list(value), me), self._each(list(value.values()), me)]
        if isinstance(value, list | tuple | deque):
            return [self._each(list(value), me)]
        if isinstance(value, set | frozenset):
            return [frozenset(self._look(item, me) for item in value)]
        return None

    def _opaque(self, value: Any) -> Any:
        """Key of an object without items and attributes."""
        try:
            hash(value)
        except TypeError:
            self.unseen = True
            return id(value)
        self.unseen = self.unseen or hasattr(value, "__next__")
        return value

    def _function(self, function: Any, me: int) -> Any:
        key: list[Any] = [function.__code__]
        for cell in function.__closure__ or ():
            self.mutable.append(cell)
            try:
                key.append(self._look(cell.cell_contents, me))
            except ValueError:
                key.append(None)
        key.append(
            self._each(
                [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()], me
            )
        )
        if not str(function.__module__).startswith("torch"):
            reads = reads_of(function)
            self.unseen, self.versions = (
                self.unseen or reads.volatile,
                self.versions or reads.versions,
            )
            key.append(self._each(reads.values(), me))
        return tuple(key)

    def _array(self, value: Any) -> Any:
        if value.nbytes > 10_000 or value.dtype.hasobject:
            self.unseen = True
            return id(value)
        return value.dtype.str, value.shape, value.tobytes()

    def _each(self, values: list[Any], me: int) -> Any:
        return tuple([value if type(value) in PLAIN else self._look(value, me) for value in values])

    def _reference(self, value: Any, above: int, name: str, key: Any) -> Any:
        self._hold(id(value), above, name)
        self._found.add(id(value))
        return key

    def _hold(self, me: int, above: int, name: str) -> None:
        if above < 0:
            self.kept.append((-1 - above, name))
            above = -len(self.kept)
        self._above.setdefault(me, []).append(above)

    def _climb(self) -> None:
        """Find the attributes and objects from which a reference is reached, upwards from each."""
        if not self._found:
            self.kept = []
            return
        kept, todo, seen = set(), list(self._found), set(self._found)
        while todo:
            for above in self._above.get(todo.pop(), ()):
                if above < 0:
                    kept.add(-above - 1)
                elif above not in seen:
                    seen.add(above)
                    todo.append(above)
        self.holders = seen - self._found
        self.kept = [its for number, its in enumerate(self.kept) if number in kept]


@no_type_check
def _own_ids(modules: Sequence[nn.Module]) -> set[int]:
    """Ids of all parameters and buffers, except for those of modules that `torch.jit` compiled."""
    return {
        id(value)
        for module in modules
        if not is_script(module)
        for table in (module._parameters, module._buffers)
        for value in table.values()
    }


@no_type_check
def _snapshot(module: nn.Module) -> tuple[Any, ...]:
    """Dict of a module with a copy, and its tables with copies; all empty for a compiled one."""
    if is_script(module):
        return {}, {}, []
    held = module.__dict__
    tables = [(t, t.copy()) for t in (module._parameters, module._buffers, module._modules)]
    return held, held.copy(), tables


@no_type_check
def _equal(snapshots: Sequence[tuple[Any, ...]]) -> bool:
    """True if all modules hold the values of their snapshots."""
    try:
        for held, before, tables in snapshots:
            # Dicts compare values by identity first, so unchanged tensors cost nothing.
            if held != before:
                return False
            for table, its in tables:
                if table != its:
                    return False
    except (RuntimeError, ValueError, TypeError):  # comparing a tensor with its replacement
        return False
    return True


@no_type_check
def _is_plain_sequence(value: Any) -> bool:
    """True for a tuple, or a list of fewer than ten, whose items are all plain values."""
    kind = type(value)
    if kind is not tuple and (kind is not list or len(value) >= 10):
        return False
    return PLAIN.issuperset(map(type, value))


_last: "weakref.WeakKeyDictionary[nn.Module, Scan]" = weakref.WeakKeyDictionary()
LAST_KEPT = 50
"""Maximum of bases whose last scan is kept."""


@no_type_check
def scan_of(base: nn.Module) -> Scan:
    """Scan a base; return the last scan if it still holds.

    Args:
        base: Any module.
    """
    last = _last.get(base)
    if last is not None and last.still_holds():
        return last.with_base(base)
    found = Scan(base)
    if not found.kept:
        while len(_last) >= LAST_KEPT:
            _last.pop(next(iter(_last)), None)
        _last[base] = found.without_base()
    return found
