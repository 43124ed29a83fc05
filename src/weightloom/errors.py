"""Errors and warnings that the library raises on purpose, and suggestions for misspelt names.

Each message has three parts: the value that was passed; the values that fit, and the reason; the
text to type instead. Every error is a `WeightloomError`, so one ``except`` catches them all, and
also a builtin error, for callers who do not import this library.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class WeightloomError(Exception):
    """Base class of all errors that this library raises on purpose."""


class ShapeError(WeightloomError, ValueError):
    """Two tensors disagree on the size of an axis, or a tensor has too few axes."""


class ConfigError(WeightloomError, ValueError):
    """Invalid option, unknown name, or options that contradict each other."""


class DataError(WeightloomError, ValueError):
    """Data set that is missing or damaged, or that contains NaN or infinity."""


class CheckpointError(WeightloomError, RuntimeError):
    """Checkpoint that is truncated, foreign or modified, or a file that could not be written."""


class NonFiniteError(WeightloomError, ArithmeticError):
    """NaN or infinity in a loss, a gradient, or the actions, rewards or state of an environment.

    The training loop raises it before the optimiser's step, so the parameters are still finite.
    """


class BatchingError(WeightloomError, RuntimeError):
    """Base network that cannot run for several tasks in one pass without a change."""


class RecomputeError(BatchingError):
    """Base network that recomputes or packs activations, which ``vmap`` cannot follow."""


class MissingExtraError(WeightloomError, ImportError):
    """Optional dependency that is needed but not installed."""


class BuiltWarning(UserWarning):
    """Factored parameter built in full for all tasks, with more than ten times the memory."""


MOST_NAMES = 20
"""Maximum number of names that a message lists."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the known words most similar to ``word``.

    Without a similar word, it lists all known words; of more than 20, the 20 nearest.

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
    """Return the first 20 names, quoted, followed by the number of the others.

    Each name is cut after 60 characters.

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
