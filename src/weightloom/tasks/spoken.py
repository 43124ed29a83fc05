"""Spoken digits: recordings of ten words by six people, as spectrograms.

In:   the file ``fsdd_mulaw8.npz``, 3,000 recordings at 8 kHz.
Out:  `ClassPool` of spectrograms, 1x32x32, low tones at the bottom, loud bright; groups of classes
      by speaker.
Independent of tasks.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weightloom.datasets import FILES, needed_file
from weightloom.errors import ConfigError, DataError, nearest
from weightloom.tasks.data import ClassPool

FOLDER, FILE = FILES["spoken-digits"]
RATE, BANDS, FRAMES = 8000, 32, 32
WINDOW, HOP = 256, 160
"""Samples per window (32 ms) and per step (20 ms). 32 frames cover 0.64 s, the full length of nine
in ten recordings."""
LOUDEST_DB, RANGE_DB = 0.0, 60.0
"""Decibels of white, relative to the loudest point of the recording, and decibels down to black."""


class SpokenDigits(NamedTuple):
    """Spectrograms of spoken digits, with their speakers."""

    pool: ClassPool
    """Spectrograms by class. Classes are named e.g. ``"7"`` or ``"george/7"``."""
    speakers: tuple[str, ...]
    """Names of the six speakers."""
    groups: Tensor
    """Speaker of each class, (classes,), for `ClassTasks.groups`; all 0 if classes mix speakers."""

    def of(self, speakers: list[int]) -> Tensor:
        """Return the numbers of the classes of the given speakers.

        Args:
            speakers: Speakers by number, 0 to 5.

        Raises:
            ConfigError: If a speaker has no class of this number.
        """
        known = self.groups.unique().tolist()
        if not set(speakers) <= set(known):
            raise ConfigError(
                f"`speakers={speakers}`, but the classes here are of {known}. Classes differ by "
                'speaker only with `label="speaker-word"`. Pass numbers from 0 to 5, with that '
                "label."
            )
        return torch.isin(self.groups, torch.tensor(speakers)).nonzero()[:, 0]


def load_spoken_digits(label: str = "speaker-word") -> SpokenDigits:
    """Load the Free Spoken Digit Dataset: 50 recordings of each of 10 words by each of 6 speakers.

    The file is read from the first folder of ``searched_folders("free_spoken_digits")`` that
    contains it. It is not downloaded.

    Args:
        label: Definition of a class. ``"speaker-word"``: one word by one speaker, 60 classes of
            50; a task can then be drawn from one speaker, with other speakers held out. ``"word"``:
            one word by all speakers, 10 classes of 300.

    Raises:
        ConfigError: If ``label`` is neither of them.
        DataError: If none of the searched folders contains the file, or it is damaged.

    Source:
        Jackson et al., "Free Spoken Digit Dataset" (2018), CC BY-SA 4.0.
    """
    if label not in ("speaker-word", "word"):
        raise ConfigError(
            f"`label={label!r}`. A class is a word by one speaker, or a word by all of them. "
            f"{nearest(label, ['speaker-word', 'word'])}"
        )
    arrays = _arrays()
    speaker, digit = (
        torch.from_numpy(arrays[name].astype(np.int64)) for name in ("speaker", "digit")
    )
    classes = speaker * 10 + digit if label == "speaker-word" else digit
    order = classes.argsort(stable=True)
    count = len(classes) // int(classes.max() + 1)
    images = spectrograms(_waves(arrays))[order].reshape(-1, count, 1, BANDS, FRAMES)
    speakers = tuple(arrays["speakers"].tolist())
    counts = torch.full((len(images),), count)
    if label == "word":
        return SpokenDigits(
            ClassPool(images, counts, tuple("0123456789")),
            speakers,
            torch.zeros(10, dtype=torch.long),
        )
    names = tuple(f"{name}/{word}" for name in speakers for word in range(10))
    return SpokenDigits(ClassPool(images, counts, names), speakers, torch.arange(len(images)) // 10)


def load_words() -> list[tuple[Tensor, Tensor]]:
    """Load the recordings of each word, by all speakers, with the number of the take.

    The file is that of `load_spoken_digits`. Takes 0 to 4 of each word and speaker are the set's
    own test set.

    Returns:
        For each of the words 0 to 9: sounds, (recordings, 5120), of 0.64 s in [-1, 1], longer ones
        cut to their middle, shorter ones padded with zeros; and takes, (recordings,).

    Raises:
        DataError: If none of the searched folders contains the file, or it is damaged.
    """
    arrays = _arrays("take")
    waves = _waves(arrays)
    digit, take = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("digit", "take"))
    return [(waves[digit == word], take[digit == word]) for word in range(10)]


def spoken_split(held_out: int = 0) -> dict[str, list[int]]:
    """Return 4 speakers for meta-training, 1 for validation and 1 for test, by number.

    Args:
        held_out: The test speaker, 0 to 5. The speaker after it is for validation.

    Raises:
        ConfigError: If ``held_out`` is outside this range.

    Example:
        >>> spoken_split(5)
        {'train': [1, 2, 3, 4], 'validation': [0], 'test': [5]}
    """
    if not 0 <= held_out < 6:
        raise ConfigError(
            f"`held_out={held_out}`. There are six speakers. Pass a number from 0 to 5."
        )
    validation = (held_out + 1) % 6
    train = [speaker for speaker in range(6) if speaker not in (held_out, validation)]
    return {"train": train, "validation": [validation], "test": [held_out]}


def spectrograms(waves: Tensor) -> Tensor:
    """Compute log mel spectrograms of 32 bands by 32 frames of 20 ms, from sounds at 8 kHz.

    The power of a short-time Fourier transform is summed in triangular bands, evenly spaced in mel,
    and converted to decibels relative to the loudest point of the sound: -60 dB is 0, 0 dB is 255.

    Args:
        waves: Sounds, (sounds, samples), in -1 to 1. Longer ones than 32 frames are cut at both
            ends, shorter ones are padded with zeros at the end.

    Returns:
        Spectrograms, (sounds, 1, 32, 32), uint8, the lowest band in the last row.
    """
    samples = FRAMES * HOP
    if (extra := waves.shape[1] - samples) > 0:
        waves = waves[:, extra // 2 : extra // 2 + samples]
    waves = torch.nn.functional.pad(waves, (0, samples - waves.shape[1]))
    parts = []
    for some in waves.split(500):  # so that the transform stays in the processor's cache
        padded = torch.nn.functional.pad(some, (WINDOW // 2, WINDOW // 2 - HOP))
        window = torch.hann_window(WINDOW, dtype=some.dtype)
        spectrum = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True)
        power = mel_bands().to(some.dtype) @ (spectrum.real**2 + spectrum.imag**2)
        decibels = 10 * power.clamp(min=1e-10).log10()
        below = decibels - decibels.amax((1, 2), keepdim=True)
        parts.append(((1 + below / RANGE_DB).clamp(0, 1) * 255).round().to(torch.uint8).flip(1))
    return torch.cat(parts)[:, None]


def mel_bands() -> Tensor:
    """Return the weights of the triangular mel bands, (32, frequencies).

    Each band rises from the peak of its lower neighbour and falls to the peak of its upper one.

    Source:
        O'Shaughnessy, "Speech communication" (1987): mel = 2595 log10(1 + Hz / 700).
    """
    highest = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(60.0, highest, BANDS + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    rise = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0).float()


def _waves(arrays: dict[str, NDArray[Any]]) -> Tensor:
    """Decode mu-law; cut long recordings to the middle 32 frames, pad short ones with zeros."""
    squeezed = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    levels = squeezed.sign() * (256.0 ** squeezed.abs() - 1) / 255
    waves, offsets = torch.zeros(len(arrays["digit"]), FRAMES * HOP), arrays["offsets"].tolist()
    sounds = levels[torch.from_numpy(arrays["mulaw"]).int()]
    for row, (start, stop) in enumerate(pairwise(offsets)):
        skipped = max(stop - start - FRAMES * HOP, 0) // 2
        sound = sounds[start + skipped : min(stop, start + skipped + FRAMES * HOP)]
        waves[row, : len(sound)] = sound
    return waves


def _arrays(*more: str) -> dict[str, NDArray[Any]]:
    path = needed_file(
        FOLDER,
        FILE,
        "The spoken digits' file",
        "It holds 3,000 recordings in one array (`mulaw`, `offsets`, `digit`, `speaker`, "
        "`speakers`), and this library does not download it.",
    )
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {
                name: file[name]
                for name in ("mulaw", "offsets", "digit", "speaker", "speakers", *more)
            }
        pairs = np.bincount(arrays["speaker"].astype(np.int64) * 10 + arrays["digit"], minlength=60)
        if (
            len(pairs) != 60
            or len(set(pairs.tolist())) != 1
            or len(arrays["offsets"]) != len(arrays["digit"]) + 1
        ):
            raise ValueError(f"the counts of words by speakers are {pairs.tolist()}")
    except Exception as error:  # numpy, zipfile and zlib raise many types for a bad file
        raise DataError(
            f"`{path}` cannot be read as the spoken digits ({str(error) or type(error).__name__}). "
            "It is damaged, or another file of that name: as many recordings of each of 10 words "
            "by each of 6 speakers belong in it. Put a whole copy in its place."
        ) from error
    return arrays
