"""Parameters of any number of customers, written to a folder batch by batch.

In:   customers one after the other, each a name and examples or a condition, or a line of text.
Out:  a file per batch, named after the batch's contents, and an index at the end.

A file is written atomically, so a killed job goes on with the first batch whose file is missing.
Memory holds two batches. The folder is read by `Server.load`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from weightloom.base.check import check_names
from weightloom.errors import ConfigError, DataError
from weightloom.files import make_folder
from weightloom.learners.learner import Learner
from weightloom.params import Params
from weightloom.progress import counting
from weightloom.serving.folder import (
    Part,
    digests_of,
    named,
    remove_leftovers,
    write_index,
    write_parts,
)
from weightloom.serving.records import bytes_of, leaves_of
from weightloom.serving.statistics import Statistics
from weightloom.serving.writing import OfExamples, Writing, modules_of, ways_of, writings_of

BATCH = 256
"""Customers per batch."""


class Given(NamedTuple):
    """One customer."""

    name: str
    examples: Any
    """Examples or condition, as for `Server`."""
    about: Any = None
    """Facts to store with the parameters, JSON values, such as names of classes."""


class Written(NamedTuple):
    """Outcome of `write_customers`."""

    customers: int
    """Customers in the input."""
    files: int
    """Files written in this call."""
    found: int
    """Files of this shard that an earlier call wrote."""
    is_complete: bool
    """True if the files of all shards are there, and the index is written."""


class CustomerWriter:
    """Writer of batches of customers to one folder; several processes may write to it.

    Calling it with the same batch twice writes one file once, so that an engine that repeats a
    failed batch leaves no customer twice.

    Args:
        model: The network that runs with the parameters. Put into eval mode.
        learner: As for `Server`. Put into eval mode.
        folder: The folder; created if missing.
        read: Maps the items of a batch to `Given`, or to ``(name, examples)``. Default: items are
            that already.

    Raises:
        ConfigError: If the folder cannot be created, or ``learner`` cannot write parameters.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from weightloom import MLPHyperNetwork, Server
        >>> model = nn.Linear(3, 2)
        >>> hyper = MLPHyperNetwork(model, condition_dim=4)
        >>> with TemporaryDirectory() as folder:
        ...     write = CustomerWriter(model, hyper, folder)
        ...     write.finish([write([("ann", torch.randn(4)), ("bob", torch.randn(4))])])
        ...     list(Server.load(folder, model, hyper))
        ['ann', 'bob']
    """

    def __init__(
        self,
        model: nn.Module,
        learner: Learner | Statistics | Callable[[Tensor], Params],
        folder: str | Path,
        read: Callable[[Sequence[Any]], Sequence[tuple[Any, ...]]] | None = None,
    ) -> None:
        self.model, self.folder, self.read = model, Path(folder), read
        self._examples, self._conditions = writings_of(learner)
        if isinstance(learner, Learner):
            self._examples = OfExamples(learner)  # nothing is added later, so no sums are kept
        for module in modules_of(model, learner):
            module.eval()
        self._weights = digests_of({"model": model, "learner": learner})
        self._start = json.dumps(self._weights, sort_keys=True).encode()
        make_folder(self.folder, "folder")

    def file(self, items: Sequence[Any]) -> str:
        """Return the name of a batch's file, a digest of its items and of all weights."""
        found = hashlib.sha256(self._start)
        for item in items:
            _add(item, found)
        return named(found.digest())

    def __call__(self, items: Sequence[Any]) -> str:
        """Write the parameters of a batch, unless its file exists.

        Args:
            items: The customers, as ``read`` takes them.

        Returns:
            Name of the file.

        Raises:
            DataError: If two customers have one name, or examples cannot be read.
            ShapeError: If shapes do not fit.
            CheckpointError: If the file cannot be written.
        """
        file = self.file(items)
        if not self.has(file):
            self.store(file, self.parts(items))
        return file

    def has(self, file: str) -> bool:
        """Return True if a batch's file is there."""
        return (self.folder / file).exists()

    def finish(self, files: Iterable[str]) -> None:
        """Write the index, which completes the folder.

        Args:
            files: Names of all files, in order.

        Raises:
            CheckpointError: If it cannot be written.
        """
        write_index(self.folder, list(files), self._weights)

    def store(self, file: str, parts: Sequence[Part]) -> None:
        """Write the parameters of a batch to its file, after leftovers of a killed writer."""
        remove_leftovers(self.folder, file)
        write_parts(self.folder / file, parts)

    def parts(self, items: Sequence[Any]) -> list[Part]:
        """Generate the parameters of a batch, in groups of one structure."""
        given = [Given(*its) for its in (self.read(items) if self.read else items)]
        _check_names_differ([its.name for its in given])
        ways = ways_of(self._examples, self._conditions, [its.examples for its in given])
        return [
            part
            for writing, places in ways
            for part in self._parts(writing, [given[place] for place in places])
        ]

    def _parts(self, writing: Writing, given: Sequence[Given]) -> Iterator[Part]:
        records = writing.records([its.name for its in given], [its.examples for its in given])
        with torch.no_grad():
            groups = writing.params(records)
        for numbers, params in groups:
            check_names(self.model, params)
            members = [given[number] for number in numbers]
            yield Part([its.name for its in members], params, [its.about for its in members])


