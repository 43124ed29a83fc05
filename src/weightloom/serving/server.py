"""Server: one model in memory, thousands of customers with parameters of their own.

In:   a model, a learner, and examples or a condition per customer.
Out:  outputs of batches whose rows belong to several customers, in one pass of the model.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from weightloom.base import per_task, specialise
from weightloom.base.check import check_names
from weightloom.errors import ConfigError, ShapeError, nearest
from weightloom.learners.learner import Learner
from weightloom.params import Params
from weightloom.serving.folder import (
    Part,
    check_weights,
    digests_of,
    read_index,
    read_part,
    write_folder,
)
from weightloom.serving.records import Kept, Pair, Record, Summed, pair_of
from weightloom.serving.stack import Stack
from weightloom.serving.statistics import Statistics
from weightloom.serving.writing import Groups, OfSums, modules_of, ways_of, writings_of

PER_FILE = 1000
"""Customers per file of a saved server."""


@dataclass
class _Entry:
    """Place of one customer's parameters, and the examples that they were written from."""

    stack: Stack
    slot: int
    record: Record | None
    """None if no examples are kept, as for a condition."""
    about: Any = None
    is_stale: bool = False
    """True if examples changed after the parameters were written."""


class Server:
    """One model for many customers, each with parameters written in one pass.

    A mapping from names to customers: ``server["ann"] = examples``, ``"ann" in server``,
    ``len(server)``, ``server.pop("ann")``. Parameters are held as factors where their form has
    factors, stacked in memory that grows by doubling. A call copies the rows of its customers only.

    All methods may be called by several threads. A call sees the parameters of each customer as of
    one moment: before or after a change, never in between.

    Args:
        model: The network that runs with the parameters. Put into eval mode.
        learner: A `Learner`, which reads examples ``(x, y)``; or a hypernetwork or another callable
            from conditions, (tasks, ...), to Params of ``model``; or `Statistics`. Put into eval
            mode.
        shared: Names or positions of the model's arguments that all rows share, as for `per_task`.

    Raises:
        ConfigError: If ``learner`` is none of these.

    Example:
        >>> from weightloom import LowRank, MLPHyperNetwork, mlp
        >>> model = mlp([3, 16, 16, 2])
        >>> hyper = MLPHyperNetwork(model, condition_dim=4, generate="2.weight", form=LowRank(2))
        >>> server = Server(model, hyper)
        >>> server["ann"], server["bob"] = torch.randn(4), torch.randn(4)
        >>> server(["ann", "bob", "ann"], torch.randn(3, 3)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        learner: Learner | Statistics | Callable[[Tensor], Params],
        *,
        shared: Collection[str | int] = (),
    ) -> None:
        self.model, self.learner = model, learner
        self._examples, self._conditions = writings_of(learner)
        for module in modules_of(model, learner, getattr(self._examples, "statistics", None)):
            module.eval()
        self._run = per_task(model, shared=shared)
        self._changes, self._lock = RLock(), RLock()  # taken in this order
        self._entries: dict[str, _Entry] = {}
        self._stacks: list[Stack] = []

    def __call__(self, names: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        """Run a batch whose rows belong to several customers, in one pass of the model.

        Args:
            names: Customer of each row.
            *args: Positional arguments of the model, every tensor ``(rows, ...)``.
            **kwargs: Named arguments of the model, every tensor ``(rows, ...)``.

        Returns:
            Outputs of the model, every tensor ``(rows, ...)``, without a gradient.

        Raises:
            ConfigError: If a customer is unknown.
            ShapeError: If a tensor has another number of rows, or customers have parameters of
                different shapes, such as heads for different numbers of classes.
        """
        if isinstance(names, str):
            raise ConfigError(
                f"`names` is the text {names!r}. It holds the customer of each row. Pass a list, "
                f"as in `server([{names!r}], x)`."
            )
        place = {name: number for number, name in enumerate(dict.fromkeys(names))}
        params = self.params(list(place))
        rows = torch.tensor([place[name] for name in names], dtype=torch.long)
        leaves = tree_flatten(params)[0]
        with torch.no_grad():
            device = leaves[0].device if leaves else None
            return self._run.by_row(params, rows.to(device), *args, **kwargs)

    def params(self, names: Iterable[str]) -> Params:
        """Copy the parameters of some customers, in this order.

        Raises:
            ConfigError: If a customer is unknown.
            ShapeError: If their parameters have different shapes.
        """
        names = list(names)
        with self._lock:
            self._refresh([name for name in names if self._entry(name).is_stale])
            entries = [self._entries[name] for name in names]
            if not entries:
                return Params()
            self._check_same(names, entries)
            return entries[0].stack.take([entry.slot for entry in entries])

    def __setitem__(self, name: str, examples: Any) -> None:
        """Write the parameters of a customer in one pass, replacing earlier ones.

        Args:
            name: The customer.
            examples: For a `Learner`, inputs and targets ``(x, y)``, (examples, ...) each; for a
                hypernetwork, a condition, without a tasks axis; for `Statistics`, ``(x, y)``, or
                ``x`` if no targets are read.

        Raises:
            ShapeError: If there are no examples, or shapes do not fit.
            ConfigError: If ``examples`` have another form.
            DataError: If features are not finite.
        """
        self.update({name: examples})

    def update(self, examples: Mapping[str, Any]) -> None:
        """Write the parameters of several customers in one pass; all are written or none.

        Args:
            examples: Examples or condition by customer, as for one.

        Raises:
            ShapeError, ConfigError, DataError: As for one.
        """
        with self._changes, torch.no_grad():
            written = []
            every, given = list(examples), list(examples.values())
            for writing, places in ways_of(self._examples, self._conditions, given):
                names = [every[place] for place in places]
                records = writing.records(names, [given[place] for place in places])
                written.append((names, records, writing.params(records)))
            for _, _, groups in written:
                for _, params in groups:
                    check_names(self.model, params)
            with self._lock:
                for names, records, groups in written:
                    kept = [its if isinstance(its, Kept | Summed) else None for its in records]
                    self._place(names, kept, groups)

    def __getitem__(self, name: str) -> "Customer":
        """Return a customer, to add and remove examples.

        Raises:
            ConfigError: If the customer is unknown.
        """
        with self._lock:
            self._entry(name)
        return Customer(self, name)

    def __delitem__(self, name: str) -> None:
        """Remove a customer: parameters, sums and examples.

        Raises:
            ConfigError: If the customer is unknown.
        """
        with self._changes, self._lock:
            entry = self._entry(name)
            del self._entries[name]
            entry.stack.drop(entry.slot)

    def pop(self, name: str) -> Params:
        """Remove a customer; return the parameters, with a tasks axis of 1.

        Raises:
            ConfigError: If the customer is unknown.
        """
        with self._changes, self._lock:
            params = self.params([name])
            del self[name]
            return params

    def __contains__(self, name: object) -> bool:
        with self._lock:
            return name in self._entries

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        kinds = f"{type(self.model).__name__}, {type(self.learner).__name__}"
        return f"Server({kinds}, customers={len(self):,})"

    def save(self, folder: str | Path) -> None:
        """Write all customers to a folder of safetensors files, completely or not at all.

        The folder also holds examples or their features, so that a loaded server can add and
        remove. Model and learner are not stored, only digests of their tensors.

        Args:
            folder: The folder; created if missing. Customers saved in it earlier are replaced.

        Raises:
            CheckpointError: If a file cannot be written. Customers saved earlier are kept.
        """
        with self._lock:
            self._refresh([name for name, entry in self._entries.items() if entry.is_stale])
            parts = list(self._parts())
        write_folder(Path(folder), parts, self._weights())

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: nn.Module,
        learner: Learner | Statistics | Callable[[Tensor], Params],
        *,
        shared: Collection[str | int] = (),
    ) -> "Server":
        """Read a folder of `save`, or of `weightloom adapt RUN customers.jsonl --out FOLDER`.

        Args:
            folder: The folder.
            model: The model, with the weights that it had.
            learner: The learner, likewise.
            shared: As for `Server`.

        Raises:
            CheckpointError: If a file is missing, damaged or incomplete, or model or learner have
                other weights than those that the parameters were written for.
        """
        server = cls(model, learner, shared=shared)
        folder = Path(folder)
        index = read_index(folder)
        check_weights(folder, index.weights, server._weights())
        products = isinstance(server._examples, OfSums) and server._examples.statistics.products
        for file in index.files:
            for part in read_part(folder / file, model, products):
                server._add(folder, part)
        return server

    def _weights(self) -> dict[str, str]:
        return digests_of({"model": self.model, "learner": self.learner})

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise ConfigError(
                f"{name!r} is none of {len(self._entries):,} customers. Each is written before it "
                f"is served. {nearest(str(name), self._entries)}"
            )
        return self._entries[name]

    def _refresh(self, names: Sequence[str]) -> None:
        """Write the parameters of customers whose examples changed."""
        if not names or self._examples is None:
            return
        records = [self._entries[name].record for name in names]
        with torch.no_grad():
            self._place(names, records, self._examples.params(records))

    def _place(
        self, names: Sequence[str], records: Sequence[Record | None], groups: Groups
    ) -> None:
        """Store parameters, in the slot that a customer has if it fits."""
        for numbers, params in groups:
            stack = self._stack(params)
            slots = [self._slot(names[number], stack) for number in numbers]
            stack.write(slots, params)
            for number, slot in zip(numbers, slots, strict=True):
                self._entries[names[number]] = _Entry(stack, slot, records[number])

    def _slot(self, name: str, stack: Stack) -> int:
        """Slot of a customer in a stack: the one that it has, or a new one."""
        old = self._entries.get(name)
        if old is not None and old.stack is stack:
            return old.slot
        if old is not None:
            old.stack.drop(old.slot)
        return stack.slot()

    def _stack(self, params: Params) -> Stack:
        found = next((stack for stack in self._stacks if stack.holds(params)), None)
        if found is None:
            found = Stack(params)
            self._stacks.append(found)
        return found

    def _check_same(self, names: Sequence[str], entries: Sequence[_Entry]) -> None:
        other = next((n for n, its in enumerate(entries) if its.stack is not entries[0].stack), 0)
        if other:
            first, second = (
                {name: tuple(value.shape[1:]) for name, value in its.stack.take([]).items()}
                for its in (entries[0], entries[other])
            )
            raise ShapeError(
                f"`{names[0]}` has parameters {first} and `{names[other]}` {second}. One pass "
                "serves parameters of one shape, so that outputs can be stacked. Call customers of "
                "different numbers of classes separately."
            )

    def _parts(self) -> Iterator[Part]:
        """Copy customers in groups of one structure, up to `PER_FILE` each."""
        groups: dict[Any, list[str]] = {}
        for name, entry in self._entries.items():
            groups.setdefault((id(entry.stack), type(entry.record)), []).append(name)
        for names in groups.values():
            for start in range(0, len(names), PER_FILE):
                some = names[start : start + PER_FILE]
                entries = [self._entries[name] for name in some]
                params = entries[0].stack.take([entry.slot for entry in entries])
                about = [entry.about for entry in entries]
                records = [entry.record for entry in entries if entry.record is not None]
                yield Part(some, params, about, records)

    def _add(self, folder: Path, part: Part) -> None:
        twice = next((name for name in part.names if name in self._entries), None)
        if twice is not None:
            raise ConfigError(
                f"`{folder}` holds the customer {twice!r} twice. Each name stands for one "
                "customer. Rename one of the two in the list of customers, and write it again."
            )
        check_names(self.model, part.params)
        stack = self._stack(part.params)
        records: Sequence[Record | None] = part.records or [None] * len(part.names)
        rows = zip(part.names, stack.put(part.params), records, part.about, strict=True)
        for name, slot, record, about in rows:
            self._entries[name] = _Entry(stack, slot, record, about)

    def _add_example(self, name: str, pair: Pair) -> None:
        if isinstance(self._examples, OfSums):
            with torch.no_grad():
                (features,), (labels,) = self._examples.encode([name], [pair])
            with self._lock:
                record = self._record(name)
                assert isinstance(record, Summed)
                record.add(pair.keys(), features, labels)
                self._entries[name].is_stale = True
            return
        with self._changes:
            record = self._record(name)
            assert isinstance(record, Kept)
            self._rewrite(name, record.added(pair))

    def _remove_example(self, name: str, pair: Pair) -> None:
        with self._changes:
            record = self._record(name)
            if isinstance(record, Kept):
                self._rewrite(name, record.removed(name, pair))
                return
            with self._lock:  # readers sum and write what is stale
                record.remove(name, pair)
                self._entries[name].is_stale = True

    def _rewrite(self, name: str, record: Kept) -> None:
        assert self._examples is not None
        with torch.no_grad():
            groups = self._examples.params([record])
        with self._lock:
            self._place([name], [record], groups)

    def _record(self, name: str) -> Record:
        with self._lock:
            record = self._entry(name).record
        if record is None:
            raise ConfigError(
                f"`{name}` was written from a condition, or loaded without examples. Only a "
                "customer whose examples are here can be changed by one. Write all again, as in "
                f"`server[{name!r}] = examples`."
            )
        return record


class Customer:
    """One customer of a `Server`, made by ``server[name]``.

    Args:
        server: The server.
        name: The customer.
    """

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name

    def add(self, x: Any, y: Any = None) -> None:
        """Add one example.

        If the learner reads sums, the cost does not depend on the number of examples, and
        parameters are written at the next use. Otherwise they are written now, from all examples.

        Args:
            x: Its input, without an axis of examples.
            y: Its target or label; None if the learner reads none.

        Raises:
            ShapeError: If shapes do not fit, or the label is no class.
            ConfigError: If the customer has no examples to add to, such as one with a condition.
            DataError: If its features are not finite.
        """
        self.server._add_example(self.name, pair_of(self.name, x, y, alone=True))

    def remove(self, x: Any, y: Any = None) -> None:
        """Remove one example, equal to one that was added.

        The customer is then as if the example had never been added, to the last bit where the
        learner reads sums. This says nothing of customers who were in meta-training.

        Args:
            x: Its input.
            y: Its target or label.

        Raises:
            ConfigError: If there is no such example, or it is the last.
        """
        self.server._remove_example(self.name, pair_of(self.name, x, y, alone=True))

    @property
    def params(self) -> Params:
        """The parameters, with a tasks axis of 1."""
        return self.server.params([self.name])

    @property
    def about(self) -> Any:
        """Facts from the file that the customer was loaded from, such as names of classes."""
        with self.server._lock:
            return self.server._entry(self.name).about

    def __len__(self) -> int:
        """Return the number of examples; 0 if they are not kept."""
        with self.server._lock:
            record = self.server._entry(self.name).record
            return 0 if record is None else len(record)

    def network(self) -> nn.Module:
        """Return the customer's own network as a plain module, by `specialise`."""
        return specialise(self.server.model, self.params)

    def __repr__(self) -> str:
        return f"Customer({self.name!r}, examples={len(self)})"
