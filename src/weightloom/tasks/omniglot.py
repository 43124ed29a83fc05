"""Omniglot's file: built once from the authors' two zips of drawings, then read and checked.

In:   a folder for the file, or the file.
Out:  its arrays: 4-bit 28x28 pixels, and the origin of each character.
Independent of the search for the file, of tensors and of tasks. The zips are decoded in memory, and
no file that is read can execute code.
"""

import hashlib
import http.client
import io
import os
import re
import struct
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightloom.datasets import FILES
from weightloom.errors import DataError

Arrays = dict[str, NDArray[Any]]
"""``images4``: (classes, drawers, 28, 14), two pixels per byte, ink bright; ``alphabet``:
(classes,), index into the names ``alphabets``; ``character``: (classes,), the authors' folder name;
``background``: (classes,), True for their background set."""

FILE = FILES["omniglot"][1]
CLASSES, DRAWERS = 1623, 20
BACKGROUND = 964
"""Size of the authors' background set: the first rows of each array."""
SMALL1 = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
"""Alphabets of the authors' first "minimal" background set, ``images_background_small1``, with 136
characters."""
FULL, SMALL = 105, 28

HOME = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
ZIPS_MD5 = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
"""MD5 of each zip, from torchvision 0.22, ``torchvision.datasets.Omniglot``. It detects a damaged
download; https protects against a forged one."""

TIMEOUT_S = 30.0
MOST_BYTES = 64_000_000
"""Limit of a download; the larger zip has under 10 MB."""

_DRAWING = re.compile(r"images_(background|evaluation)/([^/]+)/(character\d+)/(\d{4})_(\d{2})\.png")


def fetch_omniglot(folder: Path) -> Path:
    """Download the authors' zips, check their hashes, and write `FILE` into ``folder`` atomically.

    Returns:
        The path of the file.

    Raises:
        OSError: If the network fails, a hash differs, or the folder is not writable.
        DataError: If the hashes match, but a drawing is missing or cannot be decoded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = arrays_from_zips([_fetched(f"{HOME}/{name}", md5) for name, md5 in ZIPS_MD5.items()])
    path = folder / FILE
    temporary = path.with_name(f".{FILE}.{os.getpid()}.tmp")
    named: dict[str, Any] = {**arrays}  # numpy's stub takes one of the names for `allow_pickle`
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **named)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_omniglot(path: Path) -> Arrays:
    """Read the arrays of `FILE`, and check their dtypes and shapes.

    Raises:
        DataError: If the file is damaged, truncated, or has other contents.
    """
    try:
        # Opened here, because numpy does not close a file that it cannot read.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {
                name: file[name]
                for name in ("images4", "alphabet", "alphabets", "character", "background")
            }
        _check_arrays(arrays)
    except Exception as error:  # numpy, zipfile and zlib raise many types for a bad file
        reason = (
            "it holds pickles" if "pickle" in str(error) else str(error) or type(error).__name__
        )
        raise DataError(
            f"`{path}` cannot be read as Omniglot ({reason}). It is damaged, or "
            f"another file of that name: {CLASSES:,} characters of {DRAWERS} drawings belong in "
            "it. Delete it and run again with a network to download it, or put a whole copy in its "
            "place."
        ) from error
    return arrays


def arrays_from_zips(zips: list[bytes]) -> Arrays:
    """Convert the contents of the authors' zips; row i is their character number i + 1.

    Raises:
        DataError: If a drawing is missing, unknown, or not a PNG of 105x105.
    """
    pixels = np.zeros((CLASSES, DRAWERS, SMALL, SMALL), np.uint8)
    there = np.zeros((CLASSES, DRAWERS), bool)
    origin: dict[int, tuple[str, str, bool]] = {}
    for match, content in _drawings(zips):
        row, drawer = int(match[4]) - 1, int(match[5]) - 1
        if not (0 <= row < CLASSES and 0 <= drawer < DRAWERS):
            raise _unexpected(
                f"hold `{match[0]}`, which is beyond character {CLASSES} or drawer {DRAWERS}"
            )
        pixels[row, drawer] = _small_from_png(content(), match[0])
        there[row, drawer] = True
        origin[row] = (match[2], match[3], match[1] == "background")
    if not there.all():
        row, drawer = np.argwhere(~there)[0]
        raise _unexpected(
            f"lack {int((~there).sum()):,} drawings, the first of them "
            f"{row + 1:04}_{drawer + 1:02}.png"
        )
    alphabets = list(dict.fromkeys(origin[row][0] for row in range(CLASSES)))
    return {
        "images4": pixels[..., 0::2] << 4 | pixels[..., 1::2],
        "alphabet": np.array([alphabets.index(origin[row][0]) for row in range(CLASSES)], np.uint8),
        "alphabets": np.array(alphabets),
        "character": np.array([origin[row][1] for row in range(CLASSES)]),
        "background": np.array([origin[row][2] for row in range(CLASSES)]),
    }


def _drawings(zips: list[bytes]) -> Iterator[tuple[re.Match[str], Callable[[], bytes]]]:
    """Iterate over the drawings of all zips: the parts of the path, and a reader of the content."""
    for packed in zips:
        with zipfile.ZipFile(io.BytesIO(packed)) as file:
            for name in file.namelist():
                if match := _DRAWING.fullmatch(name):
                    yield match, partial(file.read, name)


def unpack4(images4: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Unpack ``images4`` to pixels of 0 to 255, (..., 28, 28)."""
    pixels = np.empty((*images4.shape[:-1], 2 * images4.shape[-1]), np.uint8)
    pixels[..., 0::2], pixels[..., 1::2] = (images4 >> 4) * 17, (images4 & 15) * 17
    return pixels


