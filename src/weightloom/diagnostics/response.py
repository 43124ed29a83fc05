"""How much each generated parameter responds to the condition.

Over the tasks there are, and to a small step.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vjp, vmap

from weightloom.diagnostics.table import text_table
from weightloom.errors import ShapeError
from weightloom.forms.factored import built
from weightloom.params import Params


@dataclass(frozen=True)
class ResponseRow:
    """The response of one generated parameter."""

    name: str
    size: float
    """Root mean square of its mean over tasks."""
    spread: float
    """Root mean square, over tasks and numbers, of how it differs from its mean over tasks."""
    step: float
    """Root mean square of its change, linearised, when the condition takes a random step of length
    one."""

    @property
    def response(self) -> float:
        """Spread relative to size: 0 where all tasks get the same.

        Infinite where the mean is zero.
        """
        return _ratio(self.spread, self.size)

    @property
    def sensitivity(self) -> float:
        """Step relative to size."""
        return _ratio(self.step, self.size)


@dataclass(frozen=True)
class LayerResponse:
    """A row per generated parameter; its string is a table."""

    rows: tuple[ResponseRow, ...]
    tasks: int

    def __getitem__(self, name: str) -> ResponseRow:
        return {row.name: row for row in self.rows}[name]

    def __str__(self) -> str:
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
        return text_table([head, *cells])


def layer_response(
    hyper: nn.Module, condition: Float[Tensor, " tasks *features"], chunk_size: int | None = None
) -> LayerResponse:
    """Measure how much each generated parameter responds to the condition.

    In two ways. The *spread* is what the conditions at hand make of it. The *step* is the Jacobian
    dθ/dc as one number: its Frobenius norm over the square root of both its sides, which is the
    root mean square of what a step of length XX

    Args:
        hyper: The hypernetwork, in the mode it stands in. A task's parameters must follow from its
            own condition.
        condition: A row per task.
        chunk_size: How many directions are differentiated at once, to bound memory; None means all.

    Raises:
        ShapeError: If there are fewer than two tasks.

    Example:
        >>> from weightloom.hypernets import MLPHyperNetwork
        >>> print(layer_response(MLPHyperNetwork(nn.Linear(3, 2, bias=False), 4), torch.randn(8, 4)))  # doctest: +SKIP
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
