"""Sections of an adversarial run: from tensors, facts, frames and metrics, whichever are there."""

import io
import json
import re
import wave
from base64 import b64decode

import pytest
import torch

from weightloom.apps.gan import figures
from weightloom.apps.gan.training import FRAMES
from weightloom.errors import ConfigError, ShapeError
from weightloom.files import save_tensors
from weightloom.report import build_report
from weightloom.report.audio import encode_wav, sound_uri
from weightloom.report.figures import learning_curves
from weightloom.report.pictures import data_uri, encode_png, side_by_side
from weightloom.report.run import Run, read_run
from weightloom.report.section import Grid, GridRow, Section, Sounds, with_shared


def made(tensors=None, facts=None, folder=None, **config):
    return Run("made", {"method": "ours"} | config, [], [], {}, tensors or {}, facts or {}, folder)


def by_heading(run):
    return {section.heading: section for section in figures.sections(run)}


def pixels_of(uri, shape):
    """The pixels that a PNG written here was made of, if it is that of ``shape``."""
    from zlib import decompress

    file = b64decode(uri.partition(",")[2])
    assert (int.from_bytes(file[16:20]), int.from_bytes(file[20:24])) == shape[::-1]
    length = int.from_bytes(file[33:37])
    data = torch.tensor(list(decompress(file[41 : 41 + length])))
    return data.reshape(shape[0], -1)[:, 1:]


def test_a_sound_is_read_back_by_another_reader():
    sound = torch.tensor([0.0, 0.5, -1.0, 2.0, float("nan")])
    for file in (encode_wav(sound, 8000), b64decode(sound_uri(sound, 8000).partition(",")[2])):
        with wave.open(io.BytesIO(file)) as read:
            form = read.getparams()
            levels = torch.frombuffer(bytearray(read.readframes(9)), dtype=torch.int16)
        assert form[:4] == (1, 2, 8000, 5)
        assert levels.tolist() == [0, 16384, -32767, 32767, 0]


@pytest.mark.parametrize(
    ("sound", "rate", "error", "words"),
    [
        (torch.zeros(2, 9), 8000, ShapeError, r"\(2, 9\).*`sound\.mean\(0\)`"),
        (torch.zeros(9), 0, ConfigError, r"`rate=0`.*8000"),
    ],
)
def test_a_sound_that_cannot_be_written_is_named(sound, rate, error, words):
    with pytest.raises(error, match=words):
        encode_wav(sound, rate)


def test_images_stand_side_by_side_with_lines_between():
    images = torch.arange(12.0).reshape(2, 1, 3, 2)
    joined = side_by_side(images)
    assert joined.shape == (1, 3, 5)
    assert joined[..., :2].equal(images[0]) and joined[..., 3:].equal(images[1])
    assert (joined[..., 2] == 0.5).all()
    assert encode_png((joined * 20).byte())[1:4] == b"PNG"


def test_an_empty_run_has_no_section():
    assert figures.sections(made()) == []


def test_samples_are_a_row_of_each_condition():
    samples = torch.zeros(2, 3, 1, 8, 8)
    samples[1, 2] = 1
    section = by_heading(made({"samples/ours": samples}, {"classes": ["cat", "dog"]}))["Samples"]
    (grid,) = section.grids
    assert section.leads and grid.title == "ours"
    assert [row.words for row in grid.rows] == ["cat", "dog"]
    assert {row.width for row in grid.rows} == {6 * (3 * 8 + 2)}
    pixels = pixels_of(grid.rows[1].image, (8, 26))
    assert (pixels[:, 18:] == 255).all() and (pixels[:, :8] == 0).all()


def test_a_walk_pairs_and_sizes_are_shown_by_method():
    tensors = {
        "walk/ours": torch.rand(19, 1, 8, 8),
        "resolutions/ours/28": torch.rand(1, 28, 28),
        "resolutions/ours/224": torch.rand(1, 224, 224),
        "resolutions/ours/14": torch.rand(1, 14, 14),
        "nearest/ours": torch.rand(4, 2, 3, 8, 8),
        "nearest/plain": torch.rand(4, 2, 3, 8, 8),
    }
    found = by_heading(made(tensors, {"nearest": {"ours": [1.0, 0.25]}}))
    assert [its.title for its in found["Nearest training images"].grids] == ["ours", "plain"]
    first, second = found["Nearest training images"].grids
    assert first.caption.endswith("1, 0.25.") and second.caption == ""
    assert [row.words for row in first.rows] == ["sample", "nearest"]
    (sizes,) = found["One sample at several resolutions"].grids
    assert sizes.caption.startswith("14, 28, 224 pixels")
    pixels = pixels_of(sizes.rows[0].image, (224, 3 * 224 + 2))
    levels = (tensors["resolutions/ours/14"][0] * 255).round()
    assert pixels[8::16, 8:224:16].equal(levels.long())
    assert pixels[:, -224:].equal((tensors["resolutions/ours/224"][0] * 255).round().long())
    assert len(found["Walk between conditions"].grids[0].rows) == 1


def test_sounds_are_named_by_condition_and_thinned():
    sounds = torch.linspace(-1, 1, 60)[:, None].expand(60, 10)
    run = made({"sounds/ours": sounds}, {"rate": 8000, "classes": ["no", "yes"]})
    (row,) = by_heading(run)["Sounds"].sounds
    assert [words for words, _ in row.sounds] == ["no"] * 10 + ["yes"] * 10
    assert row.sounds[1][1] == sound_uri(sounds[3], 8000)
    assert "Sounds" not in by_heading(made({"sounds/ours": sounds}))  # of unknown rate


