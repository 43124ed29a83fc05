"""Real images: where they are looked for, how they are fetched, and what is said when they are damaged."""

import base64
import hashlib
import io
import os
import struct
import sys
import threading
import zipfile
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from weightloom.datasets import find_file, searched_folders
from weightloom.errors import ConfigError, DataError, MissingExtraError, ShapeError
from weightloom.tasks import omniglot
from weightloom.tasks.data import (
    ClassPool,
    class_groups,
    digits_split,
    lake_split,
    load_digits,
    load_omniglot,
    omniglot_split,
    rotated,
)

REAL = Path(os.environ.get("WEIGHTLOOM_DATA") or "/nowhere").expanduser() / "omniglot"
needs_omniglot = pytest.mark.skipif(
    not (REAL / "omniglot28.npz").is_file() or not (REAL / "omniglot105.npz").is_file(),
    reason="needs WEIGHTLOOM_DATA with omniglot/omniglot28.npz and omniglot/omniglot105.npz",
)
DRAWINGS = {
    0: "images_background/Greek/character01/0001_",
    1: "images_background/Greek/character02/0002_",
    2: "images_evaluation/ULOG/character01/0003_",
}


def png_of(grey, bits, kinds=(0,)):
    """Write a greyscale PNG by the book; row ``y`` gets the filter ``kinds[y % len(kinds)]``."""
    plain = np.packbits(grey > 127, axis=1) if bits == 1 else grey
    left, up, corner = (np.zeros(plain.shape, int) for _ in range(3))
    left[:, 1:], up[1:], corner[1:, 1:] = plain[:, :-1], plain[:-1], plain[:-1, :-1]
    near = np.stack([left, up, corner])
    paeth = np.take_along_axis(near, abs(near - (left + up - corner)).argmin(0)[None], 0)[0]
    guesses = [np.zeros_like(up), left, up, (left + up) // 2, paeth]
    rows = [
        bytes([kinds[y % len(kinds)], *((row - guesses[kinds[y % len(kinds)]][y]) % 256)])
        for y, row in enumerate(plain.astype(int))
    ]
    header = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(rows))
    chunks = [
        (b"IHDR", header),
        (b"tEXt", b"x"),
        (b"IDAT", pixels[:9]),
        (b"IDAT", pixels[9:]),
        (b"IEND", b""),
    ]
    body = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def zips_of(ink, lost=()):
    """Two zips laid out as the authors' are, with what zips made on a Mac hold besides."""
    files = {name: io.BytesIO() for name in omniglot.ZIPS_MD5}
    for name, file in files.items():
        with zipfile.ZipFile(file, "w") as box:
            box.writestr(f"__MACOSX/{name[:-4]}/Greek/character01/._0001_01.png", b"not a picture")
            box.writestr("../../outside.png", b"not a picture")
            for row, drawer in np.ndindex(ink.shape[:2]):
                path = f"{DRAWINGS[row]}{drawer + 1:02}.png"
                if path.startswith(name[:-4]) and (row, drawer) not in lost:
                    box.writestr(
                        path, png_of(np.where(ink[row, drawer], 0, 255).astype(np.uint8), 1)
                    )
    return {name: file.getvalue() for name, file in files.items()}


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A machine that has no data, and a set of three characters."""
    monkeypatch.delenv("WEIGHTLOOM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(omniglot, "CLASSES", 3)
    monkeypatch.setattr(omniglot, "HOME", "http://127.0.0.1:9")
    return tmp_path


@pytest.fixture
def home(alone, monkeypatch):
    """The authors' home, here: give it zips."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = alone / "home"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(omniglot, "HOME", f"http://127.0.0.1:{server.server_port}")

    def publish(zips):
        for name, content in zips.items():
            (folder / name).write_bytes(content)
            monkeypatch.setitem(omniglot.ZIPS_MD5, name, hashlib.md5(content).hexdigest())

    yield publish
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def ink():
    return np.random.default_rng(0).random((3, 20, 105, 105)) < 0.3


# The digits


