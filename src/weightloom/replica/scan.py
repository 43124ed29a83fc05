"""Everything that `forward` may follow besides its arguments.

Found by walking through a base's attributes.

In:   a base network as it stands.
Out:  its modules, a key that is equal as long as the base does the same, and the places where a
      reference to one of its modules or parameters is kept outside of torch's own dicts.
Knows nothing of tasks.

A walk takes a few microseconds per module, and is made anew for every call, so that it is right
whatever was changed since the last one.
"""

import enum
import functools
import logging
import types
import weakref
from collections import deque
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
"""As many objects are looked at outside of torch's own dicts; what is behind counts as unseen."""

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


@no_type_check
class Key:
    """All that was read of a base, to be compared and looked up; it is hashed once."""

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
    """A base as it stands.

    Args:
        base: Any module.
    """

    def __init__(self, base: nn.Module) -> None:
        self.modules: list[nn.Module] = [base]
        """Every module once: those that are registered, in order, then those that are only kept
        somewhere."""
        self.kept: list[tuple[int, str]] = []
        """Attributes, by number of the module and name, behind which a reference to the base's own
        is kept."""
        self.holders: set[int] = set()
        """Objects, by id, through which such a reference is reached."""
        self.unseen = False
        """Whether something may change what `forward` does that cannot be looked at."""
        self.versions = False
        """Whether `forward` asks how often a tensor was changed."""
        self.tensors: list[Tensor] = []
        """Tensors that are kept in attributes, and are neither parameters nor buffers."""
        self.generators: list[torch.Generator] = []
        """Sources of random numbers that are kept."""
        self.globals: list[tuple[dict[str, Any], str]] = []
        """Global names that code of the base looks up, with the dict that they are in."""
        self.mutable: list[Any] = []
        """Lists, dicts, sets, objects and closure cells that are reached."""
        self.of_hooks: list[Any] = []
        """The same, as far as only hooks reach it: what they write is for whoever hooked in."""
        self.hooked = False
        """Whether a user hooked into a module."""
        self.children: list[tuple[int, str, int]] = []
        """Every child: number of the module, name, number of the child."""
        self.number_of: dict[int, int] = {id(base): 0}
        """Number of each module, by id."""
        self.names: Any = None
        """Every name of every parameter and buffer, once they were looked up."""
        self.plans: dict[Any, Any] = {}
        """What was found out about calls of this base, as long as nothing of it changes."""
        self.checked: set[Any] = set()
        """Kinds of parameters that were checked to fit it."""
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
        tables = [
            table for m in self.modules if not is_script(m) for table in (m._parameters, m._buffers)
        ]
        self._own = {id(value) for table in tables for value in table.values()}
        self.key = Key(self._walk())
        self._climb()
        self._before = [
            ({}, {}, [])
            if is_script(m)
            else (
                m.__dict__,
                m.__dict__.copy(),
                [(t, t.copy()) for t in (m._parameters, m._buffers, m._modules)],
            )
            for m in self.modules
        ]
        self.kinds: list[tuple[nn.Module, Any, tuple[str, ...]]] = [
            (m, type(m), slots_of(m)) for m in self.modules
        ]
        self._empty = [m.__dict__[name] for m in self.modules if not is_script(m) for name in HOOKS]

    @property
    def base(self) -> nn.Module:
        """The base itself."""
        return self.modules[0]

    def still_holds(self) -> bool:
        """Whether nothing was changed since.

        By comparing what everything holds, as a walk would find it.
        """
        if self.kept or any(self._empty):  # objects that hold modules; somebody hooked in
            return False
        try:
            for held, before, tables in self._before:
                if held != before:  # identity first
                    return False
                for table, its in tables:
                    if table != its:
                        return False
        except (
            RuntimeError,
            ValueError,
            TypeError,
        ):  # of tensors, which are compared only where they were replaced
            return False
        return all(tuple(its) == before for its, before in self._lists) and (
            not self._walked or self._same_beneath()
        )

    def _same_beneath(self) -> bool:
        """Whether objects that modules hold, and what their code reads, are the same and as they were."""
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
        """Take note of what a run assigned to a module: it is no change from outside."""
        _, before, tables = self._before[number]
        for table, its in tables:
            if name in table:
                its[name] = value
                return
        if name in before:
            before[name] = value

    def without_base(self) -> "Scan":
        """The same to be kept while the base may go."""
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
        """Read every module; return a key for all that was read."""
        rows: list[Any] = []
        ties: dict[int, int] = {}
        reads: dict[type, Reads] = {}
        for number, module in enumerate(self.modules):  # grows while it is read
            held: dict[str, Any] = module.__dict__
            kind: Any = type(module)
            if is_script(module):
                rows.append(kind)
                continue
            row: list[Any] = [kind, len(held)]
            hidden = getattr(kind, "not_walked", ())
            for name, value in held.items():
                if type(value) in PLAIN:
                    row.append(value)
                elif name in STANDARD:
                    if name in _TABLES:
                        row.append(tuple(value))
                        if name == "_parameters":
                            row += [ties.setdefault(id(v), len(ties)) for v in value.values()]
                        elif name == "_modules":
                            for its, child in value.items():
                                if child is not None:
                                    self.children.append((number, its, self._number(inner(child))))
                                    row.append(self.children[-1][2])
                    elif value and name not in _NAMES_TOO:
                        row.append(self._hooks(number, name, value))
                elif type(value) is tuple and all(type(item) in PLAIN for item in value):
                    row.append(value)
                elif (
                    type(value) is list
                    and len(value) < 10
                    and all(type(item) in PLAIN for item in value)
                ):
                    row.append(tuple(value))
                    self._lists.append((value, tuple(value)))
                    self.mutable.append(value)
                elif name not in hidden and name != "_compiled_call_impl":
                    self._looks.append((value, -1 - number, name))
                    self._beneath.append(self._look(value, -1 - number, name))
                    row.append(self._beneath[-1])
            rows.append(tuple(row))
            if not kind.__module__.startswith("torch.nn"):
                reads[kind] = reads_of(kind)
        self._reads = [its for its in reads.values() if its.steady or its.volatile or its.versions]
        self._beneath += [self._read(its) for its in self._reads]
        return (*rows, *self._beneath[len(self._looks) :])

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
        """Read one object; return its key. ``above`` is what holds it.

        A module's number below zero, or an id.
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
            if above == 0 and id(value) not in self.number_of:  # a global: not part of the base
                self.unseen = True
                return value
            return self._reference(value, above, name, ("module", self._number(value)))
        if isinstance(value, Tensor):
            key = (kind, value.dtype, tuple(value.shape) if not value.is_nested else None)
            if id(value) in self._own:
                return self._reference(value, above, name, key)
            self.tensors.append(value)
            return key
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
        key: list[Any] = []
        known = True
        if isinstance(value, dict):
            key += [self._each(list(value), me), self._each(list(value.values()), me)]
        elif isinstance(value, list | tuple | deque):
            key.append(self._each(list(value), me))
        elif isinstance(value, set | frozenset):
            key.append(frozenset(self._look(item, me) for item in value))
        else:
            known = False
        attributes = attributes_of(value)
        if attributes:
            key += [tuple(attributes), self._each(list(attributes.values()), me)]
        if not known and attributes is None:
            try:
                hash(value)
            except TypeError:
                self.unseen = True
                return id(value)
            self.unseen = self.unseen or hasattr(value, "__next__")
            return value
        if not isinstance(value, tuple | frozenset) or attributes:
            self.mutable.append(value)
        return tuple(key)

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
        """From every reference that was found up to the attribute behind which it is kept."""
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


_last: "weakref.WeakKeyDictionary[nn.Module, Scan]" = weakref.WeakKeyDictionary()
LAST_KEPT = 50


@no_type_check
def scan_of(base: nn.Module) -> Scan:
    """Scan a base, or find that the last scan still holds."""
    last = _last.get(base)
    if last is not None and last.still_holds():
        return last.with_base(base)
    found = Scan(base)
    if not found.kept:
        while len(_last) >= LAST_KEPT:
            _last.pop(next(iter(_last)), None)
        _last[base] = found.without_base()
    return found
