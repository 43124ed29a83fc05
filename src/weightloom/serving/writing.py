"""Parameters of customers from their examples or conditions, many customers in one pass.

In:   a learner, and a condition or examples per customer.
Out:  records of the examples, where these can change; Params, grouped by structure.
Knows nothing of the model that runs with the parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_flatten, tree_map

from weightloom.errors import ConfigError, DataError, ShapeError, WeightloomError
from weightloom.learners.learner import Learner, Support
from weightloom.params import Params, count_tasks
from weightloom.serving.records import Kept, Pair, Summed, leaves_of, pair_of, tensors_of
from weightloom.serving.statistics import LARGEST, Moments, Statistics, statistics_of
from weightloom.tasks import Examples

Its = TypeVar("Its")
Groups = list[tuple[list[int], Params]]
"""Params of some customers, with the number of each in the list that was passed."""


class Writing(ABC):
    """One way from the examples of customers to their parameters."""

    @abstractmethod
    def records(self, names: Sequence[str], examples: Sequence[Any]) -> list[Any]:
        """Check examples, and encode them where the learner reads sums.

        Raises:
            ShapeError: If there are none, or lengths or shapes do not fit.
            ConfigError: If they have another form.
            DataError: If features are not finite.
        """

    @abstractmethod
    def params(self, records: Sequence[Any]) -> Groups:
        """Write the parameters of customers."""


class OfConditions(Writing):
    """Conditions, read by a hypernetwork or another callable.

    Args:
        write: Conditions (tasks, ...) to Params.
    """

    def __init__(self, write: Callable[[Any], Params]) -> None:
        self.write = write

    def records(self, names: Sequence[str], examples: Sequence[Any]) -> list[Tensor]:
        """Convert conditions to tensors."""
        return [tensors_of(name, its) for name, its in zip(names, examples, strict=True)]

    def params(self, records: Sequence[Tensor]) -> Groups:
        """Stack conditions of one shape, and write."""
        return [
            (place, _params(self.write, torch.stack(some)))
            for place, some in _grouped(records, lambda its: (its.shape, its.dtype))
        ]


class OfExamples(Writing):
    """Examples, read by a `Learner` as padded support sets.

    Customers of one number of classes share a support set, so that each has a head of its size.

    Args:
        learner: The learner.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def records(self, names: Sequence[str], examples: Sequence[Any]) -> list[Kept]:
        """Convert examples to tensors."""
        return [Kept(_pair(name, its)) for name, its in zip(names, examples, strict=True)]

    def params(self, records: Sequence[Kept]) -> Groups:
        """Pad support sets to one length, and adapt to them."""
        groups: Groups = []
        for place, some in _grouped([its.pair for its in records], _kind):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # for methods that start from a random network
                groups.append((place, _params(self.learner.adapt, support_of(some))))
        return groups


class OfSums(Writing):
    """Examples, read as sums over their features.

    Args:
        statistics: The sums that a learner reads.
    """

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics

    def records(self, names: Sequence[str], examples: Sequence[Any]) -> list[Summed]:
        """Encode the examples of all customers in one pass."""
        pairs = [_pair(name, its) for name, its in zip(names, examples, strict=True)]
        encoded: dict[int, Summed] = {}
        for place, some in _grouped(pairs, _event):
            features, labels = self.encode([names[its] for its in place], some)
            for number, pair, its, its_labels in zip(place, some, features, labels, strict=True):
                products = self.statistics.products
                encoded[number] = Summed(pair.keys(), its, its_labels, products)
        return [encoded[number] for number in range(len(pairs))]

    def encode(
        self, names: Sequence[str], pairs: Sequence[Pair]
    ) -> tuple[tuple[Tensor, ...], list[list[int]]]:
        """Return features and labels of the examples of customers.

        Raises:
            ShapeError: If the learner cannot read the examples, or a label is no class.
            DataError: If features are not finite, or too large.
        """
        x, y = tree_map(lambda *leaves: torch.cat(leaves), *map(tuple, pairs))
        labels = self._labels(names, pairs)
        features: Tensor = _read(self.statistics.features, x, y if leaves_of(y) else None)
        limit = LARGEST**0.5 if self.statistics.products else LARGEST
        if not bool((features.abs() < limit).all()):  # also NaN
            raise DataError(
                f"Features of {_listed(names)} are not finite, or not below {limit:.0e}. Sums over "
                "examples are exact for finite numbers up to that. Scale the inputs, or leave out "
                "the example."
            )
        return features.detach().split([len(pair) for pair in pairs]), labels

    def params(self, records: Sequence[Summed]) -> Groups:
        """Write from the sums, customers of one number of classes together."""
        moments = [record.moments(self.statistics.ways) for record in records]
        groups: Groups = []
        for place, some in _grouped(moments, lambda its: its.sums.shape):
            counts, sums, products, _ = zip(*some, strict=True)
            squares = None if products[0] is None else torch.cat(products)
            single = _padded([records[its] for its in place]) if self.statistics.singly else None
            joined = Moments(torch.cat(counts), torch.cat(sums), squares, single)
            device = next((its.device for its in self.statistics.parameters()), None)
            groups.append((place, _params(self.statistics.params, joined.to(device))))
        return groups

    def _labels(self, names: Sequence[str], pairs: Sequence[Pair]) -> list[list[int]]:
        if not self.statistics.by_class:
            return [[0] * len(pair) for pair in pairs]
        for name, pair in zip(names, pairs, strict=True):
            _check_labels(name, pair.y, self.statistics.ways)
        return [pair.y.tolist() for pair in pairs]


