"""Sounds by class: spoken digits, and a folder of one's own.

In:   options.
Out:  a `GanProblem` whose samples are judged as sounds: spectrograms turned into sounds, and back.
Knows nothing of tables and reports.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from weightloom.adversarial import AdversarialPair
from weightloom.apps.app import Shown
from weightloom.apps.gan.problems.pairs import Sizes
from weightloom.apps.gan.problems.pictures import Parts, Pictures, split
from weightloom.apps.gan.problems.sound_pairs import build_sound_pair
from weightloom.errors import DataError
from weightloom.tasks.mel import ROUNDS, MelSpectrograms

if TYPE_CHECKING:
    from weightloom.apps.gan.config import GanOptions

FRAMES, FRAME = 40, 0.016
"""Frames of a spectrogram, and seconds of each: 0.64 s in all."""
CLIPS = "clips"
"""Name of the only setting."""
JUDGED_ROUNDS = 8
"""Rounds of the search for phases of sounds that are judged; those to be heard get more."""
VALIDATED = 10
"""Sounds of each class behind a score during training."""
HEARD = 2
"""Sounds of each class in the report."""
FEWEST = 30
"""Minimum clips of a class of one's own, so that 6 are held out for each measure."""
SLOWEST_RATE = 4000
"""Smallest rate of sounds, in samples per second: their spectrograms reach half of it."""


class SoundsByClass(Pictures):
    """Sounds of several classes, with the class as condition.

    Players see spectrograms: a sample is a function of time and frequency, or a picture. It is
    judged as a sound, whose spectrogram is computed again.

    Args:
        config: Resolved options.
        sounds: Real sounds of each class, (clips, samples), by part.
        rate: Samples per second.
        names: Name of each class.
        title: Name of the data, for the names of measures.
    """

    cell: ClassVar[int] = 1

    def __init__(
        self,
        config: "GanOptions",
        sounds: Parts,
        rate: int,
        names: Sequence[str],
        title: str,
    ) -> None:
        self.rate, self.sounds = rate, sounds
        hop = round(FRAME * rate)
        self.spectrograms = MelSpectrograms(rate, window=4 * hop, hop=hop)
        parts = Parts(
            [self.spectrograms.analyse(its) for its in sounds.train],
            self._analysed(sounds.validation),
            self._analysed(sounds.test),
        )
        super().__init__(config, parts, names, title)
        trained = sum(map(len, sounds.train))
        self.protocol = (
            f"{trained:,} clips of {FRAMES * FRAME:.2f} s train, "
            f"{sounds.validation[..., 0].numel():,} choose options, "
            f"{sounds.test[..., 0].numel():,} test. Samples are turned into sounds by the "
            "Griffin-Lim algorithm, and judged by the spectrograms of these. Scores are means over "
            f"{len(names)} classes. Distances are between features of a classifier trained on the "
            "training clips. Recall, precision, density and coverage compare as many samples as "
            "held-out clips, and are means over disjoint sets of samples."
        )

    def build(self, method: str) -> AdversarialPair:
        """Build the pair of a method."""
        config = self.config
        return build_sound_pair(
            method,
            Sizes(
                self.shape, len(self.names), config.noise_dim, config.width, self.spread, self.cell
            ),
        )

    def _analysed(self, sounds: Tensor) -> Tensor:
        """Spectrograms of sounds, (classes, count, samples)."""
        return self.spectrograms.analyse(sounds.flatten(0, 1)).unflatten(0, sounds.shape[:2])

    def _heard(self, images: Tensor, rounds: int = ROUNDS) -> Tensor:
        """Sounds of spectrograms, (classes, count, 1, bands, frames)."""
        sounds = self.spectrograms.synthesise(images.flatten(0, 1), rounds)
        return sounds.unflatten(0, images.shape[:2])

    def settings(self) -> Sequence[str]:
        """Return one setting."""
        return (CLIPS,)

    @torch.no_grad()
    def _drawn(
        self, model: AdversarialPair, setting: str, count: int, shuffled: bool = False
    ) -> Tensor:
        """Draw sounds, and return their spectrograms."""
        condition = self.conditions().roll(int(shuffled), 0)
        drawn = model.sample(condition, count, torch.Generator().manual_seed(1))
        return self._analysed(self._heard(drawn, JUDGED_ROUNDS))

    def draw_samples(
        self,
        model: AdversarialPair,
        number: int,
        count: int,
        generator: torch.Generator | None = None,
        size: Sequence[int] | None = None,
    ) -> Tensor:
        """Draw sounds of one class, for users.

        Args:
            model: A pair in eval mode.
            number: Number of the class.
            count: Number of sounds.
            generator: Source of the noise. Default: torch's global one.
            size: Bands and frames, as in ``(40, 80)``: twice as many frames as in training are the
                word at half the speed, at the same pitch. For pairs that draw functions.

        Returns:
            Sounds, (count, samples), in [-1, 1], of ``rate`` samples per second.

        Raises:
            ConfigError: If ``size`` is given, and the pair draws no functions.
            ShapeError: If ``size`` has another number of bands than in training.
        """
        images = super().draw_samples(model, number, count, generator, size)
        return self.spectrograms.synthesise(images)

    def ceilings(self, setting: str) -> Mapping[str, Tensor]:
        """Return real sounds that neither the classifier nor the measures have seen."""
        if self.config.validation:
            return {}
        images = self.parts.validation
        return {
            "real clips": images,
            "real clips, turned back": self._analysed(self._heard(images, JUDGED_ROUNDS)),
        }

    def validate(self, model: AdversarialPair) -> float:
        """Return the accuracy of a few sounds, by the classifier."""
        samples = self._drawn(model, CLIPS, VALIDATED)
        labels = torch.arange(len(samples)).repeat_interleave(VALIDATED)
        accuracy: float = self.classifier.accuracy(samples.flatten(0, 1), labels)
        return accuracy

    def frame(self, model: AdversarialPair) -> Tensor | None:
        """Return two spectrograms of each class, low tones at the bottom."""
        chance = torch.Generator().manual_seed(1)
        return model.sample(self.conditions(), 2, chance).flatten(0, 1).flip(-2)

    @torch.no_grad()
    def show(self, models: Mapping[str, nn.Module]) -> Shown:
        """Return what is shown of pictures, and sounds to hear."""
        tensors, facts = super().show(models)
        tensors = {name: its.flip(-2) for name, its in tensors.items()}  # low tones at the bottom
        real = self.sounds.validation[:, :HEARD].flatten(0, 1)
        loudest = real.abs().amax(1, keepdim=True)
        tensors["sounds/real clips"] = 0.9 * real / loudest
        for method, model in models.items():
            if isinstance(model, AdversarialPair):
                chance = torch.Generator().manual_seed(1)
                drawn = model.sample(self.conditions(), HEARD, chance)
                tensors[f"sounds/{method}"] = self._heard(drawn).flatten(0, 1)
        return tensors, facts | {"rate": self.rate}


