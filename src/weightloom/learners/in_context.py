"""A transformer that reads labelled pictures and those in question together.

Nothing of it is of a task.
"""

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
    """Classify pictures in the context of labelled ones, which are parameters of this module.

    A query reads the support points and itself passes nothing on, so it does not matter which
    queries come together.

    Args:
        inputs: Width of a picture.
        classes: How many classes.
        width: Width of a token.
        layers: Rounds of attention.
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
        """Classify the pictures of one task, (batch, inputs) to (batch, classes)."""
        there = torch.ones(1, len(self.support_x), dtype=torch.bool, device=x.device)
        return self.classify(x[None], self.support_x[None], self.support_y[None], there)[0]

    def classify(self, x: Tensor, support_x: Tensor, support_y: Tensor, there: Tensor) -> Tensor:
        """Classify the pictures of several tasks, (tasks, batch, inputs) to (tasks, batch, classes)."""
        context = self.read_x(support_x) + self.read_y(support_y)
        tokens = torch.cat([context, self.read_x(x)], dim=1)
        read = torch.cat([there, there.new_zeros(x.shape[:2])], dim=1)
        for block in self.blocks:
            tokens = block(tokens, read)
        logits: Tensor = self.out(tokens[:, context.shape[1] :])
        return logits


class InContext(Learner):
    """A transformer in context: standardised pictures and their labels are its tokens, and no weights are written.

    Args:
        base: The transformer.

    Raises:
        ConfigError: If ``base`` is not one.

    Source:
        Müller et al., "Transformers can do Bayesian inference" (2022), in whose place the labels
        are classes.
    """

    base: ContextReader

    def __init__(self, base: ContextReader) -> None:
        super().__init__()
        if not isinstance(base, ContextReader):
            fits = "Support and queries are read together by a network that keeps the support set."
            raise misfit(base, fits, "`ContextReader(inputs, classes)`")
        self.base = base

    def adapt(self, support: Support) -> Params:
        """The support set, standardised, and what standardises queries."""
        known = input_statistics(support.x, support.y, support.mask, classes=self.base.classes)
        values = known.standardise(support.x)
        labels = (
            one_hot(support.y.clamp(min=0), self.base.classes).to(values.dtype)
            * (support.y >= 0)[..., None]
        )
        support_set = {"support_x": values, "support_y": labels, "mask": support.mask}
        return Params({**support_set, "mean": known.mean, "scale": known.scale})

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Read support and queries of all tasks in one pass."""
        values = (x - params["mean"][:, None]) / params["scale"][:, None]
        return self.base.classify(values, params["support_x"], params["support_y"], params["mask"])
