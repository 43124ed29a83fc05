"""A user's folder: pictures of every kind, what is skipped, and splits."""

import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from weightloom.errors import ConfigError, DataError, MissingExtraError
from weightloom.tasks import folder as room
from weightloom.tasks import load_folder, split_classes

Image = pytest.importorskip("PIL.Image")
PngInfo = pytest.importorskip("PIL.PngImagePlugin").PngInfo
RED, GREEN, BLUE = (254, 0, 0), (0, 254, 0), (0, 0, 254)


def solid(colour, width=40, height=30, mode="RGB"):
    return Image.new(mode, (width, height), colour)


def fill(root, classes, pictures=2, colour=RED):
    """Pictures alike but for a comment: a file that two classes share would be left out."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(pictures):
            comment = PngInfo()
            comment.add_text("of", f"{root}{name}{number}")
            solid(colour).save(root / name / f"{number}.png", pnginfo=comment)
    return root


def one(tmp_path, picture, name="a.png", **options):
    """Load a folder that holds this picture alone, and return the image."""
    saved = {
        key: options.pop(key)
        for key in ("exif", "transparency", "save_all", "append_images")
        if key in options
    }
    (tmp_path / "class").mkdir()
    picture.save(tmp_path / "class" / name, **saved)
    pool = load_folder(tmp_path, fewest=1, ways=1, **options).pool
    assert pool.examples.shape[:2] == (1, 1)
    return pool.examples[0, 0]


def close(image, colour, tolerance=3):
    return (image.flatten(1).int() - torch.tensor(colour)[:, None]).abs().max() <= tolerance


# Pictures


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff", "a.ppm", "no suffix"]
)
def test_every_format_is_read_whatever_the_file_is_called(tmp_path, name):
    (tmp_path / "class").mkdir()
    kind = {"jpg": "JPEG", "no suffix": "PNG"}.get(
        name.rpartition(".")[2], name.rpartition(".")[2].upper()
    )
    solid(RED).save(tmp_path / "class" / name, format=kind)
    image = load_folder(tmp_path, fewest=1, ways=1).pool.examples[0, 0]
    assert image.dtype == torch.uint8 and image.shape == (3, 32, 32) and close(image, RED)


@pytest.mark.parametrize("size", [28, 32, 84])
def test_the_largest_square_in_the_middle_is_kept_and_its_aspect_too(tmp_path, size):
    """Three squares side by side, red, green and blue: the green one is left, whole."""
    picture = solid(RED, 300, 100)
    picture.paste(GREEN, (100, 0, 200, 100))
    picture.paste(BLUE, (200, 0, 300, 100))
    image = one(tmp_path, picture, size=size)
    assert image.shape == (3, size, size) and close(image, GREEN, 0)


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    """Orientation 6: the camera was held so that the picture's left is its bottom, and its top is its right."""
    picture = solid(RED, 64, 64)
    picture.paste(BLUE, (32, 0, 64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = one(tmp_path, picture, exif=exif)
    assert close(image[:, :15], RED) and close(image[:, 17:], BLUE)


@pytest.mark.parametrize(
    ("mode", "colour", "name", "expected"),
    [
        ("1", 1, "a.png", 255),
        ("L", 90, "a.png", 90),
        ("I;16", 257 * 90, "a.png", 90),
        ("I;16", 257 * 90, "a.tiff", 90),
        ("I", 257 * 90, "a.tiff", 90),
        ("I", 90, "a.tiff", 90),
        ("F", 90 / 255, "a.tiff", 90),
        ("F", 90.0, "a.tiff", 90),
        ("LA", (90, 255), "a.png", 90),
        ("LA", (90, 0), "a.png", 255),
    ],
)
def test_grey_of_any_depth_becomes_one_channel_of_8_bits(tmp_path, mode, colour, name, expected):
    image = one(tmp_path, solid(colour, mode=mode), name)
    assert image.shape == (1, 32, 32) and (image == expected).all()


def test_colour_of_any_kind_becomes_red_green_and_blue_on_white(tmp_path):
    cases = {
        "palette": (solid(RED).quantize(2), "png", {}, RED),
        "transparent palette": (
            solid(RED).quantize(2),
            "png",
            {"transparency": 0},
            (255, 255, 255),
        ),
        "transparent colour": (solid(RED), "png", {"transparency": RED}, (255, 255, 255)),
        "half transparent": (solid((254, 0, 0, 128), mode="RGBA"), "png", {}, (254, 127, 127)),
        "cmyk": (solid((0, 255, 255, 0), mode="CMYK"), "jpg", {}, (255, 0, 0)),
        "moving": (solid(RED), "gif", {"save_all": True, "append_images": [solid(BLUE)]}, RED),
    }
    for name, (picture, kind, saved, colour) in cases.items():
        (tmp_path / name / "class").mkdir(parents=True)
        picture.save(tmp_path / name / "class" / f"a.{kind}", **saved)
        image = load_folder(tmp_path / name, fewest=1, ways=1, channels=3).pool.examples[0, 0]
        assert close(image, colour), name


def test_one_coloured_picture_makes_all_of_them_coloured_unless_told_otherwise(tmp_path):
    fill(tmp_path, ["a", "b"], colour=(77, 77, 77))
    assert load_folder(tmp_path).pool.examples.shape == (2, 2, 1, 32, 32)
    assert load_folder(tmp_path, channels=3).pool.examples.shape == (2, 2, 3, 32, 32)
    solid(GREEN).save(tmp_path / "b" / "1.png")
    assert load_folder(tmp_path).pool.examples.shape == (2, 2, 3, 32, 32)
    grey = load_folder(tmp_path, channels=1).pool.examples
    assert grey.shape == (2, 2, 1, 32, 32) and (grey[1, 1] == round(0.587 * 254)).all()


# Folders


def test_classes_come_by_name_with_their_counts_and_zeros_behind(tmp_path):
    fill(tmp_path, ["b"], 3)
    fill(tmp_path, ["a"], 2, BLUE)
    pool, split, skipped = load_folder(str(tmp_path))
    assert pool.names == ("a", "b") and pool.counts.tolist() == [2, 3]
    assert split is None and skipped == ()
    assert close(pool.examples[0, 0], BLUE, 0) and close(pool.examples[1, 2], RED, 0)
    assert not pool.examples[0, 2].any()


def test_what_is_no_picture_is_skipped_with_a_reason_and_nothing_else_is(tmp_path):
    fill(tmp_path, ["a", "b"], 3)
    fill(tmp_path, ["few", ".git"], 1)
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "a", ["nested"])
    whole = (tmp_path / "a" / "0.png").read_bytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))
    noise.save(tmp_path / "a" / "cut.jpg")
    (tmp_path / "a" / "cut.jpg").write_bytes((tmp_path / "a" / "cut.jpg").read_bytes()[:900])
    (tmp_path / "a" / "cut.png").write_bytes(whole[:60])
    (tmp_path / "a" / "nothing.png").touch()
    (tmp_path / "a" / "notes.txt").write_text("a cat")
    (tmp_path / "a" / ".DS_Store").touch()
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "labels.csv").touch()
    os.mkfifo(tmp_path / "a" / "pipe")
    pool, _, skipped = load_folder(tmp_path, fewest=3)
    assert pool.names == ("a", "b") and pool.counts.tolist() == [3, 3]
    reasons = {str(Path(what).relative_to(tmp_path)): why for what, why in skipped}
    assert len(reasons) == len(skipped)
    expected = {
        ".git": "hidden",
        "labels.csv": "in no class's folder",
        "few": "1 of the 3 pictures needed",
        "empty": "0 of the 3 pictures needed",
        "a/nested": "a folder within a class's folder",
        "a/notes.txt": "no picture in a known format",
        "a/nothing.png": "no picture in a known format",
        "a/.DS_Store": "hidden",
        "a/gone.png": "a broken link, or not a regular file",
        "a/pipe": "a broken link, or not a regular file",
    }
    cut = {name: reasons.pop(name) for name in ("a/cut.jpg", "a/cut.png")}
    assert reasons == expected
    assert all(
        why.startswith("cannot be decoded (") and "truncated" in why.lower() for why in cut.values()
    )


