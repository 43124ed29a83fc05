"""Mel spectrograms that can be turned back into sounds.

In:   sounds, (sounds, samples); or spectrograms, (sounds, 1, bands, frames).
Out:  the other of the two.
Knows nothing of files, words and networks.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.errors import ConfigError, ShapeError

Waves = Float[Tensor, "sounds samples"]
Images = Float[Tensor, "sounds 1 bands frames"]

ROUNDS = 32
"""Rounds of the search for phases."""
MOMENTUM = 0.99
"""Momentum of the search for phases, as in the paper."""
FAINTEST = 1e-8
"""Smallest magnitude whose logarithm is taken."""
SOME = 250
"""Sounds that are transformed together, so that the transform stays in the processor's cache."""


@dataclass(frozen=True)
class MelSpectrograms:
    """Log mel spectrograms of sounds, in [0, 1], and sounds of spectrograms.

    Magnitudes of a short-time Fourier transform are summed in triangular bands, evenly spaced in
    mel, and converted to decibels below the loudest point of the sound: the loudest point is 1, and
    ``range_db`` below it, or less, is 0. Loudness and phases are not kept. Silence is 0.

    Args:
        rate: Samples per second.
        bands: Number of bands, the lowest first.
        window: Samples per window.
        hop: Samples from one frame to the next.
        range_db: Decibels from the loudest point down to silence.
        lowest_hz: Lowest edge of the bands.

    Raises:
        ConfigError: If a number is below 1, ``hop`` exceeds half of ``window``, or a band is too
            narrow to hold a frequency of the transform.

    Example:
        >>> seen = MelSpectrograms(rate=8000)
        >>> sound = (torch.arange(5120) * 2 * torch.pi * 440 / 8000).sin()[None]  # 440 Hz
        >>> image = seen.analyse(sound)
        >>> image.shape, seen.synthesise(image).shape
        (torch.Size([1, 1, 40, 40]), torch.Size([1, 5120]))
    """

    rate: int
    bands: int = 40
    window: int = 512
    hop: int = 128
    range_db: float = 60.0
    lowest_hz: float = 60.0

    def __post_init__(self) -> None:
        numbers = (self.rate, self.bands, self.window, self.hop)
        if min(numbers) < 1 or self.hop > self.window // 2 or not self.range_db > 0:
            raise ConfigError(
                f"`rate={self.rate}, bands={self.bands}, window={self.window}, hop={self.hop}, "
                f"range_db={self.range_db}` describe no spectrogram that can be turned back. All "
                "are above 0, and windows overlap by half or more. Pass a `hop` of at most "
                f"{self.window // 2}, as in `MelSpectrograms(rate=8000)`."
            )
        if not bool((self.weights.sum(1) > 0).all()):
            raise ConfigError(
                f"`bands={self.bands}` with `window={self.window}` leaves a band without a "
                f"frequency. The transform resolves {self.rate / self.window:.1f} Hz, and the "
                "lowest bands are narrower. Pass fewer bands or a longer window."
            )

    @cached_property
    def weights(self) -> Float[Tensor, "bands frequencies"]:
        """Weights of the triangular bands, each with the peak 1 at the edges of its neighbours.

        Source:
            O'Shaughnessy, "Speech communication" (1987): mel = 2595 log10(1 + Hz / 700).
        """
        highest = self.rate / 2
        low, high = (2595 * math.log10(1 + hz / 700) for hz in (self.lowest_hz, highest))
        mels = torch.linspace(low, high, self.bands + 2, dtype=torch.float64)
        edges = 700 * (10 ** (mels / 2595) - 1)
        frequencies = torch.linspace(0, highest, self.window // 2 + 1, dtype=torch.float64)
        rise = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        fall = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
        return torch.minimum(rise, fall).clamp(min=0).float()

    @cached_property
    def inverse(self) -> Float[Tensor, "frequencies bands"]:
        """Pseudo-inverse of the weights."""
        return torch.linalg.pinv(self.weights.double()).float()

    def analyse(self, sounds: Waves) -> Images:
        """Compute spectrograms.

        Args:
            sounds: Waves, (sounds, samples), of one frame (``hop`` samples) or more.

        Returns:
            Spectrograms, (sounds, 1, bands, samples // hop), in [0, 1].

        Raises:
            ShapeError: If the sounds are shorter than a frame.
        """
        if sounds.shape[1] < self.hop:
            raise ShapeError(
                f"`sounds` are {sounds.shape[1]} samples long. A frame takes {self.hop}. Pass "
                "longer sounds, or pad them with zeros."
            )
        parts = []
        for some in sounds.split(SOME):
            bands = self.weights.to(some) @ self._transform(some).abs()
            loudest = bands.amax((1, 2), keepdim=True).clamp(min=FAINTEST)
            decibels = 20 * (bands / loudest).clamp(min=FAINTEST).log10()
            parts.append((1 + decibels / self.range_db).clamp(min=0))
        return torch.cat(parts)[:, None]

    def synthesise(self, images: Images, rounds: int = ROUNDS) -> Waves:
        """Compute sounds whose spectrograms are close to the given ones.

        Magnitudes come from the pseudo-inverse of the bands, phases from the fast Griffin-Lim
        algorithm. It starts from random phases of a fixed seed, so equal spectrograms sound equal.

        Args:
            images: Spectrograms, (sounds, 1, bands, frames), of any number of frames.
            rounds: Rounds of the search for phases.

        Returns:
            Sounds, (sounds, frames * hop), with the maximum absolute amplitude 0.9.

        Raises:
            ShapeError: If the spectrograms have another number of bands.

        Source:
            Griffin and Lim, "Signal estimation from modified short-time Fourier transform" (1984);
            Perraudin, Balazs and Søndergaard, "A fast Griffin-Lim algorithm" (2013).
        """
        if images.shape[2] != self.bands:
            raise ShapeError(
                f"`images` have {images.shape[2]} bands, and these spectrograms {self.bands}. "
                "Frames may be of any number, bands not. Draw functions with "
                f"`size=({self.bands}, frames)`."
            )
        return torch.cat([self._sounds(some[:, 0], rounds) for some in images.split(SOME)])

    def _sounds(self, images: Tensor, rounds: int) -> Tensor:
        images = images.clamp(0, 1)
        audible = 10 ** ((images - 1) * self.range_db / 20) * (images > 0)
        magnitude = (self.inverse.to(images) @ audible).clamp(min=0)
        samples = images.shape[2] * self.hop
        chance = torch.Generator().manual_seed(0)
        turn = 2 * torch.pi * torch.rand(magnitude.shape[1:], generator=chance).to(magnitude)
        guess = torch.polar(magnitude, turn.expand_as(magnitude))
        previous = torch.zeros_like(guess)
        for _ in range(rounds):
            found = self._transform(self._back(guess, samples))
            ahead = found + MOMENTUM * (found - previous)
            previous, guess = found, torch.polar(magnitude, ahead.angle())
        sounds = self._back(guess, samples)
        return 0.9 * sounds / sounds.abs().amax(1, keepdim=True).clamp(min=1e-8)

    def _transform(self, sounds: Tensor) -> Tensor:
        """Complex spectra, (sounds, frequencies, frames)."""
        half, frames = self.window // 2, sounds.shape[1] // self.hop
        padded = torch.nn.functional.pad(sounds, (half, half))
        return torch.stft(
            padded,
            self.window,
            self.hop,
            window=self._hann(sounds),
            center=False,
            return_complex=True,
        )[:, :, :frames]

    def _back(self, spectra: Tensor, samples: int) -> Tensor:
        """Sounds whose spectra are nearest to the given ones, (sounds, samples)."""
        window = self._hann(spectra.real)
        spectra = torch.nn.functional.pad(spectra, (0, 1))  # the frame after the end is silent
        return torch.istft(spectra, self.window, self.hop, window=window, length=samples)

    def _hann(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.window, dtype=like.dtype, device=like.device)
