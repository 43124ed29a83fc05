"""Tasks from a pool of points: what is drawn is in the pool, and support and query share nothing."""

import pytest
import torch

from references import tensors_of
from weightloom.errors import ConfigError
from weightloom.tasks.points import PointPool, PointTasks, Stretch

COUNTS = torch.tensor([4, 9, 6, 5])


def pool():
    """Point p of task t is x = 100 t + p + 1, y = -x."""
    x = torch.cat(
        [100.0 * task + torch.arange(count) + 1 for task, count in enumerate(COUNTS.tolist())]
    )[:, None]
    return PointPool(x, -x, COUNTS, tuple("abcd"), torch.tensor([7, 2, 2, 2]))


def draw(tasks=300, **options):
    return PointTasks(pool(), **options).sample(tasks, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "options", [{"shots": 3}, {"shots": 8, "fewest_shots": 1}, {"shots": 12, "fewest_shots": 2}]
)
def test_support_and_query_are_different_points_of_the_task_that_was_drawn(options):
    tasks = draw(**options)
    for x, y, mask, query_x, query_y, _, (task, group) in zip(
        *tasks.support, *tasks.query, tasks.hidden, strict=True
    ):
        support, query = x[mask, 0].tolist(), query_x[:, 0].tolist()
        points = {100.0 * int(task) + p + 1 for p in range(int(COUNTS[task]))}
        assert len(set(support)) == len(support) >= options.get("fewest_shots", 3)
        assert set(support) | set(query) <= points and not set(support) & set(query)
        uses = [query.count(point) for point in points - set(support)]
        assert max(uses) - min(uses) <= 1  # a point that comes again comes as often as the others
        assert torch.equal(y, -x) and torch.equal(query_y, -query_x) and not x[~mask].any()
        assert group == pool().groups[task]


def test_each_group_is_drawn_as_often_and_each_task_in_it():
    tasks = draw(6000, shots=2)
    shares = torch.bincount(tasks.hidden[:, 0]) / 6000
    assert shares.tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.03)


def test_tasks_that_are_too_short_are_never_drawn():
    assert PointTasks(pool(), shots=5).drawable.tolist() == [1, 2]
    assert set(draw(shots=5).hidden[:, 0].tolist()) == {1, 2}
    assert set(draw(shots=5, fewest_shots=4).hidden[:, 0].tolist()) == {1, 2, 3}


def test_centred_targets_count_from_the_mean_of_the_support_alone():
    plain, centred = draw(shots=4, fewest_shots=1), draw(shots=4, fewest_shots=1, centred=True)
    for task in range(50):
        mask = plain.support_mask[task]
        level = plain.support_y[task, mask].mean()
        torch.testing.assert_close(
            centred.support_y[task, mask], plain.support_y[task, mask] - level
        )
        torch.testing.assert_close(centred.query_y[task], plain.query_y[task] - level)
        assert not centred.support_y[task, ~mask].any()


def test_shots_range_from_the_fewest_to_what_the_task_allows():
    tasks = draw(4000, shots=8, fewest_shots=2)
    for task, count in enumerate(COUNTS.tolist()):
        seen = tasks.support_mask[tasks.hidden[:, 0] == task].sum(1).unique().tolist()
        assert seen == list(range(2, min(8, count - 1) + 1))


def test_a_part_of_a_pool_is_shuffled_as_the_whole():
    """As many random numbers are drawn for a task as the longest of the whole pool has points."""
    part = pool().take(torch.tensor([1, 2, 3]))
    assert part.x[:, 0].tolist() == pool().x[4:, 0].tolist() and part.starts.tolist() == [0, 9, 15]
    shorter = part.take(torch.tensor([2, 1]))
    assert shorter.longest == part.longest == pool().longest == 9 and shorter.counts.tolist() == [
        5,
        6,
    ]
    drawn = PointTasks(shorter, shots=3).sample(50, torch.Generator().manual_seed(0))
    padded = shorter._replace(taken_of=0)
    assert not torch.equal(
        drawn.query_x, PointTasks(padded, 3).sample(50, torch.Generator().manual_seed(0)).query_x
    )


def test_the_same_seed_gives_the_same_tasks():
    first, again = tensors_of(draw(shots=3)), tensors_of(draw(shots=3))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shots": 9}, "longest task of the pool has 9 points.*Pass `shots` up to 8"),
        ({"shots": 0}, "`shots=0`"),
        ({"shots": 2, "queries": 0}, "`queries=0`"),
        ({"shots": 2, "fewest_shots": 3}, "Pass `fewest_shots` from 1 to 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        draw(**options)


def test_a_stretched_task_is_the_same_curve_on_other_axes():
    """After x -> a x + b and y -> c y, each the same for all points of a task; masked points stay zero."""
    plain, changed = draw(shots=4, fewest_shots=2), draw(shots=4, fewest_shots=2, augment=Stretch())
    there = plain.support_mask[..., None]
    assert torch.equal(plain.support_mask, changed.support_mask)
    assert (changed.support_x[~there] == 0).all() and (changed.support_y[~there] == 0).all()
    unit_y = changed.query_y[:, :1] / plain.query_y[:, :1]
    torch.testing.assert_close(changed.query_y, unit_y * plain.query_y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(changed.support_y, unit_y * plain.support_y, rtol=1e-4, atol=1e-4)
    rise = (changed.support_x[:, 1] - changed.support_x[:, 0]) / (
        plain.support_x[:, 1] - plain.support_x[:, 0]
    )
    expected = changed.support_x[:, :1] + rise[:, None] * (plain.query_x - plain.support_x[:, :1])
    torch.testing.assert_close(changed.query_x, expected, rtol=1e-3, atol=1e-2)
    assert 0.3 < (rise < 0).float().mean() < 0.7 and 0.3 < (unit_y < 0).float().mean() < 0.7
    assert abs(unit_y.abs().log().std() - 0.5) < 0.1 and abs(rise.abs().log().std() - 0.25) < 0.05
