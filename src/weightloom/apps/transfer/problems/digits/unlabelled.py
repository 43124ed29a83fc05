"""Problems whose targets are known from unlabelled pictures: models, training and outputs.

In:   tasks to train on, and targets.
Out:  models, their training, and their outputs for every target.
Knows nothing of the domains that the pictures come from.
"""

import copy
import time
from abc import abstractmethod
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from weightloom.adapt import descend
from weightloom.apps.transfer.problems.digits.models import (
    COPIES,
    DIGITS,
    HIDDEN,
    SOURCES,
    Adaptation,
    DigitModel,
    Generated,
    SharedAdapter,
    Simulated,
    SingleSources,
    Tent,
    digit_net,
)
from weightloom.apps.transfer.problems.problem import Condition, Outputs, Setting, TransferProblem
from weightloom.apps.transfer.training import fit
from weightloom.errors import ConfigError
from weightloom.forms import Factored
from weightloom.losses import cross_entropy_per_task
from weightloom.params import Params
from weightloom.tasks import Tasks, TaskSource

if TYPE_CHECKING:
    from weightloom.apps.app import Training
    from weightloom.apps.transfer.config import TransferOptions
    from weightloom.training import History

EXAMPLES, QUERIES = 64, 32
"""Unlabelled pictures of a domain, and labelled pictures of a training domain per step."""
SOURCE_STEPS, SOURCE_LR = 400, 2e-3
"""Training of the source on pictures without a domain."""
STEPS = (0, 1, 5, 20, 100)
"""Gradient steps on the labelled pictures of a target."""
FOLDS = 5
"""Parts of a target's labelled pictures; each is held out once."""
SOURCE_RATE = 1e-3
"""Adam's rate of fine-tuning the source on a target, chosen on validation targets."""
MOST_CHECKED = 5
"""Maximum number of gradient steps that are repeated without each fold, for the check."""
MOST_RANK = 18
"""Maximum rank: half of it fits the last layer, whose smaller side is 10."""
MEAN_OF = 200
"""Training domains behind the mean condition."""
TIMED = 3
"""Targets that are adapted one by one to measure the time."""


class Targets(NamedTuple):
    """Pictures of all targets."""

    unlabelled: Tensor
    """(targets, examples, 1, size, size)."""
    x: Tensor
    """Labelled pictures, (targets, digits · shots, 1, size, size)."""
    y: Tensor
    query_x: Tensor
    """Pictures that are scored, (targets, queries, 1, size, size)."""
    query_y: Tensor

    @classmethod
    def of(cls, tasks: Tasks) -> "Targets":
        """Split the support of tasks into unlabelled and labelled pictures."""
        known = tasks.support_y[0] >= 0
        x, y = tasks.support_x[:, known], tasks.support_y[:, known]
        return cls(tasks.support_x[:, ~known], x, y, tasks.query_x, tasks.query_y)


