"""Folders of WAV files: samples as written, one rate, and files that are skipped or refused."""

import wave

import pytest
import torch

from weightloom.errors import ConfigError, DataError
from weightloom.tasks.wav import load_wavs, read_wav

RATE = 4000


def write(path, levels, rate=RATE, width=2, channels=1):
    """Write whole numbers as a WAV file: 1 byte unsigned, more bytes signed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    signed = width > 1
    data = b"".join(int(its).to_bytes(width, "little", signed=signed) for its in levels)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


def tone(seconds=0.2, rate=RATE):
    return (8000 * (torch.arange(round(seconds * rate)) * 0.7).sin()).round().tolist()


@pytest.fixture
def folder(tmp_path):
    for name in ("yes", "no"):
        for number in range(3):
            write(tmp_path / name / f"{number}.wav", tone())
    return tmp_path


@pytest.mark.parametrize(
    ("width", "levels"),
    [
        (1, (128, 255, 0, 192)),
        (2, (0, 32512, -32768, 16384)),
        (3, (0, 8323072, -8388608, 4194304)),
        (4, (0, 2130706432, -2147483648, 1073741824)),
    ],
)
def test_whole_numbers_of_any_width_are_read_as_amplitudes(tmp_path, width, levels):
    sound, rate = read_wav(write(tmp_path / "a.wav", levels, width=width))
    assert rate == RATE
    assert sound.tolist() == [0.0, 127 / 128, -1.0, 0.5]


def test_a_file_reads_as_scipy_reads_it(tmp_path):
    wavfile = pytest.importorskip("scipy.io.wavfile")
    path = write(tmp_path / "a.wav", [1, -2, 70_000, -8_000_000] * 5, width=3, channels=2)
    rate, levels = wavfile.read(path)  # 24 bits in the upper bytes of 32
    sound, ours = read_wav(path)
    assert ours == rate
    torch.testing.assert_close(sound, torch.from_numpy(levels / 2.0**31).mean(1).float())


def test_channels_are_averaged(tmp_path):
    path = write(tmp_path / "a.wav", [16384, 0, -16384, 16384], channels=2)
    assert read_wav(path)[0].tolist() == [0.25, 0.0]


def test_long_files_are_cut_to_their_middle_and_short_ones_padded(tmp_path):
    write(tmp_path / "a" / "long.wav", range(1, 601))
    write(tmp_path / "b" / "short.wav", [5] * 250)
    loaded = load_wavs(tmp_path, seconds=0.1)
    assert (loaded.names, loaded.rate, loaded.skipped) == (("a", "b"), RATE, ())
    assert (loaded.clips[0][0] * 32768).tolist() == list(range(101, 501))
    assert (loaded.clips[1][0] * 32768).tolist() == [5] * 250 + [0] * 150


def test_unusable_files_are_skipped_with_a_reason(folder):
    (folder / "no" / "damaged.wav").write_bytes(b"RIFF....WAVEfmt ")
    (folder / "no" / "empty.wav").touch()
    (folder / "no" / "notes.txt").touch()
    (folder / "no" / ".hidden.wav").touch()
    write(folder / "no" / "silent.WAV", [0] * 800)
    write(folder / "no" / "click.wav", [9] * 199)
    loaded = load_wavs(folder, seconds=0.2)
    assert [len(its) for its in loaded.clips] == [3, 3]
    reasons = {its.what.rpartition("/")[2]: its.why for its in loaded.skipped}
    assert set(reasons) == {
        "damaged.wav",
        "empty.wav",
        "notes.txt",
        ".hidden.wav",
        "silent.WAV",
        "click.wav",
    }
    assert reasons["silent.WAV"] == "silent"
    assert reasons["click.wav"] == "shorter than 0.05 s"
    assert reasons["empty.wav"].startswith("damaged")


def test_another_rate_is_refused_and_converting_the_file_helps(folder):
    other = write(folder / "yes" / "2.wav", tone(rate=8000), rate=8000)
    with pytest.raises(DataError, match=r"no/0.wav` has 4000 .*yes/2.wav` 8000.*-ar 4000"):
        load_wavs(folder)
    write(other, tone())
    assert load_wavs(folder).rate == RATE


def test_a_class_without_clips_is_refused_with_the_reasons(folder):
    (folder / "maybe").mkdir()
    with pytest.raises(DataError, match="maybe` holds 0 usable clips"):
        load_wavs(folder)
    write(folder / "maybe" / "a.wav", [0] * 800)
    with pytest.raises(DataError, match=r"`a.wav`: silent"):
        load_wavs(folder)
    write(folder / "maybe" / "a.wav", tone())
    assert len(load_wavs(folder).clips) == 3
    with pytest.raises(DataError, match=r"holds 1 usable clips. A class needs 2"):
        load_wavs(folder, fewest=2)


def test_a_folder_without_two_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_wavs(tmp_path / "nowhere")
    write(tmp_path / "only" / "a.wav", tone())
    with pytest.raises(DataError, match="holds 1 classes"):
        load_wavs(tmp_path)
    with pytest.raises(ConfigError, match=r"seconds=0.01"):
        load_wavs(tmp_path, seconds=0.01)


def test_a_file_that_is_no_plain_wav_is_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"OggS" + bytes(100))
    with pytest.raises(DataError, match="cannot be read as a WAV file"):
        read_wav(tmp_path / "a.wav")
    with pytest.raises(DataError, match="cannot be read as a WAV file"):
        read_wav(tmp_path / "b.wav")
