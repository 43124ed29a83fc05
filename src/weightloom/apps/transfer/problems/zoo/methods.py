"""Methods of the zoo: starts for gradient steps on a target, generated or not, and plain rivals.

In:   source networks and labelled examples of each target.
Out:  probabilities of the classes for its other pictures.
Knows nothing of the evaluation.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, one_hot

from weightloom.apps.transfer.problems.zoo.data import HIDDEN, PIXELS, WAYS, Batch, Zoo
from weightloom.apps.transfer.recipe import Scope, Start, fine_tune, generate
from weightloom.base import apply_per_task
from weightloom.conditions.classes import class_statistics
from weightloom.conditions.support import AttentionBlock
from weightloom.conditions.weights import WeightEncoder, check_ends, linear_path
from weightloom.errors import ShapeError
from weightloom.forms import Factored, LowRank
from weightloom.learners.learner import Support
from weightloom.learners.maml import MAML
from weightloom.losses import cross_entropy_per_task, reconstruction_per_task
from weightloom.networks import mlp
from weightloom.params import Params, parameters_by_name

if TYPE_CHECKING:
    from weightloom.apps.transfer.problems.zoo.networks import ZooProblem

TUNING_RATES = {"generated": 0.003, "generated-reconstruction": 0.01, "last-layer": 0.1}
"""Adam's rate in gradient steps on a target, by method; chosen on validation targets."""
USUAL_RATE = 0.03
"""The same for methods that are not named."""
MATRIX_SCALE = 3.0
"""Factor of the scores that match labels at the start of training."""
INNER_STEPS, INNER_RATE = 5, 0.1
"""Steps of MAML in training, and their rate at its start."""
NEARNESS = 0.5
"""Squared distance, per pixel of the mean picture's energy, over which neighbours count less."""


class Read(NamedTuple):
    """Knowledge of each target that a change is generated from."""

    classes: Tensor
    """Mean picture of each label, (targets, 10, 64)."""
    answers: Tensor
    """Mean log-probability that the source gives to each of its labels, for pictures of each label
    of the target, (targets, 10, 10)."""
    path: Tensor
    """The source's linear path, a template of each of its labels, (targets, 10, 64)."""
    weights: Tensor
    """The source's weights by `WeightEncoder`, (targets, width)."""


class Method(nn.Module):
    """A start for gradient steps on each target.

    Args:
        problem: The zoo.
        name: Name of the method.
    """

    trained, reads, adapts, weighed = False, False, True, True
    scope: Scope = "all"

    def __init__(self, problem: "ZooProblem", name: str) -> None:
        super().__init__()
        self.name = name
        self.base = mlp([PIXELS, HIDDEN, WAYS]).requires_grad_(False)
        self.rate = TUNING_RATES.get(name, USUAL_RATE)

    def start(self, source: Params, support: Support) -> Start:
        """Return the parameters that gradient steps begin from: here, those of the source."""
        return Start(source, Params())

    def adapt(self, source: Params, support: Support, steps: int, told: Any = None) -> Params:
        """Return parameters of the adapted networks, each (targets, *shape).

        Args:
            source: Source network of each target.
            support: Its labelled examples.
            steps: Gradient steps.
            told: Condition to read in place of the target's own.
        """
        with torch.no_grad():
            start = self.start(source, support) if told is None else self.written(source, told)
        return fine_tune(self.base, start, support, steps, self.rate, self.scope)

    def written(self, source: Params, told: Any) -> Start:
        """Return the start for a given condition; only methods that read one have it."""
        raise NotImplementedError

    def predict(
        self, source: Params, support: Support, x: Tensor, steps: int, told: Any = None
    ) -> Tensor:
        """Return probabilities of the classes, (targets, pictures, 10)."""
        return self.run(self.adapt(source, support, steps, told), x)

    def run(self, params: Params, x: Tensor) -> Tensor:
        """Return the probabilities that adapted networks give."""
        with torch.no_grad():
            return apply_per_task(self.base, params, x).softmax(2)

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of each adapted network on the queries, (targets,)."""
        params = self.start(batch.source, batch.support).params
        return cross_entropy_per_task(
            apply_per_task(self.base, params, batch.query.x), batch.query.y
        )


class Source(Method):
    """The source, without gradient steps."""

    scope: Scope = "none"


class LastLayer(Method):
    """The source, of which the last layer is fitted."""

    scope: Scope = "head"


class Scratch(Method):
    """A new network of the sources' architecture."""

    def __init__(self, problem: "ZooProblem", name: str) -> None:
        super().__init__(problem, name)
        self.new = mlp([PIXELS, HIDDEN, WAYS]).requires_grad_(False)

    def start(self, source: Params, support: Support) -> Start:
        """Return the new network for every target."""
        return Start(_for_all(self.new, len(support.x)), Params())


