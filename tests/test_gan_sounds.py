"""Sounds by class: spectrograms and back, pairs of every method, scores, and folders of WAV files."""

import math

import pytest
import torch

from weightloom.adversarial import AdversarialPair
from weightloom.apps import gan
from weightloom.apps.gan.config import GanConfig
from weightloom.apps.gan.presets import SOUNDS, preset
from weightloom.apps.gan.problems import problem_of
from weightloom.apps.gan.problems.pairs import Sizes
from weightloom.apps.gan.problems.pictures import split
from weightloom.apps.gan.problems.sound_pairs import SOUND_BUILDERS, build_sound_pair
from weightloom.apps.gan.problems.sounds import SoundsByClass, SpokenWords
from weightloom.datasets import find_file
from weightloom.errors import ConfigError, DataError, ShapeError
from weightloom.report.audio import encode_wav
from weightloom.tasks.mel import MelSpectrograms
from weightloom.tasks.wav import read_wav

RATE = 4000
SEEN = MelSpectrograms(8000)
SEEN_AT_RATE = MelSpectrograms(RATE, window=256, hop=64)
SIZES = Sizes((1, 40, 40), condition_dim=2, noise_dim=4, width=32)
FUNCTIONS = ("generated", "function-concat")


def tones(hertz, count=30, rate=RATE, seconds=0.64, seed=0):
    """Tones that end at random times, (count, samples)."""
    chance = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * rate)) / rate
    end = 0.3 + 0.3 * torch.rand(count, 1, generator=chance)
    phase = 6 * torch.rand(count, 1, generator=chance)
    return 0.5 * (2 * math.pi * hertz * time + phase).sin() * (time < end)


@pytest.fixture
def quick(monkeypatch):
    """The classifier is trained for a few steps: it tells a low tone from a high one."""
    monkeypatch.setattr(SoundsByClass, "classifier_steps", 12)


@pytest.fixture
def problem(quick):
    config = GanConfig(steps=4, samples=12, noise_dim=4, width=32, batch=8).resolved()
    return SoundsByClass(config, split([tones(300), tones(1200)]), RATE, ("low", "high"), "tones")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tones")
    for name, hertz in (("low", 300), ("high", 1200)):
        (root / name).mkdir()
        for number, sound in enumerate(tones(hertz)):
            (root / name / f"{number:02}.wav").write_bytes(encode_wav(sound, RATE))
    return root


# Spectrograms


@pytest.mark.parametrize("hertz", [250, 1000, 3000])
def test_a_tone_is_in_the_band_of_its_mel_and_comes_back_at_its_frequency(hertz):
    sound = tones(hertz, count=1, rate=8000)
    image = SEEN.analyse(sound)
    low, high, own = (2595 * math.log10(1 + hz / 700) for hz in (60, 4000, hertz))
    band = (own - low) / (high - low) * 41 - 1
    assert (image[0, 0, :, :15].argmax(0) - band).abs().max() < 1
    back = SEEN.synthesise(image)[0, :2048]
    heard = torch.fft.rfft(back * torch.hann_window(2048)).abs().argmax() * 8000 / 2048
    assert abs(heard - hertz) < 700 * (10 ** ((high - low) / 41 / 2595) - 1) * (1 + hertz / 700)


def test_neighbouring_bands_add_up_to_one_between_their_peaks():
    hertz = torch.linspace(0, 4000, 257)
    inner = SEEN.weights.sum(0)[(hertz > 100) & (hertz < 3700)]
    torch.testing.assert_close(inner, torch.ones_like(inner))


def test_loudness_is_not_kept_and_silence_is_dark():
    sounds = torch.randn(3, 5120, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SEEN.analyse(0.01 * sounds), SEEN.analyse(sounds), atol=1e-4, rtol=0)
    assert SEEN.analyse(sounds).amax((1, 2, 3)).tolist() == [1.0] * 3
    assert SEEN.analyse(torch.zeros(1, 5120)).count_nonzero() == 0
    assert SEEN.synthesise(torch.zeros(1, 1, 40, 40)).count_nonzero() == 0


