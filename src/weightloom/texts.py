"""Text from outside: every file of text, JSON or YAML is read here, within limits.

In:   a path.
Out:  its text, or plain values: objects, lists, texts, finite numbers, truth values, null.
Knows nothing of what the values mean, nor of torch. What does not fit is a `TextError` with the
reason as a phrase; the caller, who knows the file, says in a sentence what to do.
"""

import json
import math
import stat
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

from weightloom.limits import MOST_LEVELS, MOST_TEXT_BYTES, MOST_YAML_VALUES


class TextError(ValueError):
    """A file that is not there, is no regular file, is too large, or does not hold what it should."""


def kind_of(path: str | Path) -> Literal["file", "folder", "other", "nothing"]:
    """Say what is at a path that somebody typed; a name that no file can have is nothing.

    Example:
        >>> kind_of("no such file"), kind_of("a" * 10_000), kind_of("/")
        ('nothing', 'nothing', 'folder')
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return "nothing"
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def home(path: str | Path) -> Path:
    """Put the user's folder in the place of ``~``.

    The name of a user that is not here stays as it is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def shortened(path: str | Path) -> str:
    """Write a path, or what was typed for one, for a message: a very long one by its ends."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:80]}…{text[-80:]}"


def read_text(path: Path) -> str:
    """Read a regular file of UTF-8; a byte order mark is left out.

    Raises:
        TextError: If there is none, it is over `MOST_TEXT_BYTES`, or it is not UTF-8. Nothing else
            is opened: a device or a pipe may never end.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise TextError("it is no regular file")
        with path.open("rb") as file:
            content = file.read(MOST_TEXT_BYTES + 1)
        if len(content) > MOST_TEXT_BYTES:
            raise TextError(f"it is larger than {MOST_TEXT_BYTES // 10**6} MB")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise TextError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise TextError(f"it is not UTF-8, from byte {error.start} on") from error
    except UnicodeEncodeError as error:
        raise TextError("no file has such a name here") from error
    except ValueError as error:  # our own, or a name with a zero byte
        raise error if isinstance(error, TextError) else TextError(str(error)) from error


def parse_json(text: str) -> Any:
    """Read JSON: at most `MOST_LEVELS` deep, every name once in its object, every number finite.

    Raises:
        TextError: If it is not.

    Example:
        >>> parse_json('{"ways": [1, 5]}')
        {'ways': [1, 5]}
        >>> parse_json('{"ways": 1, "ways": 5}')
        Traceback (most recent call last):
            ...
        weightloom.texts.TextError: 'ways' stands twice in one object
    """
    try:
        value = json.loads(text, object_pairs_hook=_each_once)
    except RecursionError as error:
        raise TextError(TOO_DEEP) from error
    except ValueError as error:
        raise error if isinstance(error, TextError) else TextError(str(error)) from error
    return _plain(value)


def read_json(path: Path) -> Any:
    """Read a file of JSON, as `read_text` and `parse_json` do.

    Raises:
        TextError: As theirs.
    """
    return parse_json(read_text(path))


def parse_yaml(text: str) -> Any:
    r"""Read YAML of plain values, as JSON has them.

    No tags, no anchors or aliases, no dates, every name once.

    Raises:
        TextError: If it is not, is over `MOST_LEVELS` deep, or holds more than `MOST_YAML_VALUES`.

    Example:
        >>> parse_yaml("ways: [1, 5]\ndata: digits")
        {'ways': [1, 5], 'data': 'digits'}
    """
    import yaml

    parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(parser):
        """Names once each."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            self.flatten_mapping(node)
            return _each_once(
                [
                    (self.construct_object(key, True), self.construct_object(its, True))
                    for key, its in node.value
                ]
            )

    try:
        level, values = 0, 0
        for event in yaml.parse(text, Loader=parser):  # a stream, left at once where it goes wrong
            level += isinstance(event, yaml.CollectionStartEvent) - isinstance(
                event, yaml.CollectionEndEvent
            )
            values += isinstance(event, yaml.ScalarEvent)
            if level > MOST_LEVELS:
                raise TextError(TOO_DEEP)
            if values > MOST_YAML_VALUES:
                raise TextError(f"it holds more than {MOST_YAML_VALUES:,} values")
            if isinstance(event, yaml.NodeEvent) and (event.anchor or getattr(event, "tag", None)):
                raise TextError(
                    f"it has an anchor, an alias or a tag{_place(event)}, which are not read"
                )
        return _plain(yaml.load(text, Loader=Loader))
    except TextError:
        raise
    except Exception as error:  # yaml raises a dozen types for the one thing that is wrong
        raise TextError(" ".join(str(error).split()) or type(error).__name__) from error


TOO_DEEP = f"it is nested more than {MOST_LEVELS} levels deep"


def _place(event: Any) -> str:
    return f" in line {event.start_mark.line + 1}" if event.start_mark else ""


def _each_once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Build an object whose names are texts that stand in it once."""
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if not isinstance(name, str):
            raise TextError(f"{name!r} is no text, and names are")
        if name in found:
            raise TextError(f"{name[:80]!r} stands twice in one object")
        found[name] = value
    return found


def _plain(value: Any) -> Any:
    """Return a value that is plain, finite, and not too deep."""
    level = [value]
    for depth in range(MOST_LEVELS + 1):
        below: list[Any] = []
        for its in level:
            if isinstance(its, float) and not math.isfinite(its):
                raise TextError(f"it holds {its}, which is no number")
            if not isinstance(its, str | int | float | dict | list | None):
                raise TextError(f"it holds {str(its)!r}, a {type(its).__name__}")
            below += its.values() if isinstance(its, dict) else its if isinstance(its, list) else ()
        if depth == MOST_LEVELS and any(isinstance(its, dict | list) for its in level):
            break
        if not below:
            return value
        level = below
    raise TextError(TOO_DEEP)


def html_table(rows: Sequence[Sequence[str]], below: str = "") -> str:
    """Write cells as an HTML table, the first row as its heading.

    Example:
        >>> html_table([("layer", "scale"), ("0", "< 1")])[-57:]
        '<tbody><tr><th>0</th><td>&lt; 1</td></tr></tbody></table>'
    """
    head, *body = rows
    heading = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in others)}</tr>"
        for first, *others in body
    )
    table = f"<table><thead><tr>{heading}</tr></thead><tbody>{lines}</tbody></table>"
    return f"{table}<p>{escape(below)}</p>" if below else table
