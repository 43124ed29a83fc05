"""Random bases as programs: drawn from the grammar by a seed, written as text, and cut down.

In:   a seed.
Out:  a `Program`; its `text` is a module that defines ``build``, ``inputs``, ``change`` and
      ``turn``, and constants.
Knows nothing of engines.
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
"""Sizes that differ, so that what fails with them does not fail by coincidence."""
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
    """One block of the grammar."""

    name: str
    tags: frozenset[str]
    lines: tuple[str, ...]

    @property
    def weight(self) -> float:
        """How often it is drawn, beside the others."""
        return 3.0 if "often" in self.tags else 0.2 if "rare" in self.tags else 1.0


@dataclass(frozen=True)
class Piece:
    """One statement of a program, drawn.

    Its lines by section, and the statements inside it, a list for each body.
    """

    name: str
    lines: tuple[tuple[str, str], ...]
    bodies: tuple[tuple["Piece", ...], ...] = ()

    def section(self, section: str) -> Iterator[str]:
        """Lines of a section, its own and those of the statements inside."""
        yield from (line for its, line in self.lines if its == section)
        for body in self.bodies:
            for piece in body:
                yield from piece.section(section)

    def names(self) -> Iterator[str]:
        """Its kind, and those of the statements inside."""
        yield self.name
        for body in self.bodies:
            for piece in body:
                yield from piece.names()

    def forward(self) -> Iterator[str]:
        """Lines of ``forward``."""
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
        """What may stand in its place: nothing, what is inside it, or itself with less inside."""
        yield ()
        yield from (body for body in self.bodies if body)
        for number, body in enumerate(self.bodies):
            for less in _smaller(body):
                yield (
                    replace(self, bodies=(*self.bodies[:number], less, *self.bodies[number + 1 :])),
                )


@dataclass(frozen=True)
class Settings:
    """How a program is run; the defaults are the simplest."""

    TASKS: int = 2
    CALLS: int = 1
    """Calls one after the other, on the same base."""
    TRAIN: bool = False
    NEW_PARAMS: bool = False
    """Other generated values in every call."""
    GRAD: bool = True
    FORMS: bool = False
    """Parameters held by forms such as `LowRank`, about half of them."""
    ALL: bool = True
    """Every parameter is generated, not about two thirds of them."""
    CHUNK_SIZE: int | None = None
    STATISTICS: str | None = None
    RANDOMNESS: str = "different"


@dataclass(frozen=True)
class Program:
    """A random base with its inputs and the settings that it is run with."""

    seed: int
    sizes: tuple[int, int, int] = DISTINCT
    """Batch, width, and a second width; the last also counts the steps of a sequence."""
    is_sequence: bool = False
    pieces: tuple[Piece, ...] = ()
    inputs: tuple[Piece, ...] = ()
    output: Piece = Piece("tensor", (("forward", "h"),))
    settings: Settings = field(default_factory=Settings)

    @property
    def text(self) -> str:
        """The program as a Python file, which says when it is run what every engine makes of it."""
        tasks = self.settings.TASKS
        batch, width, other = self.sizes
        every = [*self.inputs, *self.pieces, self.output]

        def lines(section: str, indent: int = 0) -> list[str]:
            return [" " * indent + line for piece in every for line in piece.section(section)]

        share = [line for piece in every for line in piece.section("share")]
        signs = sorted(
            (line for piece in every for line in piece.section("sign")),
            key=lambda sign: sign[0] == "*",
        )
        args = "".join(f", {line}" for piece in every for line in piece.section("args"))
        forward = [
            " " * 8 + line for piece in (*self.inputs, *self.pieces) for line in piece.forward()
        ]
        turn = lines("turn", 4)
        return "\n".join(
            [
                HEADER,
                f"SEED, SHARED = {self.seed}, {tuple(share)!r}",
                *(f"{its.name} = {getattr(self.settings, its.name)!r}" for its in fields(Settings)),
                f"T, B, W, V, L = {tasks}, {batch}, {width}, {other}, {other}",
                f"ROWS = {'(B, L)' if self.is_sequence else '(B,)'}",
                *("", "", *lines("top"), "", ""),
                "class Net(nn.Module):",
                "    def __init__(self):",
                "        super().__init__()",
                "        self.one = nn.Linear(W, W)",
                *lines("init", 8),
                *("", *lines("method", 4), ""),
                f"    def forward({', '.join(['self', 'x', *signs])}):",
                *("        h = x", *forward),
                f"        return {next(line for section, line in self.output.lines if section == 'forward')}",
                *("", "", "def build():", "    return Net()"),
                *("", "", "def inputs():"),
                f"    return (torch.randn(T, *ROWS, W){args},), {{{', '.join(lines('kwargs'))}}}",
                *("", "", "def change(base):", *(lines("change", 4) or ["    pass"])),
                *("", "", "def turn():", *(turn or ["    pass"]), FOOTER),
            ]
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of everything in it that is not the simplest.

        Statements, inputs, output and settings.
        """
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
        """Programs that are a little simpler."""
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
    """The program of a seed: the same one every time.

    Args:
        seed: Any number.
        kind: A statement, input or output that is in it, by the name it has in the grammar; None
            leaves it to chance.
    """
    return _Draw(seed, kind).program()


