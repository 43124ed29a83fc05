"""Metric per task: class means, and a distance generated from the support set."""

import torch
from torch import Tensor, nn

from weightloom.conditions import class_statistics
from weightloom.forms.full import Full
from weightloom.forms.low_rank import LowRank
from weightloom.hypernets import MLPHyperNetwork
from weightloom.hypernets.head import full_precision
from weightloom.learners.heads import HeadLearner
from weightloom.learners.shared import SharedChanges
from weightloom.learners.trunks import known_features
from weightloom.params import Params


class HyperMetric(HeadLearner):
    """Nearest class mean under a metric per task, |L (f - c)|, which is generated.

    L = (1 + B A) (1 + diag(d)), where A and B have ``rank`` rows and columns. The hypernetwork
    reads mean and standard deviation of the class means and the standard deviation within classes,
    per feature. L starts at the identity, so step 0 is a prototypical network. The head is linear
    in the features: its rows are 2 Lᵀ L c, its biases -|L c|².

    Args:
        base: As for `HeadLearner`; the width of its features must be known.
        rank: Rank of the change that mixes features.
        start_scale: Scale of the logits at step 0.
        hidden: Width of the hidden layer between statistics and metric.
        shared: Learn one metric for all tasks instead, as a control.

    Raises:
        ConfigError: If the width of the features is unknown.

    Source:
        A metric per task from the support set: Bateni et al., "Improved few-shot visual
        classification" (2020), who estimate a covariance in closed form.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int = 4,
        start_scale: float = 1.0,
        hidden: int = 64,
        shared: bool = False,
    ) -> None:
        super().__init__(base)
        features = known_features(self.base, type(self).__name__)
        metric = _Metric(features)
        places = {"scale": Full(), "mix": LowRank(rank)}
        self.norm = nn.LayerNorm(3 * features)
        self.hyper = (
            SharedChanges(metric, places)
            if shared
            else MLPHyperNetwork(metric, 3 * features, generate=places, hidden=(hidden,))
        )
        self.log_scale = nn.Parameter(torch.tensor(start_scale).log())

    def metric(self, features: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Matrix L of each task, (tasks, features, features); arguments as for `head`."""
        mean, spread, _ = class_statistics(features, labels, mask, self.ways)
        known = torch.cat([mean.mean(1), mean.std(1), spread.clamp(min=1e-12).sqrt()], dim=1)
        params = self.hyper(self.norm(known))
        matrix: Tensor = params["mix"] * params["scale"][:, None]
        return matrix

    def head(self, features: Tensor, labels: Tensor, mask: Tensor) -> Params:
        """Head from the class means under the metric of each task."""
        with full_precision(features):
            matrix = self.metric(features, labels, mask)
            mean = class_statistics(features, labels, mask, self.ways).mean
            changed = mean @ matrix.mT
            scale = self.log_scale.exp() / features.shape[2]
            return Params(
                {
                    "head.weight": 2 * scale * changed @ matrix,
                    "head.bias": -scale * changed.square().sum(2),
                }
            )


class _Metric(nn.Module):
    """Own values of the metric: the identity, not trained."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features), requires_grad=False)
        self.mix = nn.Parameter(torch.eye(features), requires_grad=False)
        self.eval()
