"""Methods that adapt the last layers of MiniLM to classes described by names and examples.

In:   an `Episode`, tasks as numbers of texts.
Out:  parameters of the last layers, features, logits.
Knows nothing of data sets, scores and training loops.
"""

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from weightloom.adapt import descend
from weightloom.apps.transfer.problems.sentences.heads import (
    SCALE,
    Head,
    fitted_head,
    left_out_loss,
    mean_head,
    mixed_head,
)
from weightloom.apps.transfer.problems.sentences.states import States, Tail
from weightloom.apps.transfer.problems.sentences.tasks import Episode
from weightloom.base import per_task
from weightloom.conditions import DeepSets, class_statistics
from weightloom.forms import Factored, LowRank
from weightloom.hypernets import AdapterHyperNetwork
from weightloom.hypernets.head import LearnedScale, prototype_head
from weightloom.losses import cross_entropy_per_task
from weightloom.params import Params
from weightloom.platforms import processor_knows_bf16

MATRICES = ("*query.weight", "*key.weight", "*value.weight", "*dense.weight")
"""Weights of the last layers that a low-rank change is written for, six in each."""
MOMENTS = (0.9, 0.999)
"""Decay rates of Adam."""
GAIN = 10.0
"""Rate of the learned step sizes, in units of the learning rate."""


class Method(nn.Module):
    """A way to adapt the last layers. This one leaves them as they are, under a fitted head.

    Args:
        states: States of all texts.
        tail: The last layers; copied, so that methods do not share what they train.
    """

    trained: ClassVar[bool] = False
    reads: ClassVar[bool] = False
    steps: ClassVar[int] = 0
    """Gradient steps on a target, where the row of the table asks for none."""
    inner_lr: ClassVar[float] = 2e-4
    """Learning rate of gradient steps on a target."""
    fits: ClassVar[bool] = True
    """Take gradient steps on a target; False leaves the source as it is."""
    mixes: ClassVar[bool] = True
    """Mix the head of class means with a ridge head."""

    def __init__(self, states: States, tail: Tail) -> None:
        super().__init__()
        self.states = states
        self.tail = copy.deepcopy(tail).requires_grad_(False)
        self.run = per_task(self.tail)

    def head(self, episode: Episode, features: Tensor, params: Params | None) -> Head:
        """Return the head of each task.

        Its temperature and mixture are chosen on the features of the shared weights: those that
        were adapted to the known texts would tell them apart too well.

        Args:
            episode: Tasks.
            features: Features of their known texts.
            params: Parameters of each task that gave these; None for the shared ones.
        """
        judged = None if params is None else self.features(episode.support)
        return (mixed_head if self.mixes else mean_head)(features, episode.support_y, judged)

    def shared(self) -> dict[str, Tensor]:
        """Return the parameters of the last layers that all tasks share, by name."""
        return dict(self.tail.named_parameters())

    def condition(self, episode: Episode) -> Params | None:
        """Read the known texts of each task; None for a method that reads no condition."""
        return None

    def write(self, condition: Params) -> Params:
        """Write parameters of the last layers from a condition.

        Raises:
            NotImplementedError: For a method that reads no condition.
        """
        raise NotImplementedError(type(self).__name__)

    def adapt(self, episode: Episode, condition: Params | None = None) -> Params | None:
        """Return parameters of each task; None where all tasks share them.

        Args:
            episode: Tasks.
            condition: Condition to read in place of that of the tasks.
        """
        condition = self.condition(episode) if condition is None else condition
        return None if condition is None else self.write(condition)

    def start(self, tasks: int) -> Params:
        """Return the shared parameters of the last layers for each task, to be fitted."""
        return Params({n: its.expand(tasks, *its.shape) for n, its in self.shared().items()})

    def fitted(self, episode: Episode, params: Params | None, steps: int) -> Params | None:
        """Take gradient steps of Adam on the left-out loss of the known texts of each task.

        Args:
            episode: Tasks.
            params: Parameters to start from; None for the shared ones.
            steps: Steps; with 0, or one known text per class, nothing changes.
        """
        alone = episode.support.shape[1] == episode.ways
        if not (self.fits and steps) or alone:
            return params
        start = self.start(len(episode.support)) if params is None else params

        def loss(its: Params) -> Tensor:
            return left_out_loss(self.features(episode.support, its), episode.support_y)

        return descend(start, loss, steps, self.inner_lr, first_order=True, momentum=MOMENTS)

    def features(
        self, texts: Int[Tensor, "tasks texts"], params: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "tasks texts width"]:
        """Return the features of texts.

        Texts are read in parts of similar length, so that little is padded. Layers compute in
        bfloat16 where the processor can, as the frozen layers do; weights stay in float32.

        Args:
            texts: Numbers of texts.
            params: Parameters of each task; None for the shared ones.
        """
        order = self.states.lengths[texts].argsort(1)
        parts = []
        with torch.autocast("cpu", torch.bfloat16, enabled=processor_knows_bf16()):
            for part in order.split(96, dim=1):
                states, there = self.states.read(texts.gather(1, part))
                if params is None:
                    flat = (states.flatten(0, 1), there.flatten(0, 1))
                    found = functional_call(self.tail, self.shared(), flat)
                    parts.append(found.unflatten(0, texts.shape[:1] + part.shape[1:]))
                else:
                    parts.append(self.run(params, states, there))
        features = torch.cat(parts, 1).float()
        return features.gather(1, order.argsort(1)[..., None].expand_as(features))

    def forward(self, episode: Episode) -> Float[Tensor, " tasks"]:
        """Loss of each task: its queries, classified by the means of its known texts."""
        known = episode.support.shape[1]
        both = torch.cat([episode.support, episode.query], 1)
        features = self.features(both, self.adapt(episode))
        statistics = class_statistics(features[:, :known], episode.support_y, ways=episode.ways)
        weight, bias = prototype_head(statistics.mean)
        logits = SCALE * (features[:, known:] @ weight.mT + bias[:, None])
        return cross_entropy_per_task(logits, episode.query_y)


