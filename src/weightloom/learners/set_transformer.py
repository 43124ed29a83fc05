"""Class means changed by attention over the support set."""

from torch import Tensor, nn

from weightloom.conditions import class_statistics
from weightloom.conditions.attention import attention
from weightloom.hypernets.head import LearnedScale
from weightloom.learners.heads import HeadLearner, scaled_prototypes
from weightloom.learners.trunks import known_features
from weightloom.params import Params


class SupportTransformer(HeadLearner):
    """Nearest class mean, after one layer of self-attention has changed the means.

    Each mean attends to the means of all classes of the task; the result is added to it. The last
    layer starts at zero, so step 0 is a prototypical network.

    Args:
        base: As for `HeadLearner`; the width of its features must be known.
        start_scale: Scale of the logits at step 0.
        width: Width of queries, keys and values.

    Raises:
        ConfigError: If the width of the features is unknown.

    Source:
        Ye et al., "Few-shot learning via embedding adaptation with set-to-set functions" (2020),
        FEAT. Here the tokens are normalised and not the sum, so that training starts from the
        class means.
    """

    def __init__(self, base: nn.Module, start_scale: float = 1.0, width: int = 128) -> None:
        super().__init__(base)
        features = known_features(self.base, type(self).__name__)
        self.norm = nn.LayerNorm(features)
        self.read = nn.Linear(features, 3 * width, bias=False)
        self.write = nn.Linear(width, features, bias=False)
        nn.init.zeros_(self.write.weight)
        self.scale = LearnedScale(start_scale)

    def head(self, features: Tensor, labels: Tensor, mask: Tensor) -> Params:
        """Head from the changed class means."""
        statistics = class_statistics(features, labels, mask, self.ways)
        mean = statistics.mean
        query, key, value = self.read(self.norm(mean)).chunk(3, dim=2)
        change = self.write(attention(query, key, value))
        return scaled_prototypes(statistics._replace(mean=mean + change), self.scale)
