"""Effective rank: the number of directions in which generated parameters vary over tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightloom.diagnostics.table import Tabled
from weightloom.errors import ShapeError
from weightloom.forms.factored import built
from weightloom.params import count_tasks

ALL = "all"
"""Name of the row over all parameters."""


@dataclass(frozen=True)
class RankRow:
    """Variance of one generated parameter over tasks."""

    name: str
    numbers: int
    """Numbers generated for one task."""
    shares: tuple[float, ...]
    """Share of the variance over tasks of each principal component, the largest first; zeros where
    tasks do not differ."""

    @property
    def rank(self) -> float:
        """Effective rank: the exponential of the shares' entropy; k for k equal components."""
        shares = torch.tensor(self.shares, dtype=torch.float64)
        return torch.special.entr(shares).sum().exp().item() if shares.any() else 0.0

    def components(self, variance: float = 0.99) -> int:
        """Count the components that together hold this share of the variance."""
        total = 0.0
        for count, share in enumerate(self.shares, start=1):
            total += share
            if total >= variance - 1e-9:
                return count
        return 0


@dataclass(frozen=True)
class EffectiveRank(Tabled):
    """Effective rank of each generated parameter and of all together; printed as a table."""

    rows: tuple[RankRow, ...]
    all: RankRow
    """All parameters together, side by side."""
    tasks: int

    def __getitem__(self, name: str) -> RankRow:
        return {row.name: row for row in (*self.rows, self.all)}[name]

    def cells(self) -> list[Sequence[str]]:
        """Return the rows of the table, its heading first."""
        head = ("parameter", "numbers", "effective rank", "components for 99 %")
        cells = [
            (row.name, f"{row.numbers:,}", f"{row.rank:.2f}", str(row.components()))
            for row in (*self.rows, self.all)
        ]
        return [head, *cells]

    @property
    def verdict(self) -> str:
        """Number of tasks, and of directions in which they can differ at most."""
        return f"Of {self.tasks} tasks, which can differ in {self.tasks - 1} ways."


@torch.no_grad()
def effective_rank(params: Mapping[str, Tensor]) -> EffectiveRank:
    """Count the directions in which generated parameters vary from task to task.

    The matrix (tasks, numbers) is centred over tasks; the shares of its squared singular values are
    the shares of the variance. Their entropy H gives the effective rank, exp(H): 1 if all tasks lie
    on a line, k if they fill k directions equally. The rank is at most tasks - 1, so take many more
    tasks than you expect directions.

    Args:
        params: Generated parameters per task.

    Raises:
        ShapeError: For fewer than two tasks.

    Example:
        >>> ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> found = effective_rank({"weight": ends, "bias": torch.ones(4, 3)})
        >>> round(found["weight"].rank, 3), found["weight"].components(), found["bias"].rank
        (2.0, 2, 0.0)

    Source:
        Roy and Vetterli, "The effective rank: a measure of effective dimensionality" (2007),
        definition 1. They take the singular values as they are; here they are squared, so that the
        shares are of the variance.
    """
    tasks = count_tasks(params) or 0
    if tasks < 2:
        raise ShapeError(
            f"`params` hold {tasks} task. The rank counts differences between tasks, so two or "
            "more are needed. Generate parameters from several conditions."
        )
    grams = {name: _gram(value) for name, value in params.items()}
    sizes = {name: value[0].numel() for name, value in params.items()}
    rows = tuple(RankRow(name, sizes[name], _shares(gram)) for name, gram in grams.items())
    together = RankRow(ALL, sum(sizes.values()), _shares(torch.stack(list(grams.values())).sum(0)))
    return EffectiveRank(rows, together, tasks)


def _gram(value: Tensor) -> Tensor:
    """Return the Gram matrix of tasks, centred over tasks; zeros where it is rounding alone."""
    flat = built(value).flatten(1) if value.ndim > 1 else built(value)[:, None]
    rounding = (10 * torch.finfo(flat.dtype).eps) ** 2 * flat.double().square().sum()
    centred = flat.double() - flat.double().mean(0)
    gram = centred @ centred.mT
    return gram if gram.trace() > rounding else torch.zeros_like(gram)


def _shares(gram: Tensor) -> tuple[float, ...]:
    variances = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)
    total = variances.sum()
    return tuple((variances / total if total else variances).tolist())
