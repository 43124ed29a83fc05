"""Classes of texts described by their names and a few examples, and tasks drawn from them.

In:   data sets of labelled texts.
Out:  `Pool`, classes as numbers of texts in `States`; `Episode`, tasks of a batch.
Knows nothing of methods and scores.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from weightloom.datasets import needed_file
from weightloom.errors import DataError, nearest
from weightloom.tasks.text import load_intents, name_in_words, rows_of_texts
from weightloom.texts import shortened

SPAM = {"ham": "ordinary personal message", "spam": "spam, advertising"}
"""Description of each class of the SMS Spam Collection, written before any score was seen."""


class Texts(NamedTuple):
    """Labelled texts, and a text that describes each class."""

    texts: Sequence[str]
    labels: Tensor
    """Class of each text, (texts,)."""
    names: Sequence[str]
    """Name of each class in words."""
    groups: Tensor
    """Domain of each class, (classes,)."""


class Episode(NamedTuple):
    """Tasks of one batch, as numbers of texts in `States`; all have equal sizes."""

    support: Int[Tensor, "tasks examples"]
    """Known texts: the examples of every class in turn, then its names."""
    support_y: Int[Tensor, "tasks examples"]
    """Their classes."""
    query: Int[Tensor, "tasks queries"]
    """Texts to classify."""
    query_y: Int[Tensor, "tasks queries"]
    """Their classes."""

    @property
    def ways(self) -> int:
        """Classes of a task."""
        return int(self.support_y.max()) + 1

    @property
    def shots(self) -> int:
        """Examples of a class besides its name."""
        return self.support.shape[1] // self.ways - 1

    def with_shots(self, shots: int) -> "Episode":
        """Return the same tasks with the first ``shots`` examples of every class."""
        kept = torch.arange(self.shots + 1) < shots
        kept = torch.cat([kept[:-1].repeat(self.ways), torch.ones(self.ways, dtype=torch.bool)])
        return self._replace(support=self.support[:, kept], support_y=self.support_y[:, kept])

    def without(self, out: Tensor) -> "Episode":
        """Return the same tasks without some examples.

        Args:
            out: True for examples to leave out, (examples,).
        """
        return self._replace(support=self.support[:, ~out], support_y=self.support_y[:, ~out])


class Pool(NamedTuple):
    """Classes, as numbers of texts in `States`."""

    examples: Sequence[Tensor]
    """Texts of each class."""
    named: Tensor
    """Text with the name of each class, (classes,)."""
    groups: Tensor
    """Domain of each class, (classes,)."""

    def pick(self, kept: Tensor) -> "Pool":
        """Return some classes, True in ``kept``, (classes,)."""
        examples = [its for its, keep in zip(self.examples, kept.tolist(), strict=True) if keep]
        return Pool(examples, self.named[kept], self.groups[kept])

    def shorter(self, lengths: Tensor, most: int) -> "Pool":
        """Return the classes without examples of more tokens than ``most``."""
        return self._replace(examples=[its[lengths[its] <= most] for its in self.examples])

    def draw(
        self, ways: int, shots: int, queries: int, generator: torch.Generator, tasks: int = 1
    ) -> Episode:
        """Draw tasks: any classes, or with equal chance those of as few domains as are needed."""
        parts = [self._task(ways, shots, queries, generator) for _ in range(tasks)]
        return Episode(*(torch.stack(column) for column in zip(*parts, strict=True)))

    def _task(
        self, ways: int, shots: int, queries: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        classes = self._classes(ways, generator)
        drawn = [self._texts(c, shots + queries, generator) for c in classes.tolist()]
        known, asked = torch.stack(drawn).split([shots, queries], dim=1)
        place = torch.arange(len(classes))
        support = torch.cat([known.flatten(), self.named[classes]])
        labels = torch.cat([place.repeat_interleave(shots), place])
        return support, labels, asked.flatten(), place.repeat_interleave(queries)

    def _classes(self, ways: int, generator: torch.Generator) -> Tensor:
        order = torch.randperm(len(self.named), generator=generator)
        if torch.rand((), generator=generator) < 0.5:
            domains = torch.randperm(int(self.groups.max()) + 1, generator=generator)
            order = order[domains[self.groups[order]].argsort(stable=True)]
        return order[:ways]

    def _texts(self, number: int, count: int, generator: torch.Generator) -> Tensor:
        texts = self.examples[number]
        return texts[torch.randperm(len(texts), generator=generator)[:count]]


def pool_of(texts: Texts, first: int) -> Pool:
    """Return the classes of texts that `States` holds from number ``first`` on, names last."""
    examples = [
        first + (texts.labels == number).nonzero()[:, 0] for number in range(len(texts.names))
    ]
    named = first + len(texts.texts) + torch.arange(len(texts.names))
    return Pool(examples, named, texts.groups)


def intents(name: str) -> Texts:
    """Load ``clinc150`` or ``banking77``; errors as in `load_intents`."""
    found = load_intents(name)
    names = [name_in_words(its) for its in found.names]
    return Texts(found.texts, found.labels, names, found.groups)


def spam() -> Texts:
    """Load the SMS Spam Collection: two classes, ordinary messages and spam.

    Raises:
        DataError: If the file is missing, damaged, or holds a label of no class.

    Source:
        Almeida, Hidalgo and Yamakami, "Contributions to the study of SMS spam filtering" (2011).
    """
    about = "It is a table of label and text, one message per row; it is not downloaded."
    path = needed_file("sms_spam", "sms_spam.csv.gz", "The file", about)
    once = {row["text"]: row["label"] for row in rows_of_texts(path, ["label", "text"])}
    labels = numbered(list(once.values()), list(SPAM))
    return Texts(tuple(once), labels, tuple(SPAM.values()), torch.zeros(2, dtype=torch.int64))


def numbered(labels: Sequence[str], names: Sequence[str]) -> Tensor:
    """Return the number of each label among the names of classes, (texts,).

    Raises:
        DataError: If a label is no name of a class.

    Example:
        >>> numbered(["no", "yes", "no"], ["no", "yes"])
        tensor([0, 1, 0])
    """
    number = {name: place for place, name in enumerate(names)}
    for place, label in enumerate(labels):
        if label not in number:
            raise DataError(
                f"Text {place} has the label {shortened(label)!r}, which is no class here. Every "
                f"class has a name that is read. {nearest(label, names)} Correct the label, or add "
                "a class with that name."
            )
    return torch.tensor([number[label] for label in labels])


def check_enough(pool: Pool, ways: int, examples: int, option: str) -> None:
    """Raise a `DataError` if tasks would need more classes or examples than a pool holds."""
    fewest = min(len(its) for its in pool.examples)
    if ways > len(pool.examples) or examples > fewest:
        raise DataError(
            f"`{option}` takes {ways} classes of {examples} texts for a target. There are "
            f"{len(pool.examples)} classes, and the smallest has {fewest} texts. Put a whole copy "
            "of the file in its place."
        )
