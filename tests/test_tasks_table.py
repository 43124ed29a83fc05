"""A user's table becomes regression tasks, and every way to get it wrong is told by line and column."""

import gzip

import pytest
import torch

from weightloom.errors import ConfigError, DataError
from weightloom.tasks import Skipped
from weightloom.tasks.points import PointTasks
from weightloom.tasks.table import Scale, load_table

ROWS = ["a,1,10,0.5", "b,2,20,1.5", "a,3,30,2.5", "b,4,40,3.5", "a,5,50,4.5", "short,6,60,5.5"]


@pytest.fixture
def file(tmp_path):
    def write(*lines, name="tasks.csv"):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def test_rows_are_gathered_by_task_in_the_order_of_the_file(file):
    table = load_table(file("task,age,dose,y", *ROWS), fewest_points=2)
    assert (table.features, table.target) == (("age", "dose"), "y")
    assert table.pool.names == ("a", "b") and table.pool.counts.tolist() == [3, 2]
    assert table.pool.x.tolist() == [[1, 10], [3, 30], [5, 50], [2, 20], [4, 40]]
    assert table.pool.y[:, 0].tolist() == [0.5, 2.5, 4.5, 1.5, 3.5]
    assert table.skipped == (Skipped("short", "has 1 rows, fewer than `fewest_points=2`"),)


def test_the_target_is_y_else_the_last_column_else_the_one_that_is_named(file):
    assert load_table(file("y,task,age,dose", *["0,a,1,2"] * 4)).target == "y"
    assert load_table(file("task,age,dose,effect", *["a,1,2,3"] * 4)).target == "effect"
    chosen = load_table(file("task,age,dose,effect", *["a,1,2,3"] * 4), target="age")
    assert chosen.features == ("dose", "effect") and chosen.pool.y.unique().tolist() == [1]


def test_a_gzipped_file_and_one_from_a_spreadsheet_read_as_the_plain_one(file, tmp_path):
    lines = ["task,age,dose,y", *ROWS]
    plain = load_table(file(*lines), fewest_points=2).pool
    (tmp_path / "tasks.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (tmp_path / "sheet.csv").write_bytes("\r\n".join(lines).replace(",", ";").encode("utf-8-sig"))
    for name in ("tasks.csv.gz", "sheet.csv"):
        other = load_table(tmp_path / name, fewest_points=2).pool
        assert (
            torch.equal(other.x, plain.x)
            and torch.equal(other.y, plain.y)
            and other.names == plain.names
        )


@pytest.mark.parametrize(
    ("lines", "target", "error", "said"),
    [
        (
            ["tasks,age,y", "a,1,2"],
            None,
            ConfigError,
            r"no columns named `task`.*Did you mean `tasks`\?",
        ),
        (
            ["task,age,why", "a,1,2"],
            "whi",
            ConfigError,
            r"no columns named `whi`.*Did you mean `why`\?",
        ),
        (["task,age,age,y", "a,1,2,3"], None, ConfigError, "2 columns named `age`"),
        (["task,y", "a,1"], None, ConfigError, "at least one feature"),
        (["task,age,y", "a,1,2"], "task", ConfigError, "Pass the name of the target"),
        (
            ["task,age,y", "a,1,2", "a,old,2"],
            None,
            DataError,
            "Line 3 of .* has 'old' in the column `age`",
        ),
        (
            ["task,age,y", "a,1,2", "", "a,1,nan"],
            None,
            DataError,
            "Line 4 of .* has 'nan' in the column `y`",
        ),
        (["task,age,y", "a,,2"], None, DataError, "Line 2 of .* has '' in the column `age`"),
        (
            ["task,age,y", "a,1,2", "a,1,2,3"],
            None,
            DataError,
            "Line 3 of .* has 4 cells, but the header names 3",
        ),
        (["task,age,y", "a,1,2"], None, DataError, "1 tasks, none with 4 rows"),
        ([""], None, ConfigError, "no columns named `task`"),
    ],
)
def test_what_cannot_be_read_is_told_by_line_and_column(file, lines, target, error, said):
    with pytest.raises(error, match=said):
        load_table(file(*lines), target)


def test_a_file_that_is_not_there_or_is_no_text_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv` cannot be read"):
        load_table(tmp_path / "nowhere.csv")
    (tmp_path / "photo.csv").write_bytes(b"\xff\xfe\x00\x81" * 9)
    with pytest.raises(DataError, match=r"photo\.csv` cannot be read"):
        load_table(tmp_path / "photo.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"task,x,y\n" + b"a,1,2\n" * 99)[:-9])
    with pytest.raises(DataError, match=r"cut\.csv\.gz` cannot be read"):
        load_table(tmp_path / "cut.csv.gz")


def test_held_out_tasks_do_not_set_the_scale(file):
    """Ten tasks, one of them huge: what is scaled by others is far from mean zero and deviation one."""
    lines = [
        f"{task},{10.0**task + row},{row},7,{row * task}" for task in range(10) for row in range(5)
    ]
    table = load_table(file("task,size,row,constant,y", *lines))
    train, validation, test = table.split(seed=1)
    assert sorted(train.names + validation.names + test.names) == [str(task) for task in range(10)]
    assert [len(part.names) for part in (train, validation, test)] == [6, 2, 2]
    points = train.x
    torch.testing.assert_close(points.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        points.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-5, rtol=0
    )
    scale = Scale.of(table.pool.take(torch.tensor([int(name) for name in train.names])))
    task = int(test.names[0])
    assert scale.unscaled(test.y[:5, 0]).tolist() == pytest.approx(
        [row * task for row in range(5)], abs=1e-4
    )
    drawn = PointTasks(train, shots=2, queries=3).sample(4, torch.Generator().manual_seed(0))
    assert drawn.support_x.shape == (4, 2, 3)


def test_a_split_that_leaves_nothing_to_train_on_is_refused(file):
    table = load_table(file("task,age,y", *["a,1,2", "b,1,2"] * 4))
    with pytest.raises(ConfigError, match="leave none of the 2 tasks"):
        table.split()
