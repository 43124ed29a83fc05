"""Modular teacher networks: tasks that share modules, to test compositional generalisation."""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from weightloom.errors import ConfigError
from weightloom.tasks.tasks import ALL, Tasks, TaskSource

NORMALISED_OVER = 1000
"""Inputs over which the mean and standard deviation of the outputs are estimated."""


class Teacher(NamedTuple):
    """Weights of the teacher, and the combinations of its modules that define the tasks."""

    first: Tensor
    """Weights of the first layer, (width, inputs), shared by all tasks."""
    modules: Tensor
    """Weights of the modules of each later hidden layer, (layers - 1, modules, width, width)."""
    last: Tensor
    """Weights of the output layer, (classes, width), shared by all tasks."""
    codes: Tensor
    """Mixing weights of every combination, (combinations, layers - 1, modules); they sum to 1 over
    modules. The held-out combinations come last."""
    mean: Tensor
    """Mean of each output over inputs, (combinations, classes)."""
    spread: Tensor
    """Standard deviation of each output over inputs, (combinations, classes)."""
    held_out: int
    """Number of held-out combinations."""


@dataclass(frozen=True)
class HyperteacherTasks(TaskSource):
    """Distillation tasks from a teacher network whose hidden layers are mixtures of modules.

    The weights of each hidden layer but the first are the mean of 1 to ``active`` of its modules.
    Inputs are from U(-1, 1). The teacher has no biases; its outputs are normalised per class and
    passed through a softmax, so ``query_y`` is (tasks, queries, classes). Some combinations of
    modules over the layers are held out from training, though each of their modules occurs in it.
    With ``active=1`` two modules of a layer are never mixed, so training has no information on how
    they combine.

    Example:
        >>> source = HyperteacherTasks(modules=4, active=2)
        >>> tasks = source.sample(3, torch.Generator().manual_seed(0))
        >>> tasks.support_x.shape, tasks.query_y.shape, tasks.hidden.shape
        (torch.Size([3, 128, 16]), torch.Size([3, 128, 8]), torch.Size([3, 8]))

    Source:
        Schug et al., "Discovering modular solutions that generalize compositionally" (2024),
        section 4.1. The paper sums the modules, here they are averaged; the normalisation of the
        outputs removes the difference. The paper does not check that the training combinations
        are connected.
    """

    modules: int = 4
    """Modules per layer."""
    active: int = 2
    """Maximum modules of a layer that are mixed in one task."""
    which: Literal["train", "ood"] = "train"
    """Combinations to draw from: ``"train"``, or ``"ood"`` for the held-out ones."""
    shots: int = 128
    """Support points per task."""
    queries: int = 128
    """Query points per task."""
    inputs: int = 16
    """Features per input."""
    classes: int = 8
    """Outputs of the teacher."""
    width: int = 32
    """Units per hidden layer of the teacher."""
    layers: int = 3
    """Hidden layers of the teacher. The first is shared by all tasks."""
    held_out: float = 0.25
    """Fraction of the combinations that are held out from training."""
    temperature: float = 0.1
    """Temperature of the softmax over the normalised outputs."""
    seed: int = 0
    """Seed of the teacher's weights and of the choice of held-out combinations."""

    def __post_init__(self) -> None:
        """Check the numbers of modules and layers, and the fraction held out."""
        if not 1 <= self.active <= self.modules:
            raise ConfigError(
                f"`active={self.active}` with `modules={self.modules}`. A layer mixes some of its "
                f"modules, none twice. Pass a number from 1 to {self.modules}."
            )
        if self.layers < 2 or self.modules < 2:
            raise ConfigError(
                f"`layers={self.layers}` and `modules={self.modules}` give one combination only. "
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
        """Teacher of this seed.

        Raises:
            ConfigError: If ``held_out`` leaves too few combinations for training.
        """
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
        """Shuffle the combinations, held-out ones last, until the training ones are connected."""
        subsets = [
            set(subset)
            for count in range(1, self.active + 1)
            for subset in combinations(range(self.modules), count)
        ]
        rows = torch.tensor(
            [[float(m in subset) / len(subset) for m in range(self.modules)] for subset in subsets]
        )
        codes = rows[torch.tensor(list(product(range(len(subsets)), repeat=self.layers - 1)))]
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
        """Return True if training uses every module and, with mixtures, connects those of a layer.

        Two modules are connected if a chain of mixtures links them.
        """
        used = (codes > 0).float().transpose(0, 1)  # (layers - 1, combinations, modules)
        if self.active == 1:
            return bool(used.any(1).all())
        reached = used.mT @ used > 0
        for _ in range(self.modules):
            reached = reached.float() @ reached.float() > 0
        return bool(reached.all())

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Draw combinations of modules, and points for each.

        `Tasks.hidden` is the mixing weights, (tasks, (layers - 1) * modules).

        Args:
            tasks: Number of tasks to draw.
            generator: Source of randomness.
            share: Slice of the tasks to return. The random numbers of all are drawn.
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
    """Run the teacher of each code on ``x``, whose leading axis has one entry, or one per code."""
    known = (x @ first.mT).relu().expand(len(codes), -1, -1)
    for code, of_layer in zip(codes.unbind(1), modules, strict=True):
        known = (known @ torch.einsum("tm,moi->tio", code, of_layer)).relu()
    return known @ last.mT
