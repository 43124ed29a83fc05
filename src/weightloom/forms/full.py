"""A free change for every number of the parameter."""

from torch import Tensor

from weightloom.forms.form import Form
from weightloom.params import Shape


class Full(Form):
    """θ = W + ΔW: every number of the parameter is generated, added to the base's own.

    Example:
        >>> import torch
        >>> Full().dense(torch.ones(2), {"change": torch.zeros(5, 2)}).shape
        torch.Size([5, 2])
    """

    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """One factor, ``change``, of the parameter's own shape."""
        return {"change": shape}

    def dense(self, own: Tensor, factors: dict[str, Tensor]) -> Tensor:
        """Add the change to the own value."""
        return own + factors["change"]