class Source(Method):
    """The source itself: a text belongs to the class with the nearest mean, name included."""

    fits = mixes = False


class Probe(Method):
    """A last linear layer in closed form, on the features of the source."""

    fits = False


class LastLayer(Probe):
    """A last linear layer, fitted by gradient steps on the features of the source."""

    def head(self, episode: Episode, features: Tensor, params: Params | None) -> Head:
        """Fit the layer to the known texts."""
        return fitted_head(features, episode.support_y)


class SharedFineTune(Method):
    """The last layers, fine-tuned once on all training tasks."""

    trained = True

    def __init__(self, states: States, tail: Tail) -> None:
        super().__init__(states, tail)
        self.tail.requires_grad_(True)


class SharedThenFineTune(SharedFineTune):
    """The last layers, fine-tuned once on all training tasks, and then on each target."""

    steps = 5


class SharedAdapter(Method):
    """One low-rank change of the last layers for all tasks, trained on all training tasks.

    Args:
        states: States of all texts.
        tail: The last layers.
        rank: Rank of the change.

    Source:
        Hu et al., "LoRA" (2022).
    """

    trained = True

    def __init__(self, states: States, tail: Tail, rank: int = 4) -> None:
        super().__init__(states, tail)
        self.form = LowRank(rank)
        self.names = [n for n, its in self.tail.named_parameters() if its.ndim == 2]
        shapes = [self.tail.get_parameter(name).shape for name in self.names]
        self.ups = nn.ParameterList(torch.zeros(rows, rank) for rows, _ in shapes)
        self.downs = nn.ParameterList(torch.randn(rank, n) / n**0.5 for _, n in shapes)

    def shared(self) -> dict[str, Tensor]:
        """Return the last layers with the change added."""
        own = dict(self.tail.named_parameters())
        changes = zip(self.names, self.ups, self.downs, strict=True)
        return own | {name: own[name] + up @ down for name, up, down in changes}


class FineTune(Method):
    """All weights of the last layers, fitted to the known texts of each target."""

    steps = 5


class LowRankFineTune(SharedAdapter):
    """A low-rank change from scratch, fitted to the known texts of each target."""

    trained = False
    steps = 5
    inner_lr = 1e-3

    def start(self, tasks: int) -> Params:
        """Return a change of zero for each task, as factors."""
        values = dict[str, Tensor]()
        for name, up, down in zip(self.names, self.ups, self.downs, strict=True):
            factors = {"up": up.expand(tasks, *up.shape), "down": down.expand(tasks, *down.shape)}
            values[name] = Factored(self.form, self.tail.get_parameter(name), factors)
        return Params(values)