class LoRA(Method):
    """A change of the ends of the source, zero at the start, whose factors are fitted."""

    scope: Scope = "factors"

    def __init__(self, problem: "ZooProblem", name: str) -> None:
        super().__init__(problem, name)
        self.down = nn.Parameter(torch.randn(problem.rank, PIXELS) / PIXELS**0.5, False)

    def start(self, source: Params, support: Support) -> Start:
        """Return the source and a change of zero."""
        up = self.down.new_zeros(len(support.x), PIXELS, len(self.down))
        output = torch.eye(WAYS).expand(len(support.x), -1, -1)
        return Start(source, change_of(up, self.down.expand(len(up), -1, -1), output))


class Shared(Method):
    """One change of the ends for all targets, of the same forms as a generated one."""

    trained = True

    def __init__(self, problem: "ZooProblem", name: str) -> None:
        super().__init__(problem, name)
        self.up = nn.Parameter(torch.zeros(PIXELS, problem.rank))
        self.down = nn.Parameter(torch.randn(problem.rank, PIXELS) / PIXELS**0.5)
        self.output = nn.Parameter(torch.eye(WAYS))

    def start(self, source: Params, support: Support) -> Start:
        """Return each source and the one change."""
        parts = (its.expand(len(support.x), -1, -1) for its in (self.up, self.down, self.output))
        return Start(source, change_of(*parts))


class SharedFinetune(Method):
    """One change of all weights for all targets; the sources have one initialisation in common."""

    trained = True

    def __init__(self, problem: "ZooProblem", name: str) -> None:
        super().__init__(problem, name)
        self.change = mlp([PIXELS, HIDDEN, WAYS])
        for its in self.change.parameters():
            nn.init.zeros_(its)

    def start(self, source: Params, support: Support) -> Start:
        """Return each source with the change added."""
        own = parameters_by_name(self.change)
        return Start(Params({name: its + own[name] for name, its in source.items()}), Params())


class Nearest(Method):
    """The training source whose mean pictures of all labels are nearest to the target's."""

    def __init__(self, problem: "ZooProblem", name: str) -> None:
        super().__init__(problem, name)
        self.zoo: Zoo = problem.zoos["train"]

    def start(self, source: Params, support: Support) -> Start:
        """Return the nearest of the training sources."""
        found = class_statistics(support.x, support.y, support.mask, WAYS)
        apart = (found.mean[:, None] - self.zoo.means).square().sum(3)
        nearest = (apart * (found.shots > 0)[:, None]).sum(2).argmin(1)
        return Start(self.zoo.networks.take(nearest), Params())


class Average(Method):
    """The mean of the weights of all training sources, which have one initialisation in common."""

    def __init__(self, problem: "ZooProblem", name: str) -> None:
        super().__init__(problem, name)
        self.mean = problem.zoos["train"].networks.map(lambda its: its.mean(0, keepdim=True))

    def start(self, source: Params, support: Support) -> Start:
        """Return the mean network for every target."""
        count = len(support.x)
        return Start(self.mean.map(lambda its: its.expand(count, *its.shape[1:])), Params())


