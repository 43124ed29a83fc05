"""A learned condition for each task that is known by number."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from weightloom.errors import ConfigError


class TaskEmbedding(nn.Module):
    """A table with one learned condition per known task.

    Args:
        known_tasks: How many tasks there are.
        condition_dim: Width of a condition.

    Example:
        >>> import torch
        >>> TaskEmbedding(known_tasks=10, condition_dim=4)(torch.tensor([3, 7])).shape
        torch.Size([2, 4])

    Source:
        von Oswald et al., "Continual learning with hypernetworks" (2020), section 2.
    """

    def __init__(self, known_tasks: int, condition_dim: int) -> None:
        super().__init__()
        self.condition_dim = condition_dim
        self.table = nn.Embedding(known_tasks, condition_dim)

    def forward(self, task: Int[Tensor, " tasks"]) -> Float[Tensor, "tasks condition_dim"]:
        """Look up the condition of each task.

        Raises:
            ConfigError: If a task's number is not in the table.
        """
        known = self.table.num_embeddings
        if task.numel() and not (int(task.min()) >= 0 and int(task.max()) < known):
            raise ConfigError(
                f"Task numbers run from {int(task.min())} to {int(task.max())} but the table holds "
                f"{known} tasks. A task is known by a number from 0 to {known - 1}. "
                "For a task that was not trained, encode its support set instead."
            )
        embedding: Tensor = self.table(task)
        return embedding
