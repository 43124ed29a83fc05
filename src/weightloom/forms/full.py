"""A free value for every number of the parameter."""

from torch import Tensor, nn

from weightloom.forms.form import Form, Parts
from weightloom.forms.sums import add_to_own
from weightloom.params import Shape


class Full(Form):
    """θ = W + ΔW: every number of the parameter is generated, added to the base's own.

    Example:
        >>> import torch
        >>> Full().dense(torch.ones(2), {"change": torch.zeros(5, 2)}).shape
        torch.Size([5, 2])
    """

    needs = "a parameter of any shape"
    is_free = True

    def fit(self, shape: Shape, owner: nn.Module) -> "Full":
        """Fits every parameter."""
        return self

    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """One factor, ``change``, of the parameter's own shape."""
        return {"change": shape}

    def dense(self, own: Tensor, parts: Parts) -> Tensor:
        """Add the change to the own value."""
        return add_to_own(own, parts["change"])

    def value(self, own: Tensor, factors: Parts, shared: Parts | None = None) -> Tensor:
        """Build the parameter: there is nothing to save."""
        return self.dense(own, factors)

    @property
    def is_affine(self) -> bool:
        """A mean of changes gives the mean of parameters."""
        return True
