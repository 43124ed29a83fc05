"""Sinusoids: what is drawn, and that it lies on the curve that is said to have made it."""

import math

import pytest
import torch

from references import tensors_of
from weightloom.errors import ConfigError
from weightloom.tasks import SinusoidTasks, Tasks


def draw(tasks=2000, seed=0, **options):
    return SinusoidTasks(**options).sample(tasks, torch.Generator().manual_seed(seed))


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others():
    first, again, other = (draw(5, seed, ragged=0.5) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(first), tensors_of(again), strict=True))
    assert not any(
        torch.equal(a, b) for a, b in zip(first.support[:2], other.support[:2], strict=True)
    )


def test_drawing_follows_the_generator_and_leaves_the_global_one_alone():
    state = torch.get_rng_state()
    draw(5, ragged=0.5)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_point_lies_on_the_sinusoid_of_its_task():
    tasks = draw(20, shots=3, queries=4)
    for task in range(20):
        amplitude, phase = tasks.hidden[task].tolist()
        for x, y in [(tasks.support_x, tasks.support_y), (tasks.query_x, tasks.query_y)]:
            for one_x, one_y in zip(x[task, :, 0].tolist(), y[task, :, 0].tolist(), strict=True):
                assert one_y == pytest.approx(amplitude * math.sin(one_x - phase), abs=1e-5)


def test_amplitude_phase_and_inputs_are_uniform_over_their_ranges():
    """The mean of n uniform numbers is off by more than 5 * range / sqrt(12 n) in one of two million draws."""
    tasks = draw(shots=2, queries=3)
    x = torch.cat([tasks.support_x, tasks.query_x], 1)
    for values, low, high in [
        (tasks.hidden[:, 0], 0.1, 5),
        (tasks.hidden[:, 1], 0, math.pi),
        (x.flatten(), -5, 5),
    ]:
        count, wide = len(values), high - low
        assert (
            low <= values.min() < low + 10 * wide / count
            and high - 10 * wide / count < values.max() <= high
        )
        assert values.mean().item() == pytest.approx(
            (low + high) / 2, abs=5 * wide / math.sqrt(12 * count)
        )
        assert values.std().item() == pytest.approx(wide / math.sqrt(12), rel=0.1)


def test_shapes_are_those_asked_for_and_nothing_is_masked_by_default():
    tasks = draw(7, shots=3, queries=4)
    assert [tuple(values.shape) for values in tasks.support] == [(7, 3, 1), (7, 3, 1), (7, 3)]
    assert [tuple(values.shape) for values in tasks.query] == [(7, 4, 1), (7, 4, 1), (7, 4)]
    assert tasks.hidden.shape == (7, 2) and tasks.classes is None
    assert (
        tasks.support_mask.dtype == torch.bool
        and tasks.support_mask.all()
        and tasks.query_mask.all()
    )
    default = SinusoidTasks().sample(2, torch.Generator())
    assert default.support_x.shape == (2, 10, 1) and default.query_x.shape == (2, 50, 1)


def test_ragged_tasks_keep_from_one_to_all_of_their_points_each_as_often():
    whole, ragged = draw(shots=5), draw(shots=5, ragged=0.5)
    shots = ragged.support_mask.sum(1)
    assert (ragged.support_mask.int().diff(dim=1) <= 0).all()  # points are dropped from the end
    counts = torch.bincount(shots, minlength=6).tolist()
    assert counts[0] == 0
    for kept, expected in zip(
        range(1, 6), (200, 200, 200, 200, 1200), strict=True
    ):  # 1000 ragged over 5, 1000 whole
        assert counts[kept] == pytest.approx(expected, abs=5 * math.sqrt(expected))
    for field in ("support_x", "support_y", "query_x", "query_y", "hidden"):
        assert torch.equal(getattr(ragged, field), getattr(whole, field))
    assert draw(shots=5, ragged=1.0).support_mask.sum(1).unique().tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("options", [{"shots": 0}, {"queries": 0}, {"shots": -1}])
def test_no_points_are_refused_and_the_advice_works(options):
    with pytest.raises(
        ConfigError, match=r"`shots=.*needs at least one point to adapt on.*Pass numbers from 1"
    ):
        SinusoidTasks(**options)
    assert draw(2, shots=1, queries=1).support_x.shape == (2, 1, 1)


def test_some_tasks_are_taken_from_every_field():
    tasks = draw(6, shots=2, queries=3)
    for index, numbers in [
        (slice(1, None, 2), [1, 3, 5]),
        (torch.tensor([4, 0]), [4, 0]),
        (torch.arange(6) > 3, [4, 5]),
    ]:
        taken = tasks.take(index)
        assert isinstance(taken, Tasks)
        assert all(
            torch.equal(a, b[numbers])
            for a, b in zip(tensors_of(taken), tensors_of(tasks), strict=True)
        )


def test_moving_keeps_every_field():
    tasks = draw(3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(tensors_of(tasks.to("cpu")), tensors_of(tasks), strict=True)
    )
    assert all(field.device.type == "meta" for field in tensors_of(tasks.to("meta")))
