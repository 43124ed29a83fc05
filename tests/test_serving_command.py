"""Customers of a run, on the command line and from Python."""

import json

import pytest
import torch

from weightloom.apps import fewshot
from weightloom.cli import main
from weightloom.serving import Server


def rows(generator, count):
    """Points of a plane of random slope."""
    slope = torch.randn(2, generator=generator)
    x = torch.randn(count, 2, generator=generator)
    points = zip(x.tolist(), (x @ slope).tolist(), strict=True)
    return [{"a": a, "b": b, "y": y} for (a, b), y in points]


def refused(words, capsys):
    """The message of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps on a table, and a list of seven customers."""
    folder = tmp_path_factory.mktemp("customers")
    generator = torch.Generator().manual_seed(0)
    lines = ["task,a,b,y"]
    for task in range(20):
        lines += [f"{task},{r['a']},{r['b']},{r['y']}" for r in rows(generator, 8)]
    (folder / "table.csv").write_text("\n".join(lines))
    customers = [{"name": f"user {n}", "examples": rows(generator, 3 + n)} for n in range(7)]
    text = "\n".join(json.dumps(its) for its in customers)
    (folder / "customers.jsonl").write_text(text + "\n\n")
    options = {"shots": (5,), "queries": 2, "steps": 2, "method": "generated-network"}
    fewshot.train(folder / "table.csv", run=folder / "run", quiet=True, **options)
    return folder


def test_two_shards_of_customers_are_written_and_served(run, capsys):
    words = [
        *("adapt", str(run / "run"), str(run / "customers.jsonl")),
        *("--out", str(run / "adapters"), "--batch", "2"),
    ]
    main([*words, "--shard", "2/2"])
    assert "7 customers: 2 files written" in (said := capsys.readouterr().out)
    assert "other shards are missing" in said
    main([*words, "--shard", "1/2"])
    assert "complete: " in capsys.readouterr().out
    main(words)
    assert "0 files written, 4 were there" in capsys.readouterr().out
    trained = fewshot.load(run / "run")
    server = trained.serve(run / "adapters")
    assert isinstance(server, Server) and list(server) == [f"user {n}" for n in range(7)]
    lines = (run / "customers.jsonl").read_text().splitlines()
    for line in filter(None, lines):
        held = json.loads(line)
        x = [[row["a"], row["b"]] for row in held["examples"]]
        y = [row["y"] for row in held["examples"]]
        alone = trained.adapt((x, y))
        out = server([held["name"]] * len(x), trained.problem.inputs().encode(x))
        scale = server[held["name"]].about["targets"]
        values = out[:, 0].double() * scale["std"][0] + scale["mean"][0]
        torch.testing.assert_close(values, torch.as_tensor(alone.predict(x)), rtol=1e-5, atol=1e-5)


def test_python_writes_the_same(run, tmp_path):
    done = fewshot.load(run / "run").adapt_many(run / "customers.jsonl", tmp_path, quiet=True)
    assert (done.customers, done.files, done.is_complete) == (7, 1, True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"name": "", "examples": []}', "its name is ''"),
        ('{"name": "ann", "examples": [3]}', "no list of objects"),
        ('{"examples": []}', "it lacks 'name'"),
        ('{"name": "ann", "examples": []}', "holds no rows"),
        ('{"name": "ann", "examples": [{"a": 1, "y": 2}]}', "no column `b`"),
        ('{"name": "user 0", "examples": [{"a": 1, "b": 1, "y": 2}]}', "'user 0' is there twice"),
    ],
)
def test_a_line_that_is_no_customer_is_shown(run, tmp_path, capsys, line, said):
    first = (run / "customers.jsonl").read_text().splitlines()[0]
    (tmp_path / "bad.jsonl").write_text(f"{first}\n{line}\n")
    words = ["adapt", str(run / "run"), str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "out")]
    assert said in refused(words, capsys)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "no `--out` was typed"),
        (["--out", "x", "--predict", "a"], "`--predict` was typed"),
        (["--out", "x", "--shard", "3"], "Type `--shard 1/2`"),
        (["--out", "x", "--shard", "3/2"], "from 1"),
    ],
)
def test_options_that_do_not_go_with_customers_are_refused(run, tmp_path, capsys, more, said):
    more = [str(tmp_path / word) if word == "x" else word for word in more]
    assert said in refused(["adapt", str(run / "run"), str(run / "customers.jsonl"), *more], capsys)


def test_a_single_task_has_no_shards(run, tmp_path, capsys):
    (tmp_path / "one.jsonl").write_text('{"a": 1, "b": 2, "y": 3}\n{"a": 2, "b": 2, "y": 3}\n')
    words = ["adapt", str(run / "run"), str(tmp_path / "one.jsonl")]
    main(words)
    assert "which is one task" in refused([*words, "--shard", "1/2"], capsys)
