"""Images as functions: every point is a pixel of the image that was drawn, at its own place."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from references import tensors_of
from weightloom.errors import ConfigError, DataError
from weightloom.tasks.functions import FunctionTasks, load_mnist, pixel_positions

REAL = (
    Path(os.environ.get("WEIGHTLOOM_DATA") or "/nowhere").expanduser()
    / "mnist"
    / "mnist_20k_10k.npz"
)
needs_mnist = pytest.mark.skipif(not REAL.is_file(), reason="needs WEIGHTLOOM_DATA with mnist")


def draw(tasks=12, seed=0, images=None, **options):
    """Five images of 6x4 whose pixels all differ."""
    images = torch.arange(120, dtype=torch.uint8).view(5, 6, 4) if images is None else images
    return FunctionTasks(images, **options).sample(tasks, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("queries", [None, 7])
def test_every_point_is_the_pixel_of_its_image_at_its_position(queries, together):
    tasks = draw(shots=9, queries=queries, fewest_shots=2, together=together)
    for x, y, image in [
        *zip(tasks.support_x, tasks.support_y, tasks.hidden, strict=True),
        *zip(tasks.query_x, tasks.query_y, tasks.hidden, strict=True),
    ]:
        for (right, down), value in zip(x.tolist(), y[:, 0].tolist(), strict=True):
            column, row = ((right + 1) * 4 - 1) / 2, ((down + 1) * 6 - 1) / 2
            assert round(value * 255) == 24 * int(image) + 4 * round(row) + round(column)
        assert len(x.unique(dim=0)) == len(x)  # no pixel twice


def test_all_pixels_are_asked_for_row_by_row_unless_a_number_is_given():
    tasks = draw(shots=3)
    images = torch.arange(120).view(5, 24)
    assert torch.equal((tasks.query_y[..., 0] * 255).round().long(), images[tasks.hidden[:, 0]])
    assert torch.equal(tasks.query_x[0], pixel_positions(6, 4))


def test_no_image_comes_twice_while_there_are_enough():
    assert draw(5, shots=3).hidden[:, 0].sort().values.tolist() == [0, 1, 2, 3, 4]
    assert draw(400, shots=3).hidden.unique().tolist() == [0, 1, 2, 3, 4]


def test_observed_pixels_are_spread_evenly_and_their_number_too():
    tasks = draw(3000, shots=6, fewest_shots=2)
    counts = torch.bincount(tasks.support_mask.sum(1), minlength=7)[2:] / 3000
    assert counts.tolist() == pytest.approx([0.2] * 5, abs=0.03)
    assert (tasks.support_mask.int().diff(dim=1) <= 0).all()
    assert tasks.support_x.flatten(0, 1).mean(0).tolist() == pytest.approx([0, 0], abs=0.02)


def test_a_batch_drawn_together_has_one_number_of_pixels_and_no_mask():
    source = FunctionTasks(torch.rand(5, 6, 4), shots=6, fewest_shots=2, together=True)
    generator = torch.Generator().manual_seed(0)
    masks = [source.sample(3, generator).support_mask for _ in range(60)]
    assert all(mask.all() for mask in masks) and {mask.shape[1] for mask in masks} == {
        2,
        3,
        4,
        5,
        6,
    }


def test_a_batch_drawn_together_is_judged_on_the_same_pixels():
    tasks, apart = (draw(shots=3, queries=5, together=together) for together in (True, False))
    assert all(torch.equal(x, tasks.query_x[0]) for x in tasks.query_x)
    assert not all(torch.equal(x, apart.query_x[0]) for x in apart.query_x)


def test_float_images_are_taken_as_they_are_and_the_seed_says_what_is_drawn():
    images = torch.rand(3, 5, 5)
    first, again, other = (draw(3, seed, images, shots=4, queries=6) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(first), tensors_of(again), strict=True))
    assert not torch.equal(first.support_x, other.support_x)
    assert torch.isin(first.query_y, images).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shots": 25}, "`shots=25` but an image has 6x4 pixels.*from 1 to 24"),
        ({"shots": 0}, "`shots=0`"),
        ({"shots": 2, "queries": 25}, "`queries=25`"),
        ({"shots": 2, "fewest_shots": 3}, "Pass `fewest_shots` from 1 to 2"),
    ],
)
def test_more_pixels_than_there_are_or_none_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        draw(**options)


@needs_mnist
def test_mnist_on_file_has_the_published_mean_and_deviation():
    """0.1307 and 0.3081, as quoted everywhere for the 60,000; here of the first 20,000."""
    train, test = load_mnist()
    assert (train.shape, test.shape, train.dtype) == (
        (20_000, 28, 28),
        (10_000, 28, 28),
        torch.uint8,
    )
    values = train.float() / 255
    assert (float(values.mean()), float(values.std())) == pytest.approx((0.1307, 0.3081), abs=2e-3)


def test_a_file_that_is_missing_or_damaged_is_told_with_what_helps(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(tmp_path))
    with pytest.raises(DataError, match="Set `WEIGHTLOOM_DATA` to a folder that holds `mnist/"):
        load_mnist()
    path = tmp_path / "mnist" / "mnist_20k_10k.npz"
    path.parent.mkdir()
    np.savez(
        path,
        train_images=np.zeros((2, 28, 28), np.uint8),
        test_images=np.zeros((2, 28, 28), np.uint8),
    )
    few = path.read_bytes()
    for content in (b"", few, few[:-50]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as MNIST"):
            load_mnist()
