"""Readers for text, JSON and YAML files from outside, within limits on size and depth.

In:   a path.
Out:  its text, or plain values: dicts, lists, strings, finite numbers, booleans, None.

Independent of torch and of the meaning of the values. A `TextError` gives the reason as a phrase;
the caller, who knows the purpose of the file, completes the message.
"""

import json
import math
import stat
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

from weightloom.limits import MOST_LEVELS, MOST_TEXT_BYTES, MOST_YAML_VALUES


class TextError(ValueError):
    """Text file that is missing, too large, not a regular file, or not in the expected format."""


def kind_of(path: str | Path) -> Literal["file", "folder", "other", "nothing"]:
    """Return the kind of file at a path; ``"other"`` is a device or a pipe.

    A path that does not exist, or is no valid file name, gives ``"nothing"``.

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
    """Expand ``~`` and ``~user`` to the user's folder; an unknown user stays unexpanded."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def shortened(path: str | Path) -> str:
    """Shorten a path of over 200 letters to its first and last 80, for a message."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:80]}…{text[-80:]}"


def read_text(path: Path) -> str:
    """Read a regular file in UTF-8, without its byte order mark.

    Devices and pipes are refused unopened, because they may never end.

    Raises:
        TextError: If the file is missing, is not a regular file, is over `MOST_TEXT_BYTES`, or is
            not UTF-8.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise TextError("it is not a regular file")
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
    except TextError:
        raise
    except ValueError as error:  # a name with a zero byte
        raise TextError(str(error)) from error


def parse_json(text: str) -> Any:
    """Parse JSON with finite numbers and no duplicate names.

    Raises:
        TextError: If the text is not JSON, is nested more than `MOST_LEVELS` deep, repeats a name
            within an object, or contains NaN or infinity.

    Example:
        >>> parse_json('{"ways": [1, 5]}')
        {'ways': [1, 5]}
        >>> parse_json('{"ways": 1, "ways": 5}')
        Traceback (most recent call last):
            ...
        weightloom.texts.TextError: 'ways' is repeated in one object
    """
    try:
        value = json.loads(text, object_pairs_hook=_each_once)
    except RecursionError as error:
        raise TextError(TOO_DEEP) from error
    except TextError:
        raise
    except ValueError as error:
        raise TextError(str(error)) from error
    return _plain(value)


def read_json(path: Path) -> Any:
    """Read a JSON file: `read_text`, then `parse_json`.

    Raises:
        TextError: As `read_text` and `parse_json`.
    """
    return parse_json(read_text(path))


def parse_yaml(text: str) -> Any:
    r"""Parse YAML that contains only the types of JSON: no tags, anchors, aliases or dates.

    Raises:
        TextError: If the text is not such YAML, is nested more than `MOST_LEVELS` deep, has more
            than `MOST_YAML_VALUES` values, or repeats a name within an object.

    Example:
        >>> parse_yaml("ways: [1, 5]\ndata: digits")
        {'ways': [1, 5], 'data': 'digits'}
    """
    import yaml

    parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(parser):
        """Loader that refuses duplicate names."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            self.flatten_mapping(node)
            return _each_once(
                [
                    (self.construct_object(key, True), self.construct_object(its, True))
                    for key, its in node.value
                ]
            )

    try:
        _check_events(yaml.parse(text, Loader=parser))
        return _plain(yaml.load(text, Loader=Loader))
    except TextError:
        raise
    except Exception as error:  # yaml raises many types for malformed text
        raise TextError(" ".join(str(error).split()) or type(error).__name__) from error


TOO_DEEP = f"it is nested more than {MOST_LEVELS} levels deep"


def _check_events(events: Iterable[Any]) -> None:
    """Check depth, number of values and tags on the event stream, before any value is built."""
    import yaml

    level, values = 0, 0
    for event in events:
        level += isinstance(event, yaml.CollectionStartEvent)
        level -= isinstance(event, yaml.CollectionEndEvent)
        values += isinstance(event, yaml.ScalarEvent)
        if level > MOST_LEVELS:
            raise TextError(TOO_DEEP)
        if values > MOST_YAML_VALUES:
            raise TextError(f"it holds more than {MOST_YAML_VALUES:,} values")
        if isinstance(event, yaml.NodeEvent) and (event.anchor or getattr(event, "tag", None)):
            raise TextError(
                f"it has an anchor, an alias or a tag{_place(event)}, which are not read"
            )


def _place(event: Any) -> str:
    return f" in line {event.start_mark.line + 1}" if event.start_mark else ""


def _each_once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Build a dict from pairs; refuse names that are not strings, or that repeat."""
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if not isinstance(name, str):
            raise TextError(f"the name {name!r} is not a string")
        if name in found:
            raise TextError(f"{name[:80]!r} is repeated in one object")
        found[name] = value
    return found


def _plain(value: Any) -> Any:
    """Return ``value`` if all values in it are plain and finite, and it is not too deep."""
    level = [value]
    for _ in range(MOST_LEVELS):
        _check_types(level)
        level = [part for its in level for part in _parts(its)]
    _check_types(level)
    if any(isinstance(its, dict | list) for its in level):
        raise TextError(TOO_DEEP)
    return value


def _check_types(values: list[Any]) -> None:
    for its in values:
        if isinstance(its, float) and not math.isfinite(its):
            raise TextError(f"it holds {its}, which is not finite")
        if not isinstance(its, str | int | float | dict | list | None):
            raise TextError(f"it holds {str(its)!r}, a {type(its).__name__}")


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


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
