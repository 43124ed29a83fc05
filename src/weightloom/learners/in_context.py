"""In-context classification: a transformer reads the support set and the queries together."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from weightloom.conditions import input_statistics
from weightloom.conditions.support import AttentionBlock
from weightloom.learners.learner import Learner, Support
from weightloom.learners.trunks import misfit
from weightloom.params import Params


class ContextReader(nn.Module):
    """Transformer that classifies queries in the context of support examples, its parameters.

    Queries attend to support examples only, so predictions do not depend on the other queries.

    Args:
        inputs: Width of an input.
        classes: Number of classes over all tasks.
        width: Width of a token.
        layers: Number of attention blocks.
    """

    def __init__(self, inputs: int, classes: int, width: int = 128, layers: int = 4) -> None:
        super().__init__()
        self.classes = classes
        self.support_x = nn.Parameter(torch.zeros(1, inputs), requires_grad=False)
        self.support_y = nn.Parameter(torch.zeros(1, classes), requires_grad=False)
        self.read_x, self.read_y = nn.Linear(inputs, width), nn.Linear(classes, width)
        self.blocks = nn.ModuleList(AttentionBlock(width) for _ in range(layers))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits for the queries of one task: (batch, inputs) to (batch, classes)."""
        there = torch.ones(1, len(self.support_x), dtype=torch.bool, device=x.device)
        return self.classify(x[None], self.support_x[None], self.support_y[None], there)[0]

    def classify(self, x: Tensor, support_x: Tensor, support_y: Tensor, there: Tensor) -> Tensor:
        """Logits for the queries of several tasks: (tasks, batch, classes).

        Args:
            x: Standardised queries, (tasks, batch, inputs).
            support_x: Standardised support inputs, (tasks, shots, inputs).
            support_y: One-hot labels, (tasks, shots, classes); zeros for an unknown label.
            there: True for real support examples, (tasks, shots).
        """
        context = self.read_x(support_x) + self.read_y(support_y)
        tokens = torch.cat([context, self.read_x(x)], dim=1)
        read = torch.cat([there, there.new_zeros(x.shape[:2])], dim=1)
        for block in self.blocks:
            tokens = block(tokens, read)
        logits: Tensor = self.out(tokens[:, context.shape[1] :])
        return logits


class InContext(Learner):
    """In-context learner: a transformer over standardised inputs and labels; no generated weights.

    Args:
        base: The transformer.

    Raises:
        ConfigError: If ``base`` is not a `ContextReader`.

    Source:
        Müller et al., "Transformers can do Bayesian inference" (2022), here with class labels.
    """

    base: ContextReader

    def __init__(self, base: ContextReader) -> None:
        super().__init__()
        if not isinstance(base, ContextReader):
            fits = "One network reads support and queries together, and holds the support set."
            raise misfit(base, fits, "`ContextReader(inputs, classes)`")
        self.base = base

    def adapt(self, support: Support) -> Params:
        """Standardised support set, and the mean and scale to standardise queries."""
        known = input_statistics(support.x, support.y, support.mask, classes=self.base.classes)
        values = known.standardise(support.x)
        labels = (
            one_hot(support.y.clamp(min=0), self.base.classes).to(values.dtype)
            * (support.y >= 0)[..., None]
        )
        support_set = {"support_x": values, "support_y": labels, "mask": support.mask}
        return Params({**support_set, "mean": known.mean, "scale": known.scale})

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Classify the queries of all tasks in one pass."""
        values = (x - params["mean"][:, None]) / params["scale"][:, None]
        return self.base.classify(values, params["support_x"], params["support_y"], params["mask"])