class SpokenWords(SoundsByClass):
    """Spoken digits: 3,000 recordings of ten words by six people.

    Takes 0 to 4 of each word and person are for the test, as in the set's own split, and takes 5 to
    9 for validation.

    Args:
        config: Resolved options.

    Raises:
        DataError: If the file is in no data folder, or is damaged.
    """

    def __init__(self, config: "GanOptions") -> None:
        from weightloom.tasks.spoken import RATE, load_words

        words = load_words()
        parts = Parts(
            [sounds[takes >= 10] for sounds, takes in words],
            torch.stack([sounds[(takes >= 5) & (takes < 10)] for sounds, takes in words]),
            torch.stack([sounds[takes < 5] for sounds, takes in words]),
        )
        super().__init__(config, parts, RATE, [str(word) for word in range(10)], "spoken digits")


class OwnSounds(SoundsByClass):
    """Sounds in a folder with a sub-folder of WAV files per class.

    Args:
        config: Resolved options.

    Raises:
        DataError: If there are fewer than two classes, one has too few clips, or files differ in
            rate, or it is below 4,000 samples per second.
    """

    def __init__(self, config: "GanOptions") -> None:
        from weightloom.tasks.tasks import told
        from weightloom.tasks.wav import load_wavs

        loaded = load_wavs(config.data, FRAMES * FRAME, fewest=FEWEST)
        if loaded.rate < SLOWEST_RATE:
            raise DataError(
                f"The files of `{config.data}` have {loaded.rate} samples per second. Their "
                f"spectrograms reach half of that, and {SLOWEST_RATE} are the fewest that hold "
                "speech. Record or convert them at a higher rate, as by `ffmpeg -i old.wav -ar "
                "8000 new.wav`."
            )
        title = Path(config.data).expanduser().name
        super().__init__(config, split(loaded.clips), loaded.rate, loaded.names, title)
        clips = sum(map(len, loaded.clips))
        self.notices = (
            f"{len(loaded.names)} classes, {clips:,} clips of {FRAMES * FRAME:.2f} s at "
            f"{loaded.rate:,} samples per second",
            *told(loaded.skipped),
        )
