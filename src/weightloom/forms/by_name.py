"""Forms by name, as files store them, so that reading a file executes no code.

In:   a form, or its name and options.
Out:  True if the form can be stored by name; or the form. Only forms of `weightloom.forms` can.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightloom.errors import CheckpointError, WeightloomError
from weightloom.forms.form import KINDS, Form


def has_name(form: Form) -> bool:
    """True for a form of this library whose attributes are options that JSON can hold."""
    if KINDS.get(type(form).__name__) is not type(form):
        return False
    plain = all(
        isinstance(value, int | float | str | bool | None) for value in form.__dict__.values()
    )
    return plain and form.__dict__.keys() <= inspect.signature(type(form)).parameters.keys()


def form_of(path: Path, name: str, options: Mapping[str, Any]) -> Form:
    """Build a form from the name and options that a file holds.

    Args:
        path: The file, for error messages.
        name: Name of the form's class.
        options: Arguments of its constructor.

    Raises:
        CheckpointError: If this version of the library has no such form, or the form does not take
            these options.
    """
    kind = KINDS.get(str(name))
    if kind is None:
        raise CheckpointError(
            f"`{path}` holds parameters in the form {name!r}, which this version of the library "
            "does not have. Forms are stored by name. Use the version that wrote the file."
        )
    try:
        return kind(**options)
    except (TypeError, WeightloomError) as error:
        raise CheckpointError(
            f"`{path}` holds options of {name} that this version of the library does not take "
            f"({error}). Forms are "
            "rebuilt from their options. Use the version that wrote the file."
        ) from error
