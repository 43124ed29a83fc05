"""The hyperteacher: what it computes against loops written out, and that what is held out is never drawn."""

import pytest
import torch

from references import tensors_of
from weightloom.errors import ConfigError
from weightloom.tasks.hyperteacher import HyperteacherTasks

SMALL = {"modules": 3, "width": 6, "inputs": 4, "classes": 5, "shots": 7, "queries": 3}


def draw(tasks=40, seed=0, **options):
    source = HyperteacherTasks(**{**SMALL, **options})
    return source, source.sample(tasks, torch.Generator().manual_seed(seed))


def rows_of(codes):
    return {tuple(row) for row in codes.flatten(1).gt(0).long().tolist()}


def test_the_same_seed_gives_the_same_tasks_and_another_teacher_others():
    first, again, other = draw(5)[1], draw(5)[1], draw(5, 1)[1]
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(first), tensors_of(again), strict=True))
    assert not torch.equal(first.support_x, other.support_x)
    taught_by_another = HyperteacherTasks(**SMALL, seed=1).sample(
        5, torch.Generator().manual_seed(0)
    )
    assert torch.equal(first.support_x, taught_by_another.support_x)
    assert not torch.allclose(first.support_y, taught_by_another.support_y)


def test_drawing_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    draw()
    assert torch.equal(torch.get_rng_state(), state)


def test_targets_are_those_of_the_teacher_written_out():
    source, tasks = draw(3)
    teacher, points = source.teacher, torch.Generator().manual_seed(5)
    many = 2 * torch.rand(5000, 4, generator=points) - 1

    def outputs(code, x):
        x = torch.relu(x @ teacher.first.T)
        for layer, mixture in enumerate(code.view(2, 3)):
            weight = sum(
                share * module
                for share, module in zip(mixture, teacher.modules[layer], strict=True)
            )
            x = torch.relu(x @ weight.T)
        return x @ teacher.last.T

    for task in range(3):
        code, over_all = tasks.hidden[task], outputs(tasks.hidden[task], many)
        for x, y in [
            (tasks.support_x[task], tasks.support_y[task]),
            (tasks.query_x[task], tasks.query_y[task]),
        ]:
            normalised = (outputs(code, x) - over_all.mean(0)) / over_all.std(0)
            close = (normalised / 0.1).softmax(1)
            assert (
                close - y
            ).abs().mean() < 0.05  # mean and spread are estimated from 1000 points there
    torch.testing.assert_close(tasks.query_y.sum(2), torch.ones(3, 3))


def test_no_class_is_rare_over_tasks_and_targets_are_sharp():
    tasks = HyperteacherTasks(queries=200).sample(200, torch.Generator().manual_seed(0))
    share = torch.bincount(tasks.query_y.argmax(2).flatten(), minlength=8) / 40000
    assert share.min() > 0.05 and share.max() < 0.25
    assert tasks.query_y.amax(2).mean() > 0.8


@pytest.mark.parametrize(
    ("modules", "active", "combinations"), [(4, 2, 100), (4, 1, 16), (3, 3, 49), (8, 1, 64)]
)
def test_a_quarter_of_all_combinations_is_held_out_and_never_drawn_in_training(
    modules, active, combinations
):
    """Of each of two layers sum over k of (modules choose k) mixtures: (4 + 6)² = 100 for four modules and pairs."""
    options = {"modules": modules, "active": active}
    (source, train), (_, ood) = (
        draw(500, which="train", **options),
        draw(500, which="ood", **options),
    )
    assert (
        len(rows_of(source.teacher.codes)) == combinations
        and source.teacher.held_out == combinations // 4
    )
    assert not rows_of(train.hidden) & rows_of(ood.hidden)
    assert len(rows_of(ood.hidden)) == combinations // 4
    torch.testing.assert_close(train.hidden.view(500, 2, modules).sum(2), torch.ones(500, 2))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("active", [1, 2])
def test_training_meets_every_module_and_chains_of_pairs_join_them_unless_one_is_active(
    active, seed
):
    source = HyperteacherTasks(modules=4, active=active, seed=seed)
    known = source.teacher.codes[: -source.teacher.held_out] > 0
    for layer in range(2):
        assert known[:, layer].any(0).all()
        joined = {0}
        for _ in range(4):
            for used in known[:, layer]:
                together = set(used.nonzero().flatten().tolist())
                joined |= together if together & joined else set()
        assert joined == ({0} if active == 1 else {0, 1, 2, 3})


def test_what_cannot_be_combined_is_said():
    with pytest.raises(ConfigError, match="`active=5` with `modules=4`"):
        HyperteacherTasks(modules=4, active=5)
    with pytest.raises(ConfigError, match="give one combination only"):
        HyperteacherTasks(layers=1)
    with pytest.raises(ConfigError, match="leaves no combination for one side"):
        HyperteacherTasks(held_out=1.0)
    with pytest.raises(ConfigError, match="cannot be held out"):
        assert HyperteacherTasks(held_out=0.99).teacher
