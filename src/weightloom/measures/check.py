"""Checks of sets of samples, with errors that name the set."""

from torch import Tensor

from weightloom.errors import DataError, ShapeError


def check_sets(least: int, reason: str, **sets: Tensor) -> None:
    """Raise unless all sets are tables of finite numbers, equally wide and large enough.

    Args:
        least: Minimum number of samples in each set.
        reason: Clause for the message on a smaller set, e.g. ``"a covariance needs two"``.
        **sets: Each (samples, width), by its name in messages.

    Raises:
        ShapeError: If a set has other than two axes, or sets differ in width.
        DataError: If a set is too small, or contains NaN or infinity.
    """
    for name, samples in sets.items():
        if samples.ndim != 2:
            raise ShapeError(
                f"`{name}` has shape {tuple(samples.shape)}. A set of samples is a table, (samples,"
                f" width), since distances are taken between rows. Pass `{name}.flatten(1)`, or "
                "features."
            )
        check_finite(name, samples)
        if len(samples) < least:
            raise DataError(
                f"`{name}` holds {len(samples)} samples, but {reason}. Pass {least} or more."
            )
    (first, its), *others = sets.items()
    for name, samples in others:
        if samples.shape[1] != its.shape[1]:
            raise ShapeError(
                f"`{first}` is {its.shape[1]} wide and `{name}` {samples.shape[1]}. Samples are "
                "compared number by number. Pass features of the same classifier for both."
            )


def check_finite(name: str, samples: Tensor) -> None:
    """Raise unless all numbers are finite.

    Args:
        name: Name of the argument, for the message.
        samples: (..., samples, width).

    Raises:
        DataError: If ``samples`` contains NaN or infinity.
    """
    bad = ~samples.isfinite().flatten(-1).all(-1)
    if bad.any():
        raise DataError(
            f"`{name}` contains NaN or infinity in {int(bad.sum())} of {bad.numel()} samples. No "
            "distance to such a sample exists. Look for divergence of the model; to leave them out "
            f"all the same, pass `{name}[{name}.isfinite().all(-1)]`, and report their share."
        )
