"""Spoken digits: tones whose picture is known, a small set made up, and the real file where it is at hand."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from weightloom.errors import ConfigError, DataError
from weightloom.tasks import ClassTasks, load_spoken_digits, spectrograms, spoken_split
from weightloom.tasks.data import class_groups
from weightloom.tasks.spoken import BANDS, FRAMES, HOP, RATE, WINDOW, mel_bands

REAL = (
    Path(os.environ.get("WEIGHTLOOM_DATA") or "/nowhere").expanduser()
    / "free_spoken_digits"
    / "fsdd_mulaw8.npz"
)
needs_recordings = pytest.mark.skipif(
    not REAL.is_file(), reason="needs WEIGHTLOOM_DATA with free_spoken_digits/fsdd_mulaw8.npz"
)


def tone(hertz, samples=FRAMES * HOP):
    return torch.sin(2 * math.pi * hertz * torch.arange(samples, dtype=torch.float64) / RATE)


def small_set(**changed):
    """Two recordings of each pair, in an order that is not the classes'; each is a tone of its class."""
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(60), 2))
    lengths = 1000 + 100 * order
    levels = [np.sin(np.arange(length) * 0.3).astype(np.float64) * 0.5 for length in lengths]
    squeezed = [np.sign(wave) * np.log(1 + 255 * abs(wave)) / np.log(256) for wave in levels]
    arrays = {
        "mulaw": np.concatenate([np.round((one + 1) * 127.5) for one in squeezed]).astype(np.uint8),
        "offsets": np.cumsum([0, *lengths]).astype(np.int32),
        "digit": (order % 10).astype(np.uint8),
        "speaker": (order // 10).astype(np.uint8),
        "speakers": np.array(list("abcdef")),
    }
    return {**arrays, **changed}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(tmp_path))
    (tmp_path / "free_spoken_digits").mkdir()
    return tmp_path / "free_spoken_digits" / "fsdd_mulaw8.npz"


@pytest.mark.parametrize("hertz", [300, 1000, 3000])
def test_a_tone_is_a_bright_line_at_its_place_on_the_mel_scale(hertz):
    """1000 Hz is 1000 mel, as the scale was made; 32 peaks lie evenly between 60 mel and that of 4000 Hz."""
    mel, highest = (2595 * math.log10(1 + value / 700) for value in (hertz, RATE / 2))
    peak = (mel - 60) / (highest - 60) * (BANDS + 1) - 1
    picture = spectrograms(tone(hertz)[None])[0, 0]
    brightest = BANDS - 1 - picture[:, 1:-1].argmax(0)
    assert (brightest - peak).abs().max() < 1
    assert picture.max() == 255


