"""The classic recipe of transfer with a hypernetwork, each step a function.

In:   source models, one per task, and labelled examples of each task's target.
Out:  source models pretrained, a generated change, fine-tuned parameters, scores.
Knows nothing of single problems, tables and reports.

Pretrain sources (`pretrain`); generate a change from source and examples (`generate`); take
gradient steps from there (`fine_tune`); score (`evaluate`); take the result as the source of the
next round (`iterate`). All tasks run in one batch.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightloom.adapt import descend, fit_params
from weightloom.base import apply_per_task
from weightloom.errors import ConfigError, DataError, nearest
from weightloom.forms import Factored
from weightloom.learners.learner import Support
from weightloom.losses import cross_entropy_per_task
from weightloom.params import Params, parameters_by_name

Scope = Literal["none", "factors", "head", "all"]
"""Parameters that gradient steps change: none; the factors of the change at both ends; weight and
bias of the last layer; all."""
MOMENTUM = (0.9, 0.999)
"""Adam's decay rates in fine-tuning."""


class Ends(nn.Module):
    """Identity maps of a model's inputs and outputs: the base whose change is generated.

    A change of both ends is the change of any source. If ``input`` maps x to E x and ``output``
    maps y to O y, the adapted source has the first weight W₁E and the last layer O W, O b
    (`carried`). So a low-rank change of the input map is a low-rank change of W₁, written in the
    coordinates of the inputs, which all sources share. The source's own weights carry it to
    its hidden neurons: sources may have any width and depth, and permuting hidden neurons leaves
    every output as it was.

    Args:
        inputs: Width of an input.
        outputs: Number of outputs.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, inputs, bias=False)
        self.output = nn.Linear(outputs, outputs, bias=False)
        for layer in (self.input, self.output):
            nn.init.eye_(layer.weight)


class Start(NamedTuple):
    """A source model per task, and the generated change of its ends."""

    source: Params
    """Parameters of the source models, each (tasks, *shape)."""
    change: Params
    """Parameters of `Ends` per task; empty for none."""

    @property
    def params(self) -> Params:
        """Parameters of the adapted models."""
        return carried(self.source, self.change)


class Evaluation(NamedTuple):
    """Scores of one model per task."""

    loss: Float[Tensor, " tasks"]
    """Cross-entropy, in nats."""
    accuracy: Float[Tensor, " tasks"]
    """Share of correct labels."""


Generator = Callable[[Params, Support], Params]
"""Source models and labelled examples of each task to a change of `Ends`."""
Tune = Callable[[Start, Support], Params]
"""Start of each task and labelled examples to fine-tuned parameters."""


def pretrain(
    base: nn.Module,
    x: Float[Tensor, "tasks examples *event"],
    y: Int[Tensor, "tasks examples"],
    steps: int,
    rate: float,
) -> Params:
    """Train one source model per task, all in one batched call, from the base's own parameters.

    Args:
        base: The network; it is not changed.
        x: Inputs of each task.
        y: Labels of each task.
        steps: Steps of Adam over all examples of a task.
        rate: Learning rate.

    Returns:
        Parameters of the sources, each (tasks, *shape).

    Example:
        >>> from weightloom.networks import mlp
        >>> x, y = torch.randn(3, 9, 4), torch.zeros(3, 9, dtype=torch.long)
        >>> pretrain(mlp([4, 8, 2]), x, y, steps=5, rate=0.1)["0.weight"].shape
        torch.Size([3, 8, 4])
    """
    own = parameters_by_name(base)
    starts = Params(
        {name: value.detach().expand(len(x), *value.shape) for name, value in own.items()}
    )
    return fit_params(
        base, starts, x, lambda logits: cross_entropy_per_task(logits, y), steps, rate
    )


def generate(generator: Generator, source: Params, support: Support) -> Start:
    """Generate the change of each source from its weights and the target's labelled examples.

    Args:
        generator: Writes parameters of `Ends`.
        source: Parameters of the sources, each (tasks, *shape).
        support: Labelled examples of each target.

    Raises:
        DataError: If a target has no example.
    """
    counts = support.mask.sum(1)
    if bool((counts == 0).any()):
        empty = (counts == 0).nonzero()[:, 0].tolist()
        raise DataError(
            f"Targets {empty[:5]} of {len(counts)} have no labelled example. The change is written "
            "from the target's examples and the source's weights, and the weights alone do not "
            "tell the target. Give each target at least one example, or leave its source as it is: "
            'methods `source` and `scope="none"`.'
        )
    return Start(source, generator(source, support))


def carried(source: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> Params:
    """Carry a change of both ends into the weights of each source.

    Args:
        source: Parameters of chains of linear layers, in the order of the data's way, each with a
            leading tasks axis.
        change: Parameters of `Ends`, each (tasks, *shape); those left out are the identity.

    Returns:
        Parameters of the adapted sources.
    """
    params = Params(source)
    weights = [name.removesuffix("weight") for name in source if name.endswith("weight")]
    first, last = weights[0], weights[-1]
    if "input.weight" in change:
        params[f"{first}weight"] = params[f"{first}weight"] @ _dense(change["input.weight"])
    if "output.weight" in change:
        output = _dense(change["output.weight"])
        params[f"{last}weight"] = output @ params[f"{last}weight"]
        params[f"{last}bias"] = (output @ params[f"{last}bias"][..., None])[..., 0]
    return params


def fine_tune(
    base: nn.Module, start: Start, support: Support, steps: int, rate: float, scope: Scope = "all"
) -> Params:
    """Take steps of Adam on each target's examples, from its generated start.

    Args:
        base: The network of the sources.
        start: Source and change of each task.
        support: Labelled examples of each target.
        steps: Gradient steps.
        rate: Learning rate.
        scope: Parameters that the steps change.

    Returns:
        Parameters of the adapted models, each (tasks, *shape), without gradient history.

    Raises:
        ConfigError: If ``scope`` is unknown, or is ``"factors"`` and ``start`` holds no change.
    """
    if scope not in get_args(Scope):
        raise ConfigError(
            f"`scope={scope!r}` is unknown. It names the parameters that gradient steps change. "
            f"{nearest(str(scope), get_args(Scope))}"
        )
    if scope == "none" or not steps:
        return start.params.detach()
    if scope == "factors":
        return carried(start.source, tuned_change(base, start, support, steps, rate))
    params = start.params.detach()
    last = [name for name in params if name.endswith("weight")][-1].removesuffix("weight")
    fitted = params if scope == "all" else {n: v for n, v in params.items() if n.startswith(last)}
    moved = _descended(base, Params(fitted), lambda its: params | its, support, steps, rate)
    return params | moved


def tuned_change(
    base: nn.Module, start: Start, support: Support, steps: int, rate: float
) -> Params:
    """Take steps of Adam on the factors of each change, and return the changes.

    Args:
        base: The network of the sources.
        start: Source and change of each task.
        support: Labelled examples of each target.
        steps: Gradient steps.
        rate: Learning rate.

    Raises:
        ConfigError: If ``start`` holds no change.
    """
    if not start.change:
        raise ConfigError(
            '`scope="factors"` and `start.change` is empty. The factors of a change are fitted, '
            'and this source has none. Pass `scope="head"` or `scope="all"`, or a change that is '
            "zero."
        )
    return _descended(
        base, start.change, lambda its: carried(start.source, its), support, steps, rate
    )


def evaluate(base: nn.Module, params: Mapping[str, Tensor], query: Support) -> Evaluation:
    """Score adapted models on held-out examples of their targets.

    Args:
        base: The network of the sources.
        params: Parameters of the adapted models.
        query: Held-out examples of each target.
    """
    with torch.no_grad():
        logits = apply_per_task(base, params, query.x)
    right = (logits.argmax(2) == query.y).to(logits.dtype)
    return Evaluation(cross_entropy_per_task(logits, query.y), right.mean(1))


def iterate(
    base: nn.Module,
    generator: Generator,
    source: Params,
    support: Support,
    query: Support,
    tune: Tune,
    rounds: int,
) -> list[Evaluation]:
    """Repeat generation, fine-tuning and evaluation; the result of a round is the next source.

    Args:
        base: The network of the sources.
        generator: Writes parameters of `Ends`.
        source: Parameters of the first sources.
        support: Labelled examples of each target.
        query: Held-out examples of each target.
        tune: Gradient steps from a start, such as `fine_tune` with its options.
        rounds: Number of rounds.

    Returns:
        Scores after each round.

    Raises:
        DataError: If a target has no example.
    """
    found = []
    for _ in range(rounds):
        with torch.no_grad():
            start = generate(generator, source, support)
        source = tune(start, support)
        found.append(evaluate(base, source, query))
    return found


def _descended(
    base: nn.Module,
    fitted: Params,
    whole: Callable[[Params], Params],
    support: Support,
    steps: int,
    rate: float,
) -> Params:
    """Minimise each target's loss over ``fitted``; ``whole`` makes the model's parameters of it."""

    def loss(values: Params) -> Tensor:
        logits = apply_per_task(base, whole(values), support.x)
        weight = support.mask / support.mask.sum(1, keepdim=True).clamp(min=1)
        per_point = nn.functional.cross_entropy(logits.mT, support.y, reduction="none")
        return (per_point * weight).sum(1)

    with torch.no_grad():
        return descend(fitted.detach(), loss, steps, rate, momentum=MOMENTUM)


def _dense(value: Tensor) -> Tensor:
    return value.dense() if isinstance(value, Factored) else value
