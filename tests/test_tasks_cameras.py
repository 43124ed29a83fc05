"""Cameras with crossed wires."""

import pytest
import torch

from references import tensors_of
from weightloom.errors import ConfigError
from weightloom.tasks import CameraTasks, Jitter, load_digit_images, load_digits, sample_cameras

POOL = torch.rand(120, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 10


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_camera_permutes_negates_half_and_has_gains_and_offsets_in_range():
    cameras = sample_cameras(200, 16, generator())
    there = cameras.weight != 0
    assert (there.sum(1) == 1).all() and (there.sum(2) == 1).all()
    assert ((cameras.weight < 0).sum((1, 2)) == 8).all()
    gain = cameras.weight.abs().amax(2).log()
    assert gain.abs().max() <= 1.1 and gain.std() == pytest.approx(1.1 / 3**0.5, rel=0.05)
    assert cameras.offset.abs().max() <= 1 and cameras.offset.std() == pytest.approx(
        1 / 3**0.5, rel=0.05
    )


def test_what_was_sent_can_be_undone_by_who_knows_the_camera():
    cameras, pictures = sample_cameras(5, 16, generator()), torch.rand(5, 7, 16)
    sent = cameras.send(pictures)
    undone = torch.linalg.solve(
        cameras.weight.double(), (sent - cameras.offset[:, None]).double().mT
    ).mT
    torch.testing.assert_close(undone.float(), pictures, rtol=1e-4, atol=1e-5)
    by_hand = cameras.weight[2, 3] @ pictures[2, 6] + cameras.offset[2, 3]
    torch.testing.assert_close(sent[2, 6, 3], by_hand)


def test_crosstalk_blends_three_pixels_into_a_wire():
    cameras = sample_cameras(50, 16, generator(), crosstalk=0.5)
    share = cameras.weight.abs() / cameras.weight.abs().sum(2, keepdim=True)
    assert ((share > 0).sum(2) <= 3).all() and (share.amax(2) >= 0.5 - 1e-6).all()
    assert (torch.linalg.matrix_rank(cameras.weight) > 12).all()


def test_support_shows_the_asked_pictures_and_queries_are_others_of_all_classes():
    tasks = CameraTasks(*POOL, ways=3, shots=2, queries=60).sample(40, generator())
    for labels in tasks.support_y:
        assert (
            torch.bincount(labels, minlength=10).sort(descending=True).values.tolist()
            == [2] * 3 + [0] * 7
        )
    assert len(tasks.query_y.unique()) == 10 and tasks.support_mask.all()
    images = POOL[0].flatten(1)
    numbers = (tasks.hidden[:, :, None] == images).all(3).int().argmax(2)
    torch.testing.assert_close(images[numbers], tasks.hidden)
    torch.testing.assert_close(POOL[1][numbers], tasks.query_y)
    assert all(len(row.unique()) == 60 for row in numbers)


def test_no_support_picture_is_asked_for_again():
    tasks = CameraTasks(*POOL, ways=10, shots=1, queries=110).sample(3, generator())
    assert all(
        torch.bincount(labels).tolist() == [11] * 10 for labels in tasks.query_y
    )  # all but one of each class
    assert (torch.cdist(tasks.support_x, tasks.query_x) > 1e-4).all()


def test_the_same_seed_draws_the_same_and_augmenting_changes_only_pictures():
    source = CameraTasks(*POOL, shots=2)
    one, again = source.sample(4, generator()), source.sample(4, generator())
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(again), strict=True))
    warped = CameraTasks(*POOL, shots=2, augment=Jitter(0.5)).sample(4, generator())
    assert torch.equal(warped.query_y, one.query_y) and not torch.equal(warped.hidden, one.hidden)


def test_labels_can_be_kept_back_and_shots_be_unequal():
    assert (CameraTasks(*POOL, labelled=False).sample(2, generator()).support_y == -1).all()
    tasks = CameraTasks(*POOL, ways=4, shots=3, fewest_shots=1).sample(50, generator())
    kept = tasks.support_mask.unflatten(1, (4, 3)).sum(2)
    assert kept.unique().tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 11}, "Pass `ways` from 1 to 10"),
        ({"shots": 13}, "Pass `shots` from 1 to 12"),
        ({"queries": 111}, "Pass `queries` from 1 to 110"),
        ({"shots": 2, "fewest_shots": 3}, "Pass `fewest_shots` from 1 to 2"),
        ({"crosstalk": 1.0}, "from 0 to below 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        CameraTasks(*POOL, **options)


def test_the_digits_one_by_one_are_those_of_the_pool():
    images, labels = load_digit_images()
    pool = load_digits()
    for digit in range(10):
        assert torch.equal(images[labels == digit], pool.examples[digit, : pool.counts[digit], 0])
