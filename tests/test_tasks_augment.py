"""Changes of images, on images whose change can be read off."""

import math

import pytest
import torch

from weightloom.errors import ConfigError
from weightloom.tasks import Colour, Crop, CutOut, Flip, InTurn, Zoom

MANY = 4000
OFF = 5 * math.sqrt(MANY / 4)
"""Half of many draws is missed by more in fewer than one of a million runs."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_half_of_the_images_are_mirrored_left_to_right():
    images = torch.arange(12.0).reshape(1, 1, 3, 4).expand(MANY, -1, -1, -1)
    flipped = Flip()(images, seeded())
    mirrored = (flipped == images.flip(-1)).all(dim=(1, 2, 3))
    assert ((flipped == images).all(dim=(1, 2, 3)) ^ mirrored).all()
    assert abs(mirrored.sum() - MANY / 2) < OFF


def test_what_is_mirrored_twice_is_as_it_was():
    images = torch.rand(50, 3, 5, 7)
    assert torch.equal(Flip()(Flip()(images, seeded()), seeded()), images)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_shift_goes_to_every_place_within_the_pad_equally_often_and_no_further(mirrored):
    images = torch.zeros(MANY, 2, 11, 13)
    images[:, :, 5, 6] = torch.tensor([1.0, 2.0])
    moved = Crop(2, mirrored=mirrored)(images, seeded())
    assert moved.shape == images.shape and torch.equal(moved.sum((2, 3)), images.sum((2, 3)))
    assert torch.equal(moved[:, 1], 2 * moved[:, 0])
    places = moved[:, 0].sum(0)
    assert places[3:8, 4:9].sum() == MANY
    assert (places[3:8, 4:9] - MANY / 25).abs().max() < 5 * math.sqrt(MANY / 25)


def test_what_was_outside_is_mirrored_or_zero():
    """Two pixels to the left of 1 2 3 4 5 lie 3 2, mirrored at the edge, or 0 0."""
    images = torch.arange(1.0, 6).repeat(200, 1, 5, 1)
    for mirrored, row in ((True, [3, 2, 1, 2, 3]), (False, [0, 0, 1, 2, 3])):
        moved = Crop(2, mirrored=mirrored)(images, seeded())
        rows = {tuple(line) for image in moved.tolist() for line in image[0]}
        assert tuple(map(float, row)) in rows
    assert torch.equal(Crop(0)(images, seeded()), images)


@pytest.mark.parametrize("pad", [-1, 5])
def test_a_shift_that_cannot_be_is_refused(pad):
    with pytest.raises(
        ConfigError, match=rf"`pad={pad}` with images of 5x9.*Pass `pad` from 0 to 4"
    ):
        Crop(pad)(torch.zeros(2, 1, 5, 9), seeded())
    assert Crop(4)(torch.zeros(2, 1, 5, 9), seeded()).shape == (2, 1, 5, 9)


def test_no_strength_leaves_colours_as_they_are_and_any_keeps_them_between_0_and_1():
    images = torch.rand(30, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(Colour(0.0)(images, seeded()), images)
    changed = Colour(1.0)(images, seeded())
    assert changed.dtype == torch.float64 and changed.min() >= 0 and changed.max() <= 1
    assert not (changed == images).all(dim=(1, 2, 3)).any()


def test_brightness_is_a_factor_within_the_strength():
    """A grey image of one value has no contrast and no saturation: only its brightness can change."""
    factors = Colour(0.4)(torch.full((MANY, 3, 2, 2), 0.5), seeded())[:, 0, 0, 0] / 0.5
    assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4
    assert (factors.mean() - 1).abs() < 5 * 0.4 / math.sqrt(3 * MANY)


def test_grey_stays_grey_and_images_do_not_change_each_other():
    images = torch.rand(9, 1, 4, 4).expand(-1, 3, -1, -1)
    changed = Colour(0.5)(images, seeded())
    torch.testing.assert_close(changed[:, 0], changed[:, 2])
    other = torch.cat([images[:8], torch.zeros(1, 3, 4, 4)])
    for change in (Colour(0.5), Crop(1), Flip()):
        assert torch.equal(change(other, seeded())[:8], change(images, seeded())[:8])


def test_changes_in_turn_draw_on_one_generator():
    images, generator = torch.rand(9, 3, 8, 8), seeded()
    expected = Colour()(Crop(2)(Flip()(images, generator), generator), generator)
    assert torch.equal(InTurn((Flip(), Crop(2), Colour()))(images, seeded()), expected)


def test_a_zoomed_image_shows_a_square_of_the_image_and_nothing_else():
    """On a plane of x + 10 y the square that is shown can be read off: its side and its place."""
    size = 16
    middle = (torch.arange(size) + 0.5) * 2 / size - 1
    plane = (middle + 10 * middle[:, None]).expand(500, 1, -1, -1).double()
    zoomed = Zoom(0.6)(plane, seeded())[:, 0, 3:-3, 3:-3]
    across, down = zoomed[:, 0, 1] - zoomed[:, 0, 0], zoomed[:, 1, 0] - zoomed[:, 0, 0]
    side = across * size / 2
    torch.testing.assert_close(down, 10 * across, rtol=1e-6, atol=1e-6)
    assert 0.6 <= side.min() < 0.63 and 0.97 < side.max() <= 1.0
    assert Zoom(1.0)(plane, seeded()).sub(plane).abs().max() < 1e-6


def test_a_square_of_each_image_is_grey_and_the_rest_as_it_was():
    images = torch.ones(MANY, 2, 12, 12)
    cut = CutOut(4)(images, seeded())
    grey = cut == 0.5
    assert torch.equal(cut[~grey], images[~grey]) and torch.equal(grey[:, 0], grey[:, 1])
    count = grey[:, 0].sum((1, 2))
    assert count.max() == 16 and count.min() >= 4  # a corner of it, at the least
    inside = (count == 16).float().mean().item()
    assert abs(inside - (9 / 12) ** 2) < 5 * math.sqrt(0.25 / MANY)