def test_points_lie_under_their_centres():
    points, centres = torch.rand(5000, 2), torch.eye(2)
    section = by_heading(made({"points/ours": points, "centres": centres}))["Samples in the plane"]
    (figure,) = section.figures
    crosses, drawn = json.loads(figure.plot)["data"]
    assert len(drawn["x"]) == figures.MOST_POINTS and len(crosses["x"]) == 2
    assert figure.alt == "ours: 600 samples in the plane"


def write_training(folder, frames):
    folder.mkdir(exist_ok=True)
    rows = [
        {"step": step, "loss": 2.0 if step % 2 else 1.0, "gradient_norm": float(step)}
        | {"turn": "discriminator" if step % 2 else "generator", "outer_lr": 1.0}
        for step in range(1, 21)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    save_tensors(folder / FRAMES, frames, {})
    return folder


def test_each_training_shows_its_frames_and_the_balance_of_its_players(tmp_path):
    images = {f"{step:09}": torch.rand(5, 1, 8, 8) for step in range(100, 3100, 100)}
    folder = write_training(tmp_path, images)
    write_training(tmp_path / "plain", {"000000007": torch.rand(50, 2)})
    found = by_heading(made(folder=folder))
    training = found["Samples during training"]
    (grid,), (points,) = training.grids, training.rows
    assert grid.title == "ours" and len(grid.rows) <= figures.MOST_FRAMES
    assert grid.rows[-1].words == "step 3,000"
    assert grid.rows[-1].image == data_uri(side_by_side(images["000003000"]))
    assert [figure.title for figure in points] == ["plain, step 7"]
    ours, plain = found["Balance of the players"].rows
    assert [figure.title for figure in ours] == ["ours: loss", "ours: gradient norm"]
    judge, maker = json.loads(plain[0].plot)["data"]
    assert (judge["name"], set(judge["y"]), judge["x"][:2]) == ("discriminator", {2}, [1, 3])
    assert (maker["name"], set(maker["y"]), maker["x"][:2]) == ("generator", {1}, [2, 4])
    assert ours[1].alt == "ours, gradient norm: discriminator 1 to 19; generator 2 to 20"


def test_large_samples_of_many_methods_stay_within_the_page(tmp_path):
    """Noise, which no PNG file compresses, and sounds of two thirds of a second."""
    tensors = {f"samples/{name}": torch.rand(10, 8, 1, 40, 40) for name in "abcdef"}
    tensors |= {f"sounds/{name}": torch.rand(20, 5120) for name in "abcdef"}
    folder = write_training(tmp_path, {f"{step}": torch.rand(20, 1, 40, 40) for step in range(9)})
    found = by_heading(made(tensors, {"rate": 8000}, folder=folder))
    grids = [*found["Samples"].grids, *found["Samples during training"].grids]
    pictures = sum(len(row.image) for grid in grids for row in grid.rows)
    players = [uri for sounds in found["Sounds"].sounds for _, uri in sounds.sounds]
    assert len(players) == 60
    assert pictures + sum(map(len, players)) < 1_700_000


def test_a_row_too_long_for_the_page_shows_images_from_end_to_end():
    path = torch.arange(100.0)[:, None, None, None].expand(-1, 1, 2, 2) / 100
    (grid,) = by_heading(made({"walk/ours": path}))["Walk between conditions"].grids
    assert grid.rows[0].image == data_uri(side_by_side(path[::5]))


def test_the_loss_of_each_player_has_a_curve_of_its_own(tmp_path):
    folder = write_training(tmp_path, {"000000020": torch.rand(5, 1, 8, 8)})
    (folder / "config.json").write_text('{"method": "ours"}')
    judge, maker = learning_curves(read_run(folder))
    assert judge.alt == "Training loss, discriminator: 2 at step 1, 2 at step 19"
    assert maker.alt == "Training loss, generator: 1 at step 2, 1 at step 20"


def test_a_page_plays_sounds_and_shows_grids_without_a_network(tmp_path):
    (tmp_path / "config.json").write_text('{"data": "<b>words"}')
    grid = Grid("ours", [GridRow('"cat"', data_uri(torch.rand(1, 8, 8)), 48)], "A caption.")
    players = Sounds("ours", [('"no"', sound_uri(torch.zeros(9), 8000))])

    def sections(run):
        own = Section("Heard", "Of one seed.", grids=[grid], sounds=[players])
        return with_shared(run, {"own": own})

    page = build_report(tmp_path, sections).read_text()
    assert "media-src data:" in page and "<script" not in page
    (player,) = re.findall("<audio [^>]*>", page)
    assert " controls " in player and 'src="data:audio/wav;base64,' in player
    assert 'aria-label="ours: &#34;no&#34;"' in player and "autoplay" not in player
    assert 'alt="ours: &#34;cat&#34;" width="48">' in page and "A caption." in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_a_run_that_holds_everything_is_drawn(tmp_path):
    folder = write_training(tmp_path, {"000000020": torch.rand(5, 1, 8, 8)})
    (folder / "config.json").write_text('{"method": "ours", "data": "digits"}')
    tensors = {
        "samples/ours": torch.rand(2, 3, 1, 8, 8),
        "points/ours": torch.rand(9, 2),
        "walk/ours": torch.rand(4, 1, 8, 8),
        "resolutions/ours/14": torch.rand(1, 14, 14),
        "nearest/ours": torch.rand(4, 2, 1, 8, 8),
        "sounds/ours": torch.rand(4, 20),
    }
    save_tensors(folder / "evaluation.safetensors", tensors, {"rate": 8000})
    page = build_report(folder, figures.sections).read_text()
    drawn = [section.heading for section in figures.sections(read_run(folder))]
    assert len(drawn) == 8 and set(drawn) < set(re.findall("<h2>(.*?)</h2>", page))