def test_the_digits_are_the_1797_of_scikit_learn_class_by_class():
    datasets = pytest.importorskip("sklearn.datasets")
    pool, theirs = load_digits(), datasets.load_digits()
    assert pool.examples.dtype == torch.uint8
    assert pool.examples.shape == (10, 183, 1, 8, 8)
    assert pool.counts.tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]  # as UCI lists them
    assert pool.counts.dtype == torch.int64
    assert pool.names == tuple("0123456789")
    for digit, count in enumerate(pool.counts.tolist()):
        back = (
            pool.examples[digit, :count, 0].double() * 16 / 255
        ).round()  # 256 levels hold 17 without a loss
        assert np.array_equal(back.numpy(), theirs.images[theirs.target == digit])
        assert not pool.examples[digit, count:].any()
    assert int(pool.examples.max()) == 255


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'weightloom\[digits\]'"):
        load_digits()


def test_each_digit_is_held_out_in_exactly_one_split():
    splits = [digits_split(split) for split in range(3)]
    assert sorted(digit for _, held_out in splits for digit in held_out) == list(range(10))
    assert all(sorted(train + held_out) == list(range(10)) for train, held_out in splits)


@pytest.mark.parametrize("split", [-1, 3])
def test_an_unknown_split_is_refused(split):
    with pytest.raises(ConfigError, match=rf"`split={split}`.*Pass 0, 1 or 2"):
        digits_split(split)


# Splits and rotations


def test_omniglot_is_split_into_1200_and_423_classes_that_share_none():
    train, held_out = omniglot_split(seed=3)
    assert (len(train), len(held_out)) == (1200, 423)
    assert torch.equal(torch.cat([train, held_out]).sort().values, torch.arange(1623))
    assert torch.equal(omniglot_split(seed=3)[0], train)
    assert not torch.equal(omniglot_split(seed=4)[0], train)


def test_the_first_split_stays_what_it_was_when_records_were_made():
    train, held_out = omniglot_split()  # torch 2.13 on CPU
    assert train[:5].tolist() == [1208, 200, 985, 783, 1588]
    assert held_out[:5].tolist() == [334, 1577, 1356, 842, 148]


def test_a_rotated_class_is_a_new_class_with_its_images_turned():
    pool = ClassPool(
        torch.arange(2 * 3 * 16, dtype=torch.uint8).reshape(2, 3, 1, 4, 4),
        torch.tensor([3, 2]),
        ("a", "b"),
    )
    turned = rotated(pool, (1, 3))
    assert turned.names == ("a", "b", "a@90", "b@90", "a@270", "b@270")
    assert turned.counts.tolist() == [3, 2, 3, 2, 3, 2]
    for behind, turns in enumerate((0, 1, 3)):
        for row in range(2):
            for image in range(3):
                expected = np.rot90(pool.examples[row, image, 0].numpy(), turns)
                assert np.array_equal(turned.examples[2 * behind + row, image, 0], expected)
    assert rotated(pool, ()).names == pool.names


@pytest.mark.parametrize("turns", [(0,), (4,), (1, 1), (-1,)])
def test_a_rotation_that_repeats_a_class_is_refused(turns):
    pool = ClassPool(torch.zeros(1, 1, 1, 4, 4, dtype=torch.uint8), torch.tensor([1]), ("a",))
    with pytest.raises(ConfigError, match="Pass different numbers from 1 to 3"):
        rotated(pool, turns)


def test_images_that_are_not_square_are_not_turned():
    pool = ClassPool(torch.zeros(1, 1, 1, 4, 5, dtype=torch.uint8), torch.tensor([1]), ("a",))
    with pytest.raises(ShapeError, match="4 pixels high and 5 wide"):
        rotated(pool, (1,))


# Alphabets


def drawings(*names):
    return ClassPool(
        torch.zeros(len(names), 1, 1, 4, 4, dtype=torch.uint8), torch.ones(len(names)).long(), names
    )


def test_classes_are_grouped_by_what_stands_before_the_slash_and_the_rotation():
    turned = rotated(drawings("a/1", "b/1", "a/2"), (1,))
    groups, names = class_groups(turned.names)
    assert groups.tolist() == [0, 1, 0, 2, 3, 2] and groups.dtype == torch.int64
    assert names == ("a", "b", "a@90", "b@90")
    assert class_groups(["0", "1"])[0].tolist() == [0, 1]


