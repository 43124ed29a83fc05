"""Examples of one customer, as far as they are needed to add and remove some.

In:   examples, (x, y), inputs and targets of equal length.
Out:  `Kept`, the examples themselves, or `Summed`, exact sums over their features; tensors and
      facts to store in a file.
Knows nothing of learners or models.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from weightloom.errors import ConfigError, ShapeError
from weightloom.serving.statistics import ExactSums, Moments

KEY_BYTES = 16


class Pair(NamedTuple):
    """Inputs and targets of some examples, trees of tensors (examples, ...)."""

    x: Any
    """Inputs."""
    y: Any
    """Targets or labels; an empty tuple if the learner reads none."""

    def __len__(self) -> int:
        return len(leaves_of(self.x)[0])

    def keys(self) -> list[bytes]:
        """Digest of each example."""
        leaves = [leaf.detach().cpu().contiguous() for leaf in leaves_of(tuple(self))]
        return [_digest([leaf[row] for leaf in leaves]) for row in range(len(self))]

    def rows(self, index: Sequence[int]) -> "Pair":
        """Select examples by number."""
        return Pair(*tree_map(lambda leaf: leaf[list(index)], tuple(self)))


def leaves_of(tree: Any) -> list[Any]:
    """Values in a tree of mappings, lists and tuples; quicker than `torch.utils._pytree`."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return [leaf for its in tree for leaf in leaves_of(its)]
    return [tree]


def bytes_of(tensor: Tensor) -> Any:
    """Bytes of a tensor as an array, without a copy if it is contiguous and on the CPU."""
    plain = tensor.detach().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy()


def pair_of(name: str, x: Any, y: Any, alone: bool = False) -> Pair:
    """Convert examples to tensors, and check that inputs and targets are equally many.

    Args:
        name: The customer, for messages.
        x: Inputs: a tensor, values that make one, or a mapping of these.
        y: Targets, likewise; None for none.
        alone: The values are those of one example, without an axis of examples.

    Raises:
        ShapeError: If there is no example, or lengths differ.
        ConfigError: If a value makes no tensor.
    """
    pair = Pair(tensors_of(name, x), () if y is None else tensors_of(name, y))
    if alone:
        pair = Pair(*tree_map(lambda leaf: leaf[None], tuple(pair)))
    shapes = [tuple(leaf.shape) for leaf in leaves_of(tuple(pair))]
    if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ShapeError(
            f"The examples of `{name}` have the shapes {shapes}. Inputs and targets are "
            "(examples, ...), equally many. Pass one target for each input."
        )
    if not shapes[0][0]:
        raise ShapeError(
            f"`{name}` has no examples. Parameters are written from one or more. Pass some, or "
            "leave this customer out."
        )
    return pair


def tensors_of(name: str, values: Any) -> Any:
    """Convert values to a tensor, or a mapping of values to a dict of tensors.

    Args:
        name: The customer, for messages.
        values: The values.

    Raises:
        ConfigError: If values make no tensor.
    """
    if isinstance(values, Mapping):
        return {key: tensors_of(name, value) for key, value in values.items()}
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"The examples of `{name}` hold a {type(values).__name__} that makes no tensor "
            f"({error}). They are inputs and targets, (x, y), (examples, ...) each. Pass tensors "
            "or arrays."
        ) from error


def _digest(leaves: Sequence[Tensor]) -> bytes:
    found = hashlib.blake2b(digest_size=KEY_BYTES)
    for leaf in leaves:
        found.update(f"{leaf.dtype} {tuple(leaf.shape)};".encode())
        found.update(bytes_of(leaf))
    return found.digest()


