"""Solver for small symmetric systems that can be exported to ONNX, which has no solver.

In:   symmetric positive definite matrices and right-hand sides.
Out:  solutions.
"""

import torch
from jaxtyping import Float
from torch import Tensor

STEPS = 32
"""Newton-Schulz steps; enough for a largest row sum of 10⁸ times the smallest eigenvalue."""


def solve_symmetric(
    matrix: Float[Tensor, "tasks rows rows"], right: Float[Tensor, "tasks rows columns"]
) -> Float[Tensor, "tasks rows columns"]:
    """Solve ``matrix @ x = right`` for symmetric positive definite matrices.

    Under `torch.export` the solution is a fixed number of matrix products in double precision.

    Args:
        matrix: Symmetric positive definite matrix of each task.
        right: Right-hand sides of each task.

    Returns:
        The solutions x.

    Example:
        >>> solve_symmetric(torch.tensor([[[2.0, 0.0], [0.0, 4.0]]]), torch.ones(1, 2, 1)).flatten()
        tensor([0.5000, 0.2500])

    Source:
        Schulz, "Iterative Berechnung der reziproken Matrix" (1933): X ← X (2 - A X), from X = 1 /
        ‖A‖.
    """
    if not torch.compiler.is_exporting():
        return torch.linalg.solve(matrix, right)
    a = matrix.double()
    place = torch.arange(a.shape[1], device=a.device)
    one = (place[:, None] == place).to(a.dtype)
    inverse = one / a.abs().sum(2).amax(1)[:, None, None]
    for _ in range(STEPS):
        inverse = inverse @ (2 * one - a @ inverse)
    return (inverse @ right.double()).to(right.dtype)