def test_alphabets_to_train_on_are_chosen_by_name_and_the_evaluation_set_is_never_among_them(
    monkeypatch,
):
    monkeypatch.setattr(omniglot, "BACKGROUND", 4)
    pool = drawings("Greek/1", "Korean/1", "Greek/2", "Latin/1", "ULOG/1", "ULOG/2")
    assert [part.tolist() for part in lake_split(pool)] == [[0, 1, 2, 3], [4, 5]]
    assert [part.tolist() for part in lake_split(pool, ["Latin", "Greek"])] == [[0, 2, 3], [4, 5]]
    with pytest.raises(
        ConfigError,
        match=r"names `ULOG`, which is none of the 3 of the background set.*Known: `Greek`",
    ):
        lake_split(pool, ["ULOG"])
    with pytest.raises(ConfigError, match=r"Did you mean `Korean`"):
        lake_split(pool, ["korean"])


@needs_omniglot
def test_the_authors_sets_have_their_published_sizes():
    """30 alphabets and 964 characters, 20 and 659; "background small 1" has 2,720 drawings (TensorFlow Datasets)."""
    pool = load_omniglot(download=False)
    with np.load(REAL / "omniglot28.npz") as file:
        alphabet, alphabets, background = file["alphabet"], file["alphabets"], file["background"]
    groups, names = class_groups(pool.names)
    assert np.array_equal(groups, alphabet) and names == tuple(alphabets)
    train, held_out = lake_split(pool)
    assert np.array_equal(train, background.nonzero()[0]) and np.array_equal(
        held_out, (~background).nonzero()[0]
    )
    assert (len(train), len(groups[train].unique())) == (964, 30)
    assert (len(held_out), len(groups[held_out].unique())) == (659, 20)
    assert groups[held_out].bincount()[30:].min() >= 20
    small, also_held_out = lake_split(pool, omniglot.SMALL1)
    assert len(small) * 20 == 2720 and torch.equal(also_held_out, held_out)


# Where files are looked for


def test_the_named_folder_is_searched_before_the_cache(alone, monkeypatch):
    cache = alone / "cache" / "weightloom" / "some"
    assert searched_folders("some") == [cache]
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(alone / "named"))
    named = alone / "named" / "some"
    assert searched_folders("some") == [named, cache]
    assert find_file("some", "a.npz") is None
    for folder in (cache, named):
        folder.mkdir(parents=True)
        (folder / "a.npz").touch()
        assert find_file("some", "a.npz") == folder / "a.npz"


@pytest.mark.parametrize("unset", ["", "relative"])
def test_a_cache_that_is_no_absolute_path_is_passed_over_for_the_users_own(
    alone, monkeypatch, unset
):
    monkeypatch.setenv("XDG_CACHE_HOME", unset)
    monkeypatch.setenv("HOME", str(alone))
    assert searched_folders("some") == [alone / ".cache" / "weightloom" / "some"]


# PNG and pixels


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("kinds", [(0,), (1,), (2,), (3,), (4,), (4, 3, 2, 1, 0)])
def test_a_png_is_decoded_whatever_filters_its_rows_have(bits, kinds):
    grey = np.random.default_rng(1).integers(0, 256, (11, 13), dtype=np.uint8)
    grey = np.where(grey > 127, 255, 0).astype(np.uint8) if bits == 1 else grey
    assert np.array_equal(omniglot.grey_from_png(png_of(grey, bits, kinds)), grey)


