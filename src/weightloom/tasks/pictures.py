"""Pictures as activations of a frozen network, over several views of each picture.

In:   a pool of pictures, and a `Backbone`.
Out:  the same pool with examples (classes, pictures, views, *event).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from weightloom.progress import counting
from weightloom.tasks.data import ClassPool

PICTURES = 64
"""Pictures per batch."""
ZOOM = 0.8
"""Side of the third view, as a fraction of the picture's."""


def views_of(pictures: Tensor, views: int, size: int) -> Tensor:
    """Return views of pictures: the whole, its mirror image, and its middle enlarged.

    Args:
        pictures: Pictures from 0 to 1, (batch, channels, height, width).
        views: Number of views, 1 to 3, in that order.
        size: Height and width of a view, in pixels.

    Returns:
        (batch, views, channels, size, size).

    Example:
        >>> views_of(torch.rand(2, 3, 32, 32), views=3, size=64).shape
        torch.Size([2, 3, 3, 64, 64])
    """
    edge = round(pictures.shape[-1] * (1 - ZOOM) / 2)
    whole = _scaled(pictures, size)
    middle = pictures[..., edge : pictures.shape[-2] - edge, edge : pictures.shape[-1] - edge]
    made: list[Callable[[], Tensor]] = [
        lambda: whole,
        lambda: whole.flip(-1),
        lambda: _scaled(middle, size),
    ]
    return torch.stack([view() for view in made[:views]], dim=1)


def encoded_pool(pool: ClassPool, network: nn.Module, views: int, size: int) -> ClassPool:
    """Replace the pictures of a pool by activations of a frozen network, for each view.

    Args:
        pool: Pictures, uint8.
        network: Pictures from 0 to 1, (batch, channels, size, size), to (batch, *event).
        views: Views per picture, as of `views_of`.
        size: Height and width that pictures are scaled to.

    Returns:
        The pool with examples (classes, pictures, views, *event), float32; padding stays zero.
    """
    there = torch.arange(pool.examples.shape[1]) < pool.counts[:, None]
    pictures = pool.examples[there]
    parts = []
    with counting("reading pictures", len(pictures)) as show, torch.inference_mode():
        for start in range(0, len(pictures), PICTURES):
            seen = views_of(pictures[start : start + PICTURES].float() / 255, views, size)
            flat = seen.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            parts.append(network(flat).unflatten(0, seen.shape[:2]))
            show(start + len(seen))
    found = torch.cat(parts)
    examples = torch.zeros(*there.shape, *found.shape[1:])
    examples[there] = found
    return pool._replace(examples=examples)


def _scaled(pictures: Tensor, size: int) -> Tensor:
    if pictures.shape[-2:] == (size, size):
        return pictures
    return interpolate(
        pictures, (size, size), mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 1)
