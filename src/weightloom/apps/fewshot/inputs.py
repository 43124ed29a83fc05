"""Preprocessing of a user's own examples, the same as in training; saved with every network.

In:   pictures, sounds, rows of numbers or sentences, as files or in memory.
Out:  a tensor (examples, *event) for the base network; a JSON description that restores the same
      preprocessing.
Knows nothing of tasks, labels or methods.
"""

import math
import wave
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from weightloom.errors import DataError, listed
from weightloom.limits import MOST_SOUND_BYTES
from weightloom.tasks.folder import picture
from weightloom.tasks.lines import check_file
from weightloom.tasks.spoken import BANDS, FRAMES, RATE, spectrograms
from weightloom.tasks.text import WIDTH, sentence_features
from weightloom.texts import home


@dataclass(frozen=True)
class Inputs(ABC):
    """Preprocessing of one kind of examples: raw example to input tensor of the base network."""

    kind: ClassVar[str]
    """Name of the kind in ``network.json``."""
    takes: ClassVar[str]
    """Description of an example, for messages."""
    column: ClassVar[str] = ""
    """Table column that holds the example; empty if the example is the whole row."""
    files: ClassVar[bool] = False
    """True if an example may be a file of its own."""

    @abstractmethod
    def in_words(self) -> str:
        """Describe the preprocessing for people who do not have this library."""

    @abstractmethod
    def one(self, item: Any, name: str) -> Tensor:
        """Encode one example, (*event), float32.

        Args:
            item: The example.
            name: Name of the example in messages.

        Raises:
            DataError: If the example cannot be read or has the wrong form.
        """

    def encode(self, items: Any, names: Sequence[str] | None = None) -> Tensor:
        """Encode examples, (examples, *event).

        Args:
            items: The examples.
            names: Names of the examples in messages; None numbers them.

        Raises:
            DataError: If ``items`` is empty, or an example cannot be read, has the wrong form or
                is not finite.
        """
        if len(items) == 0:
            raise DataError(f"There are no examples. Give one or more, each {self.takes}.")
        names = names or [f"example {number}" for number in range(len(items))]
        values = [self.one(item, name) for item, name in zip(items, names, strict=True)]
        for value, name in zip(values, names, strict=True):
            if not bool(value.isfinite().all()):
                raise DataError(
                    f"`{name}` holds NaN or an infinity. A network answers finite numbers only. "
                    "Replace them, or leave the example out."
                )
        return torch.stack(values)

    def of_row(self, row: Mapping[str, Any], where: str, folder: Path) -> Any:
        """Return the example in a row of a table.

        Args:
            row: Cells by column.
            where: Name of the row in messages.
            folder: Folder that paths in the table are relative to.

        Raises:
            DataError: If the row lacks the example's column.
        """
        if self.column not in row:
            raise DataError(
                f"{where} has no column `{self.column}` but {listed(row)}. An example is "
                f"{self.takes}. Name that column `{self.column}`."
            )
        cell = row[self.column]
        return str(folder / str(cell)) if self.files else cell

    def facts(self) -> dict[str, Any]:
        """Return a description in plain JSON values, from which `inputs_of` restores it."""
        return {"kind": self.kind, **asdict(self), "in_words": self.in_words()}


@dataclass(frozen=True)
class Arrays(Inputs):
    """Preprocessing of arrays: none, but their shape is checked."""

    shape: tuple[int, ...]

    kind = "arrays"
    takes = "an array of numbers"
    column = "x"

    def in_words(self) -> str:
        """Describe the shape."""
        return f"An array of shape {tuple(self.shape)}, as it is."

    def one(self, item: Any, name: str) -> Tensor:
        """Return the array as float32.

        Raises:
            DataError: If it is not an array of numbers of the right shape.
        """
        values = numbers_of(item, name, self.takes).float()
        if tuple(values.shape) != tuple(self.shape):
            raise DataError(
                f"`{name}` has the shape {tuple(values.shape)}. This model takes "
                f"{tuple(self.shape)}. Bring it to that shape."
            )
        return values


