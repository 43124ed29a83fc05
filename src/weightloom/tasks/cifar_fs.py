"""CIFAR-FS: 32x32 colour photographs of 100 classes, with the split of the classes.

In:   the file ``cifar_fs_100.npz``: one WebP picture per class, a grid of all its images.
Out:  `ClassPool`, and the classes for meta-training, meta-validation and meta-test.
Independent of tasks.
"""

import io
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weightloom.datasets import FILES, needed_file
from weightloom.errors import DataError, MissingExtraError
from weightloom.tasks.data import ClassPool

FOLDER, FILE = FILES["cifar-fs"]
CLASSES, SIZE = 100, 32
SPLIT = {"train": "train", "validation": "val", "test": "test"}


def load_cifar_fs() -> tuple[ClassPool, dict[str, list[int]]]:
    """Load CIFAR-FS, 100 classes of 3x32x32 uint8 images, with 100 of the 600 images per class.

    The file ``cifar_fs_100.npz`` is read from the first folder of ``searched_folders("cifar_fs")``
    that contains it. It is not downloaded, because its authors state no licence.

    Returns:
        The pool, and the class numbers under ``"train"`` (64), ``"validation"`` (16) and ``"test"``
        (20).

    Raises:
        DataError: If the file is in none of the searched folders, or is damaged.
        MissingExtraError: If Pillow, which decodes WebP, is not installed.

    Source:
        Krizhevsky, "Learning multiple layers of features from tiny images" (2009); the split is by
        Bertinetto et al., "Meta-learning with differentiable closed-form solvers" (2019), who use
        600 images per class.
    """
    path = needed_file(
        FOLDER,
        FILE,
        "CIFAR-FS's file",
        "It holds one WebP picture per class (`webp`, `offsets`, `count`, `size`, `names`, "
        "`split`), and is not downloaded, because its authors state no licence.",
    )
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            f"The images of CIFAR-FS are kept as WebP, which Pillow decodes, and it cannot be "
            f"imported ({error}). "
            "It is an optional part of this library, because only pictures need it. "
            "Type `pip install 'weightloom[images]'`."
        ) from error
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {
                name: file[name] for name in ("webp", "offsets", "count", "size", "names", "split")
            }
        sheets = [
            np.asarray(Image.open(io.BytesIO(arrays["webp"][start:stop].tobytes())).convert("RGB"))
            for start, stop in pairwise(arrays["offsets"].tolist())
        ]
        images = np.stack([_cut(sheet, arrays) for sheet in sheets])
        split = {
            key: np.flatnonzero(arrays["split"] == short).tolist() for key, short in SPLIT.items()
        }
        if len(images) != CLASSES or list(map(len, split.values())) != [64, 16, 20]:
            raise ValueError(
                f"it has {len(images)} classes, split {list(map(len, split.values()))}"
            )
    except Exception as error:  # numpy, zipfile, zlib and Pillow raise many types for a bad file
        raise DataError(
            f"`{path}` cannot be read as CIFAR-FS ({str(error) or type(error).__name__}). It is "
            f"damaged, or another file of that name: {CLASSES} classes, 64 to train on, 16 for "
            "validation and 20 for test, belong in it. Put a whole copy in its place."
        ) from error
    counts = torch.full((CLASSES,), images.shape[1])
    return ClassPool(torch.from_numpy(images), counts, tuple(arrays["names"].tolist())), split


def _cut(sheet: NDArray[np.uint8], arrays: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Cut a sheet of images, row by row, into (images, 3, size, size)."""
    size, count = int(arrays["size"]), int(arrays["count"].min())
    if size != SIZE or int(arrays["count"].max()) != count:
        raise ValueError(
            f"its images are of {size} pixels, {count} to {arrays['count'].max()} a class"
        )
    height, width = sheet.shape[0] // size, sheet.shape[1] // size
    tiles = sheet.reshape(height, size, width, size, 3).transpose(0, 2, 4, 1, 3)
    images: NDArray[np.uint8] = tiles.reshape(-1, 3, size, size)[:count]
    return images
