"""Pictures of a user: a folder with one sub-folder per class becomes a pool of square images.

In:   a folder; optionally with ``train``, ``val`` and ``test`` in it, each with its own classes.
Out:  `FolderPool`: square uint8 images of one size, the split of the classes, and the skipped files
      with the reasons.
Independent of tasks. For a folder without a split, `split_classes` draws one.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from weightloom.errors import ConfigError, DataError, MissingExtraError
from weightloom.limits import MEGAPIXELS_VARIABLE, MOST_MEMORY_BYTES, most_pixels
from weightloom.tasks.data import ClassPool
from weightloom.tasks.tasks import Skipped
from weightloom.texts import home

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


class FolderPool(NamedTuple):
    """Pictures of a folder as a pool, with their split and the skipped files."""

    pool: ClassPool
    """Images by class; classes are sorted by name."""
    split: dict[str, list[int]] | None
    """Class numbers by ``"train"``, ``"validation"`` and ``"test"``. None if the folder has no
    split."""
    skipped: tuple[Skipped, ...]
    """Files and folders that were not used, with the reasons."""


def load_folder(
    path: str | Path,
    *,
    size: int = 32,
    channels: int | None = None,
    fewest: int = 2,
    ways: int = 2,
    most: int | None = None,
) -> FolderPool:
    """Load images from a folder with one sub-folder per class, as PNG, JPEG, WebP, GIF and others.

    PNG, JPEG, WebP, GIF (first frame), BMP, TIFF and PPM are read, at any size. Each picture is
    rotated by its EXIF orientation, composed on white where it is transparent, cropped to the
    central square, and resized. 16-bit pictures become 8-bit. Skipped are: hidden files, other
    files, folders within a class's folder, pictures of more than 50 megapixels
    (``WEIGHTLOOM_MAX_MEGAPIXELS`` raises this limit), and links to or copies of a file of another
    class.

    Args:
        path: The folder. If every folder in it is named ``train``, ``val``, ``valid``,
            ``validation`` or ``test``, the class folders are expected in those.
        size: Height and width of the images, in pixels.
        channels: 1 for grey, 3 for colour. None: 1 if every picture is grey, else 3.
        fewest: Minimum pictures of a class, shots plus queries; smaller classes are skipped.
        ways: Minimum number of classes: those of one task.
        most: Maximum pictures of a class, lowered to those that fit in memory; of larger classes,
            pictures evenly spaced by name are loaded. None: all.

    Raises:
        DataError: If the folder does not exist or has too few classes, a class is in two splits, or
            the images would take more than 2 GB.
        ConfigError: If ``size`` is below 1, or ``channels`` is not 1, 3 or None.
        MissingExtraError: If Pillow is not installed.
    """
    root = home(path)
    _check(root, size, channels)
    image = _pillow()
    skipped: list[Skipped] = []
    split_of = _class_folders(root, skipped)
    met: dict[bytes, Path] = {}
    files = {folder: _first_met(_files(folder, skipped), met, skipped) for folder in split_of}
    if most is not None:
        room = MOST_MEMORY_BYTES // max(1, len(files) * (channels or 3) * size**2)
        most = max(fewest, min(most, room))
        files = {folder: _spaced(found, most, folder, skipped) for folder, found in files.items()}
    _check_bytes(root, [len(listed) for listed in files.values()], size, channels or 3)
    pictures: dict[Path, list[Tensor]] = {}
    for folder, listed in files.items():
        found = list(_decoded(image, listed, size, channels, skipped))
        if len(found) >= max(fewest, 1):
            pictures[folder] = found
        else:
            skipped.append(Skipped(str(folder), f"{len(found)} of the {fewest} pictures needed"))
    if len(pictures) < max(ways, 1):
        raise DataError(
            f"`{root}` has {len(pictures)} classes of at least {fewest} pictures, and {ways} are "
            f"needed. A class is a sub-folder with pictures in it; {_reasons(skipped)}. "
            f"Put a folder per class into `{root}`, or ask for fewer ways, shots or queries."
        )
    pool = _pool(pictures, size, channels)
    return FolderPool(pool, _split(list(pictures), split_of), tuple(skipped))


def _pool(pictures: dict[Path, list[Tensor]], size: int, channels: int | None) -> ClassPool:
    """Stack the pictures of each class; without ``channels``, in grey if all of them are."""
    counts = torch.tensor([len(found) for found in pictures.values()])
    most = int(counts.max())
    examples = torch.zeros(len(counts), most, channels or 3, size, size, dtype=torch.uint8)
    for row, found in enumerate(pictures.values()):
        examples[row, : len(found)] = torch.stack(found)
    if channels is None and bool((examples == examples[:, :, :1]).all()):
        examples = examples[:, :, :1].clone()
    return ClassPool(examples, counts, tuple(folder.name for folder in pictures))


def _split(folders: list[Path], split_of: dict[Path, str]) -> dict[str, list[int]] | None:
    """Return the numbers of the class folders by split, or None if they have none."""
    if not any(split_of.values()):
        return None
    split: dict[str, list[int]] = {name: [] for name in ("train", "validation", "test")}
    for row, folder in enumerate(folders):
        split[split_of[folder]].append(row)
    return split


def looks_coloured(path: str | Path, pictures: int = 20) -> bool:
    """Say whether one of a few pictures of a folder is in colour.

    Args:
        path: A folder with one sub-folder per class, as for `load_folder`.
        pictures: Number of pictures that are looked at, the first of each class.

    Returns:
        False too if there are no pictures, or Pillow is not installed.
    """
    try:
        image, root, skipped = _pillow(), home(path), list[Skipped]()
        first = [_files(folder, skipped)[:1] for folder in _class_folders(root, skipped)]
    except (DataError, MissingExtraError):
        return False
    looked = [file for files in first for file in files][:pictures]
    return any(
        bool((found != found[:1]).any()) for found in _decoded(image, looked, 32, None, skipped)
    )


def picture(source: Any, size: int, channels: int) -> Tensor:
    """Load one picture as `load_folder` does, (channels, size, size), uint8.

    Args:
        source: A path, or a picture opened by Pillow.
        size: Height and width of the result, in pixels.
        channels: 1 for grey, 3 for colour.

    Raises:
        DataError: If the file does not exist or cannot be decoded.
        MissingExtraError: If Pillow is not installed.
    """
    image, most = _pillow(), most_pixels()
    path = home(source) if isinstance(source, str | Path) else None
    try:
        if path is None:
            return _square(source.copy(), size, channels, most)
        if not path.is_file():
            raise ValueError("it is not a regular file" if path.exists() else "it is not there")
        return _decode(image, path, size, channels, most)
    except Exception as error:  # decoders raise errors of any type on a broken picture
        name = "A picture" if path is None else f"`{path}`"
        raise DataError(
            f"{name} cannot be read as a picture ({str(error) or type(error).__name__}). "
            f"{', '.join(FORMATS)} are "
            "known. Check the path, or leave it out."
        ) from error


def split_classes(
    classes: int, seed: int = 0, fractions: Sequence[float] = (0.64, 0.16, 0.2), fewest: int = 2
) -> dict[str, list[int]]:
    """Split classes at random into disjoint ``"train"``, ``"validation"`` and ``"test"`` sets.

    Args:
        classes: Number of classes.
        seed: Seed of the shuffle.
        fractions: Fractions of train, validation and test; they sum to 1.
        fewest: Minimum classes of a part: the ``ways`` of a task. If the classes are too few for
            three parts, validation is empty.

    Returns:
        Sorted class numbers of each part.

    Raises:
        ConfigError: If ``classes < 2 * fewest``, or ``fractions`` are not three numbers from 0 that
            sum to 1.

    Example:
        >>> {part: len(numbers) for part, numbers in split_classes(50).items()}
        {'train': 32, 'validation': 8, 'test': 10}
        >>> {part: len(numbers) for part, numbers in split_classes(11, fewest=5).items()}
        {'train': 6, 'validation': 0, 'test': 5}
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"`fractions={tuple(fractions)}`. They are the shares of train, validation and test, "
            "from 0, and sum to 1. Pass three numbers, as in `fractions=(0.64, 0.16, 0.2)`."
        )
    if classes < 2 * fewest:
        raise ConfigError(
            f"There are {classes} classes to split, and a part needs {fewest}. Classes to train on "
            f"and classes to be judged on must differ. Collect at least {2 * fewest} classes, or "
            f"ask for at most {classes // 2} ways."
        )
    validation, test = (round(fraction * classes) for fraction in fractions[1:])
    test = min(max(test, fewest), classes - fewest)
    room = classes - fewest - test
    validation = min(max(validation, fewest), room) if fractions[1] > 0 and room >= fewest else 0
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).tolist()
    train = classes - validation - test
    return {
        "train": sorted(order[:train]),
        "validation": sorted(order[train : train + validation]),
        "test": sorted(order[train + validation :]),
    }


