"""Image tasks, from a pool in which every image has its own number for a pixel."""

import math

import pytest
import torch

from references import tensors_of
from weightloom.errors import ConfigError, ShapeError
from weightloom.tasks import ClassTasks, Jitter

COUNTS = torch.tensor([4, 7, 5, 4, 6])
BEHIND = -1.0


def pool():
    """Image j of class i is 100 i + j everywhere; what lies behind a class's last is marked."""
    number = 100 * torch.arange(5)[:, None] + torch.arange(7)
    return torch.where(torch.arange(7) < COUNTS[:, None], number, BEHIND)[
        ..., None, None, None
    ].expand(-1, -1, 1, 4, 4)


def draw(tasks=200, seed=0, images=None, counts=COUNTS, **options):
    source = ClassTasks(
        pool() if images is None else images,
        counts,
        **{"ways": 3, "shots": 1, "queries": 2} | options,
    )
    return source.sample(tasks, torch.Generator().manual_seed(seed))


def numbers(x):
    assert (x == x[..., :1, :1]).all()
    return x[:, :, 0, 0, 0].long()


def test_labels_and_images_belong_together():
    tasks = draw(ways=4, shots=2, queries=2)
    assert tasks.support_y.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 200 and tasks.query_y.shape == (
        200,
        8,
    )
    for x, y in [(tasks.support_x, tasks.support_y), (tasks.query_x, tasks.query_y)]:
        assert torch.equal(numbers(x) // 100, tasks.classes.gather(1, y))
    assert all(len(set(drawn)) == 4 for drawn in tasks.classes.tolist())
    assert tasks.support_mask.shape == (200, 8) and tasks.support_mask.all()


@pytest.mark.parametrize(("shots", "queries"), [(1, 2), (2, 2), (3, 1)])
def test_support_and_query_share_no_image_and_none_comes_twice_or_from_behind_the_last(
    shots, queries
):
    tasks = draw(shots=shots, queries=queries)
    drawn = torch.cat([numbers(tasks.support_x), numbers(tasks.query_x)], 1)
    assert all(len(set(row)) == 3 * (shots + queries) for row in drawn.tolist())
    assert (drawn >= 0).all() and (drawn % 100 < COUNTS[drawn // 100]).all()


def test_every_class_gets_every_label_equally_often():
    """A count with mean m is off by more than 5 * sqrt(m) in fewer than one of a million draws."""
    tasks = draw(5000)
    expected = 5000 / 5
    for way in range(3):
        counts = torch.bincount(tasks.classes[:, way], minlength=5)
        assert (counts - expected).abs().max() < 5 * math.sqrt(expected)
    pairs = torch.bincount(5 * tasks.classes[:, 0] + tasks.classes[:, 1], minlength=25).reshape(
        5, 5
    )
    expected = 5000 / 20
    assert not pairs.diagonal().any()
    assert (pairs[~torch.eye(5, dtype=torch.bool)] - expected).abs().max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize("field", ["support_x", "query_x"])
def test_every_image_of_a_class_is_drawn_equally_often_however_many_there_are(field):
    tasks = draw(5000)
    drawn = numbers(getattr(tasks, field)).flatten()
    for number, count in enumerate(COUNTS.tolist()):
        of_class = torch.bincount(drawn[drawn // 100 == number] % 100, minlength=count)
        expected = of_class.sum().item() / count
        assert len(of_class) == count and (of_class - expected).abs().max() < 5 * math.sqrt(
            expected
        )


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others():
    state = torch.get_rng_state()
    first, again, other = (draw(5, seed, augment=Jitter(0.5)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(first), tensors_of(again), strict=True))
    assert not torch.equal(first.support_x, other.support_x) and not torch.equal(
        first.classes, other.classes
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_a_name_is_one_more_support_example_behind_the_shots_of_its_class_and_never_masked():
    named = -10.0 * torch.arange(1, 6)[:, None, None, None].expand(-1, 1, 4, 4)
    options = {"shots": 2, "queries": 2, "fewest_shots": 1}
    plain, tasks = draw(20, **options), draw(20, **options, named=named)
    assert torch.equal(tasks.query_x, plain.query_x) and torch.equal(tasks.query_y, plain.query_y)
    assert tasks.support_y.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 20
    mask = tasks.support_mask.view(20, 3, 3)
    assert mask[..., 2].all() and torch.equal(mask[..., :2].flatten(1), plain.support_mask)
    support = numbers(tasks.support_x).view(20, 3, 3)
    assert torch.equal(support[..., :2].flatten(1), numbers(plain.support_x))
    assert torch.equal(support[..., 2], -10 * (tasks.classes + 1))
    half = ClassTasks(pool(), COUNTS, 3, 2, 2, fewest_shots=1, named=named).sample(
        20, torch.Generator().manual_seed(0), share=slice(1, None, 2)
    )
    expected = tensors_of(tasks.take(slice(1, None, 2)))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(half), expected, strict=True))


def test_names_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match=r"`named` has shape \(4, 1, 4, 4\).*5 classes"):
        ClassTasks(pool(), COUNTS, 3, 1, 2, named=torch.zeros(4, 1, 4, 4))


def test_bytes_become_numbers_from_0_to_1_and_floats_stay():
    images = torch.arange(256, dtype=torch.uint8).reshape(2, 2, 1, 8, 8)
    counts = torch.tensor([2, 2])
    as_bytes = draw(5, images=images, counts=counts, ways=2, shots=1, queries=1)
    assert as_bytes.support_x.dtype == torch.float32
    assert {*as_bytes.support_x.unique().tolist(), *as_bytes.query_x.unique().tolist()} >= {
        0.0,
        1.0,
    }
    as_floats = draw(5, images=images.double() / 255, counts=counts, ways=2, shots=1, queries=1)
    assert as_floats.query_x.dtype == torch.float64
    torch.testing.assert_close(as_bytes.query_x.double(), as_floats.query_x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message", "advised"),
    [
        (
            {"ways": 6},
            r"`ways=6` but there are 5 classes to draw from.*Pass `ways` from 2 to 5",
            {"ways": 5},
        ),
        (
            {"ways": 1},
            r"`ways=1`\. A classification needs two classes\. Pass `ways` from 2 to 5",
            {"ways": 2},
        ),
        ({"shots": 0}, r"`shots=0` and `queries=2`.*Pass numbers from 1", {"shots": 1}),
        ({"queries": 0}, r"`shots=1` and `queries=0`.*Pass numbers from 1", {"queries": 1}),
        (
            {"shots": 3},
            r"`shots=3` and `queries=2` take 5 examples of a class, but the smallest has 4\..*sum is at most 4",
            {"shots": 2},
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_the_advice_works(options, message, advised):
    with pytest.raises(ConfigError, match=message):
        draw(**options)
    assert len(draw(3, **advised).classes) == 3


def test_with_the_same_drawer_all_classes_of_a_task_take_the_same_places_and_every_place_comes_equally_often():
    """Only the 4 places that every class has can be taken; support and query take different ones."""
    tasks = draw(5000, same_drawer=True)
    by_class = torch.cat(
        [numbers(tasks.support_x)[..., None], numbers(tasks.query_x).reshape(5000, 3, 2)], 2
    )
    assert torch.equal(by_class // 100, tasks.classes[..., None].expand(-1, -1, 3))
    places = by_class % 100
    assert (places == places[:, :1]).all() and places.max() == 3
    assert all(len(set(row)) == 3 for row in places[:, 0].tolist())
    for column in places[:, 0].unbind(1):
        expected = 5000 / 4
        assert (torch.bincount(column) - expected).abs().max() < 5 * math.sqrt(expected)


def test_no_jitter_leaves_images_as_they_are_and_jitter_moves_each_differently():
    images, counts = torch.rand(3, 4, 1, 8, 8), torch.full((3,), 4)
    plain, moved = (
        draw(5, images=images, counts=counts, augment=change) for change in (None, Jitter(1.0))
    )
    assert torch.equal(plain.classes, moved.classes)
    for task in range(5):
        for image, label in zip(plain.support_x[task], plain.support_y[task], strict=True):
            assert any(torch.equal(image, one) for one in images[plain.classes[task, label]])
    differences = (plain.support_x - moved.support_x).abs().amax((2, 3, 4))
    assert differences.min() > 1e-3 and moved.support_x.shape == plain.support_x.shape


def test_jitter_of_strength_zero_changes_nothing():
    for images in (torch.rand(6, 2, 9, 7), torch.rand(6, 2, 9, 7, dtype=torch.float64)):
        torch.testing.assert_close(
            Jitter(0.0)(images, torch.Generator()), images, rtol=1e-5, atol=1e-5
        )


def test_jitter_moves_a_bright_spot_no_further_than_it_says():
    """A quarter of half the image is 4 of 32 pixels; 15 degrees of turn, 15 % of scale and shear move it by less."""
    images = torch.zeros(500, 1, 33, 33)
    images[:, :, 14:19, 14:19] = 1
    moved = Jitter(1.0)(images, torch.Generator().manual_seed(0))
    mass, place = moved.sum((1, 2, 3)), torch.arange(33.0) - 16
    right = (moved.sum((1, 2)) * place).sum(1) / mass
    down = (moved.sum((1, 3)) * place).sum(1) / mass
    assert 4 < right.abs().max() < 7 and 4 < down.abs().max() < 7
    assert right.mean().abs() < 0.6 and down.mean().abs() < 0.6
    assert mass.min() > 25 / 1.4 and mass.max() < 25 * 1.6
    half = Jitter(0.5)(images, torch.Generator().manual_seed(0))
    assert ((half.sum((1, 2)) * place).sum(1) / half.sum((1, 2, 3))).abs().max() < 3


def test_two_copies_of_one_image_are_jittered_differently():
    moved = Jitter(0.3)(
        torch.rand(1, 1, 8, 8).expand(4, -1, -1, -1), torch.Generator().manual_seed(0)
    )
    assert all(not torch.allclose(moved[0], other) for other in moved[1:])
