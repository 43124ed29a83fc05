"""Pictures as activations of a frozen network, over several views of each picture.

In:   a pool of pictures, and a frozen network.
Out:  the same pool with examples (classes, pictures, views, *event).
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence

from weightloom.datasets import find_file, searched_folders
from weightloom.errors import CheckpointError, ConfigError
from weightloom.files import load_tensors, make_folder, save_tensors
from weightloom.progress import counting
from weightloom.tasks.data import ClassPool

PICTURES = 8
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


class ViewsReader(nn.Module):
    """Frozen network over views of a picture.

    Args:
        network: Pictures from 0 to 1, (batch, channels, size, size), to (batch, *event).
        views: Views per picture, as of `views_of`.
        size: Height and width that pictures are scaled to, in pixels.
        mean: Average over views, which leaves one.
        channels: Channels that the network takes; a grey picture is repeated in each.

    Example:
        >>> network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> ViewsReader(network, views=2, size=16)(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 2, 3])
    """

    def __init__(
        self, network: nn.Module, views: int, size: int, mean: bool = False, channels: int = 3
    ) -> None:
        super().__init__()
        layout: dict[str, Any] = {"memory_format": torch.channels_last}  # twice as fast
        self.network, self.mean = network.to(**layout), mean
        self.views, self.size, self.channels = views, size, channels

    def forward(self, x: Tensor) -> Tensor:
        """Read pictures: (batch, channels, height, width) to (batch, views, *event)."""
        if x.shape[1] == 1:
            x = x.expand(-1, self.channels, -1, -1)
        flat = views_of(x, self.views, self.size).flatten(0, 1)
        read: Tensor = self.network(flat.contiguous(memory_format=torch.channels_last))
        of_views = read.unflatten(0, (-1, self.views))
        return of_views.mean(1, keepdim=True) if self.mean else of_views


def encoded_pool(
    pool: ClassPool, reader: Callable[[Tensor], Tensor], version: str = ""
) -> ClassPool:
    """Replace the pictures of a pool by activations of a frozen network.

    Args:
        pool: Pictures, uint8.
        reader: Pictures from 0 to 1, (batch, channels, height, width), to (batch, *event), such as
            a `ViewsReader`.
        version: Digest of all that decides the activations beside the pictures. With it, those of
            each class are kept in the user's cache, ``features/<key>.safetensors``, and read from
            there by the next run. Empty for no cache.

    Returns:
        The pool with examples (classes, pictures, *event), float32 with the digits of half
        precision; padding is zero.
    """
    keys = [_key(version, its) if version else "" for its in _by_class(pool)]
    counts = pool.counts.tolist()
    parts = [_kept(key, count) if key else None for key, count in zip(keys, counts, strict=True)]
    missing = [number for number, part in enumerate(parts) if part is None]
    total = int(pool.counts[missing].sum())
    shown = counting("reading pictures", total)
    with shown if total > PICTURES else nullcontext() as show, torch.inference_mode():
        done = 0
        for number in missing:
            parts[number] = read = _read(
                pool.examples[number, : counts[number]], reader, show, done
            )
            done += counts[number]
            if keys[number]:
                _keep(keys[number], read)
    found = pad_sequence([part for part in parts if part is not None], batch_first=True).float()
    lacking = pool.examples.shape[1] - found.shape[1]
    examples = torch.cat([found, found.new_zeros(len(found), lacking, *found.shape[2:])], dim=1)
    return pool._replace(examples=examples)


def _read(
    pictures: Tensor,
    reader: Callable[[Tensor], Tensor],
    show: Callable[[int], None] | None,
    before: int,
) -> Tensor:
    """Read the pictures of a class in batches, in half precision, and show those read so far."""
    read = list[Tensor]()
    for batch in pictures.split(PICTURES):
        read.append(reader(batch.float() / 255).half())
        before += len(batch)
        if show:
            show(before)
    return torch.cat(read)


def thinned(pool: ClassPool, most: int) -> ClassPool:
    """Keep a number of examples of each class, evenly spaced among all of it.

    Args:
        pool: Examples by class.
        most: Maximum number of examples of a class.

    Example:
        >>> pool = ClassPool(torch.arange(14).view(2, 7), torch.tensor([7, 3]), ("a", "b"))
        >>> thinned(pool, 3).examples
        tensor([[0, 2, 4],
                [7, 8, 9]])
    """
    counts = pool.counts.clamp(max=most)
    place = torch.arange(int(counts.max())) * pool.counts[:, None] // counts[:, None]
    rows = torch.arange(len(counts))[:, None]
    there = torch.arange(int(counts.max())) < counts[:, None]
    examples = pool.examples[rows, place.clamp(max=pool.examples.shape[1] - 1)]
    examples[~there] = 0
    return pool._replace(examples=examples, counts=counts)


def _by_class(pool: ClassPool) -> Iterator[Tensor]:
    for pictures, count in zip(pool.examples, pool.counts.tolist(), strict=True):
        yield pictures[:count]


def _key(version: str, pictures: Tensor) -> str:
    about = f"{version}, {tuple(pictures.shape)}".encode()
    pixels = pictures.contiguous().numpy().data
    return hashlib.blake2b(pixels, key=hashlib.sha256(about).digest(), digest_size=16).hexdigest()


def _kept(key: str, pictures: int) -> Tensor | None:
    """Read activations from the cache; None if they are missing or damaged."""
    path = find_file("features", f"{key}.safetensors")
    try:
        read = load_tensors(path)[0]["features"] if path else None
    except (CheckpointError, KeyError):
        return None
    return read if read is not None and len(read) == pictures else None


def _keep(key: str, features: Tensor) -> None:
    """Write activations to the cache; an error is reported and not raised."""
    folder = searched_folders("features")[-1]
    try:
        make_folder(folder, "XDG_CACHE_HOME")
        save_tensors(folder / f"{key}.safetensors", {"features": features}, {})
    except (CheckpointError, ConfigError) as error:
        print(f"Pictures: features were not cached ({error})", file=sys.stderr, flush=True)


def _scaled(pictures: Tensor, size: int) -> Tensor:
    if pictures.shape[-2:] == (size, size):
        return pictures
    return interpolate(
        pictures, (size, size), mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 1)