def test_ten_times_quieter_is_20_decibels_darker():
    loud, quiet = tones(1000, 1, 8000)[:, :2560], tones(1000, 1, 8000)[:, :2560] / 10
    image = SEEN.analyse(torch.cat([loud, quiet], dim=1))[0, 0].amax(0)
    assert (image[5] - image[30]).item() == pytest.approx(20 / SEEN.range_db, abs=1e-3)


def test_more_rounds_find_phases_that_fit_better():
    image = SEEN.analyse(tones(400, 4, 8000) + tones(1700, 4, 8000, seed=1))
    errors = [
        (SEEN.analyse(SEEN.synthesise(image, rounds)) - image).abs().mean().item()
        for rounds in (0, 8, 32)
    ]
    assert errors[2] < errors[1] < errors[0] < 0.1


def test_twice_as_many_frames_last_twice_as_long():
    assert SEEN.synthesise(torch.rand(2, 1, 40, 80)).shape == (2, 80 * 128)
    assert SEEN.synthesise(torch.rand(1, 1, 40, 40)).abs().max().item() == pytest.approx(0.9)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"127 samples long. A frame takes 128"):
        SEEN.analyse(torch.zeros(1, 127))
    with pytest.raises(ShapeError, match=r"have 32 bands.*size=\(40, frames\)"):
        SEEN.synthesise(torch.zeros(1, 1, 32, 40))
    with pytest.raises(ConfigError, match="hop=300"):
        MelSpectrograms(8000, hop=300)
    with pytest.raises(ConfigError, match="bands=200"):
        MelSpectrograms(8000, bands=200)


@pytest.mark.skipif(
    find_file("free_spoken_digits", "fsdd_mulaw8.npz") is None, reason="no spoken digits here"
)
def test_spoken_digits_come_back_much_as_they_were(monkeypatch):
    problem = SpokenWords(GanConfig(data="spoken-digits").resolved())
    assert [len(its) for its in problem.parts.train] == [240] * 10
    assert problem.parts.validation.shape == problem.parts.test.shape == (10, 30, 1, 40, 40)
    images = problem.parts.validation[:, :2]
    again = problem._analysed(problem._heard(images))
    assert (again - images).abs().mean() < 0.02


# Pairs and scores


@pytest.mark.parametrize("method", SOUND_BUILDERS)
def test_a_pair_of_every_method_makes_and_judges_spectrograms(method):
    pair = build_sound_pair(method, SIZES)
    made = pair.sample(torch.eye(2), 3)
    assert made.shape == (2, 3, 1, 40, 40)
    assert pair.players(torch.eye(2)).judge(made).shape == (2, 3, 1)


@pytest.mark.parametrize("method", FUNCTIONS)
def test_a_function_of_time_is_the_same_at_any_resolution(method):
    made = build_sound_pair(method, SIZES).generator
    with torch.no_grad():
        for its in made.hyper.parameters():  # so that samples differ
            its.add_(0.1 * torch.randn_like(its))
        noise = torch.randn(2, 3, 4)
        few, many = made(torch.eye(2), noise), made(torch.eye(2), noise, (40, 120))
    torch.testing.assert_close(many[..., 1::3], few, atol=1e-5, rtol=1e-4)
    assert few.std(1).mean() > 1e-3


def test_a_written_judge_scores_by_the_features_of_its_class():
    """Written last layers on shared features are those of a plain network, once for each class."""
    judge = build_sound_pair("generated", SIZES).discriminator
    with torch.no_grad():
        for its in judge.hyper.parameters():
            its.add_(0.1 * torch.randn_like(its))
        params, images = judge.hyper(torch.eye(2)), torch.rand(2, 3, 1, 40, 40)
        judged = judge(torch.eye(2), images)
        for number in range(2):
            its = {name: value[number] for name, value in params.items()}
            plain = torch.func.functional_call(judge.hyper.base, its, (images[number],))
            torch.testing.assert_close(judged[number], plain, atol=1e-5, rtol=1e-4)


