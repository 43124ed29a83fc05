"""What a program should give: one copy of its base for each task, which persists from call to call.

In:   the names that a program defines, as from running its text.
Out:  outputs of every task, stacked, and gradients.
Knows nothing of this library's engines: a copy is a module like any other, with a task's values
written into it.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weightloom.forms import FiLM, Form, LowRank, RowScale
from weightloom.forms.factored import Factored
from weightloom.testing.state import State
from weightloom.testing.trees import mapped, structure, walk

Names = Mapping[str, Any]


class InvalidProgramError(Exception):
    """The program does not run without this library either, or its numbers cannot be compared."""


class Expected(NamedTuple):
    """What the copies give in one call."""

    kind: Any
    outputs: list[Any]
    """Every leaf: tensors stacked, other values as a list, one for each task."""
    weights: list[Tensor | None]
    """Of the sum whose gradients are compared."""
    gradients: list[Tensor]
    """Of inputs, of every part of the values, and of parameters that are not generated."""
    leaves: list[str]
    """What they are gradients of."""
    changed: set[str]
    """What the forward pass itself changed in a copy."""


class ProgramRun:
    """A program's copies, one for each task, and what they are called with."""

    def __init__(self, names: Names, nudge: float = 0.0) -> None:
        self.names, self.nudge, self.calls = names, nudge, 0
        try:
            self.copies = [self.made() for _ in range(names["TASKS"])]
        except Exception as error:
            raise InvalidProgramError(f"it cannot be built: {error}") from error
        self.state = State(self.copies[0])
        self.values: dict[str, Tensor] = {}

    def made(self) -> nn.Module:
        """Build the base anew, equal to every other."""
        torch.manual_seed(self.names["SEED"])
        base: nn.Module = self.names["build"]()
        return base.train(self.names["TRAIN"])

    def draw(self) -> None:
        """Draw the inputs of the next call, and its values where they are others."""
        tasks, seed = self.names["TASKS"], self.names["SEED"]
        torch.manual_seed(seed + 1 + self.calls)
        self.args, self.kwargs = self.names["inputs"]()
        if not self.calls or self.names["NEW_PARAMS"]:
            self.values = _values(self.copies[0], self.names, tasks)
        self.calls += 1
        if self.nudge:
            self.args, self.kwargs = mapped(self.moved, (self.args, self.kwargs))
            self.values = {
                name: _parts_mapped(self.moved, value) for name, value in self.values.items()
            }

    def moved(self, x: Tensor) -> Tensor:
        """A number nearby."""
        return (
            x * (1 + self.nudge * torch.randn_like(x)) + self.nudge * 0.1
            if x.is_floating_point()
            else x
        )

    def fresh(self) -> tuple[Any, Any, dict[str, Tensor], list[Tensor], list[str]]:
        """The call's arguments and values, and everything in them that gets a gradient."""
        leaves: list[Tensor] = []

        def leaf(x: Tensor) -> Tensor:
            x = x.clone()
            if self.names["GRAD"] and x.is_floating_point():
                leaves.append(x.requires_grad_())
            return x

        args, kwargs = mapped(leaf, (self.args, self.kwargs))
        named = ["an input"] * len(leaves)
        values = {name: _parts_mapped(leaf, value) for name, value in self.values.items()}
        named += ["a value"] * (len(leaves) - len(named))
        return args, kwargs, values, leaves, named

    def expected(self) -> Expected:
        """Run the copies once more."""
        self.draw()
        args, kwargs, values, leaves, named = self.fresh()
        dense = {
            name: value.dense() if isinstance(value, Factored) else value
            for name, value in values.items()
        }
        outputs, own, held = [], [], []
        try:
            for task, copy in enumerate(self.copies):
                parameters = dict(copy.named_parameters())
                self.write({parameters[name]: value[task] for name, value in dense.items()})
                if copy is self.copies[0]:
                    self.state.look()  # what is written is not what the forward pass changes
                held.append([parameters[name] for name in values])
                own.append(
                    [p for name, p in parameters.items() if name not in values and p.requires_grad]
                )
                outputs.append(self.one(copy, args, kwargs, task))
        except Exception as error:
            raise InvalidProgramError(
                f"it does not run: {type(error).__name__}: {error}"
            ) from error
        stacked = _stacked(outputs)
        torch.manual_seed(self.calls)
        weights = [torch.randn(x.shape) if _counts(x) else None for x in stacked]
        gradients: list[Tensor] = []
        if self.names["GRAD"]:
            try:
                gradients = self.gradients(stacked, weights, leaves, (dense, held, own))
            except RuntimeError as error:
                raise InvalidProgramError(f"it has no gradients: {error}") from error
            named += ["the base's own parameter"] * len(own[0])
            _check_finite(gradients)
        numbers = [x.detach() if isinstance(x, Tensor) else x for x in stacked]
        every = self.copies[0].named_parameters(remove_duplicate=False)
        generated = {name for name, parameter in every if any(parameter is its for its in held[0])}
        return Expected(
            structure(outputs[0]), numbers, weights, gradients, named, self.state.look() - generated
        )

    def gradients(
        self,
        outputs: list[Any],
        weights: list[Tensor | None],
        leaves: list[Tensor],
        parameters: tuple[dict[str, Tensor], list[list[nn.Parameter]], list[list[nn.Parameter]]],
    ) -> list[Tensor]:
        """Gradients of inputs and parts of values, through the values that were written.

        Then of own parameters.
        """
        dense, held, own = parameters
        written, rest = [p for its in held for p in its], [p for its in own for p in its]
        found = iter(
            weighted_gradients(
                outputs, weights, [*leaves, *written, *rest], self.names["BY_BACKWARD"]
            )
        )
        gradients = [next(found) for _ in leaves]
        of_written = [[next(found) for _ in its] for its in held]
        of_own = [[next(found) for _ in its] for its in own]
        for value, each in zip(dense.values(), zip(*of_written, strict=True), strict=True):
            if value.requires_grad:
                back = torch.autograd.grad(
                    value, leaves, torch.stack(each), materialize_grads=True, retain_graph=True
                )
                gradients = [a + b for a, b in zip(gradients, back, strict=True)]
        return [*gradients, *(torch.stack(each).sum(0) for each in zip(*of_own, strict=True))]

    @staticmethod
    def write(values: Mapping[Tensor, Tensor]) -> None:
        """Write a task's values into its copy."""
        with torch.no_grad():
            for parameter, value in values.items():
                parameter.requires_grad_()
                if not torch.equal(parameter, value):  # or it would count as changed
                    parameter.copy_(value)

    def one(self, copy: nn.Module, args: Any, kwargs: Any, task: int) -> Any:
        """Run one copy on its task's inputs."""
        shared = {name: kwargs[name] for name in self.names["SHARED"]}
        apart = {name: its for name, its in kwargs.items() if name not in shared}
        args, apart = mapped(lambda x: x[task], (args, apart))
        with torch.set_grad_enabled(self.names["GRAD"]):
            return copy(*args, **apart, **shared)