class Unlabelled(TransferProblem):
    """Interface of problems of reading digits in targets known from unlabelled pictures.

    Args:
        config: Resolved options.

    Raises:
        ConfigError: If ``split`` is not 0, ``rank`` is above `MOST_RANK`, or there is one target.
    """

    score, better = "accuracy", "higher"
    targets: Targets
    validation: Targets

    def __init__(self, config: "TransferOptions") -> None:
        check_options(config)
        self.config = config
        self._source: nn.Sequential | None = None

    @abstractmethod
    def training_tasks(self, examples: int = EXAMPLES, queries: int = QUERIES) -> TaskSource:
        """Return the source of training domains, new ones in every batch."""

    @abstractmethod
    def single_tasks(self) -> TaskSource:
        """Return the source of `SOURCES` training domains, the same in every batch."""

    @abstractmethod
    def plain_tasks(self, queries: int) -> TaskSource:
        """Return the source of labelled pictures that the source model is trained on."""

    def source(self) -> nn.Sequential:
        """Return a copy of the source, trained on pictures without a domain when first asked."""
        if self._source is None:
            with torch.random.fork_rng([]):
                self._source = self._pretrained()
        return copy.deepcopy(self._source)

    def _pretrained(self) -> nn.Sequential:
        torch.manual_seed(self.config.seed)
        net, generator = digit_net(), torch.Generator().manual_seed(self.config.seed)
        plain = self.plain_tasks(128)
        optimiser = torch.optim.Adam(net.parameters(), SOURCE_LR)
        for _ in range(SOURCE_STEPS):
            batch = plain.sample(1, generator)
            loss = cross_entropy(net(batch.query_x[0]), batch.query_y[0])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return net.eval()

    def settings(self) -> list[Setting]:
        """Return unlabelled targets, then targets with one labelled picture of each digit."""
        labelled = [Setting("1 of each digit", 1, steps) for steps in STEPS]
        return [Setting(f"{EXAMPLES} unlabelled"), *labelled]

    def build(self, method: str) -> DigitModel:
        """Build the model of a method."""
        rank, width = self.config.rank, self.config.width
        made: dict[str, Callable[[], DigitModel]] = {
            "generated": lambda: Generated(digit_net(), rank, width),
            "source": lambda: DigitModel(self.source(), trained=False),
            "multitask": lambda: DigitModel(digit_net(), scope="all"),
            "multitask-wide": lambda: DigitModel(digit_net(2 * HIDDEN)),
            "batchnorm": lambda: DigitModel(digit_net(), refreshes=True),
            "tent": lambda: Tent(digit_net()),
            "generated-frozen": lambda: Generated(self.source(), rank, width, frozen=True),
            "shared": lambda: SharedAdapter(self.source(), rank),
            "shared-finetune": lambda: DigitModel(self.source()),
            "nearest-source": lambda: SingleSources(self.source(), mean=False),
            "average-source": lambda: SingleSources(self.source(), mean=True),
            "simulated": lambda: Simulated(self.training_tasks(queries=COPIES), self.config.seed),
            "finetune": lambda: DigitModel(self.source(), False, "all", SOURCE_RATE),
            "lora": lambda: SharedAdapter(self.source(), rank, trained=False, scope="low-rank"),
            "last-layer": lambda: DigitModel(self.source(), trained=False, scope="head"),
        }
        return made[method]()

    def train(
        self, model: nn.Module, config: "TransferOptions", training: "Training[nn.Module]"
    ) -> "History":
        """Train a model on domains that are drawn anew in every step.

        Raises:
            NonFiniteError: If a loss or gradient is not finite.
        """
        assert isinstance(model, DigitModel)
        tasks, count = self.training_tasks(EXAMPLES * model.needs_examples), config.tasks
        if isinstance(model, SingleSources):
            tasks, count = self.single_tasks(), SOURCES

        def draw(step: int, generator: torch.Generator) -> Tasks:
            return tasks.sample(count, generator)

        @torch.no_grad()
        def score() -> float:
            x, y = self.validation.query_x, self.validation.query_y
            logits = model.logits(model.adapt(self.validation.unlabelled), x)
            return (logits.argmax(-1) == y).float().mean().item()

        return fit(model, draw, config, training, score=score, score_name="accuracy")

    @torch.no_grad()
    def outputs(self, model: nn.Module, setting: Setting, condition: Condition = "own") -> Outputs:
        """Adapt a model to the unlabelled pictures of every target, then take gradient steps."""
        assert isinstance(model, DigitModel)
        its, steps = self.targets, setting.steps
        start = self._adapted(model, its.unlabelled, condition)
        tuned = fine_tuned(model, start, its.x, its.y, steps)
        query = model.logits(tuned, its.query_x).softmax(-1)
        has_check = setting.shots and steps <= MOST_CHECKED
        support = held_out(model, start, its.x, its.y, steps) if has_check else None

        def adapt_one(at: int) -> float:
            one = slice(at, at + 1)
            begun_s = time.perf_counter()
            adapted = model.adapt(its.unlabelled[one])
            fine_tuned(model, adapted, its.x[one], its.y[one], steps)
            return time.perf_counter() - begun_s

        time_s = median(adapt_one(at) for at in range(min(TIMED, len(its.y))))
        return Outputs(query, support, time_s, changes(model, tuned))

    def _adapted(self, model: DigitModel, x: Tensor, condition: Condition) -> Adaptation:
        """Adapt to each target's own pictures, or write from another's or from the mean condition.

        Statistics of norms are each target's own in every case.
        """
        if condition == "own" or not isinstance(model, Generated):
            return model.adapt(x)
        known = model.encode(x).roll(1, 0)
        if condition == "mean":
            generator = torch.Generator().manual_seed(0)
            pictures = self.training_tasks(queries=1).sample(MEAN_OF, generator).support_x
            known = model.encode(pictures).mean(0).expand(len(x), -1)
        return model.settled(model.hyper(known), x)

    def scores(self, setting: Setting, query: Tensor) -> dict[str, Tensor]:
        """Return accuracy and log loss of each target."""
        y = self.targets.query_y
        loss = -query.gather(-1, y[..., None])[..., 0].clamp(min=1e-12).log().mean(1)
        return {"accuracy": (query.argmax(-1) == y).float().mean(1), "log_loss": loss}

    def support_loss(self, setting: Setting, support: Tensor) -> Tensor:
        """Return the log loss of each labelled picture, (targets, pictures)."""
        chance = support.gather(-1, self.targets.y[..., None])[..., 0]
        return -chance.clamp(min=1e-12).log()