class _Draw:
    """Draws one program."""

    def __init__(self, seed: int, kind: str | None) -> None:
        self.random = Random(seed)
        self.wanted = kind
        self.seed = seed
        self.number = 0
        self.axes = "two"

    def program(self) -> Program:
        random = self.random
        wanted = [
            kind
            for grammar in (STATEMENTS, INPUTS, OUTPUTS)
            for kind in kinds_of(grammar)
            if kind.name == self.wanted
        ]
        tags = wanted[0].tags if wanted else frozenset[str]()
        is_sequence = (random.random() < 0.3 or "three" in tags) and "two" not in tags
        self.axes = "three" if is_sequence else "two"
        same = random.randint(2, 4)
        tasks, batch, width, other = (
            same if random.random() < 0.4 else random.randint(2, 4) for _ in range(4)
        )
        batch = 1 if random.random() < 0.15 else batch
        count = random.choice([1, 2, 2, 3, 3, 4, 5])
        pieces = tuple([self.piece(STATEMENTS, depth=0) for _ in range(count)])
        takes_more = random.random() < 0.3 or self.wanted in [
            kind.name for kind in kinds_of(INPUTS)
        ]
        inputs = (self.piece(INPUTS, depth=0),) if takes_more else ()
        changes = any(
            list(piece.section(section)) for piece in pieces for section in ("change", "turn")
        )
        calls = random.choice([2, 3]) if changes or random.random() < 0.2 else 1
        settings = Settings(
            TASKS=tasks,
            CALLS=calls,
            TRAIN=random.random() < 0.5,
            NEW_PARAMS=random.random() < 0.5,
            GRAD=random.random() < 0.9,
            FORMS=random.random() < 0.25,
            ALL=random.random() < 0.5,
            CHUNK_SIZE=random.choice([1, 2]) if random.random() < 0.05 else None,
            STATISTICS=random.choice([None, "task"])
            if calls == 1
            else None,  # of a call: the next starts anew
            RANDOMNESS="same" if random.random() < 0.05 else "different",
        )
        sizes = batch, width, other
        return Program(
            self.seed, sizes, is_sequence, pieces, inputs, self.piece(OUTPUTS, depth=0), settings
        )

    def piece(self, grammar: str, depth: int, tags: frozenset[str] = frozenset()) -> Piece:
        """A statement; deep inside there are no statements that hold others."""
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
        """Text with every choice made, and arithmetic put in."""
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
    """The kinds that a text of the grammar holds."""
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
    """Kinds that may stand so deep inside of others, and their weights summed up."""
    kinds = []
    for kind in kinds_of(grammar):
        wrong_axes = kind.tags & {"two", "three"} and axes not in kind.tags
        holds = any(line.strip() in ("BODY", "ROW") for line in kind.lines)
        if (
            not wrong_axes
            and tags <= kind.tags
            and not (depth and "state" in kind.tags)
            and not (depth > 1 and holds)
        ):
            kinds.append(kind)
    return kinds, list(accumulate(kind.weight for kind in kinds))


def _smaller(pieces: tuple[Piece, ...]) -> Iterator[tuple[Piece, ...]]:
    for number, piece in enumerate(pieces):
        for instead in piece.smaller():
            yield (*pieces[:number], *instead, *pieces[number + 1 :])
