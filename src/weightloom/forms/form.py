"""The interface that every form keeps."""

from abc import ABC, abstractmethod

from torch import Tensor

from weightloom.params import Shape


class Form(ABC):
    """How one generated parameter is held: which factors are generated, and what they mean."""

    @abstractmethod
    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Name and shape of each factor to generate for a parameter of ``shape``, without the tasks axis."""

    @abstractmethod
    def dense(self, own: Tensor, factors: dict[str, Tensor]) -> Tensor:
        """Build the parameter per task.

        Args:
            own: The base's own value, ``shape``: shared by all tasks and trained with the hypernetwork.
            factors: As named by `factor_shapes`, each ``(tasks, *factor_shape)``. All zero means: ``own``.

        Returns:
            ``(tasks, *shape)``.
        """