@dataclass(frozen=True)
class Pictures(Inputs):
    """Preprocessing of square pictures: files, opened pictures, or arrays."""

    channels: int
    size: int

    kind = "pictures"
    takes = (
        "a picture: a path, or an array of whole numbers from 0 to 255, or of fractions from 0 to 1"
    )
    column = "path"
    files = True

    def in_words(self) -> str:
        """Describe how a picture is cropped, scaled and divided."""
        kind = "grey, one channel" if self.channels == 1 else "red, green and blue"
        return (
            f"Turn as EXIF says, put on white where transparent, cut to the largest square in the "
            f"middle, scale to {self.size}x{self.size} pixels (bicubic), {kind} first (channels, "
            "height, width), divide by 255. Light and dark as in the pictures of training."
        )

    def one(self, item: Any, name: str) -> Tensor:
        """Return a picture, (channels, size, size), from 0 to 1.

        Args:
            item: A path or an opened picture, which is cropped and scaled; or an array (channels,
                height, width), (height, width, channels) or (height, width): fractions of the
                model's size, or whole numbers of any size, which are scaled.
            name: Name of the picture in messages.

        Raises:
            DataError: If a file cannot be read, or an array has another shape or range.
        """
        if isinstance(item, str | Path) or hasattr(item, "convert"):
            return picture(item, self.size, self.channels).float() / 255
        values = self._channels_first(numbers_of(item, name, self.takes))
        whole = not values.is_floating_point()
        self._check_shape(values, name)
        _check_range(values, 255 if whole else 1, name)
        if not whole:
            return values.float()
        values = values.to(torch.uint8)
        if values.shape[1:] != (self.size, self.size):
            values = picture(_opened(values), self.size, self.channels)
        return values.float() / 255

    def _channels_first(self, values: Tensor) -> Tensor:
        if values.ndim == 2:
            return values[None]
        last = values.ndim == 3 and values.shape[2] == self.channels
        return values.permute(2, 0, 1) if last and values.shape[0] != self.channels else values

    def _check_shape(self, values: Tensor, name: str) -> None:
        """Raise a `DataError` unless an array is a picture; fractions are of the model's size."""
        fits = values.ndim == 3 and values.shape[0] == self.channels and values.numel() > 0
        if values.is_floating_point():
            fits = fits and values.shape[1:] == (self.size, self.size)
        if not fits:
            raise DataError(
                f"`{name}` has the shape {tuple(values.shape)}. This model takes pictures of "
                f"{self.channels} channels, ({self.channels}, {self.size}, {self.size}); whole "
                "numbers from 0 to 255 of any height and width are scaled. Convert it, or give the "
                "path of the picture."
            )


@dataclass(frozen=True)
class Sounds(Inputs):
    """Preprocessing of sounds at 8 kHz to mel spectrograms, (1, 32, 32)."""

    kind = "sounds"
    takes = (
        "a sound: a path of a .wav file at 8 kHz, its samples from -1 to 1, or its spectrogram "
        "(1, 32, 32)"
    )
    column = "path"
    files = True

    def in_words(self) -> str:
        """Describe the spectrogram."""
        return (
            f"Mono at {RATE} Hz, the middle {FRAMES} frames of 20 ms (windows of 32 ms, Hann), "
            f"power in {BANDS} mel bands, decibels below the loudest point, 60 of them from 0 to "
            "1, low bands last: (1, 32, 32)."
        )

    def one(self, item: Any, name: str) -> Tensor:
        """Return the spectrogram of a sound, (1, 32, 32), from 0 to 1.

        Args:
            item: Path of a .wav file of 16 bits at 8 kHz, samples from -1 to 1, or a spectrogram.
            name: Name of the sound in messages.

        Raises:
            DataError: If a file cannot be read, or the numbers have another shape or range.
        """
        if isinstance(item, str | Path):
            return self.one(_samples(home(item)), name)
        values = numbers_of(item, name, self.takes)
        if values.ndim > 1:
            return Pictures(1, FRAMES).one(values, name)
        values = values.reshape(-1)
        if not len(values) or not values.abs().max() <= 1:
            raise DataError(
                f"`{name}` holds {len(values)} samples, not all from -1 to 1. This model takes "
                f"{self.takes}. Divide samples of 16 bits by 32768."
            )
        return spectrograms(values.float()[None])[0].float() / 255