def fine_tuned(
    model: DigitModel, start: Adaptation, x: Tensor, y: Tensor, steps: int
) -> Adaptation:
    """Take gradient steps on the labelled pictures of each target, from adapted parameters.

    Args:
        model: The model; its ``scope`` says which parameters move.
        start: Adapted parameters.
        x: Labelled pictures, (targets, pictures, 1, size, size).
        y: Their digits, (targets, pictures).
        steps: Number of steps.
    """
    if steps == 0 or model.scope == "none":
        return start
    moved = _moved(model, start.params, len(x))
    rest = {name: value for name, value in start.params.items() if name not in moved}

    def loss(params: Params) -> Tensor:
        adapted = Adaptation(Params({**rest, **params}), start.buffers)
        return cross_entropy_per_task(model.logits(adapted, x), y)

    found = descend(moved, loss, steps, model.rate, momentum=(0.9, 0.999))
    return Adaptation(Params({**rest, **found}), start.buffers)


def _moved(model: DigitModel, params: Params, targets: int) -> Params:
    """Parameters that gradient steps move: factors as they are, others in full for each target."""
    if model.scope == "low-rank":
        return params
    owns = dict(model.net.named_parameters())
    last = next(reversed(owns)).partition(".")[0]
    names = [name for name in owns if model.scope == "all" or name.startswith(f"{last}.")]
    full = {name: params.get(name, owns[name].expand(targets, *owns[name].shape)) for name in names}
    return Params({name: _dense(value).detach().clone() for name, value in full.items()})


def _dense(value: Tensor) -> Tensor:
    return value.dense() if isinstance(value, Factored) else value


def held_out(model: DigitModel, start: Adaptation, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """Classify each labelled picture by parameters whose gradient steps left it out.

    Arguments as for `fine_tuned`.

    Returns:
        Probabilities, (targets, pictures, digits).
    """
    if steps == 0 or model.scope == "none":
        return model.logits(start, x).softmax(-1)  # the labels were not read
    outputs = x.new_zeros(*y.shape, DIGITS)
    fold = torch.arange(y.shape[1]) % FOLDS
    for number in range(FOLDS):
        kept = fold != number
        tuned = fine_tuned(model, start, x[:, kept], y[:, kept], steps)
        outputs[:, ~kept] = model.logits(tuned, x[:, ~kept]).softmax(-1)
    return outputs


def changes(model: DigitModel, adapted: Adaptation) -> dict[str, Tensor]:
    """Norm of the change of each adapted weight, divided by the weight's norm, each (targets,)."""
    owns = dict(model.net.named_parameters())
    return {
        name: (_dense(value) - owns[name]).flatten(1).norm(dim=1) / owns[name].norm()
        for name, value in adapted.params.items()
        if name in owns and owns[name].ndim > 1
    }


def check_options(config: "TransferOptions") -> None:
    """Refuse options that the digits cannot fill.

    Raises:
        ConfigError: If ``split`` is not 0, ``rank`` is above 18, or there is one test target.
    """
    if config.split:
        raise ConfigError(
            f"`--split {config.split}` with `--data {config.data}`. Its pictures are split by "
            "writers in one way only. Leave `--split` out."
        )
    if config.rank > MOST_RANK:
        raise ConfigError(
            f"`--rank {config.rank}` with `--data {config.data}`. The last layer has {DIGITS} "
            f"rows, and its change has half the rank. Type `--rank {MOST_RANK}` or less."
        )
    if config.test_targets < 2:
        raise ConfigError(
            f"`--test-targets {config.test_targets}` with `--data {config.data}`. The shuffled "
            "condition is that of another target. Type 2 or more."
        )
