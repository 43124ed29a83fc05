"""Mark hot functions, so that tests that check annotations at run time skip them."""

from typing import TypeVar

Thing = TypeVar("Thing")


def no_type_check(thing: Thing) -> Thing:
    """Return the class or function unchanged.

    The checker of annotations skips anything under a decorator of this name.
    """
    return thing
