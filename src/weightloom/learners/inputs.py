"""Inputs of unknown order: a first layer generated input by input, and the same code read in other ways."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from weightloom.base import apply_per_task
from weightloom.conditions import InputStatistics, input_statistics, statistics_of
from weightloom.conditions.inputs import RELATIONS
from weightloom.errors import ConfigError
from weightloom.hypernets import EquivariantHyperNetwork, standardised
from weightloom.learners.learner import Learner, Support
from weightloom.learners.trunks import misfit
from weightloom.losses import loss_of_those_there
from weightloom.params import Params, sub
from weightloom.tasks import Tasks

CLASSES = 10


class RestoringLearner(Learner):
    """Methods whose base first restores a picture, then reads it.

    In meta-training, where cameras are made, the pictures before the camera are known
    (`Tasks.hidden`): the loss is the cross-entropy of what is read plus a multiple of the squared
    error of what is restored.

    Args:
        base: A sequence; what its first part gives is the restored picture, and the others read it.
        restore: That multiple. With 0 nothing hidden is read.

    Raises:
        ConfigError: If ``base`` is no such sequence; in training, if `Tasks.hidden` does not hold
            the pictures.
    """

    base: nn.Sequential

    def __init__(self, base: nn.Sequential, restore: float = 30.0) -> None:
        super().__init__()
        if not isinstance(base, nn.Sequential) or len(base) < 2:
            fits = "A picture is restored by its first part, and read by the others."
            raise misfit(base, fits, "`nn.Sequential(nn.Linear(inputs, pixels), *reader)`")
        self.base, self.restore = base, restore

    def known(self, support: Support) -> InputStatistics:
        """Statistics of each input of the support set."""
        return input_statistics(support.x, support.y, support.mask, classes=CLASSES)

    def restored(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run the first part of each task's base, (tasks, batch, inputs) to (tasks, batch, pixels)."""
        pictures: Tensor = apply_per_task(self.base[0], sub(params, "0"), x)
        return pictures

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Restore by each task's own parameters, then read by those that all tasks share."""
        logits: Tensor = self.base[1:](self.restored(params, x))
        return logits

    def forward(self, tasks: Tasks) -> Tensor:
        """Return the loss of each task."""
        pictures = self.restored(self.adapt(tasks.support), tasks.query_x)
        reading = self.loss_of(self.base[1:](pictures), tasks.query)
        if not self.restore:
            return reading
        if getattr(tasks.hidden, "shape", None) != pictures.shape:
            raise ConfigError(
                f"`Tasks.hidden` is {_described(tasks.hidden)}. {type(self).__name__} learns to "
                "restore the pictures that were before the camera, which are known where cameras "
                f"are made. Pass `hidden` as {tuple(pictures.shape)}, as `CameraTasks` does, or "
                "build the method with `restore=0`."
            )
        error = loss_of_those_there(_mean_square, pictures, tasks.hidden, tasks.query_mask)
        return reading + self.restore * error


def _mean_square(pictures: Tensor, truth: Tensor) -> Tensor:
    return (pictures - truth).square().mean((1, 2))


def _described(value: object) -> str:
    return (
        f"of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )


class HyperInputs(RestoringLearner):
    """The first layer is generated from the support set, input by input.

    What reads its outputs is shared.

    Args:
        base: A sequence whose first part is a linear layer.
        restore: As for `RestoringLearner`.
        width: Width of a token.
        rounds: As for `EquivariantHyperNetwork`.
    """

    def __init__(
        self, base: nn.Sequential, restore: float = 30.0, width: int = 64, rounds: int = 5
    ) -> None:
        super().__init__(base, restore)
        if not isinstance(base[0], nn.Linear):
            fits = "Its first part is generated, input by input."
            raise misfit(base, fits, "`nn.Sequential(nn.Linear(inputs, pixels), *reader)`")
        base[0].requires_grad_(False)  # every task brings its own
        outputs = len(base[0].get_parameter("weight"))
        self.hyper = EquivariantHyperNetwork(
            "0", outputs, statistics_of(CLASSES), RELATIONS, width=width, rounds=rounds
        )

    def condition(self, support: Support) -> Tensor:
        """The mean token of each task, (tasks, width)."""
        known = self.known(support)
        tokens: Tensor = self.hyper.features(known.tokens, known.relations)
        return tokens.mean(1)

    def adapt(self, support: Support) -> Params:
        """Generate the first layer, what standardises its inputs folded in."""
        known = self.known(support)
        params: Params = self.hyper(known.tokens, known.relations)
        return standardised(params, "0", known.mean, known.scale)


class SharedInputs(RestoringLearner):
    """The same places trained on the same tasks, but shared by all.

    Inputs are only standardised by the support set.

    Args:
        base: A sequence whose first part is a linear layer.
        restore: As for `RestoringLearner`.
    """

    def adapt(self, support: Support) -> Params:
        """Fold what standardises the inputs into the shared layer."""
        known, layer = self.known(support), self.base[0]
        tasks = len(support.x)
        own = {
            f"0.{name}": value.expand(tasks, *value.shape)
            for name, value in layer.named_parameters()
        }
        return standardised(own, "0", known.mean, known.scale)


class CodeReader(nn.Module):
    """Restore a picture from inputs each of which comes with a code.

    One network that all inputs of all tasks share.

    r = V mean_j relu(a z_j + B code_j + c) + b, with z_j the standardised input.

    Args:
        inputs: How many inputs there are.
        outputs: Pixels of the picture.
        code_dim: Width of a code.
        hidden: Width of the network.
    """

    def __init__(self, inputs: int, outputs: int, code_dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(inputs), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(inputs), requires_grad=False)
        self.code = nn.Parameter(torch.zeros(inputs, code_dim), requires_grad=False)
        self.of_value = nn.Parameter(torch.randn(hidden))
        self.of_code = nn.Linear(code_dim, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Restore, (batch, inputs) to (batch, outputs)."""
        values = (x - self.mean) / self.scale
        seen = relu(values[..., None] * self.of_value + self.of_code(self.code))
        pictures: Tensor = self.out(relu(self.mix(seen.mean(-2))))
        return pictures


class CodeInputs(RestoringLearner):
    """The encoder of `HyperInputs`, its tokens read as inputs beside the values that they are about, not as weights.

    Args:
        base: A sequence whose first part is a `CodeReader`.
        restore: As for `RestoringLearner`.
        width: Width of a token.
    """

    def __init__(self, base: nn.Sequential, restore: float = 30.0, width: int = 64) -> None:
        super().__init__(base, restore)
        if not isinstance(base[0], CodeReader):
            fits = "Its first part reads a code beside each input."
            raise misfit(
                base, fits, "`nn.Sequential(CodeReader(inputs, pixels, code_dim), *reader)`"
            )
        self.encoder = EquivariantHyperNetwork(
            "0", 1, statistics_of(CLASSES), RELATIONS, width=width
        )
        self.encoder.writer.requires_grad_(False)  # nothing is written
        self.encoder.bias.requires_grad_(False)

    def adapt(self, support: Support) -> Params:
        """The codes, and what standardises the inputs, are all that is of the task."""
        known = self.known(support)
        code = self.encoder.features(known.tokens, known.relations)
        return Params({"0.code": code, "0.mean": known.mean, "0.scale": known.scale})
