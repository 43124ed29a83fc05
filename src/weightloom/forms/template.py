"""The template form: a generated mixture of tensors that all tasks share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError
from weightloom.forms.calls import shared_linear
from weightloom.forms.form import Answer, Form, Parts
from weightloom.forms.sums import add_to_own
from weightloom.params import Shape


class Template(Form):
    """θ = W + Σ aₖ Wₖ: the own value plus a generated mixture of templates.

    The templates Wₖ have the parameter's shape, are shared by all tasks, and are trained with the
    hypernetwork; the coefficients aₖ are generated per task.

    Args:
        count: Number of templates.

    Raises:
        ConfigError: If ``count`` is below 1.

    Example:
        >>> form, own = Template(2), torch.zeros(3)
        >>> templates = torch.eye(3)[:2]
        >>> form.dense(own, {"mixture": torch.tensor([[1.0, 2.0]]), "templates": templates})
        tensor([[1., 2., 0.]])

    Source:
        Savarese and Maire, "Learning implicitly recurrent CNNs through parameter sharing" (2019),
        equation 2; the linear hypernetwork of Schug et al., "Discovering modular solutions that
        generalize compositionally" (2024).
    """

    needs = "a parameter with more numbers than it has templates"

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ConfigError(
                f"`count={count}` is below 1. A mixture needs templates to mix. Pass 1 or more."
            )
        self.count = count

    @classmethod
    def candidates(cls) -> "Sequence[Template]":
        """Banks of 8, 4 and 2 templates."""
        return [Template(count) for count in (8, 4, 2)]

    def fit(self, shape: Shape, owner: nn.Module) -> "Template | None":
        """Fit parameters with more numbers than templates; others are smaller in full."""
        return self if torch.Size(shape).numel() > self.count else None

    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """One factor, ``mixture``, (count,)."""
        return {"mixture": (self.count,)}

    def shared(self, shape: Shape) -> Parts:
        """Random templates, ``templates``, scaled like the weights of a new layer."""
        columns = max(1, shape[1:].__len__() and torch.Size(shape[1:]).numel())
        return {"templates": torch.randn(self.count, *shape) / columns**0.5}

    def dense(self, own: Tensor, parts: Parts) -> Tensor:
        """Build W + Σ aₖ Wₖ."""
        mixture, templates = parts["mixture"], parts["templates"]
        return add_to_own(own, (mixture @ templates.flatten(1)).unflatten(-1, own.shape))

    def linear(self, x: Tensor, own: Tensor, parts: Parts, bias: Tensor | None = None) -> Answer:
        """Mix outputs for one row per task, which is cheaper; else mix weights in (in, out) order.

        With mixed weights, the own value counts as one more template with coefficient 1. Their
        order makes the products and their gradients fast. Not implemented for several rows without
        a tasks axis.
        """
        mixture, templates = parts["mixture"], parts["templates"]
        if own.ndim != 2 or (x.shape[-2] > 1 and mixture.ndim < 2):
            return NotImplemented
        if x.shape[-2] > 1:
            every = torch.cat([templates, own[None]]).mT.flatten(1)
            taken = torch.cat([mixture, mixture.new_ones(mixture.shape[0], 1)], 1)
            weights = (taken @ every).unflatten(1, own.mT.shape)
            return x @ weights if bias is None else torch.baddbmm(bias, x, weights)
        of_each = nn.functional.linear(x, templates.flatten(0, 1)).unflatten(
            -1, (self.count, len(own))
        )
        mixed: Tensor = (mixture[..., None, None, :] @ of_each).squeeze(-2)
        return shared_linear(x, own, bias) + mixed

    def squared_norm(self, own: Tensor, parts: Parts) -> Tensor:
        """Compute |W|² + 2 Σ aₖ ⟨W, Wₖ⟩ + Σ aₖ aₗ ⟨Wₖ, Wₗ⟩."""
        mixture, rows, start = parts["mixture"], parts["templates"].flatten(1), own.flatten()
        change = (mixture @ (rows @ rows.mT) * mixture).sum(-1)
        total = start.square().sum() + 2 * mixture @ (rows @ start) + change
        return total.clamp_min(0)  # rounding may leave it below zero

    @property
    def is_affine(self) -> bool:
        """True: averaged mixtures give averaged parameters."""
        return True
