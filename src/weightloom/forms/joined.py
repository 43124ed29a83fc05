"""Join low-rank changes of several pieces along the rank, and solve their values again.

In:   Params of the pieces of a document, one set per piece; keys and targets of all ranks.
Out:  Params of the whole, of the summed rank; values.
Knows nothing of documents or of the origin of keys.

A low-rank change B A is an associative memory: each row of A is a key and each column of B its
value. Changes of two pieces joined side by side answer each key with its own value plus an echo of
every similar key. `solve_values` removes the echoes.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.errors import ConfigError, ShapeError
from weightloom.forms.factored import Factored
from weightloom.forms.low_rank import LowRank
from weightloom.params import Params


def join(pieces: Sequence[Mapping[str, Tensor]]) -> Params:
    """Join changes of one base along the rank: own + Σ B A, still held as factors.

    `weightloom.forms.add` does the same for two sets, but builds the parameter where the summed
    rank is not below its sides.

    Args:
        pieces: Low-rank Params of each piece, all of the same names and number of tasks.

    Returns:
        Params whose ranks are those of the first piece, then those of the second, and so on.

    Raises:
        ShapeError: If there is no piece, or two differ in names.
        ConfigError: If a value is not a low-rank change, or own values differ.

    Example:
        >>> own = torch.randn(6, 5)
        >>> factors = {"up": torch.randn(3, 6, 2), "down": torch.randn(3, 2, 5)}
        >>> piece = {"weight": Factored(LowRank(2), own, factors)}
        >>> join([piece, piece])["weight"]
        Factored(LowRank(rank=4), shape=(3, 6, 5))

    Source:
        Charakorn et al., "Doc-to-LoRA" (2026), whose pieces are joined so.
    """
    if not pieces:
        raise ShapeError(
            "`pieces` is empty. A joined change needs at least one. Pass a list of Params."
        )
    for number, its in enumerate(pieces):
        if its.keys() != pieces[0].keys():
            raise ShapeError(
                f"Pieces 0 and {number} differ in {sorted(its.keys() ^ pieces[0].keys())}. All "
                "change the same parameters. Generate all by one hypernetwork."
            )
    return Params({name: _joined(name, [its[name] for its in pieces]) for name in pieces[0]})


def _joined(name: str, values: Sequence[Tensor]) -> Factored:
    low: list[Factored] = []
    for number, value in enumerate(values):
        if not isinstance(value, Factored) or not isinstance(value.form, LowRank):
            kind = value.form if isinstance(value, Factored) else type(value).__name__
            raise ConfigError(
                f"{name!r} of piece {number} is held as {kind}. Only low-rank changes have ranks "
                "to join. Generate it in the form `LowRank`."
            )
        if low and value.own is not low[0].own and not torch.equal(value.own, low[0].own):
            raise ConfigError(
                f"{name!r} of piece {number} changes another own value than that of piece 0. "
                "Pieces are joined on one base. Generate all by one hypernetwork."
            )
        low.append(value)
    form, factors = LowRank(1).stacked([its.factors for its in low], [1.0] * len(low))
    return Factored(form, low[0].own, factors)


def solve_values(
    keys: Float[Tensor, "tasks ranks dims"],
    targets: Float[Tensor, "others answers out"],
    ridge: float | Tensor,
    weights: Float[Tensor, "tasks ranks"] | None = None,
) -> Float[Tensor, "others answers out"]:
    """Values with which a memory answers each of its keys with its target, by ridge regression.

    The values V minimise Σ w |Vᵀ K k - y|² + ridge |Vᵀ K|², over keys k with targets y and weights
    w: V = (K Kᵀ + ridge / w)⁻¹ Y. For orthogonal keys of length 1 that is Y / (1 + ridge).

    Args:
        keys: Key of every rank, K.
        targets: Answer that is wanted for each key, Y.
        ridge: Penalty of the change; above 0.
        weights: Weight of each rank, above 0; None: 1.

    Returns:
        Value of every rank.

    Raises:
        ShapeError: If ``keys`` and ``targets`` differ in the number of tasks or ranks.
        ConfigError: If ``ridge`` is not above 0.

    Example:
        >>> keys = torch.eye(2)[None]
        >>> solve_values(keys, torch.ones(1, 2, 1), ridge=0.25).flatten()
        tensor([0.8000, 0.8000])

    Source:
        Kohonen, "Correlation matrix memories" (1972), with the pseudo-inverse in place of the
        outer product, and Hoerl and Kennard's ridge (1970).
    """
    if keys.shape[:-1] != targets.shape[:-1]:
        raise ShapeError(
            f"`keys` has shape {tuple(keys.shape)} and `targets` {tuple(targets.shape)}. Each rank "
            "of each task has one key and one target. Pass equal numbers of both."
        )
    if not ridge > 0:
        raise ConfigError(
            f"`ridge={float(ridge)}`. Similar keys have no exact solution, so the penalty is "
            "positive. Pass a number above 0, as in 0.1."
        )
    weights = torch.ones_like(keys[..., 0]) if weights is None else weights
    if keys.shape[1] <= keys.shape[2]:
        gram = keys @ keys.mT + torch.diag_embed(ridge / weights)
        return torch.cholesky_solve(targets, torch.linalg.cholesky(gram))
    weighted = keys * weights[..., None]  # fewer dimensions than ranks: solved for the change
    square = weighted.mT @ keys + ridge * torch.eye(keys.shape[2]).to(keys)
    change = torch.cholesky_solve(weighted.mT @ targets, torch.linalg.cholesky(square))
    return weights[..., None] * (targets - keys @ change) / ridge
