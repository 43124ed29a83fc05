"""Methods for inputs of unknown order: a first layer generated per input, and two comparators."""

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
"""Number of classes over all tasks."""


class RestoringLearner(Learner):
    """Base class of methods whose base first restores an image, then classifies it.

    Cameras in meta-training are simulated, so the images before the camera are known
    (`Tasks.hidden`). The loss is the cross-entropy of the classification plus ``restore`` times the
    mean squared error of the restored image.

    Args:
        base: A sequence: its first part outputs the restored image, the others classify it.
        restore: Weight of the restoration error. 0: `Tasks.hidden` is not read.

    Raises:
        ConfigError: If ``base`` is no such sequence; in training, if `Tasks.hidden` does not hold
            the images.
    """

    base: nn.Sequential

    def __init__(self, base: nn.Sequential, restore: float = 30.0) -> None:
        super().__init__()
        if not isinstance(base, nn.Sequential) or len(base) < 2:
            fits = "Its first part restores an image, and the others classify it."
            raise misfit(base, fits, "`nn.Sequential(nn.Linear(inputs, pixels), *reader)`")
        self.base, self.restore = base, restore

    def known(self, support: Support) -> InputStatistics:
        """Statistics of each input of the support set."""
        return input_statistics(support.x, support.y, support.mask, classes=CLASSES)

    def restored(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Restored images: (tasks, batch, inputs) to (tasks, batch, pixels)."""
        pictures: Tensor = apply_per_task(self.base[0], sub(params, "0"), x)
        return pictures

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Restore images with each task's parameters, then classify them with shared parameters."""
        logits: Tensor = self.base[1:](self.restored(params, x))
        return logits

    def forward(self, tasks: Tasks) -> Tensor:
        """Loss of each task: cross-entropy plus the weighted restoration error.

        Raises:
            ConfigError: If `Tasks.hidden` does not have the shape of the restored images.
        """
        pictures = self.restored(self.adapt(tasks.support), tasks.query_x)
        reading = self.loss_of(self.base[1:](pictures), tasks.query)
        if not self.restore:
            return reading
        if getattr(tasks.hidden, "shape", None) != pictures.shape:
            raise ConfigError(
                f"`Tasks.hidden` is {_described(tasks.hidden)}. {type(self).__name__} learns to "
                "restore the images before the camera, which are known for simulated cameras. "
                f"Pass `hidden` as {tuple(pictures.shape)}, as `CameraTasks` does, or build the "
                "method with `restore=0`."
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
    """First layer generated from the support set, per input; all later layers are shared.

    Args:
        base: A sequence whose first part is a linear layer.
        restore: As for `RestoringLearner`.
        width: Width of a token.
        rounds: As for `EquivariantHyperNetwork`.

    Raises:
        ConfigError: If ``base`` is no such sequence.
    """

    def __init__(
        self, base: nn.Sequential, restore: float = 30.0, width: int = 64, rounds: int = 5
    ) -> None:
        super().__init__(base, restore)
        if not isinstance(base[0], nn.Linear):
            fits = "Its first part is generated, per input."
            raise misfit(base, fits, "`nn.Sequential(nn.Linear(inputs, pixels), *reader)`")
        base[0].requires_grad_(False)  # generated for every task
        outputs = len(base[0].get_parameter("weight"))
        self.hyper = EquivariantHyperNetwork(
            "0", outputs, statistics_of(CLASSES), RELATIONS, width=width, rounds=rounds
        )

    def condition(self, support: Support) -> Tensor:
        """Mean token of each task, (tasks, width)."""
        known = self.known(support)
        tokens: Tensor = self.hyper.features(known.tokens, known.relations)
        return tokens.mean(1)

    def adapt(self, support: Support) -> Params:
        """Generate the first layer, with the standardisation of its inputs folded in."""
        known = self.known(support)
        params: Params = self.hyper(known.tokens, known.relations)
        return standardised(params, "0", known.mean, known.scale)


class SharedInputs(RestoringLearner):
    """Comparator of `HyperInputs`: the first layer is trained and shared by all tasks.

    The support set only standardises the inputs.

    Args:
        base: A sequence whose first part is a linear layer.
        restore: As for `RestoringLearner`.
    """

    def adapt(self, support: Support) -> Params:
        """Fold the standardisation of the inputs into the shared layer."""
        known, layer = self.known(support), self.base[0]
        tasks = len(support.x)
        own = {
            f"0.{name}": value.expand(tasks, *value.shape)
            for name, value in layer.named_parameters()
        }
        return standardised(own, "0", known.mean, known.scale)


class CodeReader(nn.Module):
    """Restore an image from inputs and a code of each input, by one network for all tasks.

    The mean of relu(a z_j + B code_j + c) over inputs j, with z_j the standardised input, goes
    through two more linear layers with a ReLU between them.

    Args:
        inputs: Number of inputs.
        outputs: Pixels of the image.
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
        """Restored images: (batch, inputs) to (batch, outputs)."""
        values = (x - self.mean) / self.scale
        seen = relu(values[..., None] * self.of_value + self.of_code(self.code))
        pictures: Tensor = self.out(relu(self.mix(seen.mean(-2))))
        return pictures


class CodeInputs(RestoringLearner):
    """Comparator of `HyperInputs`: the tokens of its encoder are inputs of the base, not weights.

    Args:
        base: A sequence whose first part is a `CodeReader`.
        restore: As for `RestoringLearner`.
        width: Width of a token.

    Raises:
        ConfigError: If ``base`` is no such sequence.
    """

    def __init__(self, base: nn.Sequential, restore: float = 30.0, width: int = 64) -> None:
        super().__init__(base, restore)
        if not isinstance(base[0], CodeReader):
            fits = "Its first part reads a code with each input."
            raise misfit(
                base, fits, "`nn.Sequential(CodeReader(inputs, pixels, code_dim), *reader)`"
            )
        self.encoder = EquivariantHyperNetwork(
            "0", 1, statistics_of(CLASSES), RELATIONS, width=width
        )
        self.encoder.writer.requires_grad_(False)  # only its tokens are used
        self.encoder.bias.requires_grad_(False)

    def adapt(self, support: Support) -> Params:
        """Code of each input, and mean and scale of the inputs."""
        known = self.known(support)
        code = self.encoder.features(known.tokens, known.relations)
        return Params({"0.code": code, "0.mean": known.mean, "0.scale": known.scale})
