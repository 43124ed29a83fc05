"""Interface of all forms."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from inspect import Parameter, signature
from types import NotImplementedType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.serialization import add_safe_globals

from weightloom.forms.calls import Conv
from weightloom.params import Shape

Parts = dict[str, Tensor]
"""Tensors by name from which a form builds a parameter: generated factors and shared tensors."""

Answer = Tensor | NotImplementedType

KINDS: dict[str, type["Form"]] = {}
"""The library's own forms by class name: `budget` chooses from them, files store these names, and
`torch.load` accepts these classes."""


class Form(ABC):
    """Representation of one generated parameter: its factors, and the rule to build it from them.

    Every form implements `fit`, `factor_shapes` and `dense`. The other methods are optional
    shortcuts: they compute an operation of the base from the factors, without building the
    parameter. Where a shortcut returns ``NotImplemented``, the library builds the parameter by
    `dense`, which is always correct. `weightloom.testing.check_form` tests a custom form against
    this interface.

    Leading axes: factors and inputs carry the same leading axes, written ``*lead``: no axis when
    one task runs (under ``vmap``, and in the loop), and the single axis ``tasks`` in the aligned
    engine. Code that counts axes from the back handles both cases.
    """

    needs: str
    """Requirement on the parameter, worded to complete "This form needs …" in an error message."""

    is_free: ClassVar[bool] = False
    """True if every number is generated on its own, as the single factor ``change``. The parameter
    then starts at the own value, has no separate learned start, and may be complex."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__.startswith("weightloom.forms."):
            KINDS[cls.__name__] = cls
            add_safe_globals([cls])

    @classmethod
    def candidates(cls) -> "Sequence[Form]":
        """Forms of this class from which `budget` chooses.

        Default: one form with default options, or none if the constructor requires an argument.
        """
        needed = [
            option
            for option in signature(cls).parameters.values()
            if option.default is Parameter.empty
        ]
        return () if needed else (cls(),)

    @abstractmethod
    def fit(self, shape: Shape, owner: nn.Module) -> "Form | None":
        """Return the form to use for one parameter, or None if this form does not fit it.

        Args:
            shape: The parameter's shape.
            owner: The module that the parameter belongs to.
        """

    @abstractmethod
    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Name and shape of each generated factor, without leading axes.

        Args:
            shape: The parameter's shape.
        """

    @abstractmethod
    def dense(self, own: Tensor, parts: Parts) -> Tensor:
        """Build the parameter.

        Args:
            own: The base's own value, of shape ``shape``, shared by all tasks.
            parts: The factors named by `factor_shapes`, each ``(*lead, *factor_shape)``, and the
                tensors named by `shared`.

        Returns:
            ``(*lead, *shape)``.
        """

    def starts(self, shape: Shape) -> Parts:
        """Initial values of the factors that must not start at zero, by name, without leading axes.

        They are trained, and added to the generated factors. With every factor at its initial
        value, and fresh shared tensors, the built parameter equals the base's own value.
        """
        return {}

    def shared(self, shape: Shape) -> Parts:
        """Fresh tensors by name, shared by all tasks and trained with the hypernetwork.

        The own value is not among them.
        """
        return {}

    def value(self, own: Tensor, factors: Parts, shared: Parts | None = None) -> Tensor:
        """Return the parameter as a `Factored` tensor, or built if the form overrides this.

        Args:
            own: The base's own value, of shape ``shape``.
            factors: The factors, each ``(*lead, *factor_shape)``.
            shared: The tensors named by `shared`; None means an empty dict.
        """
        from weightloom.forms.factored import Factored

        return Factored(self, own, factors, shared or {})

    def linear(self, x: Tensor, own: Tensor, parts: Parts, bias: Tensor | None = None) -> Answer:
        """Compute ``x @ weight.mT + bias``: (*lead, rows, in) -> (*lead, rows, out).

        The bias is (out,), shared by all tasks, or (*lead, 1, out). ``NotImplemented`` makes the
        caller build the weight.
        """
        return NotImplemented

    def conv(self, x: Tensor, own: Tensor, parts: Parts, conv: Conv) -> Answer:
        """Compute a convolution: (*lead, batch, in, *space) -> (*lead, batch, out, *space).

        The caller adds the bias. ``NotImplemented`` makes it build the kernel.

        Args:
            x: Inputs.
            own: The base's own kernel.
            parts: Factors and shared tensors.
            conv: The requested convolution; call it as ``conv(x, kernel)``, with a kernel that all
                tasks share or with kernels that carry leading axes.
        """
        return NotImplemented

    def embedding(self, ids: Tensor, own: Tensor, parts: Parts) -> Answer:
        """Look up rows of an embedding: (*lead, *ids) -> (*lead, *ids, width)."""
        return NotImplemented

    def squared_norm(self, own: Tensor, parts: Parts) -> Answer:
        """Squared L2 norm of the parameter, ``(*lead,)``."""
        return NotImplemented

    @property
    def is_affine(self) -> bool:
        """True if the parameter is affine in the factors.

        A mean of factors then gives the mean of parameters.
        """
        return False

    @property
    def is_linear(self) -> bool:
        """True if the change is linear in the factors: affine, and all factors start at zero."""
        return self.is_affine and type(self).starts is Form.starts

    def joins(self, other: "Form") -> bool:
        """True if a change in form ``other`` can be added to one in this form.

        Default: only if the two forms are equal.
        """
        return self == other

    def stacked(
        self, changes: Sequence[Parts], weights: Sequence[float | Tensor]
    ) -> "tuple[Form, Parts] | None":
        """Represent own + Σ weight · change exactly, where sums of the factors would not.

        Args:
            changes: Factors of each change, each with a leading tasks axis, of length 1 if all
                tasks share it.
            weights: Weight of each change: a number, or a tensor with one per task, (tasks,).

        Returns:
            The form of the sum and its factors; None (the default) if the sum must be built.
        """
        return None

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.items()))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({options})"


def along(weight: float | Tensor, value: Tensor) -> float | Tensor:
    """Reshape weights per task, (tasks,), so that they broadcast against ``value``."""
    if not isinstance(weight, Tensor) or not weight.ndim:
        return weight
    return weight.to(value.dtype).view(-1, *[1] * (value.ndim - 1))


def lead_of(factor: Tensor, shape: Shape) -> torch.Size:
    """Leading axes of a factor; ``shape`` is its shape without them."""
    return factor.shape[: factor.ndim - len(shape)]