def test_a_huge_picture_does_not_warn_and_a_monstrous_one_is_skipped(tmp_path, monkeypatch):
    fill(tmp_path, ["a"])
    monkeypatch.setenv("WEIGHTLOOM_MAX_MEGAPIXELS", "0.002")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_folder(tmp_path, ways=1).pool.counts.tolist() == [2]
        solid(RED, 60, 50).save(tmp_path / "a" / "large.png")
        solid(RED, 100, 100).save(tmp_path / "a" / "monster.png")
        pool, _, skipped = load_folder(tmp_path, ways=1)
    assert pool.counts.tolist() == [2]
    assert (
        "it has 0.003 megapixels, and up to 0.002 are read; `WEIGHTLOOM_MAX_MEGAPIXELS=1` allows it"
        in skipped[0].why
    )
    assert "it has 0.01 megapixels, and up to 0.002 are" in skipped[1].why
    monkeypatch.setenv("WEIGHTLOOM_MAX_MEGAPIXELS", "1")
    assert load_folder(tmp_path, ways=1).pool.counts.tolist() == [4]
    for typed in ("many", "-1", "nan", "0"):
        monkeypatch.setenv("WEIGHTLOOM_MAX_MEGAPIXELS", typed)
        with pytest.raises(ConfigError, match=f"`WEIGHTLOOM_MAX_MEGAPIXELS={typed}`"):
            load_folder(tmp_path, ways=1)


def test_splits_that_are_folders_are_kept(tmp_path):
    fill(tmp_path / "train", ["a", "d"])
    fill(tmp_path / "val", ["c"])
    fill(tmp_path / "Test", ["b"])
    pool, split, skipped = load_folder(tmp_path)
    assert pool.names == ("a", "b", "c", "d") and skipped == ()
    assert split == {"train": [0, 3], "validation": [2], "test": [1]}