def _stacked(outputs: list[Any]) -> list[Any]:
    """What the copies return, leaf by leaf: tensors stacked, other values as a list."""
    if any(structure(output) != structure(outputs[0]) for output in outputs):
        raise InvalidProgramError("tasks differ in what they return")
    stacked: list[Any] = []
    for leaves in zip(*[list(walk(output)) for output in outputs], strict=True):
        if isinstance(leaves[0], Tensor) and len({(x.shape, x.dtype) for x in leaves}) != 1:
            raise InvalidProgramError("tasks differ in shapes")
        stacked.append(torch.stack(leaves) if isinstance(leaves[0], Tensor) else list(leaves))
    _check_finite([x for x in stacked if isinstance(x, Tensor)])
    return stacked


def _check_finite(tensors: Sequence[Tensor]) -> None:
    if not all(torch.isfinite(x).all() for x in tensors):
        raise InvalidProgramError("its numbers are not finite")


def _counts(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def weighted_gradients(
    outputs: Sequence[Any],
    weights: Sequence[Tensor | None],
    leaves: Sequence[Tensor],
    by_backward: bool,
) -> list[Tensor]:
    """Gradients of a weighted sum; re-entrant checkpoints know ``backward`` alone."""
    terms = [
        (x * w).sum()
        for x, w in zip(outputs, weights, strict=True)
        if w is not None and x.requires_grad
    ]
    if not terms or not leaves:
        return [torch.zeros_like(leaf) for leaf in leaves]
    total = torch.stack([term.double() for term in terms]).sum()
    if by_backward:
        total.backward(retain_graph=True)
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        return found
    return list(
        torch.autograd.grad(
            total, leaves, allow_unused=True, materialize_grads=True, retain_graph=True
        )
    )


def _values(base: nn.Module, names: Names, tasks: int) -> dict[str, Tensor]:
    """Values for parameters of the base, some of them held by forms."""
    values: dict[str, Tensor] = {}
    own = dict(base.named_parameters())
    for name, parameter in own.items():
        random = Random(f"{names['SEED']} {name}")
        scale = 0.5 if parameter.ndim > 1 else 1.0
        value = (scale * torch.randn(tasks, *parameter.shape)).to(parameter.dtype)
        if random.random() > 0.67 and not names["ALL"]:
            continue
        values[name] = value
        form: Form | None = random.choice([None, LowRank(1), RowScale(), FiLM()])
        if names["FORMS"] and form is not None:
            owner = base.get_submodule(name.rpartition(".")[0])
            form = form.fit(tuple(parameter.shape), owner)
            if form is not None:
                shapes = form.factor_shapes(tuple(parameter.shape))
                factors = {
                    part: (0.5 * torch.randn(tasks, *its)).to(value.dtype)
                    for part, its in shapes.items()
                }
                values[name] = form.value(value[0], factors, form.shared(tuple(parameter.shape)))
    return values or {"one.bias": torch.randn(tasks, *own["one.bias"].shape)}


def _parts_mapped(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    return value.map_all(function) if isinstance(value, Factored) else function(value)
