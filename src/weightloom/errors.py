"""What can go wrong, on purpose.

Every error says three things: what was wrong, with its value; what fits, and why; what to type. All
of them are a `WeightloomError`, so a caller can catch the family, and each is a builtin error too,
for callers who do not know us.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class WeightloomError(Exception):
    """Anything this library raises on purpose."""


class ShapeError(WeightloomError, ValueError):
    """Two tensors that must agree on an axis do not, or one has too few axes."""


class ConfigError(WeightloomError, ValueError):
    """An option, a name or a combination of options that cannot work."""


class DataError(WeightloomError, ValueError):
    """A data set that is missing, damaged, or holds numbers that are not finite."""


class CheckpointError(WeightloomError, RuntimeError):
    """A file that is truncated, foreign, changed since it was written, or that could not be written."""


class NonFiniteError(WeightloomError, ArithmeticError):
    """A loss or a gradient that is NaN or infinite.

    The run is stopped before it spoils the parameters.
    """


class BatchingError(WeightloomError, RuntimeError):
    """A base network that cannot run for several tasks in one pass as it stands."""


class RecomputeError(BatchingError):
    """A base that recomputes in the backward pass, which the engine cannot follow."""


class MissingExtraError(WeightloomError, ImportError):
    """An optional dependency that this command needs is not installed."""


class BuiltWarning(UserWarning):
    """A parameter held as factors was built for all tasks by an operation, at more than ten times the memory."""


MOST_NAMES = 20
"""As many as a message lists."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a sentence that names the known words nearest to ``word``.

    Example:
        >>> nearest("omniglt", ["digits", "omniglot"])
        'Did you mean `omniglot`?'
        >>> nearest("zebra", ["digits", "omniglot"])
        'Known: `digits`, `omniglot`.'
    """
    names = list(known)
    matches = get_close_matches(word, names, n=3, cutoff=0.6)
    if len(names) > MOST_NAMES and not matches:
        quoted = _quoted(get_close_matches(word, names, n=MOST_NAMES, cutoff=0.0))
        return f"Nearest of {len(names)}: {quoted}."
    return f"Did you mean {_quoted(matches)}?" if matches else f"Known: {_quoted(names) or 'none'}."


def listed(names: Iterable[str]) -> str:
    """Return names in a row, and of more than twenty how many others there are.

    Example:
        >>> listed(["age", "dose"])
        '`age`, `dose`'
        >>> listed(str(column) for column in range(1000))[-19:]
        '`19` and 980 others'
    """
    shown = list(names)
    more = f" and {len(shown) - MOST_NAMES:,} others" if len(shown) > MOST_NAMES else ""
    return _quoted(name[:60] for name in shown[:MOST_NAMES]) + more


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
