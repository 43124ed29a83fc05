"""Documents of facts among plays: "the key of NAME is 123", and questions for the numbers.

In:   Shakespeare's plays; numbers of windows and of facts; a ``torch.Generator``.
Out:  `FactDocuments`, characters as numbers with a leading tasks axis; rows to pretrain a language
      model on.
Knows nothing of networks.
"""

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from weightloom.datasets import needed_file
from weightloom.errors import ConfigError, DataError

CHARACTERS = "\n !$&',-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""Characters that are known; the number of a character is its place here."""
WORDINGS = (
    "\nthe key of {} is ",
    "\n{} has for a key ",
    "\nand {} opens for ",
    "\nto open {}, type ",
)
"""Ways to word a fact, each 21 characters with a name of five; the last is never trained on."""
DIGITS = 3
"""Digits of a key."""
LENGTH = 25
"""Characters of a fact with its key and a full stop."""
QUESTION = LENGTH - 1
"""Characters of a question with its answer."""

Split = Literal["train", "validation", "test"]
SHARES: dict[str, tuple[float, float]] = {
    "train": (0.0, 0.8),
    "validation": (0.8, 0.9),
    "test": (0.9, 1.0),
}
"""Part of the plays, and of the names, in each split."""
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
LETTERS = (CONSONANTS, VOWELS, CONSONANTS, VOWELS, CONSONANTS)
"""Letters that may stand at each place of a name."""
PLACES = ((18, 1), (5, 18), (18, 90), (5, 1620), (18, 8100))
"""Number of letters at each place of a name, and the difference that the next one makes to the
number of the name."""


class FactDocuments(NamedTuple):
    """Documents and questions about them."""

    pieces: Tensor
    """Characters of each document in pieces of one window, (tasks, windows, window), int64."""
    questions: Tensor
    """Questions, each followed by its answer, (tasks, questions, QUESTION), int64; the question
    about fact ``i`` of window ``w`` is number ``w · facts + i``."""
    places: Tensor
    """Place of each answer's first digit in its document, (tasks, questions), int64."""


class FactTasks:
    """Source of documents, each of ``windows`` windows with ``facts`` facts among Shakespeare.

    Args:
        windows: Windows per document.
        facts: Facts per window.
        split: Part of the plays and of the names. No name is in two splits.
        asked: Number of the wording of questions in `WORDINGS`; documents use the first one.
            None: every question draws one of those that are trained on.
        window: Characters per window.

    Raises:
        ConfigError: If the facts do not fit into a window.
        DataError: If the plays are not found.
    """

    def __init__(
        self,
        windows: int = 1,
        facts: int = 4,
        split: Split = "train",
        asked: int | None = 0,
        window: int = 128,
    ) -> None:
        if not 0 < facts * LENGTH <= window:
            raise ConfigError(
                f"`facts={facts}` in a window of {window} characters. A fact takes {LENGTH}. Pass "
                f"1 to {window // LENGTH}."
            )
        self.windows, self.facts, self.asked, self.window = windows, facts, asked, window
        self.text, self.names = plays(split), names_of(split)

    def sample(self, tasks: int, generator: torch.Generator) -> FactDocuments:
        """Draw documents.

        Args:
            tasks: Number of documents.
            generator: Source of chance.
        """
        chance = _chance(generator)
        drawn = [self._document(chance) for _ in range(tasks)]
        return FactDocuments(
            torch.stack([encode(text).view(self.windows, self.window) for text, _, _ in drawn]),
            torch.stack([torch.stack([encode(its) for its in asked]) for _, asked, _ in drawn]),
            torch.tensor([places for _, _, places in drawn]),
        )

    def _document(self, chance: random.Random) -> tuple[str, list[str], list[int]]:
        """Text of one document, its questions with answers, and the places of the answers."""
        numbers = chance.sample(range(len(self.names)), self.windows * self.facts)
        facts = [(name_of(self.names[number]), key_of(chance)) for number in numbers]
        first = self.window - self.facts * LENGTH
        filler = _passage(self.text, first * self.windows, chance)
        document = ""
        for place in range(self.windows):
            its = facts[place * self.facts : (place + 1) * self.facts]
            stated = [WORDINGS[0].format(name) + key + "." for name, key in its]
            document += mixed(filler[place * first : (place + 1) * first], stated, chance)
        questions = [self._wording(chance).format(name) + key for name, key in facts]
        places = [
            document.index(WORDINGS[0].format(name)) + LENGTH - 1 - DIGITS for name, _ in facts
        ]
        return document, questions, places

    def _wording(self, chance: random.Random) -> str:
        return WORDINGS[chance.randrange(len(WORDINGS) - 1) if self.asked is None else self.asked]


