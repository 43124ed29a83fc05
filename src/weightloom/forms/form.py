"""The interface that every form keeps."""

from abc import ABC, abstractmethod
from types import NotImplementedType

import torch
from torch import Tensor, nn

from weightloom.forms.calls import Conv
from weightloom.params import Shape

Parts = dict[str, Tensor]
"""What a form builds a parameter from: its factors, and what it keeps for all tasks, by name."""

Answer = Tensor | NotImplementedType


class Form(ABC):
    """How one generated parameter is held: which factors are generated, and what they mean.

    Three methods make a form: `fit`, `factor_shapes` and `dense`. The others are answers: ways to do with the factors
    what the base does with the parameter, without building it. A form that does not answer is built, which is always
    right. `weightloom.testing.check_form` holds a form of yours against what every form promises.

    Leading axes: factors and inputs carry the same leading axes in front, written ``*lead``. There is none where one
    task is run (under ``vmap``, and in the loop), and one, tasks, with the aligned engine. Code that counts axes from
    the back serves both.
    """

    needs: str
    """What a parameter must be for this form to fit it, to end the sentence "… needs"."""

    @abstractmethod
    def fit(self, shape: Shape, owner: nn.Module) -> "Form | None":
        """Return this form as it suits one parameter, None if it does not fit.

        Args:
            shape: The parameter's shape.
            owner: The module that the parameter belongs to.
        """

    @abstractmethod
    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Name and shape of each factor to generate for a parameter of ``shape``, without leading axes."""

    @abstractmethod
    def dense(self, own: Tensor, parts: Parts) -> Tensor:
        """Build the parameter.

        Args:
            own: The base's own value, ``shape``: shared by all tasks.
            parts: Factors as named by `factor_shapes`, each ``(*lead, *factor_shape)``, and what `shared` names.

        Returns:
            ``(*lead, *shape)``.
        """

    def starts(self, shape: Shape) -> Parts:
        """Where the factors start that must not start at zero; learned, and added to what is generated.

        With every factor at its start, and what is shared fresh, the parameter is the base's own.
        """
        return {}

    def shared(self, shape: Shape) -> Parts:
        """Fresh tensors that all tasks share besides the own value; learned with the hypernetwork."""
        return {}

    def value(self, own: Tensor, factors: Parts, shared: Parts | None = None) -> Tensor:
        """Return the parameter as it is passed on: held as factors, or built where that is all the form can do.

        Args:
            own: The base's own value, ``shape``.
            factors: Each ``(*lead, *factor_shape)``.
            shared: As named by `shared`.
        """
        from weightloom.forms.factored import Factored

        return Factored(self, own, factors, shared or {})

    def linear(self, x: Tensor, own: Tensor, parts: Parts, bias: Tensor | None = None) -> Answer:
        """Answer ``x @ weight.mT + bias``: (*lead, rows, in) -> (*lead, rows, out).

        The bias is (out,), shared by all tasks, or (*lead, 1, out).
        """
        return NotImplemented

    def conv(self, x: Tensor, own: Tensor, parts: Parts, conv: Conv) -> Answer:
        """Answer a convolution: (*lead, batch, in, *space) -> (*lead, batch, out, *space); bias is added later.

        Args:
            x: Inputs.
            own: The base's own kernel.
            parts: Factors and what is shared.
            conv: The convolution that is asked for; call it as ``conv(x, kernel)`` with kernels shared by all tasks,
                or with leading axes.
        """
        return NotImplemented

    def embedding(self, ids: Tensor, own: Tensor, parts: Parts) -> Answer:
        """Answer a look-up of rows: (*lead, *ids) -> (*lead, *ids, width)."""
        return NotImplemented

    def squared_norm(self, own: Tensor, parts: Parts) -> Answer:
        """Answer the squared L2 norm of the parameter, ``(*lead,)``."""
        return NotImplemented

    @property
    def is_affine(self) -> bool:
        """Whether the parameter is affine in the factors, so that a mean of factors gives the mean of parameters."""
        return False

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.items()))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({options})"


def lead_of(factor: Tensor, shape: Shape) -> torch.Size:
    """The leading axes of a factor whose own shape is ``shape``."""
    return factor.shape[: factor.ndim - len(shape)]