def _check_names_differ(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise DataError(
            f"The customer {twice!r} is there twice. Each name stands for one customer. Join the "
            "examples of both, or rename one."
        )


def write_customers(
    customers: Iterable[Any],
    write: CustomerWriter,
    *,
    batch: int = BATCH,
    shard: tuple[int, int] = (1, 1),
    quiet: bool = False,
) -> Written:
    """Write the parameters of any number of customers; go on where a killed call stopped.

    Batches are the same for every number of shards. A batch whose customers and weights have not
    changed since an earlier call is not written again.

    Args:
        customers: Names and examples, or any items that ``write`` reads. Names must differ.
        write: The writer.
        batch: Customers per pass and per file.
        shard: ``(i, n)``: write every n-th batch, from the i-th on; i counts from 1. All n shards
            may run at the same time; the last to end writes the index.
        quiet: Show no progress; it is also not shown if ``customers`` has no length.

    Returns:
        The numbers of customers and files, and True if all shards are complete.

    Raises:
        ConfigError: If ``batch`` or ``shard`` is out of range.
        DataError, ShapeError, CheckpointError: As by `CustomerWriter`.
    """
    number, shards = _checked(batch, shard)
    total = len(customers) if isinstance(customers, Sized) and not quiet else 0
    files, done, new, found = list[str](), 0, 0, 0
    progress = counting("adapting", total) if total else nullcontext(_unseen)
    with progress as show, ThreadPoolExecutor(1) as disk:
        stored = disk.submit(_unseen, 0)
        for place, items in enumerate(_batches(customers, batch)):
            files.append(write.file(items))
            if place % shards == number - 1 and write.has(files[-1]):
                found += 1
            elif place % shards == number - 1:
                parts = write.parts(items)
                stored.result()  # one file is written while the next batch is computed
                stored = disk.submit(write.store, files[-1], parts)
                new += 1
            done += len(items)
            show(done)
        stored.result()
    is_complete = all(map(write.has, files))
    if is_complete:
        write.finish(files)
    return Written(done, new, found, is_complete)


def _unseen(done: int) -> None:
    """Show no progress."""


def _checked(batch: int, shard: tuple[int, int]) -> tuple[int, int]:
    number, shards = shard
    if batch < 1:
        raise ConfigError(f"`batch={batch}`. It is a number of customers. Pass 1 or more.")
    if not 1 <= number <= shards:
        raise ConfigError(
            f"`shard={number}/{shards}`. It is the number of a shard, from 1, and that of all "
            "shards. Pass one from 1/1 up, such as 1/2 and 2/2 for two jobs."
        )
    return number, shards


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _add(item: Any, found: Any) -> None:
    """Add the bytes that determine an item to a digest: its text, or its facts and numbers."""
    if isinstance(item, str):
        content = item.encode(errors="surrogatepass")
        found.update(b"%d:%b" % (len(content), content))
        return
    arrays, facts = list[Tensor](), list[str]()
    for leaf in leaves_of(item):
        if hasattr(leaf, "__array__"):
            arrays.append(torch.as_tensor(leaf))
            facts.append(f"{arrays[-1].dtype} {tuple(arrays[-1].shape)}")
        else:
            facts.append(repr(leaf))
    if not all(isinstance(its, str | Tensor | tuple | None) for its in item):
        facts.append(str(tree_flatten(tuple(item))[1]))  # names in a mapping
    found.update("|".join(facts).encode(errors="surrogatepass"))
    for array in arrays:
        found.update(bytes_of(array))