class Kept:
    """Examples kept as they are.

    Args:
        pair: The examples.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    def __len__(self) -> int:
        return len(self.pair)

    def added(self, pair: Pair) -> "Kept":
        """Return the record with more examples."""
        return Kept(Pair(*tree_map(lambda a, b: torch.cat([a, b]), tuple(self.pair), tuple(pair))))

    def removed(self, name: str, pair: Pair) -> "Kept":
        """Return the record without one example.

        Raises:
            ConfigError: If the example is not in it, or is the last.
        """
        keys, (key,) = self.pair.keys(), pair.keys()
        if key not in keys:
            raise not_there(name, pair, len(keys))
        check_left(name, len(keys) - 1)
        return Kept(self.pair.rows([row for row in range(len(keys)) if row != keys.index(key)]))

    @staticmethod
    def pack(records: Sequence["Kept"]) -> tuple[dict[str, Tensor], list[Any]]:
        """Return tensors by name, and the names in place of the tensors of each record."""
        tensors: dict[str, Tensor] = {}

        def name_of(leaf: Tensor) -> str:
            tensors[name := str(len(tensors))] = leaf
            return name

        return tensors, [tree_map(name_of, list(record.pair)) for record in records]

    @staticmethod
    def unpack(tensors: Mapping[str, Tensor], facts: Sequence[Any]) -> Iterator["Kept"]:
        """Restore records from tensors and their names."""
        for names in facts:
            x, y = tree_map(tensors.__getitem__, names)
            yield Kept(Pair(x, y or ()) if isinstance(y, list) else Pair(x, y))


class Summed:
    """Features and labels of examples by digest, and exact sums over them.

    The sums are made at the first change, and then kept up to date at a cost independent of the
    number of examples. The features of an example are kept so that its removal subtracts the
    numbers that were added, to the last bit; the example itself is not kept.

    Args:
        keys: Digest of each example.
        features: Features, (examples, width).
        labels: Class of each, from 0.
        products: Also sum f fᵀ.
    """

    def __init__(
        self, keys: Sequence[bytes], features: Tensor, labels: Sequence[int], products: bool
    ) -> None:
        self._products = products
        self._width = features.shape[1]
        self._rows: dict[bytes, list[tuple[Tensor, int]]] = {}
        self._size = 0
        self._sums: ExactSums | None = None
        self._store(keys, features.cpu(), labels)

    def __len__(self) -> int:
        return self._size

    def add(self, keys: Sequence[bytes], features: Tensor, labels: Sequence[int]) -> None:
        """Add examples."""
        self._kept_sums().add(features, labels)
        self._store(keys, features.cpu(), labels)

    def remove(self, name: str, pair: Pair) -> None:
        """Remove one example.

        Raises:
            ConfigError: If the example is not there, or is the last.
        """
        (key,) = pair.keys()
        if key not in self._rows:
            raise not_there(name, pair, self._size)
        check_left(name, self._size - 1)
        sums = self._kept_sums()
        features, label = self._rows[key].pop()
        if not self._rows[key]:
            del self._rows[key]
        self._size -= 1
        sums.add(features[None], [label], sign=-1)

    def moments(self, ways: int | None) -> Moments:
        """Sums as floats, with a tasks axis of 1."""
        return (self._sums or self._new_sums()).moments(ways)

    def single(self) -> tuple[Tensor, Tensor]:
        """Features, (examples, width), and labels, (examples,), in an order of their digests."""
        rows = [row for key in sorted(self._rows) for row in self._rows[key]]
        features, labels = zip(*rows, strict=True)
        return torch.stack(features), torch.tensor(labels)

    def _store(self, keys: Sequence[bytes], features: Tensor, labels: Sequence[int]) -> None:
        for key, feature, label in zip(keys, features, labels, strict=True):
            self._rows.setdefault(key, []).append((feature, label))
        self._size += len(keys)

    def _kept_sums(self) -> ExactSums:
        self._sums = self._sums or self._new_sums()
        return self._sums

    def _new_sums(self) -> ExactSums:
        sums = ExactSums(self._width, self._products)
        _, features, labels = self._all()
        sums.add(features, labels)
        return sums

    def _all(self) -> tuple[list[bytes], Tensor, list[int]]:
        rows = [(key, *row) for key, several in self._rows.items() for row in several]
        keys, features, labels = zip(*rows, strict=True)
        return list(keys), torch.stack(features), list(labels)

    @staticmethod
    def pack(records: Sequence["Summed"]) -> tuple[dict[str, Tensor], list[int]]:
        """Return features, labels and digests of records, and the size of each."""
        keys, features, labels = zip(*(record._all() for record in records), strict=True)
        raw = b"".join(key for several in keys for key in several)
        tensors = {
            "keys": torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, KEY_BYTES),
            "features": torch.cat(features),
            "labels": torch.tensor([label for several in labels for label in several]),
        }
        return tensors, [len(record) for record in records]

    @staticmethod
    def unpack(
        tensors: Mapping[str, Tensor], facts: Sequence[int], products: bool
    ) -> Iterator["Summed"]:
        """Restore records from tensors and sizes."""
        split = [tensors[name].split(list(facts)) for name in ("keys", "features", "labels")]
        for keys, features, labels in zip(*split, strict=True):
            raw = [key.numpy().tobytes() for key in keys]
            yield Summed(raw, features, labels.tolist(), products)


Record = Kept | Summed


def check_left(name: str, left: int) -> None:
    """Raise a `ConfigError` if the last example is to be removed."""
    if not left:
        raise ConfigError(
            f"`{name}` has one example, and it is to be removed. Parameters are written from one "
            f"or more. Add another one first, or remove the customer with `pop({name!r})`."
        )


def not_there(name: str, pair: Pair, size: int) -> ConfigError:
    """Error for an example that is to be removed and was not added."""
    shapes = [f"{tuple(leaf.shape[1:])}, {leaf.dtype}" for leaf in leaves_of(tuple(pair))]
    return ConfigError(
        f"The example to remove ({'; '.join(shapes)}) is none of the {size} of `{name}`. Examples "
        "are found by their values, dtypes and targets, all equal to those that were added. Pass "
        "the same `x` and `y` as to `add`."
    )
