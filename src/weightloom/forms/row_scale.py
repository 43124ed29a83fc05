"""Row scaling and FiLM: a generated gain per output of a layer, alone or with a shift."""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from weightloom.forms.calls import Conv, has_one_input, look_up
from weightloom.forms.form import Answer, Form, Parts
from weightloom.forms.full import Full
from weightloom.params import Shape


class RowScale(Form):
    """θ = diag(1 + g) W: a generated gain for every output of a layer.

    An output is a row of a linear layer, an output channel of a convolution or transposed
    convolution, or a feature of an embedding; their results are scaled without building the weight.
    With the layer's input as the condition, this is the gate y = (W x) · h(x), h(x) = 1 + g(x).

    Args:
        axis: Axis of the outputs in the weight, 0 or 1. `fit` chooses it by the kind of layer.

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
        """Fit parameters of two or more axes; the kind of layer sets the axis of its outputs."""
        across = isinstance(owner, _ConvTransposeNd | nn.Embedding | nn.EmbeddingBag)
        return RowScale(axis=1 if across else 0) if len(shape) >= 2 else None

    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """One factor, ``gain``, (outputs,)."""
        return {"gain": (shape[self.axis],)}

    def dense(self, own: Tensor, parts: Parts) -> Tensor:
        """Build diag(1 + g) W."""
        gain = parts["gain"]
        return own * (1 + gain)[(..., *[None] * (own.ndim - self.axis - 1))].unflatten(
            gain.ndim - 1, (*[1] * self.axis, -1)
        )

    def linear(self, x: Tensor, own: Tensor, parts: Parts, bias: Tensor | None = None) -> Answer:
        """Compute (x Wᵀ) (1 + g)."""
        if self.axis != 0:
            return NotImplemented
        gain = (1 + parts["gain"])[..., None, :]
        y = nn.functional.linear(x[:1] if has_one_input(x) else x, own)
        return y * gain if bias is None else torch.addcmul(bias, y, gain)

    def conv(self, x: Tensor, own: Tensor, parts: Parts, conv: Conv) -> Answer:
        """Scale the channels of the shared convolution's output."""
        if self.axis != (1 if conv.transposed else 0):
            return NotImplemented
        gain = 1 + parts["gain"]
        if conv.transposed:  # its kernels hold the outputs of one group
            gain = gain.repeat(*[1] * (gain.ndim - 1), conv.groups)
        return conv(x, own) * gain[(..., None, slice(None), *[None] * (own.ndim - 2))]

    def embedding(self, ids: Tensor, own: Tensor, parts: Parts) -> Answer:
        """Scale the features of the looked-up rows."""
        if self.axis != 1:
            return NotImplemented
        gain = 1 + parts["gain"]
        return look_up(ids, own) * gain.reshape(
            *gain.shape[:-1], *[1] * (ids.ndim - gain.ndim + 1), -1
        )

    def squared_norm(self, own: Tensor, parts: Parts) -> Tensor:
        """Compute Σ (1 + g)² |row|²."""
        rows = own.transpose(0, self.axis).flatten(1).square().sum(1)
        return (1 + parts["gain"]).square() @ rows

    @property
    def is_affine(self) -> bool:
        """True: averaged gains give averaged parameters."""
        return True


class FiLM(Form):
    """Feature-wise linear modulation: a generated gain and a generated shift per output.

    Becomes `RowScale` for parameters of two or more axes, and `Full` for the others: biases, and
    the scales and shifts of norms. A layer without a bias gets no shift.

    Source:
        Perez et al., "FiLM: Visual reasoning with a general conditioning layer" (2018), equation 2.
        The gain scales W x, and the bias is added afterwards; the paper scales W x + b, which is
        the same family of functions.
    """

    needs = "a parameter of any shape"

    def fit(self, shape: Shape, owner: nn.Module) -> Form:
        """Return `RowScale` for parameters of two or more axes, `Full` for the others."""
        return RowScale().fit(shape, owner) or Full()

    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Factors of the form that `fit` gives for a linear layer."""
        return self.fit(shape, nn.Identity()).factor_shapes(shape)

    def dense(self, own: Tensor, parts: Parts) -> Tensor:
        """Build the parameter by the form that `fit` gives for a linear layer."""
        return self.fit(tuple(own.shape), nn.Identity()).dense(own, parts)

    def squared_norm(self, own: Tensor, parts: Parts) -> Answer:
        """Compute the squared norm by the form that `fit` gives for a linear layer."""
        return self.fit(tuple(own.shape), nn.Identity()).squared_norm(own, parts)