def test_a_class_may_be_called_train_beside_others(tmp_path):
    fill(tmp_path, ["train", "bus"])
    pool, split, _ = load_folder(tmp_path)
    assert pool.names == ("bus", "train") and split is None


def test_a_class_in_two_splits_is_refused(tmp_path):
    fill(tmp_path / "train", ["cat", "dog"])
    fill(tmp_path / "test", ["dog"])
    with pytest.raises(
        DataError, match=r"a class `dog` for \w+ and one for \w+\. Few-shot.*side by side"
    ):
        load_folder(tmp_path)


def test_folders_that_cannot_be_used_say_what_is_needed(tmp_path):
    with pytest.raises(DataError, match=r"nowhere` is not there.*one sub-folder per class"):
        load_folder(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file` is a file"):
        load_folder(tmp_path / "file")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"has 0 classes.*and 2 are needed.*it is empty"):
        load_folder(tmp_path / "none")
    fill(tmp_path / "some", ["a", "b"])
    with pytest.raises(DataError, match=r"has 2 classes of at least 2 pictures, and 5 are needed"):
        load_folder(tmp_path / "some", ways=5)
    with pytest.raises(
        DataError,
        match=r"has 0 classes of at least 6.*2 files or folders were skipped \(`a`: 2 of the 6 pictures needed",
    ):
        load_folder(tmp_path / "some", fewest=6)
    for options in ({"size": 0}, {"channels": 2}):
        with pytest.raises(
            ConfigError, match="Pass `size=28`, 32 or 84, and `channels=1`, 3 or None"
        ):
            load_folder(tmp_path / "some", **options)


def test_too_much_for_memory_is_refused_before_a_picture_is_read_and_the_advice_works(
    tmp_path, monkeypatch
):
    fill(tmp_path, ["a", "b"], 3)
    monkeypatch.setattr(room, "MOST_MEMORY_BYTES", 2 * 3 * 3 * 20**2 + 5)
    with pytest.raises(
        DataError, match=r"2 classes of up to 3 pictures.*Pass `size=20` or smaller"
    ):
        load_folder(tmp_path)
    assert load_folder(tmp_path, size=20).pool.examples.shape[-1] == 20


def test_without_pillow_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'weightloom\[images\]'"):
        load_folder(tmp_path)


# Splits by a seed


@pytest.mark.parametrize("classes", [4, 5, 6, 10, 15, 17, 100, 1623])
@pytest.mark.parametrize("fewest", [2, 5])
def test_parts_share_no_class_leave_none_out_and_are_large_enough(classes, fewest):
    if classes < 2 * fewest:
        with pytest.raises(
            ConfigError, match=rf"{classes} classes to split.*at least {2 * fewest} classes"
        ):
            split_classes(classes, fewest=fewest)
        return
    split = split_classes(classes, seed=3, fewest=fewest)
    assert sorted(number for part in split.values() for number in part) == list(range(classes))
    assert len(split["train"]) >= fewest and len(split["test"]) >= fewest
    assert len(split["validation"]) >= fewest or (not split["validation"] and classes < 3 * fewest)
    assert split_classes(classes, seed=3, fewest=fewest) == split


def test_large_parts_have_the_shares_asked_for_and_the_seed_decides_who_is_in_them():
    split = split_classes(1000, fractions=(0.5, 0.2, 0.3))
    assert [len(part) for part in split.values()] == [500, 200, 300]
    assert split != split_classes(1000, seed=1, fractions=(0.5, 0.2, 0.3))
    assert not split_classes(100, fractions=(0.5, 0.0, 0.5))["validation"]
    with pytest.raises(ConfigError, match=r"Pass three numbers"):
        split_classes(100, fractions=(0.5, 0.6, 0.2))


# Pictures of two classes


def copied(source, target):
    shutil.copytree(source, target)


def linked(source, target):
    target.symlink_to(source)


def linked_files(source, target):
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).symlink_to(file)


@pytest.mark.parametrize(
    ("share", "said"), [(copied, "a copy of"), (linked, "a link to"), (linked_files, "a link to")]
)
@pytest.mark.parametrize("split", [False, True])
def test_a_picture_that_two_classes_have_counts_for_the_first_and_is_said(
    share, said, split, tmp_path
):
    parts = ("train", "test") if split else ("", "")
    fill(tmp_path / parts[0], ["a", "b"])
    fill(tmp_path / parts[1], ["c", "d"])
    share(tmp_path / parts[0] / "a", tmp_path / parts[1] / "e")
    loaded = load_folder(tmp_path)
    assert sorted(loaded.pool.names) == ["a", "b", "c", "d"]
    told = {Path(skipped.what).name: skipped.why for skipped in loaded.skipped}
    assert told["e"] == "0 of the 2 pictures needed"
    assert told["0.png"].startswith(said) and told["0.png"].endswith("of another class")