def test_the_picture_is_the_formula_in_a_plain_loop():
    waves = torch.randn(2, FRAMES * HOP, dtype=torch.float64)
    window = torch.hann_window(WINDOW, dtype=torch.float64)
    for wave, picture in zip(waves, spectrograms(waves)[:, 0], strict=True):
        silence = torch.zeros(WINDOW, dtype=torch.float64)
        padded, columns = torch.cat([silence[: WINDOW // 2], wave, silence]), []
        for frame in range(FRAMES):
            power = torch.fft.rfft(padded[frame * HOP : frame * HOP + WINDOW] * window).abs() ** 2
            columns.append(10 * torch.log10(mel_bands().double() @ power))
        decibels = torch.stack(columns, 1).flip(0)
        expected = 255 * (1 + (decibels - decibels.max()) / 60).clamp(0, 1)
        assert (picture.double() - expected).abs().max() <= 0.5 + 1e-6


def test_a_short_sound_is_followed_by_black_and_of_a_long_one_the_middle_is_kept():
    short, long = (
        tone(500, 10 * HOP),
        torch.cat([torch.zeros(800), tone(500).float(), torch.zeros(800)]),
    )
    assert not spectrograms(short[None])[..., 12:].any()
    assert torch.equal(spectrograms(long[None]), spectrograms(tone(500).float()[None]))


def test_loudness_does_not_change_the_picture_and_silence_is_no_number_gone_wrong():
    waves = torch.randn(3, 3000, dtype=torch.float64)
    assert (spectrograms(waves).int() - spectrograms(waves * 1e-3).int()).abs().max() <= 1
    assert spectrograms(torch.zeros(1, 100)).shape == (1, 1, 32, 32)


def test_recordings_are_sorted_into_classes_by_speaker_and_word(file):
    """Recordings of class k have 1000 + 100 k samples, so that the class can be read off the picture's black end."""
    np.savez(file, **small_set())
    spoken = load_spoken_digits()
    assert (
        spoken.pool.examples.shape == (60, 2, 1, 32, 32) and spoken.pool.counts.tolist() == [2] * 60
    )
    assert spoken.pool.names[27] == "c/7" and spoken.groups[27] == 2
    assert torch.equal(spoken.groups, class_groups(spoken.pool.names)[0])
    dark = (~spoken.pool.examples.bool().any(3)).sum(3)
    expected = torch.stack(
        [(FRAMES - ((1000 + 100 * torch.arange(60)) / HOP).ceil()).clamp(min=0)] * 2, 1
    )
    assert (dark[..., 0] - expected).abs().max() <= 1
    assert spoken.of([2, 4]).tolist() == [*range(20, 30), *range(40, 50)]
    words = load_spoken_digits("word")
    assert words.pool.examples.shape == (10, 12, 1, 32, 32) and words.pool.names == tuple(
        "0123456789"
    )
    assert torch.equal(
        words.pool.examples[7].flatten(1).sum(1).sort().values,
        spoken.pool.examples[7::10].flatten(0, 1).flatten(1).sum(1).sort().values,
    )


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"digit": np.zeros(120, np.uint8)}, r"\[20, 0,"),
        ({"offsets": np.zeros(7, np.int32)}, "counts"),
        ({}, "zip"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(file, changed, word):
    np.savez(file, **small_set(**changed))
    if not changed:
        file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=word) as caught:
        load_spoken_digits()
    assert str(file) in str(caught.value) and "Put a whole copy in its place" in str(caught.value)


def test_without_the_file_or_with_an_unknown_word_the_message_helps(file):
    with pytest.raises(
        DataError, match=r"Set `WEIGHTLOOM_DATA` to a folder that holds `free_spoken_digits/fsdd"
    ):
        load_spoken_digits()
    with pytest.raises(ConfigError, match=r"`label='words'`.*Did you mean `word`"):
        load_spoken_digits("words")
    np.savez(file, **small_set())
    with pytest.raises(
        ConfigError, match=r"`speakers=\[2\]`, but the classes here are of \[0\].*speaker-word"
    ):
        load_spoken_digits("word").of([2])
    with pytest.raises(ConfigError, match=r"`held_out=6`.*Pass a number from 0 to 5"):
        spoken_split(6)


def test_every_speaker_is_held_out_once_and_validates_once():
    splits = [spoken_split(number) for number in range(6)]
    for part in ("validation", "test"):
        assert sorted(speaker for split in splits for speaker in split[part]) == list(range(6))
    assert all(
        sorted([*split["train"], *split["validation"], *split["test"]]) == list(range(6))
        for split in splits
    )


@needs_recordings
def test_words_of_an_unseen_speaker_can_be_told_apart_from_one_example_of_each():
    """The nearest picture in pixels is far better than chance, 0.2, and far from perfect."""
    spoken = load_spoken_digits()
    assert spoken.pool.examples.shape == (60, 50, 1, 32, 32)
    assert spoken.speakers == ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    source = ClassTasks(
        spoken.pool.examples, spoken.pool.counts, 5, shots=1, queries=5, groups=spoken.groups
    )
    tasks = source.sample(200, torch.Generator().manual_seed(0))
    assert (tasks.classes // 10 == tasks.classes[:, :1] // 10).all()
    nearest = torch.cdist(tasks.query_x.flatten(2), tasks.support_x.flatten(2)).argmin(2)
    accuracy = (nearest == tasks.query_y).float().mean()
    assert 0.5 < accuracy < 0.8
