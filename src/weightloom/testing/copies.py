"""Expected results of a program: one persistent copy of its base per task, run in a Python loop.

In:   the names that a program defines, from running its text.
Out:  outputs of every task, stacked, and gradients.
Independent of this library's engines: a copy is an ordinary module, with a task's values written
into its parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
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
    """Program that fails without this library too, or whose numbers cannot be compared."""


class Expected(NamedTuple):
    """Results of the copies in one call."""

    kind: Any
    """Structure of the outputs of one task."""
    outputs: list[Any]
    """Leaves of the outputs: tensors stacked over tasks, other values as a list over tasks."""
    weights: list[Tensor | None]
    """Weights of each output in the sum whose gradients are compared; None for other values."""
    gradients: list[Tensor]
    """Gradients of inputs, of all parts of the values, and of parameters that are not generated."""
    leaves: list[str]
    """Name of each gradient's variable, for messages."""
    changed: set[str]
    """Names of the state of a copy that the forward pass changed."""


class ProgramRun:
    """Copies of a program's base, one per task, with their inputs and parameter values."""

    def __init__(self, names: Names, nudge: float = 0.0) -> None:
        self.names, self.nudge, self.calls = names, nudge, 0
        try:
            self.copies = [self.made() for _ in range(names["TASKS"])]
        except Exception as error:
            raise InvalidProgramError(f"it cannot be built: {error}") from error
        self.state = State(self.copies[0])
        self.values: dict[str, Tensor] = {}

    def made(self) -> nn.Module:
        """Build a new base, with the same parameters each time."""
        torch.manual_seed(self.names["SEED"])
        base: nn.Module = self.names["build"]()
        return base.train(self.names["TRAIN"])

    def draw(self) -> None:
        """Draw the inputs of the next call and, in the first or with ``NEW_PARAMS``, its values."""
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
        """Perturb a floating-point tensor by about ``nudge``."""
        if not x.is_floating_point():
            return x
        return x * (1 + self.nudge * torch.randn_like(x)) + self.nudge * 0.1

    def fresh(self) -> tuple[Any, Any, dict[str, Tensor], list[Tensor], list[str]]:
        """Return copies of the call's arguments and values, and their leaves with gradients.

        Returns:
            Positional arguments, keyword arguments, values by name, leaves, names of the leaves.
        """
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
        """Draw the next call, and run the copies on it.

        Raises:
            InvalidProgramError: If a copy raises an error, the tasks' outputs differ in structure
                or shape, or a number is NaN or infinite.
        """
        self.draw()
        args, kwargs, values, leaves, named = self.fresh()
        dense = {
            name: value.dense() if isinstance(value, Factored) else value
            for name, value in values.items()
        }
        outputs, parameters = self._run_copies(args, kwargs, dense)
        stacked = _stacked(outputs)
        torch.manual_seed(self.calls)
        weights = [torch.randn(x.shape) if _counts(x) else None for x in stacked]
        gradients: list[Tensor] = []
        if self.names["GRAD"]:
            try:
                gradients = self.gradients(stacked, weights, leaves, parameters)
            except RuntimeError as error:
                raise InvalidProgramError(f"it has no gradients: {error}") from error
            named += ["the base's own parameter"] * len(parameters.own[0])
            _check_finite(gradients)
        numbers = [x.detach() if isinstance(x, Tensor) else x for x in stacked]
        changed = self.state.look() - self._names_of(parameters.held[0])
        return Expected(structure(outputs[0]), numbers, weights, gradients, named, changed)

    def _run_copies(
        self, args: Any, kwargs: Any, dense: dict[str, Tensor]
    ) -> tuple[list[Any], "_Parameters"]:
        """Write each task's values into its copy, and run it."""
        outputs, own, held = [], [], []
        try:
            for task, copy in enumerate(self.copies):
                parameters = dict(copy.named_parameters())
                self.write({parameters[name]: value[task] for name, value in dense.items()})
                if copy is self.copies[0]:
                    self.state.look()  # so that writing does not count as a change
                held.append([parameters[name] for name in dense])
                rest = [p for name, p in parameters.items() if name not in dense]
                own.append([p for p in rest if p.requires_grad])
                outputs.append(self.one(copy, args, kwargs, task))
        except Exception as error:
            raise InvalidProgramError(
                f"it does not run: {type(error).__name__}: {error}"
            ) from error
        return outputs, _Parameters(dense, held, own)

    def _names_of(self, parameters: Sequence[nn.Parameter]) -> set[str]:
        """Return all names that the first copy has for these parameters."""
        every = self.copies[0].named_parameters(remove_duplicate=False)
        return {name for name, parameter in every if any(parameter is its for its in parameters)}

    def gradients(
        self,
        outputs: list[Any],
        weights: list[Tensor | None],
        leaves: list[Tensor],
        parameters: "_Parameters",
    ) -> list[Tensor]:
        """Return gradients of inputs and parts of values, then own parameters' sums over tasks.

        Gradients of parts of values are those of the written parameters, propagated through the
        values that were built from the parts.
        """
        dense, held, own = parameters
        every = [*leaves, *chain(*held), *chain(*own)]
        found = iter(weighted_gradients(outputs, weights, every, self.names["BY_BACKWARD"]))
        gradients = list(islice(found, len(leaves)))
        of_written = [list(islice(found, len(its))) for its in held]
        of_own = [list(islice(found, len(its))) for its in own]
        for value, each in zip(dense.values(), zip(*of_written, strict=True), strict=True):
            if value.requires_grad:
                back = torch.autograd.grad(
                    value, leaves, torch.stack(each), materialize_grads=True, retain_graph=True
                )
                gradients = [a + b for a, b in zip(gradients, back, strict=True)]
        return [*gradients, *(torch.stack(each).sum(0) for each in zip(*of_own, strict=True))]

    @staticmethod
    def write(values: Mapping[Tensor, Tensor]) -> None:
        """Write the values into the parameters, and let all of them require gradients."""
        with torch.no_grad():
            for parameter, value in values.items():
                parameter.requires_grad_()
                if not torch.equal(parameter, value):  # or its version would count as a change
                    parameter.copy_(value)

    def one(self, copy: nn.Module, args: Any, kwargs: Any, task: int) -> Any:
        """Run one copy on its task's inputs."""
        shared = {name: kwargs[name] for name in self.names["SHARED"]}
        own = {name: its for name, its in kwargs.items() if name not in shared}
        args, own = mapped(lambda x: x[task], (args, own))
        with torch.set_grad_enabled(self.names["GRAD"]):
            return copy(*args, **own, **shared)


