"""Marks what runs many times in every call, so that tests which check annotations do not check those each time."""

from typing import TypeVar

Thing = TypeVar("Thing")


def no_type_check(thing: Thing) -> Thing:
    """Return the class or function as it is.

    Its name is what the checker of annotations looks for.
    """
    return thing
