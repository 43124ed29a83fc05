"""Random base networks as programs: drawn from the grammar by a seed, written as text, and reduced.

In:   a seed.
Out:  a `Program`; its `text` is a module that defines ``build``, ``inputs``, ``change``, ``turn``
      and constants.
Independent of engines.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cache
from itertools import accumulate
from random import Random
from typing import Any

from weightloom.testing.grammar import EXPRESSIONS, INPUTS, OUTPUTS, STATEMENTS

SECTION = re.compile(r"^(top|init|method|change|turn|sign|args|kwargs|share)\| ?(.*)$")
TAGS = {"often", "rare", "two", "three", "row", "state"}
CHOICE = re.compile(r"<<((?:(?!<<|>>).)*)>>")
DISTINCT = (3, 4, 5)
"""Sizes that all differ, so that a failure with them is not due to equal sizes."""
HEADER = """\
import collections, copy, enum, functools, types, weakref
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
"""
FOOTER = """
if __name__ == "__main__":
    from pathlib import Path

    from weightloom.testing.fuzz import verdicts

    for engine, verdict in verdicts(Path(__file__).read_text()).items():
        print(engine, *verdict)
"""


@dataclass(frozen=True)
class Kind:
    """Kind of statement: one block of the grammar."""

    name: str
    tags: frozenset[str]
    lines: tuple[str, ...]

    @property
    def weight(self) -> float:
        """Relative frequency: 3 for ``often``, 0.2 for ``rare``, else 1."""
        return 3.0 if "often" in self.tags else 0.2 if "rare" in self.tags else 1.0

    @property
    def has_bodies(self) -> bool:
        """True if other statements can be inside it."""
        return any(line.strip() in ("BODY", "ROW") for line in self.lines)


@dataclass(frozen=True)
class Piece:
    """Statement of a program: an instance of a `Kind`, with all choices made."""

    name: str
    """Name of its kind."""
    lines: tuple[tuple[str, str], ...]
    """Section and text of each line."""
    bodies: tuple[tuple["Piece", ...], ...] = ()
    """Statements inside each of its bodies."""

    def section(self, section: str) -> Iterator[str]:
        """Iterate over the lines of a section, including those of nested statements."""
        yield from (line for its, line in self.lines if its == section)
        for body in self.bodies:
            for piece in body:
                yield from piece.section(section)

    def names(self) -> Iterator[str]:
        """Iterate over the names of its kind and of those of nested statements."""
        yield self.name
        for body in self.bodies:
            for piece in body:
                yield from piece.names()

    def forward(self) -> Iterator[str]:
        """Iterate over its lines of ``forward``, including those of nested statements."""
        bodies = iter(self.bodies)
        for section, line in self.lines:
            if line.strip() in ("BODY", "ROW"):
                indent = line[: len(line) - len(line.lstrip())]
                for inner in [line for piece in next(bodies) for line in piece.forward()] or [
                    "pass"
                ]:
                    yield indent + inner
            elif section == "forward":
                yield line

    def smaller(self) -> Iterator[tuple["Piece", ...]]:
        """Iterate over simpler replacements: none, one of its bodies, itself with less inside."""
        yield ()
        yield from (body for body in self.bodies if body)
        for number, body in enumerate(self.bodies):
            for less in _smaller(body):
                yield (
                    replace(self, bodies=(*self.bodies[:number], less, *self.bodies[number + 1 :])),
                )


@dataclass(frozen=True)
class Settings:
    """Settings of a program's run; the defaults are the simplest."""

    TASKS: int = 2
    """Number of tasks."""
    CALLS: int = 1
    """Number of consecutive calls of the same base."""
    TRAIN: bool = False
    """Training mode of the base."""
    NEW_PARAMS: bool = False
    """Draw new generated values for every call."""
    GRAD: bool = True
    """Compute and compare gradients."""
    FORMS: bool = False
    """Hold about half of the generated parameters by forms such as `LowRank`."""
    ALL: bool = True
    """Generate every parameter. False: about two thirds of them."""
    CHUNK_SIZE: int | None = None
    """``chunk_size`` of `apply_per_task`."""
    STATISTICS: str | None = None
    """``statistics`` of `apply_per_task`."""
    RANDOMNESS: str = "different"
    """``randomness`` of `apply_per_task`."""


