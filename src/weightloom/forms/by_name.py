"""Forms by their names: how a file says which form a parameter is held in, so that reading it runs no code.

In:   a form, or its name and options.
Out:  whether it can be named, or the form. Only forms of `weightloom.forms` can.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightloom.errors import CheckpointError, WeightloomError
from weightloom.forms.form import KINDS, Form


def has_name(form: Form) -> bool:
    """Whether the form is one of ours, and its attributes are its options, which JSON can hold."""
    if KINDS.get(type(form).__name__) is not type(form):
        return False
    plain = all(
        isinstance(value, int | float | str | bool | None) for value in form.__dict__.values()
    )
    return plain and form.__dict__.keys() <= inspect.signature(type(form)).parameters.keys()


def form_of(path: Path, name: str, options: Mapping[str, Any]) -> Form:
    """Make a form from its name and options, as a file holds them.

    Args:
        path: The file, to be named in errors.
        name: Name of the form's class.
        options: What it was made with.

    Raises:
        CheckpointError: If this version of the library has no such form, or it does not take the
            options.
    """
    kind = KINDS.get(str(name))
    if kind is None:
        raise CheckpointError(
            f"`{path}` holds parameters in the form {name!r}, which this version of the library "
            "does not have. A form is made from its name. Use the version that wrote the file."
        )
    try:
        return kind(**options)
    except (TypeError, WeightloomError) as error:
        raise CheckpointError(
            f"`{path}` holds options of {name} that this version of the library does not take "
            f"({error}). A form is "
            "made from its options. Use the version that wrote the file."
        ) from error
