"""Response of each generated parameter to the condition: over given tasks, and to a small step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vjp, vmap

from weightloom.diagnostics.table import Tabled
from weightloom.errors import ShapeError
from weightloom.forms.factored import built
from weightloom.params import Params


@dataclass(frozen=True)
class ResponseRow:
    """Response of one generated parameter."""

    name: str
    size: float
    """Root mean square of its mean over tasks."""
    spread: float
    """Root mean square, over tasks and numbers, of its deviation from the mean over tasks."""
    step: float
    """Root mean square of its change, linearised, when the condition takes a random step of length
    one."""

    @property
    def response(self) -> float:
        """Spread relative to size: 0 where all tasks get the same, infinite where the mean is 0."""
        return _ratio(self.spread, self.size)

    @property
    def sensitivity(self) -> float:
        """Step relative to size."""
        return _ratio(self.step, self.size)


@dataclass(frozen=True)
class LayerResponse(Tabled):
    """Response of each generated parameter; printed as a table."""

    rows: tuple[ResponseRow, ...]
    tasks: int

    def __getitem__(self, name: str) -> ResponseRow:
        return {row.name: row for row in self.rows}[name]

    def cells(self) -> list[Sequence[str]]:
        """Return the rows of the table, its heading first."""
        head = (
            "parameter",
            "size",
            f"spread over {self.tasks} tasks",
            "relative",
            "per unit of condition",
            "relative",
        )
        cells = [
            (
                row.name,
                *(
                    f"{v:.3g}"
                    for v in (row.size, row.spread, row.response, row.step, row.sensitivity)
                ),
            )
            for row in self.rows
        ]
        return [head, *cells]


def layer_response(
    hyper: nn.Module, condition: Float[Tensor, " tasks *features"], chunk_size: int | None = None
) -> LayerResponse:
    """Measure the response of each generated parameter to the condition, in two ways.

    The *spread* is its deviation over the given conditions. The *step* is the Jacobian dθ/dc as one
    number: its Frobenius norm over the square root of both its sides, the root mean square
    of its change for a random step of length one.

    Args:
        hyper: The hypernetwork, run in its current mode. A task's parameters must depend on its own
            condition alone.
        condition: A row per task.
        chunk_size: Directions differentiated at once, to bound memory. Default: all.

    Raises:
        ShapeError: For fewer than two tasks.

    Example:
        >>> from weightloom.hypernets import MLPHyperNetwork
        >>> hyper = MLPHyperNetwork(nn.Linear(3, 2, bias=False), condition_dim=4)
        >>> print(layer_response(hyper, torch.randn(8, 4)))  # doctest: +SKIP
        parameter   size  spread over 8 tasks  relative  per unit of condition  relative
        weight     0.335                    0         0                      0         0
    """
    tasks = len(condition)
    if tasks < 2:
        raise ShapeError(
            f"`condition` holds {tasks} task. A response is seen between tasks. Pass two or more."
        )
    width = condition[0].numel()

    def generate(its: Tensor) -> Params:
        return Params({name: built(value) for name, value in hyper(its).items()})

    def pull(cotangents: Mapping[str, Tensor]) -> Tensor:
        return vjp(generate, condition)[1](cotangents)[0]

    with torch.no_grad():
        params = generate(condition)
        push = vjp(pull, params.map(torch.zeros_like))[1]

        def squares(direction: Tensor) -> dict[str, Tensor]:
            steps = push(direction.view_as(condition[0]).expand_as(condition))[0]
            return {name: step.square().mean() for name, step in steps.items()}

        directions = torch.eye(width, dtype=condition.dtype, device=condition.device)
        per_direction = vmap(squares, chunk_size=chunk_size)(directions)
    rows = tuple(_row(name, value, per_direction[name]) for name, value in params.items())
    return LayerResponse(rows, tasks)


def _row(name: str, value: Tensor, per_direction: Tensor) -> ResponseRow:
    mean = value.mean(0)
    return ResponseRow(name, _rms(mean), _rms(value - mean), per_direction.mean().sqrt().item())


def _rms(value: Tensor) -> float:
    return value.square().mean().sqrt().item()


def _ratio(part: float, whole: float) -> float:
    if whole:
        return part / whole
    return float("inf") if part else 0.0
