"""Tasks as people put them together: trees of tensors, masks filled in, shapes checked."""

import pytest
import torch
from torch.utils._pytree import tree_map

from references import tensors_of
from weightloom import SinusoidTasks
from weightloom.errors import ConfigError, ShapeError
from weightloom.tasks import Examples, Tasks

X, Y = torch.randn(4, 5, 3), torch.arange(5).expand(4, 5)


def of_trees():
    def tokens(rows):
        return {
            "ids": torch.randint(9, (4, rows, 7)),
            "seen": (torch.rand(4, rows, 7), torch.rand(4, rows)),
        }

    facts = {"amplitude": torch.rand(4), "name": "waves"}
    return Tasks.of(
        tokens(5),
        Y,
        tokens(6),
        torch.rand(4, 6, 2),
        hidden=facts,
        classes=torch.arange(20).view(4, 5),
    )


def test_without_a_mask_all_examples_are_there_and_nothing_is_hidden():
    tasks = Tasks.of(X, Y, X[:, :2], Y[:, :2])
    assert (
        tasks.support_mask.all()
        and tasks.support_mask.shape == (4, 5)
        and tasks.query_mask.shape == (4, 2)
    )
    assert tasks.hidden is None and tasks.classes is None
    assert tasks.support_x is X and tasks.support_y is Y and tasks.query.x is tasks.query_x


def test_taking_and_moving_reach_every_tensor_and_leave_the_rest():
    tasks = of_trees()
    for index in (slice(1, None, 2), torch.tensor([3, 0])):
        taken = tasks.take(index)
        pairs = [
            (a, b)
            for a, b in zip(tensors_of(taken), tensors_of(tasks), strict=True)
            if isinstance(b, torch.Tensor)
        ]
        assert len(pairs) == 12 and all(torch.equal(a, b[index]) for a, b in pairs)
        assert taken.hidden["name"] == "waves" and set(taken.support_x) == {"ids", "seen"}
    assert all(
        v.device.type == "meta" for v in tensors_of(tasks.to("meta")) if isinstance(v, torch.Tensor)
    )


def test_rows_are_taken_from_each_task_by_its_own_numbers():
    index = torch.tensor([[4, 0], [1, 1], [2, 3], [0, 4]])
    support = of_trees().support
    kept = support.rows(index)
    for task, numbers in enumerate(index.tolist()):
        for one, whole in zip(tensors_of(kept), tensors_of(support), strict=True):
            assert torch.equal(one[task], torch.stack([whole[task, number] for number in numbers]))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"support_y": Y[:, :4]},
            r"`y` has shape \(4, 4\), but there are 4 tasks of 5 rows.*Pass `y` as \(4, 5, ...\)",
        ),
        ({"support_x": {"ids": X, "seen": X[:3]}}, r"`x\['seen'\]` has shape \(3, 5, 3\)"),
        ({"support_mask": torch.ones(4, 5)}, r"`mask` is torch.float32 .*Pass `mask.bool\(\)`"),
        ({"support_mask": torch.ones(4, 6, dtype=torch.bool)}, "`x` has shape"),
        (
            {"query_x": X[:3], "query_y": Y[:3]},
            r"`query_x` has shape \(3, 5\), but `support_x` holds 4 tasks",
        ),
        ({"hidden": torch.rand(3)}, r"`hidden` has shape \(3,\).*Pass `hidden` as \(4, ...\)"),
        ({"classes": torch.arange(5)}, "`classes` has shape"),
        (
            {"support_x": [1.0], "support_y": 2},
            r"`x` is a list and `y` a int, without a tensor.*torch.as_tensor",
        ),
    ],
)
def test_parts_that_disagree_are_refused_with_what_to_pass(parts, words):
    given = {"support_x": X, "support_y": Y, "query_x": X, "query_y": Y} | parts
    with pytest.raises(ShapeError, match=words):
        Tasks.of(**given)


def test_the_advice_of_each_message_works():
    mask = torch.ones(4, 5)
    assert Examples.of(X, Y, mask.bool()).mask.all()
    assert torch.equal(Examples.of(torch.as_tensor(X.tolist()), Y).x, X)


def test_tasks_are_a_tree_to_torch_and_come_back_whole():
    doubled = tree_map(
        lambda v: 2 * v if isinstance(v, torch.Tensor) and v.is_floating_point() else v, of_trees()
    )
    assert isinstance(doubled, Tasks) and isinstance(doubled.support, Examples)


def test_a_notebook_shows_every_tensor_of_tasks():
    tasks = SinusoidTasks(shots=3).sample(2, torch.Generator().manual_seed(0))
    html = tasks._repr_html_()
    assert "<td>(2, 3, 1)</td><td>float32</td>" in html and "2 tasks" in html
    for name in ("support[&#x27;x&#x27;]", "query[&#x27;mask&#x27;]", "hidden"):
        assert name in html


def test_names_follow_the_numbers_of_classes_wherever_tasks_go():
    known = [f"class {number}" for number in range(20)]
    tasks = of_trees()
    expected = [[f"class {5 * task + label}" for label in range(5)] for task in range(4)]
    assert tasks.names(known) == tasks.to("cpu").names(known) == expected
    assert tasks.take(torch.tensor([2, 0])).names(known) == [expected[2], expected[0]]
    assert tasks.map(lambda values: values.flip(0)).names(known) == expected[::-1]


def test_names_without_numbers_of_classes_are_refused():
    tasks = of_trees()
    with pytest.raises(ConfigError, match="holds a class 19, and 3 names"):
        tasks.names(["a", "b", "c"])
    with pytest.raises(ConfigError, match=r"`Tasks\.classes` is None"):
        tasks._replace(classes=None).names(["a"])
