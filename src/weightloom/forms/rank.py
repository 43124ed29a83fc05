"""Changes of a lower rank: the nearest ones, with the error that they make."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from weightloom.errors import ConfigError
from weightloom.forms.factored import Factored, built
from weightloom.forms.low_rank import LowRank
from weightloom.params import Params, parameters_by_name


def to_rank(
    params: Mapping[str, Tensor],
    rank: int,
    own: nn.Module | Mapping[str, Tensor] | None = None,
) -> tuple[Params, Float[Tensor, " tasks"]]:
    """Replace the change of each matrix by the nearest one of at most ``rank``, as factors.

    Sums and means of low-rank changes have the summed rank, or are built where that saves no
    memory; this makes adapters of one size of them again. Low-rank changes are not built: their
    factors are decomposed. Vectors, and low-rank changes that have the rank already, are kept.

    Args:
        params: Generated parameters per task.
        rank: Rank of the result.
        own: The base, or its own values by name. Required for matrices that are plain tensors.

    Returns:
        The Params; and the error per task, (tasks,): Frobenius norm of all that was cut off,
        relative to that of all changes of matrices. Zero if the changes have that rank.

    Raises:
        ConfigError: If ``rank`` is below 1, a required own value is missing, or no parameter is a
            matrix.

    Example:
        >>> from weightloom.forms import add
        >>> weight = torch.randn(8, 6)
        >>> factors = {"up": torch.randn(2, 8, 2), "down": torch.randn(2, 2, 6)}
        >>> params = {"weight": Factored(LowRank(2), weight, factors)}
        >>> joined, error = to_rank(add(params, params), 2)  # twice the same directions
        >>> joined["weight"], bool((error < 1e-5).all())
        (Factored(LowRank(rank=2), shape=(2, 8, 6)), True)

    Source:
        Eckart and Young (1936): the truncated singular value decomposition is nearest.
    """
    if isinstance(own, nn.Module):
        own = dict(parameters_by_name(own))
    form, result = LowRank(rank), Params()
    lost: list[Tensor] = []
    total: list[Tensor] = []
    for name, value in params.items():
        if value.ndim < 3:
            result[name] = value
            continue
        its_own = value.own if isinstance(value, Factored) else (own or {}).get(name)
        if its_own is None:
            raise ConfigError(
                f"The own value of {name!r} is not known: it is held as a plain tensor, own value "
                "and change in one. Only the change has a low rank. Pass `own=hyper.base`, or a "
                "dict that holds it."
            )
        up, sizes, down = _decomposed(value, its_own)
        lost.append(sizes[:, rank:].square().sum(1))
        total.append(sizes.square().sum(1))
        if not isinstance(value, Factored) or value.form != form:
            root = sizes[:, :rank].sqrt()
            missing = max(rank - root.shape[1], 0)
            factors = {
                "up": pad(up[..., :rank] * root[:, None], (0, missing)),
                "down": pad(down[:, :rank] * root[..., None], (0, 0, 0, missing)),
            }
            factors = {factor: its.to(its_own.dtype) for factor, its in factors.items()}
            value = Factored(form, its_own, factors)
        result[name] = value
    if not total:
        raise ConfigError(
            f"`params` holds no matrix, only {list(params)}. A rank is one of a matrix. Pass "
            "parameters with generated weights."
        )
    whole = torch.stack(total).sum(0)
    return result, (torch.stack(lost).sum(0) / whole.where(whole > 0, 1)).sqrt()


def _decomposed(value: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition of a change, (tasks, rows, k), (tasks, k), (tasks, k, columns).

    Factors are orthogonalised first, so that only a square of the size of the rank is decomposed.
    """
    dtype = torch.promote_types(own.dtype, torch.float32)
    if isinstance(value, Factored) and isinstance(value.form, LowRank):
        left, up = torch.linalg.qr(value.factors["up"].to(dtype))
        right, down = torch.linalg.qr(value.factors["down"].to(dtype).mT)
        inner, sizes, outer = torch.linalg.svd(up @ down.mT, full_matrices=False)
        return left @ inner, sizes, outer @ right.mT
    change = (built(value) - own).flatten(2).to(dtype)
    left, sizes, right = torch.linalg.svd(change, full_matrices=False)
    return left, sizes, right
