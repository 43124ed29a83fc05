"""Encode the weights of other models as a condition, for models of any width and depth.

In:   weights by name, each with a leading tasks axis: one model per task.
Out:  statistics of each layer, the linear path from inputs to outputs, or a condition,
      (tasks, condition_dim); none depends on the order of hidden neurons.
Knows nothing of the data that the models were trained on.
"""

from collections.abc import Mapping
from math import log

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from weightloom.conditions.support import DeepSets
from weightloom.errors import ConfigError, ShapeError

QUANTILES = 7
"""Order statistics of each kind: of norms of rows and of columns, and of the bias."""
MOMENTS = 6
"""Moments of the weights of a layer."""
DIRECTIONS = 8
"""Number of the largest singular values in the statistics of a layer."""
STATISTICS = MOMENTS + 3 * QUANTILES + DIRECTIONS + 4
"""Numbers that describe a layer."""
PLACES = 3
"""Numbers that place a layer: its depth from 0 to 1, and flags for the first and the last layer."""


class WeightEncoder(nn.Module):
    """Encode the weights of one model per task: statistics of its layers, and its linear path.

    Each layer is a point, its statistics and its place in the model, and `DeepSets` encodes the set
    of layers. So one encoder reads models of any width and depth, and permuting their hidden
    neurons changes nothing. Statistics do not tell which input feeds which output; `linear_path`
    does, for a chain of linear layers, and is read if ``ends`` is given.

    Args:
        condition_dim: Width of the condition.
        ends: Inputs and outputs of the models, which must then be chains of linear layers that
            share these two. None: only the statistics are read, of models of any kind.
        hidden: Width of the encoder's networks.

    Example:
        >>> from weightloom.params import Params
        >>> encode = WeightEncoder(condition_dim=16, ends=(8, 3))
        >>> narrow = Params({"0.weight": torch.randn(5, 20, 8), "2.weight": torch.randn(5, 3, 20)})
        >>> wide = Params({"0.weight": torch.randn(2, 90, 8), "2.weight": torch.randn(2, 3, 90)})
        >>> encode(narrow).shape, encode(wide).shape
        (torch.Size([5, 16]), torch.Size([2, 16]))

    Source:
        Statistics per layer: Unterthiner et al., "Predicting neural network accuracy from weights"
        (2020), there quantiles, mean and variance of all weights. Norms of rows and columns,
        singular values and the path are ours.
    """

    def __init__(
        self, condition_dim: int, ends: tuple[int, int] | None = None, hidden: int = 128
    ) -> None:
        super().__init__()
        self.condition_dim, self.ends = condition_dim, ends
        self.layers = DeepSets(STATISTICS, PLACES, condition_dim, hidden)
        self.path = nn.Linear(ends[0] * ends[1], condition_dim) if ends else None

    def forward(self, weights: Mapping[str, Tensor]) -> Float[Tensor, "tasks condition_dim"]:
        """Encode one model per task.

        Args:
            weights: Parameters of the models by name, in the order of the data's way through them,
                each (tasks, *shape).

        Raises:
            ConfigError: If no parameter is a matrix or kernel, or the layers are no chain.
            ShapeError: If the ends of the models are not those of construction.
        """
        statistics, places = layer_statistics(weights)
        condition: Tensor = self.layers(statistics, places)
        if self.path is None or self.ends is None:
            return condition
        path = linear_path(weights)
        check_ends(path, self.ends)
        return condition + self.path(path.flatten(1) / _rms(path.flatten(1)))


def layer_statistics(
    weights: Mapping[str, Tensor],
) -> tuple[Float[Tensor, "tasks layers statistics"], Float[Tensor, "tasks layers places"]]:
    """Describe each layer of one model per task by numbers that any order of neurons shares.

    In units of the root mean square of its weights, they are the mean, mean absolute value, third
    and fourth moment, smallest and largest weight; order statistics, from the smallest to the
    largest, of the norms of rows and of columns and of the bias; the share of each of the largest
    singular values in the norm; the logarithms of the root mean square and of both sides; and a
    flag for a bias.

    Args:
        weights: Parameters by name, each (tasks, *shape). Each with at least two axes of its own is
            the weight of a layer, a kernel as a matrix of its first axis against all others; its
            bias has the same name but for its end, ``bias``.

    Returns:
        Statistics, (tasks, layers, `STATISTICS`), and places, (tasks, layers, `PLACES`): depth from
        0 to 1, flags for the first and the last layer.

    Raises:
        ConfigError: If no parameter has two axes.

    Example:
        >>> weight, order = torch.randn(1, 6, 4), torch.randperm(6)
        >>> known, _ = layer_statistics({"weight": weight})
        >>> permuted, _ = layer_statistics({"weight": weight[:, order]})
        >>> torch.allclose(known, permuted, atol=1e-5)
        True
    """
    names = _layers(weights)
    of_layers = [
        _of_layer(weights[name].flatten(2), weights.get(f"{name.removesuffix('weight')}bias"))
        for name in names
    ]
    depth = torch.linspace(0, 1, len(names)) if len(names) > 1 else torch.zeros(1)
    ends = torch.zeros(len(names), 2)
    ends[0, 0] = ends[-1, 1] = 1
    statistics = torch.stack(of_layers, 1)
    places = torch.cat([depth[:, None], ends], 1).to(statistics)
    return statistics, places.expand(len(statistics), -1, -1)


