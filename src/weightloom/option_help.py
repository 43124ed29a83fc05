"""Help of a command: its options in groups, each with the default that a run would use.

In:   the dataclass of a command, and the values that would be used if nothing more were typed.
Out:  text for a terminal of a given width.
Knows nothing of parsing, nor of any application.
"""

import ast
import inspect
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from pathlib import Path
from textwrap import dedent, wrap
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

INDENT = 24
"""Column at which the text of an option begins."""
NARROW = 60
"""Width of a terminal below which the text stands under its option."""
RULE = re.compile(r"\s*\bDefault: .*$")
"""The sentence of a field's text that says how its default is found."""
PLACEHOLDERS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}
"""Placeholder of an option's value by its type."""


class Option(NamedTuple):
    """One option as help shows it."""

    name: str
    """Field of the dataclass."""
    words: str
    """Flag and placeholder, as in ``--steps N``; of a positional argument the placeholder."""
    text: str
    """Description, ending in the default."""


def option_help(
    about: str,
    usage: str,
    options: Iterable[Option],
    groups: Mapping[str, Iterable[str]],
    width: int,
) -> str:
    """Lay out the help of a command.

    Args:
        about: First paragraph.
        usage: The line that is typed, as in ``weightloom rl [OPTIONS]``.
        options: All options.
        groups: Names of options by heading; an option in no group stands under ``Options``.
        width: Columns of the terminal.
    """
    grouped: dict[str, list[Option]] = {title: [] for title in groups}
    title_of = {name: title for title, names in groups.items() for name in names}
    for option in options:
        grouped.setdefault(title_of.get(option.name, "Options"), []).append(option)
    parts = [f"usage: {usage}", "\n".join(wrap(about, width))]
    for title, members in grouped.items():
        if members:
            parts.append("\n".join([f"{title}:", *(_lines(option, width) for option in members)]))
    return "\n\n".join(parts)


def options_of(kind: type, values: Any, resolved: Any = None) -> Iterator[Option]:
    """Describe every field of a dataclass as an option.

    Args:
        kind: The dataclass.
        values: An instance, or None for the defaults of the fields.
        resolved: The same with every default filled in, or None.
    """
    hints, texts = get_type_hints(kind, include_extras=True), field_texts(kind)
    for field in fields(kind):
        hint, text = _unwrapped(hints[field.name], texts.get(field.name, ""))
        value = _value(field, values)
        if resolved is not None and value in (None, ()):
            value = getattr(resolved, field.name, value)
        positional = "Positional" in str(hints[field.name])
        words = field.name.upper() if positional else _flag(field.name, hint, value)
        shown = None if hint is bool else value
        yield Option(field.name, words, _with_default(text, shown))


def field_texts(kind: type) -> dict[str, str]:
    """Read the text under each field of a dataclass, inherited ones included."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        if "__annotations__" not in vars(owner) or owner.__module__ == "types":
            continue
        body = ast.parse(dedent(inspect.getsource(owner))).body[0]
        for line, below in pairwise(body.body if isinstance(body, ast.ClassDef) else []):
            text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(line, ast.AnnAssign) and text:
                literal = ast.literal_eval(ast.unparse(below))
                found[ast.unparse(line.target)] = " ".join(literal.split())
    return found


def without_rule(text: str) -> str:
    """Return a field's text without the sentence about its default.

    Example:
        >>> without_rule("Steps of training. Default: by data set.")
        'Steps of training.'
    """
    return RULE.sub("", text)


def _value(field: "Field[Any]", values: Any) -> Any:
    if values is not None:
        return getattr(values, field.name)
    return None if field.default is MISSING else field.default


def _unwrapped(hint: Any, text: str) -> tuple[Any, str]:
    """Take an annotation apart: the type, and the help that stands in it or else ``text``."""
    for extra in getattr(hint, "__metadata__", ()):
        text = getattr(extra, "help", None) or text
    while hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    return hint, text


def _flag(name: str, hint: Any, value: Any) -> str:
    flag = name.replace("_", "-")
    if hint is bool:
        return f"--no-{flag}" if value else f"--{flag}"
    return f"--{flag} {_placeholder(hint)}"


def _placeholder(hint: Any) -> str:
    """Return the placeholder of a type.

    Example:
        >>> _placeholder(int | None), _placeholder(tuple[str, ...]), _placeholder(Literal["a", "b"])
        ('N', 'TEXT …', '{a,b}')
    """
    if get_origin(hint) in (Union, types.UnionType):
        return _placeholder(next(kind for kind in get_args(hint) if kind is not type(None)))
    if get_origin(hint) is tuple:
        return f"{_placeholder(get_args(hint)[0])} …"
    if hint is bool:
        return "{True,False}"
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    return PLACEHOLDERS.get(hint, "VALUE")


def _with_default(text: str, value: Any) -> str:
    """End an option's text in its default, in the place of the rule that finds it.

    Example:
        >>> _with_default("Steps of training. Default: by data set.", 300)
        'Steps of training. Default: 300.'
        >>> _with_default("Learning rate per method.", ())
        'Learning rate per method.'
    """
    if value is None or value in ((), ""):
        return text
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"{without_rule(text)} Default: {shown}."


def _lines(option: Option, width: int) -> str:
    head = f"  {option.words}"
    if width < NARROW:
        body = wrap(option.text, max(width - 6, 20), break_on_hyphens=False)
        return "\n".join([head, *(f"      {line}" for line in body)])
    body = wrap(option.text, width - INDENT, break_on_hyphens=False)
    if len(head) + 2 > INDENT:
        return "\n".join([head, *(" " * INDENT + line for line in body)])
    return "\n".join(
        [f"{head:<{INDENT}}{body[0] if body else ''}"] + [" " * INDENT + line for line in body[1:]]
    )