def _padded(records: Sequence[Summed]) -> Examples:
    """Features and labels of records, padded to the longest, with a mask."""
    features, labels = zip(*(record.single() for record in records), strict=True)
    there = [torch.ones(len(its), dtype=torch.bool) for its in labels]
    return Examples(
        *(pad_sequence(list(its), batch_first=True) for its in (features, labels, there))
    )


def _check_labels(name: str, y: Any, ways: int | None) -> None:
    """Raise a `ShapeError` unless targets are labels from 0, below ``ways`` if that is set."""
    if _are_labels(y) and int(y.min()) >= 0 and int(y.max()) < (ways or int(y.max()) + 1):
        return
    held = f"{tuple(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else "not given as a tensor"
    raise ShapeError(
        f"The targets of `{name}` are {held}. This learner reads labels, (examples,), whole "
        f"numbers from 0{f' to {ways - 1}' if ways else ''}. Number the classes."
    )


def _are_labels(y: Any) -> bool:
    return isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point()


def writings_of(learner: Any) -> tuple[Writing | None, Writing | None]:
    """Return the ways to write from examples, and from conditions; None if there is none.

    Args:
        learner: A `Learner`, `Statistics`, or a callable from conditions to Params.

    Raises:
        ConfigError: If ``learner`` is none of these.
    """
    statistics = statistics_of(learner)
    if isinstance(learner, Learner):
        of_examples = OfSums(statistics) if statistics else OfExamples(learner)
        return of_examples, OfConditions(learner.adapt)
    if statistics:
        return OfSums(statistics), None
    if not callable(learner):
        raise ConfigError(
            f"`learner` is a {type(learner).__name__}. It writes the parameters of customers from "
            "their examples or conditions. Pass a `Learner`, or a hypernetwork."
        )
    return None, OfConditions(learner)


def ways_of(
    of_examples: Writing | None, of_conditions: Writing | None, given: Sequence[Any]
) -> Iterator[tuple[Writing, list[int]]]:
    """Split customers into those with examples and those with a condition, a tensor.

    Yields:
        The way to write, and the numbers of its customers.
    """
    are_told = [of_examples is None or isinstance(its, Tensor) for its in given]
    if of_conditions is None:
        are_told = [False] * len(given)
    for writing, wanted in ((of_conditions, True), (of_examples, False)):
        numbers = [number for number, its in enumerate(are_told) if its == wanted]
        if writing and numbers:
            yield writing, numbers


def support_of(pairs: Sequence[Pair]) -> Support:
    """Join the examples of several tasks, padded to the largest number, with a mask."""
    shots = max(map(len, pairs))

    def padded(*leaves: Tensor) -> Tensor:
        if all(len(leaf) == shots for leaf in leaves):
            return torch.stack(leaves)
        whole = leaves[0].new_zeros(len(leaves), shots, *leaves[0].shape[1:])
        for row, leaf in zip(whole, leaves, strict=True):
            row[: len(leaf)] = leaf
        return whole

    x, y = tree_map(padded, *map(tuple, pairs))
    sizes = torch.tensor([len(pair) for pair in pairs])
    mask = torch.arange(shots) < sizes[:, None]
    return Support(x, y, mask.to(leaves_of(x)[0].device))


def _pair(name: str, examples: Any) -> Pair:
    """Examples of one customer: (x, y), or x alone."""
    if isinstance(examples, tuple) and len(examples) == 2:
        return pair_of(name, *examples)
    if isinstance(examples, Tensor | Mapping):
        return pair_of(name, examples, None)
    raise ConfigError(
        f"The examples of `{name}` are a {type(examples).__name__}. They are inputs and targets, "
        "equally many. Pass a tuple `(x, y)`."
    )


def _event(pair: Pair) -> Hashable:
    """Shapes and dtypes of one example."""
    structure = "" if isinstance(pair.x, Tensor) else str(tree_flatten(pair.x)[1])
    return tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves_of(tuple(pair))), structure


def _kind(pair: Pair) -> Hashable:
    """Shapes and dtypes of one example, and the number of classes if targets are labels."""
    return _event(pair), int(pair.y.max()) if _are_labels(pair.y) else None


def _grouped(
    values: Iterable[Its], key: Callable[[Its], Hashable]
) -> Iterator[tuple[list[int], list[Its]]]:
    """Group values by a key; yield the number of each and the values."""
    groups: dict[Hashable, list[tuple[int, Its]]] = {}
    for number, value in enumerate(values):
        groups.setdefault(key(value), []).append((number, value))
    for members in groups.values():
        yield [number for number, _ in members], [value for _, value in members]


def _params(write: Callable[[Any], Any], given: Any) -> Params:
    params = _read(write, given)
    if not isinstance(params, Mapping) or count_tasks(params) is None:
        raise ConfigError(
            f"The learner returned a {type(params).__name__} without parameters. It writes a "
            "mapping from names to tensors, (tasks, *shape). Return Params."
        )
    return Params(params)


def _read(function: Callable[..., Any], *given: Any) -> Any:
    """Call a learner; turn torch's errors of shape into ours."""
    try:
        return function(*given)
    except WeightloomError:
        raise
    except (RuntimeError, IndexError, AttributeError, TypeError) as error:
        x = next(leaf for leaf in leaves_of(given) if isinstance(leaf, Tensor))
        raise ShapeError(
            f"The learner cannot read inputs of shape {tuple(x.shape)}, {x.dtype} "
            f"({str(error)[:200]}). They have the shape and dtype that it was built for, behind "
            "the axis of examples. Pass such inputs, and targets if it reads them."
        ) from error


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:3]) + (" …" if len(names) > 3 else "")


def modules_of(*parts: Any) -> list[nn.Module]:
    """Return those of some objects that are modules."""
    return [part for part in parts if isinstance(part, nn.Module)]