def test_pngs_that_pillow_wrote_are_decoded():
    """Written by Pillow 13.0; the pixels are those it was given."""
    eight = "iVBORw0KGgoAAAANSUhEUgAAAAYAAAAFCAAAAABDM8I6AAAAK0lEQVR4nGNkYGQXVrVlYWdkZ2dnZxFlZBcWFWVRZmQXVlZmMW"
    eight += "RkF1Y1BAAggwIzUHofNgAAAABJRU5ErkJggg=="
    one = "iVBORw0KGgoAAAANSUhEUgAAAAsAAAADAQAAAABthMjmAAAAEUlEQVR4nGOY5MCoEsPgqQAACTUBvR6Y4HkAAAAASUVORK5CYII="
    given = np.add.outer(np.arange(5) ** 2 * 7, np.arange(6) ** 3) % 256
    assert np.array_equal(omniglot.grey_from_png(base64.b64decode(eight)), given)
    given = np.add.outer(np.arange(3), np.arange(11)) % 3 == 0
    assert np.array_equal(omniglot.grey_from_png(base64.b64decode(one)), given * 255)


def test_what_is_no_plain_grey_png_is_refused():
    png = png_of(np.zeros((4, 4), np.uint8), 8)
    for broken in (
        b"",
        b"GIF89a" + png,
        png[:40],
        png[:25] + b"\x02" + png[26:],
        png[:28] + b"\x01" + png[29:],
    ):
        with pytest.raises(ValueError):
            omniglot.grey_from_png(broken)


def test_blank_paper_is_dark_and_solid_ink_is_bright():
    ink = np.zeros((3, 105, 105), bool)
    ink[1], ink[2, :4, :4] = True, True
    small = omniglot.shrink(ink)
    assert not small[0].any()
    assert (small[1] == 15).all()
    assert small[2, 0, 0] == 15
    assert small[2].sum() == 15


@needs_omniglot
def test_the_authors_drawings_shrink_to_the_pixels_on_file_bit_for_bit():
    """The pixels on file were made elsewhere, here they are made from PNGs like the authors'."""
    with np.load(REAL / "omniglot105.npz") as full, np.load(REAL / "omniglot28.npz") as small:
        bits, pixels = full["bits"], omniglot.unpack4(small["images4"])
    for row, drawer in [(0, 0), (200, 3), (708, 7), (964, 11), (1300, 15), (1622, 19)]:
        ink = np.unpackbits(bits[row, drawer])[: 105 * 105].reshape(105, 105)
        grey = omniglot.grey_from_png(png_of(255 * (1 - ink), 1, (0, 1, 2, 3, 4)))
        assert np.array_equal(omniglot.shrink(grey < 128) * 17, pixels[row, drawer])


@needs_omniglot
def test_omniglot_on_file_has_the_authors_numbers():
    pool = load_omniglot(download=False)
    assert pool.examples.shape == (1623, 20, 1, 28, 28)
    assert pool.examples.dtype == torch.uint8
    assert pool.counts.tolist() == [20] * 1623
    assert len(set(pool.names)) == 1623
    # paths in the authors' zips, as others quote them: the file name is the character's number
    quoted = {
        709: "Alphabet_of_the_Magi/character01",
        965: "Angelic/character01",
        1276: "Malayalam/character05",
    }
    assert {number: pool.names[number - 1] for number in quoted} == quoted
    assert pool.examples.float().mean() < 128  # ink is bright, and there is more paper than ink


# Fetching


def test_omniglot_is_fetched_once_and_kept(home, alone, ink, monkeypatch, capsys):
    home(zips_of(ink))
    pool = load_omniglot()
    assert pool.names == ("Greek/character01", "Greek/character02", "ULOG/character01")
    assert np.array_equal(pool.examples[:, :, 0], omniglot.shrink(ink) * 17)
    assert capsys.readouterr().err.count("\n") == 2
    monkeypatch.setattr(omniglot, "HOME", "http://127.0.0.1:9")
    assert torch.equal(load_omniglot(download=False).examples, pool.examples)
    assert [path.name for path in (alone / "cache").rglob("*") if path.is_file()] == [
        "omniglot28.npz"
    ]
    assert not list(alone.rglob("outside.png"))


def test_a_zip_that_was_changed_is_not_unpacked(home, alone, ink, monkeypatch):
    home(zips_of(ink))
    monkeypatch.setitem(omniglot.ZIPS_MD5, "images_evaluation.zip", "0" * 32)
    monkeypatch.setattr(omniglot, "arrays_from_zips", lambda zips: pytest.fail("it was unpacked"))
    with pytest.raises(
        DataError, match=r"images_evaluation\.zip has the MD5 \w+ where 0+ is published"
    ):
        load_omniglot()
    assert find_file("omniglot", "omniglot28.npz") is None


