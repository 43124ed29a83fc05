"""JSON files of a run's folder, each with a typed schema and a version.

In:   a path, and the schema as a dataclass or ``TypedDict``.
Out:  a value of the schema, or an error with the file, its fault and a remedy.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

from weightloom import texts
from weightloom.errors import DataError

Schema = TypeVar("Schema")


def read_json(path: Path, schema: type[Schema], version: int, about: str) -> Schema:
    """Read a JSON file of a run's folder and check every field.

    Args:
        path: The file.
        schema: A dataclass or ``TypedDict``. Fields that a ``TypedDict`` lacks are kept.
        version: Required value of ``format`` in the file.
        about: Origin of the file, a sentence for the message, as in "A run writes it at its end."

    Raises:
        DataError: If the file is missing, damaged, of another version, or does not fit the schema.
    """
    from pydantic import TypeAdapter, ValidationError

    facts = read_object(path, about)
    found = facts.pop("format", None)
    if found != version:
        raise DataError(
            f"`{path}` is of format {found!r}. This version of the library reads format {version}. "
            "Install the version that made it, or run it again."
        )
    try:
        checked = TypeAdapter(schema).validate_python(facts)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise damaged(path, f"`{place}`: {first['msg']}") from error
    # Validation drops the fields that a TypedDict lacks; the file's own dictionary has them.
    whole: Any = facts if isinstance(checked, dict) else checked
    return whole


def read_object(path: Path, about: str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.
        about: Origin of the file, a sentence for the message.

    Raises:
        DataError: If the file is missing or damaged.
    """
    try:
        facts = texts.read_json(path)
    except texts.TextError as error:
        if not isinstance(error.__cause__, OSError | UnicodeEncodeError):
            raise damaged(path, str(error)) from error
        raise DataError(
            f"`{path}` cannot be opened ({error}): the folder holds no run. {about} "
            "Pass the folder of a run, as in `runs/digits-001`."
        ) from error
    if not isinstance(facts, dict):
        raise damaged(path, f"it holds a {type(facts).__name__}")
    return facts


def write_json(path: Path, value: dict[str, Any], version: int) -> None:
    """Write a JSON file of a run's folder atomically."""
    from weightloom.files import write_atomically

    write_atomically(path, json_text(value, version))


def json_text(value: dict[str, Any], version: int) -> str:
    """Return the text of a JSON file, with its version as ``format``."""
    return json.dumps({"format": version, **value}, indent=1) + "\n"


def damaged(path: Path, reason: str) -> DataError:
    """Return the error for a damaged file of a run's folder."""
    return DataError(
        f"`{path}` cannot be read ({reason}). It must be as the run wrote it. "
        "Put back an earlier copy, or start the run again in a new folder with `--run FOLDER`."
    )
