"""CIFAR-FS: made up in small and read back, and the real file where it is at hand."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from weightloom.errors import DataError, MissingExtraError
from weightloom.tasks import load_cifar_fs

Image = pytest.importorskip("PIL.Image")
REAL = (
    Path(os.environ.get("WEIGHTLOOM_DATA") or "/nowhere").expanduser()
    / "cifar_fs"
    / "cifar_fs_100.npz"
)
TEST = """baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table
telephone wardrobe whale woman worm"""
SPLIT = ["train"] * 64 + ["val"] * 16 + ["test"] * 20


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(tmp_path))
    (tmp_path / "cifar_fs").mkdir()
    return tmp_path / "cifar_fs" / "cifar_fs_100.npz"


def written(file, images, **changed):
    """Write images (100, 6, 32, 32, 3) as sheets of 2 by 4, of which the last two are not used."""
    parts = []
    for six in images:
        eight = np.concatenate([six, np.zeros_like(six[:2])])
        sheet = Image.fromarray(
            np.concatenate([np.concatenate(list(row), axis=1) for row in (eight[:4], eight[4:])])
        )
        held = io.BytesIO()
        sheet.save(held, "WEBP", lossless=True, method=0, quality=0)
        parts.append(held.getvalue())
    arrays = {
        "webp": np.frombuffer(b"".join(parts), np.uint8),
        "offsets": np.cumsum([0, *map(len, parts)]).astype(np.int32),
        "count": np.full(100, 6, np.int32),
        "size": np.int32(32),
        "names": np.array([f"class {number}" for number in range(100)]),
        "split": np.array(SPLIT),
    }
    np.savez(file, **{**arrays, **changed})


@pytest.fixture(scope="module")
def images():
    blocks = np.random.default_rng(0).integers(0, 256, (100, 6, 4, 4, 3), dtype=np.uint8)
    return blocks.repeat(8, 2).repeat(8, 3)


def test_every_image_comes_back_as_it_was_cut_from_its_sheet(file, images):
    written(file, images)
    pool, split = load_cifar_fs()
    assert pool.examples.dtype == torch.uint8 and pool.examples.shape == (100, 6, 3, 32, 32)
    assert np.array_equal(pool.examples.permute(0, 1, 3, 4, 2), images)
    assert pool.counts.tolist() == [6] * 100 and pool.names[99] == "class 99"
    assert split == {
        "train": [*range(64)],
        "validation": [*range(64, 80)],
        "test": [*range(80, 100)],
    }


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"split": np.array(["train"] * 100)}, r"split \[100, 0, 0\]"),
        ({"size": np.int32(16)}, "16 pixels"),
        ({"webp": np.zeros(99, np.uint8)}, "."),
        ({"names": np.array([{}], dtype=object)}, "allow_pickle"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(file, images, changed, word):
    written(file, images, **changed)
    with pytest.raises(DataError, match=word) as caught:
        load_cifar_fs()
    assert str(file) in str(caught.value) and "Put a whole copy in its place" in str(caught.value)


def test_without_the_file_the_message_says_why_it_is_not_fetched_and_where_it_goes(file):
    with pytest.raises(
        DataError,
        match=r"authors state no licence\. Set `WEIGHTLOOM_DATA` to a folder that holds `cif",
    ):
        load_cifar_fs()


def test_without_pillow_the_message_says_what_to_install(file, images, monkeypatch):
    file.touch()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'weightloom\[images\]'"):
        load_cifar_fs()


@pytest.mark.skipif(
    not REAL.is_file(), reason="needs WEIGHTLOOM_DATA with cifar_fs/cifar_fs_100.npz"
)
def test_the_set_on_file_has_the_published_split():
    """Test classes as Bertinetto et al. list them; the mean colour of CIFAR-100 is (0.507, 0.487, 0.441)."""
    pool, split = load_cifar_fs()
    assert pool.examples.shape == (100, 100, 3, 32, 32)
    assert [len(part) for part in split.values()] == [64, 16, 20]
    assert sorted(number for part in split.values() for number in part) == list(range(100))
    test = {pool.names[number] for number in split["test"]}
    assert test == set(TEST.split())
    mean = pool.examples.float().mean((0, 1, 3, 4)) / 255
    torch.testing.assert_close(mean, torch.tensor([0.507, 0.487, 0.441]), atol=0.01, rtol=0)
