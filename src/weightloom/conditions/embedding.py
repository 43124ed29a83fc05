"""Learned conditions of tasks known by number."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from weightloom.errors import ConfigError


class TaskEmbedding(nn.Module):
    """Table of learned conditions, one per known task.

    Args:
        known_tasks: Number of tasks.
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
        """Look up the condition of each task, by its number.

        Raises:
            ConfigError: If a number is not from 0 to ``known_tasks - 1``.
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