class _Parameters(NamedTuple):
    """Values that were written, and the parameters of each copy."""

    dense: dict[str, Tensor]
    """Values by name, (tasks, *shape)."""
    held: list[list[nn.Parameter]]
    """Parameters of each copy that hold the values."""
    own: list[list[nn.Parameter]]
    """Other parameters of each copy that require gradients."""


def _stacked(outputs: list[Any]) -> list[Any]:
    """Stack the copies' outputs leaf by leaf; values that are no tensors become a list."""
    if any(structure(output) != structure(outputs[0]) for output in outputs):
        raise InvalidProgramError("tasks differ in the structure of their outputs")
    leaves_of_tasks = [list(walk(output)) for output in outputs]
    stacked = [_stack(leaves) for leaves in zip(*leaves_of_tasks, strict=True)]
    _check_finite([x for x in stacked if isinstance(x, Tensor)])
    return stacked


def _stack(leaves: tuple[Any, ...]) -> Any:
    if not isinstance(leaves[0], Tensor):
        return list(leaves)
    if len({(x.shape, x.dtype) for x in leaves}) != 1:
        raise InvalidProgramError("tasks differ in shapes")
    return torch.stack(leaves)


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
    """Return the gradients of a weighted sum of the outputs.

    Args:
        outputs: Leaves of the outputs.
        weights: Weights of each output, of its shape; None leaves the output out.
        leaves: Tensors to differentiate by.
        by_backward: Use ``backward``, the only way that re-entrant checkpoints support.
    """
    weighted = [(x, w) for x, w in zip(outputs, weights, strict=True) if w is not None]
    terms = [(x * w).sum().double() for x, w in weighted if x.requires_grad]
    if not terms or not leaves:
        return [torch.zeros_like(leaf) for leaf in leaves]
    total = torch.stack(terms).sum()
    if by_backward:
        return _by_backward(total, leaves)
    found = torch.autograd.grad(
        total, leaves, allow_unused=True, materialize_grads=True, retain_graph=True
    )
    return list(found)


def _by_backward(total: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    total.backward(retain_graph=True)
    found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return found


def _values(base: nn.Module, names: Names, tasks: int) -> dict[str, Tensor]:
    """Draw values for parameters of the base, some of them held by forms."""
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