def test_a_zip_that_lacks_a_drawing_is_refused(home, alone, ink):
    home(zips_of(ink, lost=[(1, 4), (2, 19)]))
    with pytest.raises(DataError, match=r"lack 2 drawings, the first of them 0002_05\.png"):
        load_omniglot()
    assert not [path for path in (alone / "cache").rglob("*") if path.is_file()]


def test_a_set_that_is_not_at_home_is_told_with_the_folders(home, alone, monkeypatch):
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(alone / "named"))
    with pytest.raises(DataError, match="HTTP Error 404") as caught:
        load_omniglot()
    assert all(str(folder) in str(caught.value) for folder in searched_folders("omniglot"))


def test_without_a_network_the_message_says_what_helps_and_it_does(alone, ink, monkeypatch):
    with pytest.raises(
        DataError, match=r"fetching it failed \(http://127.0.0.1:9/images_background.zip: "
    ):
        load_omniglot()
    with pytest.raises(
        DataError,
        match=r"`download=False`.*Set `WEIGHTLOOM_DATA` to a folder that holds `omniglot/",
    ):
        load_omniglot(download=False)
    (alone / "elsewhere" / "omniglot").mkdir(parents=True)
    arrays = omniglot.arrays_from_zips(list(zips_of(ink).values()))
    np.savez_compressed(alone / "elsewhere" / "omniglot" / "omniglot28.npz", **arrays)
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(alone / "elsewhere"))
    assert len(load_omniglot(download=False).names) == 3


def test_a_cache_that_cannot_be_written_to_is_named(alone, monkeypatch):
    (alone / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(alone / "file"))
    with pytest.raises(
        DataError, match=r"fetching it failed \(.*file/weightloom.*Set `WEIGHTLOOM_DATA`"
    ):
        load_omniglot()


# Damaged files


def spoilt_files(arrays):
    """What a disk, a download or another program may leave under the name, and a word of the message."""

    def saved(**changed):
        file = io.BytesIO()
        np.savez_compressed(
            file, **{name: value for name, value in {**arrays, **changed}.items() if len(value)}
        )
        return file.getvalue()

    whole = saved()
    middle = len(whole) // 2
    one_array = io.BytesIO()
    np.save(one_array, arrays["images4"])
    yield "empty", b"", "."
    yield "cut short", whole[:-100], "."
    yield "one byte changed", whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], "."
    yield "a page of text", b"<html>404</html>", "."
    yield "one array", one_array.getvalue(), "."
    yield "a pickle", saved(alphabets=np.array([{}, []], dtype=object)), "pickle"
    yield "no pixels", saved(images4=()), "images4"
    yield "wide pixels", saved(images4=arrays["images4"].astype(np.uint16)), "images4"
    yield "pixels of another size", saved(images4=arrays["images4"][..., 1:]), r"\(3, 20, 28, 13\)"
    yield "a class missing", saved(character=arrays["character"][1:]), "character"
    yield (
        "an alphabet missing",
        saved(alphabets=arrays["alphabets"][1:]),
        "points beyond 1 alphabets",
    )


def test_a_damaged_file_is_named_with_what_to_do(alone, ink):
    path = searched_folders("omniglot")[0] / "omniglot28.npz"
    path.parent.mkdir(parents=True)
    for what, content, word in spoilt_files(omniglot.arrays_from_zips(list(zips_of(ink).values()))):
        path.write_bytes(content)
        with pytest.raises(DataError, match=word) as caught:
            load_omniglot()
        assert str(path) in str(caught.value), what
        assert "Delete it and run again" in str(caught.value), what


def test_a_damaged_file_once_deleted_is_made_anew(home, alone, ink):
    path = searched_folders("omniglot")[0] / "omniglot28.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    with pytest.raises(DataError):
        load_omniglot()
    path.unlink()
    home(zips_of(ink))
    assert len(load_omniglot().names) == 3
