"""Metric per task: class means, and a distance generated from the support set."""

import torch
from torch import Tensor, nn

from weightloom.conditions import class_statistics
from weightloom.hypernets import MLPHyperNetwork
from weightloom.hypernets.head import LearnedScale, full_precision
from weightloom.learners.heads import HeadLearner
from weightloom.learners.shared import SharedChanges
from weightloom.learners.trunks import known_features
from weightloom.params import Params


class HyperMetric(HeadLearner):
    """Nearest class mean under a metric per task, |L (f - c)|, which is generated.

    L = (1 + B A) (1 + diag(d)), where A has ``rank`` rows and B as many columns. The hypernetwork
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
        start = _Start(features, rank)
        self.norm = nn.LayerNorm(3 * features)
        self.hyper = (
            SharedChanges(start)
            if shared
            else MLPHyperNetwork(start, 3 * features, hidden=(hidden,))
        )
        self.scale = LearnedScale(start_scale)

    def metric(self, features: Tensor, labels: Tensor, mask: Tensor) -> Params:
        """Parts of L for each task; arguments as for `head`.

        Returns:
            ``scale``, 1 + d, (tasks, features); ``read``, A, (tasks, rank, features); ``write``, B,
            (tasks, features, rank).
        """
        mean, spread, _ = class_statistics(features, labels, mask, self.ways)
        known = torch.cat([mean.mean(1), mean.std(1), spread.clamp(min=1e-12).sqrt()], dim=1)
        params: Params = self.hyper(self.norm(known))
        return params

    def head(self, features: Tensor, labels: Tensor, mask: Tensor) -> Params:
        """Head from the class means under the metric of each task."""
        with full_precision(features):
            mean, _, shots = class_statistics(features, labels, mask, self.ways)
            metric = self.metric(features, labels, mask)
            each, read, write = metric["scale"][:, None], metric["read"], metric["write"]
            changed = each * mean
            changed = changed + changed @ read.mT @ write.mT
            back = each * (changed + changed @ write @ read)
            scale = self.scale(shots.mean(1))[:, None] / features.shape[2]
            return Params(
                {
                    "head.weight": 2 * scale[..., None] * back,
                    "head.bias": -scale * changed.square().sum(2),
                }
            )


class _Start(nn.Module):
    """Start of the metric: the identity. A is random, so that B has a gradient."""

    def __init__(self, features: int, rank: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features))
        self.read = nn.Parameter(torch.randn(rank, features) / features**0.5)
        self.write = nn.Parameter(torch.zeros(features, rank))
        self.requires_grad_(False).eval()