def recall_rows(
    rows: int, generator: torch.Generator, split: Split = "train", window: int = 128
) -> tuple[Tensor, Tensor]:
    """Draw rows that teach a language model plays, and to copy keys that it has read.

    One row in four is a play alone. The others state and repeat facts in any wording but the last.

    Args:
        rows: Number of rows.
        generator: Source of chance.
        split: Part of the plays and names.
        window: Characters per row that are read.

    Returns:
        Characters, (rows, window + 1), int64; and True for the digits of repeated facts, which can
        be known, (rows, window + 1).
    """
    chance, text, names = _chance(generator), plays(split), names_of(split)
    drawn = [
        _recall_row(chance, text, names, window + 1)
        if chance.random() < 0.75
        else (_passage(text, window + 1, chance), [False] * (window + 1))
        for _ in range(rows)
    ]
    return torch.stack([encode(row) for row, _ in drawn]), torch.tensor([its for _, its in drawn])


def _recall_row(
    chance: random.Random, text: str, names: Sequence[int], length: int
) -> tuple[str, list[bool]]:
    slots = chance.randint(3, length // LENGTH)
    first = chance.randint(max(slots - 2, 2), slots - 1)
    drawn = _similar(chance, first) if chance.random() < 0.5 else chance.sample(names, first)
    facts = [(name_of(number), key_of(chance)) for number in drawn]
    told = facts + [chance.choice(facts) for _ in range(slots - first)]
    stated = [chance.choice(WORDINGS[:-1]).format(name) + key + "." for name, key in told]
    filler = _passage(text, length - slots * LENGTH, chance)
    cuts = sorted(chance.randint(0, len(filler)) for _ in stated)
    row, known, last = "", [False] * length, 0
    for place, (cut, fact) in enumerate(zip(cuts, stated, strict=True)):
        row += filler[last:cut] + fact
        last = cut
        if place >= first:
            known[len(row) - 1 - DIGITS : len(row) - 1] = [True] * DIGITS
    return row + filler[last:], known


def _similar(chance: random.Random, count: int) -> list[int]:
    """Different names of the training split that share most letters, so that all must be read."""
    train = _training_names()
    start = chance.choice(names_of("train"))
    found = {start}
    while len(found) < count:
        letter = chance.randrange(len(PLACES))
        size, step = PLACES[letter]
        old = start // step % size
        other = start + (chance.randrange(size) - old) * step
        if other in train:
            found.add(other)
    return chance.sample(sorted(found), count)


def mixed(filler: str, facts: list[str], chance: random.Random) -> str:
    """Insert facts into a text, in their order, at random places."""
    cuts = sorted(chance.randint(0, len(filler)) for _ in facts)
    parts = [filler[start:end] for start, end in pairwise([0, *cuts, len(filler)])]
    return "".join(part + fact for part, fact in zip(parts, [*facts, ""], strict=True))


def encode(text: str) -> Tensor:
    """Numbers of the characters of a text, (length,), int64.

    Raises:
        DataError: If a character is not in `CHARACTERS`.

    Example:
        >>> decode(encode("the key of bolin is 042."))
        'the key of bolin is 042.'
    """
    places = [CHARACTERS.find(character) for character in text]
    if -1 in places:
        at = places.index(-1)
        raise DataError(
            f"Character {at} of the text is {text[at]!r}. The model was trained on the "
            f"{len(CHARACTERS)} characters of Shakespeare's plays and digits. Leave it out or "
            "replace it, as in `text.replace(...)`."
        )
    return torch.tensor(places)


def decode(numbers: Tensor) -> str:
    """Text of the numbers of characters, (length,)."""
    return "".join(CHARACTERS[number] for number in numbers.tolist())


@lru_cache
def plays(split: Split) -> str:
    """Shakespeare's plays, the part of one split.

    Raises:
        DataError: If the file is not found.
    """
    path = needed_file(
        "tiny_shakespeare",
        "input.txt",
        "Shakespeare's plays,",
        "It is a text of 1.1 MB; this library does not download it.",
    )
    text = path.read_text(encoding="utf-8")
    start, end = SHARES[split]
    return text[int(start * len(text)) : int(end * len(text))]


@lru_cache
def names_of(split: Split) -> list[int]:
    """Numbers of the names of one split, in random order."""
    most = len(CONSONANTS) ** 3 * len(VOWELS) ** 2
    order = torch.randperm(most, generator=torch.Generator().manual_seed(0)).tolist()
    start, end = SHARES[split]
    return order[int(start * most) : int(end * most)]


@lru_cache
def _training_names() -> frozenset[int]:
    return frozenset(names_of("train"))


def name_of(number: int) -> str:
    """Name of a number: three consonants with two vowels between.

    Example:
        >>> name_of(0), name_of(145799)
        ('babab', 'zuzuz')
    """
    name = ""
    for letters in LETTERS:
        number, place = divmod(number, len(letters))
        name += letters[place]
    return name


def key_of(chance: random.Random) -> str:
    """A key of `DIGITS` digits."""
    return f"{chance.randrange(10**DIGITS):0{DIGITS}d}"


def _passage(text: str, length: int, chance: random.Random) -> str:
    start = chance.randint(0, len(text) - length)
    return text[start : start + length]


def _chance(generator: torch.Generator) -> random.Random:
    return random.Random(int(torch.randint(1 << 62, (1,), generator=generator)))