def _class_folders(root: Path, skipped: list[Skipped]) -> dict[Path, str]:
    """Return the class folders, sorted by name, each with its split; ``""`` without a split."""
    folders = _folders(root, skipped)
    if not folders or any(folder.name.lower() not in SPLITS for folder in folders):
        return dict.fromkeys(folders, "")
    inner = {part: _folders(part, skipped) for part in folders}
    found = [
        (folder, SPLITS[part.name.lower()]) for part, of_part in inner.items() for folder in of_part
    ]
    found.sort(key=lambda pair: pair[0].name)
    for (first, first_split), (second, second_split) in pairwise(found):
        if first.name == second.name:
            raise DataError(
                f"`{root}` has a class `{first.name}` for {first_split} and one for "
                f"{second_split}. Few-shot tasks are "
                "judged on classes that were not trained on. Put the folders of all classes side "
                "by side into one folder, and they are split by a seed; or give each class to one "
                "split only."
            )
    return dict(found)


def _folders(parent: Path, skipped: list[Skipped]) -> list[Path]:
    """List the folders in a folder, sorted by name; other entries are skipped."""
    folders = []
    for entry in _entries(parent):
        if entry.name.startswith("."):
            skipped.append(Skipped(str(entry), "hidden"))
        elif entry.is_dir():
            folders.append(entry)
        else:
            skipped.append(Skipped(str(entry), "in no class's folder"))
    return folders