def linear_path(weights: Mapping[str, Tensor]) -> Float[Tensor, "tasks outputs inputs"]:
    """Multiply the weights of a chain of linear layers, from the last to the first.

    It is the function that the model would compute without activations and biases: row c is a
    template of output c over the inputs. Sums over hidden neurons have no order.

    Args:
        weights: Parameters by name, in the order of the data's way, each (tasks, *shape).

    Raises:
        ConfigError: If a weight has more than two axes of its own, or its columns are not the rows
            of the one before.

    Example:
        >>> chain = {"0.weight": torch.ones(1, 5, 2), "2.weight": torch.ones(1, 3, 5)}
        >>> linear_path(chain).shape, linear_path(chain)[0, 0, 0].item()
        (torch.Size([1, 3, 2]), 5.0)
    """
    names = _layers(weights)
    path: Tensor | None = None
    for name in names:
        weight = weights[name]
        if weight.ndim != 3 or (path is not None and weight.shape[2] != path.shape[1]):
            after = "" if path is None else f" after {tuple(path.shape[1:])}"
            raise ConfigError(
                f"`{name}` is {tuple(weight.shape[1:])}{after}. A linear path multiplies matrices: "
                "the columns of each are the rows of the one before. Pass `ends=None` to read "
                "statistics of the layers alone."
            )
        path = weight if path is None else weight @ path
    assert path is not None
    return path


def check_ends(path: Float[Tensor, "tasks outputs inputs"], ends: tuple[int, int]) -> None:
    """Raise a `ShapeError` unless models have the inputs and outputs that a reader was built for.

    Args:
        path: Their linear path.
        ends: Inputs and outputs.
    """
    outputs, inputs = path.shape[1:]
    if (inputs, outputs) != tuple(ends):
        raise ShapeError(
            f"The source reads {inputs} inputs and knows {outputs} labels, but the target has "
            f"{ends[0]} inputs and {ends[1]} labels. The change is written in the coordinates of "
            "both ends, so these are equal in all sources; hidden layers may differ. Pass a source "
            f"of {ends[0]} inputs and {ends[1]} labels, or build for `ends=({inputs}, {outputs})`."
        )


def _layers(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters that are weights of layers."""
    names = [name for name, value in weights.items() if value.ndim > 2]
    if not names:
        raise ConfigError(
            f"`weights` holds no matrix, only {list(weights)}. Each value has a tasks axis in "
            "front of its own, and a layer's weight has two of its own. Pass `value[None]` for one "
            "model."
        )
    return names


def _of_layer(
    matrix: Float[Tensor, "tasks rows columns"], bias: Tensor | None
) -> Float[Tensor, "tasks statistics"]:
    """Describe one layer of each task; sorting all weights would cost more than all else."""
    tasks, rows, columns = matrix.shape
    scale = _rms(matrix.flatten(1))
    unit = matrix.flatten(1) / scale
    moments = (unit, unit.abs(), unit.pow(3), unit.pow(4))
    parts = [torch.stack([*(its.mean(1) for its in moments), unit.amin(1), unit.amax(1)], 1)]
    for axis, length in ((2, columns), (1, rows)):
        parts.append(_ordered(matrix.norm(dim=axis) / (scale * length**0.5)))
    none = matrix.new_zeros(tasks, QUANTILES)
    parts.append(none if bias is None else _ordered(bias.flatten(1) / scale))
    sizes = torch.linalg.svdvals(matrix)[:, :DIRECTIONS]
    shares = sizes / (scale * (rows * columns) ** 0.5)
    parts.append(pad(shares, (0, DIRECTIONS - shares.shape[1])))
    sides = matrix.new_tensor([log(rows) / 4, log(columns) / 4, float(bias is not None)])
    return torch.cat([*parts, scale.log(), sides.expand(tasks, -1)], 1)


def _ordered(values: Float[Tensor, "tasks numbers"]) -> Float[Tensor, "tasks quantiles"]:
    """Order statistics at evenly spaced ranks, from the smallest to the largest."""
    ranks = torch.linspace(0, values.shape[1] - 1, QUANTILES, device=values.device).round().long()
    return values.sort(1).values[:, ranks]


def _rms(values: Float[Tensor, "tasks numbers"]) -> Float[Tensor, "tasks one"]:
    """Root mean square of each row, at least 1e-12."""
    return values.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
