"""Tokens of a weight: coordinates of its rows and columns along its singular directions.

In:   a weight, a matrix or a kernel.
Out:  `WeightTokens`, a few numbers for each row and each column.
Knows nothing of hypernetworks or conditions.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.errors import ConfigError

SMALLEST = 1e-6
"""Singular values below this share of the largest count as zero: their directions are rounding."""


class WeightTokens(NamedTuple):
    """Rows and columns of a weight as points, in float64."""

    rows: Float[Tensor, "rows features"]
    """Coordinates of each row: mean square 1 along every direction that the weight has."""
    columns: Float[Tensor, "columns features"]
    """The same for each column."""
    spectrum: Float[Tensor, " features"]
    """Share of each direction in the norm of the weight, from the largest; zeros where it has no
    further direction."""
    norm: Float[Tensor, ""]
    """Frobenius norm."""


def weight_tokens(weight: Tensor, features: int) -> WeightTokens:
    """Describe each row and each column of a weight by its largest singular directions.

    For W = U S Vᵀ, row i is √rows · U[i] and column j is √columns · V[j], along the largest
    ``features`` singular values. The sign of each direction is the one with positive skewness over
    rows and columns together. So permuted rows give permuted row tokens and equal column tokens,
    and vice versa; the number of tokens' features does not depend on the size of the weight.

    A direction is not defined where two singular values are equal (as in an orthogonal matrix), nor
    its sign where rows and columns lie symmetrically: the result is then one of several.

    Args:
        weight: At least two axes; a kernel counts as a matrix, its first axis against all others.
        features: Number of directions. Missing ones are zero.

    Returns:
        The tokens, on the weight's device.

    Raises:
        ConfigError: If the weight holds NaN or infinity.

    Example:
        >>> weight, order = torch.randn(6, 4), torch.tensor([5, 0, 3, 1, 2, 4])
        >>> tokens, permuted = weight_tokens(weight, 3), weight_tokens(weight[order], 3)
        >>> tokens.rows.shape, torch.allclose(permuted.rows, tokens.rows[order])
        (torch.Size([6, 3]), True)

    Source:
        Canonical factors by the singular value decomposition, with fixed order and sign, as in
        "Prompt2Effect" (2026), there for the targets. Here they describe the frozen weight.
    """
    matrix = weight.detach().flatten(1).double()
    if not bool(matrix.isfinite().all()):
        raise ConfigError(
            f"A weight of shape {tuple(weight.shape)} holds NaN or infinity. It has no singular "
            "directions, by which its rows and columns are told apart. Repair the model first."
        )
    is_tall = matrix.shape[0] >= matrix.shape[1]
    tall = matrix if is_tall else matrix.mT
    values, vectors = torch.linalg.eigh(tall.mT @ tall)  # the smaller side: cheaper than an SVD
    count = min(features, len(values))
    sizes = values[-count:].flip(0).clamp_min(0).sqrt()
    kept = sizes > SMALLEST * sizes[0]
    narrow = vectors[:, -count:].flip(1) * kept
    wide = tall @ narrow / sizes.where(kept, 1)
    wide, narrow = wide * len(wide) ** 0.5, narrow * len(narrow) ** 0.5
    sign = torch.where(wide.pow(3).mean(0) + narrow.pow(3).mean(0) < 0, -1.0, 1.0)
    norm = values.clamp_min(0).sum().sqrt()
    spectrum = torch.where(kept, sizes / norm.where(norm > 0, 1), 0.0)
    wide, narrow, spectrum = (
        torch.nn.functional.pad(its, (0, features - count))
        for its in (wide * sign, narrow * sign, spectrum)
    )
    rows, columns = (wide, narrow) if is_tall else (narrow, wide)
    return WeightTokens(rows, columns, spectrum, norm)