@dataclass(frozen=True)
class Program:
    """Random base network, with its inputs and the settings of its run."""

    seed: int
    sizes: tuple[int, int, int] = DISTINCT
    """Batch, width, and a second width, which is also the steps of a sequence."""
    is_sequence: bool = False
    """Inputs of shape (batch, steps, width) instead of (batch, width)."""
    pieces: tuple[Piece, ...] = ()
    """Statements of ``forward``."""
    inputs: tuple[Piece, ...] = ()
    """Inputs of ``forward`` in addition to ``x``."""
    output: Piece = Piece("tensor", (("forward", "h"),))
    """Return value of ``forward``."""
    settings: Settings = field(default_factory=Settings)
    """Settings of the run."""

    @property
    def text(self) -> str:
        """The program as a Python file; as a script it prints the verdict on every engine."""
        batch, width, other = self.sizes
        signs = sorted(self._lines("sign"), key=lambda sign: sign[0] == "*")
        args = "".join(f", {line}" for line in self._lines("args"))
        output = next(line for section, line in self.output.lines if section == "forward")
        return "\n".join(
            [
                HEADER,
                f"SEED, SHARED = {self.seed}, {tuple(self._lines('share'))!r}",
                *(f"{its.name} = {getattr(self.settings, its.name)!r}" for its in fields(Settings)),
                f"T, B, W, V, L = {self.settings.TASKS}, {batch}, {width}, {other}, {other}",
                f"ROWS = {'(B, L)' if self.is_sequence else '(B,)'}",
                *("", "", *self._lines("top"), "", ""),
                "class Net(nn.Module):",
                "    def __init__(self):",
                "        super().__init__()",
                "        self.one = nn.Linear(W, W)",
                *self._lines("init", 8),
                *("", *self._lines("method", 4), ""),
                f"    def forward({', '.join(['self', 'x', *signs])}):",
                *("        h = x", *self._forward()),
                f"        return {output}",
                *("", "", "def build():", "    return Net()"),
                *("", "", "def inputs():"),
                f"    return (torch.randn(T, *ROWS, W){args},), "
                f"{{{', '.join(self._lines('kwargs'))}}}",
                *("", "", "def change(base):", *(self._lines("change", 4) or ["    pass"])),
                *("", "", "def turn():", *(self._lines("turn", 4) or ["    pass"]), FOOTER),
            ]
        )

    def _lines(self, section: str, indent: int = 0) -> list[str]:
        every = (*self.inputs, *self.pieces, self.output)
        return [" " * indent + line for piece in every for line in piece.section(section)]

    def _forward(self) -> list[str]:
        every = (*self.inputs, *self.pieces)
        return [" " * 8 + line for piece in every for line in piece.forward()]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all inputs, statements, outputs and settings that are not the simplest."""
        settings = [
            its.name for its in fields(Settings) if getattr(self.settings, its.name) != its.default
        ]
        every = [
            *self.inputs,
            *self.pieces,
            *([self.output] if self.output != Program.output else []),
        ]
        return (*(name for piece in every for name in piece.names()), *settings)

    def smaller(self) -> Iterator["Program"]:
        """Iterate over slightly simpler programs."""
        for less in _smaller(self.pieces):
            yield replace(self, pieces=less)
        for less in _smaller(self.inputs):
            yield replace(self, inputs=less)
        if self.output != Program.output:
            yield replace(self, output=Program.output)
        for its in fields(Settings):
            if getattr(self.settings, its.name) != its.default:
                yield replace(
                    self, settings=replace(self.settings, **dict[str, Any]({its.name: its.default}))
                )
        if self.sizes != DISTINCT:
            yield replace(self, sizes=DISTINCT)


def draw(seed: int, kind: str | None = None) -> Program:
    """Return the random program of a seed.

    Args:
        seed: Seed of all random choices.
        kind: Kind of statement, input or output that the program must have, by its name in the
            grammar. None: no requirement.
    """
    return _Draw(seed, kind).program()


class _Draw:
    """State of drawing one program."""

    def __init__(self, seed: int, kind: str | None) -> None:
        self.random = Random(seed)
        self.wanted = kind
        self.seed = seed
        self.number = 0
        self.axes = "two"

    def program(self) -> Program:
        tags = self._wanted_tags()
        is_sequence = (self.chance(0.3) or "three" in tags) and "two" not in tags
        self.axes = "three" if is_sequence else "two"
        tasks, *sizes = self.sizes()
        count = self.random.choice([1, 2, 2, 3, 3, 4, 5])
        pieces = tuple([self.piece(STATEMENTS, depth=0) for _ in range(count)])
        takes_more = self.chance(0.3) or self.wanted in _names_of(INPUTS)
        inputs = (self.piece(INPUTS, depth=0),) if takes_more else ()
        settings = self.settings(tasks, pieces)
        output = self.piece(OUTPUTS, depth=0)
        batch, width, other = sizes
        return Program(
            self.seed, (batch, width, other), is_sequence, pieces, inputs, output, settings
        )

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def sizes(self) -> list[int]:
        """Draw the numbers of tasks and rows and two widths: some of them equal, rows often 1."""
        same = self.random.randint(2, 4)
        sizes = [same if self.chance(0.4) else self.random.randint(2, 4) for _ in range(4)]
        if self.chance(0.15):
            sizes[1] = 1
        return sizes

    def settings(self, tasks: int, pieces: tuple[Piece, ...]) -> Settings:
        """Draw the settings of the run, with several calls if a statement changes between them."""
        changes = any(
            list(piece.section(section)) for piece in pieces for section in ("change", "turn")
        )
        calls = self.random.choice([2, 3]) if changes or self.chance(0.2) else 1
        return Settings(
            TASKS=tasks,
            CALLS=calls,
            TRAIN=self.chance(0.5),
            NEW_PARAMS=self.chance(0.5),
            GRAD=self.chance(0.9),
            FORMS=self.chance(0.25),
            ALL=self.chance(0.5),
            CHUNK_SIZE=self.random.choice([1, 2]) if self.chance(0.05) else None,
            # Statistics per task start anew in each call, those of a copy do not.
            STATISTICS=self.random.choice([None, "task"]) if calls == 1 else None,
            RANDOMNESS="same" if self.chance(0.05) else "different",
        )

    def _wanted_tags(self) -> frozenset[str]:
        every = [kind for grammar in (STATEMENTS, INPUTS, OUTPUTS) for kind in kinds_of(grammar)]
        wanted = [kind.tags for kind in every if kind.name == self.wanted]
        return wanted[0] if wanted else frozenset()

    def piece(self, grammar: str, depth: int, tags: frozenset[str] = frozenset()) -> Piece:
        """Draw a statement with the statements inside it, of limited depth."""
        kinds, weights = _fitting(grammar, depth, tags, self.axes)
        wanted = [kind for kind in kinds if kind.name == self.wanted]
        if wanted:
            kind, self.wanted = wanted[0], None
        else:
            (kind,) = self.random.choices(kinds, cum_weights=weights)
        self.number += 1
        number, lines, bodies = self.number, [], []
        for raw in self.chosen("\n".join(kind.lines)).replace("_K", f"_{number}").split("\n"):
            found = SECTION.match(raw)
            lines.append((found[1], found[2]) if found else ("forward", raw))
            if raw.strip() in ("BODY", "ROW"):
                needed = frozenset(["row"]) if raw.strip() == "ROW" else frozenset[str]()
                many = self.random.choice([1, 1, 2])
                bodies.append(
                    tuple([self.piece(STATEMENTS, depth + 1, needed) for _ in range(many)])
                )
        return Piece(kind.name, tuple(lines), tuple(bodies))

    def chosen(self, text: str) -> str:
        """Make every choice in a text, and fill in arithmetic."""
        while found := CHOICE.search(text):
            text = (
                text[: found.start()]
                + self.random.choice(found[1].split("|"))
                + text[found.end() :]
            )
        for _ in range(self.random.randint(1, 4)):
            if found := re.search(r"\bEXPR\b", text):
                text = text[: found.start()] + self.random.choice(EXPRESSIONS) + text[found.end() :]
        return re.sub(r"\bEXPR\b", "h", text)


@cache
def kinds_of(grammar: str) -> tuple[Kind, ...]:
    """Parse the kinds of statements in a text of the grammar."""
    kinds = []
    for block in grammar.strip().split("\n\n"):
        head, *lines = block.split("\n")
        words, tags = head.removeprefix("# ").split(), set()
        while words[-1] in TAGS:
            tags.add(words.pop())
        kinds.append(Kind(" ".join(words), frozenset(tags), tuple(lines)))
    return tuple(kinds)


@cache
def _fitting(
    grammar: str, depth: int, tags: frozenset[str], axes: str
) -> tuple[list[Kind], list[float]]:
    """Return the kinds that are allowed at a depth, and their cumulative weights."""
    kinds = [
        kind
        for kind in kinds_of(grammar)
        if tags <= kind.tags and _has_axes(kind, axes) and _may_be_inside(kind, depth)
    ]
    return kinds, list(accumulate(kind.weight for kind in kinds))


def _has_axes(kind: Kind, axes: str) -> bool:
    return axes in kind.tags or not kind.tags & {"two", "three"}


def _may_be_inside(kind: Kind, depth: int) -> bool:
    return not (depth and "state" in kind.tags) and not (depth > 1 and kind.has_bodies)


def _names_of(grammar: str) -> list[str]:
    return [kind.name for kind in kinds_of(grammar)]


def _smaller(pieces: tuple[Piece, ...]) -> Iterator[tuple[Piece, ...]]:
    for number, piece in enumerate(pieces):
        for instead in piece.smaller():
            yield (*pieces[:number], *instead, *pieces[number + 1 :])