def shrink(ink: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Downsample drawings, (..., 105, 105), to (..., 28, 28) by box averages in levels 0 to 15.

    105 / 28 is 3.75, so a box consists of the 3 or 4 pixels per axis whose centres lie in it. Rows
    of a box are averaged first, and rounded to 8 bits; then the columns are. The result is equal to
    Pillow's box filter, pixel by pixel.
    """
    # Each edge is rounded to a whole pixel.
    edges = (2 * FULL * np.arange(SMALL + 1) + SMALL) // (2 * SMALL)
    starts, widths = edges[:-1], np.diff(edges)
    across = _rounded(255 * np.add.reduceat(ink.astype(np.int64), starts, axis=-1), widths)
    down = _rounded(np.add.reduceat(across, starts, axis=-2), widths[:, None])
    return _rounded(down, np.array(17)).astype(np.uint8)


def grey_from_png(content: bytes) -> NDArray[np.uint8]:
    """Decode a non-interlaced greyscale PNG of 1 or 8 bits per pixel, (height, width), uint8.

    Raises:
        ValueError: If the content is not such a PNG, or is truncated.

    Source:
        PNG specification, third edition (W3C 2025), sections 5, 7.2 and 9.
    """
    width, height, bits = _png_header(content)
    row_bytes = (width * bits + 7) // 8
    packed = zlib.decompressobj()
    unpacked = packed.decompress(_png_pixels(content), height * (1 + row_bytes))
    if len(unpacked) != height * (1 + row_bytes):
        raise ValueError("its pixels are cut short")
    rows = _unfiltered(np.frombuffer(unpacked, np.uint8).reshape(height, 1 + row_bytes))
    return np.unpackbits(rows, axis=1, count=width) * np.uint8(255) if bits == 1 else rows


def _png_header(content: bytes) -> tuple[int, int, int]:
    """Return width, height and bits per pixel; refuse other PNGs than plain grey ones."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR" or len(content) < 33:
        raise ValueError("it does not begin as a PNG does")
    width, height, bits, colour, *_, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    if colour != 0 or bits not in (1, 8) or interlaced:
        raise ValueError(
            f"colour type {colour}, {bits} bits, interlace {interlaced}; only plain 1 or 8 bit "
            "grey is read"
        )
    return width, height, bits


def _png_pixels(content: bytes) -> bytes:
    """Join the contents of the IDAT chunks: the compressed pixels."""
    packed, at = b"", 8
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        packed += content[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    return packed


def _unfiltered(filtered: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo the row filters, named by the first byte of each row, for pixels of at most a byte."""
    kinds, rows = filtered[:, 0], filtered[:, 1:].copy()
    if kinds.max(initial=0) > 4:
        raise ValueError(f"row filter {kinds.max()} is not one of 0 to 4")
    above = bytes(rows.shape[1])
    for y, kind in enumerate(kinds):
        row = bytearray(rows[y].tobytes())
        left = corner = 0
        for x, up in enumerate(above if kind else b""):
            left = row[x] = (row[x] + _GUESSES[kind](left, up, corner)) % 256
            corner = up
        rows[y], above = row, bytes(row)
    return rows


def _paeth(left: int, up: int, corner: int) -> int:
    """Return the neighbour nearest to left + up - corner; ties go to the first of the three."""
    target = left + up - corner
    return min((left, up, corner), key=lambda near: abs(target - near))


_GUESSES: tuple[Callable[[int, int, int], int], ...] = (
    lambda left, up, corner: 0,
    lambda left, up, corner: left,
    lambda left, up, corner: up,
    lambda left, up, corner: (left + up) // 2,
    _paeth,
)
"""Prediction of a pixel from its three neighbours, per row filter; the file contains the
difference to it."""


def _small_from_png(content: bytes, name: str) -> NDArray[np.uint8]:
    try:
        grey = grey_from_png(content)
    except (ValueError, zlib.error) as error:
        raise _unexpected(f"hold `{name}`, which cannot be decoded ({error})") from error
    if grey.shape != (FULL, FULL):
        raise _unexpected(f"hold `{name}` of {grey.shape[1]}x{grey.shape[0]} pixels")
    return shrink(grey < 128)  # the authors draw in black


def _rounded(sums: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``sums / counts`` as integers, rounded half up."""
    rounded: NDArray[np.int64] = (2 * sums + counts) // (2 * counts)
    return rounded


def _fetched(url: str, md5: str) -> bytes:
    print(f"Omniglot: downloading {url}", file=sys.stderr, flush=True)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            content: bytes = response.read(MOST_BYTES)
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            raise OSError(f"{url}: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{url}: {getattr(error, 'reason', None) or error}") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise OSError(f"{url} has the MD5 {found} where {md5} is published, so it was not unpacked")
    return content


def _check_arrays(arrays: Mapping[str, NDArray[Any]]) -> None:
    alphabets = len(arrays["alphabets"])
    expected = {
        "images4": ("u", (CLASSES, DRAWERS, SMALL, SMALL // 2)),
        "alphabet": ("u", (CLASSES,)),
        "alphabets": ("U", (alphabets,)),
        "character": ("U", (CLASSES,)),
        "background": ("b", (CLASSES,)),
    }
    for name, (kind, shape) in expected.items():
        if arrays[name].dtype.kind != kind or arrays[name].shape != shape:
            raise ValueError(
                f"`{name}` is {arrays[name].dtype} of shape {arrays[name].shape}, not {shape}"
            )
    if arrays["images4"].dtype != np.uint8 or arrays["alphabet"].max() >= alphabets:
        raise ValueError(
            f"`images4` is {arrays['images4'].dtype}, or `alphabet` points beyond {alphabets} "
            "alphabets"
        )


def _unexpected(found: str) -> DataError:
    return DataError(
        f"The zips of Omniglot {found}. Each of its {CLASSES:,} characters has {DRAWERS} drawings "
        f"of {FULL}x{FULL} pixels, and every one is needed. "
        f"Set `WEIGHTLOOM_DATA` to a folder that holds `omniglot/{FILE}` from elsewhere."
    )
