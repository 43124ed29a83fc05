"""Does generating pay on a family of tasks: a code as weights against the same code as input."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from weightloom.diagnostics.generating_record import GeneratingPays, GeneratingRow
from weightloom.diagnostics.use import Arm, arm_of, none_stays
from weightloom.errors import ConfigError, NonFiniteError
from weightloom.hypernets import MLPHyperNetwork
from weightloom.learners.cnp import ConditionalNeuralProcess, Conditioned
from weightloom.learners.generated import GeneratedLearner
from weightloom.learners.learner import Learner
from weightloom.params import Params
from weightloom.tasks import Tasks, TaskSource
from weightloom.training import TrainOptions

WEIGHTS, INPUT, SHARED = "code as weights", "code as input", "shared, no code"
"""Names of the arms that are trained."""
SHARES = (1.0, 0.125)
"""Sizes of the plain network that are tried, as shares of the hypernetwork's."""
WARM_STEPS, TIMED_STEPS = 4, 16
"""Steps of a trial training, without and with the clock."""


def generating_pays(
    source: TaskSource,
    test_source: TaskSource,
    base: Callable[[], nn.Module],
    encoder: Callable[[], nn.Module],
    *,
    minutes: float = 5.0,
    validation_source: TaskSource | None = None,
    rates: Sequence[float] = (1e-3, 3e-3, 1e-2),
    seeds: int = 3,
    tasks: int = 16,
    test_tasks: int = 400,
    hyper: Callable[[nn.Module, int], nn.Module] = MLPHyperNetwork,
    plain: Callable[[int], nn.Module] | None = None,
    margin: float = 0.05,
) -> GeneratingPays:
    """Compare a code as weights with the same code as input, on a family of tasks.

    Three arms are trained: the encoder with a hypernetwork over the base; the encoder with a plain
    network that reads each input concatenated with the code; and the base alone, shared by all
    tasks. Each run takes the same processor time. Each arm is trained at every rate with the first
    seed, the plain network also in two sizes, and at the best on validation tasks with the other
    seeds. Two controls need no training:
    the hypernetwork at its start, and with the code of another task.

    Losses are those of `Learner.loss_per_task`: cross-entropy for labels, mean squared error for
    floats. The processor time includes that of all threads, but not that of an accelerator.

    Args:
        source: Source of training tasks.
        test_source: Source of test tasks.
        base: Function that builds the base network; called once per run, after seeding.
        encoder: Function that builds the encoder, ``(support_x, support_y, support_mask)`` to a
            code, (tasks, condition_dim).
        minutes: Processor time of all trainings together.
        validation_source: Source of validation tasks. Default: ``source``, with other seeds.
        rates: Learning rates, each tried for every arm.
        seeds: Number of runs per arm.
        tasks: Tasks per step.
        test_tasks: Number of test tasks, and of validation tasks.
        hyper: Function that builds the hypernetwork from the base and the width of a code.
        plain: Function that builds the plain network from the width of a code; the network has a
            parameter ``condition``. Default: `Conditioned`, with two hidden layers or as many as
            the base, of a width that makes it as large as the hypernetwork, or an eighth of that.
        margin: Share of the gain over the shared network below which arms count as level.

    Raises:
        ConfigError: If a module is passed instead of a function that builds it, a number is out of
            range, or inputs and outputs are no vectors and ``plain`` is missing.

    Example:
        >>> from weightloom import DeepSets, SinusoidTasks, mlp
        >>> found = generating_pays(
        ...     SinusoidTasks(shots=10),
        ...     SinusoidTasks(shots=10),
        ...     base=lambda: mlp([1, 8, 1]),
        ...     encoder=lambda: DeepSets(1, 1, condition_dim=4, hidden=8),
        ...     minutes=0.01,
        ...     rates=[1e-3],
        ...     seeds=2,
        ... )
        >>> found.input.parameters < 1.1 * found.weights.parameters
        True

    Source:
        Galanti and Wolf, "On the modularity of hypernetworks" (2020), compare the two ways of
        using a code; here at equal processor time instead of equal error.
    """
    _check(base, encoder, minutes, rates, seeds, test_tasks)
    trial = _Trial(source, base, encoder, hyper, plain, tasks)
    tried = len(rates) * (2 + len(trial.shares(INPUT)))
    seconds = 60 * minutes / (tried + 3 * (seeds - 1))
    validation = _drawn(validation_source or source, test_tasks, seed=1)
    test = _drawn(test_source, test_tasks, seed=2)
    with torch.random.fork_rng():
        arms = {
            name: trial.arm(name, seconds, rates, seeds, validation)
            for name in (WEIGHTS, INPUT, SHARED)
        }
        untrained = [trial.build(WEIGHTS, seed) for seed in range(seeds)]
    return _compared(arms, untrained, test, tasks, margin)