def _entries(folder: Path) -> list[Path]:
    """List the entries of a folder, sorted by name."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"`{folder}` cannot be read ({error.strerror}). It is a folder of pictures, or is in "
            f"one. Change its permissions, e.g. by `chmod u+rx {folder}`, or move it away."
        ) from error


def _files(folder: Path, skipped: list[Skipped]) -> list[Path]:
    """List the regular files in a class's folder, sorted by name; other entries are skipped."""
    files = []
    for entry in _entries(folder):
        if entry.name.startswith("."):
            skipped.append(Skipped(str(entry), "hidden"))
        elif entry.is_dir():
            skipped.append(Skipped(str(entry), "a folder within a class's folder"))
        elif not entry.is_file():
            skipped.append(Skipped(str(entry), "a broken link, or not a regular file"))
        else:
            files.append(entry)
    return files


def _first_met(files: list[Path], met: dict[bytes, Path], skipped: list[Skipped]) -> list[Path]:
    """Return the files without those that an earlier class has too, byte for byte.

    Otherwise classes for training and for test could share pictures, by linked or copied folders.
    """
    kept = []
    for file in files:
        try:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "blake2b").digest()
        except OSError as error:
            skipped.append(Skipped(str(file), f"cannot be read ({error.strerror})"))
            continue
        first = met.setdefault(digest, file)
        if first.parent == file.parent:
            kept.append(file)
        else:
            linked = "a link to" if first.resolve() == file.resolve() else "a copy of"
            skipped.append(Skipped(str(file), f"{linked} `{first}`, of another class"))
    return kept


