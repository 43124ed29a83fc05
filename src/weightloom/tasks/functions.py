"""Images as functions: regression tasks from the position of a pixel to its grey value."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.datasets import FILES, needed_file
from weightloom.errors import ConfigError, DataError
from weightloom.tasks.tasks import ALL, Tasks, TaskSource


@dataclass(frozen=True)
class FunctionTasks(TaskSource):
    """Image completion tasks: predict pixels of one image from a few observed pixels.

    A batch repeats images only if it has more tasks than the pool has images. Observed pixels are
    drawn at random and may also be query pixels. ``Tasks.hidden`` is the image's index, (tasks, 1).

    Example:
        >>> source = FunctionTasks(torch.rand(9, 8, 6), shots=5)
        >>> tasks = source.sample(4, torch.Generator().manual_seed(0))
        >>> tasks.support_x.shape, tasks.query_y.shape
        (torch.Size([4, 5, 2]), torch.Size([4, 48, 1]))

    Source:
        Garnelo et al., "Conditional neural processes" (2018), section 4.2.
    """

    images: Tensor
    """(images, height, width): uint8 in 0 to 255, or float in 0 to 1."""
    shots: int
    """Observed pixels per task; with ``fewest_shots`` their maximum."""
    queries: int | None = None
    """Query pixels per task, drawn at random. None: all pixels, row by row from the top."""
    fewest_shots: int | None = None
    """Minimum observed pixels: the number is drawn uniformly from here to ``shots``, per task, and
    the remaining pixels are masked. None: always ``shots``."""
    together: bool = False
    """Draw the number of observed pixels, and the query pixels, once for all tasks of a batch. Then
    no pixel is masked, and all tasks share the query positions."""

    def __post_init__(self) -> None:
        height, width = self.images.shape[1:]
        pixels = height * width
        for name, count in (
            ("shots", self.shots),
            ("queries", pixels if self.queries is None else self.queries),
        ):
            if not 1 <= count <= pixels:
                raise ConfigError(
                    f"`{name}={count}` but an image has {height}x{width} pixels. No pixel is drawn "
                    f"twice. Pass `{name}` from 1 to {pixels}."
                )
        if self.fewest_shots is not None and not 1 <= self.fewest_shots <= self.shots:
            raise ConfigError(
                f"`fewest_shots={self.fewest_shots}` with `shots={self.shots}`. The observed "
                f"pixels are drawn from the first to the second. Pass `fewest_shots` from 1 to "
                f"{self.shots}."
            )

    def sample(self, tasks: int, generator: torch.Generator, share: slice = ALL) -> Tasks:
        """Draw images, then pixels of each, for all tasks at once.

        Args:
            tasks: Number of tasks to draw.
            generator: Source of randomness.
            share: Slice of the tasks to return. The random numbers of all are drawn.
        """
        count, height, width = self.images.shape
        position = pixel_positions(height, width)
        chosen = torch.randint(count, (tasks,), generator=generator)
        if tasks <= count:
            chosen = torch.randperm(count, generator=generator)[:tasks]
        chosen = chosen[share]
        values = self.images[chosen].flatten(1)
        values = values.float() / 255 if values.dtype == torch.uint8 else values
        shots = self.shots
        if self.fewest_shots is not None and self.together:
            shots = int(torch.randint(self.fewest_shots, shots + 1, (), generator=generator))
        support = torch.rand(tasks, height * width, generator=generator)[share].topk(shots).indices
        query_x = position.expand(len(chosen), -1, -1)  # a view: one copy in memory
        query_y = values[..., None]
        if self.queries is not None:
            sets = 1 if self.together else tasks
            chance = torch.rand(sets, height * width, generator=generator)
            query = (chance if self.together else chance[share]).topk(self.queries).indices
            query_x = position[query].expand(len(chosen), -1, -1)
            query_y = values.gather(1, query.expand(len(chosen), -1))[..., None]
        mask = torch.ones(len(chosen), shots, dtype=torch.bool)
        if self.fewest_shots is not None and not self.together:
            kept = torch.randint(self.fewest_shots, self.shots + 1, (tasks, 1), generator=generator)
            mask = torch.arange(self.shots) < kept[share]
        support_y = values.gather(1, support)[..., None]
        return Tasks.of(
            position[support],
            support_y,
            query_x,
            query_y,
            support_mask=mask,
            hidden=chosen[:, None],
        )


def pixel_positions(height: int, width: int) -> Float[Tensor, "pixels 2"]:
    """Return the (x, y) centre of each pixel, row by row from the top.

    x points right and y down; the image covers [-1, 1]².

    Example:
        >>> pixel_positions(1, 2)
        tensor([[-0.5000,  0.0000],
                [ 0.5000,  0.0000]])
    """
    y, x = ((2 * torch.arange(size) + 1) / size - 1 for size in (height, width))
    return torch.cartesian_prod(y, x).flip(1)


def load_mnist() -> tuple[Tensor, Tensor]:
    """Load MNIST's handwritten digits as uint8 images, (images, 28, 28), ink bright.

    The file is read from the first folder of ``searched_folders("mnist")`` that contains it. It is
    not downloaded.

    Returns:
        The first 20,000 images of MNIST's training set, for meta-training; and its whole test set,
        10,000 images.

    Raises:
        DataError: If none of the searched folders contains the file, or it is damaged.

    Source:
        LeCun, Cortes and Burges, "The MNIST database of handwritten digits" (1998).
    """
    path = needed_file(
        *FILES["mnist-functions"], "MNIST's file", "The images do not come with this library."
    )
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            train, test = file["train_images"], file["test_images"]
        if (train.shape, test.shape, train.dtype) != ((20_000, 28, 28), (10_000, 28, 28), np.uint8):
            raise ValueError(f"`train_images` is {train.dtype} of shape {train.shape}")
    except Exception as error:  # numpy, zipfile and zlib raise many types for a bad file
        raise DataError(
            f"`{path}` cannot be read as MNIST ({error}). It holds `train_images`, 20,000 of "
            "28x28, and `test_images`, 10,000. Put a whole copy in its place."
        ) from error
    return torch.from_numpy(train), torch.from_numpy(test)
