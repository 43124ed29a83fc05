"""Sounds of a user: a folder of WAV files with one sub-folder per class.

In:   a folder.
Out:  `WavFolder`: clips of one length and one rate by class, and the skipped files.
Knows nothing of spectrograms and tasks.
"""

import wave
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.errors import ConfigError, DataError
from weightloom.limits import MOST_MEMORY_BYTES
from weightloom.tasks.tasks import Skipped
from weightloom.texts import home

SHORTEST = 0.05
"""Shortest clip that is read, in seconds."""


class WavFolder(NamedTuple):
    """Clips of a folder by class."""

    clips: tuple[Tensor, ...]
    """Clips of each class, (count, samples), in [-1, 1]; classes may differ in ``count``."""
    names: tuple[str, ...]
    """Name of each class, that of its sub-folder, sorted."""
    rate: int
    """Samples per second of all clips."""
    skipped: tuple[Skipped, ...]
    """Files that were not used, with the reasons."""


def load_wavs(path: str | Path, seconds: float = 0.64, fewest: int = 1) -> WavFolder:
    """Load clips from a folder with one sub-folder of WAV files per class.

    Files are uncompressed, with 8, 16, 24 or 32 bits. Channels are averaged. Longer files are cut
    to their middle, shorter ones padded with zeros at the end. Skipped are: hidden and other files,
    damaged ones, silent ones, and those shorter than 0.05 s.

    Args:
        path: The folder.
        seconds: Length of a clip.
        fewest: Minimum number of clips of a class.

    Raises:
        DataError: If the folder cannot be read, a class has too few clips, files differ in rate, or
            the clips would take more than 2 GB.
        ConfigError: If ``seconds`` is below 0.05.
    """
    root = home(path)
    if not seconds >= SHORTEST:
        raise ConfigError(
            f"`seconds={seconds}` is too short for a clip. It is the length of every clip. Pass "
            f"{SHORTEST} or more, such as 0.64."
        )
    skipped: list[Skipped] = []
    files = {folder: _wav_files(folder, skipped) for folder in _class_folders(root)}
    _check_bytes(root, sum(map(len, files.values())), seconds)
    first_of_rate: dict[int, Path] = {}
    clips = []
    for folder, listed in files.items():
        found = [_clip(file, seconds, first_of_rate, skipped) for file in listed]
        kept = [clip for clip in found if clip is not None]
        _check_count(folder, len(kept), fewest, skipped)
        clips.append(kept)
    _check_one_rate(first_of_rate)
    names = tuple(folder.name for folder in files)
    (rate,) = first_of_rate
    return WavFolder(tuple(map(torch.stack, clips)), names, rate, tuple(skipped))


def read_wav(
    path: str | Path, seconds: float | None = None
) -> tuple[Float[Tensor, " samples"], int]:
    """Read a WAV file with 8, 16, 24 or 32 bits; channels are averaged.

    Args:
        path: The file.
        seconds: Longest part that is read, from the middle. Default: all of it.

    Returns:
        Amplitudes in [-1, 1], (samples,), and samples per second.

    Raises:
        DataError: If the file is not there, damaged, or compressed.
    """
    file = home(path)
    try:
        with wave.open(str(file), "rb") as opened:
            rate, width, channels = (
                opened.getframerate(),
                opened.getsampwidth(),
                opened.getnchannels(),
            )
            frames = opened.getnframes()
            wanted = frames if seconds is None else min(frames, round(seconds * rate))
            opened.setpos((frames - wanted) // 2)
            data = opened.readframes(wanted)
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(
            f"`{file}` cannot be read as a WAV file ({str(error) or 'it ends too early'}). "
            "Uncompressed WAV is known, with 8, 16, 24 or 32 bits. Convert it, as by "
            f"`ffmpeg -i {file.name} -c:a pcm_s16le new.wav`, or leave it out."
        ) from error
    return _amplitudes(data, width).reshape(-1, channels).mean(1), rate


def _amplitudes(data: bytes, width: int) -> Tensor:
    """Decode integers of 1 (unsigned) to 4 (signed) bytes, the lowest first, to [-1, 1]."""
    some = np.frombuffer(data, np.uint8).reshape(-1, width)
    whole = np.zeros((len(some), 4), np.uint8)
    whole[:, 4 - width :] = some ^ 128 if width == 1 else some
    return torch.from_numpy((whole.view("<i4")[:, 0] / 2.0**31).astype(np.float32))


def _clip(
    file: Path, seconds: float, first_of_rate: dict[int, Path], skipped: list[Skipped]
) -> Tensor | None:
    """Read a clip of fixed length and note its rate; None if the file is skipped."""
    try:
        sound, rate = read_wav(file, seconds)
    except (DataError, ValueError) as error:
        skipped.append(Skipped(str(file), f"damaged or not plain WAV ({error.__cause__ or error})"))
        return None
    if len(sound) < SHORTEST * rate or not sound.any():
        why = "silent" if len(sound) >= SHORTEST * rate else f"shorter than {SHORTEST} s"
        skipped.append(Skipped(str(file), why))
        return None
    first_of_rate.setdefault(rate, file)
    return torch.nn.functional.pad(sound, (0, round(seconds * rate) - len(sound)))


def _class_folders(root: Path) -> list[Path]:
    folders = [its for its in _entries(root) if its.is_dir() and not its.name.startswith(".")]
    if len(folders) < 2:
        raise DataError(
            f"`{root}` holds {len(folders)} classes. A class is a sub-folder with WAV files in it, "
            f"and two or more are told apart. Put one sub-folder for each class into `{root}`."
        )
    return folders


def _wav_files(folder: Path, skipped: list[Skipped]) -> list[Path]:
    """List the WAV files of a class; other entries are skipped."""
    files = []
    for entry in _entries(folder):
        if entry.is_file() and entry.suffix.lower() == ".wav" and not entry.name.startswith("."):
            files.append(entry)
        else:
            skipped.append(Skipped(str(entry), "no WAV file"))
    return files


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"`{folder}` cannot be read ({error.strerror}). It is a folder of WAV files, or holds "
            "one for each class. Check the path and its permissions."
        ) from error


def _check_bytes(root: Path, clips: int, seconds: float, rate: int = 48_000) -> None:
    most = int(MOST_MEMORY_BYTES / (4 * seconds * rate))
    if clips > most:
        raise DataError(
            f"`{root}` holds {clips:,} WAV files. All clips are kept in memory, and {most:,} fit "
            f"into 2 GB at {rate:,} samples per second. Leave out some files of each class."
        )


def _check_count(folder: Path, count: int, fewest: int, skipped: list[Skipped]) -> None:
    if count < max(fewest, 1):
        mine = [its for its in skipped if Path(its.what).parent == folder]
        reasons = "".join(f" `{Path(its.what).name}`: {its.why}." for its in mine[:3])
        raise DataError(
            f"`{folder}` holds {count} usable clips. A class needs {max(fewest, 1)} or more WAV "
            f"files.{reasons} Add files to it, or move the folder away."
        )


def _check_one_rate(first_of_rate: dict[int, Path]) -> None:
    if len(first_of_rate) > 1:
        (rate, file), (other, second) = list(first_of_rate.items())[:2]
        raise DataError(
            f"`{file}` has {rate} samples per second and `{second}` {other}. All clips share one "
            f"rate. Convert the files of the other rate, as by `ffmpeg -i {second.name} -ar {rate} "
            f"new.wav`."
        )