def _spaced(files: list[Path], most: int, folder: Path, skipped: list[Skipped]) -> list[Path]:
    """Return at most ``most`` files, evenly spaced."""
    if len(files) <= most:
        return files
    why = f"{len(files) - most:,} of its {len(files):,} pictures, since up to {most} are read"
    skipped.append(Skipped(str(folder), why))
    return [files[number * len(files) // most] for number in range(most)]


def _decoded(
    image: ModuleType, files: list[Path], size: int, channels: int | None, skipped: list[Skipped]
) -> Iterator[Tensor]:
    """Decode pictures, (channels, size, size); those that cannot be decoded are skipped."""
    most = most_pixels()
    for file in files:
        try:
            yield _decode(image, file, size, channels, most)
        except image.UnidentifiedImageError:
            skipped.append(Skipped(str(file), "no picture in a known format"))
        except Exception as error:  # decoders raise errors of any type on a broken picture
            skipped.append(
                Skipped(str(file), f"cannot be decoded ({str(error) or type(error).__name__})")
            )


def _decode(image: ModuleType, file: Path, size: int, channels: int | None, most: int) -> Tensor:
    """Decode the picture in a file."""
    with warnings.catch_warnings(), _any_size(image):
        warnings.simplefilter("ignore")  # about size, palettes and broken EXIF
        with image.open(file, formats=FORMATS) as opened:
            return _square(opened, size, channels, most)


@contextmanager
def _any_size(image: Any) -> Iterator[None]:
    """Lift Pillow's limit on the size of a picture; `_square` applies ours before decoding."""
    usual, image.MAX_IMAGE_PIXELS = image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        image.MAX_IMAGE_PIXELS = usual


def _square(opened: Any, size: int, channels: int | None, most: int) -> Tensor:
    """Rotate, crop, compose on white and resize one picture; ``opened`` may be modified."""
    from PIL import Image, ImageOps

    pixels = opened.width * opened.height
    if not pixels:
        raise ValueError("it has no pixel")
    if pixels > most:
        raise ValueError(
            f"it has {pixels / 1e6:.3g} megapixels, and up to {most / 1e6:g} are read; "
            f"`{MEGAPIXELS_VARIABLE}={-(-pixels // 1_000_000)}` allows it"
        )
    mode = "L" if channels == 1 else "RGB"
    opened.draft(None, (2 * size, 2 * size))  # decodes a large JPEG at a lower resolution
    ImageOps.exif_transpose(opened, in_place=True)
    side = min(opened.size)
    left, top = (opened.width - side) // 2, (opened.height - side) // 2
    picture = opened.crop((left, top, left + side, top + side))
    if picture.mode.startswith(("I", "F")):
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    pixels = torch.from_numpy(
        np.array(picture.convert(mode).resize((size, size), Image.Resampling.BICUBIC))
    )
    return pixels[None] if mode == "L" else pixels.permute(2, 0, 1).contiguous()


def _eight_bits(picture: Any) -> Any:
    """Scale a grey picture of 16 or 32 bits to 0 to 255.

    Integers beyond 255 are taken as 16-bit values, and floats up to 1 as fractions.
    """
    from PIL import Image

    values = np.nan_to_num(np.array(picture, dtype=np.float32), copy=False)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and values.max() > 255):
        values /= 257
    elif picture.mode == "F" and values.max() <= 1:
        values *= 255
    return Image.fromarray(values.round(out=values).clip(0, 255, out=values).astype(np.uint8))


def _check(root: Path, size: int, channels: int | None) -> None:
    if size < 1 or channels not in (None, 1, 3):
        raise ConfigError(
            f"`size={size}` and `channels={channels}`. An image has a size from 1 pixel, and is "
            "grey (1) or in colour (3). Pass `size=28`, 32 or 84, and `channels=1`, 3 or None."
        )
    if not root.is_dir():
        found = "is a file" if root.exists() else "is not there"
        raise DataError(
            f"The folder of pictures `{root}` {found}. It holds one sub-folder per class, with the "
            "pictures in them. Pass the path of such a folder."
        )


def _check_bytes(root: Path, counts: list[int], size: int, channels: int) -> None:
    of_pixels = len(counts) * max(counts, default=0) * channels
    if of_pixels * size**2 > MOST_MEMORY_BYTES:
        raise DataError(
            f"`{root}` has {len(counts)} classes of up to {max(counts):,} pictures: at "
            f"`size={size}` they fill {of_pixels * size**2 / 1e9:.1f} GB, and all are held in "
            f"memory, each class padded to the largest. At most "
            f"{MOST_MEMORY_BYTES / 1e9:.0f} GB fit. Pass "
            f"`size={int((MOST_MEMORY_BYTES / of_pixels) ** 0.5)}` or smaller, or fewer pictures "
            "of the largest classes."
        )


def _reasons(skipped: list[Skipped]) -> str:
    """Return a phrase with the first three skipped files and the reasons."""
    if not skipped:
        return "it is empty"
    first = "; ".join(f"`{Path(entry).name}`: {why}" for entry, why in skipped[:3])
    return f"{len(skipped)} files or folders were skipped ({first}{'; …' * (len(skipped) > 3)})"


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            f"Pictures are decoded by Pillow, which cannot be imported ({error}). "
            "It is an optional part of this library, because only pictures need it. "
            "Type `pip install 'weightloom[images]'`."
        ) from error
    return Image