class Maml(Method):
    """A trained initialisation, with trained rates of plain gradient steps."""

    trained = True

    def __init__(self, problem: "ZooProblem", name: str) -> None:
        super().__init__(problem, name)
        self.learner = MAML(
            mlp([PIXELS, HIDDEN, WAYS]),
            inner_steps=INNER_STEPS,
            inner_lr=INNER_RATE,
            learn_inner_lr=True,
        )

    def adapt(self, source: Params, support: Support, steps: int, told: Any = None) -> Params:
        """Return the initialisation after plain gradient steps on each target."""
        self.learner.inner_steps = steps
        with torch.no_grad():
            params = self.learner.adapt(support)
        self.learner.inner_steps = INNER_STEPS
        return params

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss after gradient steps on the labelled examples, (targets,)."""
        params = self.learner.adapt(batch.support)
        logits = self.learner.predict(params, batch.query.x)
        return cross_entropy_per_task(logits, batch.query.y)


class Generated(Method):
    """A change of the source's ends, written in one pass from its weights and the examples.

    Tokens are the labels of the target, by their mean pictures, and the labels of the source, by
    their templates in its linear path. Attention mixes them; each target label then takes shares
    of the source's labels (the output map), by learned scores and by the source's own answers.
    Each target label and its share of the source's labels form a pair, and the mean over pairs
    writes the coefficients of the change of the input map, in a learned basis of rows and columns
    that all targets share. So a permutation of either side's labels permutes the output map alike,
    and hidden neurons have no order.

    Args:
        problem: The zoo.
        name: Name of the method.
    """

    trained, reads = True, True

    def __init__(self, problem: "ZooProblem", name: str) -> None:
        super().__init__(problem, name)
        width, self.rank = problem.width, problem.rank
        self.encode = WeightEncoder(width, hidden=width)
        self.of_target, self.of_source = nn.Linear(PIXELS, width), nn.Linear(PIXELS, width)
        self.sides = nn.Parameter(0.1 * torch.randn(2, width))
        self.blocks = nn.ModuleList(AttentionBlock(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.trust = nn.Parameter(torch.zeros(()))
        wide = 4 * width
        self.pair = _mixed(2 * PIXELS + 2 * width, wide)
        self.mix = nn.Sequential(nn.LayerNorm(wide), _mixed(wide, wide))
        self.up = nn.Parameter(torch.randn(PIXELS, self.rank) / PIXELS**0.5)
        self.down = nn.Parameter(torch.randn(self.rank, PIXELS) / PIXELS**0.5)
        self.core = nn.Linear(wide, self.rank**2)
        nn.init.zeros_(self.core.weight)
        nn.init.zeros_(self.core.bias)

    def read(self, source: Params, support: Support) -> Read:
        """Read each source's weights and the labelled examples.

        Raises:
            ShapeError: If sources have other inputs or labels, or a label is not one of theirs.
        """
        path = linear_path(source)
        check_ends(path, (support.x.shape[2], WAYS))
        _check_labels(support)
        logits = apply_per_task(self.base, source, support.x)
        found = class_statistics(
            torch.cat([support.x, log_softmax(logits, 2)], 2), support.y, support.mask, WAYS
        )
        classes, answers = found.mean.split([PIXELS, WAYS], 2)
        return Read(classes, answers, path, self.encode(source))

    def write(self, condition: Read) -> Params:
        """Write the change of the ends, as parameters of `Ends`."""
        centred = 2 * (condition.classes - condition.classes.mean(1, keepdim=True))
        tokens = torch.cat(
            [
                condition.weights[:, None],
                self.of_target(centred) + self.sides[0],
                self.of_source(condition.path) + self.sides[1],
            ],
            1,
        )
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        targets, sources = tokens[:, 1 : WAYS + 1], tokens[:, WAYS + 1 :]
        scores = self.query(targets) @ self.key(sources).mT / targets.shape[2] ** 0.5
        answers = condition.answers - condition.answers.mean(1, keepdim=True)
        answers = answers - answers.mean(2, keepdim=True)
        output = (MATRIX_SCALE * scores + self.trust.exp() * answers).softmax(2)
        pairs = torch.cat([centred, output @ condition.path, targets, output @ sources], 2)
        state = self.mix(self.pair(pairs).mean(1))
        up = self.up @ self.core(state).view(-1, self.rank, self.rank)
        return change_of(up, self.down.expand(len(up), -1, -1), output)

    def start(self, source: Params, support: Support) -> Start:
        """Return each source and its generated change."""
        return generate(lambda its, known: self.write(self.read(its, known)), source, support)

    def written(self, source: Params, told: Any) -> Start:
        """Return each source and the change for a given condition."""
        return Start(source, self.write(told))


class Reconstructed(Generated):
    """`Generated`, trained to reproduce trained changes, not by the loss of adapted networks."""

    def forward(self, batch: Batch) -> Tensor:
        """Return the normalised error of each written change, (targets,)."""
        change = self.start(batch.source, batch.support).change
        return reconstruction_per_task(change, batch.trained)


class Matched(Method):
    """Every turn of the pictures, and the best assignment of the source's labels, tried by hand.

    It is told the families of targets, which no other method is; so the check leaves it out.

    Source:
        The assignment: Kuhn, "The Hungarian method for the assignment problem" (1955).
    """

    adapts, weighed = False, False

    def __init__(self, problem: "ZooProblem", name: str) -> None:
        super().__init__(problem, name)
        self.turns = problem.digits.turns

    def predict(
        self, source: Params, support: Support, x: Tensor, steps: int, told: Any = None
    ) -> Tensor:
        """Return the source's probabilities under the turn and assignment of most likelihood."""
        assign = import_module("scipy.optimize").linear_sum_assignment
        member = one_hot(support.y, WAYS).to(x) * support.mask[..., None]
        best, turn = torch.full((len(x),), -torch.inf), torch.zeros(len(x), dtype=torch.long)
        assigned = torch.zeros(len(x), WAYS, dtype=torch.long)
        for number, matrix in enumerate(self.turns):
            logits = apply_per_task(self.base, source, support.x @ matrix)
            likelihood = member.mT @ log_softmax(logits, 2)
            for target, table in enumerate(likelihood.numpy()):
                rows, columns = assign(table, maximize=True)
                total = float(table[rows, columns].sum())
                if total > best[target]:
                    best[target], turn[target] = total, number
                    assigned[target] = torch.from_numpy(columns)
        logits = apply_per_task(self.base, source, x @ self.turns[turn])
        return logits.softmax(2).gather(2, assigned[:, None].expand_as(logits))


