"""The full form: a generated change for every number of the parameter."""

from torch import Tensor, nn

from weightloom.forms.form import Form, Parts
from weightloom.forms.sums import add_to_own
from weightloom.params import Shape


class Full(Form):
    """θ = W + ΔW: a generated change for every number, added to the base's own value.

    Example:
        >>> import torch
        >>> Full().dense(torch.ones(2), {"change": torch.zeros(5, 2)}).shape
        torch.Size([5, 2])
    """

    needs = "a parameter of any shape"
    is_free = True

    def fit(self, shape: Shape, owner: nn.Module) -> "Full":
        """Fit every parameter."""
        return self

    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """One factor, ``change``, of the parameter's shape."""
        return {"change": shape}

    def dense(self, own: Tensor, parts: Parts) -> Tensor:
        """Add the change to the own value."""
        return add_to_own(own, parts["change"])

    def value(self, own: Tensor, factors: Parts, shared: Parts | None = None) -> Tensor:
        """Build the parameter; factors would save no memory."""
        return self.dense(own, factors)

    @property
    def is_affine(self) -> bool:
        """True: averaged changes give averaged parameters."""
        return True