class _Shared(Learner):
    """The base alone: one set of parameters for all tasks."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def adapt(self, support: object) -> Params:
        """No parameters: all are the base's own."""
        return Params({})

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run the base on the inputs of all tasks."""
        outputs: Tensor = self.base(x.flatten(0, 1))
        return outputs.unflatten(0, x.shape[:2])


@dataclass
class _Arm:
    """Trained learners of one arm, one per seed, and its row without the loss."""

    learners: list[Learner]
    row: GeneratingRow


@dataclass
class _Trial:
    """Builds and trains the arms."""

    source: TaskSource
    base: Callable[[], nn.Module]
    encoder: Callable[[], nn.Module]
    hyper: Callable[[nn.Module, int], nn.Module]
    plain: Callable[[int], nn.Module] | None
    tasks: int

    def shares(self, name: str) -> tuple[float, ...]:
        """Sizes of an arm that are tried: a smaller plain network takes more steps."""
        return SHARES if name == INPUT and self.plain is None else (1.0,)

    def build(self, name: str, seed: int, share: float = 1.0) -> Learner:
        """Build the learner of an arm, with the initial values of a seed."""
        torch.manual_seed(seed)
        base = self.base()
        if name == SHARED:
            return _Shared(base)
        encoder, example = self.encoder(), _drawn(self.source, 2, seed=0)
        with torch.no_grad():
            width = encoder(example.support_x, example.support_y, example.support_mask).shape[-1]
        generated = GeneratedLearner(base, encoder, self.hyper(base, width))
        if name == WEIGHTS:
            return generated
        size = round(share * (_size(generated) - _size(encoder)))
        plain = self.plain(width) if self.plain else _matched(base, example, width, size)
        return ConditionalNeuralProcess(encoder, plain)

    def arm(
        self, name: str, seconds: float, rates: Sequence[float], seeds: int, validation: Tasks
    ) -> _Arm:
        """Train an arm at every size and rate, and with every seed at those that are best."""
        steps = {share: self._steps_in(name, share, seconds) for share in self.shares(name)}
        choices = list(itertools.product(steps, rates))

        def run(seed: int, share: float, rate: float) -> tuple[Learner, float]:
            learner = self.build(name, seed, share)
            options = TrainOptions(steps[share], self.tasks, rate, seed=seed)
            return learner, self._fit(learner, options)

        first = {choice: run(0, *choice) for choice in choices}
        best = min(choices, key=lambda its: _mean(_losses(first[its][0], validation, self.tasks)))
        runs = [first[best], *(run(seed, *best) for seed in range(1, seeds))]
        learners, times = [learner for learner, _ in runs], [taken for _, taken in runs]
        parameters, cpu_time_s = _size(learners[0]), sum(times) / seeds
        share, rate = best
        row = GeneratingRow(name, Arm(0.0, 0.0), parameters, rate, steps[share], cpu_time_s)
        return _Arm(learners, row)

    def _fit(self, learner: Learner, options: TrainOptions) -> float:
        """Train, and return the processor time taken; a run that diverges ends there."""
        started_s = time.process_time()
        try:
            history = learner.fit(self.source, options)
        except NonFiniteError:
            return time.process_time() - started_s
        if history.stopped_by:
            raise KeyboardInterrupt
        return time.process_time() - started_s

    def _steps_in(self, name: str, share: float, seconds: float) -> int:
        """Count the training steps of an arm that this processor time holds."""
        learner = self.build(name, 0, share)
        self._fit(learner, TrainOptions(WARM_STEPS, self.tasks, 1e-6))
        taken = self._fit(learner, TrainOptions(TIMED_STEPS, self.tasks, 1e-6))
        return max(1, round(seconds * TIMED_STEPS / max(taken, 1e-6)))


def _compared(
    arms: Mapping[str, _Arm], untrained: list[Learner], test: Tasks, at_once: int, margin: float
) -> GeneratingPays:
    """Judge the arms and the controls on the same tasks."""
    count = len(test.query_mask)
    order = none_stays(count, torch.Generator().manual_seed(0))
    mixed = test._replace(support=test.support.take(order))

    def losses(learners: list[Learner], tasks: Tasks = test) -> Tensor:
        return torch.stack([_losses(learner, tasks, at_once) for learner in learners])

    found = {name: losses(arm.learners) for name, arm in arms.items()}
    weights, plainly, shared = found[WEIGHTS], found[INPUT], found[SHARED]
    unfit, shuffled = losses(untrained), losses(arms[WEIGHTS].learners, mixed)
    rows = {name: replace(arm.row, loss=arm_of(found[name].mean(0))) for name, arm in arms.items()}
    size = rows[WEIGHTS].parameters
    better = min((weights, plainly), key=_mean)
    return GeneratingPays(
        weights=rows[WEIGHTS],
        input=rows[INPUT],
        shared=rows[SHARED],
        untrained=GeneratingRow("untrained weights", arm_of(unfit.mean(0)), size),
        shuffled=GeneratingRow("weights, shuffled code", arm_of(shuffled.mean(0)), size),
        lead=arm_of((plainly - weights).mean(0)),
        gain=arm_of((shared - better).mean(0)),
        cost_of_shuffling=arm_of((shuffled - weights).mean(0)),
        lead_per_seed=tuple((plainly - weights).mean(1).tolist()),
        tasks=count,
        margin=margin,
    )


def _drawn(source: TaskSource, tasks: int, seed: int) -> Tasks:
    """Draw tasks from a seed that no training step uses."""
    return source.sample(tasks, torch.Generator().manual_seed((1 << 40) + seed))


def _size(module: nn.Module) -> int:
    return sum(values.numel() for values in module.parameters() if values.requires_grad)


def _matched(base: nn.Module, example: Tasks, width: int, size: int) -> Conditioned:
    """Build a plain network with about ``size`` trained numbers for the inputs of the base."""
    x = example.query_x
    with torch.no_grad():
        y = base(x[0]) if isinstance(x, Tensor) and x.ndim == 3 else None
    if not isinstance(y, Tensor) or y.ndim != 2:
        raise ConfigError(
            "Inputs or outputs of the base are no vectors. The plain network reads each input "
            "concatenated with the code, (tasks, batch, features). Pass `plain`, a function of the "
            "width of a code that builds a network with a parameter `condition` of that width."
        )
    x_dim, y_dim = x.shape[-1], y.shape[-1]
    depth = max(2, sum(values.ndim > 1 for values in base.parameters()) - 1)

    def numbers(units: int) -> int:
        first, last = (x_dim + width + 1) * units, (units + 1) * y_dim
        return first + (depth - 1) * (units + 1) * units + last

    units = next(units for units in itertools.count(1) if numbers(units + 1) > size)
    return Conditioned(x_dim, y_dim, width, (units,) * depth)


def _mean(losses: Tensor) -> float:
    """Mean loss; NaN counts as infinite."""
    return losses.mean().nan_to_num(torch.inf).item()


@torch.no_grad()
def _losses(learner: Learner, tasks: Tasks, at_once: int) -> Tensor:
    """Loss of each task, (tasks,), in eval mode."""
    learner.eval()
    parts = [
        learner.loss_of(learner.answer(part), part.query)
        for start in range(0, len(tasks.query_mask), at_once)
        for part in [tasks.take(slice(start, start + at_once))]
    ]
    return torch.cat(parts).double().cpu()


def _check(
    base: object,
    encoder: object,
    minutes: float,
    rates: Sequence[float],
    seeds: int,
    test_tasks: int,
) -> None:
    """Raise a `ConfigError` for a module in place of its builder, or a number out of range."""
    for name, build in {"base": base, "encoder": encoder}.items():
        if isinstance(build, nn.Module) or not callable(build):
            raise ConfigError(
                f"`{name}` is a {type(build).__name__}. Every run needs a new one, with the "
                f"initial values of its seed. Pass a function, as in `{name}=lambda: mlp([1, 8, "
                "1])`."
            )
    fits = {
        "minutes": (minutes, minutes > 0, "Pass a positive number"),
        "rates": (rates, len(rates) > 0, "Pass one learning rate or more"),
        "seeds": (seeds, seeds >= 1, "Pass 1 or more"),
        "test_tasks": (test_tasks, test_tasks >= 2, "Pass 2 or more"),
    }
    for name, (value, is_good, advice) in fits.items():
        if not is_good:
            raise ConfigError(
                f"`{name}={value}` leaves no comparison. Every arm is trained for some time, at "
                f"each rate and with each seed, and compared over tasks. {advice}."
            )