class Neighbours(Method):
    """Share of each label among the nearest examples, by distance of pixels; nothing is trained."""

    adapts = False

    def predict(
        self, source: Params, support: Support, x: Tensor, steps: int, told: Any = None
    ) -> Tensor:
        """Return the mean label of the examples, weighed by a Gaussian of their distance."""
        apart = torch.cdist(x, support.x).square() / NEARNESS
        weight = (-apart).masked_fill(~support.mask[:, None], -torch.inf).softmax(2)
        shares = weight @ one_hot(support.y, WAYS).to(x)
        return 0.99 * shares + 0.01 / WAYS  # a label without an example is not impossible


METHODS: dict[str, Callable[["ZooProblem", str], Method]] = {
    "generated": Generated,
    "generated-reconstruction": Reconstructed,
    "source": Source,
    "shared": Shared,
    "shared-finetune": SharedFinetune,
    "finetune": Method,
    "last-layer": LastLayer,
    "lora": LoRA,
    "scratch": Scratch,
    "maml": Maml,
    "nearest-source": Nearest,
    "average-source": Average,
    "matched": Matched,
    "neighbours": Neighbours,
}
"""Classes of the methods, in the order of the table."""


def change_of(up: Tensor, down: Tensor, output: Tensor) -> Params:
    """Hold a change of the ends: a low-rank change of the input map, and an output map.

    Args:
        up: (targets, 64, rank).
        down: (targets, rank, 64).
        output: (targets, 10, 10).
    """
    held = Factored(LowRank(up.shape[2]), torch.eye(PIXELS).to(up), {"up": up, "down": down})
    return Params({"input.weight": held, "output.weight": output})


def _for_all(network: nn.Module, targets: int) -> Params:
    own = parameters_by_name(network)
    return Params({name: its.detach().expand(targets, *its.shape) for name, its in own.items()})


def _mixed(inputs: int, width: int) -> nn.Sequential:
    layers = [nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
    return nn.Sequential(*layers)


def _check_labels(support: Support) -> None:
    """Raise a `ShapeError` if a label is not one of the source's."""
    labels = support.y[support.mask]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < WAYS:
        odd = int(labels.max()) if int(labels.max()) >= WAYS else int(labels.min())
        raise ShapeError(
            f"A target has the label {odd}, and its source knows {WAYS} labels, from 0 to "
            f"{WAYS - 1}. The generated output map assigns the source's labels to the target's, so "
            f"both have as many. Number the target's labels from 0 to {WAYS - 1}, or pass a source "
            "of its labels."
        )
