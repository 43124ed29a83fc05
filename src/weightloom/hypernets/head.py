"""A linear head, a row per class, generated from what the support set says of the classes."""

import torch
from torch import Tensor, nn

from weightloom.conditions.classes import ClassStatistics
from weightloom.params import Params


def prototype_head(mean: Tensor, gain: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear head that scores a point by its squared distance to each class mean.

    -|f - c|² g = 2 (c g)ᵀ f - (c g)ᵀ c, up to a term that is the same for all classes.

    Args:
        mean: Class means c, (tasks, ways, features).
        gain: How much each feature counts, (tasks, 1, features) or None for 1.

    Returns:
        Weight (tasks, ways, features) and bias (tasks, ways).

    Source:
        Snell, Swersky and Zemel, "Prototypical networks" (2017), section 2.4.
    """
    scaled = mean if gain is None else mean * gain
    return 2 * scaled, -(scaled * mean).sum(-1)


class HeadHyperNetwork(nn.Module):
    """Generate a linear head by one small network that is applied to every feature alike.

    For one feature it reads where the class lies among the classes of its task, how much classes differ in it against
    how much they spread, and the number of shots; it writes by how much to move the class mean and how much the
    feature counts. One generator serves any number of features, classes and shots, and its answer does not depend on
    the order of any. The last layer starts at zero: at step 0 the head is ProtoNet's, a sane network for every task.

    Args:
        name: Name of the head in the base network, a linear layer.
        hidden: Width of the generator.

    Example:
        >>> from weightloom.conditions import class_statistics
        >>> statistics = class_statistics(torch.randn(5, 6, 8), torch.tensor([[0, 0, 1, 1, 2, 2]]).expand(5, -1))
        >>> {name: tuple(value.shape) for name, value in HeadHyperNetwork()(statistics).items()}
        {'head.weight': (5, 3, 8), 'head.bias': (5, 3)}

    Source:
        In the manner of Requeima et al., "Fast and flexible multi-task classification using conditional neural
        adaptive processes" (2019), whose generator is one network over all features; starting as Snell et al. (2017).
    """

    def __init__(self, name: str = "head", hidden: int = 32) -> None:
        super().__init__()
        self.name = name
        self.generator = nn.Sequential(
            nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
        )
        nn.init.zeros_(self.generator[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.generator[-1].bias)  # type: ignore[arg-type]
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, statistics: ClassStatistics) -> Params:
        """Generate ``weight`` (tasks, ways, features) and ``bias`` (tasks, ways) of the head."""
        mean, spread, shots = statistics
        middle = mean.mean(1, keepdim=True)
        apart = (mean - middle).square().mean(1, keepdim=True)
        unit = (apart.mean(2, keepdim=True) + 1e-6).sqrt()
        seen = torch.stack(
            [
                (mean - middle) / unit,
                (middle / unit).expand_as(mean),
                (apart / unit.square() + 1e-4).sqrt().expand_as(mean),
                (spread[:, None] / unit.square() + 1e-4).sqrt().expand_as(mean),
                (1 / (1 + shots))[..., None].expand_as(mean),
            ],
            dim=-1,
        )
        move, gain = self.generator(seen).unbind(-1)
        weight, bias = prototype_head(mean + move * unit, 1 + gain.mean(1, keepdim=True))
        scale = self.log_scale.exp() / mean.shape[2]
        return {f"{self.name}.weight": weight * scale, f"{self.name}.bias": bias * scale}