class GeneratedAdapter(Method):
    """Low-rank changes of the frozen last layers, written from the names and examples of a task.

    Args:
        states: States of all texts.
        tail: The last layers.
        rank: Rank of the changes.
        width: Width of the hypernetwork and of the condition.
    """

    trained = reads = True

    def __init__(self, states: States, tail: Tail, rank: int = 4, width: int = 64) -> None:
        super().__init__(states, tail)
        self.encode = DeepSets(states.width, states.width, width)
        self.hyper = AdapterHyperNetwork(self.tail, width, list(MATRICES), LowRank(rank), width)

    def condition(self, episode: Episode) -> Params:
        """Encode the set of known texts, each beside the name of its class."""
        with torch.no_grad():
            features = self.features(episode.support)
        named = features[:, -episode.ways :]
        beside = named.gather(1, episode.support_y[..., None].expand_as(features))
        size = features.shape[2] ** 0.5
        return Params(condition=self.encode(size * features, size * beside))

    def write(self, condition: Params) -> Params:
        """Write the factors of every matrix."""
        return self.hyper(condition["condition"])


class GeneratedStep(SharedFineTune):
    """Changes of all weights of the last layers, written from the gradient of each task.

    The condition of a task is the gradient of `left_out_loss` of its known texts in the weights,
    each divided by its root mean square, times a size that is learned per number of examples. The
    change of a weight is this condition times a learned factor for each row and each column, and a
    learned size. All these and the shared weights are trained together, so that one pass does
    the work of several gradient steps on a target. With names alone the condition is zero, and the
    shared weights remain.

    Args:
        states: States of all texts.
        tail: The last layers.
        size: Root mean square of a change before training.

    Source:
        Mitchell et al., "Fast model editing at scale" (2022): changes written from gradients;
        Park and Oliva, "Meta-curvature" (2019): factors by row and column. Gradients are those of a
        left-out loss here, and constants in training, as in first-order MAML.
    """

    reads = True

    def __init__(self, states: States, tail: Tail, size: float = 5e-4) -> None:
        super().__init__(states, tail)
        weights = list(self.tail.parameters())
        self.size = LearnedScale(size, per_shots=True)
        self.sizes = nn.Parameter(torch.zeros(len(weights)))
        self.rows = nn.ParameterList(torch.zeros(its.shape[0]) for its in weights)
        self.columns = nn.ParameterList(torch.zeros(its.shape[-1]) for its in weights)

    def condition(self, episode: Episode) -> Params:
        """Return the gradient of the left-out loss of each task, of learned size."""
        tasks = len(episode.support)
        weights = {n: its.detach() for n, its in self.shared().items()}
        params = {n: its.expand(tasks, *its.shape).requires_grad_() for n, its in weights.items()}
        with torch.enable_grad():
            loss = left_out_loss(self.features(episode.support, params), episode.support_y)
            found = torch.autograd.grad(loss.sum(), list(params.values()))
        shots = episode.support.shape[1] / episode.ways
        size = self.size(loss.new_full((tasks,), shots))
        units = {name: _unit(its) for name, its in zip(params, found, strict=True)}
        return Params({name: _each(size, its) * its for name, its in units.items()})

    def write(self, condition: Params) -> Params:
        """Subtract the condition, scaled by row and column, from the shared weights."""
        written = dict[str, Tensor]()
        sizes = (GAIN * self.sizes).exp()
        each = zip(condition.items(), sizes, self.rows, self.columns, strict=True)
        for (name, its), size, rows, columns in each:
            scale = 1 + GAIN * rows
            if its.ndim == 3:
                scale = scale[:, None] * (1 + GAIN * columns)
            written[name] = self.tail.get_parameter(name) - size * scale * its
        return Params(written)


def _unit(gradient: Tensor) -> Tensor:
    """Scale the gradient of each task to a root mean square of 1; zero stays zero."""
    size = gradient.flatten(1).square().mean(1).sqrt().clamp(min=1e-12)
    return gradient / _each(size, gradient)


def _each(numbers: Tensor, values: Tensor) -> Tensor:
    """Give the numbers of tasks as many axes as their values have."""
    return numbers.view(-1, *[1] * (values.ndim - 1))