@dataclass(frozen=True)
class Numbers(Inputs):
    """Preprocessing of rows of numbers: each column is standardised as in training."""

    names: tuple[str, ...]
    """Columns."""
    mean: tuple[float, ...] = ()
    """Mean per column, subtracted; empty for 0."""
    std: tuple[float, ...] = ()
    """Standard deviation per column, divided by; empty for 1."""
    about: str = ""
    """Meaning of the numbers, in words."""

    kind = "numbers"
    takes = "a row of numbers"

    def in_words(self) -> str:
        """Describe the columns and their scale."""
        scaled = " Subtract `mean`, then divide by `std`." if self.mean else ""
        return f"A row of {len(self.names)} numbers.{scaled} {self.about}".strip()

    def one(self, item: Any, name: str) -> Tensor:
        """Return the standardised row, (columns,).

        Args:
            item: Numbers, or a text of numbers separated by commas.
            name: Name of the row in messages.

        Raises:
            DataError: If a cell is not a finite number, or the row has another number of columns.
        """
        row = [_number(cell, name) for cell in item.split(",")] if isinstance(item, str) else item
        values = numbers_of(row, name, self.takes).double().reshape(-1)
        if len(values) != len(self.names):
            shown = ", ".join(self.names[:8]) + (", …" if len(self.names) > 8 else "")
            raise DataError(
                f"`{name}` has {len(values)} numbers. This model takes {len(self.names)} a row: "
                f"{shown}. Give one for each."
            )
        if self.mean:
            values = (values - torch.tensor(self.mean).double()) / torch.tensor(self.std).double()
        return values.float()

    def of_row(self, row: Mapping[str, Any], where: str, folder: Path) -> list[float]:
        """Return the columns by name; all columns in their order if none has a known name.

        Raises:
            DataError: If some columns are known and others missing, or a cell is not a finite
                number.
        """
        if not any(name in row for name in self.names):
            return [_number(cell, where) for cell in row.values()]
        if missing := [name for name in self.names if name not in row]:
            raise DataError(
                f"{where} has no column `{missing[0]}` but {listed(row)}. The model was "
                "trained with it. Add it, or give all columns other names to be taken in their "
                "order."
            )
        return [_number(row[name], where) for name in self.names]


@dataclass(frozen=True)
class Sentences(Inputs):
    """Preprocessing of short English texts by a frozen sentence encoder."""

    kind = "sentences"
    takes = "a text"
    column = "text"

    def in_words(self) -> str:
        """Describe the encoder."""
        return f"Mean over tokens of all-MiniLM-L6-v2, divided by its length: ({WIDTH},). English."

    def one(self, item: Any, name: str) -> Tensor:
        """Return the features of one text.

        Raises:
            DataError: If it is not a text, or is empty.
        """
        return self.encode([item], [name])[0]

    def encode(self, items: Any, names: Sequence[str] | None = None) -> Tensor:
        """Return the features of texts, (texts, features), in one pass.

        Raises:
            DataError: If ``items`` is empty, or one of them is not a text or is empty.
        """
        for number, item in enumerate(items):
            if not isinstance(item, str) or not item.strip():
                name = names[number] if names else f"example {number}"
                raise DataError(
                    f"`{name}` is {item!r}. This model takes texts. Give strings that are not "
                    "empty."
                )
        if not len(items):
            raise DataError("There are no examples. Give one text or more.")
        return sentence_features(list(items), keep=False)


@dataclass(frozen=True)
class Targets:
    """Targets of a regression: their names, and the scale from the user's unit to training."""

    names: tuple[str, ...]
    """Name of each output."""
    mean: tuple[float, ...] = ()
    """Mean per output, added after ``std``; empty for 0."""
    std: tuple[float, ...] = ()
    """Standard deviation per output, which the network's output is multiplied by; empty for 1."""
    centred: bool = False
    """Subtract the mean of each task's support targets as well."""

    def encode(self, values: Any) -> Tensor:
        """Scale targets as in training, (points, outputs), float32.

        Args:
            values: Targets in the user's unit, (points,) or (points, outputs).

        Raises:
            DataError: If the number of outputs differs, or a number is not finite.
        """
        numbers = numbers_of(values, "the targets", "numbers").double()
        numbers = numbers.reshape(len(numbers), -1)
        if numbers.shape[1] != len(self.names) or not bool(numbers.isfinite().all()):
            raise DataError(
                f"The targets have the shape {tuple(numbers.shape)}, or are not all finite. This "
                f"model predicts {len(self.names)} finite numbers for each point: "
                f"{', '.join(self.names)}. Give as many."
            )
        return ((numbers - self._mean()) / self._std()).float()

    def decode(self, outputs: Tensor) -> Tensor:
        """Return network outputs in the user's unit, (points, outputs), float64."""
        return outputs.double() * self._std() + self._mean()

    def of_task(self, values: Any) -> "Targets":
        """Return the targets of one task; if ``centred``, with its support mean as ``mean``.

        Args:
            values: Support targets of the task, in the user's unit.
        """
        if not self.centred:
            return self
        level = self.decode(self.encode(values)).mean(0)
        return Targets(self.names, tuple(level.tolist()), tuple(self._std().tolist()))

    def facts(self) -> dict[str, Any]:
        """Return a description in plain JSON values, from which `targets_of` restores it."""
        words = "Multiply by `std`, then add `mean`." if self.mean else "As the network gives them."
        return {**asdict(self), "in_words": words}

    def _mean(self) -> Tensor:
        return torch.tensor(self.mean or (0.0,) * len(self.names), dtype=torch.float64)

    def _std(self) -> Tensor:
        return torch.tensor(self.std or (1.0,) * len(self.names), dtype=torch.float64)


