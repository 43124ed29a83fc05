"""A teacher network put together from modules.

Tasks that share parts, to see whether new combinations are solved.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from weightloom.errors import ConfigError
from weightloom.tasks.tasks import ALL, Tasks, TaskSource

NORMALISED_OVER = 1000


class Teacher(NamedTuple):
    """What all tasks share, and what makes each of them."""

    first: Tensor
    """Weights from the inputs, (width, inputs); the same for all tasks."""
    modules: Tensor
    """Weights of the modules of each hidden layer but the first, (layers - 1, modules, width,
    width)."""
    last: Tensor
    """Weights to the classes, (classes, width); the same for all tasks."""
    codes: Tensor
    """Every combination of modules, (combinations, layers - 1, modules), each row of sum one; those
    held out last."""
    mean: Tensor
    """Mean of each class's output over the inputs, (combinations, classes)."""
    spread: Tensor
    """Standard deviation likewise."""
    held_out: int
    """How many of the combinations are held out."""


@dataclass(frozen=True)
class HyperteacherTasks(TaskSource):
    """Classify as a network does whose hidden layers are mixtures of modules.

    Each layer's weights are z Θ.

    Inputs are from U(-1, 1). The teacher has no biases; its outputs are normalised class by class,
    then softened to a distribution: ``query_y`` is (tasks, queries, classes). Of each layer 1 to
    ``active`` of its modules are in use, and some combinations over all layers are never met in
    training, though each of their modules is. With ``active=1`` no two modules of a layer are ever
    seen together: nothing says how they are to be combined.

    Example:
        >>> source = HyperteacherTasks(modules=4, active=2)
        >>> tasks = source.sample(3, torch.Generator().manual_seed(0))
        >>> tasks.support_x.shape, tasks.query_y.shape, tasks.hidden.shape
        (torch.Size([3, 128, 16]), torch.Size([3, 128, 8]), torch.Size([3, 8]))

    Source:
        Schug et al., "Discovering modular solutions that generalize compositionally" (2024),
        section 4.1. Theirs sums the modules, here they are averaged: outputs are normalised, so it
        is the same. Theirs does not check that what is left for training is connected.
    """

    modules: int = 4
    """Modules of each layer."""
    active: int = 2
    """Most modules of a layer that are in use at once."""
    which: Literal["train", "ood"] = "train"
    """Combinations of training, or those held out."""
    shots: int = 128
    """Support points per task."""
    queries: int = 128
    """Query points per task."""
    inputs: int = 16
    """Width of an input."""
    classes: int = 8
    """How many classes."""
    width: int = 32
    """Units of each hidden layer of the teacher."""
    layers: int = 3
    """Hidden layers of the teacher. The first is the same for all tasks."""
    held_out: float = 0.25
    """Share of the combinations that training never meets."""
    temperature: float = 0.1
    """How soft the targets are."""
    seed: int = 0
    """The teacher, and which combinations are held out."""

    def __post_init__(self) -> None:
        """Check that there is something to combine."""
        if not 1 <= self.active <= self.modules:
            raise ConfigError(
                f"`active={self.active}` with `modules={self.modules}`. A layer mixes some of its "
                f"modules, none twice. Pass a number from 1 to {self.modules}."
            )
        if self.layers < 2 or self.modules < 2:
            raise ConfigError(
                f"`layers={self.layers}` and `modules={self.modules}` leave nothing to combine. "
                "The first layer is the same for all tasks, every other chooses among its modules. "
                "Pass 2 or more of both."
            )
        if not 0 < self.held_out < 1:
            raise ConfigError(
                f"`held_out={self.held_out}` leaves no combination for one side. It is a share of "
                "the combinations. Pass a number between 0 and 1, as in 0.25."
            )

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher of this seed."""
        generator = torch.Generator().manual_seed(self.seed)
        wide = self.width**0.5

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        first = normal(self.width, self.inputs) / self.inputs**0.5
        modules = normal(self.layers - 1, self.modules, self.width, self.width) / wide
        last = normal(self.classes, self.width) / wide
        codes, held_out = self._split(generator)
        x = 2 * torch.rand(1, NORMALISED_OVER, self.inputs, generator=generator) - 1
        outputs = torch.cat([_run(first, modules, last, some, x) for some in codes.split(100)])
        return Teacher(first, modules, last, codes, outputs.mean(1), outputs.std(1), held_out)

    def _split(self, generator: torch.Generator) -> tuple[Tensor, int]:
        """All combinations in random order, those held out last, such that training is connected."""
        hot = [
            set(some)
            for count in range(1, self.active + 1)
            for some in combinations(range(self.modules), count)
        ]
        rows = torch.tensor(
            [[float(m in some) / len(some) for m in range(self.modules)] for some in hot]
        )
        codes = rows[torch.tensor(list(product(range(len(hot)), repeat=self.layers - 1)))]
        held_out = int(len(codes) * self.held_out)
        for _ in range(1000):
            codes = codes[torch.randperm(len(codes), generator=generator)]
            if held_out and self._connected(codes[:-held_out]):
                return codes, held_out
        raise ConfigError(
            f"`held_out={self.held_out}` of {len(codes)} combinations cannot be held out. Training "
            "must meet every module, and join those of a layer to one another. Pass another share, "
            "or more `modules`."
        )

    def _connected(self, codes: Tensor) -> bool:
        """Whether each layer's modules are all met, and joined by chains of pairs if two can be in use at once."""
        used = (codes > 0).float().transpose(0, 1)  # (layers - 1, combinations, modules)
        if self.active == 1:
            return bool(used.any(1).all())
        reached = used.mT @ used > 0
        for _ in range(self.modules):
            reached = reached.float() @ reached.float() > 0
        return bool(reached.all())

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Draw ``tasks`` combinations and points for each.

        `Tasks.hidden` holds the code, layer after layer.
        """
        teacher = self.teacher
        known = len(teacher.codes) - teacher.held_out
        low, high = (known, len(teacher.codes)) if self.which == "ood" else (0, known)
        chosen = torch.randint(low, high, (tasks,), generator=generator)
        x = 2 * torch.rand(tasks, self.shots + self.queries, self.inputs, generator=generator) - 1
        chosen, x = chosen[share], x[share]
        codes = teacher.codes[chosen]
        outputs = _run(teacher.first, teacher.modules, teacher.last, codes, x)
        outputs = (outputs - teacher.mean[chosen, None]) / teacher.spread[chosen, None]
        y = (outputs / self.temperature).softmax(2)
        parts = x[:, : self.shots], y[:, : self.shots], x[:, self.shots :], y[:, self.shots :]
        return Tasks.of(*parts, hidden=codes.flatten(1))


def _run(first: Tensor, modules: Tensor, last: Tensor, codes: Tensor, x: Tensor) -> Tensor:
    """Run the teacher of each code, on inputs of its own or on the same for all."""
    known = (x @ first.mT).relu().expand(len(codes), -1, -1)
    for code, of_layer in zip(codes.unbind(1), modules, strict=True):
        known = (known @ torch.einsum("tm,moi->tio", code, of_layer)).relu()
    return known @ last.mT
