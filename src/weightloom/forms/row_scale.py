"""Scaled outputs: a gain for each row of a weight, alone or with a shift."""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from weightloom.forms.calls import Conv, look_up
from weightloom.forms.form import Answer, Form, Parts
from weightloom.forms.full import Full
from weightloom.params import Shape


class RowScale(Form):
    """θ = diag(1 + g) W: every output of the layer gets a generated gain.

    The weight is never built.

    An output is a row of a linear layer, an output channel of a convolution or of its transpose,
    and a feature of an embedding. With the layer's input as the condition it is the gate y = (W x)
    · h(x), with h(x) = 1 + g(x).

    Example:
        >>> import torch
        >>> RowScale().dense(torch.ones(2, 3), {"gain": torch.tensor([[0.0, 1.0]])})
        tensor([[[1., 1., 1.],
                 [2., 2., 2.]]])

    Source:
        Ha, Dai and Le, "HyperNetworks" (2017), section 3.2, equation 9: the weight scaling vector
        d(z), here 1 + g.
    """

    needs = "at least two axes"

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis

    def fit(self, shape: Shape, owner: nn.Module) -> "RowScale | None":
        """Fits what has rows; which axis they are on depends on the kind of layer."""
        across = isinstance(owner, _ConvTransposeNd | nn.Embedding | nn.EmbeddingBag)
        return RowScale(axis=1 if across else 0) if len(shape) >= 2 else None

    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """One factor, ``gain``, a number per output."""
        return {"gain": (shape[self.axis],)}

    def dense(self, own: Tensor, parts: Parts) -> Tensor:
        """Build diag(1 + g) W."""
        gain = parts["gain"]
        return own * (1 + gain)[(..., *[None] * (own.ndim - self.axis - 1))].unflatten(
            gain.ndim - 1, (*[1] * self.axis, -1)
        )

    def linear(self, x: Tensor, own: Tensor, parts: Parts, bias: Tensor | None = None) -> Answer:
        """Answer (x Wᵀ) (1 + g)."""
        if self.axis != 0:
            return NotImplemented
        y, gain = nn.functional.linear(x, own), (1 + parts["gain"])[..., None, :]
        return y * gain if bias is None else torch.addcmul(bias, y, gain)

    def conv(self, x: Tensor, own: Tensor, parts: Parts, conv: Conv) -> Answer:
        """Scale the channels of the shared convolution's output."""
        if self.axis != (1 if conv.transposed else 0):
            return NotImplemented
        gain = 1 + parts["gain"]
        if conv.transposed:  # its rows are there once for all groups
            gain = gain.repeat(*[1] * (gain.ndim - 1), conv.groups)
        return conv(x, own) * gain[(..., None, slice(None), *[None] * (own.ndim - 2))]

    def embedding(self, ids: Tensor, own: Tensor, parts: Parts) -> Answer:
        """Scale the features of what is looked up."""
        if self.axis != 1:
            return NotImplemented
        gain = 1 + parts["gain"]
        return look_up(ids, own) * gain.reshape(
            *gain.shape[:-1], *[1] * (ids.ndim - gain.ndim + 1), -1
        )

    def squared_norm(self, own: Tensor, parts: Parts) -> Tensor:
        """Answer Σ (1 + g)² |row|²."""
        rows = own.transpose(0, self.axis).flatten(1).square().sum(1)
        return (1 + parts["gain"]).square() @ rows

    @property
    def is_affine(self) -> bool:
        """A mean of gains gives the mean of parameters."""
        return True


class FiLM(Form):
    """Feature-wise linear modulation.

    A generated gain for every output of a layer, and a generated shift.

    It is `RowScale` for a parameter that has rows and `Full` for the others: biases, and the scales
    and shifts of norms. A layer without a bias gets no shift.

    Source:
        Perez et al., "FiLM: Visual reasoning with a general conditioning layer" (2018), equation 2.
        The gain is taken of W x, the bias added after it; the paper takes it of W x + b, which is
        the same family of functions.
    """

    needs = "a parameter of any shape"

    def fit(self, shape: Shape, owner: nn.Module) -> Form:
        """A gain for what has rows, a free change for the others."""
        return RowScale().fit(shape, owner) or Full()

    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Those of the form it becomes for a plain layer."""
        return self.fit(shape, nn.Identity()).factor_shapes(shape)

    def dense(self, own: Tensor, parts: Parts) -> Tensor:
        """Build what the form it becomes for a plain layer builds."""
        return self.fit(tuple(own.shape), nn.Identity()).dense(own, parts)

    def squared_norm(self, own: Tensor, parts: Parts) -> Answer:
        """Answer what the form it becomes for a plain layer answers."""
        return self.fit(tuple(own.shape), nn.Identity()).squared_norm(own, parts)