KINDS: dict[str, type[Inputs]] = {
    kind.kind: kind for kind in (Arrays, Pictures, Sounds, Numbers, Sentences)
}
"""Kinds of inputs by their name in ``network.json``."""


def inputs_of(facts: Mapping[str, Any]) -> Inputs:
    """Restore a preprocessing from its description.

    Args:
        facts: The result of `Inputs.facts`.

    Raises:
        DataError: If its kind is unknown.

    Example:
        >>> inputs_of(Pictures(3, 32).facts())
        Pictures(channels=3, size=32)
    """
    if facts.get("kind") not in KINDS:
        raise DataError(
            f"`inputs` is of kind {facts.get('kind')!r}. This version knows {', '.join(KINDS)}. "
            "Install the version of weightloom that wrote it."
        )
    return KINDS[facts["kind"]](**_fields(facts))


def targets_of(facts: Mapping[str, Any]) -> Targets:
    """Restore targets from their description, the result of `Targets.facts`."""
    return Targets(**_fields(facts))


def numbers_of(item: Any, name: str, takes: str) -> Tensor:
    """Convert an array, a tensor or nested lists to a tensor on the CPU.

    Args:
        item: Real numbers.
        name: Name of the item in messages.
        takes: Description of a valid item, for messages.

    Raises:
        DataError: If ``item`` holds anything but real numbers.
    """
    try:
        values = (
            item.detach().cpu() if isinstance(item, Tensor) else torch.from_numpy(np.array(item))
        )
        if values.is_complex():
            raise TypeError("it holds complex numbers")
        return values
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(
            f"`{name}` is a {type(item).__name__} ({str(error)[:200]}). This model takes {takes}. "
            "Give one."
        ) from error


def _fields(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in facts.items()
        if k not in ("kind", "in_words")
    }


def _number(cell: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(cell, str) and "_" in cell else float(cell)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"`{name}` holds {str(cell)[:60]!r}. Rows hold finite numbers with a decimal point. "
            "Fill the cell, or leave the row out."
        )
    return number


def _check_range(values: Tensor, most: int, name: str) -> None:
    """Raise a `DataError` unless all numbers of a picture are from 0 to ``most``."""
    low, high = values.min().item(), values.max().item()
    if low < 0 or high > most:
        raise DataError(
            f"`{name}` holds numbers from {low:g} to {high:g}. A picture of {values.dtype} "
            f"holds numbers from 0 to {most}. Scale it, or pass it as uint8."
        )


def _opened(pixels: Tensor) -> Any:
    """Return whole numbers (channels, height, width) as a Pillow image."""
    from PIL import Image

    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).contiguous().numpy())


def _samples(path: Path) -> Tensor:
    """Read a .wav file of 16 bits at 8 kHz and average its channels, (samples,) from -1 to 1."""
    check_file(path, f"A .wav file of 16 bits at {RATE} Hz", MOST_SOUND_BYTES)
    try:
        with wave.open(str(path)) as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            if (rate, width) != (RATE, 2):
                raise ValueError(f"{rate} Hz, {8 * width} bits")
            frames = file.getnframes()
            there = path.stat().st_size // (width * channels)
            samples = np.frombuffer(file.readframes(min(frames, there)), "<i2").reshape(
                -1, channels
            )
            if len(samples) < frames:
                raise ValueError(f"it ends after {len(samples):,} of {frames:,} samples")
    except Exception as error:  # `wave` raises many types for a damaged file
        raise DataError(
            f"`{path}` cannot be read as a sound ({str(error) or type(error).__name__}). A .wav "
            f"file of 16 bits at {RATE} Hz is expected. Convert it."
        ) from error
    return torch.from_numpy(samples.mean(1) / 32768)