class Replay(AdversarialPair):
    """Real spectrograms in place of generated ones, of the class in the condition."""

    def __init__(self, images):
        super().__init__(torch.nn.Identity(), torch.nn.Identity(), noise_dim=4)
        self.images = images

    def sample(self, condition, count=1, generator=None):
        return torch.stack([self.images[its][:count] for its in condition.argmax(1)])


def test_real_sounds_score_as_real_and_shuffled_ones_do_not(problem):
    pair = Replay(problem.parts.train)
    scores = problem.scores("clips", problem.samples(pair, "clips"))
    assert next(iter(scores)) == "accuracy"
    assert scores["accuracy"].tolist() == [1.0, 1.0]
    shuffled = problem.scores("clips", problem.samples(pair, "clips", shuffled=True))
    assert shuffled["accuracy"].tolist() == [0.0, 0.0]
    assert "kernel distance, tones classifier" in scores
    ceilings = {
        name: problem.scores("clips", its) for name, its in problem.ceilings("clips").items()
    }
    assert ceilings["real clips, turned back"]["accuracy"].tolist() == [1.0, 1.0]


def test_what_is_shown_is_heard(problem):
    pair = problem.build("generated").eval()
    tensors, facts = problem.show({"generated": pair})
    assert facts["rate"] == RATE
    assert tensors["sounds/generated"].shape == (4, 2560)
    assert tensors["samples/generated"].shape[0] == 2
    real = SEEN_AT_RATE.analyse(tensors["sounds/real clips"]).unflatten(0, (2, 2))
    torch.testing.assert_close(real, problem.parts.validation[:, :2], atol=1e-4, rtol=0)
    assert problem.frame(pair).shape == (4, 1, 40, 40)


# Folders


def test_a_folder_of_wav_files_gets_the_options_of_sounds(folder, tmp_path):
    assert GanConfig(data=str(folder)).resolved().width == SOUNDS["width"]
    assert preset(str(tmp_path))["width"] != SOUNDS["width"]


def test_a_pair_trained_on_a_folder_draws_sounds(folder, tmp_path, quick):
    options = {"width": 32, "noise_dim": 4, "samples": 6, "batch": 8, "steps": 4}
    trained = gan.train(str(folder), run=tmp_path / "run", quiet=True, **options)
    assert "60 clips of 0.64 s at 4,000" in trained.problem.notices[0]
    loaded = gan.load(tmp_path / "run")
    sounds = loaded.sample("high", 2, seed=0)
    assert sounds.shape == (2, 2560)
    assert torch.equal(sounds, trained.sample("high", 2, seed=0))
    assert loaded.sample("low", 1, size=(40, 80)).shape == (1, 5120)
    (tmp_path / "word.wav").write_bytes(encode_wav(sounds[0], loaded.problem.rate))
    again, rate = read_wav(tmp_path / "word.wav")
    torch.testing.assert_close(again, sounds[0], atol=1e-4, rtol=0)
    assert rate == RATE
    with pytest.raises(ShapeError, match="20 bands"):
        loaded.sample("low", 1, size=(20, 40))
    with pytest.raises(ConfigError, match="no condition `hihg`"):
        loaded.sample("hihg")


def test_a_folder_with_too_few_clips_is_refused(folder, tmp_path):
    for name in ("low", "high"):
        (tmp_path / name).mkdir()
    (tmp_path / "low" / "00.wav").write_bytes((folder / "low" / "00.wav").read_bytes())
    with pytest.raises(DataError, match=r"holds 0 usable clips. A class needs 30"):
        problem_of(GanConfig(data=str(tmp_path)).resolved())


def test_sounds_at_a_very_low_rate_are_refused(tmp_path):
    for name in ("low", "high"):
        (tmp_path / name).mkdir()
        for number, sound in enumerate(tones(300, rate=2000)):
            (tmp_path / name / f"{number}.wav").write_bytes(encode_wav(sound, 2000))
    with pytest.raises(DataError, match=r"2000 samples per second.*-ar 8000"):
        problem_of(GanConfig(data=str(tmp_path)).resolved())
