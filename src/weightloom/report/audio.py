"""Sounds: samples in, a WAV file or a data URI out."""

import io
import wave
from base64 import b64encode

import torch
from torch import Tensor

from weightloom.errors import ConfigError, ShapeError

LOUDEST = 32767
"""Largest number of a 16-bit sample."""


def encode_wav(sound: Tensor, rate: int) -> bytes:
    """Encode a sound as a WAV file: one channel, 16 bits per sample.

    Args:
        sound: Samples from -1 to 1, (samples,). Larger ones are clipped, NaN is silence.
        rate: Samples per second.

    Raises:
        ShapeError: If ``sound`` has more axes than one.
        ConfigError: If ``rate`` is below 1.

    Example:
        >>> encode_wav(torch.zeros(4), rate=8000)[:4], len(encode_wav(torch.zeros(4), 8000))
        (b'RIFF', 52)
    """
    if sound.ndim != 1:
        raise ShapeError(
            f"`sound` has shape {tuple(sound.shape)}. A sound here is one channel, (samples,). For "
            "several, pass their mean, `sound.mean(0)`; a spectrogram must be turned into samples "
            "first."
        )
    if rate < 1:
        raise ConfigError(
            f"`rate={rate}`. It is the number of samples per second. Pass that of the recordings, "
            "such as 8000."
        )
    levels = (sound.detach().nan_to_num().clamp(-1, 1) * LOUDEST).round().to(torch.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes(levels.cpu().numpy().astype("<i2").tobytes())
    return file.getvalue()


def sound_uri(sound: Tensor, rate: int) -> str:
    """Return a sound as a data URI of a WAV file; arguments and errors as for `encode_wav`."""
    return "data:audio/wav;base64," + b64encode(encode_wav(sound, rate)).decode()
