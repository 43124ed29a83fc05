"""Images: pixels in, a PNG file or a data URI out."""

import struct
import zlib
from base64 import b64encode

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from weightloom.errors import ShapeError

COLOUR_TYPES = {1: 0, 3: 2}
"""Colour type of the PNG format, by number of channels."""


def encode_png(pixels: UInt8[Tensor, "channels height width"]) -> bytes:
    """Encode an image as a PNG file, without an imaging library.

    Args:
        pixels: One channel (grey) or three (red, green, blue).

    Raises:
        ShapeError: If the number of channels is neither 1 nor 3.

    Example:
        >>> encode_png(torch.zeros(1, 8, 8, dtype=torch.uint8))[1:4]
        b'PNG'

    Source:
        W3C, "Portable Network Graphics" (third edition), sections 5 and 11; every row has filter 0.
    """
    channels, height, width = pixels.shape
    if channels not in COLOUR_TYPES:
        raise ShapeError(
            f"`pixels` has {channels} channels. A PNG image here has 1 channel, grey, or 3, red, "
            "green and blue. To see other channels, pass their mean, `pixels.float().mean(0, "
            "keepdim=True).byte()`."
        )
    rows = pixels.permute(1, 2, 0).reshape(height, width * channels)
    filtered = torch.cat([rows.new_zeros(height, 1), rows], dim=1)
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    data = zlib.compress(filtered.cpu().contiguous().numpy().tobytes(), 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", data)
        + _chunk(b"IEND", b"")
    )


def data_uri(image: Float[Tensor, "channels height width"]) -> str:
    """Return an image with values in [0, 1] as a data URI of a PNG file.

    Values are clipped to [0, 1]. An image of neither one nor three channels is shown as the mean
    over its channels.
    """
    shown = image if len(image) in COLOUR_TYPES else image.mean(0, keepdim=True)
    pixels = (shown.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    return "data:image/png;base64," + b64encode(encode_png(pixels)).decode()


def side_by_side(images: Float[Tensor, "count channels height width"]) -> Tensor:
    """Join images into one, (channels, height, width), with a grey line of one pixel between them.

    Example:
        >>> side_by_side(torch.zeros(2, 1, 1, 3))
        tensor([[[0.0000, 0.0000, 0.0000, 0.5000, 0.0000, 0.0000, 0.0000]]])
    """
    with_lines = torch.nn.functional.pad(images, (0, 1), value=0.5)
    return with_lines.permute(1, 2, 0, 3).flatten(2)[..., :-1]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
